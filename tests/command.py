"""Calls the command line inside this process, or in one of its own."""

import json
import subprocess
import sys
from pathlib import Path

from foveate.cli import main

ROOT = Path(__file__).parent.parent


def run(capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command."""
    capsys.readouterr()
    code = main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def answer(capsys, *arguments) -> dict:
    """The JSON object of a command that must succeed and print nothing else."""
    code, out, err = run(capsys, *arguments, "--json")
    assert code == 0, err
    assert out.count("\n") == 1
    return json.loads(out)


def python(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], check=False, capture_output=True, text=True, cwd=ROOT, timeout=300, **options)
