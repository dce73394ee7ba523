"""A site: what `asv publish` made, with local libraries, and our pages beside it in `dashboard/`."""

from __future__ import annotations

import html
import re
import shutil
import string
from dataclasses import dataclass
from pathlib import Path

from ci import alerts, bridge, commits, history, policy
from ci.dashboard import data, libraries, sidecar
from ci.results import Unreadable

FOLDER = "dashboard"
_OURS = Path(__file__).with_name("www")
_LIBRARIES = "libraries"
# By what asv's address ends in: the file of a library that takes its place.
_LOCAL = {
    "jquery-3.3.1.min.js": "jquery/dist/jquery.min.js",
    "flot/0.8.3/jquery.flot.min.js": "flot/jquery.flot.js",
    "flot/0.8.3/jquery.flot.time.min.js": "flot/jquery.flot.time.js",
    "flot/0.8.3/jquery.flot.selection.min.js": "flot/jquery.flot.selection.js",
    "flot/0.8.3/jquery.flot.categories.min.js": "flot/jquery.flot.categories.js",
    "flot-orderbars@1.0.0/js/jquery.flot.orderBars.js": "flot-orderbars/js/jquery.flot.orderBars.js",
    "stupidtable/1.0.1/stupidtable.min.js": "stupid-table-plugin/stupidtable.min.js",
    "blueimp-md5/2.19.0/js/md5.min.js": "blueimp-md5/js/md5.min.js",
    "bootstrap@3.1.1/dist/js/bootstrap.min.js": "bootstrap/dist/js/bootstrap.min.js",
    "bootstrap@3.1.1/dist/css/bootstrap.min.css": "bootstrap/dist/css/bootstrap.min.css",
}
_LOADED = re.compile(r'<(?:script|link)\b[^>]*?\b(?:src|href)="(?P<address>(?:https?:)?//[^"]*)"[^>]*>')
_NAVIGATION = '<li id="nav-li-regressions">'


@dataclass(frozen=True)
class Page:
    """One of our pages: the name of its file and module, its title, and whether it is in the navigation."""

    name: str
    title: str
    linked: bool = True


PAGES = (
    Page("index", "Overview"),
    Page("history", "History"),
    Page("speedup", "Speedup"),
    Page("grid", "Heat map"),
    Page("roofline", "Roofline"),
    Page("code", "Code"),
    Page("commit", "Commit", linked=False),  # reached from a commit
)


@dataclass(frozen=True)
class Options:
    """What a site is made of.

    Args:
        html: the folder that asv published into. results: asv's results tree. repository: whose commits these are.
        cache: of libraries. project: its name. commit_address: to which a commit's hash is appended, or empty.
        may_lack_libraries: whether a site without them is better than none.
    """

    html: Path
    results: Path
    repository: Path
    cache: Path
    project: str = "flash_dsa"
    commit_address: str = ""
    may_lack_libraries: bool = False


def make(options: Options) -> str | None:
    """Makes our pages and turns asv's page to local libraries.

    Returns:
        What is missing, as a sentence, where libraries may be lacking and are; else None.
    Raises:
        results.Unreadable: for results that cannot be read. libraries.LibraryError: for libraries that cannot be had.
    """
    index = options.html / "index.html"
    if not index.exists():
        raise Unreadable(f"{index}: expected the site of `asv publish`, got none")
    folder = options.html / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    _write_data(options, folder / "data")
    for path in _OURS.iterdir():
        if path.name != "page.html":
            shutil.copyfile(path, folder / path.name)
    shell = string.Template((_OURS / "page.html").read_text(encoding="utf-8"))
    for page in PAGES:
        (folder / f"{page.name}.html").write_text(_rendered(shell, page, options.project), encoding="utf-8")
    try:
        libraries.provide([libraries.CHARTS, *libraries.ASV], options.cache, folder / _LIBRARIES)
    except libraries.LibraryError as error:
        if not options.may_lack_libraries:
            raise
        return f"charts are missing, and asv's pages load scripts from the network: {error}"
    index.write_text(localised(index.read_text(encoding="utf-8")), encoding="utf-8")
    return None


def localised(page: str) -> str:
    """asv's page with local libraries, and our pages in its navigation.

    Raises:
        libraries.LibraryError: for an address that no library here takes the place of: asv's page has changed.
    """

    def replace(match: re.Match[str]) -> str:
        address = match["address"]
        local = next((path for end, path in _LOCAL.items() if address.endswith(end)), None)
        if local is None:
            raise libraries.LibraryError(f"asv's page loads {address}, for which no library is pinned")
        tag = match[0].replace(address, f"{FOLDER}/{_LIBRARIES}/{local}")
        return re.sub(r'\s(?:integrity|crossorigin|referrerpolicy)="[^"]*"', "", tag)

    if _NAVIGATION not in page:
        raise libraries.LibraryError(f"asv's page has no {_NAVIGATION}, before which ours are linked")
    link = f'<li><a id="nav-dashboard" href="{FOLDER}/index.html">Dashboard</a></li>\n        '
    return _LOADED.sub(replace, page).replace(_NAVIGATION, link + _NAVIGATION)


def _rendered(shell: string.Template, page: Page, project: str) -> str:
    links = []
    for other in filter(lambda page: page.linked, PAGES):
        current = ' aria-current="page"' if other == page else ""
        links.append(f'<a href="{other.name}.html"{current}>{html.escape(other.title)}</a>')
    names = {"project": html.escape(project), "title": html.escape(page.title), "name": page.name}
    return shell.substitute(names, navigation="\n        ".join(links))


def _write_data(options: Options, folder: Path) -> None:
    known = commits.of(options.repository)
    histories = history.read_tree(options.results, known)
    sidecars = {machine: sidecar.read(options.results / machine) for machine in {one.machine for one in histories}}
    fingerprints = {
        (machine, commit): fingerprint
        for machine, beside in sidecars.items()
        for commit, fingerprint in beside.fingerprints.items()
    }
    found = alerts.judge(histories, policy.load().history, fingerprints, alerts.read_acknowledged())
    places = list(data.places_of(histories, found, sidecars))
    facts = {"project": options.project, "commit_address": options.commit_address}
    pieces = {machine: bridge.read(options.results / machine) for machine in sidecars}
    data.write(folder, places, found, pieces, known, facts)
