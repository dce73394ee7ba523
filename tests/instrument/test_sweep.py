"""The sweep: everything is recorded, nothing stops it, and what was killed goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from asv_bench import __main__ as command
from asv_bench import (
    cases,
    clocks,
    controls,
    group,
    implementations,
    journal,
    record,
    sampling,
    sweep,
    telemetry,
    verify,
)
from asv_bench.record import Record

ROOT = Path(__file__).resolve().parents[2]
SPARSE, DENSE = cases.cases_of("tiny")[:2]  # one group: a sparse problem and its dense counterpart
OTHER = cases.cases_of("tiny")[3]  # dense, of another group
PLANTED = "instrument.planted:"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ceiling of the machine and its controls are not what these tests are about."""
    monkeypatch.setitem(controls.WORK, "cpu", controls.Work(1 << 10, 16))
    ceiling = {"flops": 1e12, "bytes_per_second": 1e10, "source": "a test"}
    monkeypatch.setattr(telemetry, "ceiling", lambda device: ceiling)
    monkeypatch.setenv("FLASH_DSA_COMMIT", "a" * 40)


def options(folder: Path, *names: str, chosen: tuple[cases.Case, ...] = (SPARSE, DENSE), **more: Any) -> sweep.Options:
    return sweep.Options(chosen, names, torch.device("cpu"), "test", folder, **more)


def swept(folder: Path, *names: str, **more: Any) -> dict[tuple[str, str], Record]:
    """Records of a sweep by op and implementation."""
    sweep.execute(sweep.start(options(folder, *names, **more)), show_progress=False)
    return {(found["op"], found["implementation"]): found for found in record.load(folder)}


def test_every_combination_gets_a_complete_record(tmp_path: Path) -> None:
    found = swept(tmp_path, "flash_dsa", "naive", "sdpa", "flash_mla", rows_seed=7)
    assert len(found) == 8
    counts: dict[tuple[str, str], int] = {}
    for (op, name), one in found.items():
        assert list(one) == list(record.RECORD_KEYS)
        assert (one["commit"], one["dirty"], one["machine"], one["protocol"]) == (
            "a" * 40,
            False,
            "test",
            "cpu-rounds-v1",
        )
        assert one["telemetry"]["rows_seed"] == 7 and one["telemetry"]["torch"] == torch.__version__
        problem = record.problem_of(one)
        assert (one["flops"], one["bytes"], one["kv_bytes"]) == (problem.flops, problem.bytes, problem.kv_bytes)
        if (op, name) == ("sparse_fwd", "sdpa"):
            assert one["error"].startswith("unsupported: ")
        elif name == "flash_mla":
            assert one["error"] == "unavailable: flash_mla runs on CUDA only"
        else:
            assert one["error"] is None and one["backend"]
            assert 0 < one["seconds_low"] <= one["seconds_median"] <= one["seconds_high"]
            assert one["tflops"] == pytest.approx(problem.flops / one["seconds_median"] / 1e12)
            assert 6 <= one["samples"] <= 20 and one["max_abs_err"] < 8e-4
            counts[op, name] = one["samples"]
            continue
        assert one["seconds_median"] is one["tflops"] is one["max_abs_err"] is None and one["samples"] == 0
    lines = [json.loads(line) for line in (tmp_path / "sweep.samples.jsonl").read_text().splitlines()]
    kept = {(line["op"], line["implementation"]): sum(len(burst) for burst in line["seconds"]) for line in lines}
    assert kept == counts and len(kept) == 5


def test_failing_ones_are_recorded_and_the_others_measured(tmp_path: Path) -> None:
    names = [PLANTED + name for name in ("out_of_memory", "broken", "right")]
    found = swept(tmp_path, *names)
    for op in ("sparse_fwd", "dense_fwd"):
        assert found[op, names[0]]["error"] == (
            "out_of_memory: OutOfMemoryError: CUDA out of memory. Tried to allocate 36.50 GiB. See documentation"
        )
        assert found[op, names[1]]["error"] == "failed: RuntimeError: tile <b>expected</b> 64, got 63"
        assert found[op, names[2]]["seconds_median"] > 0


