"""Why there is no number. Every reason in a record begins with one of these kinds, a closed set."""

from __future__ import annotations

from typing import ClassVar


class NoNumber(Exception):
    """A reason that the instrument itself gives; `kind` is its word in a record's `error`."""

    kind: ClassVar[str]


class Unavailable(NoNumber):
    """The implementation cannot be imported or has no device here; tried again next time."""

    kind = "unavailable"


class Unsupported(NoNumber):
    """The implementation refuses this problem here; the message is the reason."""

    kind = "unsupported"


class NotInThisVersion(Unsupported):
    """The library is older than the op."""


class WrongAnswer(NoNumber):
    """What was timed computed something else."""

    kind = "wrong_answer"


class InvalidMeasurement(NoNumber):
    """Samples were taken and none could be kept, or the inputs did not stay what they were."""

    kind = "invalid_measurement"


class Crashed(NoNumber):
    """Ended the process in two runs; left out since."""

    kind = "crashed"


class DeviceLost(NoNumber):
    """The device answers no more after a failure; only a new process can go on.

    Args:
        name: what failed. reason: of what it raised.
    """

    kind = "device_lost"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)  # both, so that it can be sent to another process
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


def reason_of(error: BaseException) -> str:
    """An exception as a reason: its type and the first lines of its message, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:3])
    text = text if len(text) <= 300 else text[:297] + "..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def error_of(error: BaseException) -> str:
    """An exception as a record's `error`: `kind: reason`."""
    if isinstance(error, NoNumber):
        return f"{error.kind}: {error}"
    if isinstance(error, NotImplementedError):
        return f"unsupported: {reason_of(error)}"
    if type(error).__name__ == "OutOfMemoryError":  # torch's, without importing torch
        return f"out_of_memory: {reason_of(error)}"
    return f"failed: {reason_of(error)}"
