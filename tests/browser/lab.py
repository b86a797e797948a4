"""A real JupyterLab on loopback, with configuration and data folders of its own."""

import asyncio
import json
import os
import shutil
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
OPTIONS = [
    "--LabApp.expose_app_in_browser=True",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.news_url=",
    "--LabApp.extension_manager=readonly",
    "--IdentityProvider.token=",
    "--ServerApp.password=",
    "--ip=127.0.0.1",
    "--allow-root",
    "--no-browser",
    "--ServerApp.disable_check_xsrf=True",
    "--ServerApp.port_retries=0",
]
QUIET = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}


@asynccontextmanager
async def lab(folder, *notebooks):
    """Start JupyterLab over copies of the notebooks; gives its address."""
    work = folder / "work"
    work.mkdir()
    for each in notebooks:
        shutil.copy(each, work)
    overrides = folder / "overrides"
    overrides.mkdir()
    (overrides / "overrides.json").write_text(json.dumps(QUIET))
    port = free_port()
    command = [sys.executable, "-m", "jupyterlab", *OPTIONS, f"--port={port}", f"--ServerApp.root_dir={work}"]
    command += [f"--LabApp.app_settings_dir={overrides}"]
    with (folder / "lab.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *command, env=os.environ | folders(folder), stdout=log, stderr=log, cwd=work
        )
        try:
            await answers(f"http://127.0.0.1:{port}/api")
            yield f"http://127.0.0.1:{port}"
        finally:
            await ended(process)


async def ended(process):
    """End a server, at once where it does not by itself."""
    if process.returncode is None:
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), 15)
    except TimeoutError:
        process.kill()
        await process.wait()


def folders(folder):
    """Variables that keep a developer's own configuration out."""
    names = (
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "IPYTHONDIR",
        "MPLCONFIGDIR",
        "HOME",
    )
    for name in names:
        (folder / name.lower()).mkdir()
    return {name: str(folder / name.lower()) for name in names}


def free_port():
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


async def answers(address):
    """Wait until a server answers there."""
    async with aiohttp.ClientSession() as session:
        for _ in range(300):
            try:
                async with session.get(address) as reply:
                    if reply.status < 500:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
    raise TimeoutError(f"nothing answers at {address}")
