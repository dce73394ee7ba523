"""Builds the one compiled library, flash_dsa/libflash_dsa.so, with ninja.

The library uses LibTorch's stable ABI only, so one build serves every torch >= 2.10 and every Python >= 3.10.
FLASH_DSA_TARGETS chooses what it holds; the table is in README.md.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

if int(setuptools.__version__.split(".")[0]) < 77:  # reads the licence fields of pyproject.toml, and makes wheels
    raise SystemExit(f"\nflash_dsa: setuptools {setuptools.__version__} is too old: pip install 'setuptools>=77'\n")

from setuptools.command.bdist_wheel import bdist_wheel

ROOT = Path(__file__).resolve().parent
KERNELS = ROOT / "kernels"
EXPORTS = KERNELS / "exports.map"
ORIGIN = "ORIGIN"  # file in a source archive alone: its version and commit
BUILD = ROOT / "build" / "native"  # one folder in it per choice of targets

OLDEST_TORCH = (2, 10)
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020a000000000000"  # 2.10, the oldest torch the library loads on

# Sources of a target are kernels/<op>/<stem>.<suffix>; sm100f gets its own with its first kernel. An op that has none
# for sm90a runs on sm80.
GPU_TARGETS = {"sm80": "sm80.cu", "sm90a": "sm90.cu", "sm100f": "sm100.cu"}

# Slowdowns that a drill may plant in CUDA kernels beside delay:SHARE (kernels/planted.h).
CUDA_PLANTS = ("stage", "sync", "spill")

# What the portable sources are compiled for. SM100 is served by them until an sm100f kernel exists. PTX of the
# entries marked True serves the GPUs in between and those that come after.
SM80_ARCHITECTURES = {"80": True, "90": False, "100": False, "120": True}
GENCODE = {
    "sm90a": ["-gencode=arch=compute_90a,code=sm_90a"],
    "sm100f": ["-gencode=arch=compute_100f,code=sm_100f"],
}


def load_fingerprint() -> ModuleType:
    """flash_dsa/fingerprint.py by its path: its package cannot be imported before there is a library."""
    spec = importlib.util.spec_from_file_location("flash_dsa_fingerprint", ROOT / "flash_dsa" / "fingerprint.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


fingerprint = load_fingerprint()


class BuildError(SystemExit):
    """Ends the build with a message that says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(f"\nflash_dsa: {message}\n")


def say(message: str) -> None:
    print(f"flash_dsa: {message}", file=sys.stderr)


@dataclass(frozen=True)
class Nvcc:
    path: str
    release: tuple[int, int]
    root: Path
    architectures: frozenset[str]

    @property
    def library_dir(self) -> Path:
        for name in ("lib64", "lib", f"targets/{platform.machine()}-linux/lib"):
            if (self.root / name / "libcudart_static.a").exists():
                return self.root / name
        raise BuildError(f"libcudart_static.a is not in {self.root}: install the CUDA runtime beside {self.path}")


@dataclass
class Plan:
    """What to compile: targets, and for sm80 its GPU architectures."""

    targets: list[str] = field(default_factory=lambda: ["cpu"])
    sm80: list[str] = field(default_factory=list)
    nvcc: Nvcc | None = None
    plant: str = ""  # what a drill plants: kernels/planted.h
    objects: list[tuple[str, str | None]] = field(default_factory=list)  # label and target; filled by ninja_file

    @property
    def folder(self) -> Path:
        names = [".".join(["sm80", *self.sm80]) if name == "sm80" else name for name in self.targets]
        return BUILD / "-".join([*names, *([self.plant.replace(":", "-")] if self.plant else [])])

    @property
    def planted(self) -> list[str]:
        """Flags of the plant."""
        name, _, share = self.plant.partition(":")
        if not name:
            return []
        return [f"-DFLASH_DSA_PLANTED_{name.upper()}" + (f"={round(float(share) * 1e6)}" if share else "")]


