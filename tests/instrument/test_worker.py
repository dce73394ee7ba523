"""The process that measures for the suites. Tested from fresh ones: a fork of this one would lose its threads."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]


def in_a_fresh_process(code: str, succeeds: bool = True) -> Any:
    """What it prints, as JSON."""
    begin = f"import sys; sys.path[:0] = [{str(TESTS)!r}, {str(TESTS.parent)!r}]\n"
    done = subprocess.run(
        [sys.executable, "-c", begin + textwrap.dedent(code)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode == 0) == succeeds, done.stderr
    return json.loads(done.stdout)


def test_another_process_until_its_device_is_lost() -> None:
    assert in_a_fresh_process("""
    import json, os
    from asv_bench.errors import DeviceLost
    from asv_bench.worker import Worker

    def lose():
        raise DeviceLost("sdpa", "RuntimeError: illegal memory access")

    def attempt(function, *arguments):
        try:
            return worker.run(function, *arguments)
        except Exception as error:
            return f"{type(error).__name__} {str(error).splitlines()[-1]}"

    with Worker() as worker:
        first = attempt(os.getpid)
        report = [first != os.getpid(), attempt(int, "no number"), attempt(os.getpid) == first]
        report += [attempt(lose), attempt(os.getpid) != first, attempt(os._exit, 3)]
    print(json.dumps(report))
    """) == [
        True,
        "RuntimeError ValueError: invalid literal for int() with base 10: 'no number'",
        True,
        "DeviceLost RuntimeError: illegal memory access",
        True,
        "Crashed ended the process, exit status 3",
    ]


def test_it_ends_with_a_parent_that_was_killed() -> None:
    """It holds a GPU's memory."""
    pid = in_a_fresh_process(
        """
        import os
        from asv_bench.worker import Worker
        print(Worker().run(os.getpid), flush=True)
        os.kill(os.getpid(), 9)
        """,
        succeeds=False,
    )
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "zombie" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline, "the worker outlives its parent"
        time.sleep(0.02)


def test_who_ends_the_process_is_left_out_and_the_rest_goes_on() -> None:
    ends, ours = "instrument.planted:ends_the_process_late", "flash_dsa"
    cache = in_a_fresh_process(f"""
    import dataclasses, json, os
    from asv_bench import suite
    protocol = dataclasses.replace(suite.CPU.protocol, bursts=3, budget_seconds=0.1)
    names = ({ours!r}, {ends!r})
    small = dict(s_q=8, h_q=4, s_kv=(64,), topk=(16,), head_dims=("192x128",), copy_bytes=1024, gemm_size=16)
    os.environ["FLASH_DSA_BENCH_CPU"] = "1"
    cache = suite.measure(dataclasses.replace(suite.CPU, protocol=protocol, sparse=names, dense=names, **small))
    print(json.dumps({{"/".join(map(str, view)): entry for view, entry in cache.items()}}))
    """)
    for view in ("sparse/64/16", "dense/64/192x128"):
        assert cache[f"{view}/{ends}"] == {"unavailable": "crashed: ended the process, exit status 0"}
        assert cache[f"{view}/{ours}"]["samples"]
    assert cache["ratio/64/16/192x128"]["samples"]
