"""`Explorer`: choose a chart, narrow it, look, copy as code, take away."""

import re
from copy import copy
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
from ipywidgets import HTML, Button, Checkbox, Dropdown, HBox, Layout, ToggleButtons, VBox

from mxlab import charts
from mxlab.charts import CHARTS
from mxlab.errors import ConfigError, MxlabError
from mxlab.exports import displayed, export, html_table, replacing
from mxlab.frames import Snapshot
from mxlab.widgets.filters import Filters, Mask
from mxlab.widgets.picture import Picture
from mxlab.widgets.table import STYLE, PagedTable

_VIEWS = {"Chart": "chart", "Figures": "figures", "Members": "members", "Code and files": "take"}
_COLUMNS = (
    "institution",
    "connection_status",
    "who_must_act",
    "outcome",
    "job_seconds",
    "aggregation_seconds_low",
    "aggregation_seconds_high",
    "age_seconds",
    "is_oauth",
    "aggregated_at",
    "successfully_aggregated_at",
    "user_state",
    "session",
    "guid",
)
_STATUS = ["connection_status", "user_state"]
_ACTING = ["institution", "who_must_act", "user_state"]
_TIMES = [
    "outcome",
    "who_must_act",
    "session",
    "aggregation_seconds_low",
    "aggregation_seconds_high",
    "job_seconds",
    "user_state",
]
#: What the summaries take of a members frame; a chart that is not here gets every column, which is slower.
_NEEDS = {
    "status_counts": _STATUS,
    "who_must_act": _STATUS,
    "status_by_institution": [*_STATUS, "institution"],
    "aggregation_latency": _TIMES,
    "outcomes_over_time": _TIMES,
    "latency_quantiles": [*_TIMES, "institution"],
    "slow_institutions": [*_TIMES, "institution"],
    "freshness": [*_STATUS, "age_seconds", "eligible"],
    "outage_scan": [*_ACTING, "aggregated_at", "seen_at"],
    "institution_funnel": _ACTING,
    "attributable_share": _ACTING,
}
_FILES = {
    **{f"members as {kind}": ("members", kind) for kind in ("csv", "xlsx", "parquet", "json")},
    **{f"figures as {kind}": ("figures", kind) for kind in ("csv", "xlsx")},
    **{f"chart as {kind}": ("chart", kind) for kind in ("png", "svg")},
}
_FIGURES_ROWS = 300
LOOK = f"""{STYLE}<style>
.mxlab-picture.mxlab-stale {{ opacity: .35; transition: opacity .15s .2s; }}
.mxlab-said {{ color: var(--jp-ui-font-color2, #6a737d); margin: 2px 0; }}
.mxlab-code {{ user-select: all; white-space: pre-wrap; overflow-wrap: anywhere; padding: 8px;
  border: 1px solid var(--jp-border-color2, #e6e8eb); border-radius: 4px; line-height: 1.4; }}
</style>"""


