"""What `make wheel` left in dist/: complete archives, and a wheel that needs neither compiler nor GPU."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from tree import made, project_files

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
BYTES_MAX = 50_000_000  # PyPI takes files up to 100 MB
CALL = """
import sys
import torch
import flash_dsa
from flash_dsa import reference

torch.manual_seed(0)
device = torch.device(sys.argv[1])
q = torch.randn(5, 16, 576, dtype=torch.bfloat16)
kv = torch.randn(40, 1, 576, dtype=torch.bfloat16)
indices = torch.randint(-1, 41, (5, 1, 24), dtype=torch.int32)
made = flash_dsa.flash_mla_sparse_fwd(q.to(device), kv.to(device), indices.to(device), 0.05)
out, max_logits, lse = (one.cpu() for one in made)
expected = reference.sparse_fwd(q, kv, indices, 0.05)
torch.testing.assert_close(out.double(), expected[0], atol=2e-2, rtol=2e-2)
torch.testing.assert_close(lse.double(), expected[2], atol=1e-3, rtol=1e-3)
said = flash_dsa.__version__, flash_dsa.compiled_targets(), flash_dsa.target_of(device)
print(flash_dsa.__file__, *said, sep="\\n")
"""


@pytest.fixture(scope="module")
def wheel() -> Path:
    return made("*.whl")


class Installed:
    """The wheel in an environment of its own, which finds torch where this one has it, and no compiler."""

    def __init__(self, wheel: Path, folder: Path) -> None:
        venv.create(folder / "venv")
        self.folder = folder
        self.python = folder / "venv" / "bin" / "python"
        (folder / "no-programs").mkdir()
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install", "--no-deps", "--no-index"]
        subprocess.run([*pip, "--quiet", str(wheel)], check=True)
        # A folder named in a .pth file brings its packages, but not what editable installs left in it.
        (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
        (site / "torch.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))

    def run(self, *arguments: str, gpus: str = "") -> str:
        environment = {"PATH": str(self.folder / "no-programs"), "CUDA_VISIBLE_DEVICES": gpus}
        # Where a machine keeps its driver's libraries, it may say so by this alone.
        environment |= {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        done = subprocess.run(
            [self.python, "-I", *arguments], cwd=self.folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(wheel, tmp_path_factory.mktemp("wheel"))


def shipped_targets() -> str:
    """By setup.py's tables and the sources that are there."""
    spec = importlib.util.spec_from_file_location("flash_dsa_setup_of_wheel", ROOT / "setup.py")
    assert spec and spec.loader
    setup = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = setup
    spec.loader.exec_module(setup)
    architectures = {"sm80": f" ({' '.join(setup.SM80_ARCHITECTURES)})"}
    names = [name for name in setup.GPU_TARGETS if setup.sources_of(name)]
    return ", ".join(["cpu", *(name + architectures.get(name, "") for name in names)])


def test_it_runs_without_compiler_and_gpu(installed: Installed, wheel: Path) -> None:
    file, version, targets, target = installed.run("-c", CALL, "cpu").splitlines()
    assert Path(file).is_relative_to(installed.folder / "venv")
    assert wheel.name.split("-")[1] == version
    assert targets == shipped_targets() and target == "cpu"


@pytest.mark.gpu
def test_on_a_gpu_the_fastest_target_serves(installed: Installed) -> None:
    import torch

    target = installed.run("-c", CALL, "cuda:0", gpus=os.environ.get("CUDA_VISIBLE_DEVICES", "0")).splitlines()[-1]
    made_for = {9: "sm90a", 10: "sm100f"}.get(torch.cuda.get_device_capability()[0], "sm80")
    assert target == (made_for if made_for in shipped_targets() else "sm80")


def test_it_says_what_it_is(installed: Installed) -> None:
    said = dict(re.split(r"  +", line, maxsplit=1) for line in installed.run("-m", "flash_dsa").splitlines())
    assert said["targets"] == shipped_targets()
    assert said["cpu"].startswith("served by cpu") and said["gpu"].startswith("none")
    expected = os.environ.get("FLASH_DSA_COMMIT")
    if (ROOT / ".git").exists():
        head = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        expected = subprocess.run(head, capture_output=True, text=True, check=True).stdout.strip()
    assert said["commit"] == (expected or "unknown"), "dist/ is of another commit: run `make wheel`"


def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    assert re.fullmatch(r"flash_dsa-[^-]+-py3-none-linux_\w+\.whl", wheel.name)
    assert wheel.stat().st_size < BYTES_MAX
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    ours = {str(path.relative_to(ROOT)) for path in project_files() if path.parent == ROOT / "flash_dsa"}
    built = {f"flash_dsa/{name}" for name in ("libflash_dsa.so", "_build_info.py", "_fingerprint.json")}
    assert names == ours | built


def test_the_source_archive_holds_every_source_and_nothing_built() -> None:
    with tarfile.open(made("*.tar.gz")) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    names = {name for name in names if not name.startswith("flash_dsa.egg-info/")}
    ours = {str(path.relative_to(ROOT)) for path in project_files()}
    expected = {name for name in ours if name.startswith(("flash_dsa/", "kernels/"))}
    expected |= {"LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py"}
    assert names == expected | {"ORIGIN", "PKG-INFO", "setup.cfg"}
