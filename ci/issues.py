"""Issues about what moved in the history: one for every alert, opened, kept up to date and closed with it.

Only what is worse, is not the machine's doing and stands open gets an issue; when it is fixed or acknowledged later,
its issue says so and is closed. So is that of an alert that is none any more: by later results nothing moved, or it
moved at another commit, which is another alert. An issue is known by a mark in its text, so an alert never has two.
`python -m ci.issues` needs the standard library and `gh` alone.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ci import github, policy, report, results, verdict
from ci.arguments import Parser
from ci.results import Unreadable

LABEL = "performance"
MOST = 10  # that are opened at once: more have one reason, and nobody reads them
_BAD = ("regressed", "failed", "missing")
_SETTLED = ("fixed", "acknowledged")
_ID = re.compile(r"[0-9a-f]{12}")
_MARK = re.compile(r"<!-- flash_dsa alert [0-9a-f]{12} -->")
_GONE = "**No alert any more:** by later results nothing moved, or at another commit, which has an issue of its own."
_REPOSITORY = re.compile(r"[A-Za-z0-9_.-]{1,100}/[A-Za-z0-9_.-]{1,100}")


def mark(alert: Mapping[str, Any]) -> str:
    """The line by which the issue of an alert is found again."""
    return f"<!-- flash_dsa alert {alert['id']} -->"


def read_alerts(path: Path) -> list[dict[str, Any]]:
    """The alerts that `python -m ci judge` wrote.

    Raises:
        results.Unreadable: when it wrote none of them.
    """
    document = results.load(path)
    found = document.get("alerts")
    if document.get("schema") != 1 or not isinstance(found, list):
        raise Unreadable(f"{path}: expected what `python -m ci judge` writes, schema 1")
    if not all(isinstance(one, dict) and _ID.fullmatch(str(one.get("id"))) for one in found):
        raise Unreadable(f"{path}: alerts: expected an id of 12 hexadecimal digits in each")
    return found


def recorded(results_tree: Path, machine: str, commit: str) -> report.Recorded:
    """What the suites recorded beside a commit's results; nothing where they did not."""
    path = results_tree / machine / f"{commit}.telemetry.jsonl"
    found: dict[str, Any] = {}
    if path.is_file():
        try:
            for line in map(json.loads, results.read_text(path).splitlines()):
                found |= {name: line[name] for name in ("machine", "fingerprint") if isinstance(line.get(name), dict)}
        except (ValueError, AttributeError) as error:
            raise Unreadable(f"{path}: {error}") from error
    return report.Recorded(found.get("machine", {}), found.get("fingerprint"))


def settle(repository: str, alerts: Sequence[Mapping[str, Any]], texts: Mapping[str, tuple[str, str]]) -> list[str]:
    """Brings the issues of a repository up to the alerts.

    Args:
        repository: `owner/name`. alerts: of `alerts.json`. texts: title and text of each, by its id.
    Returns:
        What was done, a line each.
    """
    path = f"repos/{repository}/issues"
    known = {}
    for issue in github.ask_all(f"{path}?state=all&labels={LABEL}&per_page=100"):
        if issue["user"] and issue["user"]["login"] == github.AUTHOR:
            known[(issue["body"] or "").partition("\n")[0].strip()] = issue  # a browser ends lines in CR LF
    done, opened = [], 0
    for alert in alerts:
        title, text = texts[alert["id"]]
        body = f"{mark(alert)}\n{text}"
        issue = known.get(mark(alert))
        if issue is None:
            if alert["verdict"] not in _BAD or alert["cause"] == "environment" or alert["status"] != "open":
                continue
            opened += 1
            if opened <= MOST:
                made = github.write(path, {"title": title, "body": body, "labels": [LABEL]}, "POST")
                done.append(f"opened #{(made or {}).get('number')}: {title}")
            continue
        content: dict[str, Any] = {"title": title, "body": body}
        if alert["status"] in _SETTLED and issue["state"] == "open":
            content |= {"state": "closed", "state_reason": "completed"}
        elif alert["status"] == "open" and _GONE in issue["body"]:
            content |= {"state": "open"}
        if any(issue.get(name) != value for name, value in content.items()):
            github.write(f"{path}/{int(issue['number'])}", content, "PATCH")
            done.append(f"{content.get('state', 'updated')} #{issue['number']}: {title}")
    for line in sorted(known.keys() - {mark(alert) for alert in alerts}):
        issue = known[line]
        if _MARK.fullmatch(line) and issue["state"] == "open":
            body = issue["body"].replace(line, f"{line}\n{_GONE}\n", 1)
            content = {"body": body, "state": "closed", "state_reason": "not_planned"}
            github.write(f"{path}/{int(issue['number'])}", content, "PATCH")
            done.append(f"closed #{issue['number']}: no alert any more")
    if opened > MOST:
        done.append(f"{opened - MOST} more alerts have no issue yet: at most {MOST} are opened at once")
    return done


def main(arguments: Sequence[str] | None = None) -> int:
    """Brings issues up to a file of alerts.

    Returns:
        0 done; 3 the file cannot be read, or GitHub did not answer.
    """
    parser = Parser(prog="python -m ci.issues", description="An issue for every alert of the history.")
    parser.add_argument("alerts", type=Path, help="what `python -m ci judge` wrote")
    parser.add_argument("--results", type=Path, default=Path("asv_bench/results"), help="tree that was judged")
    parser.add_argument("--repository", default=os.environ.get("GITHUB_REPOSITORY", ""), help="owner/name")
    parser.add_argument("--show", action="store_true", help="print the issues, write none")
    options = parser.parse_args(arguments)
    try:
        if not options.show and not _REPOSITORY.fullmatch(options.repository):
            parser.error(f"--repository: expected owner/name, got {options.repository!r}")
        alerts, thresholds = read_alerts(options.alerts), policy.load()
        texts = {}
        for alert in alerts:
            sides = [recorded(options.results, alert["machine"], alert[name]) for name in ("known_good", "commit")]
            texts[alert["id"]] = report.render_alert(alert, sides[0], sides[1], thresholds)
        if options.show:
            print("\n".join(f"# {title}\n\n{text}" for title, text in texts.values()) or "no alerts")
        else:
            print("\n".join(settle(options.repository, alerts, texts)) or "no issue had to change")
    except KeyError as error:
        print(f"ci.issues: {options.alerts}: an alert without {error}", file=sys.stderr)
        return verdict.USAGE
    except (Unreadable, github.GitHubError, policy.PolicyError, OSError, ValueError) as error:
        print(f"ci.issues: {error}", file=sys.stderr)
        return verdict.USAGE
    return verdict.NOTHING_TO_REPORT


if __name__ == "__main__":
    sys.exit(main())
