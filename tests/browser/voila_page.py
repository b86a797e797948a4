"""A real Voila on loopback over one notebook."""

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from pathlib import Path

from lab import answers, folders, free_port


@asynccontextmanager
async def voila(folder, notebook):
    """Serve a notebook as a page; gives its address."""
    port, environ = free_port(), os.environ | folders(folder)
    template(Path(environ["JUPYTER_DATA_DIR"]))
    options = ["--no-browser", "--template=mxlab", f"--port={port}", "--Voila.ip=127.0.0.1"]
    command = [sys.executable, "-m", "voila", str(notebook), *options]
    with (folder / "voila.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(*command, env=environ, stdout=log, stderr=log)
        try:
            await answers(f"http://127.0.0.1:{port}/voila/static/voila.js")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            await process.wait()


def template(data):
    """Voila's own page without the two style sheets that it asks another host for."""
    own = data / "voila" / "templates" / "mxlab"
    own.mkdir(parents=True)
    (own / "conf.json").write_text('{"base_template": "lab"}')
    page = Path(sys.prefix) / "share" / "jupyter" / "voila" / "templates" / "lab" / "index.html.j2"
    kept = [line for line in page.read_text().splitlines() if "cdn." not in line]
    (own / "index.html.j2").write_text("\n".join(kept))
