"""`Audit`: the findings of the quality rules, down to the rows; waive, take away."""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ipywidgets import HTML, Button, Checkbox, DatePicker, Dropdown, HBox, Layout, Select, Text, VBox

from mxlab.analysis import Waiver, findings
from mxlab.errors import MxlabError
from mxlab.exports import displayed, export
from mxlab.frames import Snapshot
from mxlab.widgets.explorer import LOOK, status_line
from mxlab.widgets.picture import Picture
from mxlab.widgets.table import Mask, PagedTable

_COLUMNS = (
    "severity",
    "rule",
    "institution",
    "connection_status",
    "aggregated_at",
    "successfully_aggregated_at",
    "age_seconds",
    "name",
    "user_state",
    "session",
    "guid",
)
#: How much of an institution's name a file gets.
_NAME_LETTERS = 40
_ALL = ""
#: No names, so that no institution can be taken for them, whatever it is called.
_EVERYWHERE, _UNNAMED = ("all",), ("not known",)


class Audit(VBox):
    """Look at what is wrong with the records of a Snapshot: by rule and institution, down to the rows.

    Parameters
    ----------
    snap
        What to look at.
    against
        An earlier Snapshot: fields that had values then and have none now are found.
    waivers
        What has been waived before: `mxlab.analysis.Waiver`, as another Audit's ``waivers``.
    width, dark
        Of the picture: pixels; on dark paper.

    Attributes
    ----------
    found
        What `mxlab.analysis.findings` gives, with the waivers so far, the gravest first.
    waivers
        What is waived: a tuple of `mxlab.analysis.Waiver`, which `findings` and another Audit take again.
    rule, institution, reason, until, waive, kind, identities, save
        The controls; setting their values is choosing.
    picture, table
        What is shown.
    """

    def __init__(
        self,
        snap: Snapshot,
        against: Snapshot | None = None,
        *,
        waivers: Sequence[Waiver] = (),
        width: int = 800,
        dark: bool = False,
    ) -> None:
        self._snap = snap
        self._previous = None if against is None else against.members
        self.waivers = tuple(waivers)
        self._is_offering = False
        self.rule = Select(description="Rule", rows=10, layout=Layout(width="auto"))
        self.institution = Dropdown(description="Institution", layout=Layout(width="auto"))
        self.said, self.about, self.done = HTML(), HTML(), HTML()
        self.picture = Picture(width=width, dark=dark)
        self.reason = Text(description="Waive", placeholder="why: a ticket, say", layout=Layout(width="auto"))
        self.until = DatePicker(description="until")
        self.waive = Button(description="Waive", tooltip="Count this rule no more until the day")
        self.kind = Dropdown(description="Save", options=["csv", "xlsx", "parquet", "json"])
        self.identities = Checkbox(description="with MX's ids of users and members", indent=False)
        self.save = Button(description="Save", tooltip="Write the rows in view beside the notebook")
        for name in ("rule", "institution", "said", "waive", "save"):
            getattr(self, name).add_class(f"mxlab-{name}")
        self._find()
        self.rule.observe(self._show, "value")
        self.institution.observe(self._show, "value")
        self.waive.on_click(self._waive)
        self.save.on_click(self._save)
        left = VBox(
            [
                self.rule,
                self.institution,
                self.about,
                HBox([self.reason, self.until, self.waive], layout=Layout(flex_flow="row wrap")),
                HBox([self.kind, self.save], layout=Layout(flex_flow="row wrap")),
                self.identities,
                self.done,
            ],
            layout=Layout(flex="1 1 320px", min_width="0"),
        )
        right = VBox([self.picture], layout=Layout(flex="2 1 480px", min_width="0"))
        top = HBox([left, right], layout=Layout(flex_flow="row wrap"))
        super().__init__([HTML(LOOK), self.said, top, self.table])
        self.add_class("mxlab-audit")

    def _find(self) -> None:
        """Hold the records against the rules, and offer the rules and institutions that have findings."""
        found = findings(self._snap.members, previous=self._previous, waivers=self.waivers)
        self.found = found.sort_values("severity", kind="stable", ignore_index=True)
        self._open = ~self.found["is_waived"].to_numpy(dtype=bool)
        rows = self.found.loc[self._open]
        counts = rows.groupby(["severity", "rule"], observed=True).size().rename("count").reset_index()
        counts = counts.sort_values(["severity", "count"], ascending=[True, False])
        listed = zip(counts["severity"], counts["rule"], counts["count"], strict=True)
        options = [(f"{severity}  {rule}  {count:,}", rule) for severity, rule, count in listed]
        banks = rows["institution"].value_counts()
        banks = banks[banks > 0]
        named = [(f"{displayed(name)}  {count:,}", name) for name, count in banks.items()]
        self._is_offering = True
        self.rule.options = [(f"every rule  {len(rows):,}", _ALL), *options]
        missing = int(rows["institution"].isna().sum())
        unnamed = [(f"not known  {missing:,}", _UNNAMED)] if missing else []
        self.institution.options = [("all", _EVERYWHERE), *named, *unnamed]
        self.rule.value, self.institution.value = _ALL, _EVERYWHERE
        self._is_offering = False
        self._show()

    @cached_property
    def table(self) -> PagedTable:
        """The findings in view, a page at a time; waiving marks rows and takes none away, so one table is enough."""
        return PagedTable(self.found, "Records that fail", columns=_COLUMNS)

    @property
    def rows(self) -> pd.DataFrame:
        """The findings in view: of the rule and institution that are chosen, complete, without what is waived."""
        return self.found.loc[self._mask]

    @property
    def _mask(self) -> Mask:
        mask: Mask = self._open.copy()
        rule, bank, banks = self.rule.value, self.institution.value, self.found["institution"]
        if rule != _ALL:
            mask &= self.found["rule"].eq(rule).to_numpy(dtype=bool, na_value=False)
        if bank == _UNNAMED:
            mask &= banks.isna().to_numpy()
        elif bank != _EVERYWHERE:
            mask &= banks.eq(bank).to_numpy(dtype=bool, na_value=False)
        return mask

    @property
    def _bank(self) -> str:
        """The institution that is chosen, in words; empty for all of them."""
        chosen = self.institution.value
        if chosen == _EVERYWHERE:
            return ""
        return "not known" if chosen == _UNNAMED else displayed(chosen) or "“”"

    @property
    def _words(self) -> str:
        """What is chosen, in words."""
        what = f"findings of {self.rule.value}" if self.rule.value else "findings"
        return f"{what} at {self._bank}" if self._bank else what

    def _show(self, _: object = None) -> None:
        if self._is_offering:  # what is chosen is between two worlds
            return
        mask = self._mask
        self.table.restrict(mask)
        self.picture.draw("findings_by_institution", self._snap.narrowed(self.found.loc[mask], self._words))
        waived = int(np.count_nonzero(~self._open))
        parts = [f"{mask.sum():,} of {self._open.sum():,} findings in {self.found.attrs['n']:,} records"]
        parts += [f"{waived:,} waived"] if waived else []
        self.said.value = status_line(" · ".join([*parts, str(self._snap.coverage)]))
        about = self.found.loc[mask & (self.rule.value != _ALL), ["reason", "source"]].head(1)
        text = "".join(f"{each.reason}. Source: {each.source}" for each in about.itertuples())
        self.about.value = status_line(text)

    def _waive(self, _: object = None) -> None:
        problem = self._cannot_waive()
        if not problem:
            until = pd.Timestamp(self.until.value, tz="UTC") + pd.Timedelta(days=1)
            bank = None if self.institution.value == _EVERYWHERE else self.institution.value
            waiver = Waiver(self.rule.value, until, self.reason.value.strip(), bank)
            self.waivers = (*self.waivers, waiver)
            self.reason.value, self.until.value = "", None
            self._find()
            where = f" at {bank}" if bank else ""
            problem = (
                f"{waiver.rule}{where} is waived until {until - pd.Timedelta(days=1):%Y-%m-%d}: {waiver.why}"
            )
        self.done.value = status_line(problem)

    def _cannot_waive(self) -> str:
        if not self.rule.value:
            return "Choose the rule that is to be waived."
        if self.institution.value in {_UNNAMED, ""}:
            return "Choose an institution that has a name, or all of them."
        if not self.reason.value.strip():
            return "Say why it is waived."
        if self.until.value is None:
            return "Choose the day on which the waiver ends."
        last = self._snap.members["seen_at"].max()
        if pd.Timestamp(self.until.value, tz="UTC") <= last:
            return f"The waiver must end after these records were seen ({last:%Y-%m-%d})."
        return ""

    def _save(self, _: object = None) -> None:
        run = re.sub(r"[^\w.-]+", "-", str(self._snap.manifest.get("run")))
        bank = re.sub(r"[^\w.-]+", "-", displayed(self._bank))[:_NAME_LETTERS].strip("-")
        parts = ["mxlab", run, self.rule.value or "findings", bank]
        path = Path(f"{'-'.join(filter(None, parts))}.{self.kind.value}")
        try:
            export(self.rows, path, identities=self.identities.value)
        except MxlabError as error:
            self.done.value = status_line(str(error))
        else:
            self.done.value = status_line(f"Saved {path.name} beside the notebook.")

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, Any]:
        """The widget, and beside it the picture for where there are no widgets."""
        bundle: dict[str, Any] = super()._repr_mimebundle_(**kwargs) or {}
        return {**bundle, **self.picture.bundle}
