"""Reports of `verify`, `bench`, targets and `doctor` together: one page for whoever signs off, one JSON behind it."""

from .collect import collect
from .deployment import DeploymentReport
from .page import render

__all__ = ["DeploymentReport", "collect", "render"]
