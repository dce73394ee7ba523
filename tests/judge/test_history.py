"""asv's results trees: what is read from ours and from foreign ones, and what is an error."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tree import project_files

from ci import __main__ as command
from ci import commits, history
from ci.history import State
from ci.results import Unreadable

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ["result", "params", "version", "started_at", "duration", "stats_ci_99_a", "stats_ci_99_b"]


def write(root: Path, commit: str, date: int, results: dict[str, Any], machine: str = "box", env: str = "py") -> Path:
    path = root / machine / f"{commit[:8]}-{env}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"version": 2, "commit_hash": commit, "date": date, "env_name": env}
    content |= {"result_columns": COLUMNS, "results": results}
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
    assert first.noise[1] == pytest.approx(0.02 / 2 / 2.576 / 2) and math.isnan(first.noise[2])
    assert math.isnan(found["t", ("2",)].values[1]) and found["t", ("2",)].values[2] == 4.0
    assert found["scalar", ()].values[0] == 5.0
    other = found["t", ("2",)]
    assert (first.failed, first.not_applicable, other.failed, other.not_applicable) == ((0,), (), (0,), (1,))
    assert found["scalar", ()].failed == () == found["scalar", ()].not_applicable  # not run is neither


def test_commits_stand_as_git_has_them_and_others_among_them_by_date(tmp_path: Path) -> None:
    """A rebased commit keeps its author's date, which is the one in asv's files."""
    repository = tmp_path / "repository"
    repository.mkdir()

    def git(*arguments: str, **environment: str) -> str:
        who = {f"GIT_{role}_{what}": "x" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
        command = ["git", "-C", str(repository), *arguments]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, env=os.environ | who | environment
        ).stdout

    git("init", "-q")
    written = {"first": 1000, "second": 4000, "rebased": 2000, "last": 5000}
    hashes = {}
    for day, (name, date) in enumerate(written.items()):
        dates = {"GIT_AUTHOR_DATE": f"@{date} +0000", "GIT_COMMITTER_DATE": f"@{9000 + day} +0000"}
        git("commit", "-q", "--allow-empty", "-m", f"{name} of them", **dates)
        hashes[name] = git("rev-parse", "HEAD").strip()
        write(tmp_path / "results", hashes[name], date * 1000, {"t": [[float(date)], [], "v1"]})
    gone = {"before": 500, "between": 3000, "after": 4500}  # of branches that are no more
    for name, date in gone.items():
        hashes[name] = hashlib.sha1(name.encode()).hexdigest()
        write(tmp_path / "results", hashes[name], date * 1000, {"t": [[float(date)], [], "v1"]})
    known = commits.of(repository)
    assert list(known.values()) == [(9000.0 + day, f"{name} of them") for day, name in enumerate(written)]
    (one,) = history.read_tree(tmp_path / "results", known)
    names = {commit: name for name, commit in hashes.items()}
    order = ["before", "first", "between", "second", "rebased", "after", "last"]
    assert [names[commit] for commit in one.commits] == order
    assert list(one.values) == [(written | gone)[name] for name in order]
    (by_date,) = history.read_tree(tmp_path / "results", commits.of(tmp_path / "nowhere"))
    assert [names[commit] for commit in by_date.commits][2:4] == ["rebased", "between"]


def test_a_state_tells_apart_why_there_is_no_value(tmp_path: Path) -> None:
    params = [["1", "2", "3", "4"]]
    row = [[2.0, math.nan, None, math.inf], params, "v1", 0, 1.0, [1.9] + [None] * 3, [2.2] + [None] * 3]
    write(tmp_path, "a" * 40, 5, {"t": row})
    write(tmp_path, "b" * 40, 6, {"other": [[1.0], [], "v1"]})
    found = {one.params: one for one in history.read_tree(tmp_path) if one.benchmark == "t"}
    assert {params: [State(state) for state in one.states] for params, one in found.items()} == {
        ("1",): [State.MEASURED, State.NOT_MEASURED],
        ("2",): [State.NOT_APPLICABLE, State.NOT_MEASURED],
        ("3",): [State.FAILED, State.NOT_MEASURED],
        ("4",): [State.NOT_APPLICABLE, State.NOT_MEASURED],
    }
    detail = found["1",].detail
    assert detail and (detail.version, detail.dates, detail.low[0], detail.high[0]) == ("v1", (5.0, 6.0), 1.9, 2.2)


def test_another_version_environment_or_machine_is_another_series(tmp_path: Path) -> None:
    write(tmp_path, "a" * 40, 1, {"t": [[1.0], [], "v1"]})
    write(tmp_path, "b" * 40, 2, {"t": [[2.0], [], "v2"]})
    write(tmp_path, "b" * 40, 2, {"t": [[2.0], [], "v2"]}, env="other")
    write(tmp_path, "b" * 40, 2, {"t": [[2.0], [], "v2"]}, machine="second")
    assert len(history.read_tree(tmp_path)) == 4


def refuse_to_list(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without permission; a mode does not bind root, as whom tests may run."""
    folder.mkdir(exist_ok=True)
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"result_columns": []}',
        '{"version": 2, "commit_hash": "a", "date": "x", "env_name": "py", "result_columns": [], "results": {}}',
        "[" * 100_000,
        '{"a":' * 100_000,
        "\ud800",
    ],
)
def test_a_damaged_file_is_named(content: str, tmp_path: Path) -> None:
    write(tmp_path, "a" * 40, 1, {"t": [[1.0], [], "v1"]})
    (tmp_path / "box" / "dead.json").write_text(content, errors="surrogatepass")
    with pytest.raises(Unreadable, match=r"dead\.json"):
        history.read_tree(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("commit_hash", None),
        ("commit_hash", 7),
        ("commit_hash", "\ud800"),
        ("env_name", None),
        ("date", math.nan),
        ("date", math.inf),
        ("date", None),
        ("date", True),
        pytest.param("date", 10**400, id="date-large"),
        ("version", 1),
        ("version", 3),
        ("version", None),
        ("result_columns", "result"),
        ("results", [["t", [[1.0], [], "v1"]]]),
        ("results", {"\ud800": [[1.0], [], "v1"]}),
    ],
)
def test_a_file_with_a_key_of_another_type_is_named(key: str, value: Any, tmp_path: Path) -> None:
    path = write(tmp_path, "a" * 40, 1, {"t": [[1.0], [], "v1"]})
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(Unreadable, match=path.name):
        history.read_tree(tmp_path)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([["1.5"], []], "t: result: expected numbers or null, got str"),
        ([[True], []], "t: result: expected numbers or null, got bool"),
        ([[[1.5]], []], "t: result: expected numbers or null, got list"),
        (["7", []], "t: result: expected a list, got str"),
        ([{"7": 1.0}, []], "t: result: expected a list, got dict"),
        ([[10**400], []], "t: result: expected numbers up to"),
        ([[-(10**400)], []], "t: result: expected numbers up to"),
        ([[1.0], "x"], "t: params: expected a list, got str"),
        ([[1.0], ["x"]], "t: params: expected a list, got str"),
        ([[1.0], [[7]]], "t: params: expected a text, got int"),
        ([[1.0], [], 7], "t: version: expected a text, got int"),
        ([[1.0], [], "v", 0, 1.0, "9"], "t: stats_ci_99_a: expected a list, got str"),
        ([[1.0], [], "v", 0, 1.0, ["9"]], "t: stats_ci_99_a: expected numbers or null, got str"),
        ([[1.0], [], "v", 0, 1.0, [1.0, 2.0]], "t: 2 values of 1 combinations"),
        ([1.0] * (len(COLUMNS) + 1), f"t: {len(COLUMNS) + 1} cells of {len(COLUMNS)} columns"),
        ("7", "t: expected a list, got str"),
        (None, "t: expected a list, got NoneType"),
        ([], "KeyError: 'result'"),
    ],
)
def test_a_row_of_another_type_is_named(row: Any, said: str, tmp_path: Path) -> None:
    path = write(tmp_path, "a" * 40, 1, {"t": row})
    with pytest.raises(Unreadable, match=f"{path.name}: .*{re.escape(said)}"):
        history.read_tree(tmp_path)


