"""`mxlab lab` as a user starts it, with configuration and data folders of its own."""

import asyncio
import os
import re
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from lab import ended, folders, free_port


@asynccontextmanager
async def command(folder, *options):
    """Start the command; gives the server's address and its token."""
    words = [sys.executable, "-m", "mxlab", "lab", "--no-browser", f"--port={free_port()}", *options]
    log, own = folder / "command.log", folders(folder)
    as_root = Path(own["JUPYTER_CONFIG_DIR"]) / "jupyter_server_config.json"
    as_root.write_text('{"ServerApp": {"allow_root": true}}')
    with log.open("wb") as said:
        process = await asyncio.create_subprocess_exec(*words, env=os.environ | own, stdout=said, stderr=said)
        try:
            address = urlsplit(await _announced(log))
            yield f"http://{address.netloc}", address.query.removeprefix("token=")
        finally:
            await ended(process)


async def _announced(log):
    for _ in range(600):
        if found := re.search(r"http://127\.0\.0\.1:\d+/\S*token=\w+", log.read_text(errors="replace")):
            return found[0]
        await asyncio.sleep(0.1)
    raise TimeoutError(f"no address in {log}: {log.read_text(errors='replace')[-2_000:]}")
