"""The project's promises about itself: what is documented exists, what exists is documented."""

import ast
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest

import mxlab
from mxlab import errors

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_every_public_name_can_be_had_and_the_list_is_sorted():
    assert mxlab.__all__ == sorted(mxlab.__all__)
    for name in mxlab.__all__:
        assert getattr(mxlab, name) is not None
    assert set(mxlab.__all__) <= set(dir(mxlab))


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = mxlab.no_such_name


def test_importing_mxlab_loads_none_of_the_heavy_packages():
    heavy = ["pandas", "matplotlib", "aiohttp", "ipywidgets", "pyarrow", "duckdb", "deltalake", "scipy"]
    code = f"import sys, mxlab; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def _classes(base):
    for each in base.__subclasses__():
        yield each
        yield from _classes(each)


@pytest.mark.parametrize("kind", sorted(_classes(errors.MxlabError), key=lambda kind: kind.__name__))
def test_every_error_pickles_with_what_it_knows(kind):
    if kind is errors.CollectionFailed:
        error = kind("two were lost", [errors.ReplyTimeout("late", session="s1")])
    elif issubclass(kind, errors.NexusError):
        error = kind("what happened", session="s1", status_code=409, code="4011", retry_after_seconds=2.0)
    else:
        error = kind("what happened")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert {**vars(again), "exceptions": None} == {**vars(error), "exceptions": None}


def test_the_error_tree_is_drawn_as_it_is():
    drawn = errors.__doc__
    for kind in _classes(errors.MxlabError):
        assert kind.__name__ in drawn


def test_charts_are_summaries_and_drawings_of_one_name():
    for name, chart in mxlab.CHARTS.items():
        assert chart.summary is getattr(mxlab.analysis, name)
        assert chart.drawing is getattr(mxlab.plots, name)


def test_a_secret_is_revealed_in_two_places_only_where_a_header_is_made():
    callers = set()
    for path in (ROOT / "mxlab").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                calls = [
                    each
                    for each in ast.walk(node)
                    if isinstance(each, ast.Attribute) and each.attr == "reveal"
                ]
                callers |= {f"{path.name}:{node.name}"} if calls else set()
    assert callers == {"client.py:_send", "sso.py:_ask"}


def test_the_environment_is_read_in_one_module():
    readers = {
        path.name
        for path in (ROOT / "mxlab").rglob("*.py")
        if re.search(r"os\.environ|os\.getenv|from os import.*environ", path.read_text())
    }
    assert readers == {"settings.py"}


def test_pyplot_is_nowhere():
    for path in (ROOT / "mxlab").rglob("*.py"):
        assert "import matplotlib.pyplot" not in path.read_text(), path


def test_the_readme_names_the_two_commands():
    fenced = re.findall(r"^```\w*\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    first = next(line for line in README.splitlines() if "mxlab demo" in line)
    assert first + "\n" in fenced
    assert "#" not in first
    assert any(block.rstrip().endswith("-m pytest") for block in fenced)


def test_the_readme_has_the_data_dictionary_of_the_declarations():
    from mxlab.frames import TABLES

    for name, columns in TABLES.items():
        assert f"**{name}**" in README
        for column in columns:
            assert f"| `{column.name}` | {column.kind} | {column.meaning} |" in README, column.name


def test_the_readme_shows_every_command():
    from mxlab.cli import _parser

    commands = _parser()._subparsers._group_actions[0].choices
    for name in commands:
        assert f"mxlab {name}" in README, name


def test_the_readme_shows_every_chart_and_its_question():
    for name, chart in mxlab.CHARTS.items():
        assert f"| `{name}` | {chart.question} |" in README


def test_every_setting_has_its_default_and_meaning_in_the_readme():
    from dataclasses import fields

    from mxlab.settings import Settings

    for each in fields(Settings):
        assert f"| `{each.name}` |" in README, each.name
        assert each.metadata["doc"] in README, each.name


def test_no_file_names_an_address_to_install_from_or_a_path_of_this_machine():
    assert "//" not in (ROOT / "constraints.txt").read_text()
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert listed
    for name in listed:
        text = (ROOT / name).read_bytes().decode(errors="replace")
        assert f"{ROOT}/" not in text, name
        assert f"{sys.prefix}/" not in text, name
