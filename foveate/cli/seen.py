"""--tokens, --trace, --fractions and --exits: what each image did, as measured or as given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.errors import FoveateError

if TYPE_CHECKING:
    from foveate.trace import Trace

Tokens = Annotated[
    str | None,
    typer.Option(metavar="N,N,...", show_default=False, help="Live tokens after each pruning stage, class and package tokens included."),
]
TraceOf = Annotated[
    str | None,
    typer.Option(metavar="RUN_OR_FILE", show_default=False, help="A trace.json, or the run it lies in (`foveate eval RUN --trace`): count what really ran."),
]
Fractions = Annotated[
    str | None,
    typer.Option(metavar="F,F,...", show_default=False, help="Of a cascade: the share of images that each effort answers, such as 0.8,0.2."),
]

Exits = Annotated[
    str | None,
    typer.Option(metavar="F,F,...", show_default=False, help="Of a plan with early exits: the share of images that leave at each, such as 0.5,0.3,0.2; the last is the model's own head."),
]


def tokens_of(text: str | None) -> tuple[int, ...] | None:
    """The numbers of --tokens; raises FoveateError where they are none."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise FoveateError(f"--tokens {text}", "whole numbers joined by commas, one a pruning stage", "write for instance --tokens 89,28,13") from None


def fractions_of(text: str | None) -> tuple[float, ...] | None:
    """The numbers of --fractions; raises FoveateError where they are none."""
    return _shares(text, "fractions", "effort")


def exits_of(text: str | None) -> tuple[float, ...] | None:
    """The numbers of --exits; raises FoveateError where they are none."""
    return _shares(text, "exits", "exit")


def _shares(text: str | None, option: str, what: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise FoveateError(f"--{option} {text}", f"numbers joined by commas, one an {what}", f"write for instance --{option} 0.8,0.2") from None


def trace_of(text: str | None) -> Trace | None:
    """The trace of a run or a file; raises FoveateError where there is none."""
    from foveate.cli.targets import named_run
    from foveate.trace import Trace

    if text is None:
        return None
    path = Path(named_run(text))
    path = path / "trace.json" if path.is_dir() else path
    if not path.is_file():
        what = "which has no trace.json" if Path(named_run(text)).is_dir() else "which is no file here"
        raise FoveateError(f"--trace {text}, {what}", "a trace.json, or a run that has one", f"make it: foveate eval {text} --trace")
    return Trace.from_json(path.read_text(encoding="utf-8", errors="replace"))
