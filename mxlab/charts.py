"""`CHARTS`: name → (frame, summary, drawing); `draw`: a chart of a Snapshot, with caption, stamp and provenance."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mxlab import analysis, plots
from mxlab.errors import ConfigError
from mxlab.frames import Snapshot
from mxlab.plots import style

#: Held by whoever draws: matplotlib's text layout is shared between threads.
LOCK = threading.RLock()


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
    """

    frame: str
    summary: Callable[..., pd.DataFrame]
    drawing: Callable[..., Axes]
    question: str


CHARTS: dict[str, Chart] = {
    "status_counts": Chart(
        "members", analysis.status_counts, plots.status_counts, "How are connection statuses distributed?"
    ),
    "status_by_institution": Chart(
        "members", analysis.status_by_institution, plots.status_by_institution, "Who must act, bank by bank?"
    ),
    "aggregation_latency": Chart(
        "members", analysis.aggregation_latency, plots.aggregation_latency, "How long does aggregation take?"
    ),
}


def summarize(name: str, snap: Snapshot) -> pd.DataFrame:
    """The summary frame that the chart of this name draws.

    Raises
    ------
    ConfigError
        There is no such chart; the message has the names.
    """
    chart = _chart(name)
    return chart.summary(getattr(snap, chart.frame), coverage=snap.coverage)


def draw(
    name: str,
    snap: Snapshot,
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
    ax
        Where; a new figure without it.
    width, dark
        Of the new figure: pixels; on dark paper.

    Returns
    -------
    Axes
        With caption, coverage, provenance and, where it is so, SIMULATED. In a notebook the Axes of a new figure
        shows itself as a picture, with a text in its place where there are no pictures.
    """
    with LOCK:
        axes = _chart(name).drawing(
            summarize(name, snap), ax, **({} if ax else {"width": width, "dark": dark})
        )
        figure = style.root(axes)
        if ax is None:
            style.foot(figure, provenance(snap), "SIMULATED" if snap.simulated else "")
            axes._repr_mimebundle_ = lambda **_: {"image/png": png(figure), "text/plain": caption(axes)}  # type: ignore[attr-defined]
        else:
            stamp = "SIMULATED · " if snap.simulated else ""
            style.note(axes, stamp + provenance(snap), (0, 0), xycoords="axes fraction", xytext=(0, -34),
                       size=style.FOOT, color=style.theme_of(axes).muted)  # fmt: skip
    return axes


def provenance(snap: Snapshot) -> str:
    """Where a figure comes from: run, time zone, seed, version, coverage, and what was left out of view."""
    manifest = snap.manifest
    at = str(manifest.get("started_at") or "")[:16].replace("T", " ")
    parts = [
        f"run {manifest.get('run')}" + (f", {at} UTC" if at else ""),
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
