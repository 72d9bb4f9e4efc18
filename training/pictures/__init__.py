"""Pictures of a run: curves, plots, pages."""

from __future__ import annotations

from .curves import Curves
from .html_report import write_html_report
from .interval_movement import interval_starts
from .plots import plot_intervals
from .sensitivity_plot import plot_sensitivity

__all__ = ["Curves", "interval_starts", "plot_intervals", "plot_sensitivity", "write_html_report"]
