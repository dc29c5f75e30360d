"""What a command says: one JSON object or a text for people on standard output; bars and notes go to standard error."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

Progress = Callable[[int, int], None]


class Answer:
    """A command's result. data: the JSON object; shown: rich renderables or plain text for people."""

    def __init__(self):
        self.data: dict[str, Any] = {}
        self.shown: list[Any] = []

    def facts(self, pairs: dict[str, Any], title: str = "") -> None:
        """Add a list of names and values; empty values are left out."""
        width = max(map(len, pairs), default=0)
        lines = [title] if title else []
        self.shown.append("\n".join([*lines, *(f"{key.ljust(width)}  {value}" for key, value in pairs.items() if value not in ("", None))]))


@contextmanager
def answering(as_json: bool) -> Iterator[Answer]:
    """Whatever is printed inside the block goes to standard error; the answer alone goes to standard output at its end."""
    answer, stdout = Answer(), sys.stdout
    with redirect_stdout(sys.stderr):
        yield answer
    if not leading():
        return
    try:
        _write(answer, as_json, stdout)
        stdout.flush()
    except (BrokenPipeError, SystemExit):  # rich turns the one into the other
        # Whoever read our output has gone; the interpreter must not stumble over the rest of it on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())


def _write(answer: Answer, as_json: bool, stdout: TextIO) -> None:
    if as_json:
        stdout.write(json.dumps(plain(answer.data)) + "\n")
        return
    from rich.console import Console

    console = Console(file=stdout, width=columns(stdout))
    for part in answer.shown:
        console.print(part, markup=False, highlight=False, soft_wrap=isinstance(part, str))


def columns(stream: TextIO) -> int:
    """Width to write tables in: the terminal's, or 160 for a pipe or a file, where nothing need be folded at 80."""
    return shutil.get_terminal_size().columns if stream.isatty() or "COLUMNS" in os.environ else 160


def note(text: str) -> None:
    """Say something beside the answer."""
    if leading():
        print(f"note: {text}", file=sys.stderr)


def leading() -> bool:
    """Whether this process writes and speaks; in a distributed training the others only compute."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


@contextmanager
def bar(what: str) -> Iterator[Progress]:
    """A progress bar on standard error, to be called with (done, in all); nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """A spinner on standard error for work of unknown length; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


def table(*columns: str, left: int = 1, paths: bool = False) -> Any:
    """An empty rich table; the first `left` columns hold words, the others figures.

    paths: the first column holds paths, which fold where they are long (a shortened one could not be copied); names never do.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, header_style="bold", pad_edge=False, collapse_padding=True)
    for index, name in enumerate(columns):
        fold = paths and index == 0
        made.add_column(name, justify="left" if index < left else "right", no_wrap=index == 0 and not fold, overflow="fold" if fold else "ellipsis")
    return made


def sheets(results: Any) -> list[Any]:
    """The tables of a report.Results with what was found in one sentence, for people at a terminal."""
    shown: list[Any] = [results.sentence] if results.tables and results.sentence else []
    for one in results.tables:
        made = table(*one.head, left=one.left)
        made.title, made.title_justify = one.title, "left"
        for row in one.rows:
            made.add_row(*row)
        shown += [made, one.caption]
    return shown


def plain(value: Any) -> Any:
    """`value` as JSON knows it: numpy's scalars as numbers, NaN and infinity as null, paths as text."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(one) for one in value]
    if hasattr(value, "item"):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)

