"""`CHARTS`: name → (frame, summary, drawing); `draw`: a chart of a Snapshot, with caption, stamp and provenance."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from io import BytesIO
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mxlab import analysis, plots
from mxlab.errors import ConfigError
from mxlab.frames import Snapshot
from mxlab.plots import style

#: Held by whoever draws: matplotlib's text layout is shared between threads.
LOCK = threading.RLock()
#: Pixels.
_NARROWEST, _WIDEST = 480, 8_000


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart by name.

    Attributes
    ----------
    frame
        Of the Snapshot: what the summary takes.
    summary, drawing
        Functions of `mxlab.analysis` and `mxlab.plots`, both of the chart's name.
    question
        What the chart answers.
    options
        Of the summary.
    of_two
        Whether it compares the Snapshot with an earlier one.
    of_many
        Whether it is of a Snapshot of several runs.
    given
        More options of the summary, from the Snapshot and the earlier one, if any.
    """

    frame: str
    summary: Callable[..., pd.DataFrame]
    drawing: Callable[..., Axes]
    question: str
    options: Mapping[str, Any] = field(default_factory=dict)
    of_two: bool = False
    of_many: bool = False
    given: Callable[[Snapshot, Snapshot | None], Mapping[str, Any]] = lambda _snap, _against: {}


def _declared(name: str, frame: str, question: str, **more: Any) -> tuple[str, Chart]:
    return name, Chart(frame, getattr(analysis, name), getattr(plots, name), question, **more)


def _baseline(_: Snapshot, against: Snapshot | None) -> Mapping[str, Any]:
    return {} if against is None else {"baseline": against.members}


def _speed(snap: Snapshot, _: Snapshot | None) -> Mapping[str, Any]:
    return {"speed": (snap.manifest.get("clock") or {}).get("speed", 1.0)}


CHARTS: dict[str, Chart] = dict(
    (
        _declared("status_counts", "members", "How are connection statuses distributed?"),
        _declared("who_must_act", "members", "Who must act?"),
        _declared("status_by_institution", "members", "Who must act, bank by bank?"),
        _declared("aggregation_latency", "members", "How long does aggregation take?"),
        _declared("outcomes_over_time", "members", "How do aggregations end, and when?"),
        _declared(
            "latency_quantiles",
            "members",
            "How long does it take, bank by bank?",
            options={"by": "institution"},
        ),
        _declared("slow_institutions", "members", "Which banks are slower than the rest?"),
        _declared("freshness", "members", "How old is the data?"),
        _declared("outage_scan", "members", "Which banks fail more than they used to?", given=_baseline),
        _declared("institution_funnel", "members", "Which banks fail more than chance explains?"),
        _declared("attributable_share", "members", "What would be won if a bank were like the rest?"),
        _declared("findings_by_institution", "members", "Which records look wrong, and where?"),
        _declared("reply_times", "requests", "How fast are the replies?"),
        _declared("request_failures", "requests", "What went wrong on the way?"),
        _declared("run_timeline", "requests", "How did the run go?", given=_speed),
        _declared("status_history", "members", "How did it change from run to run?", of_many=True),
        _declared("time_in_status", "members", "How long does a status last?", of_many=True),
        _declared("time_to_recover", "members", "When are members connected again?", of_many=True),
        _declared("transitions", "members", "Who moved from which status to which?", of_two=True),
        _declared("flow", "members", "Whose move was it before, and whose is it now?", of_two=True),
        _declared("mix_and_rate", "members", "Is it the mix of banks or the banks themselves?", of_two=True),
    )
)

#: The charts of a report and of the demo, in their order.
OVERVIEW = (
    "status_counts",
    "status_by_institution",
    "aggregation_latency",
    "outcomes_over_time",
    "slow_institutions",
    "freshness",
)


def summarize(name: str, snap: Snapshot, against: Snapshot | None = None) -> pd.DataFrame:
    """The summary frame that the chart of this name draws.

    Raises
    ------
    ConfigError
        There is no such chart (the message has the names), or it compares two Snapshots and there is one.
    """
    chart = _chart(name)
    frame = getattr(snap, chart.frame)
    options = {"coverage": snap.coverage, **chart.options, **chart.given(snap, against)}
    if not chart.of_two:
        return chart.summary(frame, **options)
    if against is None:
        raise ConfigError(f"{name} compares two snapshots: give the earlier one as against= (--against)")
    return chart.summary(getattr(against, chart.frame), frame, **options)


def draw(
    name: str,
    snap: Snapshot,
    against: Snapshot | None = None,
    ax: Axes | None = None,
    *,
    width: int = 800,
    dark: bool = False,
) -> Axes:
    """A chart by name.

    Parameters
    ----------
    name
        One of `CHARTS`.
    snap
        What to draw.
    against
        The earlier Snapshot, for a chart that compares two and for `outage_scan`, whose baseline it is; others
        ignore it.
    ax
        Where; a new figure without it.
    width, dark
        Of the new figure: pixels; on dark paper.

    Returns
    -------
    Axes
        With caption, coverage, provenance and, where it is so, SIMULATED. In a notebook the Axes of a new figure
        shows itself as a picture, with a text in its place where there are no pictures.

    Raises
    ------
    ConfigError
        As `summarize`, and for a width under 480 or over 8,000 pixels.
    """
    if not _NARROWEST <= width <= _WIDEST:
        raise ConfigError(f"a chart is {_NARROWEST:,} to {_WIDEST:,} pixels wide, not {width!r}")
    with LOCK:
        look = {} if ax else {"width": width, "dark": dark}
        axes = _chart(name).drawing(summarize(name, snap, against), ax, **look)
        figure = style.root(axes)
        if ax is None:
            style.foot(figure, provenance(snap), "SIMULATED" if snap.simulated else "")
            # The hook by which IPython asks an object for its picture.
            axes._repr_mimebundle_ = lambda **_: {"image/png": png(figure), "text/plain": caption(axes)}  # type: ignore[attr-defined]
        else:
            stamp = "SIMULATED · " if snap.simulated else ""
            style.note(
                axes,
                stamp + provenance(snap),
                (0, 0),
                xycoords="axes fraction",
                xytext=(0, -34),
                size=style.FOOT,
                color=style.theme_of(axes).muted,
            )
    return axes


def provenance(snap: Snapshot) -> str:
    """Where a figure comes from: run, time zone, seed, version, coverage, and what was left out of view."""
    manifest = snap.manifest
    began, ended = (
        str(manifest.get(f"{end}_at") or "")[:16].replace("T", " ") for end in ("started", "ended")
    )
    runs, at = manifest.get("runs"), f", {began} UTC" if began else ""
    parts = [
        f"{len(runs)} runs, from {began} to {ended} UTC" if runs else f"run {manifest.get('run')}{at}",
        f"seed {manifest['seed']}" if "seed" in manifest else "",
        f"mxlab {version('mxlab')}",
        str(snap.coverage),
    ]
    if condition := manifest.get("condition"):
        parts.append(f"shown: {condition}; coverage is of all users")
    return " · ".join(part for part in parts if part)


def caption(axes: Axes) -> str:
    """What a chart says, as text: its finding, its subtitle and its foot."""
    return " ".join(text.get_text() for text in style.root(axes).texts)


def png(figure: Figure) -> bytes:
    """The figure as PNG, the same bytes each time."""
    buffer = BytesIO()
    with LOCK:
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _chart(name: str) -> Chart:
    if name not in CHARTS:
        raise ConfigError(f"there is no chart {name!r}; there are: {', '.join(CHARTS)}")
    return CHARTS[name]