class Explorer(VBox):
    """Look at a Snapshot: choose a chart, narrow the members, copy the view as code, take it away as a file.

    Parameters
    ----------
    snap
        What to look at.
    chart
        One of `mxlab.CHARTS`, to begin with: of one Snapshot; those of changes between runs where it has several.
    width, dark
        Of the picture: pixels; on dark paper.

    Attributes
    ----------
    chart, filters, view, picture, table
        The controls; setting their values is choosing.
    """

    def __init__(
        self, snap: Snapshot, chart: str = "status_counts", *, width: int = 800, dark: bool = False
    ) -> None:
        several = len(snap.manifest.get("runs", ())) > 1
        offered = {
            name: each for name, each in CHARTS.items() if not each.of_two and (several or not each.of_many)
        }
        if chart not in offered:
            raise ConfigError(
                f"there is no chart {chart!r} of this snapshot; there are: {', '.join(offered)}"
            )
        self._snap, self._look = snap, {"width": width, "dark": dark}
        self._answered = snap.members["user_state"].eq("answered").to_numpy(dtype=bool, na_value=False)
        self.filters = Filters(snap.members)
        self.chart = Dropdown(
            description="Chart",
            options=[(each.question, name) for name, each in offered.items()],
            value=chart,
            layout=Layout(width="auto"),
        )
        self.view = ToggleButtons(options=_VIEWS, style={"button_width": "auto"})
        self.said, self.figures, self.code, self.saved = HTML(), HTML(), HTML(), HTML()
        self.picture = Picture(width=width, dark=dark)
        self.kind = Dropdown(description="Save", options=list(_FILES))
        self.identities = Checkbox(description="with MX's ids of users and members", indent=False)
        self.save = Button(description="Save", tooltip="Write the file beside the notebook")
        self._files = VBox([HBox([self.kind, self.save]), self.identities, self.saved])
        self._pane, self._trouble = VBox(), HTML()
        for name in ("chart", "view", "said", "kind", "save"):
            getattr(self, name).add_class(f"mxlab-{name}")
        self.chart.observe(self._show, "value")
        self.view.observe(self._show, "value")
        self.filters.observe(self._show, "conditions")
        self.save.on_click(self._save)
        right = VBox(
            [self.chart, self.view, self.said, self._pane],
            layout=Layout(flex="1 1 320px", min_width="0", padding="0 0 0 16px"),
        )
        super().__init__([HTML(LOOK), HBox([self.filters, right], layout=Layout(flex_flow="row wrap"))])
        self.add_class("mxlab-explorer")
        self._show()

    @cached_property
    def table(self) -> PagedTable:
        """The members in view, a page at a time."""
        return PagedTable(self._snap.members, "Members", columns=_COLUMNS)

    @property
    def snapshot(self) -> Snapshot:
        """What is in view, as a Snapshot."""
        return self._narrowed(self._snap.members, self.filters.mask(self._snap.members))

    @property
    def line(self) -> str:
        """The line of code that draws the picture in view again."""
        view = "snap"
        if self.filters.conditions and self._filtered:
            view = f"snap.narrowed(snap.members.loc[lambda m: {self.filters.code}], {self.filters.words!r})"
        look = "".join(
            f", {name}={value!r}"
            for name, value in self._look.items()
            if value != {"width": 800, "dark": False}[name]
        )
        return f"mx.draw({self.chart.value!r}, {view}{look})"

    def _narrowed(self, members: pd.DataFrame, mask: Mask | None) -> Snapshot:
        if mask is None:
            return self._snap
        return self._snap.narrowed(members.loc[mask], self.filters.words)

    def _drawn(self, mask: Mask | None) -> Snapshot:
        """What the chart is drawn of: only the columns that it takes, which is much faster."""
        if not self._filtered:
            return self._snap
        members = self._snap.members
        members = members[_NEEDS.get(self.chart.value, list(members.columns))]
        if mask is not None:
            return self._narrowed(members, mask)
        thin = copy(self._snap)
        vars(thin)["members"] = members
        return thin

    @property
    def _filtered(self) -> bool:
        """Whether filters of members say anything of the chart's frame."""
        return CHARTS[self.chart.value].frame == "members"

    def _show(self, _: object = None) -> None:
        """Bring what is in view up to date; the last of several changes is the one that stays."""
        with charts.LOCK:
            mask = self.filters.mask(self._snap.members)
            self.said.value = self._sentence(mask)
            try:
                self._pane.children = getattr(self, f"_show_{self.view.value}")(mask)
            except MxlabError as error:
                self._trouble.value = status_line(str(error))
                self._pane.children = (self._trouble,)

    def _sentence(self, mask: Mask | None) -> str:
        answered = self._answered if mask is None else self._answered & mask
        shown, counted = len(answered) if mask is None else int(mask.sum()), int(answered.sum())
        parts = [f"{shown:,} of {len(answered):,} members", self.filters.words, str(self._snap.coverage)]
        if counted < shown:
            parts[0] += f", {shown - counted:,} of them of users without an answer, in no chart"
        if not self._filtered:
            parts.append(f"this chart is of all {CHARTS[self.chart.value].frame}, filters do not narrow it")
        return status_line(" · ".join(part for part in parts if part))

    def _show_chart(self, mask: Mask | None) -> tuple[Any, ...]:
        self.picture.add_class("mxlab-stale")
        try:
            self.picture.draw(self.chart.value, self._drawn(mask))
        finally:
            self.picture.remove_class("mxlab-stale")
        return (self.picture,)

    def _show_figures(self, mask: Mask | None) -> tuple[Any, ...]:
        summary = charts.summarize(self.chart.value, self._drawn(mask))
        words = CHARTS[self.chart.value].question
        if len(summary) > _FIGURES_ROWS:
            words += f" The first {_FIGURES_ROWS} of {len(summary):,} rows."
        table = html_table(summary.head(_FIGURES_ROWS), words)
        self.figures.value = f'<div class="mxlab-table" tabindex="0">{table}</div>'
        return (self.figures,)

    def _show_members(self, mask: Mask | None) -> tuple[Any, ...]:
        self.table.restrict(mask)
        return (self.table,)

    def _show_take(self, _: Mask | None) -> tuple[Any, ...]:
        self.code.value = f'<pre class="mxlab-code" tabindex="0">{escape(self.line)}</pre>'
        return (self.code, self._files)

    def _save(self, _: object = None) -> None:
        what, kind = _FILES[self.kind.value]
        run = re.sub(r"[^\w.-]+", "-", str(self._snap.manifest.get("run")))
        path = Path(f"mxlab-{run}-{what if what == 'members' else self.chart.value}.{kind}")
        try:
            if what == "chart":
                self._save_chart(path, kind)
            else:
                frame = self.snapshot.members
                if what == "figures":
                    frame = charts.summarize(self.chart.value, self.snapshot)
                export(frame, path, identities=self.identities.value)
        except MxlabError as error:
            self.saved.value = status_line(str(error))
        else:
            self.saved.value = status_line(f"Saved {path.name} beside the notebook.")

    def _save_chart(self, path: Path, kind: str) -> None:
        stable = {"png": {"Software": None}, "svg": {"Date": None}}[kind]
        with charts.LOCK, mpl.rc_context({"svg.hashsalt": "mxlab"}), replacing(path) as file:
            figure = self.picture.figure(self.chart.value, self.snapshot)
            figure.savefig(file, format=kind, metadata=stable)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """The widget, and beside it the picture for where there are no widgets."""
        bundle: dict[str, Any] = super()._repr_mimebundle_(**kwargs) or {}
        return {**bundle, **self.picture.bundle}


def status_line(text: str) -> str:
    """A sentence of a widget, read out when it changes."""
    return f'<p class="mxlab-said" role="status">{escape(displayed(text))}</p>'
