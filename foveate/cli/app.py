"""The application: which command lives in which file."""

from __future__ import annotations

from typing import Annotated

import typer

from foveate import __version__
from foveate.cli import bench_attention, cascade, exits, export, judge, know, learn, paths, profile, show, simulate, sweep, thresholds, timing
from foveate.cli.options import HELP_WORDS, Command, branching, command_of, example, paragraphs

app = typer.Typer(
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings=HELP_WORDS,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"foveate {__version__}")
        raise typer.Exit()


_ABOUT = """Vision Transformers that look harder only where it pays, and what that costs.

Start with `foveate demo`. Every command explains itself: `foveate COMMAND --help`. With --json a command prints one JSON
object on standard output and nothing else there.
"""


@app.callback(help=paragraphs(_ABOUT))
def foveate(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")] = False,
) -> None:
    """What stands before the command."""


_PANELS = {
    "Know": {
        know.models: example("foveate models deit"),
        know.methods: example("foveate methods spvit"),
        know.count: example(
            'foveate count deit_small_patch16_224 --plan "spvit(after=[3,6,9],keep=[0.637,0.406,0.259])"',
            'foveate count deit_small_patch16_224 --plan "spvit(after=[3,6,9],keep=[0.7,0.5,0.3],select=argmax)" --tokens 139,101,62',
        ),
        simulate.targets: example("foveate targets zcu102", "foveate targets check my-machine.toml"),
        simulate.simulate: example(
            "foveate simulate deit_small_patch16_224 --plan spvit-deit-small --target zcu102",
            "foveate simulate spvit-nano --target my-machine.toml --batch 8",
        ),
    },
    "Learn": {
        learn.train: example(
            "foveate train foveate_nano_p4 --data fashion-mnist --recipe base-nano --epochs 12 --split train+validation --out runs/base-p4",
            "foveate train deit_tiny_patch16_224 --pretrained --data-dir my-photos --set lr=1e-4 --out runs/photos",
        ),
        learn.adapt: example(
            'foveate adapt foveate_nano --plan "spvit(after=[3,6,9],keep=[0.6,0.36,0.216])" --recipe spvit-nano --out runs/spvit'
        ),
        sweep.sweep: example('foveate sweep runs/base-p4 --plan "vitality()" --vary threshold=0.002,0.02,0.2,0.5,0.9 --out runs/thresholds'),
        cascade.cascade: example(
            "foveate cascade runs/effort-6 runs/base --data fashion-mnist-subset --lec 0.7 --out runs/cascade",
            "foveate cascade spvit-nano foveate_nano --gate margin --lec 0.8 --sweep --target zcu102 --out runs/two",
        ),
    },
    "Judge": {
        judge.evaluate: example("foveate eval runs/spvit --trace"),
        exits.exits: example(
            "foveate exits runs/exits --data fashion-mnist-subset",
            "foveate exits runs/exits --threshold 0.6 0.8 0.95 --accuracy 90 --out runs/exits/study",
        ),
        thresholds.thresholds: example("foveate thresholds runs/iret --threshold 0 0.0004 0.0008 0.003 --split validation --out runs/iret/thresholds"),
        timing.bench: example(
            "foveate bench runs/spvit --batch 1 16 --backend openvino",
            "foveate bench deit_small_patch16_224 --plan spvit-deit-small",
            "foveate bench attention --tokens 197 1025",
        ),
        profile.profile: example("foveate profile attention deit_tiny_patch16_224 --precision bf16"),
        judge.predict: example("foveate predict runs/spvit shoe.png bag.jpg --top 3"),
        show.inspect: example("foveate inspect tokens runs/spvit --count 12"),
        paths.paths: example("foveate paths foveate_nano_p4 --data fashion-mnist-subset --efforts 3-9 --out runs/paths"),
    },
    "Show": {
        show.demo: example("foveate demo --out runs/demo"),
        show.report: example("foveate report runs/demo"),
    },
    "Use": {
        export.export: example(
            "foveate export runs/spvit --to onnx",
            "foveate export spvit-nano --to openvino --precision bf16 --out shoes",
        ),
    },
}

_BENCH_ATTENTION = example(
    "foveate bench attention --tokens 197 577 1025 --precision bf16 --eager",
    "foveate bench attention --model deit_small_patch16_224 --image-size 224 384 512 1024",
)
_KINDS = {timing.bench: branching(attention=command_of(bench_attention.bench_attention, _BENCH_ATTENTION))}

for _panel, _commands in _PANELS.items():
    for _function, _epilog in _commands.items():
        _name = _function.__name__.replace("evaluate", "eval")
        app.command(_name, cls=_KINDS.get(_function, Command), help=paragraphs(_function.__doc__), epilog=_epilog, rich_help_panel=_panel)(_function)
