"""Fingerprints of the compiled code: what changes them, what does not, and that two folders agree."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import flash_dsa
from ci import codegen
from flash_dsa import fingerprint

pytestmark = pytest.mark.xdist_group("build")

ROOT = Path(__file__).resolve().parents[1]

HOST_SOURCE = """
#include <cstdio>
static const float table[4] = {1.0f, 2.5f, 3.5f, 4.5f};
float look_up(int i) { return table[i] * 0.3f; }
void complain() { std::puts(__FILE__); }
namespace { struct Early { Early() { complain(); } } early; }
"""

# Names with internal linkage carry a hash of the path; `says` has strings, `shared` the rest of what is counted.
CUDA_SOURCE = """
#include <cstdio>
namespace {
__global__ void inner(float* p) { p[0] = p[1] * 1.5f; }
}
__global__ void says(double* p) { printf("%s %f", __FILE__, sin(*p)); }
template <int N> __global__ void __launch_bounds__(128) shared(float* p, int n) {
  __shared__ float values[N];
  float local[64];
  for (int i = 0; i < n; ++i) local[i] = p[i];
  values[threadIdx.x] = local[n / 2];
  __syncthreads();
  p[threadIdx.x] = values[n] / 3.25f;
}
void go(float* p) { inner<<<1, 1>>>(p); shared<96><<<1, 96>>>(p, 1); }
"""


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flash_dsa_setup_for_fingerprints", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def host_code(build: ModuleType, tmp_path: Path) -> Callable[..., str]:
    """The hash of an object compiled from a source in a folder of its own."""
    compiler = shlex.split(build.cxx_compiler(tmp_path))

    def hashed(source: str, folder: str = "one", *flags: str) -> str:
        here = tmp_path / folder
        here.mkdir(exist_ok=True)
        (here / "it.cpp").write_text(source)
        flags = ("-O2", "-fPIC", f"-ffile-prefix-map={here}=.", *flags)
        subprocess.run([*compiler, *flags, "-c", str(here / "it.cpp"), "-o", str(here / "it.o")], check=True)
        return fingerprint.machine_code(fingerprint.Elf((here / "it.o").read_bytes()))

    return hashed


@pytest.fixture
def kernels(build: ModuleType, tmp_path: Path) -> Callable[..., dict[str, dict[str, Any]]]:
    """The kernels, by readable name, of a cubin compiled from a source in a folder of its own."""
    try:
        nvcc = build.find_nvcc()
    except SystemExit as error:
        pytest.skip(str(error))
    if nvcc is None:
        pytest.skip("no nvcc: CUDA_HOME, PATH and the PyPI packages have none")

    def compiled(source: str, folder: str = "one", architecture: str = "sm_90") -> dict[str, dict[str, Any]]:
        here = tmp_path / folder
        here.mkdir(exist_ok=True)
        (here / "it.cu").write_text(source)
        flags = ["-std=c++20", "-O3", "-cubin", f"-arch={architecture}", f'-Xcompiler="-ffile-prefix-map={here}=."']
        subprocess.run([nvcc, *flags, str(here / "it.cu"), "-o", str(here / "it.cubin")], check=True)
        elf = fingerprint.Elf((here / "it.cubin").read_bytes())
        assert fingerprint.architecture(elf) == architecture
        found = fingerprint.kernels_of(elf)
        names = fingerprint.readable(list(found))
        return {names[symbol]: kernel for symbol, kernel in found.items()}

    return compiled


def changed(one: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name in {*one, *other} if one.get(name) != other.get(name)}


def test_the_build_left_one_in_the_form_the_judge_reads() -> None:
    assert fingerprint.PATH.exists(), "make build writes it"
    ours = json.loads(fingerprint.PATH.read_text())
    assert re.fullmatch(r"[0-9a-f]{32}", ours["host"])
    for key, kernel in ours["kernels"].items():
        target = key.partition("/")[0]
        assert set(kernel) == {"op", "sass", *codegen.FIGURES}
        assert re.fullmatch(r"[0-9a-f]{32}", kernel["sass"]) and target in flash_dsa.compiled_targets()
        assert all((kernel[name] is None) == (target == "cpu") for name in codegen.FIGURES)
    for target in re.findall(r"(\w+)(?: \(|,|$)", flash_dsa.compiled_targets()):
        for op in ("sparse_fwd", "dense_fwd"):
            assert any(k.startswith(f"{target}/") and v["op"] == op for k, v in ours["kernels"].items())
            assert codegen.same_code(ours, ours, target, op)
    assert f"{len(ours['kernels'])} kernels" in fingerprint.describe()


def test_without_one_the_description_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fingerprint, "PATH", tmp_path / "_fingerprint.json")
    assert fingerprint.describe().startswith("none: ") and "No such file" in fingerprint.describe()
    fingerprint.PATH.write_text(fingerprint.text_of(fingerprint.UNKNOWN))
    assert fingerprint.describe() == "none: the build said why"
    fingerprint.PATH.write_text("[]")
    assert fingerprint.describe().startswith("none: ")


def test_host_code_is_the_same_in_another_folder_with_other_comments_and_debug_info(
    host_code: Callable[..., str],
) -> None:
    ours = host_code(HOST_SOURCE)
    assert host_code(HOST_SOURCE, "another folder") == ours
    assert host_code("// a comment\n" + HOST_SOURCE) == ours
    assert host_code(HOST_SOURCE, "one", "-g") == ours


@pytest.mark.parametrize(
    ("old", "new"),
    [("0.3f", "0.4f"), ("2.5f", "2.25f"), ("look_up", "looked_up"), ("puts", "perror"), ("[i]", "[i + 1]")],
)
def test_host_code_changes_with_constants_data_and_calls(host_code: Callable[..., str], old: str, new: str) -> None:
    assert host_code(HOST_SOURCE.replace(old, new)) != host_code(HOST_SOURCE)


def test_kernels_are_counted_and_the_same_in_another_folder(
    kernels: Callable[..., dict[str, dict[str, Any]]],
) -> None:
    ours = kernels(CUDA_SOURCE)
    assert set(ours) == {"inner", "says", "shared<96>"}
    assert all(kernel["registers"] > 0 for kernel in ours.values())
    assert ours["shared<96>"]["shared_bytes"] == 1024 + 96 * 4, "SM90 reserves 1 KiB"
    assert ours["shared<96>"]["spill_bytes"] == 64 * 4 and ours["inner"]["spill_bytes"] == 0
    assert kernels(CUDA_SOURCE, "another folder, with a comma") == ours
    assert not {kernel["sass"] for kernel in kernels(CUDA_SOURCE, "one", "sm_80").values()} & {
        kernel["sass"] for kernel in ours.values()
    }


def test_a_kernel_changes_alone(kernels: Callable[..., dict[str, dict[str, Any]]]) -> None:
    ours = kernels(CUDA_SOURCE)
    assert changed(ours, kernels("// a comment\n" + CUDA_SOURCE)) == set()
    assert changed(ours, kernels(CUDA_SOURCE.replace("1.5f", "1.25f"))) == {"inner"}
    assert changed(ours, kernels(CUDA_SOURCE.replace("3.25f", "3.5f"))) == {"shared<96>"}
    assert changed(ours, kernels(CUDA_SOURCE.replace("bounds__(128)", "bounds__(96)"))) == {"shared<96>"}
    renamed = kernels(CUDA_SOURCE.replace("inner", "zz_other"))
    assert changed(ours, renamed) == {"inner", "zz_other"} and renamed["zz_other"] == ours["inner"]
    added = kernels(CUDA_SOURCE + "__global__ void aa(int* p) { *p = 7; }\n")
    assert changed(ours, added) == {"aa"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"39_GLOBAL__N__62e7cf74_7_sm80_cu_c2ad08a64tileEv", b"39_GLOBAL__N__00000000_7_sm80_cu_000000004tileEv"),
        (b"_ZN33_GLOBAL__N__b383b245_4_t_cu_table4anonEPf", b"_ZN33_GLOBAL__N__00000000_4_t_cu_table4anonEPf"),
        (b"__nv_static_29__d1a4a0e5_7_sm80_cu_c2ad08a6__x", b"__nv_static_29__00000000_7_sm80_cu_00000000__x"),
        (b"_ZN9flash_dsa4sm8017kernelILi2ELi64EEEvv", b"_ZN9flash_dsa4sm8017kernelILi2ELi64EEEvv"),
    ],
)
def test_hashes_of_paths_in_names_are_blanked(name: bytes, expected: bytes) -> None:
    assert fingerprint.plain(name) == expected and len(name) == len(expected)


def test_names_to_read_stay_apart() -> None:
    mangled = "_ZN9flash_dsa4sm8017sparse_fwd_kernelINS0_8WideTileILi2ELi64ELi576EEEEEvNS_15SparseFwdParamsE"
    other = mangled.replace("4sm80", "4sm90")
    assert fingerprint.readable([mangled]) == {mangled: "sparse_fwd_kernel<WideTile<2, 64, 576>>"}
    both = fingerprint.readable([mangled, other])
    assert "sm80::sparse_fwd_kernel" in both[mangled] and "sm90::sparse_fwd_kernel" in both[other]
    assert fingerprint.readable(["c_name"]) == {"c_name": "c_name"}


def test_what_is_no_object_is_refused_with_its_name(build: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "it.o"
    whole = Path(sys.executable).resolve().read_bytes()[:4096]
    for content in (b"", b"!<arch>\n", whole[:40], whole):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"it\.o: (expected a little-endian ELF64 file|the ELF file is cut short)"):
            fingerprint.make([fingerprint.Compiled(path, "it.cpp", None)], ROOT / "kernels", ROOT / "flash_dsa")


def test_a_host_object_is_no_cubin(build: ModuleType, host_code: Callable[..., str], tmp_path: Path) -> None:
    host_code(HOST_SOURCE)
    path = tmp_path / "one" / "it.o"
    with pytest.raises(ValueError, match="expected a cubin, got an ELF file for machine"):
        fingerprint.kernels_of(fingerprint.Elf(path.read_bytes()))
    device = fingerprint.Compiled(path, "sparse_fwd/sm90.cu", "sm90a")
    assert device.op == "sparse_fwd"
    with pytest.raises(ValueError, match=r"it\.o: no cubin is in it\.o\.keep"):
        fingerprint.make([device], ROOT / "kernels", ROOT / "flash_dsa")


def test_code_that_cannot_be_read_is_said_and_equal_to_nothing(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build.Plan, "folder", tmp_path)
    plan = build.Plan(objects=[("cpu.cpp", "cpu")])
    unknown = json.loads(build.fingerprint_of(plan))
    assert "flash_dsa: no fingerprint of the code: " in capsys.readouterr().err
    assert not codegen.same_code(unknown, unknown, "cpu", "sparse_fwd")


def test_the_hosts_hash_follows_its_sources_alone(host_code: Callable[..., str], tmp_path: Path) -> None:
    host_code(HOST_SOURCE)
    objects = [fingerprint.Compiled(tmp_path / "one" / "it.o", "it.cpp", None)]
    for name in ("kernels", "flash_dsa"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))

    def after(name: str) -> bool:
        path = tmp_path / name
        before = fingerprint.make(objects, tmp_path / "kernels", tmp_path / "flash_dsa")
        path.write_text((path.read_text() if path.exists() else "") + "\n")
        return before != fingerprint.make(objects, tmp_path / "kernels", tmp_path / "flash_dsa")

    assert after("kernels/check.h") and after("kernels/sparse_fwd/op.cpp") and after("flash_dsa/interface.py")
    assert not any(map(after, ["kernels/wide_sm80.cuh", "kernels/cpu_simd.h", "kernels/sparse_fwd/cpu.cpp"]))
    assert not any(map(after, ["flash_dsa/_build_info.py", "flash_dsa/_fingerprint.json"]))


@pytest.mark.slow
def test_two_builds_agree_and_a_comment_changes_nothing(build: ModuleType, tmp_path: Path) -> None:
    targets = "cpu,sm80:90" if build.find_nvcc() else "cpu"
    environment = {**os.environ, "FLASH_DSA_TARGETS": targets}

    def built(tree: Path) -> dict[str, Any]:
        command = [sys.executable, "setup.py", "build_ext", "--inplace"]
        result = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
        found = json.loads((tree / "flash_dsa" / "_fingerprint.json").read_text())
        assert isinstance(found, dict) and found["host"], result.stderr
        return found

    trees = tmp_path / "one", tmp_path / "another folder"
    made = (
        "build",
        ".git",
        ".venv",
        ".asv",
        "*.so",
        "_build_info.py",
        "_fingerprint.json",
        "*.egg-info",
        "__pycache__",
    )
    for tree in trees:
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*made))
    first = built(trees[0])
    assert built(trees[1]) == first
    for name in ("sparse_fwd/sm80.cu", "wide_sm80.cuh", "cpu_simd.cpp", "dense_fwd/cpu.cpp"):
        path = trees[0] / "kernels" / name
        path.write_text("// a comment\n" + path.read_text())
    assert built(trees[0]) == first
    path = trees[0] / "kernels" / "dense_fwd" / "op.cpp"
    path.write_text("// a comment\n" + path.read_text())
    again = built(trees[0])
    assert again["kernels"] == first["kernels"] and again["host"] != first["host"]
