"""Kernels of SM90 on a CPU: makes a library of tests/emulator and the kernels' own sources, and calls their launchers.

What is changed in a copy of the sources before they are compiled:
  functions that hold instructions are left out: tests/emulator/sm80.h and sm90.h have others of the same names;
  a kernel's shared memory is that of its block of threads, and a launch runs a grid of fibers;
  planted slowdowns do nothing.
"""

from __future__ import annotations

import ctypes
import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "kernels"
EMULATOR = ROOT / "tests" / "emulator"
OUTPUTS = {"sparse_fwd": 3, "dense_fwd": 2}
OPS = tuple(OUTPUTS)
# Fibers jump between stacks, which fortified jumps refuse.
FLAGS = ["-std=c++20", "-O2", "-fPIC", "-w", "-ffp-contract=off", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE"]
PLANTED = """#pragma once
namespace flash_dsa {
class PlantedDelay {};
constexpr bool kPlantedStage = false;
inline void planted_sync(int, int) {}
template <class T>
T planted_spill(T value) { return value; }
}
"""


def without_instructions(text: str) -> str:
    """Without the functions whose bodies hold assembly, or ask what only a GPU knows."""
    function = re.compile(r"^(?:template <[^\n]*>\n)?__device__ inline [^;{}]*{(?:[^\n]+}|\n.*?^})$", re.M | re.S)
    instruction = re.compile(r"\basm\b|__cvta_generic_to_shared")
    return function.sub(lambda found: "" if instruction.search(found[0]) else found[0], text)


def replaced(text: str, pattern: str, by: str) -> str:
    text, count = re.subn(pattern, by, text, flags=re.S)
    assert count, f"nothing in the sources is {pattern}"
    return text


def rewrite(kernels: Path) -> None:
    """Makes a copy of kernels/ what g++ compiles with the emulator."""

    def edit(name: str, *edits: tuple[str, str]) -> None:
        text = (kernels / name).read_text()
        for pattern, by in edits:
            text = replaced(text, pattern, by)
        (kernels / name).write_text(text)

    for name in ("sm80.cuh", "sm90.cuh"):
        (kernels / name).write_text(without_instructions((kernels / name).read_text()))
    edit("sm80.cuh", ("#include <cuda_bf16.h>", '#include "emulator/sm80.h"'))
    edit("sm90.cuh", ('#include "sm80.cuh"', '#include "sm80.cuh"\n\n#include "emulator/sm90.h"'))
    (kernels / "planted.h").write_text(PLANTED)
    edit(
        "sparse_fwd/sm90.cuh", (r'asm volatile\("mov.u32 %0, %%tid.x;\\n" : "=r"\(thread\)\);', "thread = threadIdx.x;")
    )
    own = ("extern __shared__ [^;]*;", "unsigned char* const shared_memory = emulator::shared_memory();")
    for name in ("sparse_fwd/sm90.cuh", "dense_fwd/sm90.cuh", "dense_fwd/narrow_sm90.cuh"):
        edit(name, own)
    edit("launch.h", (r"template <class Params>\nvoid launch\(.*?\n}\n", ""))
    clusters = (
        r"cudaLaunchKernelEx\(&config, kernel, launch\)",
        "(emulator::run(config.gridDim.x, config.blockDim.x, config.dynamicSmemBytes, "
        "config.attrs->val.clusterDim.x, [&] { kernel(launch); }), cudaSuccess)",
    )
    plain = (
        r"kernel<<<([^;]*?), ([^;]*?), ([^;]*?), stream>>>\(launch\)",
        r"emulator::run(\1, \2, \3, 1, [&] { kernel(launch); })",
    )
    attribute = (r"cudaFuncSetAttribute\(kernel,", "cudaFuncSetAttribute(nullptr,")
    edit("sparse_fwd/sm90.cu", clusters, attribute)
    edit("dense_fwd/sm90.cu", clusters, plain, attribute)


@cache
def cuda_headers() -> Path | None:
    """Where CUDA's headers are, by setup.py's own search; None without nvcc."""
    spec = importlib.util.spec_from_file_location("flash_dsa_setup_of_emulator", ROOT / "setup.py")
    assert spec and spec.loader
    setup = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = setup  # its dataclasses look there
    spec.loader.exec_module(setup)
    path = setup.find_nvcc()
    return setup.inspect_nvcc(path).root / "include" if path else None


def structure(name: str, header: Path) -> type[ctypes.Structure]:
    """A struct of plain members, as its header declares it."""
    body = re.search(rf"struct {name} {{(.*?)}};", header.read_text(), re.S)
    assert body
    kinds = {"int": ctypes.c_int, "int64_t": ctypes.c_int64, "float": ctypes.c_float, "bool": ctypes.c_bool}
    members = []
    for declaration in re.sub(r"//[^\n]*", "", body[1]).split(";")[:-1]:
        kind, names = re.fullmatch(r"\s*((?:const )?\w+\*?)\s+(.*?)\s*", declaration, re.S).groups()  # type: ignore[union-attr]
        members += [(member, ctypes.c_void_p if kind.endswith("*") else kinds[kind]) for member in names.split(", ")]
    return type(name, (ctypes.Structure,), {"_fields_": members})


Params = {
    "sparse_fwd": structure("SparseFwdParams", KERNELS / "sparse_fwd" / "params.h"),
    "dense_fwd": structure("DenseFwdParams", KERNELS / "dense_fwd" / "params.h"),
}


class Failure(Exception):
    """A kernel came to a standstill, or did what no GPU would do."""


class Emulator:
    """The launchers of both ops, for bf16 tensors on the CPU. A seed is an order of threads, copies and wgmmas; every
    call takes the next one."""

    def __init__(self, library: Path) -> None:
        self.seed = 0
        loaded = ctypes.CDLL(str(library))
        self.launchers = {op: getattr(loaded, f"emulate_{op}") for op in OPS}
        for launcher in self.launchers.values():
            launcher.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int]
            launcher.restype = ctypes.c_char_p

    def launch(self, op: str, **members: Any) -> None:
        self.seed += 1
        pointers = {name: v.data_ptr() if isinstance(v, torch.Tensor) else v for name, v in members.items()}
        error = self.launchers[op](ctypes.byref(Params[op](**pointers)), self.seed, 2 + self.seed % 2 * 2)
        if error:
            raise Failure(f"{op}, seed {self.seed}: {error.decode()}")

    def sparse_fwd(
        self,
        q: torch.Tensor,
        kv: torch.Tensor,
        indices: torch.Tensor,
        sm_scale: float,
        d_v: int,
        attn_sink: torch.Tensor | None,
        topk_length: torch.Tensor | None,
        out: torch.Tensor,
        max_logits: torch.Tensor,
        lse: torch.Tensor,
    ) -> None:
        """`sparse_fwd_out` of kernels/binding.cpp."""
        self.launch(
            "sparse_fwd", s_q=q.shape[0], s_kv=kv.shape[0], h_q=q.shape[1], d_qk=q.shape[2], d_v=d_v,
            topk=indices.shape[2], sm_scale=sm_scale, q=q, q_stride_s=q.stride(0), q_stride_h=q.stride(1), kv=kv,
            kv_stride_s=kv.stride(0), indices=indices, indices_stride_s=indices.stride(0), attn_sink=attn_sink,
            topk_length=topk_length, out=out, out_stride_s=out.stride(0), out_stride_h=out.stride(1),
            max_logits=max_logits, lse=lse,
        )  # fmt: skip

    def dense_fwd(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cu_seqlens_qo: torch.Tensor,
        cu_seqlens_kv: torch.Tensor,
        max_seqlen_qo: int,
        max_seqlen_kv: int,
        softmax_scale: float,
        causal: bool,
        out: torch.Tensor,
        lse: torch.Tensor,
    ) -> None:
        """`dense_fwd_out` of kernels/binding.cpp."""
        self.launch(
            "dense_fwd", batch=len(cu_seqlens_qo) - 1, tot_q=q.shape[0], tot_kv=k.shape[0], h_q=q.shape[1],
            h_kv=k.shape[1], d_qk=q.shape[2], d_v=v.shape[2], softmax_scale=softmax_scale, causal=causal, q=q,
            q_stride_s=q.stride(0), q_stride_h=q.stride(1), k=k, k_stride_s=k.stride(0), k_stride_h=k.stride(1), v=v,
            v_stride_s=v.stride(0), v_stride_h=v.stride(1), cu_seqlens_qo=cu_seqlens_qo, cu_seqlens_kv=cu_seqlens_kv,
            out=out, out_stride_s=out.stride(0), out_stride_h=out.stride(1), lse=lse, lse_stride_s=lse.stride(0),
            lse_stride_h=lse.stride(1), next_tile=torch.zeros(1, dtype=torch.int32),
        )  # fmt: skip

    def instead_of(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """For `flash_dsa.interface._run`: the cpu target checks arguments, the emulated kernel makes the results."""

        def emulate(op: Any, *arguments: Any) -> Any:
            name = op.__name__.removesuffix("_out")
            given = arguments[-OUTPUTS[name] :] if op.__name__ != name else ()
            before = [output.clone() for output in given]
            results = run(op, *arguments)
            # Other dtypes are the cpu target's alone; without queries op.cpp asks no target.
            if arguments[0].dtype != torch.bfloat16 or arguments[0].numel() == 0:
                return results
            for output, content in zip(given, before, strict=True):
                output.copy_(content)
            for output in results or ():
                output.fill_(torch.nan)
            getattr(self, name)(*arguments, *(results or ()))
            return results

        return emulate


def build(folder: Path, edits: Iterable[tuple[str, str, str]] = ()) -> Emulator:
    """Compiles in `folder`. `edits`: mistakes to plant in the kernels, as (file, what is there once, what takes its
    place). Skips the test where CUDA's headers are missing."""
    headers = cuda_headers()
    if headers is None:
        pytest.skip("no CUDA headers: nvcc was not found")
    shutil.copytree(KERNELS, folder / "kernels")
    for name, there, planted in edits:
        text = (folder / "kernels" / name).read_text()
        assert text.count(there) == 1, f"{name} has {text.count(there)} times: {there}"
        (folder / "kernels" / name).write_text(text.replace(there, planted))
    rewrite(folder / "kernels")
    sources = [*(folder / "kernels" / op / "sm90.cu" for op in OPS), EMULATOR / "emulator.cpp", EMULATOR / "launch.cpp"]
    includes = [f"-isystem{headers}", f"-I{EMULATOR.parent}", f"-I{EMULATOR}", f"-I{folder / 'kernels'}"]
    command = ["g++", *FLAGS, *includes, "-include", "emulator.h", "-x", "c++", *map(str, sources)]
    command += ["-shared", "-Wl,-Bsymbolic"]  # the emulator's CUDA, also where torch has brought the real one
    made = subprocess.run([*command, "-o", str(folder / "emulator.so")], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return Emulator(folder / "emulator.so")
