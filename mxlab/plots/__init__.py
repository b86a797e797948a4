"""Summary frame → matplotlib Axes. Pure; a drawing has the name of the summary it draws."""

from mxlab.plots.latency import aggregation_latency
from mxlab.plots.status import status_by_institution, status_counts

__all__ = ["aggregation_latency", "status_by_institution", "status_counts"]
