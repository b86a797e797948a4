"""Pictures of the window are kept, as artefacts of the run."""

import os
from pathlib import Path

import pytest

PICTURES = Path(__file__).parent / "pictures"


@pytest.fixture
def kept():
    """Keeps a picture of the window, in MXLAB_PICTURES or beside this file, where git does not see it."""
    folder = Path(os.environ.get("MXLAB_PICTURES", PICTURES))
    folder.mkdir(parents=True, exist_ok=True)

    async def keep(page, name, **options):
        (folder / f"{name}.png").write_bytes(await page.picture(**options))

    return keep
