"""The emulator of SM90's kernels finds mistakes: what the tests of the ops say on it is worth something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import emulated
import pytest
import torch
from numerics import DenseCall, SparseCall, assert_right, dense_call, sparse_call

from flash_dsa import interface

CPU = torch.device("cpu")
SEEDS = range(8)

# Two at a time: of sparse_fwd, and of dense_fwd 192x128 or 576x512.
MISTAKES = [
    pytest.param(
        ("wide_sm90.cuh", "      wgmma_wait<0>();\n      pin(score);\n", "      pin(score);\n"),
        ("dense_fwd/narrow_sm90.cuh", "      if (grown) rescale();\n", ""),
        (192, 128),
        id="scores not waited for, O not rescaled",
    ),
    pytest.param(
        ("wide_sm90.cuh", "    wgmma_wait<1>();\n    shared_.release", "    shared_.release"),
        ("dense_fwd/narrow_sm90.cuh", "const bool cut = rows < Plan::kN &&", "const bool cut = rows < 0 &&"),
        (192, 128),
        id="slot freed before PV, values of another sequence left",
    ),
    pytest.param(
        (
            "sparse_fwd/sm90.cuh",
            "rows.bytes[k] = valid(row) ? 16 : 0;",
            "rows.bytes[k] = 16;",
        ),
        (
            "dense_fwd/sm90.cuh",
            "destination + rank() * kTileBytes, map, column + rank() * 64",
            "destination, map, column",
        ),
        (576, 512),
        id="rows read that do not count, one half copied by both blocks of a cluster",
    ),
]


def is_right(emulator: emulated.Emulator, call: SparseCall | DenseCall, monkeypatch: pytest.MonkeyPatch) -> bool:
    op, names = (
        ("sparse_fwd", ("out", "max_logits", "lse")) if isinstance(call, SparseCall) else ("dense_fwd", ("out", "lse"))
    )
    with monkeypatch.context() as patch:
        patch.setattr(interface, "_run", emulator.instead_of(interface._run))
        try:
            for name, actual, expected in zip(names, call.run(), call.expected(), strict=True):
                assert_right(op, name, actual, expected)
        except (AssertionError, emulated.Failure):
            return False
    return True


def calls(head_dims: tuple[int, int]) -> tuple[SparseCall, DenseCall]:
    """What shows the mistakes: references that move, blocks that are cut, NaN in a row that no index names."""
    sparse = sparse_call(CPU, 3, 300, 128, 320)
    sparse.kv[:, :, :64] *= torch.linspace(0.1, 3.0, 300)[:, None, None].bfloat16()
    sparse.indices[sparse.indices == 0] = 1
    sparse.kv[0] = torch.nan
    dense = dense_call(CPU, [70, 30, 50], [300, 90, 150], 4, 2 if head_dims[0] == 192 else 4, head_dims)
    dense.k[:300] *= torch.linspace(8.0, 0.1, 300)[:, None, None].bfloat16()
    dense.v[300:390] = torch.nan
    return sparse, dense


@pytest.mark.parametrize("head_dims", [(192, 128), (576, 512)])
def test_kernels_are_right_in_any_order(
    emulator: emulated.Emulator, head_dims: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for call in calls(head_dims):
        for emulator.seed in SEEDS:
            assert is_right(emulator, call, monkeypatch), f"seed {emulator.seed}"


@pytest.mark.parametrize(("in_sparse", "in_dense", "head_dims"), MISTAKES)
def test_mistakes_are_found(
    tmp_path: Path,
    in_sparse: tuple[str, str, str],
    in_dense: tuple[str, str, str],
    head_dims: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    emulator = emulated.build(tmp_path, [in_sparse, in_dense])
    for call in calls(head_dims):
        found = []
        for emulator.seed in SEEDS:
            found.append(not is_right(emulator, call, monkeypatch))
        assert any(found), f"{type(call).__name__} is right in {len(found)} orders"


def test_it_keeps_to_its_own_cuda(tmp_path: Path) -> None:
    """Also where torch has brought the real one, whose functions are there for every library."""
    emulated.build(tmp_path / "emulated")
    (tmp_path / "cuda.c").write_text("int cudaGetDevice(int *device) { return 999; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "cuda.so", tmp_path / "cuda.c"], check=True)
    script = f"""
import ctypes
from pathlib import Path
ctypes.CDLL({str(tmp_path / "cuda.so")!r}, ctypes.RTLD_GLOBAL)
import emulated, numerics, torch
call = numerics.sparse_call(torch.device("cpu"), 1, 50, 64, 64)
outputs = [torch.empty(1, 64, 512, dtype=torch.bfloat16), torch.empty(1, 64), torch.empty(1, 64)]
emulator = emulated.Emulator(Path({str(tmp_path / "emulated" / "emulator.so")!r}))
emulator.sparse_fwd(call.q, call.kv, call.indices, call.sm_scale, 512, None, None, *outputs)
"""
    folders = [str(Path(emulated.__file__).parent), str(emulated.ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_standstill_says_who_waits_for_what(tmp_path: Path) -> None:
    """Here scores waits for an arrival more than the producer's threads make."""
    mistake = (
        "wide_sm90.cuh",
        "init(Plan::kQFull, 1, Plan::kCopyArrivals);",
        "init(Plan::kQFull, 1, 1 + Plan::kCopyArrivals);",
    )
    emulator = emulated.build(tmp_path, [mistake])
    call = sparse_call(CPU, 1, 50, 64, 64)
    outputs = [torch.empty(1, 64, 512, dtype=torch.bfloat16), torch.empty(1, 64), torch.empty(1, 64)]
    waits = r"deadlock\n(.*\n)*  block 0 warp 0: mbarrier at offset \d+, parity 0 \(32 lanes\)"
    with pytest.raises(emulated.Failure, match=waits):
        emulator.sparse_fwd(call.q, call.kv, call.indices, call.sm_scale, 512, None, None, *outputs)