def test_intervals_may_be_infinite_as_asv_writes_them(tmp_path: Path) -> None:
    write(tmp_path, "a" * 40, 1, {"t": [[1.0], [], "v", 0, 1.0, [-math.inf], [math.inf]]})
    (found,) = history.read_tree(tmp_path)
    assert list(found.values) == [1.0] and math.isnan(found.noise[0])


def test_two_files_of_a_commit_are_refused_with_both_names(tmp_path: Path) -> None:
    first = write(tmp_path, "a" * 40, 1, {"t": [[1.0], [], "v1"]})
    second = first.with_name("copy.json")
    second.write_bytes(first.read_bytes())
    with pytest.raises(Unreadable, match=rf"{second.name}: commit {'a' * 40} .* {first.name}"):
        history.read_tree(tmp_path)


def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    write(tmp_path, "a" * 40, 1, {"t": [[1.0], [], "v1"]})
    pipe = tmp_path / "box" / "pipe.json"
    os.mkfifo(pipe)
    with pytest.raises(Unreadable, match=r"pipe\.json: expected a regular file, got p"):
        history.read_tree(tmp_path)
    pipe.unlink()
    (tmp_path / "box" / "folder.json").mkdir()
    with pytest.raises(Unreadable, match=r"folder\.json: expected a regular file, got d"):
        history.read_tree(tmp_path)


