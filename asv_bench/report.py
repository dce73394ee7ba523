"""The report: everything that is rendered from committed records, so that it can be made again and compared."""

from __future__ import annotations

import base64
import difflib
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asv_bench import agreement, findings, plots, provenance, record
from asv_bench.findings import Sweep
from asv_bench.plots import DARK, LIGHT, Plot, Theme
from asv_bench.sentences import sentences, steadiness
from asv_bench.tables import Table

_BLOCK = re.compile(
    r"^<!-- generated: (?P<name>\S+) machine=(?P<machine>\S+) -->\n(?P<body>.*?)^<!-- /generated -->$", re.M | re.S
)
_OPENING = re.compile(r"^<!-- generated: .*-->$", re.M)
_PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]*")


class UnknownBlock(RuntimeError):
    """A marked block in a page that nothing can fill."""


@dataclass(frozen=True)
class Machine:
    """What a marked block may be made of.

    Args:
        name: of its folder. sweep: its records, or None. agreement: the document of `agreement.read`, or None.
    """

    name: str
    sweep: Sweep | None = None
    agreement: dict[str, Any] | None = None


def render(sweep: Sweep, draw: bool = True) -> dict[str, str | Plot]:
    """Files of a machine's folder, by name, from its records.

    Args:
        sweep: the records. draw: whether the page gets its pictures; without them it is compared, not written.
    """
    return {"sweep.csv": _csv(sweep), **plots.of(sweep), "report.html": _page(sweep, draw)}


def console(sweep: Sweep) -> str:
    """What a sweep prints at its end: the seed's two tables, ratios, findings, failures."""
    makers = (findings.summary_table, findings.complexity_table, findings.prompts_table, findings.ratios_table)
    tables = [make(sweep) for make in makers]
    parts = [table.text() for table in tables if table.rows]
    parts += ["\n".join(f"{topic}: {sentence}" for topic, sentence in sentences(sweep))]
    failures = findings.failures_table(sweep)
    return "\n\n".join([*parts, *([failures.text()] if failures.rows else [])])


def read(folder: Path) -> Sweep:
    """The sweep of a folder, under the names of machines that its records hold.

    Raises:
        record.Unreadable: when there are no records to read.
    """
    records = record.load(folder)
    machines = dict.fromkeys(str(found["machine"]) for found in records)
    return Sweep(provenance.listed(machines) if machines else folder.name, records)


def read_machine(folder: Path) -> Machine:
    """What there is of a machine.

    Raises:
        record.Unreadable: when a file that is there cannot be read.
    """
    sweep = read(folder) if (folder / "sweep.json").exists() else None
    return Machine(folder.name, sweep, agreement.read(folder) if (folder / agreement.FILE).exists() else None)


def write(folder: Path) -> Sweep:
    """Makes a machine's rendered files again from its sweep.json.

    Raises:
        record.Unreadable: when there are no records to read.
    """
    sweep = read(folder)
    _update({folder / name: content for name, content in render(sweep).items()})
    return sweep


def regenerate(root: Path = record.ROOT, sweeps: Path | None = None, check: bool = False) -> list[str]:
    """Makes everything again that comes from records: each machine's files, and the marked blocks of pages.

    Args:
        root: the tree whose README.md and docs are filled. sweeps: folder of machines' folders.
        check: write nothing and say what would change; machines named `local-*` are left out, as git ignores them.
    Returns:
        A message for each file that differs, with a diff for text.
    Raises:
        record.Unreadable, UnknownBlock: when something cannot be made.
    """
    sweeps = sweeps or root / "asv_bench" / "sweeps"
    machines: dict[str, Machine] = {}
    outputs: dict[Path, str | Plot] = {}
    for folder in sorted(path for path in sweeps.glob("*") if path.is_dir()):
        if check and folder.name.startswith("local-"):
            continue
        machine = machines[folder.name] = read_machine(folder)
        if machine.sweep:
            files = render(machine.sweep, draw=not check)
            outputs |= {folder / name: content for name, content in files.items()}
    for page in _pages(root):
        outputs[page] = fill(page.read_text(encoding="utf-8"), machines, str(page))
    messages = [_message(path, content, root) for path, content in outputs.items() if _differs(path, content)]
    if not check:
        _update(outputs)
    return messages


