"""The report: files that say nothing else than the records."""

from __future__ import annotations

import csv
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from instrument import invented
from instrument.invented import sweep_of

from asv_bench import __main__ as command
from asv_bench import cases, plots, record, report, tables
from asv_bench.findings import Sweep

SPARSE, DENSE = (case.problem for case in cases.cases_of("seed")[:2])


@pytest.fixture(scope="module")
def seed_sweep() -> Sweep:
    return Sweep("invented", invented.seed_sweep())


@pytest.mark.parametrize(
    "value, text",
    [(0.000291, "0.291"), (0.003541, "3.54"), (0.0299, "29.9"), (1.2612, "1,261"), (0.0, "0"), (None, tables.MISSING)],
)
def test_milliseconds(value: float | None, text: str) -> None:
    assert tables.milliseconds(value) == text


def test_bytes_and_shares() -> None:
    counts = [tables.byte_count(n) for n in (36.5e9, 151e6, 590_000, 12, None)]
    assert counts == ["36.5 GB", "151 MB", "590 kB", "12 B", tables.MISSING]
    assert tables.percent(0.0156) == "1.56 %" and tables.times(None) == tables.MISSING


class Links(HTMLParser):
    """Everything a page would load, and what its tags hold."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "srcset", "href", "data", "action")]


def test_the_page_is_self_contained_and_escapes_everything() -> None:
    nasty = '<script>alert("x")</script>&'
    found = [
        invented.number(SPARSE, "flash_dsa", 1.0, backend=nasty, gpu=nasty, commit=nasty),
        invented.failure(SPARSE, nasty, f"failed: {nasty}"),
    ]
    page = report.render(Sweep(nasty, found))["report.html"]
    assert isinstance(page, str)
    links = Links()
    links.feed(page)
    assert len(links.loaded) == 4 and all(link.startswith("data:image/png;base64,iVBOR") for link in links.loaded)
    assert "script" not in links.tags and nasty not in page and page.count("&lt;script&gt;") >= 5
    assert "prefers-color-scheme: dark" in page and "url(" not in page and "@import" not in page


def test_csv_has_every_key_and_reads_back(seed_sweep: Sweep) -> None:
    text = report.render(seed_sweep, draw=False)["sweep.csv"]
    lines = list(csv.DictReader(io.StringIO(str(text))))
    assert len(lines) == 48 and list(lines[0]) == list(record.RECORD_KEYS)
    assert float(lines[0]["seconds_median"]) == seed_sweep.records[0]["seconds_median"]
    assert lines[0]["topk"] == "512" and lines[4]["topk"] == ""  # no 512.0: an absent topk makes none a float
    assert lines[2]["seconds_median"] == ""


def test_rendering_twice_gives_the_same_bytes(seed_sweep: Sweep) -> None:
    first, second = (report.render(seed_sweep, draw=False) for _ in range(2))
    assert first["sweep.csv"] == second["sweep.csv"] and first["report.html"] == second["report.html"]
    drawn = [plots.of(seed_sweep)["speedup.png"].png(plots.LIGHT) for _ in range(2)]
    assert drawn[0] == drawn[1]


def test_a_plot_carries_the_hash_of_its_data(seed_sweep: Sweep) -> None:
    for plot in plots.of(seed_sweep).values():
        png = plot.png(plots.LIGHT)
        assert png.startswith(b"\x89PNG") and plots.hash_in_png(png) == plot.hash
        assert png != plot.png(plots.DARK)
    assert plots.hash_in_png(b"\x89PNG\r\n\x1a\n") is None
    hashes = {plot.hash for plot in plots.of(seed_sweep).values()}
    less = Sweep("invented", seed_sweep.records[:-4])
    assert hashes.isdisjoint(plot.hash for plot in plots.of(less).values()) and len(hashes) == 2


PAGE = """# Title

