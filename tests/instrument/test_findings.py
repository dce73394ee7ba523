"""Findings: numbers and sentences worked out by hand from invented records, and never more than these allow."""

from __future__ import annotations

from typing import Any

import pytest
from instrument import invented
from instrument.invented import sweep_of

from asv_bench import cases, findings, plots, provenance, record, report, tables
from asv_bench.findings import Crossover, Ratio, Sweep
from asv_bench.sentences import sentences

SPARSE, DENSE = (case.problem for case in cases.cases_of("seed")[:2])


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
    said = sentences(sweep_of(sparse, dense))
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
        (sentence, topic) for topic, sentence in sentences(found)
    )
    rows = findings.failures_table(found).rows
    assert ("sdpa", "dense_fwd", "1", "4096", "out_of_memory: 36 GB") in rows and len(rows) == 2


def test_failures_of_one_reason_are_one_line(seed_sweep: Sweep) -> None:
    rows = {row[0]: row for row in findings.failures_table(seed_sweep).rows if row[1] == "dense_fwd"}
    reason = "unsupported: naive dense is timed up to s_kv 16384"
    assert rows["naive"] == ("naive", "dense_fwd", "3", "32768 to 131072", reason)


def test_findings_are_computed(seed_sweep: Sweep) -> None:
    said = sentences(seed_sweep)
    texts = [sentence for _, sentence in said]
    assert {topic for topic, _ in said} == {"speed", "memory", "accuracy", "coverage"}
    assert texts[0] == (
        "Sparse attention by flash_dsa is 8.00x faster than naive PyTorch, "
        "geometric mean over 6 cases (8.00x to 8.00x)."
    )
    assert "0.500x as fast as the peer flash_mla" in texts[1]
    assert texts[2] == (
        "Against the fastest dense 576/512 attention over all keys, K and V for each of 128 heads, sparse takes 1/160 "
        "of the time at s_kv 131072 (1,495 ms by sdpa, 9.35 ms sparse; 1/163 to 1/157); the FLOPs alone would "
        "give 64.0x."
    )
    assert texts[3] == "Sparse is faster than that dense at every measured s_kv, from 4096 to 131072."
    assert "K and V of 128 heads take 36.5 GB, 242x as much." in texts[5]
    assert texts[-1] == "32 of 48 combinations have a number; the others are listed with their reason."


def test_findings_follow_the_numbers() -> None:
    slow = sentences(sweep_of(invented.number(SPARSE, "flash_dsa", 2.0), invented.number(DENSE, "sdpa", 1.0)))
    assert any(text == "Sparse is not faster than that dense at any measured s_kv (4096)." for _, text in slow)
    assert any("sparse takes 2.00x the time at s_kv 4096 (1,000 ms by sdpa, 2,000 ms" in text for _, text in slow)
    other = cases.cases_of("seed")[2].problem
    mixed = sentences(
        sweep_of(
            invented.number(SPARSE, "flash_dsa", 2.0),
            invented.number(DENSE, "sdpa", 1.0),
            invented.number(other, "flash_dsa", 1.0),
            invented.number(cases.dense_counterpart(other), "sdpa", 3.0),
        )
    )
    assert any(text == "Sparse is faster than that dense at s_kv 8192, slower at 4096." for _, text in mixed)
    assert sentences(sweep_of()) == []


def said_of(*records: record.Record) -> str:
    return "\n".join(text for _, text in sentences(sweep_of(*records)))