def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a" * 40, 1, {"t": [[1.0], [], "v1"]})
    write(tmp_path, "a" * 40, 1, {"t": [[1.0], [], "v1"]}, machine="shut")
    refuse_to_list(tmp_path / "shut", monkeypatch)
    with pytest.raises(Unreadable, match=r"shut: Permission denied"):
        history.read_tree(tmp_path)
    assert command.main(["judge", str(tmp_path), "--output", str(tmp_path / "alerts.json")]) == 3


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match=r"nowhere: No such file"):
        history.read_tree(tmp_path / "nowhere")


def test_values_that_do_not_fit_the_parameters_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a" * 40, 1, {"t": [[1.0, 2.0], [["1", "2", "3"]], "v1"]})
    with pytest.raises(Unreadable, match=rf"{path.name}: ValueError: t: 2 values of 3 combinations"):
        history.read_tree(tmp_path)


def test_nothing_is_no_history(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="expected asv's results"):
        history.read_tree(tmp_path)


def test_the_command_finds_the_tree_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(tmp_path / "alerts.json")]
    for number in range(3):
        write(tmp_path / "some" / "project" / "results", f"{number}" * 40, number, {"t": [[1.0], [], "v1"]})
    (tmp_path / "some" / "project" / "results" / "benchmarks.json").write_text("{}")
    assert command.main(["judge", str(tmp_path / "some"), *output]) == 0
    write(tmp_path / "some" / "other", "a" * 40, 1, {"t": [[1.0], [], "v1"]})
    (tmp_path / "some" / "other" / "benchmarks.json").write_text("{}")
    assert command.main(["judge", str(tmp_path / "some"), *output]) == 3
    said = capsys.readouterr().err
    assert "expected one results tree" in said and "some/other" in said and "project/results" in said


@pytest.mark.parametrize("given", ["damaged", "nowhere"])
def test_no_alerts_of_an_earlier_run_stay_after_an_error(given: str, tmp_path: Path) -> None:
    write(tmp_path / "damaged", "a" * 40, 1, {"t": [["x"], [], "v1"]})
    output = tmp_path / "alerts.json"
    output.write_text('{"schema": 1, "alerts": []}')
    assert command.main(["judge", str(tmp_path / given), "--output", str(output)]) == 3
    assert not output.exists()


def test_alerts_go_into_a_pipe_as_they_are(tmp_path: Path) -> None:
    write(tmp_path / "results", "a" * 40, 1, {"t": [[1.0], [], "v"]})
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    command_ = [sys.executable, "-m", "ci", "judge", str(tmp_path / "results"), "--output", str(pipe)]
    with subprocess.Popen(command_, cwd=ROOT, stdout=subprocess.DEVNULL) as running:
        assert json.loads(pipe.read_text()) == {"schema": 1, "alerts": []}
    assert running.returncode == 0 and pipe.is_fifo()


def test_git_ignores_the_alerts_of_the_documented_command(tmp_path: Path) -> None:
    ignored = shutil.copy(ROOT / ".gitignore", tmp_path)
    (tmp_path / "alerts.json").write_text("{}")
    assert project_files(tmp_path) == [Path(ignored)]


def test_our_own_history_is_read() -> None:
    found = history.read_tree(Path(__file__).resolve().parents[2] / "asv_bench" / "results")
    ours = [one for one in found if one.benchmark == "sparse_prefill.SparsePrefill.track_seconds"]
    assert {one.machine for one in ours} >= {"h100-sxm"} and any((one.values > 0).any() for one in ours)
