"""Call MX's aggregate-all for many users, follow every aggregation, and explore connection health.

Every public name is found when it is first asked for, so that ``import mxlab`` is quick and asks for nothing
that is not used.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mxlab import aio as aio
    from mxlab import analysis as analysis
    from mxlab import plots as plots
    from mxlab.api import Simulation as Simulation
    from mxlab.api import aggregate as aggregate
    from mxlab.api import observe as observe
    from mxlab.api import preview as preview
    from mxlab.api import read_members as read_members
    from mxlab.api import simulate as simulate
    from mxlab.charts import CHARTS as CHARTS
    from mxlab.charts import draw as draw
    from mxlab.fetch.sso import sso_tokens as sso_tokens
    from mxlab.frames import Coverage as Coverage
    from mxlab.frames import Snapshot as Snapshot
    from mxlab.portal import Job as Job
    from mxlab.portal import start as start
    from mxlab.reporting import report as report
    from mxlab.settings import Clock as Clock
    from mxlab.settings import Settings as Settings
    from mxlab.store import Store as Store
    from mxlab.tokens import SessionToken as SessionToken
    from mxlab.tokens import minted as minted
    from mxlab.widgets import Audit as Audit
    from mxlab.widgets import Collector as Collector
    from mxlab.widgets import Explorer as Explorer

_HOMES = {
    "Audit": "widgets",
    "CHARTS": "charts",
    "Clock": "settings",
    "Collector": "widgets",
    "Coverage": "frames",
    "Explorer": "widgets",
    "Job": "portal",
    "SessionToken": "tokens",
    "Settings": "settings",
    "Simulation": "api",
    "Snapshot": "frames",
    "Store": "store",
    "aggregate": "api",
    "draw": "charts",
    "minted": "tokens",
    "observe": "api",
    "preview": "api",
    "read_members": "api",
    "report": "reporting",
    "simulate": "api",
    "sso_tokens": "fetch.sso",
    "start": "portal",
}
_MODULES = ("aio", "analysis", "errors", "plots")

__all__ = sorted([*_HOMES, *_MODULES])  # noqa: PLE0605 - a test holds it equal to what can be imported
__version__ = version("mxlab")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"mxlab.{name}")
    if name in _HOMES:
        return getattr(import_module(f"mxlab.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'mxlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
