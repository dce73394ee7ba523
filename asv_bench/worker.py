"""A process that measures for the asv suites: what ends it, or takes its device down, costs only what it measured."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from types import TracebackType
from typing import Any

from asv_bench.errors import Crashed, DeviceLost

# Forked: asv's process has importers that keep the working tree's library away from another commit's, and a new
# interpreter would lack them. No pool of concurrent.futures: its process outlives a killed parent, with the GPU's
# memory; this one reads the end of the pipe.
_CONTEXT = multiprocessing.get_context("fork")


class Worker:
    """One process at a time; started when first needed, and anew after a loss.

    The caller's own process must not have touched the GPU: a fork of it could not use one.
    """

    def __init__(self) -> None:
        self._process: ForkProcess | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What the function of a module returns there.

        Raises:
            DeviceLost: as the function did. Crashed: it ended the process. RuntimeError: it raised; the traceback.
        """
        if self._pipe is None:
            self._start()
        assert self._pipe is not None
        try:
            self._pipe.send((function, arguments))
            kind, answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            status = self._end()
            raise Crashed(f"ended the process, exit status {status}") from None
        if kind == "lost":
            self._end()
            raise answer
        if kind == "raised":
            raise RuntimeError(answer)
        return answer

    def _start(self) -> None:
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_serve, args=(theirs, self._pipe))
        self._process.start()
        theirs.close()

    def _end(self) -> int | None:
        """The process sees the pipe end, and ends; its memory on the device is free then."""
        process, pipe, self._process, self._pipe = self._process, self._pipe, None, None
        if pipe is None or process is None:
            return None
        pipe.close()
        process.join()
        return process.exitcode


def _serve(pipe: Connection, parents: Connection) -> None:
    parents.close()  # inherited; while it is open here, the parent's end of the pipe is not seen
    while True:
        try:
            function, arguments = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            pipe.send(("returned", function(*arguments)))
        except DeviceLost as lost:
            pipe.send(("lost", lost))
        except Exception:
            pipe.send(("raised", traceback.format_exc()))
