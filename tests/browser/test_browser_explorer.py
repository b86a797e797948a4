"""A real browser against a real JupyterLab: run, choose, look; pictures of the window are kept."""

import asyncio
import os
import time
from pathlib import Path

import nbformat
import pytest
from chrome import BINARY, browser
from lab import NOTEBOOKS, lab
from voila_page import voila

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        BINARY is None, reason="NO CHROMIUM: apt-get install chromium, or these tests prove nothing"
    ),
]

READY = """(async () => {
  const widget = window.jupyterapp?.shell?.currentWidget;
  if (!widget?.context) return false;
  await widget.context.ready;
  await widget.context.sessionContext.ready;
  return true;
})()"""
RUN = "window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => true)"
SHOWN = "document.querySelector('.mxlab-explorer img.mxlab-picture')?.naturalWidth > 0"
#: The bytes of the picture as a number, so that two pictures can be told apart.
PICTURE = """(async () => {
  const image = document.querySelector('.mxlab-explorer img.mxlab-picture');
  const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
  return bytes.reduce((hash, byte) => (hash * 31 + byte) % 4294967291, 7);
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


@pytest.fixture
def kept(tmp_path):
    """Keeps a picture of the window, in MXLAB_PICTURES where that is set."""
    folder = Path(os.environ.get("MXLAB_PICTURES", tmp_path))

    async def keep(page, name):
        (folder / f"{name}.png").write_bytes(await page.picture())

    return keep


def made(folder, name, source):
    """A notebook of one cell."""
    kernel = {"name": "python3", "display_name": "Python 3"}
    cell = nbformat.v4.new_code_cell(source)
    path = folder / f"{name}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernel}), path)
    return path


async def other(page, before):
    """The picture that takes the place of another, and the milliseconds it took."""
    begun = time.perf_counter()
    while (after := await page.evaluate(PICTURE)) == before:
        assert time.perf_counter() - begun < 10, "the picture did not change"
        await asyncio.sleep(0.01)
    return after, round((time.perf_counter() - begun) * 1000)


async def test_quickstart_from_top_to_bottom_and_a_filter(tmp_path, kept, figures):
    async with lab(tmp_path, NOTEBOOKS / "01_quickstart.ipynb") as address, browser() as page:
        begun = time.perf_counter()
        await page.open(f"{address}/lab/tree/01_quickstart.ipynb")
        await page.until(READY)
        await page.evaluate(RUN)
        await page.until(SHOWN, seconds=90)
        figures["browser: quickstart from address to Explorer, s"] = round(time.perf_counter() - begun, 1)
        await page.evaluate("document.querySelector('.mxlab-explorer').scrollIntoView() ?? true")
        first = await page.evaluate(PICTURE)
        await kept(page, "explorer")
        alternative = await page.evaluate("document.querySelector('img.mxlab-picture').title")
        assert "SIMULATED" in alternative

        await page.click(".mxlab-filter-who option", 2)
        second, taken = await other(page, first)
        figures["browser: click to other picture, ms"] = taken
        await kept(page, "explorer-narrowed")

        await page.click(".mxlab-filter-reset")
        assert (await other(page, second))[0] == first

        for view, css in ((1, ".mxlab-table table"), (2, ".mxlab-table-find input"), (3, ".mxlab-code")):
            await page.click(".mxlab-view button", view)
            await page.until(f"document.querySelector('.mxlab-explorer {css}') !== null", seconds=10)
            await kept(page, f"explorer-view-{view}")
        assert page.errors == []
        assert page.strangers() == []


async def test_nothing_of_a_hostile_name_is_executed(tmp_path, kept):
    path = made(tmp_path, "hostile", HOSTILE.format(tests=str(Path(__file__).parents[1])))
    async with lab(tmp_path, path) as address, browser() as page:
        await page.open(f"{address}/lab/tree/hostile.ipynb")
        await page.until(READY)
        await page.evaluate("(window.alert = () => { window.struck = true }) && true")
        await page.evaluate(RUN)
        await page.until(SHOWN)
        for view in range(4):
            await page.click(".mxlab-view button", view)
            await asyncio.sleep(0.5)
            await kept(page, f"hostile-{view}")
        assert await page.evaluate("window.struck === undefined")
        assert await page.evaluate("document.querySelectorAll('.mxlab-explorer script').length") == 0
        assert page.errors == []
        assert page.strangers() == []


async def test_a_collection_is_started_watched_and_stopped(tmp_path, kept, figures):
    path = made(tmp_path, "collect", COLLECT)
    async with lab(tmp_path, path) as address, browser() as page:
        await page.open(f"{address}/lab/tree/collect.ipynb")
        await page.until(READY)
        await page.evaluate(RUN)
        await page.until("document.querySelector('.mxlab-collect-begin') !== null")
        await page.click(".mxlab-collect-begin")
        await page.until(
            "/: [1-9][0-9]* of 2,000 users/.test(document.querySelector('.mxlab-collect-said').innerText)"
        )
        await kept(page, "collector-running")
        begun = time.perf_counter()
        await page.click(".mxlab-collect-stop")
        await page.until(SHOWN)
        figures["browser: Stop to the Explorer of what has come, ms"] = round(
            (time.perf_counter() - begun) * 1000
        )
        await kept(page, "collector-stopped")
        assert "stopped" in await page.evaluate("document.querySelector('.mxlab-collect-said').innerText")
        assert page.errors == []
        assert page.strangers() == []


async def test_voila_serves_the_explorer_as_a_page(tmp_path, kept):
    path = made(tmp_path, "page", HOSTILE.format(tests=str(Path(__file__).parents[1])))
    async with voila(tmp_path, path) as address, browser() as page:
        await page.open(address)
        await page.until(SHOWN)
        first = await page.evaluate(PICTURE)
        await page.click(".mxlab-filter-who option", 1)
        await other(page, first)
        await kept(page, "voila")
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
