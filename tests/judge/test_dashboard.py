"""What the dashboard's files say, on an invented history with known truth."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from judge import invented_site as invented
from judge.test_history import write as write_result

from asv_bench.cases import all_cases
from ci import __main__ as command
from ci.dashboard import libraries, site, speedups, work
from ci.dashboard.speedups import Crossover, Track
from ci.history import State
from ci.results import Unreadable

ASV_PAGE = f"""<head><script src="https://code.jquery.com/jquery-3.3.1.min.js" integrity="sha256-x"
crossorigin="anonymous"></script><link href="asv.css" rel="stylesheet"></head>
<a href="https://github.com/airspeed-velocity/asv/">asv</a> {site._NAVIGATION}"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> invented.Tree:
    return invented.write(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def made(tree: invented.Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the data of the invented tree's site."""
    folder = tmp_path_factory.mktemp("data")
    site._write_data(site.Options(folder, tree.results, tree.repository, folder), folder)
    return folder


def read(made: Path, name: str) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads((made / name).read_text(), parse_constant=refuse)


def place_of(made: Path, machine: str) -> dict[str, Any]:
    (place,) = (one for one in read(made, "index.json")["places"] if one["machine"] == machine)
    return dict(place)


def series_of(made: Path, machine: str, **wanted: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    place = place_of(made, machine)["id"]
    fits = [one for one in read(made, "index.json")["series"] if one["place"] == place]
    (found,) = (one for one in fits if all(one[name] == value for name, value in wanted.items()))
    return found, read(made, f"series/{found['id']}.json")


OURS = {"op": "sparse_fwd", "s_kv": 16384, "topk": 2048, "implementation": "flash_dsa"}


def test_a_series_has_values_intervals_and_why_one_is_missing(made: Path) -> None:
    _, content = series_of(made, "h100-sxm", **OURS)
    expected = [n for n in range(invented.COMMITS) if n != invented.FAILED_AT]
    assert content["at"] == expected and content["failed"] == [invented.FAILED_AT] and content["na"] == []
    truth = [invented.seconds(0, number, 16384, 2048, "flash_dsa") for number in expected]
    assert content["value"] == pytest.approx(truth, rel=1e-5)
    assert content["low"] == pytest.approx([0.998 * value for value in truth], rel=1e-5)
    assert content["high"] == pytest.approx([1.003 * value for value in truth], rel=1e-5)
    assert content["cycles"] == pytest.approx([1.7e9 * value for value in truth], rel=1e-5)
    assert content["reasons"][content["reason"][str(invented.FAILED_AT)]] == f"wrong_answer: {invented.HOSTILE}"


def test_change_points_are_at_their_commits_with_their_cause(made: Path) -> None:
    _, content = series_of(made, "h100-sxm", **OURS)
    found = [(one["index"], one["verdict"], one["cause"], one["status"]) for one in content["changes"]]
    slower, faster = invented.SLOWER_AT, invented.FASTER_AT
    lost = (invented.FAILED_AT, "failed", "unknown", "fixed")
    assert found == [lost, (slower, "regressed", "code", "fixed"), (faster, "improved", "code", "open")]
    ratios = [one["ratio"] for one in content["changes"]]
    assert ratios[0] is None and ratios[1:] == pytest.approx([1.05, 0.8], rel=0.003)


def test_a_speedup_is_the_ratio_with_the_interval_of_both(made: Path) -> None:
    _, content = series_of(made, "h100-sxm", **{**OURS, "op": "speedup", "s_kv": 4096, "implementation": "naive"})
    number = 11
    at = content["at"].index(number)
    base, ours = (invented.seconds(0, number, 4096, 2048, name) for name in ("naive", "flash_dsa"))
    width = math.hypot(math.log(0.998), math.log(1.003))
    assert content["value"][at] == pytest.approx(base / ours, rel=1e-5)
    assert content["low"][at] == pytest.approx(base / ours * math.exp(-width), rel=1e-5)
    assert content["high"][at] == pytest.approx(base / ours * math.exp(width), rel=1e-5)
    assert [one["index"] for one in content["changes"]] == [invented.SLOWER_AT, invented.FASTER_AT]


def test_a_speedup_over_dense_is_the_inverse_of_the_ratio(made: Path) -> None:
    wanted = {"op": "speedup", "s_kv": 8192, "topk": 512, "head_dims": "192x128"}
    _, content = series_of(made, "h100-sxm", **wanted)
    ratio = invented.ratio(0, 3, 8192, 512, "192x128")
    assert content["value"][3] == pytest.approx(1 / ratio, rel=1e-5)
    assert content["low"][3] == pytest.approx(1 / ratio / 1.003, rel=1e-5)


def test_a_point_that_one_side_lacks_is_what_that_side_is(made: Path) -> None:
    _, content = series_of(made, "h100-sxm", **{**OURS, "op": "speedup", "implementation": "flash_mla"})
    assert content["at"] == [] and content["failed"] == [invented.FAILED_AT]
    assert len(content["na"]) == invented.COMMITS - 1
    values, states = np.array([1.0, 2.0, np.nan]), np.array([1, 1, 0], dtype=np.int8)
    track = Track(values, values, values, states)
    late = replace(track, states=np.array([0, 3, 1], dtype=np.int8))
    assert list(speedups.over(track, late).states) == [State.NOT_MEASURED, State.FAILED, State.NOT_MEASURED]


def test_the_crossover_is_between_two_measured_sizes(made: Path) -> None:
    found = read(made, f"crossovers/{place_of(made, 'h100-sxm')['id']}.json")
    brackets = {(one["topk"], one["head_dims"]): one["brackets"] for one in found}
    # Sparse takes as long as dense at 12 topk (192x128) and 2 topk (576x512), and as much more as ours became slower.
    assert brackets[512, "192x128"][0] == [4096, 8192] and brackets[512, "192x128"][-1] == [4096, 8192]
    assert brackets[512, "576x512"][0] == [None, 4096]
    assert brackets[2048, "192x128"][0] == [16384, None]
    assert brackets[2048, "576x512"][invented.SLOWER_AT] == [4096, 8192]
    assert brackets[2048, "576x512"][-1] == [None, 4096]


@pytest.mark.parametrize(
    "ratios, expected",
    [
        ({1: (1.5, 1.6), 2: (0.9, 1.1), 4: (0.5, 0.6)}, Crossover(1, 4)),
        ({1: (0.5, 0.6), 2: (1.5, 1.6), 4: (0.5, 0.6)}, Crossover(2, 4)),
        ({1: (0.9, 1.1), 2: (0.5, 0.6)}, Crossover(None, 2)),
        ({1: (1.5, 1.6), 2: (math.nan, math.nan), 4: (0.5, 0.6)}, Crossover(1, 4)),
        ({1: (math.nan, math.nan)}, None),
    ],
)
def test_nothing_is_said_beyond_what_was_measured(ratios: Any, expected: Crossover | None) -> None:
    assert speedups.crossover(ratios) == expected


def test_a_commit_has_the_same_points_as_the_series(made: Path, tree: invented.Tree) -> None:
    place = place_of(made, "h100-sxm")["id"]
    listed = [one for one in read(made, "index.json")["series"] if one["place"] == place]
    content = read(made, f"at/{place}/{tree.commits[invented.FAILED_AT]}.json")
    for position, value in zip(content["at"], content["value"], strict=True):
        one = read(made, f"series/{listed[position]['id']}.json")
        assert one["value"][one["at"].index(invented.FAILED_AT)] == value
    assert [listed[position]["implementation"] for position in content["failed"][:1]] == ["flash_dsa"]


def test_commits_have_dates_and_messages(made: Path, tree: invented.Tree) -> None:
    commits = read(made, f"commits/{place_of(made, 'h100-sxm')['id']}.json")
    assert commits["hash"] == list(tree.commits) and commits["date"] == sorted(commits["date"])
    assert commits["subject"][invented.SLOWER_AT] == invented.HOSTILE
    assert commits["date"][0] == 1_790_000_000


def test_code_is_listed_where_it_changed(made: Path) -> None:
    code = read(made, f"code/{place_of(made, 'h100-sxm')['id']}.json")
    steps = code["kernels"]["sm80/sparse_kernel<128>"]
    assert [at for at, _ in steps] == [0, invented.SLOWER_AT, invented.FASTER_AT]
    assert steps[-1][1] == [168, 0, 1024, "d" * 32] and code["figures"][0] == "registers"
    assert code["kernels"]["sm80/combine_kernel"][0][0] == invented.FASTER_AT


def test_the_overview_has_a_verdict_for_each_machine(made: Path, tree: invented.Tree) -> None:
    overview = read(made, "overview.json")
    names = {place["id"]: place["machine"] for place in read(made, "index.json")["places"]}
    found = {names[one["place"]]: one for one in overview["machines"]}
    assert found["h100-sxm"]["verdict"] == "improved" and found["<b>h200"]["verdict"] == "inconclusive"
    assert found["h100-sxm"]["counts"] == {"measured": 31, "na": 1, "failed": 0, "missing": 0}
    faster, slower, lost = overview["alerts"]
    assert (lost["verdict"], lost["commits"][0]) == ("failed", tree.commits[invented.FAILED_AT])
    assert (faster["commits"][0], slower["commits"][0]) == (tree.commits[16], tree.commits[8])
    assert slower["fixed_by"] == tree.commits[16] and len(slower["series"]) == 18


def test_the_overview_has_the_pieces_in_which_a_machine_was_measured(made: Path, tree: invented.Tree) -> None:
    found = {one["place"]: one["pieces"] for one in read(made, "overview.json")["machines"]}
    assert found[place_of(made, "<b>h200")["id"]] == []
    first, second, third = found[place_of(made, "h100-sxm")["id"]]
    assert first == {"date": 1_790_000_000, "card": "GPU-0", "commit": tree.commits[0], "series": 2, "ratio": [1, 1, 1]}
    assert second["ratio"] == [pytest.approx((1.01 * 0.98) ** 0.5, abs=1e-6), 0.98, 1.01]
    assert third["card"] == invented.HOSTILE and third["ratio"][1:] == [0.96, 1.02]


def test_a_grid_that_never_ran_is_counted_and_an_implementation_that_cannot_is_shown(made: Path) -> None:
    assert place_of(made, "h100-sxm")["left_out"] == 1
    _, content = series_of(made, "h100-sxm", **{**OURS, "implementation": "flash_mla"})
    assert content["at"] == [] and len(content["na"]) == invented.COMMITS
    assert content["reasons"] == ["unsupported: no room"]


def test_another_projects_series_are_shown_too(tmp_path: Path) -> None:
    for number in range(3):
        row = [[2.0, None], [["'a'", "'<i>'"]], "v"]
        write_result(tmp_path / "results", f"{number:040x}", 1000 * number, {"units.Time.time_convert": row})
    options = site.Options(tmp_path, tmp_path / "results", tmp_path, tmp_path)
    site._write_data(options, tmp_path / "data")
    listed = read(tmp_path / "data", "index.json")["series"]
    assert [(one["op"], one["s_kv"], one["variant"]) for one in listed] == [
        ("units.Time.time_convert", None, "a"),
        ("units.Time.time_convert", None, "<i>"),
    ]
    assert read(tmp_path / "data", "overview.json")["machines"][0]["verdict"] == "failed"


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.id)
def test_work_is_what_the_instrument_counts(case: Any) -> None:
    known = "topk_length" not in case.problem.feature_names
    assert work.flops_of(case.problem.fields) == (case.problem.flops if known else None)
    assert work.bytes_of(case.problem.fields) == (case.problem.bytes if known else None)


def test_peaks_are_those_of_datasheets() -> None:
    from asv_bench import telemetry

    for name, flops, bandwidth in telemetry._DATASHEETS:
        peak = work.peak_of(f"NVIDIA {name}")
        assert peak is not None and peak.bytes_per_second == bandwidth
        said = re.search(r"([\d.]+) TFLOPS", peak.source)
        assert said and float(said[1]) * 1e12 == pytest.approx(flops, rel=0.005)
    assert work.peak_of("another") is None and work.peak_of(None) is None


def test_asvs_page_is_turned_to_local_libraries() -> None:
    page = site.localised(ASV_PAGE)
    assert '<script src="dashboard/libraries/jquery/dist/jquery.min.js">' in page and "integrity" not in page
    assert 'href="https://github.com/airspeed-velocity/asv/"' in page and 'href="asv.css"' in page
    assert page.index('href="dashboard/index.html"') < page.index(site._NAVIGATION)


@pytest.mark.parametrize(
    "page", [ASV_PAGE.replace("jquery-3.3.1", "jquery-4.0.0"), ASV_PAGE.replace(site._NAVIGATION, "")]
)
def test_a_page_of_another_asv_is_an_error(page: str) -> None:
    with pytest.raises(libraries.LibraryError, match="asv's page"):
        site.localised(page)


def npm(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


@pytest.mark.parametrize(
    "script, said",
    [
        ("echo network unreachable >&2; exit 1", r"jquery@3.3.1 is needed.*network unreachable.*once it is in"),
        ("echo other > jquery-3.3.1.tgz", r"jquery 3.3.1: sha512 expected"),
    ],
)
def test_a_library_that_cannot_be_had_is_named(
    script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm(tmp_path / "bin", monkeypatch, script)
    with pytest.raises(libraries.LibraryError, match=said):
        libraries.provide(libraries.ASV, tmp_path / "cache", tmp_path / "target")
    assert not list((tmp_path / "cache").iterdir())


def test_what_is_in_the_cache_needs_no_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    kept = tmp_path / "cache" / "jquery-3.3.1" / "dist"
    kept.mkdir(parents=True)
    (kept / "jquery.min.js").write_text("kept")
    libraries.provide(libraries.ASV[:1], tmp_path / "cache", tmp_path / "target")
    assert (tmp_path / "target" / "jquery" / "dist" / "jquery.min.js").read_text() == "kept"


def test_the_command_refuses_what_it_cannot_use(
    tree: invented.Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["dashboard", str(tmp_path), "--results", str(tree.results), "--libraries", str(tmp_path / "cache")]
    assert command.main(arguments) == 3 and "asv publish" in capsys.readouterr().err
    (tmp_path / "index.html").write_text(ASV_PAGE)
    npm(tmp_path / "bin", monkeypatch, "exit 1")
    assert command.main(arguments) == 3 and "echarts@6.1.0 is needed" in capsys.readouterr().err
    assert command.main([*arguments, "--may-lack-libraries"]) == 0 and "charts are missing" in capsys.readouterr().err
    assert (tmp_path / "index.html").read_text() == ASV_PAGE
    assert command.main([*arguments, "--commit-address", "javascript:alert(1)//"]) == 3
    assert command.main(["dashboard", str(tmp_path), "--results", str(tmp_path / "none")]) == 3


def test_why_a_whole_commit_has_no_value_is_said_of_its_points(tmp_path: Path) -> None:
    for number, values in enumerate(([1.0, 2.0], [None, None])):
        write_result(tmp_path / "results", f"{number:040x}", number, {"t": [values, [["1", "2"]], "v"]})
    telemetry = tmp_path / "results" / "box" / f"{1:040x}.telemetry.jsonl"
    telemetry.write_text(
        '{"timestamp": 1, "error": "failed: x.cu:1: error: no"}\n{"timestamp": 2, "grid": "cuda", "error": "n"}'
    )
    site._write_data(site.Options(tmp_path, tmp_path / "results", tmp_path, tmp_path), tmp_path / "data")
    content = read(tmp_path / "data", f"at/p0/{1:040x}.json")
    assert content["failed"] == [0, 1] and content["reasons"] == ["failed: x.cu:1: error: no"]
    assert content["reason"] == {"0": 0, "1": 0}


def test_a_damaged_sidecar_is_named(tmp_path: Path) -> None:
    write_result(tmp_path / "results", "a" * 40, 1, {"t": [[1.0], [], "v"]})
    (tmp_path / "results" / "box" / f"{'a' * 40}.telemetry.jsonl").write_text('{"view": 5}\n{')
    with pytest.raises(Unreadable, match=r"telemetry\.jsonl"):
        site._write_data(site.Options(tmp_path, tmp_path / "results", tmp_path, tmp_path), tmp_path / "data")
