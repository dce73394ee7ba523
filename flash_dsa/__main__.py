"""`python -m flash_dsa`: what is installed and what would serve this machine."""

from __future__ import annotations

import torch

import flash_dsa
from flash_dsa import fingerprint
from flash_dsa._build_info import commit, compiler, torch_headers  # written by the build
from flash_dsa.library import LIBRARY_PATH, cpu_level


def _served_by(device: torch.device) -> str:
    try:
        return flash_dsa.target_of(device)
    except NotImplementedError as error:
        return f"nothing: {error}"


def main() -> None:
    """Print version, commit, compiled targets, fingerprint, torch, and each device with the target that serves it."""
    lines = [
        ("flash_dsa", flash_dsa.__version__),
        ("commit", commit),
        ("library", str(LIBRARY_PATH)),
        ("targets", flash_dsa.compiled_targets()),
        ("compiler", compiler),
        ("fingerprint", fingerprint.describe()),
        ("torch", f"{torch.__version__} (built against {torch_headers})"),
        ("cpu", f"served by cpu, SIMD level {cpu_level()}"),
    ]
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        major, minor = torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
        note = ""
        if major == 10:
            note = "; the portable sources compiled for sm_100, no sm100f kernel exists yet"
        lines.append((str(device), f"{name}, compute capability {major}.{minor}, served by {_served_by(device)}{note}"))
    if torch.cuda.device_count() == 0:
        lines.append(("gpu", "none that torch can see"))
    width = max(len(name) for name, _ in lines)
    for name, value in lines:
        print(f"{name:<{width}}  {value}")


if __name__ == "__main__":
    main()
