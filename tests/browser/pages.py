"""What the tests look for on a page: JupyterLab's notebook, an Explorer and its picture."""

import asyncio
import time
from contextlib import asynccontextmanager

from chrome import browser
from lab import lab
from voila_page import voila

READY = """(async () => {
  const widget = window.jupyterapp?.shell?.currentWidget;
  if (!widget?.context) return false;
  await widget.context.ready;
  await widget.context.sessionContext.ready;
  return true;
})()"""
RUN = "void window.jupyterapp.commands.execute('notebook:run-all-cells') ?? true"
#: An error in any cell, as JupyterLab and Voila show it.
FAILED = "document.querySelector('[data-mime-type=\"application/vnd.jupyter.stderr\"], .jp-RenderedError')"
SHOWN = "document.querySelector('.mxlab-explorer img.mxlab-picture')?.naturalWidth > 0"
#: The bytes of the picture as a number, so that two pictures can be told apart.
PICTURE = """(async () => {
  const image = document.querySelector('.mxlab-explorer img.mxlab-picture');
  const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
  return bytes.reduce((hash, byte) => (hash * 31 + byte) % 4294967291, 7);
})()"""


@asynccontextmanager
async def running(front, folder, notebook, **options):
    """A notebook in a browser, in JupyterLab or as Voila's page, with its cells under way; gives the tab."""
    serve = {"lab": lab, "voila": voila}[front]
    async with serve(folder, notebook) as address, browser() as page:
        if front == "voila":
            await page.open(address, **options)
        else:
            await page.open(f"{address}/lab/tree/{notebook.name}", **options)
            await page.until(READY)
            await page.evaluate(RUN)
        yield page


def says(words):
    """Whether an output on the page has these words (a regular expression)."""
    return f"[...document.querySelectorAll('.jp-OutputArea-output')].some(each => /{words}/.test(each.innerText))"


async def other(page, before):
    """The picture that takes the place of another, and the milliseconds it took."""
    begun = time.perf_counter()
    while (after := await page.evaluate(PICTURE)) == before:
        assert time.perf_counter() - begun < 10, "the picture did not change"
        await asyncio.sleep(0.01)
    return after, round((time.perf_counter() - begun) * 1000)
