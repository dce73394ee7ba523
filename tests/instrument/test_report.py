"""The report: numbers worked out by hand from invented records, and files that say nothing else than the records."""

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

from asv_bench import __main__ as command
from asv_bench import cases, findings, plots, record, report, tables
from asv_bench.findings import Sweep

SPARSE, DENSE = (case.problem for case in cases.cases_of("seed")[:2])


def sweep_of(*records: record.Record) -> Sweep:
    return Sweep("invented", record.in_order(records))


@pytest.fixture(scope="module")
def seed_sweep() -> Sweep:
    return Sweep("invented", invented.seed_sweep())


def cells(table: tables.Table, line: int) -> dict[str, str]:
    return dict(zip(table.titles, table.rows[line], strict=True))


def test_summary_of_the_seed_shapes(seed_sweep: Sweep) -> None:
    table = findings.summary_table(seed_sweep)
    assert cells(table, 0) == {
        "s_q": "1024",
        "s_kv": "4096",
        "topk": "512",
        "attended": "12.5 %",
        "naive ms": "4.67",
        "dense sdpa ms": "11.7",
        "dense flash_dsa ms": "5.84",
        "sparse flash_mla ms": "0.292",
        "sparse flash_dsa ms": "0.584",
        "vs naive": "8.00x",
        "vs best dense": "10.0x",
        "vs flash_mla": "0.500x",
        "TFLOPS": "250",
    }
    last = cells(table, 5)
    assert last["dense flash_dsa ms"] == "out of memory" and last["dense sdpa ms"] == "1,495"
    assert last["vs best dense"] == "160x" and last["attended"] == "1.56 %"


def test_complexity_of_the_seed_shapes(seed_sweep: Sweep) -> None:
    assert cells(findings.complexity_table(seed_sweep), 4) == {
        "s_kv": "65536",
        "topk": "2048",
        "dense GFLOP": "74,767",
        "sparse GFLOP": "2,336",
        "theoretical": "32.0x",
        "measured": "40.0x",
        "of theoretical": "125 %",
        "sparse roofline": "25.0 %",
        "dense roofline": "20.0 %",
        "dense K+V": "18.3 GB",
        "sparse KV": "75.5 MB",
        "sparse peak": "1.00 GB",
        "naive peak": "1.00 GB",
        "max error": "2.4e-05",
    }


def test_ratios_are_geometric_means_over_cases() -> None:
    other = cases.cases_of("seed")[2].problem
    table = findings.ratios_table(
        sweep_of(
            *(invented.number(p, "flash_dsa", 1.0) for p in (SPARSE, other)),
            invented.number(SPARSE, "naive", 2.0),
            invented.number(other, "naive", 8.0),
        )
    )
    assert table.rows == (("sparse_fwd", "576/512 MQA", "naive", "4.00x", "2.00x", "8.00x", "2"),)


def test_a_ratio_needs_two_numbers_of_one_process_and_protocol() -> None:
    ours = invented.number(SPARSE, "flash_dsa", 1.0)
    found = findings.ratio(invented.number(SPARSE, "naive", 3.0), ours)
    assert found and (found.value, found.low, found.high) == (
        3.0,
        pytest.approx(2.97 / 1.01),
        pytest.approx(3.03 / 0.99),
    )
    assert findings.ratio(invented.number(SPARSE, "naive", 3.0, run="run-b"), ours) is None
    assert findings.ratio(invented.number(SPARSE, "naive", 3.0, protocol="other-v1"), ours) is None
    assert findings.ratio(invented.failure(SPARSE, "naive", "failed: x"), ours) is None
    assert findings.ratio(None, ours) is None
    apart = sweep_of(ours, invented.number(SPARSE, "naive", 3.0, run="run-b"))
    assert cells(findings.summary_table(apart), 0)["vs naive"] == tables.MISSING
    assert findings.ratios_table(apart).rows == ()


@pytest.mark.parametrize(
    "ours, rival, together",
    [
        ({}, {}, True),
        ({"noted": {"group": "a"}}, {"noted": {"group": "a"}}, True),
        ({"noted": {"group": "a"}}, {"noted": {"group": "b"}}, False),
        ({"noted": {"group": "a"}}, {}, True),  # an old record beside a new one: the process decides
        ({"noted": {"group": "a"}}, {"noted": {"group": "a"}, "run": "run-b"}, False),
        ({"run": None}, {"run": None}, False),
        ({"run": None, "noted": {"group": "a"}}, {"run": None, "noted": {"group": "a"}}, False),
    ],
)
def test_a_ratio_needs_records_that_took_turns(ours: Any, rival: Any, together: bool) -> None:
    """Also between a sparse problem and its dense counterpart."""
    sparse, dense = invented.number(SPARSE, "flash_dsa", 1.0, **ours), invented.number(DENSE, "sdpa", 4.0, **rival)
    assert (findings.ratio(dense, sparse) is not None) is together
    said = findings.sentences(sweep_of(sparse, dense))
    assert any("fastest dense" in text for _, text in said) is together
    assert bool(plots.speedup_data(sweep_of(sparse, dense))["lines"]) is together