def plant_of(text: str, targets: list[str]) -> str:
    """What FLASH_DSA_PLANT asks for, such as `delay:0.01`, if these targets can have it."""
    match = re.fullmatch(r"delay:(\d+(?:\.\d+)?)", text)
    if not (text in ("", *CUDA_PLANTS) or (match and float(match[1]) <= 1)):
        names = ", ".join(("delay:SHARE with a share from 0 to 1", *CUDA_PLANTS))
        raise BuildError(f"FLASH_DSA_PLANT expected one of {names}, got {text!r}")
    if text in CUDA_PLANTS and targets == ["cpu"]:
        raise BuildError(f"FLASH_DSA_PLANT={text} is of CUDA kernels, and only cpu is built")
    if text:
        say(f"this library is planted with {text}: its kernels are slower. It is for drills, not for use")
    return text


def find_nvcc() -> str | None:
    """CUDA_HOME, then PATH, then the PyPI packages nvidia-cuda-nvcc and its companions."""
    home = os.environ.get("CUDA_HOME")
    if home:
        path = Path(home) / "bin" / "nvcc"
        if not path.exists():
            raise BuildError(f"CUDA_HOME={home} holds no bin/nvcc: correct or unset it")
        return str(path)
    on_path = shutil.which("nvcc")
    if on_path:
        return on_path
    spec = importlib.util.find_spec("nvidia")
    for folder in spec.submodule_search_locations or [] if spec else []:
        for path in sorted(Path(folder).glob("cu*/bin/nvcc"), reverse=True):
            return str(path)
    return None


def ask(command: list[str], purpose: str) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BuildError(f"cannot run {command[0]} ({purpose}): {error}") from error
    if result.returncode != 0:
        raise BuildError(f"{shlex.join(command)} failed ({purpose}):\n{result.stdout}{result.stderr}")
    return result.stdout + result.stderr


def inspect_nvcc(path: str) -> Nvcc:
    version = re.search(r"release (\d+)\.(\d+)", ask([path, "--version"], "the CUDA compiler"))
    if not version:
        raise BuildError(f"{path} --version names no release: is it nvcc?")
    release = (int(version[1]), int(version[2]))
    if release < (12, 4):
        raise BuildError(
            f"{path} is release {release[0]}.{release[1]}: 12.4 or newer is needed for C++20 device code; "
            "FLASH_DSA_TARGETS=cpu does without"
        )
    # nvcc may be a wrapper script; its own dry run names the toolkit it belongs to.
    top = re.search(r"^#\$ TOP=(.*)$", ask([path, "--dryrun", "-c", "-x", "cu", os.devnull], "its toolkit"), re.M)
    if not top:
        raise BuildError(f"{path} --dryrun names no toolkit folder")
    codes = ask([path, "--list-gpu-code"], "its GPU architectures")
    return Nvcc(path, release, Path(top[1].strip()).resolve(), frozenset(re.findall(r"sm_(\w+)", codes)))


def local_capabilities() -> list[str]:
    import torch

    found = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    return [f"{major}{minor}" for major, minor in sorted(found)]


def serving_architecture(capability: str, known: Collection[str] = SM80_ARCHITECTURES) -> str | None:
    """The newest entry of SM80_ARCHITECTURES, among those nvcc knows, that runs on a GPU of this compute capability
    without PTX; else the newest PTX it can translate; None for a GPU older than all."""
    older = [arch for arch in SM80_ARCHITECTURES if arch in known and int(arch) <= int(capability)]
    same_major = [arch for arch in older if arch[:-1] == capability[:-1]]
    return max(same_major or [arch for arch in older if SM80_ARCHITECTURES[arch]], key=int, default=None)