<!-- generated: summary machine=invented -->
old
<!-- /generated -->
between
<!-- generated: findings machine=absent -->
<!-- /generated -->
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project with records of two machines, one of them ignored by git, and pages with blocks."""
    for machine in ("invented", "local-box"):
        folder = tmp_path / "asv_bench" / "sweeps" / machine
        folder.mkdir(parents=True)
        store = record.Store(folder)
        for found in invented.seed_sweep():
            store.put(found, [[1.0]] if found["seconds_median"] else [])
        store.save()
    (tmp_path / "README.md").write_text(PAGE)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "speed.md").write_text("<!-- generated: ratios machine=invented -->\n<!-- /generated -->\n")
    return tmp_path


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_report_fills_everything_and_then_agrees(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "ROOT", tree)
    before = snapshot(tree)
    assert len(report.regenerate(tree, check=True)) == 6 and snapshot(tree) == before  # 4 files, README, docs
    report.regenerate(tree)
    after = snapshot(tree)
    assert set(after) - set(before) == {
        f"asv_bench/sweeps/{machine}/{name}"
        for machine in ("invented", "local-box")
        for name in ("sweep.csv", "latency.png", "speedup.png", "report.html")
    }
    readme = after["README.md"].decode()
    assert "| 131072 | 2048 | 1.56 % |" in readme and "old" not in readme and "\nbetween\n" in readme
    assert "No records of absent yet." in readme
    assert "| sparse_fwd | 576/512 MQA | naive | 8.00x | 8.00x | 8.00x | 6 |" in after["docs/speed.md"].decode()
    assert report.regenerate(tree, check=True) == [] and report.regenerate(tree) == []
    assert snapshot(tree) == after

    # Another matplotlib's bytes of the same data are no difference; local machines are nobody's business.
    folder = tree / "asv_bench" / "sweeps"
    data = plots.of(Sweep("invented", invented.seed_sweep()))
    (folder / "invented" / "latency.png").write_bytes(data["latency.png"].png(plots.DARK))
    page = (folder / "invented" / "report.html").read_text()
    (folder / "invented" / "report.html").write_text(re.sub('base64,[^"]*', "base64,AAAA", page))
    shutil.rmtree(folder / "local-box")
    assert report.regenerate(tree, check=True) == []

    edits: list[tuple[str, str, str]] = [
        ("README.md", "8.00x", "9.00x"),
        ("docs/speed.md", "8.00x", "9.00x"),
        ("asv_bench/sweeps/invented/sweep.csv", "NVIDIA", "AMD"),
        ("asv_bench/sweeps/invented/report.html", "8.00x", "9.00x"),
    ]
    for name, old, new in edits:
        whole = (tree / name).read_text()
        (tree / name).write_text(whole.replace(old, new, 1))
        messages = report.regenerate(tree, check=True)
        assert len(messages) == 1 and messages[0].startswith(f"{name}: differs") and "\n-" in messages[0], name
        (tree / name).write_text(whole)
    stale = plots.of(Sweep("invented", invented.seed_sweep()[:8]))["speedup.png"].png(plots.LIGHT)
    (folder / "invented" / "speedup.png").write_bytes(stale)
    assert report.regenerate(tree, check=True) == [
        "asv_bench/sweeps/invented/speedup.png: shows other data than the records hold"
    ]


def test_check_fails_as_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(report, "regenerate", lambda check: ["README.md: differs\n-old\n+new"])
    assert command.main(["report", "--check"]) == 1
    assert "README.md" in capsys.readouterr().out
    monkeypatch.setattr(report, "regenerate", lambda check: [])
    assert command.main(["report", "--check"]) == 0


@pytest.mark.parametrize(
    "text, reason",
    [
        ("<!-- generated: poem machine=x -->\n<!-- /generated -->\n", "block expected one of summary.* got poem"),
        ("<!-- generated: summary machine=x -->\nnever closed\n", "malformed or does not end"),
        ("<!-- generated: summary -->\n<!-- /generated -->\n", "malformed or does not end"),
    ],
)
def test_a_block_that_cannot_be_filled_is_an_error(text: str, reason: str) -> None:
    with pytest.raises(report.UnknownBlock, match=f"page.md: .*{reason}"):
        report.fill(text, {}, "page.md")


def test_text_without_blocks_is_left_alone() -> None:
    text = "write `<!-- generated: NAME machine=M -->` on its own line\n"
    assert report.fill(text, {}) == text


def test_an_empty_sweep_renders() -> None:
    files = report.render(sweep_of())
    assert "There are no records." in str(files["report.html"]) and report.console(sweep_of()) == ""
