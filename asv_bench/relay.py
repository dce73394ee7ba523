"""A side's end of the baton: what `ci/baton.py` asks of the process that holds a build. Its docstring has the words."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any


class Relay:
    """The connection to the judge that FLASH_DSA_BATON names.

    Args:
        path: of the judge's socket.
    """

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("r", encoding="utf-8")

    def say(self, event: str, **content: Any) -> None:
        """Tells the judge something."""
        self._socket.sendall(json.dumps({"event": event, **content}, allow_nan=False).encode() + b"\n")

    def hear(self) -> dict[str, Any]:
        """What to do next. Waits for as long as the judge lives.

        Raises:
            EOFError: when the judge is gone.
        """
        line = self._lines.readline()
        if not line:
            raise EOFError("the judge has gone")
        order: dict[str, Any] = json.loads(line)
        return order

    def close(self) -> None:
        """Ends the connection."""
        self._lines.close()
        self._socket.close()


def relay() -> Relay | None:
    """The judge of this process, or None when nobody compares it with another."""
    path = os.environ.get("FLASH_DSA_BATON")
    return Relay(Path(path)) if path else None
