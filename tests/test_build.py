"""setup.py: what it builds, what it refuses, and what it says."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytestmark = pytest.mark.xdist_group("build")  # in one process: its fixture is made once

ROOT = Path(__file__).resolve().parents[1]

# What nvcc prints, as far as setup.py reads it.
NVCC = """#!/bin/sh
case "$*" in
  *--version*) echo "Cuda compilation tools, release {release}, V{release}.1" ;;
  *--dryrun*) echo "#$ TOP={root}" >&2 ;;
  *--list-gpu-code*) printf 'sm_80\\nsm_90\\nsm_90a\\n{more}' ;;
esac
"""


@pytest.fixture(scope="module")
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("flash_dsa_setup", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["flash_dsa_setup"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def no_nvcc(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


def toolkit(folder: Path, release: str = "13.0", more: str = "sm_100\\nsm_120\\n") -> Path:
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(NVCC.format(release=release, root=folder, more=more))
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)
    return folder


def test_without_nvcc_the_cpu_is_built_and_one_line_says_so(
    build: ModuleType, no_nvcc: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.make_plan("auto").targets == ["cpu"]
    assert capsys.readouterr().err.splitlines() == [
        "flash_dsa: no nvcc found (CUDA_HOME, PATH, PyPI packages): building the cpu target alone"
    ]


@pytest.mark.parametrize("text", ["all", "sm80", "cpu,sm80:90"])
def test_without_nvcc_a_gpu_target_asked_for_is_an_error(build: ModuleType, no_nvcc: None, text: str) -> None:
    with pytest.raises(SystemExit, match=f"FLASH_DSA_TARGETS={text} needs nvcc.*pip install nvidia-cuda-nvcc"):
        build.make_plan(text)


def test_the_packages_to_install_are_those_that_make_installs(build: ModuleType, no_nvcc: None) -> None:
    lines = (ROOT / "requirements-nvcc.txt").read_text().splitlines()
    pinned = {line.partition("==")[0] for line in lines if not line.startswith("#")}
    with pytest.raises(SystemExit) as refused:
        build.make_plan("all")
    assert pinned == {word for word in str(refused.value).split() if word.startswith("nvidia-")}


def test_nvcc_is_found_by_cuda_home_path_and_package(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home, on_path, package = (toolkit(tmp_path / name) for name in ("home", "path", "nvidia/cu13"))
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setattr(shutil, "which", lambda name: str(on_path / "bin" / name))
    assert build.find_nvcc() == str(home / "bin" / "nvcc")
    monkeypatch.delenv("CUDA_HOME")
    assert build.find_nvcc() == str(on_path / "bin" / "nvcc")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    found = build.find_nvcc()
    assert found == str(package / "bin" / "nvcc")
    assert build.inspect_nvcc(found).root == package


def test_cuda_home_without_nvcc_is_an_error(build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(SystemExit, match=f"CUDA_HOME={tmp_path} holds no bin/nvcc"):
        build.make_plan("auto")


def test_all_architectures_by_default(build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path)))
    plan = build.make_plan("auto")
    assert plan.targets == ["cpu", "sm80", "sm90a"] and plan.sm80 == ["80", "90", "100", "120"]
    assert "-gencode=arch=compute_80,code=[sm_80,compute_80]" in build.sm80_gencode(plan.sm80)
    assert "-gencode=arch=compute_100,code=[sm_100]" in build.sm80_gencode(plan.sm80)


def test_an_older_nvcc_leaves_out_what_it_cannot_do(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path, "12.4", more="")))
    assert build.make_plan("auto").sm80 == ["80", "90"]
    assert "12.4 does not compile for sm_100, sm_120: left out" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="does not compile for sm_120: use a newer one"):
        build.make_plan("sm80:120")


def test_an_nvcc_that_is_too_old_is_an_error(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path, "11.8")))
    with pytest.raises(SystemExit, match=r"release 11\.8: 12\.4 or newer is needed"):
        build.make_plan("auto")


def test_a_broken_nvcc_is_an_error(build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nvcc = toolkit(tmp_path) / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\necho broken toolkit >&2; exit 1\n")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(SystemExit, match=r"(?s)nvcc --version failed.*broken toolkit"):
        build.make_plan("auto")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sm75", "names 'sm75': expected auto, all, native"),
        ("sm80:75", "asks for 'sm80:75': architectures go with sm80 and are 80, 90, 100, 120"),
        ("cpu:90", "asks for 'cpu:90'"),
    ],
)
def test_targets_that_do_not_exist(build: ModuleType, text: str, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        build.make_plan(text)


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [("80", "80"), ("86", "80"), ("89", "80"), ("90", "90"), ("103", "100"), ("121", "120")],
)
def test_native_compiles_what_serves_the_gpu(build: ModuleType, capability: str, architecture: str) -> None:
    assert build.serving_architecture(capability) == architecture


def test_native_leaves_out_a_gpu_that_nothing_serves(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path, "12.4", more="")))
    monkeypatch.setattr(build, "local_capabilities", lambda: ["75", "90", "120"])
    plan = build.make_plan("native")
    assert plan.sm80 == ["80", "90"], "sm_120 is unknown to this nvcc: PTX of 80 serves"
    assert plan.targets == ["cpu", "sm80", "sm90a"]
    assert "no target for the GPU of compute capability 7.5 here: left out" in capsys.readouterr().err
    monkeypatch.setattr(build, "local_capabilities", lambda: ["75"])
    assert build.make_plan("native").targets == ["cpu"]
    monkeypatch.setattr(build, "local_capabilities", lambda: ["80"])
    assert build.make_plan("native").targets == ["cpu", "sm80"], "sm90a serves compute capability 9.0 alone"


def test_a_target_without_kernels_asked_by_name_is_an_error(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path)))
    with pytest.raises(SystemExit, match="no kernels yet for sm100f; use sm80"):
        build.make_plan("sm100f")


def test_targets_named_twice_are_built_once(build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path)))
    plan = build.make_plan("sm80:90,cpu,sm80:80")
    assert plan.targets == ["cpu", "sm80"] and plan.sm80 == ["80", "90"]


def test_native_without_a_gpu_is_the_cpu(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert build.make_plan("native").targets == ["cpu"]
    assert "no GPU here" in capsys.readouterr().err


def test_a_torch_that_is_too_old(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cu128")
    with pytest.raises(SystemExit, match=r"torch 2\.9\.1\+cu128 is too old: its stable ABI is needed from 2\.10 on"):
        build.torch_flags()


def test_no_torch(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match=r"install torch >= 2\.10 first .*--no-build-isolation"):
        build.torch_flags()


@pytest.mark.parametrize(
    "text, folder, flags",
    [
        ("", "cpu-sm80.90", []),
        ("delay:0.01", "cpu-sm80.90-delay-0.01", ["-DFLASH_DSA_PLANTED_DELAY=10000"]),
        ("stage", "cpu-sm80.90-stage", ["-DFLASH_DSA_PLANTED_STAGE"]),
    ],
)
def test_a_plant_has_a_folder_of_its_own_and_is_said(
    build: ModuleType, capsys: pytest.CaptureFixture[str], text: str, folder: str, flags: list[str]
) -> None:
    targets = ["cpu", "sm80"]
    plan = build.Plan(targets, ["90"], plant=build.plant_of(text, targets))
    assert plan.folder.name == folder and plan.planted == flags
    assert (f"this library is planted with {text}" in capsys.readouterr().err) == bool(text)


@pytest.mark.parametrize("text", ["0.01", "delay:", "delay:2", "delay:-1", "delay:0.01;rm", "STAGE"])
def test_a_plant_that_is_none(build: ModuleType, text: str) -> None:
    with pytest.raises(SystemExit, match=r"FLASH_DSA_PLANT expected one of delay:SHARE .*, stage, sync, spill, got"):
        build.plant_of(text, ["cpu", "sm80"])


def test_a_plant_of_cuda_kernels_without_any(build: ModuleType) -> None:
    with pytest.raises(SystemExit, match="FLASH_DSA_PLANT=sync is of CUDA kernels, and only cpu is built"):
        build.plant_of("sync", ["cpu"])


@pytest.mark.parametrize("plant", ["", "delay:0.01", "stage", "sync", "spill"])
def test_every_plant_compiles_and_is_other_code(build: ModuleType, tmp_path: Path, plant: str) -> None:
    nvcc = build.find_nvcc()
    if not nvcc:
        pytest.skip("no nvcc")
    source = tmp_path / "kernel.cu"
    source.write_text("""
    #include "sm80.cuh"
    using namespace flash_dsa;
    __global__ void kernel(float* value) {
      [[maybe_unused]] PlantedDelay delay;
      sm80::copy_async_commit();
      planted_sync();
      *value = planted_spill(*value + 1.0f);
    }
    """)

    def ptx(flags: list[str]) -> str:
        out = tmp_path / "kernel.ptx"
        command = [nvcc, "-std=c++20", "-arch=compute_80", "-ptx", f"-I{ROOT / 'kernels'}", *flags]
        subprocess.run([*command, source, "-o", out], check=True)
        return out.read_text()

    flags = build.Plan(plant=plant).planted
    assert (ptx(flags) == ptx([])) == (not flags)
    if plant.startswith("delay:"):  # what it is compared with differs in the share alone
        pairs = zip(ptx(flags).splitlines(), ptx(build.Plan(plant="delay:0").planted).splitlines(), strict=True)
        assert [pair for pair in pairs if len(set(pair)) > 1] == [("\tmov.s32 %r1, 10000;", "\tmov.s32 %r1, 0;")]


def test_a_copy_without_git_is_told_its_commit(build: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASH_DSA_COMMIT", "0123456789" * 4)
    assert build.commit_built() == "0123456789" * 4


def test_a_copy_inside_another_repository_is_not_its_commit(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FLASH_DSA_COMMIT", raising=False)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "--message", "another project"], check=True)
    (tmp_path / "copy").mkdir()
    monkeypatch.setattr(build, "ROOT", tmp_path / "copy")
    assert build.commit_built() == "unknown"
    monkeypatch.setattr(build, "ROOT", tmp_path)
    assert len(build.commit_built()) == 40


@pytest.fixture
def repository(build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """Runs git in a repository with one commit, which the build takes for its own."""
    monkeypatch.delenv("FLASH_DSA_COMMIT", raising=False)
    monkeypatch.setattr(build, "ROOT", tmp_path)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    (tmp_path / "file").touch()
    git("add", "file")
    git("commit", "--quiet", "--message", "one")
    return git


def test_the_version_is_that_of_the_tag_or_leads_to_the_next(
    build: ModuleType, repository: Callable[..., str], tmp_path: Path
) -> None:
    assert build.version_built() == f"0.0.1.dev1+g{repository('rev-parse', 'HEAD')[:12]}"
    repository("tag", "v1.2.3")
    repository("tag", "reviewed")
    assert build.version_built() == "1.2.3"
    repository("commit", "--quiet", "--allow-empty", "--message", "two")
    head = repository("rev-parse", "HEAD")[:12]
    assert build.version_built() == f"1.2.4.dev1+g{head}"
    (tmp_path / "file").write_text("changed")
    assert build.version_built() == f"1.2.4.dev1+g{head}.dirty"


def test_a_tag_that_is_no_version_is_an_error(build: ModuleType, repository: Callable[..., str]) -> None:
    repository("tag", "v1-final")
    with pytest.raises(SystemExit, match=r"expected to be like v1\.2\.3, got v1-final"):
        build.version_built()


def test_what_is_not_in_git_has_the_version_it_was_given(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build, "ROOT", tmp_path)
    monkeypatch.delenv("FLASH_DSA_COMMIT", raising=False)
    assert (build.version_built(), build.commit_built()) == ("0.0.0+unknown", "unknown")
    monkeypatch.setenv("FLASH_DSA_COMMIT", "0123456789" * 4)
    assert build.version_built() == "0.0.0+g012345678901"
    monkeypatch.delenv("FLASH_DSA_COMMIT")
    (tmp_path / "ORIGIN").write_text(f"1.2.3 {'ab' * 20}\n")
    assert (build.version_built(), build.commit_built()) == ("1.2.3", "ab" * 20)


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Windows", "AMD64"), ("Linux", "riscv64")])
def test_other_platforms(build: ModuleType, monkeypatch: pytest.MonkeyPatch, system: str, machine: str) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with pytest.raises(SystemExit, match=f"{system} on {machine} is not supported"):
        build.check_platform()


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_a_broken_compiler(build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, compiler: str) -> None:
    monkeypatch.setenv("CXX", compiler)
    with pytest.raises(SystemExit, match=f"{compiler}.*does the C\\+\\+ compiler work"):
        build.cxx_compiler(tmp_path)


def test_each_source_is_compiled_for_its_own_target_alone(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path)))
    (tmp_path / "lib64").mkdir()
    (tmp_path / "lib64" / "libcudart_static.a").touch()
    plan = build.make_plan("all")
    monkeypatch.setattr(build.Plan, "folder", tmp_path)
    rules = build.ninja_file(plan, [], []).split("\n\n")
    device = [rule for rule in rules if ": nvcc " in rule]
    assert len(device) == 4 and all(("sm90.cu" in rule) == ("sm_90a" in rule) for rule in device)
    assert all("sm80.cu" in rule or "sm90.cu" in rule for rule in device)
    host = [rule for rule in rules if ": cxx " in rule]
    assert not any("march=native" in rule for rule in rules)
    wide = [rule for rule in host if "-mavx512f" in rule]
    assert wide and all("cpu_simd.cpp" in rule for rule in wide), "only the SIMD source may need more than the baseline"


def test_the_library_exports_its_c_functions_alone() -> None:
    """A C++ runtime linked statically must not meet the one torch loaded."""
    from flash_dsa.library import LIBRARY_PATH

    command = ["nm", "--dynamic", "--defined-only", "--format=posix", str(LIBRARY_PATH)]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    exported = {line.split()[0] for line in listed.splitlines()}
    assert exported == {"flash_dsa_compiled_targets", "flash_dsa_cpu_level", "flash_dsa_cuda_target"}


@pytest.mark.slow
def test_a_rebuild_touches_only_what_changed(tmp_path: Path) -> None:
    tree = tmp_path / "a tree with spaces"
    ignored = shutil.ignore_patterns("build", ".git", ".venv", ".asv", "*.so", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=ignored)
    environment = {**os.environ, "FLASH_DSA_TARGETS": "cpu"}

    def compiled() -> list[str]:
        result = subprocess.run(
            [sys.executable, "setup.py", "build_ext", "--inplace"],
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return [line for line in result.stdout.splitlines() if "] c++ " in line or "] link " in line]

    assert any("dense_fwd/op.cpp" in line for line in compiled())
    assert compiled() == []
    time.sleep(1.1)  # for file systems that keep whole seconds
    (tree / "kernels" / "dense_fwd" / "op.cpp").touch()
    again = compiled()
    assert len(again) == 2 and "dense_fwd/op.cpp" in again[0] and "link" in again[1]
    (tree / "kernels" / "dense_fwd" / "op.cpp").write_text("#error planted\n")
    broken = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert broken.returncode != 0 and "planted" in broken.stdout
    assert "the build failed: the compiler's message is above" in broken.stderr
