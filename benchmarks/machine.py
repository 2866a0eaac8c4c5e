"""Where and with what a figure was measured."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path

import torch

_PACKAGES = ("torch", "numpy", "numba", "triton", "mambapy", "entmax", "accelerated-scan")


def machine(device: torch.device) -> dict[str, object]:
    """Processor, cores, device, load and what changes how memory is given out."""
    found: dict[str, object] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "huge_pages": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "torch_on_huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE") == "1",
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["device"] = properties.name
        found["multiprocessors"] = properties.multi_processor_count
    return found


def versions() -> dict[str, str]:
    """Of Python and every package that took part and is installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def slug(device: torch.device, threads: int) -> str:
    """A file's name for this machine."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{_processor()} {threads} threads"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _processor() -> str:
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None
