"""Institution, status, who must act, OAuth, use case, last success, time range → a narrowed Snapshot."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import traitlets
from ipywidgets import Button, Dropdown, Layout, NaiveDatetimePicker, SelectMultiple, Text, VBox

from mxlab.exports import displayed
from mxlab.plots.style import WHO_WORDS

Mask = npt.NDArray[np.bool_]

_DAY = 86_400
_LISTED, _LONGEST = 100, 60
#: Not None, for which a drop-down shows nothing.
_ANY = ""
_AGES: dict[str, tuple[int | None, int | None]] = {
    "within a day": (None, _DAY),
    "1 to 7 days ago": (_DAY, 7 * _DAY),
    "more than 7 days ago": (7 * _DAY, None),
}
#: Times of a member that a range can be of, in words.
_MOMENTS = {
    "aggregated_at": "last aggregated",
    "successfully_aggregated_at": "last successful",
    "seen_at": "looked at",
}


@dataclass(frozen=True)
class Condition:
    """What rows of members have in common.

    Attributes
    ----------
    words
        For a caption.
    code
        The same as an expression of the frame ``m``.
    mask
        The same as a function of the frame.
    """

    words: str
    code: str
    mask: Callable[[pd.DataFrame], Mask] = field(compare=False, repr=False)


def one_of(label: str, column: str, values: Sequence[str | None]) -> Condition:
    """A column has one of these values; None is a missing one."""
    words = " or ".join("none" if value is None else displayed(value) for value in values)
    listed = list(values)
    return Condition(
        f"{label} {words}",
        f"m[{column!r}].isin({listed!r})",
        lambda m: m[column].isin(listed).to_numpy(dtype=bool, na_value=False),
    )


def is_oauth(flag: bool) -> Condition:  # noqa: FBT001
    """Connected by OAuth, or not."""
    return Condition(
        "by OAuth" if flag else "by credentials",
        f"m['is_oauth'].eq({flag}).fillna(False)",
        lambda m: m["is_oauth"].eq(flag).to_numpy(dtype=bool, na_value=False),
    )


def has_use_case(word: str) -> Condition:
    """One of the member's use cases is this."""
    return Condition(
        f"use case {displayed(word)}",
        f"m.index.isin(m['use_cases'].explode().loc[lambda use: use.eq({word!r})].index)",
        lambda m: _has(m["use_cases"], word),
    )


def _has(lists: pd.Series, word: str) -> Mask:
    array = pa.array(lists)
    found = pc.list_parent_indices(array).to_numpy()[pc.equal(pc.list_flatten(array), word).to_numpy(False)]
    mask = np.zeros(len(lists), dtype=np.bool_)
    mask[found] = True
    return mask


def last_success(words: str) -> Condition:
    """How long ago the last successful aggregation ended, when it was looked at."""
    if words == "never":
        return Condition(
            "never successful", "m['age_seconds'].isna()", lambda m: m["age_seconds"].isna().to_numpy()
        )
    low, high = _AGES[words]
    bounds = [f"m['age_seconds'].{test}({at})" for test, at in (("ge", low), ("lt", high)) if at is not None]
    return Condition(
        f"last success {words}",
        " & ".join(bounds),
        lambda m: m["age_seconds"].between(low or -np.inf, high or np.inf, inclusive="left").to_numpy(),
    )


def between(column: str, since: datetime | None, until: datetime | None) -> Condition:
    """A time is not before one and before another, both in UTC; None leaves that side open."""
    sides = [("ge", "from", since), ("lt", "until", until)]
    bounds = [(test, word, f"{at:%Y-%m-%d %H:%M}") for test, word, at in sides if at is not None]
    return Condition(
        " ".join([_MOMENTS[column], *(f"{word} {at}" for _, word, at in bounds), "UTC"]),
        " & ".join(f"m[{column!r}].{test}('{at}Z')" for test, _, at in bounds),
        lambda m: np.logical_and.reduce(
            [getattr(m[column], test)(pd.Timestamp(f"{at}Z")).to_numpy(dtype=bool) for test, _, at in bounds]
        ),
    )


