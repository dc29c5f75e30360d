"""What backend="auto" chose: a short race of the engines that agree, its table, and the file that remembers it for this machine."""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from foveate.card import cache_folder
from foveate.files import write_atomic
from foveate.machine import machine, package_versions, processor
from foveate.runtime.engine import Engine
from foveate.runtime.fallback import Fallback

FORMAT = 1
FILE = "engines.json"
ROUNDS, SECONDS = 9, 3.0
"""Rounds of a race, each with every engine once; after so many seconds it ends early, three rounds at least."""
PACKAGES = ("openvino", "onnxruntime", "nncf", "torch", "foveate")


@dataclass(frozen=True)
class Row:
    """One candidate: how long it took, how well it agreed, and what became of it, in words.

    latency_ms: median of an image; None where it was not timed. agreement: as `Agreement` says it, or nothing.
    """

    backend: str
    precision: str
    latency_ms: float | None
    agreement: str
    verdict: str

    @property
    def name(self) -> str:
        return f"{self.backend} {self.precision}"


@dataclass(frozen=True)
class Choice:
    """Which engine was taken for `batch` images a call, from which table, when, and on which machine.

    fallback: that the model runs with nothing dropped, because that was at least as fast, and both figures.
    """

    backend: str
    precision: str
    batch: int
    rows: tuple[Row, ...]
    fallback: Fallback | None
    machine: Mapping[str, Any]
    measured: str

    def table(self) -> str:
        """The rows in columns: backend, precision, ms an image, images/s, agreement with eager float32, and why (not)."""
        head = ("backend", "precision", "ms/image", "images/s", "verdict", "agreement")
        lines = [(row.backend, row.precision, *_speeds(row.latency_ms), row.verdict, row.agreement) for row in self.rows]
        widths = [max(len(line[column]) for line in (head, *lines)) for column in range(len(head))]
        cells = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in (head, *lines))
        of = f"{self.batch} image{'s' * (self.batch > 1)} a call on {self.machine.get('cpu_model')} ({self.machine.get('cpu_cores')} cores), {self.measured}"
        return "\n".join((of, *cells))


def race(engines: Sequence[Engine], images: Tensor) -> dict[str, float]:
    """Milliseconds an image of each engine, the median over rounds in which each runs once."""
    times: dict[str, list[float]] = {engine.name: [] for engine in engines}
    for engine in engines:
        engine(images).cpu()  # a graph may compile at its first call of a size
    end = time.perf_counter() + SECONDS
    for turn in range(ROUNDS):
        if turn >= 3 and time.perf_counter() > end:
            break
        for engine in (*engines[turn % len(engines):], *engines[: turn % len(engines)]):
            start = time.perf_counter()
            engine(images).cpu()  # waits for an accelerator
            times[engine.name].append(1000 * (time.perf_counter() - start) / len(images))
    return {name: statistics.median(values) for name, values in times.items()}


def question(**asked: Any) -> str:
    """The key of a choice: what was asked, this processor, and the versions of what runs here."""
    whole = asked | {"processor": processor(), "versions": package_versions(PACKAGES), "format": FORMAT}
    return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()[:24]


def remembered(key: str, run: Path | None) -> Choice | None:
    """The choice that was made for this question, from the run's folder or the user's cache; a file that does not read is none."""
    for path in _files(run):
        try:
            form = json.loads(path.read_text(encoding="utf-8"))[key]
            fallback = None if form["fallback"] is None else Fallback(**form["fallback"])
            return Choice(**form | {"rows": tuple(Row(**row) for row in form["rows"]), "fallback": fallback})
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def remember(key: str, choice: Choice, run: Path | None) -> Path | None:
    """Adds the choice to engines.json in the run's folder, or in the user's cache where that cannot be written; the file, or None."""
    for path in _files(run):
        try:
            known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except (OSError, ValueError):
            known = {}
        whole = (known if isinstance(known, dict) else {}) | {key: asdict(choice)}
        try:
            write_atomic(path, lambda fresh: fresh.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8"))
        except OSError:
            continue
        return path
    return None


def today() -> dict[str, Any]:
    """The machine and the moment of a measurement, as `Choice` keeps them."""
    return {"machine": machine(), "measured": time.strftime("%Y-%m-%d %H:%M")}


def _files(run: Path | None) -> tuple[Path, ...]:
    own = () if run is None else (run / FILE,)
    return (*own, cache_folder().parent.parent / FILE)


def _speeds(latency_ms: float | None) -> tuple[str, str]:
    return ("-", "-") if latency_ms is None else (f"{latency_ms:.2f}", f"{1000 / latency_ms:.0f}")