def parse_targets(text: str) -> tuple[list[str], list[str] | None]:
    """`cpu,sm80:90:100` to (["sm80"], ["90", "100"]); cpu is always built and need not be named."""
    targets: list[str] = []
    sm80: list[str] | None = None
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, *architectures = item.split(":")
        if name not in ("cpu", *GPU_TARGETS):
            raise BuildError(
                f"FLASH_DSA_TARGETS names {name!r}: expected auto, all, native, or a comma-separated list "
                f"of cpu, {', '.join(GPU_TARGETS)}"
            )
        unknown = [a for a in architectures if name != "sm80" or a not in SM80_ARCHITECTURES]
        if unknown:
            raise BuildError(
                f"FLASH_DSA_TARGETS asks for {item!r}: architectures go with sm80 and are "
                f"{', '.join(SM80_ARCHITECTURES)}"
            )
        if name != "cpu":
            targets.append(name)
        if architectures:
            sm80 = [*(sm80 or []), *architectures]
    return list(dict.fromkeys(targets)), sm80 and sorted(set(sm80), key=int)


def make_plan(text: str) -> Plan:
    """What FLASH_DSA_TARGETS asks for, as far as it can be had here; what was asked by name and cannot is an error."""
    insist = text not in ("auto", "native")
    targets, architectures = (list(GPU_TARGETS), None) if text in ("auto", "native", "all") else parse_targets(text)
    capabilities = local_capabilities() if text == "native" else []
    if text == "native" and not capabilities:
        say("no GPU here: building the cpu target alone")
        return Plan()
    if not targets:
        return Plan()
    path = find_nvcc()
    if path is None and insist:
        raise BuildError(
            f"FLASH_DSA_TARGETS={text} needs nvcc: set CUDA_HOME, put nvcc on PATH, or pip install nvidia-cuda-nvcc "
            "nvidia-cuda-crt nvidia-nvvm nvidia-cuda-cccl nvidia-cuda-runtime"
        )
    if path is None:
        say("no nvcc found (CUDA_HOME, PATH, PyPI packages): building the cpu target alone")
        return Plan()
    nvcc = inspect_nvcc(path)
    without_kernels = [name for name in targets if not sources_of(name)]
    if without_kernels and text not in ("auto", "native", "all"):
        raise BuildError(f"FLASH_DSA_TARGETS={text}: no kernels yet for {', '.join(without_kernels)}; use sm80")
    targets = [name for name in targets if name not in without_kernels]
    if capabilities and "90" not in capabilities:
        targets = [name for name in targets if name != "sm90a"]
    if "sm80" not in targets:
        return Plan(["cpu", *targets], [], nvcc)
    if capabilities:
        architectures = serving_architectures(capabilities, nvcc)
    wanted = list(SM80_ARCHITECTURES) if architectures is None else architectures
    missing = [arch for arch in wanted if arch not in nvcc.architectures]
    if missing:
        newer = f"{nvcc.path} {nvcc.release[0]}.{nvcc.release[1]} does not compile for sm_{', sm_'.join(missing)}"
        if insist and text != "all":
            raise BuildError(f"{newer}: use a newer one")
        say(f"{newer}: left out")
    found = [arch for arch in wanted if arch not in missing]
    return Plan(["cpu", *(name for name in targets if found or name != "sm80")], found, nvcc)


def serving_architectures(capabilities: list[str], nvcc: Nvcc) -> list[str]:
    """What the GPUs of this machine need; those that nothing serves are named and left out."""
    serving = {capability: serving_architecture(capability, nvcc.architectures) for capability in capabilities}
    for capability, arch in serving.items():
        if arch is None:
            say(f"no target for the GPU of compute capability {capability[:-1]}.{capability[-1]} here: left out")
    return sorted({arch for arch in serving.values() if arch is not None}, key=int)


def sources_of(target: str) -> list[Path]:
    return sorted(KERNELS.glob(f"*/{GPU_TARGETS[target]}"))


def sm80_gencode(architectures: list[str]) -> list[str]:
    flags = []
    for arch in architectures:
        codes = f"sm_{arch},compute_{arch}" if SM80_ARCHITECTURES[arch] else f"sm_{arch}"
        flags.append(f"-gencode=arch=compute_{arch},code=[{codes}]")
    return flags


