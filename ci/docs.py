"""The numbers of docs/judging.md: blocks between marks, made from `policy.toml` and the tracked drills.

So words, rule and evidence cannot part.
"""

from __future__ import annotations

import difflib
import re
import statistics
from collections.abc import Callable
from pathlib import Path

from ci import drill, qualify, stats
from ci.markdown import milliseconds, percent
from ci.policy import KernelClass, Policy

PAGE = Path(__file__).resolve().parent.parent / "docs" / "judging.md"
DRILLS = Path(__file__).resolve().parent / "drills"
_BLOCK = re.compile(
    r"^<!-- (?P<kind>policy|drills|qualified): (?P<name>\S+) -->\n(?P<body>.*?)^<!-- /(?P=kind) -->$", re.M | re.S
)
_MARK = re.compile(r"^<!-- /?(policy|drills|qualified).*-->$", re.M)


class UnknownBlock(RuntimeError):
    """A marked block that nothing can fill, or that does not end."""


def fill(text: str, policy: Policy) -> str:
    """Fills the blocks of a page, from `<!-- KIND: NAME -->` to `<!-- /KIND -->`, each on a line of its own.

    Of the kind `policy` are BLOCKS, of the kind `drills` the records of ci/drills by machine, and of the kind
    `qualified` the tables of ci/qualification.json.

    Raises:
        UnknownBlock: for a name that does not exist, or a block that does not end.
        results.Unreadable: when the records of drills cannot be read.
    """
    if len(_MARK.findall(text)) != 2 * len(_BLOCK.findall(text)):
        raise UnknownBlock("a block `<!-- KIND: NAME -->` is malformed or does not end")

    def replace(match: re.Match[str]) -> str:
        kind, name = match["kind"], match["name"]
        if kind == "policy" and name not in BLOCKS:
            raise UnknownBlock(f"block: expected one of {', '.join(BLOCKS)}, got {name}")
        body = {"policy": lambda: BLOCKS[name](policy), "drills": lambda: _drills(name)}.get(
            kind, lambda: _qualified(policy)
        )()
        return f"<!-- {kind}: {name} -->\n{body}\n<!-- /{kind} -->"

    return _BLOCK.sub(replace, text)


def update(policy: Policy, page: Path = PAGE, check: bool = False) -> str | None:
    """Writes the page's blocks again.

    Args:
        policy: the thresholds. page: the file. check: write nothing.
    Returns:
        A diff when the page is not as the policy says, else None.
    Raises:
        UnknownBlock: as `fill`. OSError: when the page cannot be read or written.
    """
    old = page.read_text(encoding="utf-8")
    new = fill(old, policy)
    if new == old:
        return None
    if not check:
        page.write_text(new, encoding="utf-8")
    before, after = (text.splitlines(keepends=True) for text in (old, new))
    return "".join(difflib.unified_diff(before, after, page.name, f"{page.name} by the policy"))


def _share(value: float) -> str:
    return f"{percent(value).rstrip('0').rstrip('.')} %"


def _limits(kernel_class: KernelClass) -> str:
    if kernel_class.up_to_seconds == float("inf"):
        return "any other"
    return f"up to {milliseconds(kernel_class.up_to_seconds)} ms"


def _classes(policy: Policy) -> str:
    lines = [
        "| device | base's time per launch | relevant change | process noise, deviation | looks after blocks | "
        "budget, both sides |",
        "|---|---|---:|---:|---|---:|",
    ]
    for one in policy.classes:
        looks = ", ".join(str(look) for look in one.looks)
        cells = [one.device, _limits(one), _share(one.relevant_change), _share(one.process_noise), looks]
        lines.append(f"| {' | '.join(cells)} | {one.budget_seconds:g} s |")
    return "\n".join(lines)


def _rule(policy: Policy) -> str:
    return f"""\
- **regressed** or **improved**: the estimate is at least the relevant change, and it is significant: of what is called
  so in the whole run, at most {_share(policy.false_discovery_rate)} is so by chance;
- **unchanged**: the whole interval of {_share(policy.confidence)} lies within the relevant change, to either side;
- **inconclusive**: anything else. It is not green."""


def _interval(policy: Policy) -> str:
    trimmed, floor = policy.trimmed_share, policy.class_of("cuda", 3e-3)
    half = stats.Estimate(0.0, 0.0, 1, floor.process_noise, 1.0, 0).half_width(1 - policy.confidence)
    return f"""\
- Of each order's blocks, {_share(trimmed)} at each end are left out before averaging.
- The interval holds the true ratio with {_share(policy.confidence)}, however often it was looked at. The minimum
  detectable effect is the change that would be found with {_share(policy.power)}.
- For a kernel of 3 ms the interval never gets narrower than +- {percent(half)} %, which is what processes differ in."""


def _looks(policy: Policy) -> str:
    kernel_class = policy.class_of("cuda", 3e-3)
    shares = [f"{_share(stats.look_share(look, kernel_class.looks))} after {look}" for look in kernel_class.looks]
    return f"For a kernel of 3 ms the looks may spend of the error probability:\n{', '.join(shares)} blocks."


def _doubt(policy: Policy) -> str:
    return f"""\
- more than {_share(policy.power_capped_share)} of the bursts ran under the power cap, or
- in half of the blocks the sides' clocks, cycles over seconds, are more than {_share(policy.clock_tolerance)} apart:
  one side's is lower throughout, or both go up and down."""


def _invalid(policy: Policy) -> str:
    return (
        f"If more than {_share(policy.max_discarded_share)} of a side's samples were discarded, the case is `failed` "
        "with the reason `invalid_measurement`."
    )


def _qualified(policy: Policy) -> str:
    record = qualify.read_record()
    if record["rule"] != vars(policy.history):
        raise UnknownBlock("the policy's [history] has changed since `python -m ci qualify --record`: run it again")
    return qualify.table(record)


def _drills(machine: str) -> str:
    lines = drill.read(DRILLS / f"{machine}.jsonl")
    checks = [line for line in lines if line["times"] == 1]
    seconds = statistics.median(line["seconds"] for line in checks)
    cards = ", ".join(sorted({line["machine"] for line in lines}))
    commits = ", ".join(dict.fromkeys(line["commit"][:12] for line in lines))
    each = f"{seconds:.0f} s each in the median with the start of processes"
    said = [f"{len(checks)} checks on {cards} at {commits}, {each}:", drill.table(drill.count(lines))]
    if any(line["plant"] in drill.REAL for line in checks):
        said += ["Real slowdowns, beside measurements with several times the blocks:", drill.longer_table(lines)]
    return "\n\n".join(said)


def _drift(policy: Policy) -> str:
    return f"The machine moved, if a control did by more than {_share(policy.machine_drift)}, beyond its intervals."


def _history(policy: Policy) -> str:
    rule = policy.history
    return f"""\
- A piece without a step is cut with a probability of {_share(rule.false_alarms)}, by {rule.orders} random orders.
- The smallest step is {_share(rule.relevant_change)}; two levels are {rule.drift_odds:g} times likelier than a line.
- One point on each side shows a step of {_share(rule.short_step)} or more, beyond {rule.short_deviations:g} deviations
  of their difference; {_share(rule.process_noise)} is what two runs of the same code differ in."""


BLOCKS: dict[str, Callable[[Policy], str]] = {
    "classes": _classes,
    "rule": _rule,
    "interval": _interval,
    "looks": _looks,
    "doubt": _doubt,
    "invalid": _invalid,
    "history": _history,
    "drift": _drift,
}
