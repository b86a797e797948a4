"""A table that pages, sorts and searches on the kernel's side: only the rows in sight are sent."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from ipywidgets import HTML, BoundedIntText, Button, Checkbox, Dropdown, HBox, Layout, Text, VBox

from mxlab.exports import html_table

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

#: Columns whose categories have an order of their own; the others go by the alphabet.
_BY_MEANING = {"connection_status", "from_status", "to_status", "who_must_act", "outcome", "severity"}

STYLE = """<style>
.mxlab-table { overflow-x: auto; }
.mxlab-table table { border-collapse: collapse; font-size: 12px; line-height: 1.45; }
.mxlab-table caption { text-align: left; padding: 2px 0 6px; color: var(--jp-ui-font-color2, #6a737d); }
.mxlab-table th, .mxlab-table td { padding: 2px 14px 2px 0; border-bottom: 1px solid var(--jp-border-color2, #e6e8eb);
  text-align: left; white-space: nowrap; max-width: 26em; overflow: hidden; text-overflow: ellipsis; }
.mxlab-table .number { text-align: right; font-variant-numeric: tabular-nums; }
.mxlab-table tbody th { font-weight: 500; }
</style>"""


class PagedTable(VBox):
    """A frame, a page at a time.

    Parameters
    ----------
    frame
        Of any length.
    title
        What its rows are, for the caption.
    columns
        Which of its columns to show and to search; all where None.
    page_rows
        How many rows make a page.
    """

    def __init__(
        self,
        frame: pd.DataFrame,
        title: str = "rows",
        *,
        columns: Sequence[str] | None = None,
        page_rows: int = 25,
    ) -> None:
        self._frame = frame[[name for name in columns or frame.columns if name in frame.columns]]
        self._title, self._page_rows = title, page_rows
        self._shown: Mask | None = None
        self._orders: dict[str, tuple[Rows, Rows]] = {}
        self.find = Text(placeholder="any text", description="Find", continuous_update=False)
        self.sort_by = Dropdown(
            options=[("as they came", ""), *((name, name) for name in self._frame.columns)],
            description="Sort by",
        )
        self.descending = Checkbox(description="largest first", indent=False, layout=Layout(width="auto"))
        self.page = BoundedIntText(1, min=1, max=1, description="Page", layout=Layout(width="160px"))
        self.previous, self.next = Button(description="Previous"), Button(description="Next")
        self.body = HTML()
        for control, name in ((self.find, "find"), (self.sort_by, "sort"), (self.page, "page")):
            control.add_class(f"mxlab-table-{name}")
        for control in (self.find, self.sort_by, self.descending):
            control.observe(self._select, "value")
        self.page.observe(self._paint, "value")
        self.previous.on_click(lambda _: self._turn(-1))
        self.next.on_click(lambda _: self._turn(1))
        self._select()
        super().__init__(
            [
                HBox([self.find, self.sort_by, self.descending], layout=Layout(flex_flow="row wrap")),
                self.body,
                HBox([self.previous, self.page, self.next]),
            ]
        )

    def restrict(self, shown: Mask | None) -> None:
        """Show only some rows.

        Parameters
        ----------
        shown
            For each row of the frame whether it is one of them; None for all.
        """
        self._shown = shown
        self._select()

    @property
    def rows(self) -> pd.DataFrame:
        """All rows that were found, in their order, of all pages."""
        return self._frame.iloc[self._positions]

    def _select(self, _: object = None) -> None:
        """Find and order the rows, then show the first page."""
        found = self._shown
        if text := self.find.value.strip():
            hits = self._hits(text)
            found = hits if found is None else found & hits
        order = self._order()
        self._positions = order if found is None else order[found[order]]
        self.page.max = max(1, -(-len(self._positions) // self._page_rows))
        if self.page.value == 1:
            self._paint()
        else:
            self.page.value = 1

    def _order(self) -> Rows:
        name = self.sort_by.value
        if not name:
            return np.arange(len(self._frame))
        if name not in self._orders:
            self._orders[name] = _order(self._frame[name])
        known, missing = self._orders[name]
        return np.concatenate([known[::-1] if self.descending.value else known, missing])

    def _hits(self, text: str) -> Mask:
        hits = np.zeros(len(self._frame), dtype=np.bool_)
        for name in self._frame.columns:
            column = self._frame[name]
            if isinstance(column.dtype, pd.CategoricalDtype):
                words = column.cat.categories.astype("str")
                matching = np.append(words.str.contains(text, case=False, regex=False).astype(bool), False)
                hits |= matching[column.cat.codes.to_numpy()]
            elif isinstance(column.dtype, pd.StringDtype):
                hits |= column.str.contains(text, case=False, regex=False).to_numpy(
                    dtype=bool, na_value=False
                )
        return hits

    def _turn(self, pages: int) -> None:
        self.page.value = min(max(self.page.value + pages, 1), self.page.max)

    def _paint(self, _: object = None) -> None:
        start = (self.page.value - 1) * self._page_rows
        rows = self._frame.iloc[self._positions[start : start + self._page_rows]]
        count = len(self._positions)
        span = f"{start + 1:,} to {start + len(rows):,} of {count:,}" if count else "none"
        self.previous.disabled, self.next.disabled = start == 0, self.page.value == self.page.max
        table = html_table(rows, f"{self._title}: {span}")
        self.body.value = f'{STYLE}<div class="mxlab-table" tabindex="0">{table}</div>'


def _order(column: pd.Series) -> tuple[Rows, Rows]:
    """Positions from the least to the greatest, and of what is missing."""
    values: Any = column
    if isinstance(column.dtype, pd.CategoricalDtype):
        words, rank = column.cat.categories, np.arange(len(column.cat.categories))
        if column.name not in _BY_MEANING:
            rank[np.argsort(words.astype("str").str.casefold(), kind="stable")] = np.arange(len(words))
        codes = column.cat.codes.to_numpy()
        values = pa.array(np.append(rank, -1)[codes], mask=codes < 0)
    order = pc.sort_indices(pa.array(values)).to_numpy().astype(np.int64)
    known = len(order) - int(column.isna().sum())
    return order[:known], order[known:]
