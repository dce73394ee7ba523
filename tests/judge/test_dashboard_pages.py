"""The dashboard's pages in a real browser, which reaches this machine alone. Pictures are left in build/screenshots."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import asv.util
import pytest
from judge import browsing, long_history
from judge import invented_site as invented
from judge.browsing import served

from ci.dashboard import libraries, site

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "build" / "screenshots"
LIBRARIES = ROOT / "build" / "libraries"
LOOKS = {"light": ("light", 1280), "dark": ("dark", 1280), "phone": ("light", 390), "phone-dark": ("dark", 390)}
PAGES = [page.name for page in site.PAGES]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed: requirements-browser.txt")
    if browsing.path() is None:
        pytest.skip(f"no browser is installed: none of {', '.join(browsing.BROWSERS)}")
    with browsing.launched() as launched:
        yield launched


@pytest.fixture(scope="module", autouse=True)
def fetched(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The libraries that `make publish` keeps."""
    try:
        libraries.provide([libraries.CHARTS, *libraries.ASV], LIBRARIES, tmp_path_factory.mktemp("libraries"))
    except libraries.LibraryError as error:
        pytest.skip(f"no libraries: {error}")


def make(html: Path, tree: invented.Tree) -> None:
    """Our pages in a folder that holds asv's site."""
    site.make(site.Options(html, tree.results, tree.repository, LIBRARIES))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> invented.Tree:
    return invented.write(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def address(tree: invented.Tree, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where our pages of the invented history are."""
    html = tmp_path_factory.mktemp("site") / "html"
    shutil.copytree(Path(asv.__file__).parent / "www", html)
    make(html, tree)
    with served(html) as where:
        yield f"{where}/{site.FOLDER}"


@dataclass
class Visit:
    """A page in a browser, and everything that went wrong on it."""

    page: Any
    problems: list[str] = field(default_factory=list)

    def open(self, address: str) -> Any:
        self.page.goto(address)
        return self.ready()

    def ready(self) -> Any:
        self.page.wait_for_selector("body[data-ready]", timeout=20_000)
        return self.page

    def chart(self, number: int = 0) -> Any:
        return self.page.locator(".chart").nth(number)

    def pixel(self, number: int, commit: int, value: float) -> tuple[float, float]:
        """Where a point of a chart is on the page."""
        script = "(node, [x, y]) => node.drawn.convertToPixel({xAxisIndex: 0, yAxisIndex: 0}, [x, y])"
        self.chart(number).scroll_into_view_if_needed()
        x, y = self.chart(number).evaluate(script, [commit, value])
        box = self.chart(number).bounding_box()
        return box["x"] + x, box["y"] + y

    def picture(self, name: str) -> None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=PICTURES / f"{name}.png", full_page=True)


@contextmanager
def visiting(browser: Any, look: str = "light") -> Iterator[Visit]:
    scheme, width = LOOKS[look]
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
    visit = Visit(context.new_page())

    def local_only(route: Any) -> None:
        if urlsplit(route.request.url).hostname == "127.0.0.1":
            route.continue_()
        else:
            visit.problems.append(f"asked for {route.request.url}")
            route.abort()

    context.route("**/*", local_only)
    visit.page.on("console", lambda said: said.type in ("error", "warning") and visit.problems.append(said.text))
    visit.page.on("pageerror", lambda error: visit.problems.append(str(error)))
    visit.page.on("response", lambda answer: answer.status >= 400 and visit.problems.append(answer.url))
    visit.page.on("dialog", lambda dialog: visit.problems.append(f"dialog {dialog.message}"))
    yield visit
    assert visit.problems == []
    assert visit.page.locator("body[data-hacked]").count() == 0
    context.close()


# How many values of red, green, blue or opacity a canvas has: few where nothing is drawn.
COLOURS = """canvas =>
    new Set(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data).size"""
QUERIES = {"grid": "base={first}&machine=h100-sxm", "commit": "hash={slower}"}


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", PAGES)
def test_every_page_shows_every_machine(browser: Any, address: str, tree: invented.Tree, name: str, look: str) -> None:
    query = QUERIES.get(name, "").format(first=tree.commits[0], slower=tree.commits[invented.SLOWER_AT])
    with visiting(browser, look) as visit:
        page = visit.open(f"{address}/{name}.html?{query}")
        headings = page.locator("h2").all_inner_texts()
        assert any(text.startswith("h100-sxm") for text in headings)
        assert name == "grid" or any(text.startswith("<b>h200") for text in headings)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.locator(".error").count() == 0
        for number in range(page.locator(".chart canvas").count()):
            drawn = page.locator(".chart canvas").nth(number).evaluate(COLOURS)
            assert drawn > 8
        visit.picture(f"{name}-{look}")


def test_asvs_site_leads_to_ours_and_loads_nothing_from_elsewhere(
    browser: Any, tree: invented.Tree, tmp_path: Path
) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("asv publishes the history of a repository, and this tree is none")
    # What is committed: of a machine's own results, asv's page may ask for what was not measured.
    tracked = subprocess.run(["git", "ls-files", "-z", "asv_bench/results"], cwd=ROOT, check=True, capture_output=True)
    for name in filter(None, tracked.stdout.decode().split("\0")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    settings = asv.util.load_json(str(ROOT / "asv.conf.json"), js_comments=True)
    settings |= {"repo": str(ROOT), "benchmark_dir": str(ROOT / "asv_bench")}
    (tmp_path / "asv.conf.json").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "asv", "publish", "--no-pull", "--html-dir", str(tmp_path / "html")]
    done = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    make(tmp_path / "html", tree)
    with served(tmp_path / "html") as where, visiting(browser) as visit:
        page = visit.page
        page.goto(f"{where}/index.html")
        page.wait_for_selector("#summarygrid-display a")
        visit.picture("asv-grid")
        page.goto(f"{where}/index.html#sparse_prefill.SparsePrefill.track_seconds?x-axis=s_kv")
        page.wait_for_selector("#main-graph canvas")
        page.wait_for_function("jQuery.active === 0")  # asv draws again with each answer, and cannot once it is hidden
        visit.picture("asv-graph")
        page.goto(f"{where}/index.html#/summarylist")
        page.wait_for_selector("#summarylist-body table")
        page.click("#nav-dashboard")
        visit.ready()
        for link in site.PAGES[1:-1]:
            page.click(f"nav >> text={link.title}")
            page.wait_for_url(f"**/{link.name}.html*")
            assert visit.ready().inner_text("h1") == link.title
        page.click("text=asv's site")
        page.wait_for_selector("#summarygrid-display a")


def test_hovering_tells_the_point_and_a_message_is_text(browser: Any, address: str, tree: invented.Tree) -> None:
    with visiting(browser) as visit:
        page = visit.open(f"{address}/history.html?machine=h100-sxm&s_kv=4096&variant=topk+2048")
        value = invented.seconds(0, invented.SLOWER_AT, 4096, 2048, "flash_dsa")
        page.mouse.move(*visit.pixel(0, invented.SLOWER_AT, value))
        page.wait_for_selector(".tip")
        said = page.inner_text(".tip")
        assert tree.commits[invented.SLOWER_AT][:10] in said and invented.HOSTILE in said
        assert f"flash_dsa: {value * 1e3:#.4g} ms" in said and "time +5" in said and "the code" in said
        visit.picture("hover")


def test_a_click_on_a_point_leads_to_its_commit(browser: Any, address: str, tree: invented.Tree) -> None:
    with visiting(browser) as visit:
        page = visit.open(f"{address}/history.html?machine=h100-sxm&s_kv=4096&variant=topk+2048")
        page.mouse.click(*visit.pixel(0, 3, invented.seconds(0, 3, 4096, 2048, "naive")))
        page.wait_for_url("**/commit.html*")
        assert tree.commits[3] in visit.ready().inner_text("main")


def test_a_filter_is_in_the_address_and_the_address_sets_the_filter(browser: Any, address: str) -> None:
    names = "node => node.drawn.getOption().series.filter(one => one.type === 'line').map(one => one.name)"
    with visiting(browser) as visit:
        page = visit.open(f"{address}/history.html?machine=h100-sxm&s_kv=4096&variant=topk+512")
        assert visit.chart().evaluate(names) == ["flash_dsa", "naive", "flash_mla"]
        page.select_option("select[name=implementation]", "naive")
        page.select_option("select[name=quantity]", "tflops")
        page.wait_for_function("document.querySelector('.chart')?.drawn?.getOption().yAxis[0].name === 'TFLOPS'")
        assert visit.chart().evaluate(names) == ["naive"]
        asked = parse_qs(urlsplit(page.url).query)
        assert asked["implementation"] == ["naive"] and asked["quantity"] == ["tflops"] and asked["s_kv"] == ["4096"]
        visit.open(page.url)
        assert visit.chart().evaluate(names) == ["naive"] and page.input_value("select[name=variant]") == "topk 512"
        assert "TFLOPS" in page.inner_text("main table")


def test_the_overview_says_what_was_measured_before_a_change(browser: Any, address: str, tree: invented.Tree) -> None:
    with visiting(browser) as visit:
        page = visit.open(f"{address}/index.html?machine=h100-sxm&verdict=improved")
        faster, before = (tree.commits[at][:10] for at in (invented.FASTER_AT, invented.FASTER_AT - 1))
        assert f"since {faster}, measured before at {before}: " in page.locator(".alert").first.inner_text()


def test_the_overview_compares_the_pieces_of_a_history(browser: Any, address: str) -> None:
    with visiting(browser) as visit:
        page = visit.open(f"{address}/index.html?machine=h100-sxm")
        pieces = page.locator("h3", has_text="Measured in pieces").locator("xpath=following-sibling::div[1]")
        rows = [row.inner_text().split("\t") for row in pieces.locator("tbody tr").all()]
    assert rows[1] == ["2026-09-22", "GPU-1", "2", "\u22120.51 %", "\u22122.0 % to +1.0 %"]
    assert rows[0][3:] == ["", ""] and rows[2][1] == invented.HOSTILE[:12]


def test_a_machines_name_is_text_and_can_be_asked_for(browser: Any, address: str) -> None:
    with visiting(browser) as visit:
        page = visit.open(f"{address}/index.html?machine={quote('<b>h200')}")
        assert page.locator("h2").all_inner_texts() == ["<b>h200 (NVIDIA H100 80GB HBM3)"]


def test_the_wheel_zooms(browser: Any, address: str) -> None:
    width = (
        "node => { const {startValue, endValue} = node.drawn.getOption().dataZoom[0]; return endValue - startValue }"
    )
    with visiting(browser) as visit:
        page = visit.open(f"{address}/history.html?machine=h100-sxm&s_kv=4096&variant=topk+2048")
        whole = visit.chart().evaluate(width)
        page.mouse.move(*visit.pixel(0, 12, invented.seconds(0, 12, 4096, 2048, "flash_dsa")))
        page.mouse.wheel(0, -600)
        page.wait_for_timeout(300)
        assert visit.chart().evaluate(width) < whole == invented.COMMITS - 1


def test_points_without_a_value_are_said(browser: Any, address: str, tree: invented.Tree) -> None:
    with visiting(browser) as visit:
        page = visit.open(f"{address}/history.html?machine=h100-sxm&s_kv=16384&variant=topk+2048")
        said = page.inner_text("main")
        assert f"flash_dsa failed: wrong_answer: {invented.HOSTILE} (1 commit)" in said
        assert f"flash_mla n/a: unsupported: no room ({invented.COMMITS} commits)" in said
        commit = tree.commits[invented.FAILED_AT]
        page = visit.open(f"{address}/grid.html?machine=h100-sxm&commit={commit}")
        labels = "node => node.drawn.getOption().series[1].data.map(one => one.missing)"
        assert visit.chart().evaluate(labels) == ["failed"]
        visit.picture("grid-failed")
        page = visit.open(f"{address}/commit.html?hash=0123abc")
        assert "no commit that was measured here begins so" in page.inner_text("main")


@pytest.mark.parametrize("quantity", ["latency", "tflops", "share"])
def test_points_without_a_value_stand_below_their_commit(browser: Any, address: str, quantity: str) -> None:
    """However wide the labels beside the values are."""
    places = """node => [0, 1].map(grid => node.drawn.convertToPixel({xAxisIndex: grid}, 3))"""
    with visiting(browser) as visit:
        visit.open(f"{address}/history.html?machine=h100-sxm&s_kv=16384&variant=topk+2048&quantity={quantity}")
        above, below = visit.chart().evaluate(places)
        assert above == pytest.approx(below)


def test_the_heat_map_of_two_commits_has_their_difference(browser: Any, address: str, tree: invented.Tree) -> None:
    with visiting(browser) as visit:
        before, after = tree.commits[invented.FASTER_AT - 1], tree.commits[invented.FASTER_AT]
        visit.open(f"{address}/grid.html?machine=h100-sxm&commit={after[:12]}&base={before[:12]}")
        ratios = "node => node.drawn.getOption().series[0].data.map(one => one.shown)"
        assert visit.chart().evaluate(ratios) == pytest.approx([0.8] * 6, rel=0.01)


def test_a_commits_points_are_counted_and_ordered_by_change(browser: Any, address: str, tree: invented.Tree) -> None:
    with visiting(browser) as visit:
        page = visit.open(
            f"{address}/commit.html?hash={tree.commits[invented.FAILED_AT]}&machine=h100-sxm&order=change"
        )
        cells = [row.locator("td").all_inner_texts() for row in page.locator("tbody tr").all()]
        changes = [abs(float(last.removesuffix(" %").replace("\u2212", "-"))) for _, _, last in cells if last]
        states = [value.split()[0] if value[0] in "fn" else "measured" for _, value, _ in cells]
        counted = {state: states.count(state) for state in states}
        assert changes == sorted(changes, reverse=True) and len(changes) > 3 and min(changes) < max(changes)
        said = page.locator("p", has_text=f"{len(cells)} points: ").inner_text()
    assert sorted(said.rstrip(".").split(": ")[1].split(", ")) == sorted(
        f"{count} {state}" for state, count in counted.items()
    )


def test_a_heat_maps_numbers_fit_a_phones_cells(browser: Any, address: str) -> None:
    text = "node => node.drawn.getOption().series[0].label.formatter({data: node.drawn.getOption().series[0].data[0]})"
    with visiting(browser, "phone") as visit:
        visit.open(f"{address}/grid.html?machine=h100-sxm")
        assert re.fullmatch(r"(\{light\|)?[\d.]+\}?\n(\{light\|)?[mµ]s\}?", visit.chart().evaluate(text))


def test_the_roofline_is_that_of_the_measured_clock(browser: Any, address: str) -> None:
    with visiting(browser) as visit:
        page = visit.open(f"{address}/roofline.html?machine=h100-sxm&implementation=flash_dsa")
        said = page.inner_text("main")
        assert "Peak at 1,700 MHz: 919.1 TFLOPS" in said
        flops = 2 * 128 * (576 + 512) * 4096 * 2048
        seconds = invented.seconds(0, invented.COMMITS - 1, 4096, 2048, "flash_dsa")
        assert f"{flops / seconds / (132 * 4096 * 1.7e9) * 100:#.3g} %" in said


def test_a_missing_file_is_said(browser: Any, address: str) -> None:
    with visiting(browser) as visit:
        visit.page.route("**/overview.json", lambda route: route.fulfill(status=404, body=""))
        page = visit.open(f"{address}/index.html")
        assert "This page cannot be shown: overview.json: the server answered 404" in page.inner_text("main")
        assert len(visit.problems) == 3  # the answer, the browser's word on it, and ours
        visit.problems.clear()


@dataclass(frozen=True)
class Published:
    """What our part of a site of a long history cost, in seconds of one core: a busy machine does not change them."""

    html: Path
    seconds: float
    gigabytes: float


def publish(root: Path, commits: int) -> Published:
    tree = long_history.write(root, commits)
    shutil.copytree(Path(asv.__file__).parent / "www", root / "html")
    folders = ["html", "--results", str(tree.results), "--libraries", str(LIBRARIES)]
    command = [sys.executable, "-m", "ci", "dashboard", *folders]
    started = subprocess.Popen(command, cwd=root, env=os.environ | {"PYTHONPATH": str(ROOT)})
    _, status, usage = os.wait4(started.pid, 0)
    started.returncode = os.waitstatus_to_exitcode(status)
    assert started.returncode == 0
    return Published(root / "html", usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6)


@pytest.fixture(scope="module")
def long_site(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Pages of 10,000 commits of 200 series."""
    return publish(tmp_path_factory.mktemp("long"), 10_000)


def test_a_long_history_takes_a_minute_and_grows_with_its_length(long_site: Published, tmp_path: Path) -> None:
    short = publish(tmp_path, 2500)
    print(f"2,500 commits: {short.seconds:.1f} s; 10,000: {long_site.seconds:.1f} s, {long_site.gigabytes:.2f} GB")
    assert long_site.seconds < 60 and long_site.gigabytes < 2
    assert long_site.seconds < 6 * short.seconds


@pytest.mark.parametrize("name", PAGES)
def test_pages_of_a_long_history_open_in_three_seconds(browser: Any, long_site: Published, name: str) -> None:
    with served(long_site.html) as where, visiting(browser) as visit:
        begin = time.monotonic()
        visit.open(f"{where}/{site.FOLDER}/{name}.html")
        seconds = time.monotonic() - begin
        print(f"{name}: {seconds:.2f} s")
        visit.picture(f"long-{name}")
        assert seconds < 3
