"""Traits in, pictures out: widgets for JupyterLab and Voila, of the extra `lab`."""

try:
    import ipywidgets as _ipywidgets
except ImportError as error:
    raise ImportError("the widgets need ipywidgets: pip install 'mxlab[lab]'", name="ipywidgets") from error

from mxlab.widgets.audit import Audit
from mxlab.widgets.collector import Collector
from mxlab.widgets.explorer import Explorer
from mxlab.widgets.filters import Filters
from mxlab.widgets.picture import Picture
from mxlab.widgets.table import PagedTable

__all__ = ["Audit", "Collector", "Explorer", "Filters", "PagedTable", "Picture"]

del _ipywidgets