def test_what_the_intervals_do_not_tell_is_not_claimed() -> None:
    """Each time is known to +-1 %, so a ratio to +-2 %: 1.01x may be 1x."""
    other = cases.cases_of("seed")[2].problem
    ours = [invented.number(problem, "flash_dsa", 1.0) for problem in (SPARSE, other)]
    dense = [cases.dense_counterpart(problem) for problem in (SPARSE, other)]
    close = said_of(*ours, *(invented.number(problem, "sdpa", 1.01) for problem in dense))
    assert (
        "sparse is not distinguishable at s_kv 4096 (1,010 ms by sdpa, 1,000 ms sparse; ratio 0.990x to 1.03x)" in close
    )
    assert "Sparse is not distinguishable from that dense at any measured s_kv (4096, 8192)." in close
    assert "faster" not in close and "slower" not in close
    one = said_of(*ours, invented.number(dense[0], "sdpa", 1.01), invented.number(dense[1], "sdpa", 2.0))
    assert "Sparse is faster than that dense at s_kv 8192, not distinguishable from it at 4096." in one
    part = said_of(*ours, invented.number(dense[0], "sdpa", 2.0), invented.failure(dense[1], "sdpa", "failed: x"))
    assert "Sparse is faster than that dense at every s_kv where both have a number of one process, 4096." in part


@pytest.mark.parametrize(
    "naive, claim",
    [
        ((1.01,), "not distinguishable from naive PyTorch: 1.01x, {mean} 1 case (0.990x to 1.03x)."),
        ((2.0,), "2.00x faster than naive PyTorch, {mean} 1 case (1.96x to 2.04x)."),
        (
            (4.0, 0.5),
            "1.41x faster than naive PyTorch, {mean} 2 cases (0.500x to 4.00x): faster in 1 and slower in 1.",
        ),
        (
            (0.5, 1.0),
            "0.707x as fast as naive PyTorch, {mean} 2 cases (0.500x to 1.00x): slower in 1 and not "
            "distinguishable in 1.",
        ),
        (
            (0.5, 2.0),
            "not distinguishable from naive PyTorch (interval of the mean 0.980x to 1.02x): 1.00x, {mean} 2 cases "
            "(0.500x to 2.00x): faster in 1 and slower in 1.",
        ),
    ],
)
def test_a_mean_keeps_its_spread_and_its_interval(naive: tuple[float, ...], claim: str) -> None:
    problems = [case.problem for case in cases.cases_of("seed")[::2]]
    found = [invented.number(problem, "naive", seconds) for problem, seconds in zip(problems, naive, strict=False)]
    ours = [invented.number(problem, "flash_dsa", 1.0) for problem in problems[: len(naive)]]
    expected = claim.format(mean="geometric mean over")
    assert f"Sparse attention by flash_dsa is {expected}" in said_of(*found, *ours)


def test_an_interval_close_to_1_shows_on_which_side_it_is() -> None:
    other = cases.cases_of("seed")[0].problem
    ends = {"seconds_low": 1.0021, "seconds_high": 1.0034}
    exact = {"seconds_low": 1.0, "seconds_high": 1.0}
    found = [invented.number(other, "naive", 1.003, **ends), invented.number(other, "flash_dsa", 1.0, **exact)]
    assert "geometric mean over 1 case (1.002x to 1.003x)." in said_of(*found)


def test_growth_is_that_of_sparse_naive_and_the_fastest_dense(seed_sweep: Sweep) -> None:
    texts = [text for _, text in sentences(seed_sweep)]
    span = "as long at s_kv 131072 as at 16384"
    assert (
        f"At topk 2048, sparse takes 1.00x {span} (0.980x to 1.02x, so no growth can be told), "
        f"naive takes 1.00x {span} (0.980x to 1.02x, so no growth can be told) and "
        "the fastest dense takes 16.0x as long at s_kv 131072 as at 16384 (15.7x to 16.3x); "
        "they did not take turns."
    ) in texts
    moved = [
        found | {"telemetry": found["telemetry"] | {"gpu_uuid": "GPU-b" if found["s_kv"] > 65536 else "GPU-a"}}
        for found in invented.seed_sweep()
    ]
    assert not any("131072 as at" in text for _, text in sentences(Sweep("invented", moved)))


