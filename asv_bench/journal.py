"""The journal: which combination is being tried, so that one that ends the whole process is not tried for ever."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from asv_bench import record

# A process may end for another reason while a combination is tried; twice in the same one is no accident.
ATTEMPTS = 2


class Journal:
    """A file that exists while a combination is tried for the first time in a process.

    Args:
        folder: of the records. What an earlier process left there is read once.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".sweep.running"
        self._left: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            self._left = dict(json.loads(self._path.read_text(encoding="utf-8")))

    def ended_process(self, key: Sequence[Any]) -> bool:
        """Whether ATTEMPTS processes ended in this combination, one after the other."""
        return self._attempts(key) >= ATTEMPTS

    @contextlib.contextmanager
    def running(self, key: Sequence[Any]) -> Iterator[None]:
        """Notes the combination while it is tried; whatever Python can catch counts as no end of the process."""
        content = {"key": list(key), "attempts": self._attempts(key) + 1}
        record.write_atomically(self._path, json.dumps(content))
        try:
            yield
        finally:
            self._path.unlink(missing_ok=True)

    def _attempts(self, key: Sequence[Any]) -> int:
        return int(self._left.get("attempts", 0)) if self._left.get("key") == list(key) else 0
