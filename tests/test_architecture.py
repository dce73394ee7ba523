"""The rules of the house that a machine can check: who imports whom, what asv sees, what the documents promise."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tree

ROOT = Path(__file__).resolve().parents[1]
# kernels <- flash_dsa <- asv_bench. ci reads result files and imports none of them.
MAY_IMPORT = {
    "flash_dsa": {"flash_dsa", "torch"},
    "asv_bench": {"asv_bench", "flash_dsa", "torch"},
    "ci": {"ci"},
}
RULED = {"flash_dsa", "asv_bench", "ci", "tests", "torch"}
BENCHMARKS = {
    f"{module}.{name}{grid}.{method}"
    for module, name, method in [
        ("sparse_prefill", "SparsePrefill", "track_seconds"),
        ("dense_prefill", "DensePrefill", "track_seconds"),
        ("speedup", "SparseOverDense", "track_ratio"),
        ("control", "Control", "track_seconds"),
    ]
    for grid in ("", "Smoke")
}
# Ours are FLASH_DSA_* and ASV_BENCH_*: read in Python or C++, or set by the Makefile.
ENVIRONMENT_VARIABLE = re.compile(
    r"""(?:environ(?:\.get\(|\[)|getenv\()\s*"((?:FLASH_DSA|ASV_BENCH)_\w+)"|^(FLASH_DSA_\w+) \?="""
)


def project_files(*suffixes: str) -> list[Path]:
    """Files of the project by suffix; all of them when no suffix is given."""
    return [path for path in tree.project_files() if not suffixes or path.suffix in suffixes]


def test_a_copy_without_git_has_the_same_files(tmp_path: Path) -> None:
    """So the rules here hold in a source archive too."""
    ours = [path.relative_to(ROOT) for path in project_files()]
    for name in [*ours, Path("build/made.py"), Path("flash_dsa/libflash_dsa.so")]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes() if name == Path(".gitignore") else b"")
    assert {path.relative_to(tmp_path) for path in tree.project_files(tmp_path)} == set(ours)


def modules_of(package: str) -> list[Path]:
    return [path for path in project_files(".py") if path.relative_to(ROOT).parts[0] == package]


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(), path.name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "" if node.level == 0 else path.relative_to(ROOT).parts[0]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_go_one_way(package: str) -> None:
    for path in modules_of(package):
        forbidden = {name for name in imports_of(path) if name.split(".")[0] in RULED - MAY_IMPORT[package]}
        assert not forbidden, f"{path.relative_to(ROOT)} must not import {', '.join(sorted(forbidden))}"


def included_by(path: Path, seen: set[Path]) -> set[Path]:
    """A source with everything it includes by quoted path."""
    if path not in seen and path.is_file():
        seen.add(path)
        for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', path.read_text(), re.M):
            for folder in (path.parent, ROOT / "kernels"):
                included_by((folder / name).resolve(), seen)
    return seen


def test_device_code_includes_no_torch() -> None:
    """Nor does the SIMD source of the cpu target: it is compiled per level, and torch's inline code must not be."""
    sources = [p for p in project_files(".cu", ".cuh", ".cpp") if p.suffix != ".cpp" or "simd" in p.name]
    for source in sources:
        for path in included_by(source, set()):
            guilty = re.findall(r"^\s*#\s*include\s*[<\"]((?:torch|ATen|c10|Python)\b.*)[>\"]", path.read_text(), re.M)
            assert not guilty, f"{source.relative_to(ROOT)} reaches {guilty} through {path.relative_to(ROOT)}"


def test_asv_sees_the_suites_and_nothing_else() -> None:
    """Any function named like a benchmark becomes one; asv's own discovery is asked."""
    from asv_runner.discovery import disc_benchmarks

    assert {benchmark.name for benchmark in disc_benchmarks(str(ROOT / "asv_bench"))} == BENCHMARKS


def test_benchmarks_json_is_up_to_date() -> None:
    """The same on every machine and tracked, so that a run leaves `git status` clean."""
    from asv_runner.discovery import list_benchmarks

    listed = io.StringIO()
    list_benchmarks(str(ROOT / "asv_bench"), listed)
    content = {"version": 2, **{benchmark["name"]: benchmark for benchmark in json.loads(listed.getvalue())}}
    expected = json.dumps(content, indent=4, sort_keys=True)
    stored = ROOT / "asv_bench" / "results" / "benchmarks.json"
    assert stored.read_text() == expected, "run: make asv_bench/results/benchmarks.json"


def test_importing_a_suite_imports_no_torch() -> None:
    """asv starts a process for every point of the grid; torch's import would be most of the run."""
    suites = ", ".join(sorted({f"asv_bench.{name.split('.')[0]}" for name in BENCHMARKS}))
    code = f"import sys, {suites}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def documents() -> list[Path]:
    """Markdown that speaks for the project as it is; golden reports of tests do not."""
    return [path for path in project_files(".md") if path.relative_to(ROOT).parts[0] not in ("kernels", "tests")]


def test_commands_in_documents_exist() -> None:
    verbs = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))
    for path in documents():
        named = set(re.findall(r"(?:^|`)\s*(?:\$ )?make ([a-z][a-z-]*)", path.read_text(), re.M))
        assert named <= verbs, f"{path.relative_to(ROOT)} names make {', '.join(sorted(named - verbs))}"


def test_environment_variables_are_documented() -> None:
    sources = [*project_files(".py", ".cpp", ".cu", ".cuh", ".h", ".sh"), ROOT / "Makefile"]
    lines = [line for path in sources for line in path.read_text().splitlines()]
    used = {match[1] or match[2] for line in lines for match in ENVIRONMENT_VARIABLE.finditer(line)}
    rows = [line for path in documents() for line in path.read_text().splitlines() if line.startswith("|")]
    documented = {name for row in rows for name in re.findall(r"`((?:FLASH_DSA|ASV_BENCH)_\w+)", row)}
    assert used <= documented, f"no table documents {', '.join(sorted(used - documented))}"


def test_no_machine_path_is_tracked() -> None:
    folders = "|".join(("work", "root", f"home/{os.environ.get('USER') or 'user'}", "tmp/bash_jobs"))
    pattern = re.compile(rf"(?<![\w.])/(?:{folders})/".encode())
    for path in project_files():
        assert not pattern.search(path.read_bytes()), f"{path.relative_to(ROOT)} holds a path of one machine"
