"""The README does what it says: its Python runs, its commands are understood, its figures are those on the cards."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer

from foveate.train.data import load_data

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [line.partition("  #")[0].strip() for block in re.findall(r"```\n(foveate .*?)```", README, re.S)
            for line in block.replace("\\\n", " ").splitlines() if line.startswith("foveate ")]


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.S))
def test_python_blocks_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"images": load_data("fashion-mnist-subset", "test").batch(range(4)).images}
    exec(compile(block, "README.md", "exec"), names)
    assert names["logits"].shape == (4, 10) and len(names["trace"].tokens) == 3
    assert (names["fast"](names["images"]) - names["logits"]).abs().max() < 1e-5


def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 8


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command):
    from foveate.cli.app import app

    words = shlex.split(command)[1:]
    group = typer.main.get_command(app)
    context = group.make_context("foveate", list(words), resilient_parsing=False)
    name, sub, rest = group.resolve_command(context, words)
    while rest and hasattr(sub, "resolve_command"):
        context = sub.make_context(name, list(rest), parent=context)
        name, sub, rest = sub.resolve_command(context, rest)
    sub.make_context(name, list(rest), parent=context)


def test_figures_are_those_on_the_cards():
    for card in (ROOT / "foveate" / "assets").rglob("*card.json"):
        entry = json.loads(card.read_text())
        assert f"{entry['accuracy_percent']:.2f} %" in README, card
