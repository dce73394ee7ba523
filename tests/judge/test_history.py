"""asv's results trees: what is read from ours and from foreign ones, and what is an error."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ci import history
from ci.results import Unreadable

COLUMNS = ["result", "params", "version", "started_at", "duration", "stats_ci_99_a", "stats_ci_99_b"]


def write(root: Path, commit: str, date: int, results: dict[str, Any], machine: str = "box", env: str = "py") -> Path:
    path = root / machine / f"{commit[:8]}-{env}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"commit_hash": commit, "date": date, "env_name": env, "result_columns": COLUMNS, "results": results}
    path.write_text(json.dumps(content))  # NaN literally, as asv does
    return path


def test_series_are_ordered_by_date_with_gaps_where_nothing_is(tmp_path: Path) -> None:
    row = [[2.0, math.nan], [["1", "2"]], "v1", 0, 1.0, [1.99, None], [2.01, None]]
    write(tmp_path, "b" * 40, 2000, {"t": row})
    write(tmp_path, "a" * 40, 3000, {"t": [[3.0, 4.0], [["1", "2"]], "v1"]})
    write(tmp_path, "c" * 40, 1000, {"t": [None, [["1", "2"]], "v1"], "scalar": [[5.0], [], "v1"]})
    (tmp_path / "box" / "machine.json").write_text("{}")
    (tmp_path / "box" / "x.telemetry.jsonl").write_text("{}")
    found = {(one.benchmark, one.params): one for one in history.read_tree(tmp_path)}
    first = found["t", ("1",)]
    assert first.commits == ("c" * 40, "b" * 40, "a" * 40) and (first.machine, first.environment) == ("box", "py")
    assert math.isnan(first.values[0]) and list(first.values[1:]) == [2.0, 3.0]
    assert first.noise[1] == pytest.approx(0.02 / 2 / 2.576 / 2) and first.noise[2] == 0
    assert math.isnan(found["t", ("2",)].values[1]) and found["t", ("2",)].values[2] == 4.0
    assert found["scalar", ()].values[0] == 5.0


def test_another_version_environment_or_machine_is_another_series(tmp_path: Path) -> None:
    write(tmp_path, "a" * 40, 1, {"t": [[1.0], [], "v1"]})
    write(tmp_path, "b" * 40, 2, {"t": [[2.0], [], "v2"]})
    write(tmp_path, "b" * 40, 2, {"t": [[2.0], [], "v2"]}, env="other")
    write(tmp_path, "b" * 40, 2, {"t": [[2.0], [], "v2"]}, machine="second")
    assert len(history.read_tree(tmp_path)) == 4


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"result_columns": []}',
        '{"commit_hash": "a", "date": "x", "result_columns": [], "results": {}}',
    ],
)
def test_a_damaged_file_is_named(content: str, tmp_path: Path) -> None:
    write(tmp_path, "a" * 40, 1, {"t": [[1.0], [], "v1"]})
    (tmp_path / "box" / "dead.json").write_text(content)
    with pytest.raises(Unreadable, match=r"dead\.json"):
        history.read_tree(tmp_path)


def test_values_that_do_not_fit_the_parameters_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a" * 40, 1, {"t": [[1.0, 2.0], [["1", "2", "3"]], "v1"]})
    with pytest.raises(Unreadable, match=rf"{path.name}: ValueError: t: 2 values of 3 combinations"):
        history.read_tree(tmp_path)


def test_nothing_is_no_history(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="expected asv's results"):
        history.read_tree(tmp_path)


def test_our_own_history_is_read() -> None:
    found = history.read_tree(Path(__file__).resolve().parents[2] / "asv_bench" / "results")
    ours = [one for one in found if one.benchmark == "sparse_prefill.SparsePrefill.track_seconds"]
    assert {one.machine for one in ours} >= {"h100-sxm"} and any((one.values > 0).any() for one in ours)
