"""The baton: two live processes, base and head, of which one at a time may use the machine.

The judge holds a socket per side and speaks first after each message, so no burst overlaps another. Messages are JSON,
one a line. A side that says nothing for too long is ended; one that ends by itself has crashed: nothing waits for ever.

| `event` of a side | means |
|---|---|
| `hello` | the process is up: `side`, `build` (folder and library's hash), `cases`, facts of the machine |
| `ready` | `case` can be measured, by target `backend` |
| `warm` | one launch of `case` takes `seconds` |
| `controls` | `controls` by name, each with `seconds_median`, `seconds_low`, `seconds_high`, `cycles_median`, `error` |
| `burst` | one burst of `case`: `seconds`, `cycles` (or null), `discarded`, `power_capped` |
| `verdict` | the answer to `done`: `error` (or null) of what was timed, and the `benchmark` of pytest-benchmark |
| `failed` | `case` cannot be measured, for `reason` and `detail`; `absent` where this build has no such call |
| `bye` | no case is left |

| `do` of the judge | means |
|---|---|
| `warm` | launch twice and say how long one takes |
| `adapt` | plan bursts for launches of `seconds`; nothing is answered |
| `burst` | take one, number `block` of `order` AB or BA |
| `controls` | measure the controls |
| `done` | enough of this case |
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Message = dict[str, Any]


class SideEnded(Exception):
    """A side's process ended or fell silent.

    Args:
        side: `base` or `head`. reason: how.
    """

    def __init__(self, side: str, reason: str) -> None:
        super().__init__(f"{side}: {reason}")
        self.side = side
        self.reason = reason


@dataclass
class Side:
    """One of the two processes.

    Args:
        name: `base` or `head`. process: it, leading a process group of its own.
    """

    name: str
    process: subprocess.Popen[bytes]
    hello: Message = field(default_factory=dict)
    _connection: socket.socket | None = None
    _pending: bytes = b""

    def send(self, do: str, **content: Any) -> None:
        """Says what to do next.

        Raises:
            SideEnded: when nobody listens.
        """
        assert self._connection is not None
        try:
            self._connection.sendall(json.dumps({"do": do, **content}).encode() + b"\n")
        except OSError as error:
            raise SideEnded(self.name, self.how_it_ended()) from error

    def receive(self, seconds: float) -> Message:
        """The next message.

        Args:
            seconds: to wait at most.
        Raises:
            SideEnded: when none comes, or none that can be read.
        """
        end = time.monotonic() + seconds
        while b"\n" not in self._pending:
            self._pending += self._more(max(end - time.monotonic(), 0.001), seconds)
        line, _, self._pending = self._pending.partition(b"\n")
        try:
            message = json.loads(line)
            message["event"]
        except (ValueError, KeyError, TypeError) as error:
            self.end()
            raise SideEnded(self.name, f"said something else than a message: {line[:80]!r}") from error
        return dict(message)

    def _more(self, seconds: float, limit: float) -> bytes:
        assert self._connection is not None
        self._connection.settimeout(seconds)
        try:
            more = self._connection.recv(1 << 16)
        except TimeoutError:
            self.end()
            raise SideEnded(self.name, f"said nothing for {limit:.0f} s and was ended") from None
        except OSError as error:
            raise SideEnded(self.name, self.how_it_ended()) from error
        if not more:
            raise SideEnded(self.name, self.how_it_ended())
        return more

    def end(self) -> None:
        """Ends the process and everything it started."""
        if self._connection:
            self._connection.close()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def how_it_ended(self) -> str:
        """In words, once it has."""
        try:
            code = self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.end()
            return "closed its connection and went on"
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exited with {code}"


class Baton:
    """The judge's end of both connections.

    Args:
        path: of the socket; the system takes about 100 characters.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(2)

    def __enter__(self) -> Baton:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.path.unlink(missing_ok=True)

    def greet(self, sides: Sequence[Side], seconds: float) -> None:
        """Waits until every side has said `hello`.

        Raises:
            SideEnded: when one ends first, or does not say it in time.
        """
        waiting = {side.name: side for side in sides}
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while waiting:
                if selector.select(0.2):
                    self._accept(waiting)
                    continue
                for side in waiting.values():
                    if side.process.poll() is not None:
                        raise SideEnded(side.name, side.how_it_ended())
                    if time.monotonic() > end:
                        side.end()
                        raise SideEnded(side.name, f"did not start within {seconds:.0f} s")

    def _accept(self, waiting: dict[str, Side]) -> None:
        connection, _ = self._listener.accept()
        connection.settimeout(10)
        pending = b""
        with contextlib.suppress(OSError):
            while b"\n" not in pending and (more := connection.recv(1 << 16)):
                pending += more
        line, _, pending = pending.partition(b"\n")
        hello = {}
        with contextlib.suppress(ValueError):
            hello = dict(json.loads(line))
        side = waiting.pop(str(hello.get("side")), None)
        if side is None:
            connection.close()  # nobody that was started, or one that ended in its first words: its process shows it
            return
        side.hello, side._connection, side._pending = hello, connection, pending