def fill(text: str, machines: Mapping[str, Machine], where: str = "text") -> str:
    """Fills the marked blocks of a page.

    Args:
        text: with blocks from `<!-- generated: NAME machine=MACHINE -->` to `<!-- /generated -->`, on their own lines.
        machines: by name. where: the page's name, for messages.
    Raises:
        UnknownBlock: for a name that does not exist, or a block that does not end.
    """
    if len(_OPENING.findall(text)) != len(_BLOCK.findall(text)):
        raise UnknownBlock(f"{where}: a block `<!-- generated: NAME machine=MACHINE -->` is malformed or does not end")

    def replace(match: re.Match[str]) -> str:
        name, machine = match["name"], match["machine"]
        if name not in BLOCKS:
            raise UnknownBlock(f"{where}: block expected one of {', '.join(BLOCKS)}, got {name}")
        body = BLOCKS[name](machines.get(machine, Machine(machine)))
        return f"<!-- generated: {name} machine={machine} -->\n{body}\n<!-- /generated -->"

    return _BLOCK.sub(replace, text)


def _of_sweep(make: Callable[[Sweep], str]) -> Callable[[Machine], str]:
    return lambda machine: make(machine.sweep) if machine.sweep else f"No records of {machine.name} yet."


def _table(make: Callable[[Sweep], Table]) -> Callable[[Machine], str]:
    return _of_sweep(lambda sweep: make(sweep).markdown())


def _agreement(machine: Machine) -> str:
    document = machine.agreement
    if document is None:
        return f"No agreement measured on {machine.name} yet."
    return f"{agreement.table(document).markdown()}\n\n{agreement.measured_on(document)}"


# What a marked block may hold.
BLOCKS: dict[str, Callable[[Machine], str]] = {
    "summary": _table(findings.summary_table),
    "complexity": _table(findings.complexity_table),
    "prompts": _table(findings.prompts_table),
    "ratios": _table(findings.ratios_table),
    "measurements": _table(findings.measurements_table),
    "failures": _table(findings.failures_table),
    "findings": _of_sweep(lambda sweep: "\n".join(f"- {sentence}" for _, sentence in sentences(sweep))),
    "where": _of_sweep(lambda sweep: provenance.where(sweep.records)),
    "agreement": _agreement,
}


def _csv(sweep: Sweep) -> str:
    import pandas

    table = pandas.DataFrame(sweep.records, columns=list(record.RECORD_KEYS), dtype=object)
    for column in ("discarded", "telemetry"):
        table[column] = [json.dumps(value, sort_keys=True) for value in table[column]]
    buffer = io.StringIO()
    table.to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue()


def _page(sweep: Sweep, draw: bool) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True, trim_blocks=True
    )
    pictures = [
        (name.removesuffix(".png"), plot.hash, *(_inline(plot, theme) if draw else "" for theme in (LIGHT, DARK)))
        for name, plot in plots.of(sweep).items()
    ]
    tables = [
        findings.summary_table(sweep),
        findings.complexity_table(sweep),
        findings.prompts_table(sweep),
        findings.ratios_table(sweep),
        findings.measurements_table(sweep),
        findings.failures_table(sweep),
    ]
    return environment.get_template("report.html.j2").render(
        machine=sweep.machine,
        where=provenance.where(sweep.records),
        findings=sentences(sweep),
        plots=pictures,
        tables=tables,
        protocol=", ".join(sorted({found["protocol"] for found in sweep.records if found["protocol"]})) or "unknown",
        ceiling=provenance.ceilings(sweep.records),
        steadiness=steadiness(sweep),
    )


def _inline(plot: Plot, theme: Theme) -> str:
    return base64.b64encode(plot.png(theme)).decode()


def _pages(root: Path) -> Iterator[Path]:
    if (root / "README.md").exists():
        yield root / "README.md"
    yield from sorted((root / "docs").rglob("*.md"))


def _update(outputs: Mapping[Path, str | Plot]) -> None:
    """Writes what differs; a plot of the same data stays, since another matplotlib's bytes are no change."""
    for path, content in outputs.items():
        if _differs(path, content):
            record.write_atomically(path, content.png(LIGHT) if isinstance(content, Plot) else content)


def _differs(path: Path, content: str | Plot) -> bool:
    """Whether a file says something else. Plots are compared by the data they show."""
    try:
        old = path.read_bytes()
    except OSError:
        return True
    if isinstance(content, Plot):
        return plots.hash_in_png(old) != content.hash
    return _PICTURE.sub("", old.decode(errors="replace")) != _PICTURE.sub("", content)


def _message(path: Path, content: str | Plot, root: Path) -> str:
    name = str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
    if isinstance(content, Plot):
        return f"{name}: shows other data than the records hold"
    old = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    before, after = (_PICTURE.sub("data:image/png;base64,", text).splitlines() for text in (old, content))
    diff = difflib.unified_diff(before, after, f"{name} (as it is)", f"{name} (from the records)", lineterm="", n=1)
    return "\n".join([f"{name}: differs from what the records give", *list(diff)[:60]])
