"""The branch of records: what is taken onto it, what is refused, and that nothing else of a repository changes."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from judge.test_history import write

from ci import records
from ci.results import Unreadable

IDENTITY = {f"GIT_{who}_{what}": "someone" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


def git(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, **IDENTITY}
    done = subprocess.run(["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with two commits, in which the command runs."""
    git(tmp_path, "init", "--quiet", "--bare", "origin")
    git(tmp_path, "clone", "--quiet", "origin", "clone")
    clone = tmp_path / "clone"
    for text in ("one", "two"):
        (clone / "file").write_text(text)
        git(clone, "add", "file")
        git(clone, "commit", "--quiet", "-m", text)
    git(clone, "push", "--quiet", "origin", "HEAD")
    monkeypatch.chdir(clone)
    return clone


def commits(repository: Path) -> list[str]:
    return git(repository, "rev-list", "--reverse", "HEAD").split()


def measured(root: Path, commit: str, machine: str = "box", value: float = 1.0) -> Path:
    """What asv leaves in a results tree."""
    write(root, commit, 1, {"t": [[value], [], "v"]}, machine)
    (root / machine / f"{commit}.telemetry.jsonl").write_text('{"machine": {}}\n')
    (root / machine / "machine.json").write_text('{"machine": "box"}')
    (root / machine / "bridge.jsonl").write_text('{"values": {}}\n')
    return root


def test_what_is_collected_is_kept_and_restored(repository: Path, tmp_path: Path) -> None:
    first, second = commits(repository)
    tree = measured(measured(repository / "asv_bench" / "results", first), second, value=2.0)
    for commit in (first, second):
        left = ["--machine", "box", "--commit", commit, "--output", str(tmp_path / "left")]
        assert records.main(["collect", *left]) == 0
        assert len(list((tmp_path / "left" / "box").iterdir())) == 4
        assert records.main(["keep", "--from", str(tmp_path), "--push"]) == 0
    assert git(repository, "rev-list", "--count", "origin/records") == "2"
    assert git(repository, "branch", "--show-current") != "records" and git(repository, "stash", "list") == ""
    git(tmp_path, "clone", "--quiet", "origin", "other")
    os.chdir(tmp_path / "other")
    assert records.restore(Path("kept")) == 6
    for path in tree.glob("box/*"):
        assert (Path("kept") / "box" / path.name).read_bytes() == path.read_bytes()


def test_what_was_measured_of_a_range_is_collected(repository: Path, tmp_path: Path) -> None:
    """One of them was not measured, and another has lost its telemetry."""
    for text in ("three", "four"):
        git(repository, "commit", "--quiet", "--allow-empty", "-m", text)
    first, second, third, _ = commits(repository)
    tree = repository / "asv_bench" / "results"
    for commit in (first, second, third):
        measured(tree, commit)
    (tree / "box" / f"{third}.telemetry.jsonl").unlink()
    left = ["--machine", "box", "--output", str(tmp_path / "left")]
    assert records.main(["collect", "--range", f"{first}..HEAD", *left]) == 0
    names = {f"{second[:8]}-py.json", f"{second}.telemetry.jsonl", "machine.json", "bridge.jsonl"}
    assert {path.name for path in (tmp_path / "left" / "box").iterdir()} == names
    for nothing in ("HEAD..HEAD", "--all", f"{third}..HEAD"):
        assert records.main(["collect", f"--range={nothing}", *left]) == 3


def test_what_was_kept_and_not_pushed_is_not_lost(repository: Path, tmp_path: Path) -> None:
    first, second = commits(repository)
    records.keep(measured(tmp_path / "first", first), push=True)
    records.keep(measured(tmp_path / "second", second))
    records.keep(measured(tmp_path / "other", first, "other"))
    assert git(repository, "rev-list", "--count", "records") == "3"
    assert records.restore(tmp_path / "kept") == 10
    git(repository, "push", "--quiet", "--force", "origin", f"{second}:records")
    git(repository, "fetch", "--quiet", "--force", "origin", "+records:refs/remotes/origin/records")
    with pytest.raises(records.RecordsError, match="push or drop those here"):
        records.keep(tmp_path / "other")


