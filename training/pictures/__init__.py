"""What a run is shown as: curves, plots, pages."""

from __future__ import annotations

from .curves import Curves
from .html_report import write_html_report
from .plots import plot_intervals
from .sensitivity_plot import plot_sensitivity

__all__ = ["Curves", "plot_intervals", "plot_sensitivity", "write_html_report"]
