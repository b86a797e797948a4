"""Frames → csv, xlsx, parquet, json and HTML, for people and programs outside of a notebook.

People are pseudonymous in what is written unless the caller says otherwise, and no text of a bank or a user is
read as a formula, as markup or as a change of writing direction.
"""

import base64
import math
import os
import re
import secrets
import unicodedata
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from html import escape
from numbers import Integral, Real
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any
from xml.sax.saxutils import escape as xml_escape

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from mxlab.errors import ConfigError
from mxlab.tokens import pseudonym

#: Columns that name a person, or one person's member or job.
PEOPLE = ("user", "user_guid", "guid", "external_guid", "most_recent_job_guid")
#: Columns of free text that may name a person.
FREE_TEXT = ("name", "metadata", "extra", "body")

#: Keys the pseudonyms of this process, so that its exports can be joined with one another.
_KEY = secrets.token_bytes(32)
_FORMULA = re.compile(r"^[ \u00a0\u3000]*[=+\-@\t\r\n＝＋－＠]")
_TURNS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_SPACE = re.compile(r"[^\S\u00a0]+")
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_XLSX_ESCAPE = re.compile(r"_(?=x[0-9A-Fa-f]{4}_)")
_XLSX_ROWS, _XLSX_CELL = 1_048_576, 32_767


def export(
    frame: pd.DataFrame,
    path: str | os.PathLike[str],
    *,
    key: bytes | None = None,
    identities: bool = False,
    raw: bool = False,
) -> Path:
    """Write a frame to a file.

    Parameters
    ----------
    frame
        Any frame of a Snapshot, or a summary.
    path
        Its ending decides: ``.csv``, ``.xlsx``, ``.parquet``, ``.json``. Replaced whole or not at all.
    key
        For the pseudonyms, at least 16 bytes; the same key gives the same pseudonyms another day. Without it
        they hold within this process.
    identities
        Keep the ids of users, members and jobs, and free text, as they are.
    raw
        Csv for a program: text that a spreadsheet would read as a formula is not marked with ``'``.

    Returns
    -------
    Path
        Where it was written.

    Raises
    ------
    ConfigError
        The ending is none of these, the frame is too long for a spreadsheet, or the file cannot be written.
    """
    path = Path(path).expanduser()
    writers: dict[str, Callable[[pd.DataFrame, IO[bytes]], None]] = {
        ".csv": lambda each, file: _csv(each, file, raw=raw),
        ".xlsx": _xlsx,
        ".parquet": _parquet,
        ".json": _json,
    }
    if path.suffix.lower() not in writers:
        raise ConfigError(f"export: {path.name!r} ends in none of {', '.join(writers)}")
    shown = frame if identities else pseudonymous(frame, key)
    with replacing(path) as file:
        writers[path.suffix.lower()](shown, file)
    return path


def pseudonymous(frame: pd.DataFrame, key: bytes | None = None) -> pd.DataFrame:
    """The frame with keyed hashes for the ids of people, members and jobs, and without free text.

    Parameters
    ----------
    frame
        Any frame; columns of the token source (``user_<name>``) are kept, they are your own.
    key
        At least 16 bytes; that of this process where None.
    """
    if key is not None and len(key) < 16:
        raise ConfigError("key: give at least 16 bytes, as from secrets.token_bytes(32)")
    shown = frame.drop(columns=[name for name in FREE_TEXT if name in frame.columns])
    ids = [name for name in PEOPLE if name in shown.columns]
    return shown.assign(**{name: _distinct(shown[name], partial(pseudonym, key or _KEY)) for name in ids})


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when the block ends well, and leaves nothing when it does not.

    Raises
    ------
    ConfigError
        It cannot be written there; the message says what to do.
    """
    temporary: Path | None = None
    try:
        with NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:60]}.", delete=False) as file:
            temporary = Path(file.name)
            yield file
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        _remove(temporary)
        raise ConfigError(
            f"cannot write {path}: {error.strerror or error}; give a path in a folder that exists and is yours"
        ) from None
    except BaseException:
        _remove(temporary)
        raise


def _remove(path: Path | None) -> None:
    if path is not None:
        path.unlink(missing_ok=True)


def _csv(frame: pd.DataFrame, file: IO[bytes], *, raw: bool) -> None:
    flat = _flat(frame)
    if not raw:
        flat = flat.rename(columns=_marked)
        texts = [name for name in flat.columns if _is_text(flat[name])]
        flat = flat.assign(**{name: _distinct(flat[name], _marked) for name in texts})
    file.write(
        flat.to_csv(index=False, date_format="%Y-%m-%dT%H:%M:%S.%fZ", lineterminator="\r\n").encode(
            "utf-8", "replace"
        )
    )


def _parquet(frame: pd.DataFrame, file: IO[bytes]) -> None:
    """Without pandas' own notes, which pandas cannot read back for lists."""
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None), file)


