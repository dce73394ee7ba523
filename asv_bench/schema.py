"""What a valid record is: one rule for each key, and rules between keys. Readers and writers of stores share it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from asv_bench.cases import OPS, PROBLEM_FIELDS, Problem

Rule = tuple[str, Callable[[Any], bool]]  # what is expected, in words, and whether a value is that


def _is_number(value: Any, low: float = -math.inf) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value >= low


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_time(value: Any) -> bool:
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except (TypeError, ValueError):
        return False


def _is_ceiling(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("source"), str):
        return False
    return all(_is_number(value.get(key)) and value[key] > 0 for key in ("flops", "bytes_per_second"))


def _or_null(rule: Rule) -> Rule:
    return f"{rule[0]} or null", lambda value: value is None or rule[1](value)


_TEXT: Rule = ("a text", lambda value: isinstance(value, str) and value != "")
_POSITIVE: Rule = ("a number > 0", lambda value: _is_number(value) and value > 0)
_COUNT: Rule = ("an int >= 0", _is_count)
_BOOL: Rule = ("true or false", lambda value: type(value) is bool)

# Keys of a record, in order, each with its rule. The fields of a problem have theirs in `Problem`, which checks them
# after these; here stands what it takes for granted.
RULES: dict[str, Rule] = {
    **dict.fromkeys(PROBLEM_FIELDS, ("anything", lambda value: True)),
    "op": (f"one of {', '.join(OPS)}", lambda value: value in OPS),
    "features": _TEXT,
    "valid_fraction": _or_null(("a share from 0 to 1", lambda value: _is_number(value, 0) and value <= 1)),
    "implementation": _TEXT,
    "backend": _or_null(("a text", lambda value: isinstance(value, str))),
    "seconds_median": _or_null(_POSITIVE),
    "seconds_low": _or_null(_POSITIVE),
    "seconds_high": _or_null(_POSITIVE),
    "cycles_median": _or_null(_POSITIVE),
    "samples": _COUNT,
    "discarded": (
        "an object of counts",
        lambda value: isinstance(value, dict) and all(_is_count(count) for count in value.values()),
    ),
    "power_capped": _or_null(_BOOL),
    "flops": _COUNT,
    "bytes": _COUNT,
    "kv_bytes": _COUNT,
    "peak_bytes": _or_null(_COUNT),
    "tflops": _or_null(_POSITIVE),
    "max_abs_err": _or_null(("a number >= 0", lambda value: _is_number(value, 0))),
    "error": _or_null(_TEXT),
    "commit": _TEXT,
    "dirty": _or_null(_BOOL),
    "machine": _TEXT,
    "gpu": _or_null(_TEXT),
    "protocol": _TEXT,
    "timestamp": ("a time with its zone, as 2026-01-31T12:00:00+00:00", _is_time),
    "telemetry": ("an object", lambda value: isinstance(value, dict)),
}

# A control has these keys of a record.
_CONTROL = {key: RULES[key] for key in ("seconds_median", "seconds_low", "seconds_high", "cycles_median", "error")}


def _is_control(value: Any) -> bool:
    if not isinstance(value, dict) or not value.keys() >= _CONTROL.keys() or _broken(_CONTROL, value):
        return False
    low, median, high = (value[key] for key in ("seconds_low", "seconds_median", "seconds_high"))
    if value["error"] is not None:
        return low is median is high is None
    return None not in (low, median, high) and low <= median <= high


def _is_around(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"before", "after"}:
        return False
    moments = [moment for moment in value.values() if moment is not None]
    return all(isinstance(moment, dict) and all(map(_is_control, moment.values())) for moment in moments)


# Keys of telemetry that are read again; the others are for readers, and may hold anything.
_TELEMETRY: dict[str, Rule] = {
    "run": _TEXT,
    "group": _or_null(_TEXT),
    "torch": _TEXT,
    "cpu": ("a text", lambda value: isinstance(value, str)),
    "gpu_uuid": _or_null(_TEXT),
    "controls": ("before and after, each the numbers of controls by name or null", _is_around),
    "ceiling": _or_null(("flops and bytes_per_second, numbers > 0, and source", _is_ceiling)),
}


def parse(text: str) -> Any:
    """JSON without what cannot be counted with or written again: NaN, infinities (1e999 too), integers beyond 64 bits,
    half of a surrogate pair.

    Raises:
        ValueError: saying what is wrong.
    """

    def finite(literal: str) -> float:
        if not math.isfinite(float(literal)):
            raise ValueError(f"expected finite numbers, got {literal}")
        return float(literal)

    def counted(literal: str) -> int:
        if len(literal) > 20 or abs(int(literal)) >= 2**63:
            raise ValueError(f"expected integers of 64 bits, got {_short(literal)}")
        return int(literal)

    try:
        value = json.loads(text, parse_float=finite, parse_int=counted, parse_constant=finite)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    return value


def fault(record: Any) -> str | None:
    """What makes a record invalid, as `key: expected ..., got ...`; None for a valid one."""
    if not isinstance(record, dict):
        return f"expected an object, got {_short(record)}"
    missing = [key for key in RULES if key not in record]
    if missing:
        return f"lacks {', '.join(missing)}"
    telemetry = record["telemetry"] if isinstance(record["telemetry"], dict) else {}
    noted = {key: rule for key, rule in _TELEMETRY.items() if key in telemetry}
    return _broken(RULES, record) or _broken(noted, telemetry, "telemetry.") or _between(record) or _no_problem(record)


def identity_fault(line: Mapping[str, Any]) -> str | None:
    """As `fault`, of the keys that a line of samples repeats."""
    names = ("op", "features", "implementation", "commit", "machine", "protocol", "timestamp")
    rules = {key: RULES[key] for key in names}
    return _broken(rules, line) or _no_problem(line)


def sample_fault(line: Mapping[str, Any]) -> str | None:
    """What makes the seconds of a line of samples invalid; None for valid ones."""
    bursts = line.get("seconds")
    if not isinstance(bursts, list) or not bursts or not all(isinstance(burst, list) for burst in bursts):
        return f"seconds: expected a list of bursts, each a list of numbers, got {_short(bursts)}"
    values = [value for burst in bursts for value in burst]
    wrong = [value for value in values if not _POSITIVE[1](value)]
    return f"seconds: expected numbers > 0, got {_short(wrong[0])}" if wrong else None


def _broken(rules: Mapping[str, Rule], values: Mapping[str, Any], prefix: str = "") -> str | None:
    for key, (expected, holds) in rules.items():
        if not holds(values[key]):
            return f"{prefix}{key}: expected {expected}, got {_short(values[key])}"
    return None


def _between(record: Mapping[str, Any]) -> str | None:
    """Rules between keys: a number with its interval and samples, or the reason why there is none, and never both."""
    median, error = record["seconds_median"], record["error"]
    if median is not None and error is not None:
        return f"error: expected null beside seconds_median {median}, got {_short(error)}"
    if median is None and error is None:
        return "error: expected the reason why seconds_median is null, got null"
    for key in ("seconds_low", "seconds_high", "tflops"):
        if (record[key] is None) != (median is None):
            expected = "null without a median" if median is None else "a number beside the median"
            return f"{key}: expected {expected}, got {_short(record[key])}"
    if median is None:
        return None
    if not record["seconds_low"] <= median:
        return f"seconds_low: expected at most the median {median}, got {record['seconds_low']}"
    if not median <= record["seconds_high"]:
        return f"seconds_high: expected at least the median {median}, got {record['seconds_high']}"
    return None if record["samples"] else "samples: expected at least 1 beside a median, got 0"


def _no_problem(record: Mapping[str, Any]) -> str | None:
    try:
        Problem(**{name: record[name] for name in PROBLEM_FIELDS})
    except ValueError as error:
        return str(error)
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
