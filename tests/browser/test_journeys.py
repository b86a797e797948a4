"""The five journeys of an analyst, walked in a real browser, each with the time that it took; pictures are kept."""

import asyncio
import json
import re
import sys
import time
from contextlib import asynccontextmanager

import pandas as pd
from chrome import MARKS, browser
from lab import NOTEBOOKS, lab
from pages import FAILED, PICTURE, READY, RUN, SHOWN, other, says

import mxlab as mx
from mxlab.simulator import Parameters, World

pytestmark = MARKS

WEEK = 7 * 86_400.0
#: How many cells are waiting or running.
BUSY = "[...document.querySelectorAll('.jp-InputPrompt')].filter(each => /\\*/.test(each.innerText)).length"
#: Below the cell that is in use, a new one of this text, run.
PASTED = """(async () => {{
  const {{commands, shell}} = window.jupyterapp, notebook = shell.currentWidget.content;
  notebook.activeCellIndex = notebook.widgets.length - 1;
  await commands.execute('notebook:insert-cell-below');
  notebook.activeCell.model.sharedModel.setSource({line});
  await commands.execute('notebook:run-cell');
  notebook.activeCell.node.classList.add('pasted');
  notebook.activeCell.node.scrollIntoView();
}})()"""

#: The output with these words comes to the middle of the window.
BROUGHT = """[...document.querySelectorAll('.jp-OutputArea-output')]
  .find(each => /{words}/.test(each.innerText)).scrollIntoView({{block: 'center'}})"""


class Watch:
    """Seconds since a journey began, kept as figures."""

    def __init__(self, figures, journey):
        self._figures, self._journey = figures, journey
        self._begun = time.perf_counter()

    def mark(self, what):
        """The seconds until here."""
        seconds = round(time.perf_counter() - self._begun, 1)
        self._figures[f"browser: {self._journey} {what}, s"] = seconds
        return seconds


@asynccontextmanager
async def opened(folder, name, figures, journey):
    """A notebook in JupyterLab, opened but not run, and a watch that began with the address."""
    async with lab(folder, NOTEBOOKS / f"{name}.ipynb") as address, browser() as page:
        watch = Watch(figures, journey)
        await page.open(f"{address}/lab/tree/{name}.ipynb")
        await page.until(READY)
        yield page, watch
        assert await page.evaluate(f"{FAILED}?.innerText") is None
        assert page.errors == []
        assert page.strangers() == []


async def type_into(page, words, source):
    """Replace all of the cell that has these words, as by hand: click, select all, write."""
    cells = "[...document.querySelectorAll('.jp-CodeCell .cm-content')]"
    place = await page.evaluate(f"{cells}.findIndex(each => each.innerText.includes({json.dumps(words)}))")
    assert place >= 0, words
    await page.click(".jp-CodeCell .cm-content", place)
    key = {"key": "a", "code": "KeyA", "windowsVirtualKeyCode": 65, "modifiers": 2, "commands": ["selectAll"]}
    for kind in ("keyDown", "keyUp"):
        await page.call("Input.dispatchKeyEvent", type=kind, **key)
    await page.call("Input.insertText", text=source)
    assert await page.evaluate(f"{cells}[{place}].innerText.includes({json.dumps(source[:20])})")


async def test_j1_a_newcomer_sees_the_explorer(tmp_path, kept, figures):
    async with opened(tmp_path, "01_quickstart", figures, "J1") as (page, watch):
        await page.evaluate(RUN)
        await page.until(SHOWN, seconds=90)
        taken = watch.mark("quickstart from address to Explorer")
        await kept(page, "journey-1-explorer", css=".mxlab-explorer")
        (event,) = World(Parameters(seed=7, scenarios=("slow_bank",))).planted
        assert await page.evaluate(says(re.escape(event["institution"]))), "the slow bank is found and named"
        assert "SIMULATED" in await page.evaluate("document.querySelector('img.mxlab-picture').title")
    assert (tmp_path / "work" / "connection_health.html").stat().st_size > 100_000
    assert taken < 60


async def test_j2_the_weekly_report_opens_without_a_network(tmp_path, kept, figures):
    store, out = mx.Store(tmp_path / "store"), tmp_path / "health.html"
    world = {"seed": 3, "speed": 60, "scenarios": ("outage",), "settings": mx.Settings(read_jobs=False)}
    begins = 3 * WEEK - 26 * 3_600
    world["parameters"] = {"scenario_from_seconds": begins, "scenario_until_seconds": 4 * WEEK}
    with mx.simulate(1_000, **world) as sim:
        sim.skip(2 * WEEK)
        mx.observe(sim.tokens, sim.settings, store=store, run="last-week")
        sim.skip(WEEK)
        mx.observe(sim.tokens, sim.settings, store=store, run="this-week")
        planted = sim.truth()["planted"]["institution"].tolist()
    watch = Watch(figures, "J2")
    words = ["-m", "mxlab", "report", "--store", str(store.path), "--against", "7d", "--out", str(out)]
    process = await asyncio.create_subprocess_exec(sys.executable, *words)
    assert await process.wait() == 0
    watch.mark("report of two stored runs by the command")
    async with browser() as page:
        await page.open("about:blank", width=1200)
        offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        await page.call("Network.emulateNetworkConditions", **offline)
        await page.call("Page.navigate", url=out.as_uri())
        lead = await page.until("document.querySelector('.lead')?.innerText")
        await page.until("[...document.images].every(each => each.naturalWidth > 0)")
        taken = watch.mark("from the command to the page with its pictures")
        assert await page.evaluate("navigator.onLine") is False
        assert re.match(r"\d+ % of [\d,]+ members are connected \(95 % interval", lead)
        found = await page.evaluate("document.querySelector('.found').innerText")
        assert all(f"{bank}: MX or the bank must act" in found for bank in planted)
        assert "7 days before" in found
        await kept(page, "journey-2-report")
        for width, scheme in ((1200, "dark"), (420, "light"), (420, "dark")):
            feature = {"name": "prefers-color-scheme", "value": scheme}
            await page.call("Emulation.setEmulatedMedia", features=[feature])
            await page.resize(width, 1000)
            assert await page.evaluate("document.documentElement.scrollWidth") <= width
            await kept(page, f"journey-2-report-{width}-{scheme}")
        assert page.errors == []
        asked = {each for each in page.addresses if not each.startswith(("data:", "about:"))}
        assert asked == {out.as_uri()}
    assert taken < 60


