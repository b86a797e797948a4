import csv
import json
import zipfile
from html.parser import HTMLParser
from xml.etree import ElementTree as ET

import pandas as pd
import pyarrow.parquet as pq
import pytest
from widgets_sample import HOSTILE, snapshot

from mxlab.errors import ConfigError
from mxlab.exports import displayed, export, html_table, pseudonymous

MAIN = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


@pytest.fixture(scope="module")
def members():
    return snapshot(60, banks=HOSTILE).members


def cells(path):
    """The texts of each row of a sheet."""
    with zipfile.ZipFile(path) as book:
        sheet = ET.fromstring(book.read("xl/worksheets/sheet1.xml"))
    return [["".join(cell.itertext()) for cell in row.iter(f"{MAIN}c")] for row in sheet.iter(f"{MAIN}row")]


@pytest.mark.parametrize("kind", ["csv", "xlsx", "parquet", "json"])
def test_every_kind_has_all_rows_and_no_name_of_a_person(members, tmp_path, kind):
    path = export(members, tmp_path / f"members.{kind}")
    rows = {
        "csv": lambda: len(pd.read_csv(path)),
        "xlsx": lambda: len(cells(path)) - 1,
        "parquet": lambda: pq.read_metadata(path).num_rows,
        "json": lambda: len(json.loads(path.read_bytes())),
    }[kind]()
    assert rows == len(members)
    if kind == "xlsx":
        with zipfile.ZipFile(path) as book:
            content = book.read("xl/worksheets/sheet1.xml")
    elif kind == "parquet":
        content = pd.read_parquet(path).to_csv().encode()
    else:
        content = path.read_bytes()
    assert b"user-1" not in content
    assert b"USR-" not in content
    assert b"MBR-" not in content
    assert b"INS-" in content


def test_pseudonyms_follow_the_key_and_join_across_frames(members):
    key = b"0123456789abcdef"
    once, again, other = (pseudonymous(members, each)["user"] for each in (key, key, key[::-1]))
    assert once.equals(again)
    assert not set(once) & set(other)
    assert once.nunique() == members["user"].nunique()
    assert pseudonymous(members[["user"]])["user"].equals(pseudonymous(members)["user"])


def test_missing_ids_stay_missing(members):
    assert (
        pseudonymous(members.assign(user=pd.NA).astype({"user": members["user"].dtype}))["user"].isna().all()
    )


def test_a_short_key_is_refused(members):
    with pytest.raises(ConfigError, match="16 bytes"):
        pseudonymous(members, b"short")


def test_no_cell_of_a_csv_is_a_formula(tmp_path):
    texts = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", " =1", "＝1", "＋1", "－1", "＠x", "plain", "1"]
    path = export(pd.DataFrame({"text": texts, "number": -1.5}), tmp_path / "x.csv")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows[:-2]] == [f"'{text}" for text in texts[:-2]]
    assert [row["text"] for row in rows[-2:]] == texts[-2:]
    assert {row["number"] for row in rows} == {"-1.5"}
    raw = export(pd.DataFrame({"text": texts}), tmp_path / "raw.csv", raw=True)
    assert pd.read_csv(raw)["text"].iloc[0] == "=1+1"


def test_a_sheet_has_no_formulas_and_survives_control_characters(members, tmp_path):
    path = export(members.assign(text="a\x00b_x0041_<&"), tmp_path / "x.xlsx")
    with zipfile.ZipFile(path) as book:
        assert b"<f>" not in book.read("xl/worksheets/sheet1.xml")
    assert cells(path)[1][-1] == "a\ufffdb_x005F_x0041_<&"
    assert '=HYPERLINK("http://127.0.0.1","x")' in {cell for row in cells(path) for cell in row}


def test_times_flags_numbers_and_lists_keep_their_kind(members, tmp_path):
    path = export(members, tmp_path / "x.xlsx")
    with zipfile.ZipFile(path) as book:
        sheet = book.read("xl/worksheets/sheet1.xml").decode()
    assert '<c s="1"><v>46349.5</v></c>' in sheet
    assert '<c t="b"><v>1</v></c>' in sheet
    rows = json.loads(export(members, tmp_path / "x.json").read_bytes())
    assert {type(row["use_cases"]) for row in rows} == {list, type(None)}
    assert rows[0]["seen_at"] == "2026-11-23T12:00:00.000000Z"


def test_a_file_is_replaced_whole_or_not_at_all(members, tmp_path):
    path = export(members, tmp_path / "x.csv")
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="ends in none of"):
        export(members, tmp_path / "x.doc")
    with pytest.raises(ConfigError, match="folder that exists"):
        export(members, tmp_path / "nowhere" / "x.csv")
    with pytest.raises(ConfigError, match="holds 1,048,575 rows"):
        export(pd.DataFrame({"a": range(1_048_576)}), tmp_path / "x.xlsx")
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["x.csv"]


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags = set()
        self.text = []

    def handle_starttag(self, tag, _):
        self.tags.add(tag)

    def handle_data(self, data):
        self.text.append(data)


def test_an_html_table_holds_no_markup_of_the_data():
    reader = Tags()
    reader.feed(html_table(pd.DataFrame({"<b>bank": HOSTILE, "n": range(len(HOSTILE))}), "<i>caption"))
    assert reader.tags == {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert "<script>alert(1)</script>" in reader.text
    assert "gnorw Bank" in reader.text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (float("nan"), ""),
        (pd.NaT, ""),
        (1234, "1,234"),
        (12_345.6, "12,346"),
        (0.123456, "0.1235"),
        (pd.Timestamp("2026-11-23T09:00:00Z"), "2026-11-23 09:00:00"),
        (b"abc", "3 bytes"),
        (["PFM", "X"], "PFM, X"),
        ("a\x00b\u202ec\n d", "a\ufffdbc d"),
    ],
)
def test_values_are_displayed_for_people(value, text):
    assert displayed(value) == text
