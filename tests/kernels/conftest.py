"""Every kernel test runs on each device here; a GPU takes part with the shared memory of three families."""

from __future__ import annotations

import pytest
import torch
from numerics import SHARED_MEMORY

DEVICES = ["cpu", *(pytest.param(f"cuda-{kilobytes}", marks=pytest.mark.gpu) for kilobytes in SHARED_MEMORY)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device whose kernels see this much shared memory."""
    kind, _, kilobytes = request.param.partition("-")
    if kilobytes:
        monkeypatch.setenv("FLASH_DSA_TEST_SMEM_KB", kilobytes)
    return torch.device(kind)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def plain_device(request: pytest.FixtureRequest) -> torch.device:
    """A device as it is, for what does not depend on tiles."""
    return torch.device(request.param)
