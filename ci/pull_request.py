"""The pull-request check: both commits built in clean trees, two live processes measured in turns, one verdict.

Head's suite and protocol measure both builds. Nothing of the working tree is read or written but `build/pr-check/`.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ci import builds, codegen, report, results
from ci.baton import Baton, Message, Side, SideEnded
from ci.policy import Policy
from ci.stats import Block, Burst
from ci.verdict import Evidence, Reason, Step, judge, next_step

SIDES = ("base", "head")
START_SECONDS = 300.0  # to import torch on a cold disk
READY_SECONDS = 300.0  # to make inputs and the reference of the largest case
BURST_SECONDS = 120.0
SUITE = ("asv_bench", "ci", "tests", "pyproject.toml")  # of head; without flash_dsa, which would hide the built one


@dataclass
class Checked:
    """One side of a check.

    Args:
        name: `base` or `head`. commit: its full hash. folder: of its tree and build, kept for other checks.
        log: output of its process. plant: a slowdown to build into it, as setup.py's FLASH_DSA_PLANT takes it.
        failure: why it has no build, or None. controls: of its process, before the first case and after the last.
    """

    name: str
    commit: str
    folder: Path
    log: Path
    plant: str = ""
    failure: str | None = None
    hello: Message = field(default_factory=dict)
    benchmarks: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)
    controls: list[dict[str, Any]] = field(default_factory=list)

    @property
    def site(self) -> Path:
        """Where its package is installed."""
        return self.folder / "site"

    @property
    def fingerprint(self) -> codegen.Fingerprint | None:
        """What its build noted of its code, or None."""
        try:
            found = json.loads((self.site / "flash_dsa" / "_fingerprint.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None


@dataclass(frozen=True)
class Options:
    """What to check.

    Args:
        root: of the repository. base, head: revisions. output: folder; by default build/pr-check/<base>-<head>.
        measure_same_code: whether cases whose code is the same on both sides are measured all the same.
        swap: whether each side runs the other's build: a test of the check itself, whose ratios must invert.
        plant, base_plant: slowdowns to build into head and base, as in a drill.
        cases: ids, all of the machine's grid when empty.
    """

    root: Path
    base: str
    head: str = "HEAD"
    output: Path | None = None
    measure_same_code: bool = False
    swap: bool = False
    plant: str = ""
    base_plant: str = ""
    cases: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Of all checks."""
        return self.root / "build" / "pr-check"


def run(options: Options, policy: Policy) -> results.Verdicts:
    """Checks head against base and writes report.md, verdicts.json, base.json and head.json.

    Raises:
        builds.CheckError: when the revisions are none, or this is no repository.
    """
    revisions = {"base": options.base, "head": options.head}
    commits = {name: builds.commit_of(options.root, revision) for name, revision in revisions.items()}
    output = output_of(options, commits["base"], commits["head"])
    output.mkdir(parents=True, exist_ok=True)
    plants = {"base": options.base_plant, "head": options.plant}
    sides = {name: _side(name, commits[name], plants[name], options.folder, output) for name in SIDES}
    with builds.alone(output / "lock", f"another check of {output.name} is running"):
        for side in sides.values():
            side.log.unlink(missing_ok=True)
            side.folder.parent.mkdir(exist_ok=True)
            with builds.alone(side.folder.with_suffix(".lock"), f"another check builds {side.commit[:12]}"):
                _build(options.root, side)
        suite = _suite(options.root, commits["head"], output / "suite")
        if not any(side.failure for side in sides.values()):
            if options.swap:
                sides["base"].folder, sides["head"].folder = sides["head"].folder, sides["base"].folder
            device = os.environ.get("CUDA_VISIBLE_DEVICES", "all").replace(",", "-")
            lock = Path(tempfile.gettempdir()) / f"flash-dsa-check-{device}.lock"
            with builds.alone(lock, "another check uses this machine"):
                _measure(sides, suite, output, policy, options)
        return _conclude(sides, output, options, policy)


def output_of(options: Options, base: str, head: str) -> Path:
    """Where a check of these commits writes."""
    named = "-".join([base[:12], head[:12], *([options.plant.replace(":", "-")] if options.plant else [])])
    return options.output or options.folder / named


def _side(name: str, commit: str, plant: str, folder: Path, output: Path) -> Checked:
    # Base and head of one commit are built apart, as two commits would be: an unchanged pair is two builds.
    key = "-".join([commit[:12], name, *([plant.replace(":", "-")] if plant else [])])
    return Checked(name, commit, folder / "builds" / key, output / f"{name}.log", plant)


