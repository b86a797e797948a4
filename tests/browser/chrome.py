"""Headless Chromium over its DevTools websocket: open, evaluate, wait, take a picture, and tell what went wrong."""

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest

BINARY = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
#: The marks of every test that needs it.
MARKS = [
    pytest.mark.browser,
    pytest.mark.skipif(
        BINARY is None, reason="NO CHROMIUM: apt-get install chromium, or these tests prove nothing"
    ),
]
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
]
#: What scrolls: the page, or a notebook within it.
SCROLLING = "[...document.querySelectorAll('html, .lm-BoxPanel-child, .jp-WindowedPanel-outer')]"
#: How many pixels of it are out of sight.
HIDDEN = f"Math.max(...{SCROLLING}.map(each => each.scrollHeight - each.clientHeight))"
#: To its top, and then until it is painted.
TO_THE_TOP = f"""{SCROLLING}.forEach(each => each.scrollTop = 0),
  new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"""


class Page:
    """One tab."""

    def __init__(self, socket):
        self._socket = socket
        self._session = None
        self._calls = {}
        self._number = 0
        self.addresses = []
        self.errors = []
        self._reader = asyncio.create_task(self._read())

    async def call(self, method, **parameters):
        """A command of the DevTools protocol and its result."""
        self._number += 1
        number, answer = self._number, asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        message = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        await self._socket.send_json(message)
        return await asyncio.wait_for(answer, 60)

    async def _read(self):
        async for message in self._socket:
            event = json.loads(message.data)
            if "id" in event:
                waiting = self._calls.pop(event["id"])
                if "error" in event:
                    waiting.set_exception(RuntimeError(event["error"]["message"]))
                else:
                    waiting.set_result(event["result"])
            else:
                self._note(event["method"], event["params"])

    def _note(self, method, seen):
        if method in {"Network.requestWillBeSent", "Network.webSocketCreated"}:
            self.addresses.append(seen["request"]["url"] if "request" in seen else seen["url"])
        elif method == "Runtime.exceptionThrown":
            details = seen["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and seen["type"] == "error":
            self.errors.append(
                " ".join(str(each.get("value", each.get("description"))) for each in seen["args"])
            )
        elif method == "Log.entryAdded" and seen["entry"]["level"] == "error":
            self.errors.append(f"{seen['entry']['text']} {seen['entry'].get('url', '')}")

    async def open(self, address, *, width=1400, height=1000, first=""):
        """Go there in a window of this size; a script may run before any of the page's own."""
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.resize(width, height)
        await self.call("Page.addScriptToEvaluateOnNewDocument", source=first)
        await self.call("Page.navigate", url=address)

    async def resize(self, width, height):
        """Make the window this large."""
        self._size = width, height
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    async def evaluate(self, script):
        """The value of an expression, awaited where it is a promise."""
        answer = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"].get("exception", {}).get("description"))
        return answer["result"].get("value")

    async def until(self, script, *, seconds=60.0):
        """The value of an expression as soon as it is true."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end:
            if value := await self.evaluate(script):
                return value
            await asyncio.sleep(0.05)
        raise TimeoutError(f"not true after {seconds} s: {script}")

    async def click(self, css, number=0):
        """A real click on the middle of the element of this number among those of a selector."""
        box = await self.evaluate(f"""(() => {{
          const element = document.querySelectorAll({css!r})[{number}];
          element.scrollIntoView({{block: 'nearest'}});
          const box = element.getBoundingClientRect();
          return [box.x + box.width / 2, box.y + box.height / 2];
        }})()""")
        known = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, **known)

    async def choose(self, css, text):
        """Choose the option of this text in a drop-down."""
        await self.evaluate(f"""(() => {{
          const list = document.querySelector({css!r});
          list.selectedIndex = [...list.options].findIndex(option => option.text === {text!r});
          list.dispatchEvent(new Event('change', {{bubbles: true}}));
        }})()""")

    async def picture(self, css=None, *, whole=False):
        """What is in the window as PNG, scrolled to the first element of a selector; or the whole page."""
        if whole:
            size = self._size
            await self.resize(size[0], size[1] + await self.evaluate(HIDDEN))
            await self.evaluate(TO_THE_TOP)
            try:
                return await self.picture()
            finally:
                await self.resize(*size)
        if css is not None:
            await self.evaluate(f"document.querySelector({css!r})?.scrollIntoView() ?? true")
        shot = await self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(shot["data"])

    def strangers(self):
        """Addresses asked for that are not this machine's."""
        own = {"127.0.0.1", "localhost", "::1", None}
        return [each for each in self.addresses if urlsplit(each).hostname not in own]


@asynccontextmanager
async def browser():
    """A new tab of a new Chromium with a profile of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        command = [BINARY, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        process = await asyncio.create_subprocess_exec(*command, **quiet)
        try:
            port = await _port(Path(profile) / "DevToolsActivePort")
            async with (
                aiohttp.ClientSession() as session,
                session.ws_connect(f"ws://127.0.0.1:{port[0]}{port[1]}", max_msg_size=0) as socket,
            ):
                page = Page(socket)
                yield page
                page._reader.cancel()
        finally:
            process.terminate()
            await process.wait()


async def _port(path):
    for _ in range(200):
        if path.exists() and len(lines := path.read_text().split()) == 2:
            return lines
        await asyncio.sleep(0.05)
    raise TimeoutError("Chromium did not start")
