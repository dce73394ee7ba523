"""Runs one call on a tensor whose storage was cut off after the checks could know: what compute-sanitizer must report.

Usage: PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck python tests/kernels/past_the_end.py CASE
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from numerics import dense_call, sparse_call  # noqa: E402

READY = "storage cut off, now the kernel"


def cut_off(tensor: torch.Tensor) -> None:
    """Keep the tensor's sizes and strides over a storage of its first row alone.

    Without torch's caching allocator the rest is given back to CUDA. The tensor was so long that what lies past its end
    now cannot all belong to the few others. An input, since the checks refuse a result whose span meets an input's.
    """
    assert tensor.nbytes > 10_000_000, "too short to be sure that nothing else lies there"
    tensor.untyped_storage().resize_(tensor[0].nbytes)
    torch.cuda.synchronize()
    print(READY, flush=True)


def sparse_kv(cuda: torch.device) -> None:
    call = sparse_call(cuda, 4, 20_000, 64, 256)
    cut_off(call.kv)
    call.run()


def dense_narrow_v(cuda: torch.device) -> None:
    call = dense_call(cuda, [64], [60_000], 2, 1, (128, 128))
    cut_off(call.v)
    call.run()


def dense_wide_k(cuda: torch.device) -> None:
    call = dense_call(cuda, [64], [20_000], 2, 1, (576, 512))
    cut_off(call.k)
    call.run()


CASES = {"sparse_kv": sparse_kv, "dense_narrow_v": dense_narrow_v, "dense_wide_k": dense_wide_k}


def main() -> None:
    CASES[sys.argv[1]](torch.device("cuda"))
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