@pytest.mark.parametrize(
    "function",
    [
        "scaled",
        "one_row_wrong",
        "not_written",
        "wrong_shape",
        "nothing",
        "view_of_input",
        "computed_once",
        "remembers_a_copy",
        "remembers_its_keys",
        "remembers_its_indices",
        "zeroes_its_input",
        "sorts_its_input",
        "empty_tuple",
        "on_the_meta_device",
        "complex_numbers",
    ],
)
def test_a_wrong_answer_is_never_timed(function: str, tmp_path: Path) -> None:
    found = swept(tmp_path, PLANTED + function, "naive", chosen=(SPARSE,))
    wrong = found["sparse_fwd", PLANTED + function]
    assert wrong["error"].startswith("wrong_answer: ")
    assert wrong["seconds_median"] is wrong["tflops"] is None and wrong["samples"] == 0
    assert PLANTED + function not in (tmp_path / "sweep.samples.jsonl").read_text()
    naive = found["sparse_fwd", "naive"]  # whose inputs the other one's poisoning must not touch
    assert naive["error"] is None and naive["max_abs_err"] > 0 and naive["seconds_median"] > 0


def test_a_kernel_that_exits_is_a_failure(tmp_path: Path) -> None:
    found = swept(tmp_path, PLANTED + "exits", "naive", chosen=(SPARSE,))
    assert found["sparse_fwd", PLANTED + "exits"]["error"] == "failed: SystemExit: 0"
    assert found["sparse_fwd", "naive"]["error"] is None


def test_a_late_failure_is_caught_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails in its 9th launch, long after it was found able."""
    from instrument import planted

    calls = iter(range(100))

    def late(**arguments: Any) -> torch.Tensor:
        if next(calls) == 8:
            raise torch.OutOfMemoryError("fragmented")
        return planted.right(**arguments)

    monkeypatch.setattr(planted, "late", late, raising=False)
    found = swept(tmp_path, PLANTED + "late", "naive", chosen=(SPARSE,))
    assert found["sparse_fwd", PLANTED + "late"]["error"] == "out_of_memory: OutOfMemoryError: fragmented"
    assert found["sparse_fwd", "naive"]["error"] is None


def test_inputs_that_do_not_fit_are_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: Any) -> None:
        raise torch.OutOfMemoryError("36.5 GB")

    monkeypatch.setattr(group, "make", no_room)
    found = swept(tmp_path, "naive", "flash_mla", chosen=(SPARSE,))
    assert found["sparse_fwd", "naive"]["error"] == "out_of_memory: OutOfMemoryError: 36.5 GB"
    assert found["sparse_fwd", "flash_mla"]["error"].startswith("unavailable: ")


def test_rows_are_drawn_from_the_system_and_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    real = verify.Check
    monkeypatch.setattr(verify, "Check", lambda p, i, seed: seeds.append(seed) or real(p, i, seed))
    noted = [swept(tmp_path / name, "naive", chosen=(SPARSE,)) for name in "ab"]
    assert seeds[0] != seeds[1]
    assert [one["sparse_fwd", "naive"]["telemetry"]["rows_seed"] for one in noted] == seeds


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Ops of the combinations that are really measured, in order."""
    log: list[str] = []
    real = sweep.measure_group

    def noting(run: sweep.Run, combinations: Any, show: Any = None) -> Any:
        log.extend(problem.op for problem, _ in combinations)
        return real(run, combinations, show)

    monkeypatch.setattr(sweep, "measure_group", noting)
    yield log


def test_what_is_done_is_not_done_again(tmp_path: Path, measured: list[str]) -> None:
    first = swept(tmp_path, "naive")
    assert measured == ["sparse_fwd", "dense_fwd"]
    assert swept(tmp_path, "naive") == first and len(measured) == 2
    assert swept(tmp_path, "naive", fresh=True) != first and len(measured) == 4


