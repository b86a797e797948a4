"""Notebooks are thin, clean, and run from top to bottom on the simulator without reaching another machine."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from mxlab.simulator import Parameters, World

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
#: The first is run with every test, the others in the slow tier.
TIERED = [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (number > 0))
    for number, path in enumerate(NOTEBOOKS)
]
#: What is planted in the world of a notebook (seed, scenario), and the cell whose output must name the bank.
PLANTED = {
    "01_quickstart": [(7, "slow_bank", "slow")],
    "03_aggregation_latency": [(5, "slow_bank", "banks")],
    "04_institutions_and_incidents": [(3, "outage_oauth", "moving"), (3, "outage_oauth", "answer")],
    "07_history_and_change": [(3, "password_reset", "what"), (3, "onboarding_wave", "poor")],
}
#: Fails any connection off loopback, in the kernel that runs the notebook.
LOOPBACK_ONLY = """
import socket as _socket
_connect = _socket.socket.connect
def _guarded(self, address):
    if self.family != _socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise AssertionError(f"off loopback: {address}")
    return _connect(self, address)
_socket.socket.connect = _guarded
"""


def read(path):
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_thin_and_clean(path):
    book = read(path)
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    assert book.cells[0].cell_type == "markdown"
    assert "SIMULATED" in book.cells[0].source
    for cell in book.cells:
        assert re.fullmatch(r"[a-z][a-z0-9-]+", cell.id), "ids are words, so that they stay"
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
            kinds = {type(node) for node in ast.walk(ast.parse(cell.source))}
            assert not kinds & {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef}
            assert "http" not in cell.source
    own = [cell.source for cell in book.cells if "mx.Settings(base_url=" in cell.source]
    assert len(own) == 1, "one cell says which two lines point it at a real host"
    assert "mx.observe(" in own[0]
    assert "mx.aggregate(" not in own[0]


@pytest.mark.parametrize("path", TIERED)
def test_a_notebook_runs_and_its_pictures_are_in_it(path, tmp_path, monkeypatch):
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-loopback.py").write_text(LOOPBACK_ONLY)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    book = read(path)
    NotebookClient(book, timeout=60, resources={"metadata": {"path": str(tmp_path)}}).execute()
    nbformat.validate(book)
    said = [
        output for cell in book.cells for output in cell.get("outputs", []) if output.get("name") == "stderr"
    ]
    assert said == [], "no warning comes between question and answer"
    data = {cell.id: [output.get("data", {}) for output in cell.get("outputs", [])] for cell in book.cells}
    drawing = [cell.id for cell in book.cells if cell.cell_type == "code" and "mx.draw(" in cell.source]
    drawing += [cell.id for cell in book.cells if "mx.Explorer(" in cell.source and cell.cell_type == "code"]
    assert drawing
    for name in drawing:
        assert data[name][-1]["image/png"].startswith("iVBOR"), name
        assert "SIMULATED" in data[name][-1]["text/plain"]
    for seed, scenario, cell in PLANTED.get(path.stem, []):
        (event,) = World(Parameters(seed=seed, scenarios=(scenario,))).planted
        assert event["institution"] in str(book.cells[[each.id for each in book.cells].index(cell)].outputs)