async def test_j3_an_incident_from_the_banks_name_to_the_evidence(tmp_path, kept, figures):
    async with opened(tmp_path, "04_institutions_and_incidents", figures, "J3") as (page, watch):
        cell = next(
            "".join(each["source"])
            for each in json.loads((NOTEBOOKS / "04_institutions_and_incidents.ipynb").read_text())["cells"]
            if each["id"] == "bank"
        )
        await type_into(page, 'bank = "', cell.replace("Laurel Credit Union", "laurel credit"))
        await page.evaluate(RUN)
        await page.until(says(r"Laurel Credit Union \(OAuth\): real, since \d\d:\d\d UTC"), seconds=170)
        answered = watch.mark("from address to yes, since when, whom")
        await page.evaluate(BROUGHT.format(words="real, since"))
        await kept(page, "journey-3-answer")
        await page.until(SHOWN, seconds=120)
        await page.until(f"{BUSY} === 0", seconds=60)
        taken = watch.mark("the whole incident with evidence and recovery")
        for words in ("laurel credit, all", "oauth_share", "users_hit", "recovered_share", "FAILED"):
            assert await page.evaluate(says(words)), words
        await kept(page, "journey-3-explorer", css=".mxlab-explorer")
    evidence = pd.read_csv(tmp_path / "work" / "evidence.csv")
    assert evidence["guid"].str.startswith("MBR-").all()
    assert set(evidence["institution"]) == {"Laurel Credit Union (OAuth)"}
    assert answered < 180
    assert taken < 240


async def test_j4_an_audit_down_to_the_rows_that_are_handed_on(tmp_path, kept, figures):
    async with opened(tmp_path, "05_data_quality", figures, "J4") as (page, watch):
        await page.evaluate(RUN)
        await page.until(
            "document.querySelector('.mxlab-audit img.mxlab-picture')?.naturalWidth > 0", seconds=120
        )
        watch.mark("from address to Audit")
        caption = "document.querySelector('.mxlab-audit caption').textContent"
        every = await page.evaluate(caption)
        await kept(page, "journey-4-audit", css=".mxlab-audit")
        rule = await page.evaluate("document.querySelectorAll('.mxlab-rule option')[1].innerText")
        await page.click(".mxlab-rule option", 1)
        await page.until(f"{caption} !== {every!r}", seconds=20)
        shown = await page.evaluate(
            "[...document.querySelectorAll('.mxlab-audit tbody tr')].map(each => each.innerText)"
        )
        assert shown
        assert all(rule.split()[1] in each for each in shown)
        before = set((tmp_path / "work").iterdir())
        await page.click(".mxlab-audit .mxlab-save")
        await page.until(
            "/mxlab-.*[.]csv/.test(document.querySelector('.mxlab-audit').innerText)", seconds=20
        )
        taken = watch.mark("from address to the rows of a rule in a file")
        await kept(page, "journey-4-saved", css=".mxlab-audit")
        (path,) = set((tmp_path / "work").iterdir()) - before
        rows = pd.read_csv(path)
        assert set(rows["rule"]) == {rule.split()[1]}
        assert len(rows) == int(rule.split()[-1].replace(",", ""))
        assert "MBR-" not in path.read_text(), "whoever reads it learns no id"
    assert taken < 120


async def test_j5_an_ad_hoc_question_answered_and_taken_along_as_code(tmp_path, kept, figures):
    async with opened(tmp_path, "06_ad_hoc_report", figures, "J5") as (page, watch):
        await page.evaluate(RUN)
        await page.until(SHOWN, seconds=120)
        await page.until(f"{BUSY} === 0", seconds=60)
        watch.mark("from address to Explorer")
        first = await page.evaluate(PICTURE)
        chosen = time.perf_counter()
        await page.choose(".mxlab-filter-oauth select", "OAuth")
        await other(page, first)
        figures["browser: J5 log-in chosen to other curve, ms"] = round((time.perf_counter() - chosen) * 1000)
        await kept(page, "journey-5-oauth", css=".mxlab-explorer")
        await page.click(".mxlab-explorer .mxlab-view button", 3)
        line = await page.until("document.querySelector('.mxlab-explorer .mxlab-code')?.innerText")
        assert line.startswith("mx.draw('freshness', snap.narrowed(")
        await page.evaluate(PASTED.format(line=json.dumps(line)))
        await page.until("document.querySelector('.pasted .jp-OutputArea img')?.naturalWidth > 0", seconds=30)
        taken = watch.mark("from address to the same curve by pasted code")
        await kept(page, "journey-5-pasted")
        assert await page.evaluate(says("small(.|\\n)*middling(.|\\n)*large")), "by the size of the bank"
    assert taken < 120