@pytest.mark.parametrize(
    "sides, expected",
    [
        ({1: -1, 2: 0, 4: 1}, Crossover(1, 4)),
        ({1: -1, 2: 1, 4: -1, 8: 1}, Crossover(4, 8)),
        ({1: 1, 2: 1}, Crossover(None, 1)),
        ({1: 0, 2: 1}, Crossover(None, 2)),
        ({1: -1, 2: 0}, Crossover(1, None)),
        ({4: 1, 1: -1, 2: 1}, Crossover(1, 2)),  # in whatever order
        ({}, Crossover(None, None)),
    ],
)
def test_a_crossover_lies_between_two_that_were_measured(sides: dict[int, int], expected: Crossover) -> None:
    of_side = {-1: Ratio(0.5, 0.49, 0.51), 0: Ratio(1.0, 0.99, 1.01), 1: Ratio(2.0, 1.99, 2.01)}
    assert findings.crossover({s_kv: of_side[side] for s_kv, side in sides.items()}) == expected


def crossings(*records: record.Record) -> list[str]:
    return [text for text in said_of(*records).split("\n") if text.startswith("For causal prompts")]


def test_the_crossover_of_prompts_is_bracketed_for_each_topk() -> None:
    """At equal TFLOPS it is where the FLOPs are equal: s_kv (320 / 2) = topk 1088."""
    said = [text for _, text in sentences(sweep_of(*invented.prompt_sweep()))]
    begun = next(at for at, text in enumerate(said) if text.startswith("For causal prompts"))
    assert said[begun : begun + 3] == [
        "For causal prompts of 3072 to 32768 tokens with 128 heads, sparse at topk 512 overtakes the fastest dense "
        "192/128 between s_kv 3072 and 4096 (time of dense over that of sparse: 0.865x to 0.900x at 3072, 1.15x to "
        "1.20x at 4096).",
        "For causal prompts of 2048 to 32768 tokens with 128 heads, sparse at topk 1024 overtakes the fastest dense "
        "192/128 between s_kv 6144 and 8192 (time of dense over that of sparse: 0.865x to 0.900x at 6144, 1.15x to "
        "1.20x at 8192).",
        "For causal prompts of 2048 to 131072 tokens with 128 heads, sparse at topk 2048 overtakes the fastest dense "
        "192/128 between s_kv 12288 and 16384 (time of dense over that of sparse: 0.865x to 0.900x at 12288, 1.15x to "
        "1.20x at 16384).",
    ]
    assert said[begun + 3] == (
        "Dense 192/128 is what serving engines run for a prompt; the seed's dense 576/512 over all keys has 6.80x its "
        "FLOPs. These are times of attention alone: the projection GEMMs are not counted, and they differ (dense "
        "192/128 has K and V of every head made from the latent KV, sparse has queries and outputs carried into the "
        "latent space and back); nor is the indexer, which sparse alone needs."
    )


def test_prompts_stand_beside_the_seed_and_not_among_it(seed_sweep: Sweep) -> None:
    both = Sweep("invented", [*invented.seed_sweep(), *invented.prompt_sweep()])
    assert [row.problem for row in both.rows] == [row.problem for row in seed_sweep.rows]
    assert plots.speedup_data(both) == plots.speedup_data(seed_sweep)
    said = [text for _, text in sentences(both)]
    seed = said.index("Sparse is faster than that dense at every measured s_kv, from 4096 to 131072.")
    assert said[seed + 1].startswith("For causal prompts")
    assert not any("prompt" in text for _, text in sentences(seed_sweep))


def test_what_did_not_take_turns_or_has_one_length_has_no_crossover() -> None:
    found = invented.prompt_sweep()
    assert crossings(*(one for one in found if one["s_kv"] == 8192)) == []
    apart = [one | {"telemetry": one["telemetry"] | {"run": one["op"]}} for one in found]
    assert crossings(*apart) == []
    assert "projection" not in said_of(*apart)