def test_the_fastest_dense_is_the_fastest_valid_of_two() -> None:
    def best(ours: record.Record, sdpa: record.Record) -> str:
        row = sweep_of(invented.number(SPARSE, "flash_dsa", 1.0), ours, sdpa).rows[0]
        assert row.best_dense
        return str(row.best_dense["implementation"])

    fast, slow = (invented.number(DENSE, "flash_dsa", seconds) for seconds in (1.0, 9.0))
    sdpa, wrong = invented.number(DENSE, "sdpa", 5.0), invented.failure(DENSE, "sdpa", "wrong_answer: out")
    assert [best(fast, sdpa), best(slow, sdpa), best(slow, wrong)] == ["flash_dsa", "sdpa", "flash_dsa"]
    naive = invented.number(DENSE, "naive", 0.1)  # no candidate: nobody would run it
    row = sweep_of(invented.number(SPARSE, "flash_dsa", 1.0), naive).rows[0]
    assert row.best_dense is None


def test_missing_is_said_with_its_reason_and_is_no_zero() -> None:
    found = sweep_of(
        invented.failure(SPARSE, "flash_dsa", "wrong_answer: out: 3 NaN"),
        invented.number(SPARSE, "naive", 1.0),
        invented.failure(DENSE, "sdpa", "out_of_memory: 36 GB"),
    )
    line = cells(findings.summary_table(found), 0)
    assert line["sparse flash_dsa ms"] == "wrong answer" and line["dense sdpa ms"] == "out of memory"
    assert line["dense flash_dsa ms"] == "not measured" and line["vs naive"] == tables.MISSING
    data = plots.latency_data(found)
    assert data["series"]["sparse flash_dsa"] == ["wrong answer"] and data["series"]["naive"] == [1.0]
    assert plots.speedup_data(found)["lines"] == {}
    assert "flash_dsa is outside the tolerance in sparse_fwd at s_kv 4096 (out: 3 NaN); no time is kept." in dict(
        (sentence, topic) for topic, sentence in findings.sentences(found)
    )
    rows = findings.failures_table(found).rows
    assert ("sdpa", "dense_fwd", "1", "4096", "out_of_memory: 36 GB") in rows and len(rows) == 2


def test_failures_of_one_reason_are_one_line(seed_sweep: Sweep) -> None:
    rows = {row[0]: row for row in findings.failures_table(seed_sweep).rows if row[1] == "dense_fwd"}
    reason = "unsupported: naive dense is timed up to s_kv 16384"
    assert rows["naive"] == ("naive", "dense_fwd", "3", "32768 to 131072", reason)


def test_findings_are_computed(seed_sweep: Sweep) -> None:
    said = findings.sentences(seed_sweep)
    texts = [sentence for _, sentence in said]
    assert {topic for topic, _ in said} == {"speed", "memory", "accuracy", "coverage"}
    assert texts[0] == (
        "Sparse attention by flash_dsa is 8.00x faster than naive PyTorch, "
        "geometric mean over 6 cases (8.00x to 8.00x)."
    )
    assert "0.500x as fast as the peer flash_mla" in texts[1]
    assert texts[2] == (
        "Against the fastest dense 576/512 attention over all keys, K and V for each of 128 heads, sparse takes 1/160 "
        "of the time at s_kv 131072 (1,495 ms by sdpa, 9.35 ms sparse); the FLOPs alone would give 64.0x."
    )
    assert texts[3] == "Sparse is faster than that dense at every measured s_kv, from 4096 to 131072."
    assert "K and V of 128 heads take 36.5 GB, 242x as much." in texts[5]
    assert texts[-1] == "32 of 48 combinations have a number; the others are listed with their reason."


def test_findings_follow_the_numbers() -> None:
    slow = findings.sentences(sweep_of(invented.number(SPARSE, "flash_dsa", 2.0), invented.number(DENSE, "sdpa", 1.0)))
    assert any(text == "Sparse is not faster than that dense at any measured s_kv (4096)." for _, text in slow)
    assert any("sparse takes 2.00x the time" in text for _, text in slow)
    other = cases.cases_of("seed")[2].problem
    mixed = findings.sentences(
        sweep_of(
            invented.number(SPARSE, "flash_dsa", 2.0),
            invented.number(DENSE, "sdpa", 1.0),
            invented.number(other, "flash_dsa", 1.0),
            invented.number(cases.dense_counterpart(other), "sdpa", 3.0),
        )
    )
    assert any(text == "Sparse is faster than that dense at s_kv 8192, slower at 4096." for _, text in mixed)
    assert findings.sentences(sweep_of()) == []


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
