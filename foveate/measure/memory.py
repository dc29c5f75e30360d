"""How much memory a call holds at its highest."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

PROCESS = Path("/proc/self")
RESET_PEAK = "5"
KIB_PER_MIB = 1024
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Numbers of glibc's mallopt."""
WORD, MAPPED = ctypes.sizeof(ctypes.c_size_t), 2
"""The word before a block of glibc holds its size, and in this bit whether it is a mapping of its own."""
PAGES, LARGEST_HOLE, USUAL = 256 * 2**10, 2**30, 32 * 2**20
"""Blocks from this size on are asked of the system one by one while measuring; afterwards as large as glibc itself lets them become."""


def peak_mib(call: Callable[[], object], device: str = "cpu") -> float | None:
    """MiB that `call` holds at its highest beyond what was held before it; None where the system does not say.

    call: what it returns counts as held; weights loaded before do not count, those it loads do. device: "cpu" or "cuda...", whose memory is meant.
    CPU: resident memory of the whole process (Linux: VmHWM, set back before the call), so nothing else should run in it meanwhile. With glibc
    every larger block is asked of the system and given back at once for the time of the call, which is slower then; otherwise the same call
    would seem to need twice as much or nothing, by the holes that others left. Runtimes that keep a pool show it in their first call: measure that.
    CUDA: what torch's allocator gave out.
    """
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        kept = call()
        torch.cuda.synchronize(device)
        peak = (torch.cuda.max_memory_allocated(device) - before) / 2**20
        del kept
        return peak
    with _no_holes():
        before = _reset()
        kept = call()
        peak = _status("VmHWM")
    del kept
    return None if before is None or peak is None else max(0.0, peak - before)


@contextmanager
def _no_holes() -> Iterator[None]:
    """Lets blocks of 256 KiB and more come from the system and go back to it, where the C library can: the heap's holes are kept occupied."""
    library = _glibc()
    if library is None:
        yield
        return
    library.mallopt(MMAP_THRESHOLD, PAGES), library.mallopt(TRIM_THRESHOLD, PAGES)
    library.malloc_trim(0)
    fillers, size = [], LARGEST_HOLE
    try:
        while size >= PAGES:
            block = library.malloc(size)  # untouched, so that it takes no memory
            if _in_a_hole(block) and size < LARGEST_HOLE:
                fillers.append(block)
            else:
                library.free(block)
                size //= 2
        yield
    finally:
        for block in fillers:
            library.free(block)
        library.mallopt(MMAP_THRESHOLD, USUAL), library.mallopt(TRIM_THRESHOLD, 2 * USUAL)


def _in_a_hole(block: int | None) -> bool:
    return bool(block) and ctypes.c_size_t.from_address(block - WORD).value & MAPPED == 0


def _glibc() -> ctypes.CDLL | None:
    """The C library, where it is glibc with a malloc of its own: there a block as large as no hole is a mapping."""
    try:
        library = ctypes.CDLL(None)
        library.malloc.restype = ctypes.c_void_p
        library.malloc.argtypes, library.free.argtypes = (ctypes.c_size_t,), (ctypes.c_void_p,)
        library.gnu_get_libc_version, library.mallopt, library.malloc_trim  # noqa: B018  (asks whether they are there)
    except (AttributeError, OSError, TypeError):
        return None
    block = library.malloc(LARGEST_HOLE)
    own = bool(block) and not _in_a_hole(block)
    library.free(block)
    return library if own else None


def _reset() -> float | None:
    """Sets the peak back to what is held now, which it returns; None where that is not possible."""
    try:
        (PROCESS / "clear_refs").write_text(RESET_PEAK)
    except OSError:
        return None
    return _status("VmRSS")


def _status(name: str) -> float | None:
    """An entry of the process's status in MiB."""
    try:
        lines = (PROCESS / "status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / KIB_PER_MIB for line in lines if line.startswith(f"{name}:")), None)