@pytest.mark.parametrize(
    "seconds, claim",
    [
        ((1.0, 1.0), "does not overtake the fastest dense 192/128 at any measured s_kv (time of dense over that of"),
        ((2.0, 2.0), "is faster than the fastest dense 192/128 at every measured s_kv (time of dense over that of"),
        ((1.0, 2.0), "is faster than the fastest dense 192/128 from s_kv 16384 on, not distinguishable below (time of"),
        ((0.5, 2.0), "overtakes the fastest dense 192/128 between s_kv 8192 and 16384 (time of"),
    ],
)
def test_a_crossover_claims_no_more_than_its_ends(seconds: tuple[float, float], claim: str) -> None:
    found = []
    for s_kv, dense in zip((8192, 16384), seconds, strict=True):
        problem = cases.find([f"sparse-q{s_kv}-kv{s_kv}-k2048-h128-d576-causal_prompt"])[0].problem
        found += [invented.number(problem, "flash_dsa", 1.0)]
        found += [invented.number(cases.counterpart(problem), "sdpa", dense)]
    (said,) = crossings(*found)
    assert f"sparse at topk 2048 {claim}" in said


def test_prompts_have_a_table() -> None:
    table = findings.prompts_table(sweep_of(*invented.prompt_sweep()))
    assert len(table.rows) == 8 + 9 + 11  # topk 512 has none at 2048
    assert cells(table, len(table.rows) - 1) == {
        "heads": "128",
        "topk": "2048",
        "tokens": "131072",
        "dense 192/128 sdpa ms": "2,815",
        "dense 192/128 flash_dsa ms": "1,407",
        "sparse flash_dsa ms": "150",
        "vs best dense": "9.41x",
        "theoretical": "9.41x",
    }


def test_more_than_the_roofline_is_called_impossible() -> None:
    """8.4 s of work by the invented ceiling in 4.2 s."""
    roofline = SPARSE.roofline_seconds(1e15, 3e12)
    fine = sweep_of(invented.number(SPARSE, "flash_dsa", roofline))
    assert "100 %" not in said_of(*fine.records) and "(impossible)" not in findings.measurements_table(fine).text()
    found = sweep_of(invented.number(SPARSE, "flash_dsa", roofline / 2), invented.number(SPARSE, "naive", roofline * 2))
    shares = [cells(findings.measurements_table(found), line)["roofline"] for line in range(2)]
    assert shares == ["200 % (impossible)", "50.0 %"]
    assert cells(findings.complexity_table(found), 0)["sparse roofline"] == "200 % (impossible)"
    assert sentences(found)[-1] == (
        "coverage",
        "1 number is above 100 % of the roofline, at most 200 % (flash_dsa in sparse_fwd at s_kv 4096), which cannot "
        "be: the ceiling in the record (invented) is too low for it, or the timing is wrong.",
    )


def two_commits() -> Sweep:
    """The seed's first case at one commit, with changes, a day later on another card than the second case."""
    old = [found for found in invented.seed_sweep() if found["s_kv"] in (4096, 8192)]
    changes = {"commit": "d" * 40, "dirty": True, "timestamp": "2026-11-23T12:00:00+00:00"}
    noted = {"torch": "2.12", "run": "run-b", "gpu_uuid": "GPU-b"}
    new = [found | changes | {"telemetry": found["telemetry"] | noted} for found in old if found["s_kv"] == 4096]
    return Sweep("invented", [*new, *(found for found in old if found["s_kv"] == 8192)])


def test_one_origin_is_said_once(seed_sweep: Sweep) -> None:
    assert provenance.where(seed_sweep.records) == "NVIDIA Invented; torch 2.11; commit cccccccccccc; 2026-11-22."
    assert provenance.differences(seed_sweep.records) == []
    changed = [found | {"dirty": True, "gpu": None} for found in seed_sweep.records]
    assert provenance.where(changed) == (
        "unknown CPU, ? threads; torch 2.11; commit cccccccccccc with uncommitted changes; 2026-11-22."
    )


