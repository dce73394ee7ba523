"""Every kernel test runs on each device here. A GPU takes part with the shared memory of three families; SM90's kernels
take part without one, emulated."""

from __future__ import annotations

import zlib

import emulated
import pytest
import torch
from numerics import SHARED_MEMORY

from flash_dsa import interface

DEVICES = [
    "cpu",
    "emulated-sm90a",
    *(pytest.param(f"cuda-{kilobytes}", marks=pytest.mark.gpu) for kilobytes in SHARED_MEMORY),
]


@pytest.fixture(scope="session")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> emulated.Emulator:
    return emulated.build(tmp_path_factory.mktemp("emulator"))


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device whose kernels see this much shared memory."""
    kind, _, kilobytes = request.param.partition("-")
    if kind == "emulated":
        if request.node.get_closest_marker("not_emulated"):
            pytest.skip("more work than an emulated kernel gets done")
        emulator: emulated.Emulator = request.getfixturevalue("emulator")
        emulator.seed = zlib.crc32(request.node.name.encode())
        monkeypatch.setattr(interface, "_run", emulator.instead_of(interface._run))
        return torch.device("cpu")
    if kilobytes:
        monkeypatch.setenv("FLASH_DSA_TEST_SMEM_KB", kilobytes)
    return torch.device(kind)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def plain_device(request: pytest.FixtureRequest) -> torch.device:
    """A device as it is, for what does not depend on tiles."""
    return torch.device(request.param)
