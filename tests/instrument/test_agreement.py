"""Agreement of processes: what is run, how their spread is computed, what is written and read."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from asv_bench import __main__ as command
from asv_bench import agreement, cases, record, report, sampling


def rows(*seconds: float, way: str = "single launches", kernel: int = 0) -> list[dict[str, Any]]:
    return [
        {"process": number, "kernel": kernel, "way": way, "seconds": value, "cycles": None, "machine_seconds": 0.5}
        | {"power_capped": None, "discarded": {}}
        for number, value in enumerate(seconds)
    ]


def test_spread_is_that_of_pairs() -> None:
    assert agreement.spread([1.0, 1.0, 1.0]) == 0
    assert agreement.spread([1.0, 1.02]) == pytest.approx(0.02)
    # 20 processes, one of them 10 % off: it is in 19 of 190 pairs, so more than 5 % of pairs see it.
    assert agreement.spread([1.0] * 19 + [1.1]) == pytest.approx(0.1)
    # of 100 processes it is in 99 of 4950 pairs, which 95 % leave out
    assert agreement.spread([1.0] * 99 + [1.1]) == 0
    assert agreement.spread([1.0]) is None and agreement.spread([]) is None


def test_every_way_is_another_protocol_and_the_chosen_one_is_among_them() -> None:
    for ways, chosen in ((agreement.CUDA_WAYS, sampling.CUDA_PROTOCOL), (agreement.CPU_WAYS, sampling.CPU_PROTOCOL)):
        assert ways[chosen.label] is chosen
        settings = {dataclasses.replace(way, name="", version=0) for way in ways.values()}
        assert len(settings) == len(ways)


def test_table_has_a_row_per_way_and_both_units_of_a_gpu() -> None:
    way = "hot, no rest"
    found = [{**row, "cycles": 1e9 * row["seconds"] ** 0} for row in rows(0.010, 0.011, way=way)]
    document = {"device": "cuda", "kernels": [{}], "rows": found}
    assert agreement.table(document).rows == ((way, "10.00 % / 0.00 %", "0.50"),)
    assert agreement.table(document).columns[1] == "11 ms"
    document = {"device": "cpu", "kernels": [{}], "rows": rows(0.010, 0.012)}
    assert agreement.table(document).rows == (("single launches", "20.00 %", "0.50"),)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children that are this process, on one tiny kernel."""
    problem = cases.cases_of("tiny")[0].problem
    monkeypatch.setattr(agreement, "CPU_KERNELS", (problem,))
    quick = dataclasses.replace(sampling.CPU_PROTOCOL, budget_seconds=0.01)
    monkeypatch.setattr(agreement, "CPU_WAYS", {"single launches": quick, quick.label: quick})

    real = subprocess.run

    def run(words: list[str], **options: Any) -> Any:
        if words[0] == "git":
            return real(words, **options)
        assert words[-4:] == ["agree", "--child", "--device", "cpu"]
        return subprocess.CompletedProcess(words, 0, json.dumps(agreement.measure_here("cpu")) + "\n", "")

    monkeypatch.setattr(agreement.subprocess, "run", run)


def test_it_writes_what_fresh_processes_found(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ASV_BENCH_SWEEPS", str(tmp_path))
    assert command.main(["agree", "--device", "cpu", "--machine", "test", "--processes", "3"]) == 0
    said = capsys.readouterr().out
    assert "process 3 of 3" in said and "Agreement of fresh processes" in said
    document = agreement.read(tmp_path / "test")
    assert len(document["rows"]) == 6 and {row["process"] for row in document["rows"]} == {0, 1, 2}
    assert all(row["seconds"] > 0 for row in document["rows"])


def test_a_process_that_fails_is_said_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ASV_BENCH_SWEEPS", str(tmp_path))
    failed = subprocess.CompletedProcess([], 1, "", "ImportError: no library")
    monkeypatch.setattr(agreement.subprocess, "run", lambda *_, **__: failed)
    assert command.main(["agree", "--device", "cpu", "--machine", "test"]) == 1
    assert "process 0 of the agreement failed: ImportError: no library" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert command.main(["agree", "--device", "cpu", "--processes", "1"]) == 3
    assert command.main(["agree", "--device", "cpu", "--machine", "../x"]) == 3


@pytest.mark.parametrize("dirty", [False, True])
def test_what_an_ended_run_has_found_is_kept_at_the_same_clean_commit(
    tiny: None, dirty: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ASV_BENCH_SWEEPS", str(tmp_path))
    monkeypatch.setattr(record, "commit_and_dirty", lambda: ("c" * 40, dirty))
    run, started = agreement.subprocess.run, 0

    def ended_in_the_third(*words: Any, **options: Any) -> Any:
        nonlocal started
        started += 1
        if started == 3:
            raise KeyboardInterrupt
        return run(*words, **options)

    monkeypatch.setattr(agreement.subprocess, "run", ended_in_the_third)
    words = ["agree", "--device", "cpu", "--machine", "test", "--processes", "3"]
    with pytest.raises(KeyboardInterrupt):
        command.main(words)
    assert command.main(words) == 0
    assert ("processes 1 to 2 of 3 were measured before" in capsys.readouterr().out) == (not dirty)
    assert started == (6 if dirty else 4)
    document = agreement.read(tmp_path / "test")
    assert [row["process"] for row in document["rows"]] == [0, 0, 1, 1, 2, 2]
    assert [path.name for path in (tmp_path / "test").iterdir()] == [agreement.FILE]
    # what was written whole is not what was ended
    assert command.main(words) == 0 and "measured before" not in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 2}', '{"schema": 1, "rows": [{}]}'])
def test_a_damaged_file_is_an_error_that_names_it(content: str, tmp_path: Path) -> None:
    (tmp_path / agreement.FILE).write_text(content)
    with pytest.raises(record.Unreadable, match=r"agreement\.json"):
        agreement.read(tmp_path)


def test_a_page_shows_the_agreement_of_a_machine(tmp_path: Path) -> None:
    page = "<!-- generated: agreement machine=box -->\n<!-- /generated -->\n"
    assert f"No agreement measured on {tmp_path.name} yet." in report.fill(page, {"box": report.read_machine(tmp_path)})
    document = {
        "schema": 1,
        "commit": "c" * 40,
        "dirty": False,
        "device": "cpu",
        "facts": {"cpu": "Some CPU", "threads": 2, "torch": "2.13.0"},
        "kernels": [{}],
        "rows": rows(0.010, 0.012),
    }
    (tmp_path / agreement.FILE).write_text(json.dumps(document))
    filled = report.fill(page, {"box": report.read_machine(tmp_path)})
    assert "| single launches | 20.00 % | 0.50 |" in filled
    assert "2 fresh processes on Some CPU, 2 threads; torch 2.13.0; commit cccccccccccc." in filled