def test_several_origins_are_all_said_and_no_number_passes_for_that_of_another_commit() -> None:
    found = two_commits()
    new, old = "dddddddddddd with uncommitted changes", "cccccccccccc"
    unlike = [
        "cards GPU-b and unknown: 8 and 8 records",
        "torch 2.12 and 2.11: 8 and 8 records",
        f"commits {new} and {old}: 8 and 8 records",
        "2026-11-23 and 2026-11-22: 8 and 8 records",
    ]
    assert provenance.where(found.records) == f"NVIDIA Invented; {'; '.join(unlike)}."
    assert provenance.differences(found.records) == unlike
    assert sentences(found)[-1] == ("coverage", f"Not all records are of one origin: {'; '.join(unlike)}.")
    claims = [text for topic, text in sentences(found) if topic != "coverage"]
    assert all(text.startswith((f"Commit {new}: ", f"Commit {old}: ")) for text in claims)
    assert sum("faster than naive PyTorch, geometric mean over 1 case" in text for text in claims) == 2
    for make in (findings.summary_table, findings.complexity_table, findings.measurements_table):
        lines = [cells(make(found), number) for number in range(len(make(found).rows))]
        assert {(line["commit"], line["s_kv"]) for line in lines} == {(new, "4096"), (old, "8192")}
    for make in (findings.ratios_table, findings.failures_table):
        assert {row[0] for row in make(found).rows} == {new, old}
    for data in (plots.latency_data(found), plots.speedup_data(found)):
        assert data["origins"] == unlike
    page = str(report.render(found, draw=False)["report.html"])
    assert page.count("commits dddddddddddd with") == 2 and "commit cccccccccccc;" not in page


def test_the_same_problem_at_two_commits_is_two_lines_and_no_ratio() -> None:
    found = sweep_of(
        invented.number(SPARSE, "flash_dsa", 1.0),
        invented.number(SPARSE, "naive", 2.0, commit="d" * 40, run="run-b"),
    )
    lines = [cells(findings.summary_table(found), number) for number in range(2)]
    assert [(line["commit"][0], line["naive ms"], line["sparse flash_dsa ms"]) for line in lines] == [
        ("c", "not measured", "1,000"),
        ("d", "2,000", "not measured"),
    ]
    assert findings.ratios_table(found).rows == ()


def test_states_that_are_unknown_differ_from_clean_ones() -> None:
    clean, unknown = invented.number(SPARSE, "naive", 1.0), invented.number(SPARSE, "flash_dsa", 1.0, dirty=None)
    assert list(provenance.by_commit([clean, unknown])) == ["c" * 12, "c" * 12 + " perhaps with uncommitted changes"]
    assert list(provenance.by_commit([unknown])) == ["c" * 12]


def test_each_ceiling_is_said() -> None:
    """A measured one differs from process to process."""
    other = {"flops": 5e14, "bytes_per_second": 1e12, "source": "measured"}
    one, two = (invented.number(SPARSE, "naive", 1.0, noted={"ceiling": c}) for c in (invented.CEILING, other))
    first, second = "1,000 TFLOP/s and 3,000 GB/s (invented)", "500 TFLOP/s and 1,000 GB/s (measured)"
    assert provenance.ceilings([one, one]) == first
    assert provenance.ceilings([one, two, two]) == f"for 1 records {first}; for 2 records {second}"
    assert provenance.ceilings([]).startswith("no ceiling")


def test_errors_are_compared_over_the_same_cases() -> None:
    first, second = (case.problem for case in cases.cases_of("seed")[:4:2])
    assert first.op == second.op == "sparse_fwd"
    said = said_of(
        invented.number(first, "flash_dsa", 1.0, max_abs_err=1e-5),
        invented.number(first, "naive", 1.0, max_abs_err=2e-5),
        invented.number(second, "flash_dsa", 1.0, max_abs_err=3e-4),
    )
    assert "on rows drawn anew, in the same 1 case: flash_dsa 1.0e-05, naive 2.0e-05." in said
    assert "in all cases that each took (how many): flash_dsa 3.0e-04 (2), naive 2.0e-05 (1)." in said
