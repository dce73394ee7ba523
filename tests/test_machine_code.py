"""The machine code in the wheel: what ptxas makes of some sources is no instruction that a GPU takes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
import zipfile
from pathlib import Path

import pytest
from tree import made

# A copy whose place in shared memory is the sum of a uniform and another register, under a cache policy, which is in
# uniform registers, too: the GPU traps.
ILLEGAL = re.compile(r"LDGSTS\S* \[[^\]]*\bUR\d+[^\]]*\], desc\[UR\d+\]")
COPY = re.compile(r"LDGSTS\S* \[[^\]]*\], desc\[UR\d+\]")


def cuobjdump() -> str:
    """That of PyPI's package, which `make check` installs, with its nvdisasm beside it; else what is on PATH."""
    for folder in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        for path in sorted(Path(folder).glob("nvidia/cu*/bin/cuobjdump"), reverse=True):
            return str(path)
    found = shutil.which("cuobjdump")
    if found is None:
        pytest.skip("no cuobjdump: it comes with `make check`")
    return found


def test_the_illegal_copy_is_told_from_others() -> None:
    assert ILLEGAL.search("LDGSTS.E.BYPASS.LTC128B.128 [R13+UR7+0x2000], desc[UR4][R10.64+0x80] ;")
    for legal in (
        "LDGSTS.E.BYPASS.LTC128B.128 [R13+0x2000], desc[UR4][R10.64+0x80], P1 ;",
        "LDGSTS.E.BYPASS.128 [R13+UR7], [R10.64] ;",
    ):
        assert not ILLEGAL.search(legal)


@pytest.mark.slow
def test_no_copy_is_one_that_no_gpu_takes(tmp_path: Path) -> None:
    with zipfile.ZipFile(made("*.whl")) as archive:
        library = archive.extract("flash_dsa/libflash_dsa.so", tmp_path)
    tool = cuobjdump()
    environment = {"PATH": str(Path(tool).parent)}  # where it looks for nvdisasm
    shown = subprocess.run(
        [tool, "-sass", "-arch", "sm_90a", library], env=environment, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert len(COPY.findall(shown.stdout)) > 100, "copies under a cache policy are not where they were"
    assert ILLEGAL.findall(shown.stdout) == []
