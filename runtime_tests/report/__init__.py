"""Reports of `verify`, `bench`, targets and `doctor` combined: one page for whoever signs off, and its JSON."""

from .collect import collect
from .deployment import DeploymentReport
from .page import render

__all__ = ["DeploymentReport", "collect", "render"]
