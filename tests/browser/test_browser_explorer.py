"""A real browser against a real JupyterLab and a real Voila: run, choose, look; pictures of the window are kept."""

import time
from pathlib import Path

import nbformat
import pytest
from chrome import MARKS, browser
from lab import NOTEBOOKS
from pages import FAILED, PICTURE, SHOWN, other, running

pytestmark = MARKS

#: Whether every cell has run, with a number before it.
RUN_THROUGH = """(() => {
  const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
  return prompts.length > 5 && prompts.every(each => /\\[\\d+\\]/.test(each.innerText));
})()"""
HOSTILE = """
import sys
sys.path.insert(0, {tests!r})
import mxlab as mx
from widgets_sample import HOSTILE, snapshot
explorer = mx.Explorer(snapshot(240, banks=HOSTILE), "status_by_institution")
explorer
"""
COLLECT = """
from mxlab.widgets import Collector
collector = Collector()
collector.count.value, collector.speed.value = 2_000, 20
collector.verb.index = 1
collector
"""


def made(folder, name, source):
    """A notebook of one cell."""
    kernel = {"name": "python3", "display_name": "Python 3"}
    cell = nbformat.v4.new_code_cell(source)
    path = folder / f"{name}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel}), path)
    return path


@pytest.mark.parametrize("front", ["lab", "voila"])
async def test_quickstart_from_top_to_bottom_and_a_filter(front, tmp_path, kept, figures):
    async with running(front, tmp_path, NOTEBOOKS / "01_quickstart.ipynb") as page:
        await page.until(SHOWN, seconds=90)
        first = await page.evaluate(PICTURE)
        await kept(page, f"{front}-explorer", css=".mxlab-explorer")
        assert "SIMULATED" in await page.evaluate("document.querySelector('img.mxlab-picture').title")

        await page.click(".mxlab-filter-who option", 2)
        second, taken = await other(page, first)
        figures[f"browser: click to other picture in {front}, ms"] = taken
        await kept(page, f"{front}-explorer-narrowed")

        await page.click(".mxlab-filter-reset")
        assert (await other(page, second))[0] == first

        for view, css in ((1, ".mxlab-table table"), (2, ".mxlab-table-find input"), (3, ".mxlab-code")):
            await page.click(".mxlab-view button", view)
            await page.until(f"document.querySelector('.mxlab-explorer {css}') !== null", seconds=10)
            await kept(page, f"{front}-explorer-view-{view}")
        assert page.errors == []
        assert page.strangers() == []


@pytest.mark.parametrize("name", ["05_data_quality", "07_history_and_change"])
async def test_a_notebook_runs_through_in_jupyterlab(name, tmp_path, kept, figures):
    begun = time.perf_counter()
    async with running("lab", tmp_path, NOTEBOOKS / f"{name}.ipynb") as page:
        await page.until(RUN_THROUGH, seconds=120)
        figures[f"browser: {name} in lab, s"] = round(time.perf_counter() - begun, 1)
        assert await page.evaluate(FAILED) is None
        await kept(page, f"lab-{name}", whole=True)
        assert page.errors == []
        assert page.strangers() == []


@pytest.mark.parametrize("front", ["lab", "voila"])
async def test_a_time_range_is_typed(front, tmp_path, kept):
    path = made(tmp_path, "range", HOSTILE.format(tests=str(Path(__file__).parents[1])))
    since = "document.querySelector('.mxlab-filter-since input')"
    async with running(front, tmp_path, path) as page:
        await page.until(SHOWN)
        first = await page.evaluate(PICTURE)
        await page.evaluate(f"{since}.focus()")
        for key in "11222026\t0600AM":
            kind = {"type": "keyDown", "key": "Tab", "windowsVirtualKeyCode": 9}
            await page.call(
                "Input.dispatchKeyEvent", **(kind if key == "\t" else {"type": "char", "text": key})
            )
        await other(page, first)
        assert await page.evaluate(f"{since}.value") == "2026-11-22T06:00"
        said = await page.evaluate("document.querySelector('.mxlab-said').innerText")
        assert "last aggregated from 2026-11-22 06:00 UTC" in said
        await kept(page, f"{front}-explorer-range")
        assert page.errors == []


@pytest.mark.parametrize("front", ["lab", "voila"])
async def test_nothing_of_a_hostile_name_is_executed(front, tmp_path, kept):
    path = made(tmp_path, "hostile", HOSTILE.format(tests=str(Path(__file__).parents[1])))
    struck = "window.alert = () => { window.struck = true }"
    async with running(front, tmp_path, path, first=struck) as page:
        await page.until(SHOWN)
        for view, css in enumerate(
            ("img.mxlab-picture", ".mxlab-table table", ".mxlab-table-find input", ".mxlab-code")
        ):
            await page.click(".mxlab-view button", view)
            await page.until(f"document.querySelector('.mxlab-explorer {css}') !== null", seconds=10)
            await kept(page, f"{front}-hostile-{view}")
        assert await page.evaluate("window.struck === undefined")
        assert await page.evaluate("document.querySelectorAll('.mxlab-explorer script').length") == 0
        assert page.errors == []
        assert page.strangers() == []


