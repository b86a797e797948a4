"""Which starts were handed to the network, as a killed process leaves it behind."""

import os
from collections.abc import Iterable
from pathlib import Path

from mxlab.exchange import Intent

_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Departures:
    """A line for each start that is about to leave: written, but not brought to the disk.

    What a process has written outlives its death, not that of the machine. So as long as the machine has not been started
    anew, a start without a line never left, and need not be cleared up; after that, where no boot id tells, or without
    the file, each counts as one that may have.

    Parameters
    ----------
    path
        Of the file; there while a run is written and after a kill.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
        self._file = -1

    def unsent(self, intents: Iterable[Intent]) -> list[Intent]:
        """Those of some intents whose start, in this life or an earlier one, certainly never left."""
        unseen = {_line(each): each for each in intents}
        if not unseen or not self._path.exists():
            return []
        with self._path.open() as lines:
            if not self._boot or next(lines, "").strip() != self._boot:
                return []
            for line in lines:
                unseen.pop(line.strip(), None)
        return list(unseen.values())

    def begin(self, still_open: Iterable[Intent]) -> None:
        """Write from now on; of earlier lives only what is still open is kept."""
        draft = self._path.with_suffix(".left-new")
        draft.unlink(missing_ok=True)
        self._file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        os.write(self._file, "\n".join([self._boot, *map(_line, still_open)]).encode())
        os.fsync(self._file)
        draft.rename(self._path)

    def note(self, intent: Intent) -> None:
        """A start leaves now."""
        os.write(self._file, f"\n{_line(intent)}".encode())  # a line cut short by a full disk spoils no other

    def end(self) -> None:
        """Write no more; without the file, what is still open counts as having left."""
        os.close(self._file)
        self._path.unlink()


def _line(intent: Intent) -> str:
    return f"{intent.session} {intent.sends}"