def _marked(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


def _json(frame: pd.DataFrame, file: IO[bytes]) -> None:
    lists = {name: frame[name].map(_listed) for name in frame.columns if _holds_lists(frame[name])}
    text = _flat(frame.drop(columns=list(lists))).assign(**lists)[list(frame.columns)]
    file.write(text.to_json(orient="records", date_format="iso", date_unit="us", lines=False).encode())


def _flat(frame: pd.DataFrame) -> pd.DataFrame:
    """Lists as words in a row, bytes as base64."""
    changed = {}
    for name in frame.columns:
        if _holds_lists(frame[name]):
            changed[name] = frame[name].map(lambda value: " ".join(_listed(value) or ())).astype("str")
        elif _holds_bytes(frame[name]):
            changed[name] = frame[name].map(
                lambda value: base64.b64encode(value).decode(), na_action="ignore"
            )
    return frame.assign(**changed)


def _listed(value: Any) -> list[str] | None:
    return [str(each) for each in value] if isinstance(value, Iterable) else None


def _holds_lists(column: pd.Series) -> bool:
    return str(column.dtype).startswith("list<")


def _holds_bytes(column: pd.Series) -> bool:
    return str(column.dtype).startswith("binary")


def _is_text(column: pd.Series) -> bool:
    categories = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
    return pd.api.types.is_string_dtype(categories.dtype)


def _distinct(column: pd.Series, function: Callable[[str], str]) -> pd.Series:
    """A function of each text, called once for each distinct one."""
    codes, words = pd.factorize(column)
    made = pd.array([function(str(word)) for word in words] + [None], dtype="string[pyarrow]")
    return pd.Series(made.take(codes), index=column.index)


def _xlsx(frame: pd.DataFrame, file: IO[bytes]) -> None:
    """One sheet of inline strings, which Excel never reads as formulas or links, numbers and times."""
    if len(frame) >= _XLSX_ROWS:
        raise ConfigError(
            f"export: a sheet holds {_XLSX_ROWS - 1:,} rows, not {len(frame):,}; write .parquet or .csv"
        )
    flat = _flat(frame)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=3) as book:
        for name, text in _XLSX_PARTS.items():
            book.writestr(name, _XLSX_HEAD + text)
        with book.open("xl/worksheets/sheet1.xml", "w") as sheet:
            for part in _sheet(flat):
                sheet.write(part.encode())


def _sheet(flat: pd.DataFrame) -> Iterator[str]:
    yield f'{_XLSX_HEAD}<worksheet xmlns="{_SHEET}"><sheetViews><sheetView workbookViewId="0">'
    yield '<pane ySplit="1" topLeftCell="A2" activePane="bottomLeft" state="frozen"/></sheetView></sheetViews>'
    yield '<cols><col min="1" max="16384" width="18"/></cols><sheetData>'
    yield f"<row>{''.join(_cell(str(name), style=2) for name in flat.columns)}</row>"
    for row in flat.itertuples(index=False, name=None):
        yield f"<row>{''.join(map(_cell, row))}</row>"
    yield "</sheetData></worksheet>"


def _cell(value: Any, style: int = 0) -> str:
    if pd.isna(value):
        return "<c/>"
    if isinstance(value, pd.Timestamp):
        days = (value.tz_localize(None) - pd.Timestamp("1899-12-30")) / pd.Timedelta(days=1)
        return f'<c s="1"><v>{days!r}</v></c>'
    if isinstance(value, bool | np.bool_):
        return f'<c t="b"><v>{int(value)}</v></c>'
    if isinstance(value, Real):
        return f"<c><v>{value}</v></c>" if math.isfinite(value) else "<c/>"
    text = _XLSX_ESCAPE.sub("_x005F_", _NOT_IN_XML.sub("\ufffd", str(value)))[:_XLSX_CELL]
    return f'<c t="inlineStr" s="{style}"><is><t xml:space="preserve">{xml_escape(text)}</t></is></c>'