@pytest.mark.parametrize("front", ["lab", "voila"])
async def test_a_collection_is_started_watched_paused_and_stopped(front, tmp_path, kept, figures):
    path = made(tmp_path, "collect", COLLECT)

    def says(words):
        return f"/{words}/.test(document.querySelector('.mxlab-collect-said').innerText)"

    async with running(front, tmp_path, path) as page:
        await page.until("document.querySelector('.mxlab-collect-begin') !== null")
        await page.click(".mxlab-collect-begin")
        await page.until(says(": [1-9][0-9]* of 2,000 users"))
        await kept(page, f"{front}-collector-running")
        begun = time.perf_counter()
        await page.click(".mxlab-collect-pause")
        await page.until(says("^paused: .* 0 in flight"))
        figures[f"browser: Pause to nothing in flight in {front}, ms"] = round(
            (time.perf_counter() - begun) * 1000
        )
        await kept(page, f"{front}-collector-paused")
        await page.click(".mxlab-collect-pause")
        await page.until(says("^collecting: "))
        begun = time.perf_counter()
        await page.click(".mxlab-collect-stop")
        await page.until(SHOWN)
        figures[f"browser: Stop to the Explorer of what has come in {front}, ms"] = round(
            (time.perf_counter() - begun) * 1000
        )
        await page.until("!document.querySelector('.mxlab-collect-begin').disabled")
        await kept(page, f"{front}-collector-stopped")
        assert "stopped" in await page.evaluate("document.querySelector('.mxlab-collect-said').innerText")
        assert page.errors == []
        assert page.strangers() == []


CONSENT = """
from mxlab.widgets import Collector
collector = Collector()
collector.source.index, collector.verb.index = 1, 1
collector.path.value, collector.base_url.value = "tokens.csv", "https://nexus.example.com"
collector
"""


@pytest.mark.parametrize("front", ["lab", "voila"])
async def test_without_the_typed_word_nothing_is_asked_of_a_real_host(front, tmp_path, kept):
    async with running(front, tmp_path, made(tmp_path, "consent", CONSENT)) as page:
        await page.until("document.querySelector('.mxlab-collect-consent input') !== null")
        await page.click(".mxlab-collect-begin")
        await page.until("/^Nothing was sent/.test(document.querySelector('.mxlab-collect-said').innerText)")
        await kept(page, f"{front}-collector-consent")
        assert page.errors == []
        assert page.strangers() == []


@pytest.mark.parametrize("width", [1400, 420])
async def test_the_report_makes_no_request(tmp_path, kept, width):
    from widgets_sample import snapshot

    import mxlab as mx

    path = mx.report(snapshot(), tmp_path / "health.html")
    async with browser() as page:
        await page.open(path.as_uri(), width=width)
        await page.until(
            "[...document.images].every(image => image.naturalWidth > 0) && document.images.length > 0"
        )
        wide = await page.evaluate("document.documentElement.scrollWidth")
        await kept(page, f"report-{width}")
        assert wide <= width, "nothing makes the page wider than the window"
        assert page.errors == []
        assert {each for each in page.addresses if not each.startswith("data:")} == {path.as_uri()}


AUDIT = """
import mxlab as mx
with mx.simulate(users=300, seed=13, speed=100, scenarios=("defects",)) as sim:
    snap = mx.observe(sim.tokens, sim.settings)
audit = mx.Audit(snap)
audit
"""


@pytest.mark.parametrize("front", ["lab", "voila"])
async def test_an_audit_leads_down_to_the_rows_of_a_rule(front, tmp_path, kept):
    async with running(front, tmp_path, made(tmp_path, "audit", AUDIT)) as page:
        await page.until(SHOWN.replace("explorer", "audit"), seconds=90)
        rows = "document.querySelector('.mxlab-audit caption').textContent"
        every, shown = await page.evaluate(rows), "document.querySelector('.mxlab-audit img').src"
        picture = await page.evaluate(shown)
        await kept(page, f"{front}-audit")
        await page.click(".mxlab-rule option", 1)
        await page.until(f"{rows} !== {every!r}", seconds=20)
        await page.until(f"{shown} !== {picture!r}", seconds=20)
        await kept(page, f"{front}-audit-rule")
        assert page.errors == []
        assert page.strangers() == []
