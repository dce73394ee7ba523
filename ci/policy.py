"""The policy: reads and checks `policy.toml`, the one place of every threshold."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:  # the same parser, as a package
    import tomli as tomllib

PATH = Path(__file__).with_name("policy.toml")
DEVICES = ("cpu", "cuda")


class PolicyError(ValueError):
    """A policy that cannot be used: the key, what was expected and what was found. Exit code 3."""


@dataclass(frozen=True)
class KernelClass:
    """Thresholds for kernels of one device and length; units and reasons stand in `policy.toml`."""

    name: str
    device: str
    up_to_seconds: float
    relevant_change: float
    process_noise: float
    first_look: int
    look_every: int
    max_blocks: int
    budget_seconds: float

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of blocks after which is looked; the last is the most that are taken."""
        return (*range(self.first_look, self.max_blocks, self.look_every), self.max_blocks)


@dataclass(frozen=True)
class History:
    """Thresholds of change points in a history; units and reasons stand in `policy.toml`."""

    false_alarms: float
    orders: int
    least_t: float
    drift_odds: float
    relevant_change: float
    short_step: float
    short_deviations: float
    process_noise: float
    confidence: float
    lone_deviations: float


@dataclass(frozen=True)
class Policy:
    """All thresholds; units and reasons stand in `policy.toml`."""

    confidence: float
    power: float
    false_discovery_rate: float
    trimmed_share: float
    max_discarded_share: float
    clock_tolerance: float
    power_capped_share: float
    machine_drift: float
    classes: tuple[KernelClass, ...]
    history: History

    def longer(self, times: int) -> Policy:
        """So many times the most blocks and the budget of every class, and a single look at the end."""
        classes = (
            replace(
                one,
                first_look=times * one.max_blocks,
                max_blocks=times * one.max_blocks,
                budget_seconds=times * one.budget_seconds,
            )
            for one in self.classes
        )
        return replace(self, classes=tuple(classes))

    def class_of(self, device: str, seconds: float) -> KernelClass:
        """The class of a kernel.

        Args:
            device: `cpu` or `cuda`. seconds: of one launch of base.
        Raises:
            ValueError: for another device.
        """
        for kernel_class in self.classes:
            if kernel_class.device == device and seconds <= kernel_class.up_to_seconds:
                return kernel_class
        raise ValueError(f"device: expected one of {', '.join(DEVICES)}, got {device!r}")


def load(path: Path = PATH) -> Policy:
    """Reads a policy.

    Raises:
        PolicyError: when the file cannot be read, or a key is missing, unknown or out of bounds.
    """
    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise PolicyError(f"{path}: {error}") from error
    try:
        return parse(document)
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from None


# Bounds of the numbers: (least, most); both are excluded for rates and shares, where 0 and 1 mean something else.
_SHARE = (0.0, 1.0)


def parse(document: Mapping[str, Any]) -> Policy:
    """A policy from the document of a TOML file.

    Raises:
        PolicyError: as `load`.
    """
    names = [one.name for one in fields(Policy) if one.name not in ("classes", "history")]
    _keys(document, [*names, "kernel_class", "history"], "")
    numbers = {name: _number(document, name, *_SHARE) for name in names}
    if not numbers["confidence"] > 0.5:
        raise PolicyError(f"confidence: expected above 0.5, got {numbers['confidence']}")
    if not numbers["trimmed_share"] < 0.5:
        raise PolicyError(f"trimmed_share: expected below 0.5, got {numbers['trimmed_share']}")
    tables = document["kernel_class"]
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise PolicyError(f"kernel_class: expected tables, got {tables!r}")
    classes = tuple(_class(table, f"kernel_class[{number}].") for number, table in enumerate(tables))
    for device in DEVICES:
        limits = [one.up_to_seconds for one in classes if one.device == device]
        if not limits or limits[-1] != float("inf") or any(a >= b for a, b in itertools.pairwise(limits)):
            raise PolicyError(
                f"kernel_class: expected rising up_to_seconds that end with inf for {device}, got {limits}"
            )
    return Policy(**numbers, classes=classes, history=_history(document["history"]))


def _history(table: Any) -> History:
    if not isinstance(table, dict):
        raise PolicyError(f"history: expected a table, got {table!r}")
    _keys(table, [one.name for one in fields(History)], "history.")
    shares = ("false_alarms", "relevant_change", "short_step", "process_noise", "confidence")
    positive = ("least_t", "drift_odds", "short_deviations", "lone_deviations")
    return History(
        orders=_count(table, "orders", "history."),
        **{name: _number(table, name, *_SHARE, "history.") for name in shares},
        **{name: _number(table, name, 0.0, float("inf"), "history.") for name in positive},
    )


def _class(table: Mapping[str, Any], where: str) -> KernelClass:
    _keys(table, [one.name for one in fields(KernelClass)], where)
    name, device = table["name"], table["device"]
    if not isinstance(name, str):
        raise PolicyError(f"{where}name: expected a text, got {name!r}")
    if device not in DEVICES:
        raise PolicyError(f"{where}device: expected one of {', '.join(DEVICES)}, got {device!r}")
    counts = {key: _count(table, key, where) for key in ("first_look", "look_every", "max_blocks")}
    # Five degrees of freedom would need seven blocks; three blocks are the fewest that have one at all.
    if counts["first_look"] < 4 or counts["max_blocks"] < counts["first_look"]:
        raise PolicyError(
            f"{where}first_look: expected 4 to max_blocks ({counts['max_blocks']}), got {counts['first_look']}"
        )
    infinity = float("inf")
    return KernelClass(
        name=name,
        device=device,
        first_look=counts["first_look"],
        look_every=counts["look_every"],
        max_blocks=counts["max_blocks"],
        up_to_seconds=_number(table, "up_to_seconds", 0.0, infinity, where, include_most=True),
        relevant_change=_number(table, "relevant_change", *_SHARE, where),
        process_noise=_number(table, "process_noise", *_SHARE, where),
        budget_seconds=_number(table, "budget_seconds", 0.0, infinity, where),
    )


def _keys(table: Mapping[str, Any], expected: list[str], where: str) -> None:
    for key in expected:
        if key not in table:
            raise PolicyError(f"{where}{key}: expected a value, got none")
    for key in table:
        if key not in expected:
            raise PolicyError(f"{where}{key}: expected one of {', '.join(expected)}, got an unknown key")


def _number(
    table: Mapping[str, Any], key: str, least: float, most: float, where: str = "", include_most: bool = False
) -> float:
    value = table[key]
    inside = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not inside or not (least < value < most or (include_most and value == most)):
        raise PolicyError(f"{where}{key}: expected a number between {least:g} and {most:g}, got {value!r}")
    return float(value)


def _count(table: Mapping[str, Any], key: str, where: str) -> int:
    value = table[key]
    if type(value) is not int or value < 1:
        raise PolicyError(f"{where}{key}: expected a whole number, at least 1, got {value!r}")
    return value
