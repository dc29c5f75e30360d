"""The command line: `foveate COMMAND --help` explains each command. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Sequence

from foveate.errors import FoveateError

RESUMABLE = ("train", "adapt")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 for a user's mistake, 130 for Ctrl-C, 1 for a bug (with its traceback).

    arguments: what follows `foveate`; those of this process by default.
    """
    from foveate.cli.app import app
    from foveate.cli.quiet import quiet

    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    command = shlex.join(["foveate", *arguments])
    try:
        with quiet():
            code = app(args=arguments, prog_name="foveate", standalone_mode=False, obj=command)
    except FoveateError as error:
        return _refuse(error)
    except Exception as error:  # noqa: BLE001  (the last resort: a bug is shown whole, and reported as one)
        if hasattr(error, "format_message"):
            return _refuse(_usage(error))
        traceback.print_exc()
        print(f"This is a bug in foveate; please report it with the lines above. The command was: {command}", file=sys.stderr)
        return 1
    if code == 130:
        again = "; the same command with --resume goes on from the last checkpoint" if arguments[0] in RESUMABLE else ""
        print(f"interrupted{again}", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _refuse(error: FoveateError) -> int:
    bold, plain = ("\033[1m", "\033[0m") if sys.stderr.isatty() else ("", "")
    for label, text in (("given:  ", error.given), ("allowed:", error.allowed), ("do:     ", error.do)):
        print(f"{bold}{label}{plain} {text}", file=sys.stderr)
    return 2


def _usage(error: Exception) -> FoveateError:
    """Typer's complaint about options and arguments, in our three parts."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "foveate"
    usage = context.get_usage().removeprefix("Usage: ").strip() if context else "foveate COMMAND ..."
    message = error.format_message().rstrip(".")
    return FoveateError(f"`{path}`: {message[:1].lower()}{message[1:]}", " ".join(usage.split()), f"see `{path} --help`")
