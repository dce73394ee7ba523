"""`python -m asv_bench sweep | doctor | report | agree`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from asv_bench import record, report
from asv_bench.findings import has_number

if TYPE_CHECKING:
    import torch

    from asv_bench.sweep import Options

# Exit codes, as those of `python -m ci`.
DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 3, 130

# Errors of flash_dsa's own records that a sweep must not end well with.
OUR_FAULTS = ("failed", "wrong_answer", "crashed", "device_lost", "out_of_memory")


class UsageError(Exception):
    """Arguments that make no sense together."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand.

    Returns:
        0 done; 1 nothing could be measured, flash_dsa itself failed, or `report --check` found a difference; 3 usage or
        unreadable input; 130 interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    commands = {"sweep": _sweep, "doctor": _doctor, "report": _report, "agree": _agree}
    try:
        return commands[options.command](options)
    except (UsageError, record.Unreadable, report.UnknownBlock) as error:
        print(f"asv_bench {options.command}: {error}", file=sys.stderr)
        return USAGE


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m asv_bench", description="Measures MLA prefill attention, sparse and dense.")
    commands = parser.add_subparsers(dest="command", required=True)
    sweep = commands.add_parser("sweep", help="measure every combination of case and implementation, and report")
    sweep.add_argument("--set", help="seed, smoke, serving, sparse, prompt, ... (default: seed with a GPU, else smoke)")
    sweep.add_argument("--cases", help="ids, comma-separated, instead of a set")
    sweep.add_argument("--implementations", help="names or module:function, comma-separated (default: all built in)")
    sweep.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    sweep.add_argument("--machine", help="name in the records, such as h100-sxm (default: local-<hostname>)")
    sweep.add_argument("--output", type=Path, help="folder (default: asv_bench/sweeps/<machine>)")
    sweep.add_argument("--fresh", action="store_true", help="measure again what is done")
    sweep.add_argument("--seed", type=int, default=0, help="of the inputs (default: 0)")
    sweep.add_argument("--rows-seed", type=int, help="of the rows that are checked (default: drawn from the system)")
    doctor = commands.add_parser("doctor", help="what can be measured here, and why the rest cannot")
    doctor.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    doctor.add_argument("--implementations", help="names or module:function, comma-separated (default: all built in)")
    doctor.add_argument("--cases", action="store_true", help="list the cases too")
    report = commands.add_parser("report", help="make tables, plots and pages again from the records")
    report.add_argument("--check", action="store_true", help="write nothing; exit 1 with a diff if a file would change")
    agree = commands.add_parser("agree", help="how far fresh processes differ in the time of an unchanged kernel")
    agree.add_argument("--device", help="cpu or cuda (default: cuda if there is one)")
    agree.add_argument("--machine", help="as of sweep")
    agree.add_argument("--processes", type=int, default=8, help="how many (default: 8)")
    agree.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser


def _sweep(options: argparse.Namespace) -> int:
    from asv_bench import errors, sweep

    chosen = _sweep_options(options)
    try:
        run = sweep.start(chosen)
    except OSError as error:
        raise UsageError(f"output: cannot write to {chosen.output}: {error}; nothing was measured") from error
    print(
        f"{len(chosen.cases)} cases, {', '.join(chosen.implementations)} on {chosen.device}; results in {chosen.output}"
    )
    interrupted = False
    try:
        sweep.execute(run)
    except KeyboardInterrupt:
        interrupted = True
    except sweep.Restart as lost:
        print(f"{lost}; going on in a new process", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sweep.restart_command(sys.argv[2:])])
    except errors.DeviceLost as lost:
        print(f"asv_bench sweep: the device was lost before anything was measured: {lost}", file=sys.stderr)
        return FAILED
    found = report.write(chosen.output)
    print(f"\n{report.console(found)}\n\nReport: {chosen.output / 'report.html'}")
    if interrupted:
        print("Interrupted: what was measured is saved; the same command goes on.", file=sys.stderr)
        return INTERRUPTED
    wanted = {case.problem for case in chosen.cases}
    ours = [one for one in found.records if record.problem_of(one) in wanted and one["implementation"] == "flash_dsa"]
    measured = {record.problem_of(one) for one in found.records if has_number(one)}
    broken = any(str(one["error"] or "").startswith(OUR_FAULTS) for one in ours)
    return FAILED if broken or not wanted & measured else DONE


def _sweep_options(options: argparse.Namespace) -> Options:
    from asv_bench import cases, sweep, telemetry

    device = _device(options.device)
    try:
        if options.cases and options.set:
            raise UsageError("--cases and --set: expected one of them, got both")
        if options.cases:
            chosen = cases.find(options.cases.split(","))
        else:
            chosen = cases.cases_of(options.set or ("seed" if device.type == "cuda" else "smoke"))
        machine = telemetry.machine_name(options.machine)
        names = _names(options.implementations)
    except ValueError as error:
        raise UsageError(str(error)) from error
    output = options.output or sweep.default_output(machine)
    return sweep.Options(chosen, names, device, machine, output, options.fresh, options.seed, options.rows_seed)


def _doctor(options: argparse.Namespace) -> int:
    from asv_bench import doctor

    device = _device(options.device)
    try:
        names = _names(options.implementations)
    except ValueError as error:
        raise UsageError(str(error)) from error
    tables = [doctor.facts_table(device), doctor.implementations_table(device, names)]
    if options.cases:
        tables.append(doctor.cases_table())
    print("\n\n".join(table.text() for table in tables))
    return DONE


def _report(options: argparse.Namespace) -> int:
    messages = report.regenerate(check=options.check)
    for message in messages:
        print(message if options.check else message.partition(": ")[0] + ": written")
    if options.check and messages:
        print(f"{len(messages)} files differ from the records; run `python -m asv_bench report`", file=sys.stderr)
        return FAILED
    print("Everything is as the records say." if not messages else "")
    return DONE


def _agree(options: argparse.Namespace) -> int:
    from asv_bench import agreement, sweep, telemetry

    device = _device(options.device).type
    if options.child:
        agreement.child_main(device)
        return DONE
    if options.processes < 2:
        raise UsageError(f"processes: expected at least 2, got {options.processes}")
    try:
        folder = sweep.default_output(telemetry.machine_name(options.machine))
        document = agreement.measure(folder, device, options.processes, lambda done: print(done, flush=True))
    except ValueError as error:
        raise UsageError(str(error)) from error
    except RuntimeError as error:
        print(f"asv_bench agree: {error}", file=sys.stderr)
        return FAILED
    print(f"\n{agreement.table(document).text()}\n\nWritten: {folder / agreement.FILE}")
    return DONE


def _device(name: str | None) -> torch.device:
    import torch

    from asv_bench import doctor

    if name is None:
        return doctor.default_device()
    if name not in ("cpu", "cuda"):
        raise UsageError(f"device: expected cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("device: cuda was asked for and torch sees no GPU")
    return torch.device("cuda", 0) if name == "cuda" else torch.device("cpu")


def _names(text: str | None) -> tuple[str, ...]:
    from asv_bench import implementations

    names = tuple(text.split(",")) if text else implementations.names()
    for name in names:
        implementations.get(name)
    return names


if __name__ == "__main__":
    sys.exit(main())