# The SIMD source is compiled once per level and chosen at run time, so what is shipped runs on any x86-64.
CPU_LEVELS = {
    "generic": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma"],
    "avx512_bf16": ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512bf16", "-mfma"],
}
CPU_SIMD_SOURCE = KERNELS / "cpu_simd.cpp"


def torch_flags() -> tuple[list[str], list[str], str]:
    """Include and link flags of the installed torch, and its version."""
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        raise BuildError(
            f"torch is not importable ({error}): install torch >= 2.10 first and build with "
            "`pip install --no-build-isolation .`"
        ) from error
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if release < OLDEST_TORCH:
        raise BuildError(f"torch {torch.__version__} is too old: its stable ABI is needed from 2.10 on")
    includes = [f"-isystem{path}" for path in cpp_extension.include_paths()]
    # Both names, whether or not a symbol seems to need them: the weak CUDA stream symbol lives behind libtorch.
    links = [f"-L{path}" for path in cpp_extension.library_paths()] + ["-Wl,--no-as-needed", "-ltorch_cpu", "-ltorch"]
    return includes, links, torch.__version__


def check_platform() -> None:
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        raise BuildError(f"{platform.system()} on {platform.machine()} is not supported: Linux on x86_64 or aarch64 is")


def cxx_compiler(scratch: Path) -> str:
    """$CXX or the first of c++, g++, clang++, after it has compiled and linked a C++20 program."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        raise BuildError("no C++ compiler found: install g++ or clang++, or set CXX")
    probe = scratch / "probe.cpp"
    probe.write_text("#include <concepts>\nint main() { return std::integral<int> ? 0 : 1; }\n")
    ask([*shlex.split(compiler), "-std=c++20", str(probe), "-o", str(scratch / "probe")], "does the C++ compiler work")
    return compiler


def ninja_path(path: Path) -> str:
    return re.sub(r"([$ :])", r"$\1", str(path))


def ninja_flags(flags: list[str]) -> str:
    return shlex.join(flags).replace("$", "$$")


def object_of(label: str) -> str:
    """`sparse_fwd/sm80.cu` to `sparse_fwd-sm80.cu.o`."""
    return label.replace("/", "-") + ".o"


def ninja_file(plan: Plan, torch_includes: list[str], torch_links: list[str]) -> str:
    """The build as ninja reads it; it tracks headers and command lines, so a rebuild touches only what changed."""
    # Without it, messages with __FILE__ would make the code of two folders differ.
    here = f"-ffile-prefix-map={ROOT}=."
    torch_here = [flag.replace("-isystem", "-ffile-prefix-map=") + "=torch" for flag in torch_includes]
    host = [
        here,
        *torch_here,
        "-std=c++20",
        "-O3",
        "-fPIC",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        STABLE_ABI,
        *plan.planted,
    ]
    link = ["-shared", f"-Wl,--version-script={EXPORTS}", *torch_links]
    rules = [
        "ninja_required_version = 1.5",
        f"cxx = {cxx_compiler(plan.folder)}",
        "rule cxx\n  command = $cxx -MMD -MF $out.d $flags -c $in -o $out\n  depfile = $out.d\n  deps = gcc\n"
        "  description = c++ $in $level",
        "rule link\n  command = $cxx $in $flags -o $out\n  description = link $out",
    ]

    def compile_with(rule: str, source: Path, flags: list[str], target: str | None, suffix: str = "") -> None:
        label = source.relative_to(KERNELS).as_posix() + suffix
        name = object_of(label)
        plan.objects.append((label, target))
        rules.append(f"build {name}: {rule} {ninja_path(source)}\n  flags = {ninja_flags(flags)}\n  level = {suffix}")

    if plan.nvcc is not None:
        host.append(f"-isystem{plan.nvcc.root / 'include'}")
        link += [f"-L{plan.nvcc.library_dir}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
        keep = f"$out{fingerprint.KEEP}"
        rules.append(
            # The cubins are kept for their fingerprints; what an earlier nvcc left there would be taken for its work.
            f"rule nvcc\n  command = rm -rf {keep} && mkdir {keep} && "
            f"{ninja_flags([plan.nvcc.path])} --keep --keep-dir={keep} -MMD -MF $out.d $flags -c $in -o $out "
            f"&& rm {keep}/*.ii\n"
            "  depfile = $out.d\n  deps = gcc\n  description = nvcc $in"
        )
        device = [
            "-std=c++20",
            "-O3",
            "--expt-relaxed-constexpr",
            "-lineinfo",  # what profilers and the sanitizer name; no machine code
            "-Xcompiler=-fPIC,-fvisibility=hidden",
            f'-Xcompiler="{here}"',  # quoted for nvcc, which splits at commas
            "--threads=2",
            *plan.planted,
        ]
        for target in plan.targets[1:]:
            gencode = sm80_gencode(plan.sm80) if target == "sm80" else GENCODE[target]
            for source in sources_of(target):
                compile_with("nvcc", source, [*device, *gencode], target)
    if plan.sm80:
        host.append(f'-DFLASH_DSA_SM80_ARCHS="{" ".join(plan.sm80)}"')
    if "sm90a" in plan.targets:
        host.append("-DFLASH_DSA_SM90A")
    levels = CPU_LEVELS if platform.machine() == "x86_64" else {"generic": []}
    for level, flags in levels.items():
        compile_with("cxx", CPU_SIMD_SOURCE, [*host, *flags, f"-DFLASH_DSA_CPU_LEVEL={level}"], "cpu", f"-{level}")
    for source in sorted(KERNELS.rglob("*.cpp")):
        if source != CPU_SIMD_SOURCE:
            target = "cpu" if source.name == "cpu.cpp" else None
            compile_with("cxx", source, [*host, *torch_includes], target)
    objects = " ".join(object_of(label) for label, _ in plan.objects)
    rules.append(f"build libflash_dsa.so: link {objects} | {ninja_path(EXPORTS)}\n  flags = {ninja_flags(link)}")
    rules.append("default libflash_dsa.so")
    return "\n\n".join(rules) + "\n"


def ninja_command() -> list[str]:
    if importlib.util.find_spec("ninja"):
        return [sys.executable, "-m", "ninja"]
    if shutil.which("ninja"):
        return ["ninja"]
    raise BuildError("ninja is missing: pip install ninja")


def git(*arguments: str) -> str | None:
    """What git says of this tree; None without an answer, and in a copy, which may lie inside another repository."""
    if not (ROOT / ".git").exists():
        return None
    try:
        result = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def origin() -> tuple[str, str] | None:
    """Version and commit that a source archive was made from; None where this tree is not out of one."""
    if (ROOT / ".git").exists() or not (ROOT / ORIGIN).exists():
        return None
    version, _, commit = (ROOT / ORIGIN).read_text().strip().partition(" ")
    return version, commit


def commit_built() -> str:
    """FLASH_DSA_COMMIT says it in a copy that knows none."""
    named = os.environ.get("FLASH_DSA_COMMIT")
    return named or (origin() or ("", ""))[1] or git("rev-parse", "HEAD") or "unknown"


def version_built() -> str:
    """By git's tags: 1.2.3 at v1.2.3, 1.2.4.dev5+g0123456789ab five commits later. No tag counts as v0.0.0."""
    made_from = origin()
    if made_from:
        return made_from[0]
    commit = commit_built()
    count = git("rev-list", "--count", "HEAD")
    if count is None:
        return "0.0.0+" + ("unknown" if commit == "unknown" else f"g{commit[:12]}")
    words = ("--abbrev=12", "--dirty=.dirty")
    described = git("describe", *words, "--tags", "--long", "--match=v[0-9]*")
    described = described or f"v0.0.0-{count}-g{git('describe', *words, '--always', '--exclude=*')}"
    parts = re.fullmatch(r"v(\d+)\.(\d+)\.(\d+)-(\d+)-(g[0-9a-f]+(\.dirty)?)", described)
    if not parts:
        raise BuildError(f"the tag of a version is expected to be like v1.2.3, got {described.rsplit('-', 2)[0]}")
    major, minor, patch, later = (int(part) for part in parts.groups()[:4])
    if not later and not parts[6]:
        return f"{major}.{minor}.{patch}"
    return f"{major}.{minor}.{patch + 1}.dev{later}+{parts[5]}"