def _build(root: Path, side: Checked) -> None:
    """Builds a side once; a killed build is begun anew. What fails is a failure of the side."""
    done = side.folder / "built"
    if done.exists():
        return
    side.folder.mkdir(parents=True, exist_ok=True)
    source = side.folder / "source"
    builds.export(root, side.commit, source)
    print(f"building {side.name} {side.commit[:12]}", flush=True)
    named = {"FLASH_DSA_COMMIT": side.commit, "FLASH_DSA_PLANT": side.plant}
    if not builds.install(source, side.site, side.log, named):
        side.failure = builds.tail(side.log)
        return
    done.touch()


def _suite(root: Path, commit: str, folder: Path) -> Path:
    builds.export(root, commit, folder, SUITE)
    return folder


def suite_hash(root: Path, commit: str) -> str:
    """Of what measures and judges at a commit: its trees asv_bench/ (without results), ci/ and tests/benchmarks/."""
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-tree", "-r", commit, "--", "asv_bench", "ci", "tests/benchmarks"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    code = [line for line in listed if not line.split("\t")[1].startswith(("asv_bench/results/", "asv_bench/sweeps/"))]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()[:16]


def _start(side: Checked, suite: Path, socket: Path, cases: tuple[str, ...]) -> Side:
    environment = {
        **os.environ,
        "PYTHONPATH": str(side.site),
        "FLASH_DSA_BATON": str(socket),
        "FLASH_DSA_SIDE": side.name,
        "FLASH_DSA_CASES": ",".join(cases),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/benchmarks"]
    log = side.log.open("ab")
    process = subprocess.Popen(
        command, cwd=suite, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    log.close()
    return Side(side.name, process)


def _measure(sides: Mapping[str, Checked], suite: Path, output: Path, policy: Policy, options: Options) -> None:
    """Runs both processes through the grid; after a crash, new ones through what is left of it."""
    left: tuple[str, ...] | None = options.cases or None
    while left is None or left:
        # Short whatever the output's path: the system limits a socket's name.
        with tempfile.TemporaryDirectory(prefix="flash-dsa-") as folder, Baton(Path(folder) / "baton") as baton:
            live = {name: _start(side, suite, baton.path, left or ()) for name, side in sides.items()}
            try:
                baton.greet(list(live.values()), START_SECONDS)
                for name, side in sides.items():
                    _introduce(side, live[name])
                grid = tuple(sides["head"].hello["cases"])
                left = _go_through(sides, live, left or grid, policy, options)
            except SideEnded as ended:  # before any case: it does not start, or not again after a crash
                for case in left or ("start",):
                    _note_crash(sides, ended, case)
                return
            finally:
                for process in live.values():
                    process.end()


def _introduce(side: Checked, live: Side) -> None:
    """Holds a process to its side's build."""
    package = (side.site / "flash_dsa").resolve()
    library = hashlib.sha256((package / "libflash_dsa.so").read_bytes()).hexdigest()
    found = live.hello["build"]
    if found != {"folder": str(package), "library": library}:
        raise builds.CheckError(f"{side.name} runs another build: expected {package}, got {found['folder']}")
    side.hello = side.hello or live.hello


def _go_through(
    sides: Mapping[str, Checked],
    live: Mapping[str, Side],
    cases: tuple[str, ...],
    policy: Policy,
    options: Options,
) -> tuple[str, ...]:
    """Measures case after case.

    Returns:
        The cases that are left after one whose process ended; none when all is done.
    """
    for number, case in enumerate(cases):
        try:
            _one_case(case, sides, live, cases, policy, options)
        except SideEnded as ended:
            _note_crash(sides, ended, case)
            return cases[number + 1 :]
    return ()


def _note_crash(sides: Mapping[str, Checked], ended: SideEnded, case: str) -> None:
    side = sides[ended.side]
    side.failures[case] = {"reason": Reason.CRASH.value, "detail": f"{ended.reason}; {builds.tail(side.log, 300)}"}
    for checked in sides.values():
        checked.benchmarks.pop(case, None)


def _one_case(
    case: str,
    sides: Mapping[str, Checked],
    live: Mapping[str, Side],
    cases: tuple[str, ...],
    policy: Policy,
    options: Options,
) -> None:
    answers = {name: live[name].receive(READY_SECONDS) for name in SIDES}
    for name, answer in answers.items():
        if answer.get("case") != case:
            raise SideEnded(name, f"expected case {case}, got {answer.get('case')}")
        if answer["event"] == "failed" and not answer.get("absent"):
            sides[name].failures[case] = {"reason": answer["reason"], "detail": answer["detail"]}
    ready = [name for name in SIDES if answers[name]["event"] == "ready"]
    blocks: list[Block] = []
    targets = {answers[name].get("backend") for name in ready}
    op = sides["head"].hello["cases"][case].get("op")
    same = len(targets) == 1 and codegen.same_code(
        sides["base"].fingerprint, sides["head"].fingerprint, targets.pop(), op
    )
    if len(ready) == len(SIDES) and (options.measure_same_code or not same):
        if not any(side.controls for side in sides.values()):
            _measure_controls(sides, live)
        # One after the other: a launch beside the other side's would seem twice as long.
        seconds = max(_ask(live[name], "warm")["seconds"] for name in SIDES)
        for name in SIDES:
            live[name].send("adapt", seconds=seconds)
        blocks = _blocks(case, sides["head"].hello["device"], live, len(cases), policy)
        if case == cases[-1]:
            _measure_controls(sides, live)
    for name in ready:
        live[name].send("done")
        verdict = live[name].receive(READY_SECONDS)
        _note(sides[name], case, verdict)
    done = f"{len(blocks)} blocks" if blocks else "the same code" if same else "not compared"
    print(f"{case}: {done}", flush=True)


def _measure_controls(sides: Mapping[str, Checked], live: Mapping[str, Side]) -> None:
    for name in SIDES:
        sides[name].controls.append(_ask(live[name], "controls")["controls"])


def _blocks(case: str, device: str, live: Mapping[str, Side], cases: int, policy: Policy) -> list[Block]:
    """ABBA until the judge has seen enough."""
    blocks: list[Block] = []
    spent = time.monotonic()
    while True:
        order = ("AB", "BA")[len(blocks) % 2]
        found: dict[str, Burst] = {}
        for name in SIDES if order == "AB" else SIDES[::-1]:
            message = _ask(live[name], "burst", block=len(blocks), order=order)
            found[name] = Burst(message["seconds"], message["cycles"], message["discarded"], message["power_capped"])
        blocks.append(Block(found["base"], found["head"], "AB" if order == "AB" else "BA"))
        evidence = Evidence(case, device, tuple(blocks))
        if next_step(evidence, policy, time.monotonic() - spent, cases) is not Step.GO_ON:
            return blocks


def _ask(side: Side, do: str, **content: Any) -> Message:
    """Lets a side use the machine; its answer has the name of what it was asked."""
    side.send(do, **content)
    message = side.receive(BURST_SECONDS)
    if message["event"] != do:
        raise SideEnded(side.name, f"expected {do}, got {message['event']}: {message.get('detail', '')}")
    return message


def _note(side: Checked, case: str, verdict: Message) -> None:
    if verdict["event"] not in ("failed", "verdict"):
        raise SideEnded(side.name, f"expected a verdict of {case}, got {verdict['event']}")
    if verdict["event"] == "failed":
        side.failures[case] = {"reason": verdict["reason"], "detail": verdict["detail"]}
    elif verdict["error"]:
        side.failures[case] = {"reason": Reason.WRONG_ANSWER.value, "detail": verdict["error"]}
    else:
        side.benchmarks[case] = verdict["benchmark"]


def _conclude(sides: Mapping[str, Checked], output: Path, options: Options, policy: Policy) -> results.Verdicts:
    hashes = {name: suite_hash(options.root, side.commit) for name, side in sides.items()}
    known = next((side.hello for side in sides.values() if side.hello), {})
    for name, side in sides.items():
        if side.failure:
            side.failures["build"] = {"reason": Reason.BUILD.value, "detail": side.failure}
        results.write_atomically(output / f"{name}.json", json.dumps(_document(side, hashes[name], known), indent=1))
    runs = {name: results.read_run(output / f"{name}.json") for name in SIDES}
    verdicts = judge_sides(runs["base"], runs["head"], policy)
    results.write_verdicts(output / "verdicts.json", verdicts)
    text = report.render(report.Report(verdicts, runs["base"], runs["head"], policy))
    results.write_atomically(output / "report.md", text)
    return verdicts


def judge_sides(base: results.Run, head: results.Run, policy: Policy) -> results.Verdicts:
    """The verdicts that two sides' files give."""
    environment = base.environment or head.environment
    return results.Verdicts(
        base.commit,
        head.commit,
        str(environment.get("gpu") or environment.get("cpu") or "unknown"),
        base.protocol,
        tuple(judge(results.evidence_of(base, head), policy)),
    )


def _document(side: Checked, suite: str, known: Message) -> dict[str, Any]:
    """pytest-benchmark's schema, with what the judge needs beside it."""
    hello = side.hello or known
    facts = {
        "commit": side.commit,
        "machine": str(hello.get("environment", {}).get("host", "unknown")),
        "protocol": str(hello.get("protocol", "none")),
        "suite": suite,
        "environment": hello.get("environment", {}),
        "fingerprint": side.fingerprint,
        "controls": side.controls,
    }
    return {
        "machine_info": {**hello.get("machine_info", {}), "flash_dsa": facts},
        "commit_info": {"id": side.commit, "dirty": False},
        "benchmarks": list(side.benchmarks.values()),
        "failures": side.failures,
        "datetime": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "version": hello.get("version", ""),
    }
