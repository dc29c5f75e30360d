"""Runs that come with the package, by name."""

from __future__ import annotations

from pathlib import Path

from foveate.errors import FoveateError

RUNS = Path(__file__).parent / "assets" / "runs"


def embedded_runs() -> tuple[str, ...]:
    """Names of the embedded runs."""
    return tuple(sorted(p.name for p in RUNS.iterdir() if (p / "plan.json").is_file())) if RUNS.is_dir() else ()


def embedded_run(name: str) -> Path:
    """Folder of the embedded run `name`; raises FoveateError for another name."""
    if name not in embedded_runs():
        raise FoveateError(f"embedded run {name!r}", ", ".join(embedded_runs()) or "none in this installation", "choose one of these, or give a run folder")
    return RUNS / name