_XLSX_HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n'
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_KIND = "application/vnd.openxmlformats-officedocument.spreadsheetml"
_XLSX_PARTS = {
    "[Content_Types].xml": f"""<Types xmlns="{_PACKAGE}/content-types">
<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>
<Override PartName="/xl/workbook.xml" ContentType="{_KIND}.sheet.main+xml"/>
<Override PartName="/xl/worksheets/sheet1.xml" ContentType="{_KIND}.worksheet+xml"/>
<Override PartName="/xl/styles.xml" ContentType="{_KIND}.styles+xml"/></Types>""",
    "_rels/.rels": f"""<Relationships xmlns="{_PACKAGE}/relationships">
<Relationship Id="rId1" Type="{_OFFICE}/officeDocument" Target="xl/workbook.xml"/></Relationships>""",
    "xl/workbook.xml": f"""<workbook xmlns="{_SHEET}" xmlns:r="{_OFFICE}">
<sheets><sheet name="mxlab" sheetId="1" r:id="rId1"/></sheets></workbook>""",
    "xl/_rels/workbook.xml.rels": f"""<Relationships xmlns="{_PACKAGE}/relationships">
<Relationship Id="rId1" Type="{_OFFICE}/worksheet" Target="worksheets/sheet1.xml"/>
<Relationship Id="rId2" Type="{_OFFICE}/styles" Target="styles.xml"/></Relationships>""",
    "xl/styles.xml": f"""<styleSheet xmlns="{_SHEET}">
<numFmts count="1"><numFmt numFmtId="164" formatCode="yyyy\\-mm\\-dd\\ hh:mm:ss"/></numFmts>
<fonts count="2"><font><sz val="11"/><name val="Calibri"/></font>
<font><b/><sz val="11"/><name val="Calibri"/></font></fonts>
<fills count="2"><fill><patternFill patternType="none"/></fill><fill><patternFill patternType="gray125"/></fill></fills>
<borders count="1"><border/></borders>
<cellStyleXfs count="1"><xf/></cellStyleXfs>
<cellXfs count="3"><xf/><xf numFmtId="164" applyNumberFormat="1"/><xf fontId="1" applyFont="1"/></cellXfs>
<cellStyles count="1"><cellStyle name="Normal" xfId="0"/></cellStyles>
</styleSheet>""",
}


def displayed(value: Any) -> str:
    """Any value as one line of text for people, without control characters and changes of direction.

    Examples
    --------
    >>> displayed(1234), displayed(0.5), displayed(True), displayed(None)
    ('1,234', '0.5', 'yes', '')
    """
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if not isinstance(value, str) and isinstance(value, Iterable):
        return ", ".join(map(displayed, value))
    if pd.isna(value):
        return ""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, pd.Timestamp):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, Integral) else _plain(str(value))


def _plain(text: str) -> str:
    line = _SPACE.sub(" ", _TURNS.sub("", text)).strip()
    return "".join("\ufffd" if unicodedata.category(letter) in {"Cc", "Cs"} else letter for letter in line)


def html_table(
    frame: pd.DataFrame,
    caption: str,
    *,
    formats: Mapping[str, Callable[[Any], str]] | None = None,
    headings: Mapping[str, str] | None = None,
) -> str:
    """A frame as an HTML table with caption and scopes, every text of it escaped.

    Parameters
    ----------
    frame
        Short enough to be read; its first column heads the rows.
    caption
        What the table shows.
    formats
        By column: how a value is written, where not as `displayed` does.
    headings
        By column: what it is called, where not by its name.
    """
    formats, headings = formats or {}, headings or {}
    number = {
        name: pd.api.types.is_numeric_dtype(frame[name].dtype) and not _is_flag(frame[name]) for name in frame
    }
    kind = {name: ' class="number"' if number[name] else ' dir="auto"' for name in frame}
    head = "".join(
        f'<th scope="col"{kind[name]}>{escape(headings.get(str(name), str(name)))}</th>' for name in frame
    )
    shown = [[formats.get(str(name), displayed)(value) for value in frame[name]] for name in frame]
    rows = []
    for row in zip(*shown, strict=True):
        cells = [f"<td{kind[name]}>{escape(text)}</td>" for name, text in zip(frame, row, strict=True)]
        first = f'<th scope="row" dir="auto">{escape(row[0])}</th>' if row else ""
        rows.append(f"<tr>{first}{''.join(cells[1:])}</tr>")
    body = f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f"<table><caption>{escape(_plain(caption))}</caption>{body}</table>"


def _is_flag(column: pd.Series) -> bool:
    return pd.api.types.is_bool_dtype(column.dtype)
