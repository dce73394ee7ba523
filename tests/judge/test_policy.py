"""The policy: complete, in order, and clear about what is wrong with another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ci import policy


def document() -> dict[str, Any]:
    return policy.tomllib.loads(policy.PATH.read_text())


def test_every_number_has_a_comment() -> None:
    """On the line above, or in the list before its table."""
    text = policy.PATH.read_text()
    lines = text.split("[", maxsplit=1)[0].splitlines()
    for number, line in enumerate(lines):
        if "=" in line and not line.startswith("#") and line.split()[0] in document():
            assert lines[number - 1].startswith("# "), f"{line} lacks unit and reason"
    for table in (document()["kernel_class"][0], document()["history"]):
        for name in table.keys() - {"name", "device", "up_to_seconds"}:
            assert f"\n#   {name} " in text, f"{name} lacks unit and reason"


@pytest.mark.parametrize(
    ("device", "seconds", "name"),
    [
        ("cuda", 1e-5, "below 0.05 ms"),
        ("cuda", 1e-4, "0.05 to 0.2 ms"),
        ("cuda", 3.6e-3, "0.2 to 10 ms"),
        ("cuda", 0.04, "10 to 200 ms"),
        ("cuda", 2, "above 200 ms"),
        ("cpu", 1, "cpu"),
    ],
)
def test_class_by_device_and_time(device: str, seconds: float, name: str) -> None:
    assert policy.load().class_of(device, seconds).name == name


def test_looks_end_with_the_most_blocks() -> None:
    assert policy.load().class_of("cuda", 3.6e-3).looks == (8, 12, 16, 20, 24)
    with pytest.raises(ValueError, match="device: expected one of cpu, cuda, got 'tpu'"):
        policy.load().class_of("tpu", 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"confidence": 1.5}, "confidence: expected a number between 0 and 1, got 1.5"),
        ({"confidence": 0.4}, "confidence: expected above 0.5, got 0.4"),
        ({"trimmed_share": 0.6}, "trimmed_share: expected below 0.5, got 0.6"),
        ({"power": True}, "power: expected a number between 0 and 1, got True"),
        ({"confidnce": 0.9}, "confidnce: expected one of confidence, .*, got an unknown key"),
        ({"kernel_class": 3}, "kernel_class: expected tables, got 3"),
        ({"kernel_class": []}, "kernel_class: expected rising up_to_seconds that end with inf for cpu, got"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(policy.PolicyError, match=message):
        policy.parse(document() | change)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("device", "tpu", r"kernel_class\[0\].device: expected one of cpu, cuda, got 'tpu'"),
        ("name", 3, r"kernel_class\[0\].name: expected a text, got 3"),
        ("look_every", 2.5, r"look_every: expected a whole number, at least 1, got 2.5"),
        ("first_look", 99, r"first_look: expected 4 to max_blocks \(32\), got 99"),
        ("up_to_seconds", 1.0, "expected rising up_to_seconds"),
        ("process_noise", "x", "process_noise: expected a number between 0 and 1, got 'x'"),
    ],
)
def test_what_is_wrong_in_a_class_is_named(key: str, value: Any, message: str) -> None:
    changed = document()
    changed["kernel_class"][0][key] = value
    with pytest.raises(policy.PolicyError, match=message):
        policy.parse(changed)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("orders", 0, r"history.orders: expected a whole number, at least 1, got 0"),
        ("false_alarms", 1, r"history.false_alarms: expected a number between 0 and 1, got 1"),
        ("least_t", -1, r"history.least_t: expected a number between 0 and inf, got -1"),
        ("window", 5, r"history.window: expected one of false_alarms, .*, got an unknown key"),
    ],
)
def test_what_is_wrong_in_the_history_is_named(key: str, value: Any, message: str) -> None:
    changed = document()
    changed["history"][key] = value
    with pytest.raises(policy.PolicyError, match=message):
        policy.parse(changed)
    changed["history"] = 3
    with pytest.raises(policy.PolicyError, match="history: expected a table, got 3"):
        policy.parse(changed)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    text = policy.PATH.read_text().replace("power = ", "# power = ")
    (tmp_path / "policy.toml").write_text(text)
    with pytest.raises(policy.PolicyError, match=r"policy.toml: power: expected a value, got none"):
        policy.load(tmp_path / "policy.toml")
    with pytest.raises(policy.PolicyError, match="No such file"):
        policy.load(tmp_path / "none.toml")
    (tmp_path / "policy.toml").write_text("power =")
    with pytest.raises(policy.PolicyError, match="Invalid value"):
        policy.load(tmp_path / "policy.toml")


def test_a_longer_policy_looks_once_at_the_end() -> None:
    loaded = policy.load()
    for ours, longer in zip(loaded.classes, loaded.longer(10).classes, strict=True):
        assert longer.looks == (10 * ours.max_blocks,) and longer.budget_seconds == 10 * ours.budget_seconds
        assert longer.process_noise == ours.process_noise
