"""What every summary asks of the frame it takes, and how it names what it gives."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mxlab.errors import SchemaError
from mxlab.nexus.status import WHO_MUST_ACT

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

#: The dtype of every string column of a summary.
STRING: Final = "string[pyarrow]"
#: The group of rows whose value is missing.
NOT_KNOWN = "not known"

_SOURCES = {
    "members": "Snapshot.members, which aggregate, observe and read_members return",
    "requests": "Snapshot.requests, which aggregate and observe return",
    "changes": "Snapshot.changes, which aggregate returns",
    "summary": "the summary of the same name in mxlab.analysis",
}


class Coverage(Protocol):
    """How much of what was asked for is in the frame, in users."""

    @property
    def asked(self) -> int: ...
    @property
    def answered(self) -> int: ...
    @property
    def lost(self) -> int: ...
    @property
    def unknown(self) -> int: ...
    @property
    def pending(self) -> int: ...
    @property
    def reasons(self) -> Mapping[str, int]: ...
    @property
    def order(self) -> str: ...
    @property
    def by_run(self) -> Mapping[str, "Coverage"]: ...


def need(frame: pd.DataFrame, columns: Iterable[str], function: str, source: str = "members") -> None:
    """Raise `SchemaError` unless the frame has the columns; the message says where they come from."""
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        words = ", ".join(repr(column) for column in missing)
        raise SchemaError(f"{function} needs the column {words}; it is in {_SOURCES[source]}.")


def answered(members: pd.DataFrame, function: str, *columns: str) -> pd.DataFrame:
    """The rows of users who answered: the population of every rate. Checks the columns on the way."""
    need(members, ("user_state", *columns), function)
    there = (members["user_state"] == "answered").to_numpy(dtype=bool, na_value=False)
    return members if there.all() else members.loc[there]


def numbers(column: pd.Series) -> Ints:
    """A column as whole numbers, equal where its values are; −1 where the value is missing."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.codes.to_numpy().astype(np.int64)
    return pd.factorize(column)[0].astype(np.int64)


def codes(column: pd.Series) -> tuple[Ints, list[str]]:
    """A column as whole numbers into a list of words; −1 where the value is missing."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.codes.to_numpy().astype(np.int64), [str(word) for word in column.cat.categories]
    found, words = pd.factorize(column)
    names = {True: "yes", False: "no"} if pd.api.types.is_bool_dtype(column.dtype) else {}
    return found.astype(np.int64), [names.get(word, str(word)) for word in words]


def groups(frame: pd.DataFrame, by: str | None, function: str) -> tuple[Ints, Ints, list[str]]:
    """Rows by group, largest first and the unknown last.

    Parameters
    ----------
    frame
        Any frame.
    by
        A column; None for one group of all. In a column of lists a row belongs to the group of each element.
    function
        Who asks, for the error.

    Returns
    -------
    tuple
        Positions of rows, the group of each of them, and the groups' names.
    """
    if by is None:
        return np.arange(len(frame)), np.zeros(len(frame), np.int64), ["all"]
    need(frame, (by,), function)
    column = frame[by]
    rows = np.arange(len(frame))
    if isinstance(column.dtype, pd.ArrowDtype) and pa.types.is_list(column.dtype.pyarrow_dtype):
        lists = whole(column)
        rows = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
        found, words = codes(pd.Series(pc.list_flatten(lists).to_pandas(), dtype=STRING))
        alone = np.flatnonzero(np.bincount(rows, minlength=len(frame)) == 0)
        rows, found = np.concatenate([rows, alone]), np.concatenate([found, np.full(len(alone), -1)])
    else:
        found, words = codes(column)
    sizes = np.bincount(found[found >= 0], minlength=len(words))
    order = [int(code) for code in np.argsort(-sizes, kind="stable") if sizes[code]]
    place = np.full(len(words) + 1, len(order))
    place[order] = np.arange(len(order))
    names = [words[code] for code in order] + [NOT_KNOWN] * bool((found < 0).any())
    return rows, place[found], names


def table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> pd.DataFrame:
    """Rows as a frame of these columns and dtypes, also where there are none."""
    frame = pd.DataFrame({name: [row[name] for row in rows] for name in columns})
    return frame.astype(dict(columns))


def whole(column: pd.Series) -> pa.Array:
    """A column as one Arrow array: one that was put together from parts comes in as many chunks."""
    found = pa.array(column)
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def strings(words: Iterable[str | None]) -> pd.Series:
    """A column of Arrow strings."""
    return pd.Series(list(words), dtype=STRING)


def who_column(words: Iterable[str | None]) -> pd.Categorical:
    """A column of who must act, in the order of charts."""
    return pd.Categorical(list(words), categories=list(WHO_MUST_ACT), ordered=True)


def described(coverage: Coverage | None) -> dict[str, Any] | None:
    """Coverage as plain values for ``summary.attrs``."""
    if coverage is None:
        return None
    counts = {
        name: int(getattr(coverage, name)) for name in ("asked", "answered", "lost", "unknown", "pending")
    }
    return {
        **counts,
        "reasons": {str(k): int(v) for k, v in coverage.reasons.items()},
        "order": str(coverage.order),
    }