def fingerprint_of(plan: Plan) -> str:
    """The text of _fingerprint.json. A compiler that writes what we cannot read is no reason to fail the build."""
    objects = [fingerprint.Compiled(plan.folder / object_of(label), label, target) for label, target in plan.objects]
    try:
        return fingerprint.text_of(fingerprint.make(objects, KERNELS, ROOT / "flash_dsa"))
    except (ValueError, OSError) as error:
        say(f"no fingerprint of the code: {error}")
        return fingerprint.text_of(fingerprint.UNKNOWN)


def build_library() -> tuple[Path, dict[str, str]]:
    """Build, and return the library and the texts of the files that go beside it."""
    check_platform()
    includes, links, torch_version = torch_flags()
    plan = make_plan(os.environ.get("FLASH_DSA_TARGETS", "") or "auto")
    plan.plant = plant_of(os.environ.get("FLASH_DSA_PLANT", ""), plan.targets)
    plan.folder.mkdir(parents=True, exist_ok=True)
    (plan.folder / "build.ninja").write_text(ninja_file(plan, includes, links))
    jobs = ["-j", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
    built = subprocess.run([*ninja_command(), "-C", str(plan.folder), *jobs], check=False)
    if built.returncode != 0:
        raise BuildError("the build failed: the compiler's message is above")
    nvcc = f"nvcc {plan.nvcc.release[0]}.{plan.nvcc.release[1]}" if plan.nvcc and len(plan.targets) > 1 else "no nvcc"
    facts = {"version": version_built(), "commit": commit_built(), "compiler": nvcc, "torch_headers": torch_version}
    info = '"""Written by setup.py: where this build came from."""\n\n'
    info += "".join(f"{name} = {value!r}\n" for name, value in facts.items())
    return plan.folder / "libflash_dsa.so", {"_build_info.py": info, "_fingerprint.json": fingerprint_of(plan)}


def place(library: Path, texts: dict[str, str], folder: Path) -> None:
    """Put library and texts into a package folder; a library in use is replaced, not overwritten."""
    folder.mkdir(parents=True, exist_ok=True)
    staged = folder / "libflash_dsa.so.new"
    shutil.copy2(library, staged)
    os.replace(staged, folder / "libflash_dsa.so")
    for name, text in texts.items():
        (folder / name).write_text(text)


class BuildLibrary(build_ext):
    """build_ext with ninja: the extension is a plain shared library, no Python module."""

    def run(self) -> None:
        library, texts = build_library()
        place(library, texts, Path(self.build_lib) / "flash_dsa")
        if self.inplace:
            place(library, texts, ROOT / "flash_dsa")

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + ".so"

    def get_outputs(self) -> list[str]:
        folder = (ROOT if self.inplace else Path(self.build_lib)) / "flash_dsa"
        return [str(folder / name) for name in ("libflash_dsa.so", "_build_info.py", "_fingerprint.json")]

    def get_output_mapping(self) -> dict[str, str]:
        if not self.inplace:
            return {}
        return {str(Path(self.build_lib) / "flash_dsa" / Path(p).name): p for p in self.get_outputs()}


class AnyPythonWheel(bdist_wheel):
    """The library knows nothing of Python: one wheel serves every version."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", sysconfig.get_platform().replace("-", "_").replace(".", "_")


class SourceArchive(sdist):
    """Says in a file which version and commit it holds, since git does not come along."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        (Path(base_dir) / ORIGIN).write_text(f"{version_built()} {commit_built()}\n")


if __name__ == "__main__":
    setup(
        version=version_built(),
        ext_modules=[Extension("flash_dsa.libflash_dsa", sources=[])],
        cmdclass={"build_ext": BuildLibrary, "bdist_wheel": AnyPythonWheel, "sdist": SourceArchive},
    )
