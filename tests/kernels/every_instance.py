"""Runs every compiled instance of every kernel once on a small problem: what compute-sanitizer is pointed at.

Usage: compute-sanitizer --tool memcheck python tests/kernels/every_instance.py
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from numerics import SHARED_MEMORY, dense_call, sparse_call  # noqa: E402


def main() -> None:
    cuda = torch.device("cuda")
    for kilobytes in SHARED_MEMORY:
        os.environ["FLASH_DSA_TEST_SMEM_KB"] = str(kilobytes)
        for d_qk in (576, 512):
            for h_q in (20, 70):  # the tiles of few and of many heads, one of them not full
                sparse_call(cuda, 3, 150, h_q, 150, d_qk, features="sink length").run()
        for head_dims in ((192, 128), (128, 128), (576, 512)):
            for causal in (False, True):
                dense_call(cuda, [5, 0, 70], [140, 9, 70], 2, 1, head_dims, causal=causal).run()
        for h_q in (2, 20, 130):  # values in the keys; of tiles of queries, of heads, of two in a cluster
            dense_call(cuda, [5, 0, 70], [140, 9, 70], h_q, 1, (576, 512), causal=True, values_in_keys=True).run()
    torch.cuda.synchronize()
    print("every instance ran")


if __name__ == "__main__":
    main()
