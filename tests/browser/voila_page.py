"""A real Voila on loopback over one notebook, as `mxlab lab --voila` starts it."""

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path

from lab import answers, ended, folders, free_port

import mxlab

TEMPLATES = Path(mxlab.__file__).parent / "jupyter"


@asynccontextmanager
async def voila(folder, notebook):
    """Serve a notebook as a page; gives its address."""
    port, environ = free_port(), os.environ | folders(folder) | {"JUPYTER_PATH": str(TEMPLATES)}
    options = ["--no-browser", "--template=mxlab", f"--port={port}", "--Voila.ip=127.0.0.1"]
    options += ["--progressive_rendering=True"]
    command = [sys.executable, "-m", "voila", str(notebook), *options]
    with (folder / "voila.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, env=environ, stdout=log, stderr=log)
        try:
            await answers(f"http://127.0.0.1:{port}/voila/static/voila.js")
            yield f"http://127.0.0.1:{port}"
        finally:
            await ended(process)
