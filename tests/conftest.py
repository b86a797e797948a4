"""What every test can rely on: no skip goes unseen where it counts, and figures go to one file."""

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

RESULTS = Path(__file__).parent / "bench" / "results.json"


def pytest_addoption(parser):
    parser.addoption("--no-skips", action="store_true", help="a skipped test counts as failed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and item.config.getoption("--no-skips"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which counts as failed here: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def figures():
    """A dict of measured figures by name; what a run puts in is merged into tests/bench/results.json."""
    found = {}
    yield found
    if not found:
        return
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        cwd=RESULTS.parent,
    )
    packages = (
        "mxlab",
        "aiohttp",
        "deltalake",
        "duckdb",
        "matplotlib",
        "msgspec",
        "pandas",
        "pyarrow",
        "uvloop",
    )
    known |= {
        "commit": commit.stdout.strip(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
        "figures": known.get("figures", {}) | found,
    }
    RESULTS.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
