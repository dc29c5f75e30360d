"""Keeps other libraries' chatter from the user; what foveate itself warns of is shown as a note."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PACKAGE = str(Path(__file__).resolve().parent.parent)


@contextmanager
def quiet() -> Iterator[None]:
    """Inside the block no library logs below an error, and only warnings raised by foveate's own code are shown."""
    # Read when torch is first imported: messages of its C++ side about this CPU's missing accelerators.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.showwarning = _show
            yield
    finally:
        logging.disable(disabled)


def _show(message, category, filename, lineno, file=None, line=None) -> None:
    if category is UserWarning and filename.startswith(PACKAGE):
        print(f"note: {message}", file=sys.stderr)
