"""Which device computes, and how much of its memory is free."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from workers.errors import ModelLoadError


def choose_device(name: str) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda`` or ``cuda:<n>``."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelLoadError(f"CHAT_DEVICE={name!r} is no device. Use auto, cpu, cuda or cuda:<n>.") from error
    if device.type not in ("cpu", "cuda"):
        raise ModelLoadError(f"CHAT_DEVICE={name!r} is not supported. Use auto, cpu, cuda or cuda:<n>.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelLoadError(
            f"CHAT_DEVICE={name!r}, but torch sees {torch.cuda.device_count()} GPUs. "
            "Use CHAT_DEVICE=cpu, or install the driver and a CUDA build of torch."
        )
    return device


def free_bytes(device: torch.device) -> int:
    """Return the memory that is free on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    group = Path("/sys/fs/cgroup")
    try:
        # A container may have less than the machine.
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):
        return free
    return max(0, min(free, limit - used))
