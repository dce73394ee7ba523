"""The journal: what is being launched, so that a combination that ends the whole process is not tried for ever."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asv_bench import record

# A process may end for another reason while a combination runs; twice in the same one is no accident.
ATTEMPTS = 2


class Journal:
    """A file that names the combination whose launches are under way; gone when nothing is.

    Args:
        folder: of the records. What an earlier process left there is read once.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".sweep.running"
        self._left: dict[str, Any] = {}
        self._noted: list[Any] | None = None
        with contextlib.suppress(OSError, ValueError):
            self._left = dict(json.loads(self._path.read_text(encoding="utf-8")))

    def ended_process(self, key: Sequence[Any]) -> bool:
        """Whether ATTEMPTS processes ended in this combination, one after the other."""
        return self._attempts(key) >= ATTEMPTS

    @property
    def left(self) -> Sequence[Any] | None:
        """What an earlier process was launching when it ended."""
        return self._left.get("key")

    def note(self, key: Sequence[Any]) -> None:
        """Says what is launched from now on."""
        if self._noted != list(key):
            content = {"key": list(key), "attempts": self._attempts(key) + 1}
            record.write_atomically(self._path, json.dumps(content))
            self._noted = list(key)

    def close(self) -> None:
        """Nothing is under way any more: whatever Python could catch is no end of the process."""
        self._path.unlink(missing_ok=True)
        self._noted = None

    def _attempts(self, key: Sequence[Any]) -> int:
        return int(self._left.get("attempts", 0)) if self._left.get("key") == list(key) else 0