@pytest.mark.parametrize("change", ["commit", "machine", "seed", "tree", "implementation"])
def test_what_another_would_have_measured_is_done_again(
    change: str, tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    swept(tmp_path, "naive", chosen=(SPARSE,))
    chosen = options(tmp_path, "naive", chosen=(SPARSE,))
    if change == "commit":
        monkeypatch.setenv("FLASH_DSA_COMMIT", "b" * 40)
    elif change == "machine":
        chosen = sweep.Options(**{**vars(chosen), "machine": "other"})
    elif change == "seed":
        chosen = sweep.Options(**{**vars(chosen), "seed": 1})
    elif change == "tree":
        monkeypatch.setattr(record, "fingerprint", lambda name: "another tree")
    else:  # a new implementation is measured beside the old one, or their ratio would come from two processes
        chosen = sweep.Options(**{**vars(chosen), "implementations": ("naive", PLANTED + "right")})
    sweep.execute(sweep.start(chosen), show_progress=False)
    assert len(measured) == 1 + len(chosen.implementations)
    assert len({found["telemetry"]["group"] for found in record.load(tmp_path)}) == 1


def test_a_group_of_two_processes_is_measured_again(tmp_path: Path, measured: list[str]) -> None:
    """Each case is done, but no ratio between them would come from one process."""
    swept(tmp_path, "naive", chosen=(SPARSE,))
    swept(tmp_path, "naive", chosen=(DENSE,))
    found = swept(tmp_path, "naive")
    assert measured == ["sparse_fwd", "dense_fwd"] * 2
    assert len({one["telemetry"]["group"] for one in found.values()}) == 1


def test_an_implementation_that_became_available_is_measured(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(implementations.Naive, "unavailable", lambda self, device: "not installed")
    assert swept(tmp_path, "naive", chosen=(SPARSE,))["sparse_fwd", "naive"]["error"] == "unavailable: not installed"
    swept(tmp_path, "naive", chosen=(SPARSE,))
    assert len(measured) == 1
    monkeypatch.undo()
    monkeypatch.setenv("FLASH_DSA_COMMIT", "a" * 40)
    assert swept(tmp_path, "naive", chosen=(SPARSE,))["sparse_fwd", "naive"]["error"] is None


def test_a_group_half_done_is_measured_as_a_whole(tmp_path: Path) -> None:
    swept(tmp_path, "naive", chosen=(SPARSE,))
    found = swept(tmp_path, "naive")
    assert found["sparse_fwd", "naive"]["telemetry"]["run"] == found["dense_fwd", "naive"]["telemetry"]["run"]


def command_line(folder: Path, *more: str, chosen: tuple[cases.Case, ...] = (SPARSE, DENSE)) -> list[str]:
    ids = ",".join(case.id for case in chosen)
    start = [sys.executable, "-m", "asv_bench", "sweep", "--device", "cpu", "--machine", "test", "--cases", ids]
    return [*start, "--output", str(folder), *more]


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end, "waited 60 s"
        time.sleep(0.02)


def test_a_killed_sweep_leaves_whole_files_and_goes_on(tmp_path: Path) -> None:
    """Killed with SIGKILL while the second group runs; started again it finishes, and a third time it does nothing."""
    flag = tmp_path / "hanging"
    folder = tmp_path / "out"
    names = ["--implementations", f"naive,{PLANTED}hangs_on_dense"]
    command = command_line(folder, *names, chosen=(SPARSE, OTHER))
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    with subprocess.Popen(
        command,
        env=environment | {"PLANTED_HANG": str(flag)},
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
    ) as process:
        until(flag.exists)
        process.send_signal(signal.SIGKILL)
    killed = record.load(folder)
    assert [found["op"] for found in killed] == ["sparse_fwd"] * 2
    assert all(json.loads(line)["seconds"] for line in (folder / "sweep.samples.jsonl").read_text().splitlines())

    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    finished = record.load(folder)
    assert len(finished) == 4 and all(found["error"] is None for found in finished)
    assert finished[:2] == killed
    assert not list(folder.glob(".*"))
    for name in ("sweep.csv", "latency.png", "speedup.png", "report.html"):
        assert (folder / name).stat().st_size > 500
    assert "Performance summary" in done.stdout and "Computational complexity analysis" in done.stdout


def test_ctrl_c_leaves_valid_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = command_line(tmp_path, "--implementations", PLANTED + "interrupts_on_dense", chosen=(SPARSE, OTHER))[3:]
    assert command.main(arguments) == 130
    assert [found["op"] for found in record.load(tmp_path)] == ["sparse_fwd"]
    assert (tmp_path / "report.html").exists() and "the same command goes on" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_said_before_measuring(
    tmp_path: Path, measured: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    for folder in (tmp_path / "file" / "out", Path("/proc/flash_dsa_sweep")):
        assert command.main(command_line(folder)[3:]) == 3
        assert f"output: cannot write to {folder}" in capsys.readouterr().err
    assert measured == []


def test_a_broken_earlier_file_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep.json").write_text("{broken")
    assert command.main(command_line(tmp_path)[3:]) == 3
    assert "sweep.json" in capsys.readouterr().err and (tmp_path / "sweep.json").read_text() == "{broken"


@pytest.mark.parametrize(
    "more, reason",
    [
        (["--implementations", "cudnn"], "implementation: expected one of"),
        (["--set", "smoke"], "--cases and --set"),
        (["--machine", "../x"], "machine: expected"),
        (["--device", "tpu"], "device: expected cpu or cuda"),
        (["--cases", "sparse-x"], "unknown id sparse-x"),
    ],
)
def test_arguments_that_make_no_sense(
    more: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(command_line(tmp_path / "out", *more)[3:]) == 3
    assert reason in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_nothing_measured_is_no_success(tmp_path: Path) -> None:
    assert command.main(command_line(tmp_path, "--implementations", PLANTED + "broken")[3:]) == 1
    assert len(record.load(tmp_path)) == 2


def test_a_lost_device_is_blamed_on_one_and_not_tried_again(
    tmp_path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device dies in `dies`: its record says so, a new process measures the rest, a third has nothing to do."""
    from instrument import planted
    from instrument.fakes import FakeClock

    clock = FakeClock()

    def broken(**arguments: Any) -> torch.Tensor:
        clock.lost = True
        return planted.broken(**arguments)

    monkeypatch.setattr(planted, "dies", broken, raising=False)
    monkeypatch.setattr(sampling, "for_device", lambda device: (sampling.CPU_PROTOCOL, clock))
    names = (PLANTED + "dies", "naive")
    with pytest.raises(sweep.Restart, match="dies took the device down"):
        swept(tmp_path, *names, chosen=(SPARSE,))
    assert [found["error"] for found in record.load(tmp_path)] == [
        "device_lost: RuntimeError: tile <b>expected</b> 64, got 63"
    ]
    monkeypatch.setattr(sampling, "for_device", lambda device: (sampling.CPU_PROTOCOL, clocks.CpuClock()))
    found = swept(tmp_path, *names, chosen=(SPARSE,))
    assert found["sparse_fwd", "naive"]["error"] is None
    assert found["sparse_fwd", names[0]]["error"].startswith("device_lost: ")
    assert len(measured) == 3 and swept(tmp_path, *names, chosen=(SPARSE,)) == found and len(measured) == 3


def test_one_that_ends_the_process_twice_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that calls exit() leaves the journal behind: once may be an accident, twice is its doing."""
    names = (PLANTED + "right", "naive")
    tree = record.fingerprint(names[0])
    key = (*SPARSE.problem.fields.values(), names[0], tree)

    def end_in(key: Any) -> None:
        journal.Journal(tmp_path).note(key)  # never closed, as in a process that ends here

    end_in(key)
    assert not journal.Journal(tmp_path).ended_process(key)
    end_in((*key[:-1], "another tree"))
    assert not journal.Journal(tmp_path).ended_process(key)
    end_in(key)
    end_in(key)
    assert journal.Journal(tmp_path).ended_process(key)
    found = swept(tmp_path, *names, chosen=(SPARSE,))
    assert found["sparse_fwd", names[0]]["error"] == "crashed: ended the process, twice"
    assert found["sparse_fwd", "naive"]["error"] is None
    assert swept(tmp_path, *names, chosen=(SPARSE,)) == found  # the journal is gone, the record stays
    assert not list(tmp_path.glob(".*"))


def test_one_that_ends_the_process_in_a_late_burst_is_left_out_too(tmp_path: Path) -> None:
    """For real: two processes end without a word, the third says which kernel it was and measures the other one."""
    names = ["--implementations", f"naive,{PLANTED}ends_the_process_late"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    words = command_line(tmp_path, *names, chosen=(SPARSE,))
    ends = [subprocess.run(words, env=environment, capture_output=True, text=True, cwd=ROOT) for _ in range(3)]
    assert ["Performance summary" in end.stdout for end in ends] == [False, False, True]
    found = {(one["op"], one["implementation"]): one for one in record.load(tmp_path)}
    assert found["sparse_fwd", PLANTED + "ends_the_process_late"]["error"] == "crashed: ended the process, twice"
    assert found["sparse_fwd", "naive"]["error"] is None


def test_members_of_a_group_take_turns_whatever_their_op(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bursts: list[str] = []
    real = sampling.measure

    def noting(callables: Any, *arguments: Any, **options: Any) -> Any:
        return real(callables, *arguments, **{**options, "progress": bursts.append})

    monkeypatch.setattr(sampling, "measure", noting)
    found = swept(tmp_path, "naive")
    ops = [("sparse_fwd" if "sparse_fwd" in name else "dense_fwd") for name in bursts if name not in controls.NAMES]
    assert ops[:6] == ["sparse_fwd", "dense_fwd", "dense_fwd", "sparse_fwd", "sparse_fwd", "dense_fwd"]
    assert len({one["telemetry"]["group"] for one in found.values()}) == 1


def test_going_on_does_not_forget_again() -> None:
    assert sweep.restart_command(["--fresh", "--set", "seed"]) == ["-m", "asv_bench", "sweep", "--set", "seed"]


def test_groups_hold_a_sparse_problem_and_its_dense_counterpart() -> None:
    groups = sweep.groups_of(cases.cases_of("seed"))
    assert len(groups) == 6 and all(
        [case.problem.op for case in group] == ["sparse_fwd", "dense_fwd"] for group in groups
    )


def test_groups_hold_all_topks_of_a_prompt_and_dense_192_128() -> None:
    groups = sweep.groups_of(cases.cases_of("prompt"))
    assert [len(one) for one in groups] == [4] * 9 + [2] * 2
    for shape in groups:
        *sparse, dense = (case.problem for case in shape)
        assert {cases.counterpart(problem) for problem in sparse} == {dense}


def test_doctor_says_what_is_there_and_why_not(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "doctor",
        "--device",
        "cpu",
        "--cases",
        "--implementations",
        f"naive,flash_mla,no_such:kernel,{PLANTED}right",
    ]
    assert command.main(arguments) == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line for line in said.splitlines() if line}
    assert rows["naive"].split()[1] == "yes" and rows[PLANTED + "right"].split()[1] == "yes"
    assert "no         flash_mla runs on CUDA only" in rows["flash_mla"]
    assert "No module named 'no_such'" in rows["no_such:kernel"]
    assert torch.__version__ in rows["torch"] and "cpu" in rows["target"] and SPARSE.id in said


def test_importing_any_module_touches_no_gpu_and_defines_no_benchmark_but_the_suites() -> None:
    """asv imports every module of the folder; the suites' own classes are tested in test_suites.py."""
    code = (
        "import importlib, pkgutil, torch, asv_bench\n"
        "for module in pkgutil.iter_modules(asv_bench.__path__): importlib.import_module('asv_bench.' + module.name)\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
