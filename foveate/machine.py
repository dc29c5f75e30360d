"""The machine a figure was taken on, as a plain dictionary for run.json and the report."""

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("foveate", "torch", "torchvision", "timm", "lightning", "numpy", "openvino", "nncf", "onnxruntime", "safetensors")
FAST_PATHS = {"avx2": "avx2", "avx512": "avx512f", "vnni": "avx512_vnni", "bf16": "avx512_bf16", "amx": "amx_tile"}


def machine() -> dict:
    """Describe this machine and its software; every value is JSON-able and an unknown one is None.

    Keys: cpu_model, cpu_cores (those this process may use), cpu_flags (of avx2, avx512, vnni, bf16, amx), memory_gib, gpus,
    os, architecture, python, versions (package -> version), threads (OMP_NUM_THREADS or None), load_average_1min (a busy
    machine explains a wide spread) and git_commit (with "+changes" when tracked files differ; None outside a checkout).
    """
    return processor() | {
        "memory_gib": _memory_gib(),
        "gpus": _gpus(),
        "os": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "python": platform.python_version(),
        "versions": package_versions(),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "load_average_1min": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "git_commit": _git_commit(Path(__file__).resolve().parent),
    }


def processor() -> dict:
    """The part of `machine` that what was measured on a CPU depends on: cpu_model, cpu_cores and cpu_flags."""
    cpu = _cpu_info()
    return {
        "cpu_model": cpu.get("model name") or platform.processor() or None,
        "cpu_cores": _usable_cores(),
        "cpu_flags": _fast_paths(cpu.get("flags", "").split()),
    }


def package_versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Versions of the installed ones among `names`, read from their metadata without importing them."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_info(path: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """First processor's entries; empty where the system has no such file (macOS, Windows)."""
    try:
        text = path.read_text()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _fast_paths(flags: list[str]) -> list[str]:
    """Names of the instruction sets that decide which precision is fast."""
    return [name for name, flag in FAST_PATHS.items() if flag in flags]


def _usable_cores() -> int:
    """Cores this process may run on, which a container can set below what the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gib() -> float | None:
    """Physical memory in GiB."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _gpus() -> list[str]:
    """Names of NVIDIA GPUs as the driver gives them; asked without torch so that no CUDA context is created."""
    return (_output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]) or "").splitlines()


def _git_commit(folder: Path) -> str | None:
    """Commit of the checkout this file is tracked in; a virtual environment inside another project's checkout has none."""
    if _output(["git", "-C", str(folder), "ls-files", "--error-unmatch", "machine.py"]) is None:
        return None
    commit = _output(["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"])
    changes = _output(["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"])
    return f"{commit}+changes" if commit and changes else commit


def _output(command: list[str]) -> str | None:
    """Standard output of a small command, or None when it is not installed, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