def test_without_the_branch_nothing_is_restored(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert records.main(["restore"]) == 0
    assert capsys.readouterr().out == "no branch records yet\n"


def test_pieces_of_a_bridge_are_gathered(repository: Path, tmp_path: Path) -> None:
    """A runner has those of the checkout and its own: it must not undo another's, nor the branch what was tracked."""
    commit, lines = commits(repository)[0], [f'{{"timestamp": {time}, "values": {{}}}}' for time in (9, 10, 11, 12)]
    for number, known in enumerate(([1], [0, 2], [0])):
        left = measured(tmp_path / f"left-{number}", commit)
        (left / "box" / "bridge.jsonl").write_text("".join(f"{lines[one]}\n" for one in known))
        assert "box/bridge.jsonl" in records.keep(left)
    kept = git(repository, "show", "records:box/bridge.jsonl")
    assert kept.splitlines() == lines[:3]
    results = tmp_path / "results"
    (results / "box").mkdir(parents=True)
    (results / "box" / "bridge.jsonl").write_text(f"{lines[3]}\n{lines[0]}\n")
    records.restore(results)
    assert (results / "box" / "bridge.jsonl").read_text().splitlines() == lines


def test_a_machine_may_measure_a_commit_again(repository: Path, tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        records.keep(measured(tmp_path / "left", commits(repository)[0], value=value))
    (name,) = (name for name in records.keep(tmp_path / "left") if name.startswith("box/") and "-py" in name)
    assert json.loads(git(repository, "show", f"records:{name}"))["results"]["t"][0] == [2.0]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("../../escaped.json", "{}", "got none"),  # outside: nothing is left that has a machine
        ("run.sh", "exit", "got 'box/run.sh'"),
        ("deadbeef-py;rm.json", "{}", "expected <machine>/<file of asv>"),
        ("deadbeef-py.json", "{", "deadbeef-py.json"),
        ("deadbeef-py.json", '{"commit_hash": "' + "a" * 40 + '"}', "expected that of the file's name"),
        ("aaaaaaaa-py.json", '{"commit_hash": "' + "a" * 40 + '"}', "git cat-file"),
        ("aaaaaaaa-py.json", '{"commit_hash": 5}', "expected that of the file's name"),
        ("a" * 40 + ".telemetry.jsonl", "{}\n", "git cat-file"),
        ("a" * 40 + ".telemetry.jsonl", "[]\n", "expected a table in each line"),
        ("a" * 40 + ".telemetry.jsonl", "{\n", "telemetry.jsonl"),
        ("machine.json", "[]", "expected a table"),
        ("bridge.jsonl", "1\n", "expected a table in each line"),
    ],
)
def test_what_is_no_result_of_ours_is_refused(
    name: str, content: str, said: str, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "left" / "deep" / "box"
    folder.mkdir(parents=True)
    if not name.startswith(".."):
        (folder / "machine.json").write_text("{}")
    (folder / name).write_text(content)
    assert records.main(["keep", "--from", str(folder.parent)]) == 3
    assert said in capsys.readouterr().err
    assert "records" not in git(repository, "branch", "--all")


@pytest.mark.parametrize("machine", ["local-box", "a b", "-x", "x" * 80])
def test_other_names_of_machines_are_refused(machine: str, repository: Path, tmp_path: Path) -> None:
    left = measured(tmp_path / "left", commits(repository)[0])
    (left / "box").rename(left / machine)
    with pytest.raises(records.RecordsError, match="expected <machine>/<file of asv>"):
        records.keep(left)


def test_a_link_to_a_file_of_the_machine_is_refused(repository: Path, tmp_path: Path) -> None:
    left = measured(tmp_path / "left", commits(repository)[0])
    (tmp_path / "secret").write_text("{}")
    (left / "box" / "machine.json").unlink()
    (left / "box" / "machine.json").symlink_to(tmp_path / "secret")
    with pytest.raises(records.RecordsError, match=r"machine\.json"):
        records.keep(left)


def test_a_branch_with_other_files_is_not_restored(repository: Path, tmp_path: Path) -> None:
    git(repository, "branch", "records")
    with pytest.raises(records.RecordsError, match="got 'file'"):
        records.restore(tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_nothing_measured_is_an_error(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert records.main(["collect", "--machine", "box", "--commit", "a" * 40]) == 3
    assert "expected results of aaaa" in capsys.readouterr().err
    assert records.main(["keep", "--from", "nowhere"]) == 3


def test_damaged_results_are_named(repository: Path, tmp_path: Path) -> None:
    left = measured(tmp_path / "left", commits(repository)[0])
    next((left / "box").glob("*-py.json")).write_text("{")
    with pytest.raises(Unreadable, match=r"-py\.json"):
        records.keep(left)
