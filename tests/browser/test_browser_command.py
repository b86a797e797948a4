"""`mxlab lab` and `mxlab lab --voila` as a user starts them: every notebook, behind a token, from this machine alone."""

import re
import time

import aiohttp
from chrome import MARKS, browser
from command import command
from lab import NOTEBOOKS
from pages import FAILED

pytestmark = MARKS

NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
#: How many cells of a page of Voila's still wait for their output.
WAITING = "document.querySelectorAll('.voila-skeleton-container').length"


async def refused(address):
    """Whether whoever has no token is shown to the door."""
    async with aiohttp.ClientSession() as session, session.get(address) as reply:
        return reply.status in {401, 403} or "login" in reply.url.path


async def test_jupyterlab_opens_on_the_notebooks(tmp_path, kept):
    async with command(tmp_path) as (address, token), browser() as page:
        assert await refused(f"{address}/lab")
        await page.open(f"{address}/?token={token}")
        await page.until("document.querySelectorAll('.jp-DirListing-item').length > 0")
        listed = await page.evaluate(
            "[...document.querySelectorAll('.jp-DirListing-itemText')].map(each => each.innerText)"
        )
        assert [name for name in listed if name.endswith(".ipynb")] == [f"{name}.ipynb" for name in NAMES]
        await page.until(
            "document.querySelector('.jp-MarkdownOutput h1')?.innerText.startsWith('Quickstart')"
        )
        await kept(page, "command-lab")
        assert await page.evaluate("document.querySelectorAll('.Toastify__toast').length") == 0, (
            "no questions"
        )
        assert page.errors == []
        assert page.strangers() == []


async def test_voila_lists_the_notebooks_and_serves_each(tmp_path, kept, figures):
    async with command(tmp_path, "--voila") as (address, token):
        assert await refused(f"{address}/voila/render/01_quickstart.ipynb")
        async with browser() as page:
            await page.open(f"{address}/?token={token}")
            links = await page.until("[...document.querySelectorAll('li a')].map(each => each.href)")
            assert re.findall(r"render/(\w+)\.ipynb", " ".join(links)) == NAMES
            await kept(page, "command-voila")
            assert page.errors == []
            assert page.strangers() == []
        for name, link in zip(NAMES, links, strict=True):
            async with browser() as page:
                begun = time.perf_counter()
                await page.open(link)
                await page.until(f"{WAITING} > 0")
                await page.until(f"{WAITING} === 0", seconds=120)
                figures[f"browser: {name} as a page, s"] = round(time.perf_counter() - begun, 1)
                await kept(page, f"voila-{name}", whole=True)
                assert await page.evaluate(FAILED) is None, name
                assert page.errors == [], name
                assert page.strangers() == [], name