class Filters(VBox):
    """Controls that narrow members.

    Parameters
    ----------
    members
        The frame to choose from.

    Attributes
    ----------
    conditions
        A trait: one `Condition` for each control in use; all of them hold.
    """

    conditions = traitlets.Tuple()

    def __init__(self, members: pd.DataFrame) -> None:
        self._quiet = False
        self._banks = _counted(members["institution"], by_size=True)
        uses = pc.list_flatten(pa.array(members["use_cases"])).unique().drop_null().to_pylist()
        self.search = Text(placeholder="part of a bank's name", description="Search")
        self.institution = SelectMultiple(description="Bank", rows=8)
        self.status = SelectMultiple(
            description="Status", rows=6, options=_counted(members["connection_status"])
        )
        self.who = SelectMultiple(
            description="Must act", rows=5, options=_counted(members["who_must_act"], WHO_WORDS)
        )
        self.oauth = Dropdown(
            description="Log-in", options=[("any", _ANY), ("OAuth", True), ("credentials", False)]
        )
        self.use_case = Dropdown(
            description="Use case", options=[("any", _ANY), *((displayed(use), use) for use in sorted(uses))]
        )
        self.success = Dropdown(
            description="Success", options=[("any time", _ANY), *((each, each) for each in (*_AGES, "never"))]
        )
        self.moment = Dropdown(
            description="Time UTC", options=[(words, column) for column, words in _MOMENTS.items()]
        )
        self.since = NaiveDatetimePicker(description="From")
        self.until = NaiveDatetimePicker(description="Until")
        self.reset = Button(description="Show all", tooltip="Drop every condition")
        self._list_banks()
        self.search.observe(self._list_banks, "value")
        self._open = {name: control.value for name, control in self.controls.items()}
        for name, control in self.controls.items():
            control.observe(self._read, "value")
            control.add_class(f"mxlab-filter-{name}")
        self.search.add_class("mxlab-filter-search")
        self.reset.add_class("mxlab-filter-reset")
        self.reset.on_click(lambda _: self.clear())
        rows = [self.search, *self.controls.values(), self.reset]
        for each in rows:
            each.layout.width = "auto"
        for each in rows[:-1]:
            each.style.description_width = "4.8em"
        super().__init__(rows, layout=Layout(width="310px", flex="0 0 auto"))

    @property
    def controls(self) -> dict[str, Any]:
        """The controls by what they narrow."""
        return {
            "institution": self.institution,
            "status": self.status,
            "who": self.who,
            "oauth": self.oauth,
            "use_case": self.use_case,
            "success": self.success,
            "moment": self.moment,
            "since": self.since,
            "until": self.until,
        }

    def clear(self) -> None:
        """Show all."""
        with self._at_once():
            self.search.value = ""
            for name, control in self.controls.items():
                control.value = self._open[name]
            self._list_banks()

    def mask(self, members: pd.DataFrame) -> Mask | None:
        """For each row whether every condition holds; None where there is none."""
        if not self.conditions:
            return None
        masks = [condition.mask(members) for condition in self.conditions]
        return np.asarray(np.logical_and.reduce(masks), dtype=np.bool_)

    @property
    def words(self) -> str:
        """The conditions, for a caption."""
        return "; ".join(condition.words for condition in self.conditions)

    @property
    def code(self) -> str:
        """The conditions as an expression of the frame ``m``."""
        several = len(self.conditions) > 1
        return " & ".join(f"({each.code})" if several else each.code for each in self.conditions)

    def _read(self, _: object = None) -> None:
        if self._quiet:
            return
        found = [
            one_of(label, column, control.value)
            for label, column, control in (
                ("bank", "institution", self.institution),
                ("status", "connection_status", self.status),
                ("must act:", "who_must_act", self.who),
            )
            if control.value
        ]
        if self.oauth.value != _ANY:
            found.append(is_oauth(self.oauth.value))
        if self.use_case.value != _ANY:
            found.append(has_use_case(self.use_case.value))
        if self.success.value != _ANY:
            found.append(last_success(self.success.value))
        if self.since.value or self.until.value:
            found.append(between(self.moment.value, self.since.value, self.until.value))
        self.conditions = tuple(found)

    def _list_banks(self, _: object = None) -> None:
        """The banks that are chosen, then the largest of those whose name has the text."""
        text, chosen = self.search.value.strip().casefold(), self.institution.value
        found = [each for each in self._banks if each[1] in chosen]
        found += [each for each in self._banks if each[1] not in chosen and text in each[0].casefold()][
            :_LISTED
        ]
        quiet, self._quiet = self._quiet, True
        try:
            self.institution.options = found
            self.institution.value = chosen
        finally:
            self._quiet = quiet

    @contextmanager
    def _at_once(self) -> Iterator[None]:
        """Several changes as one."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False
        self._read()


def _counted(
    column: pd.Series, words: Mapping[str, str] | None = None, *, by_size: bool = False
) -> list[tuple[str, str | None]]:
    """The values that occur, each with how often, in their own order or the most frequent first."""
    codes, names = column.cat.codes.to_numpy(), [*column.cat.categories, None]
    counts = np.bincount(codes.astype(np.int64) % len(names), minlength=len(names))
    places = np.argsort(-counts, kind="stable") if by_size else range(len(names))
    return [
        (f"{_label(names[place], words or {})} ({counts[place]:,})", names[place])
        for place in places
        if counts[place]
    ]


def _label(name: str | None, words: Mapping[str, str]) -> str:
    text = "none" if name is None else displayed(words.get(name, name))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
