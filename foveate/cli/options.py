"""Options that several commands share, with one wording each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand

ModelOrRun = Annotated[
    str,
    typer.Argument(
        metavar="MODEL_OR_RUN",
        show_default=False,
        help="A run folder, the name of an embedded run, or a backbone's name in timm (`foveate models` lists them).",
    ),
]
PlanText = Annotated[
    str | None,
    typer.Option(
        "--plan",
        metavar="PLAN",
        show_default=False,
        help="A plan file, a run folder (its plan), a preset's name, or the inline form: spvit(after=\\[3,6,9], keep=\\[0.7,0.49,0.343]), "
        "quoted; several methods joined by +; dense for none. Default: the run's own plan, dense for a backbone.",
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        show_default=False,
        help="fashion-mnist-subset (embedded), fashion-mnist, digits, imagefolder, or a name of timm (torch/..., hfds/..., wds/...). "
        "Default: imagefolder with --data-dir, else what the run was trained on; fashion-mnist-subset for what is embedded.",
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", show_default=False, help="Folder of the data; for your own images: with train/CLASS/*.png and val/CLASS/*.png inside."
    ),
]
Split = Annotated[str, typer.Option(metavar="SPLIT", help="Images used: train, validation, train+validation or test.")]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse data with damaged images instead of leaving those out.")]
Weights = Annotated[
    Path | None,
    typer.Option(metavar="FILE", show_default=False, help="Weights of the backbone: a .safetensors file or a run folder. Default: the embedded ones."),
]
Pretrained = Annotated[bool, typer.Option("--pretrained", help="Take the weights that timm names for this backbone (downloaded once).")]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto (a GPU where there is one), cpu or cuda.")]
BatchSize = Annotated[int, typer.Option(min=1, metavar="N", help="Images a step.")]
Threads = Annotated[int | None, typer.Option(min=1, metavar="N", show_default=False, help="CPU threads. Default: torch's choice, usually all cores.")]
Limit = Annotated[
    int | None, typer.Option(min=1, metavar="N", show_default=False, help="Only the first N images, for a quick look. Default: all.")
]
BudgetMs = Annotated[
    float | None,
    typer.Option(metavar="MS", show_default=False, help="Milliseconds from the call to an image's answer, of plans with exits and of cascades: it leaves before it would be late."),
]
BudgetMj = Annotated[
    float | None,
    typer.Option(metavar="MJ", show_default=False, help="Millijoules of an image on --target, likewise: it leaves before it would cost more."),
]
EnergyTarget = Annotated[
    str | None, typer.Option("--target", metavar="TARGET", show_default=False, help="Where --budget-mj is simulated (`foveate targets`). Default: zcu102.")
]
Lenient = Annotated[bool, typer.Option("--lenient", help="Where a budget is below the first possible answer, give that answer instead of an error.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object, and nothing else, on standard output.")]

HELP_WORDS = {"help_option_names": ["-h", "--help"]}


class Command(TyperCommand):
    """A command whose repeatable options take several values in one go: `--batch 1 16` is `--batch 1 --batch 16`.

    Where the command has arguments as well, such values are numbers only: any other word is an argument.
    """

    def parse_args(self, ctx, args: list[str]) -> list[str]:
        repeatable = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        alone = all(param.param_type_name == "option" for param in self.params)
        return super().parse_args(ctx, list(_repeated(args, repeatable, alone)))


def _repeated(args: list[str], repeatable: set[str], words: bool) -> Iterator[str]:
    option, values = "", 0
    for arg in args:
        if arg.startswith("-"):
            option, values = arg if arg in repeatable else "", 0
        elif option:
            values += 1
            if values > 1 and (words or _is_number(arg)):
                yield option
            elif values > 1:
                option = ""
        yield arg


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def branching(**topics: TyperCommand) -> type[Command]:
    """A Command that, where its first argument is the name of a topic, leaves everything to the command of that topic."""

    class Branching(Command):
        def make_context(self, info_name, args: list[str], parent=None, **extra):
            if args and args[0] in topics:
                return topics[args[0]].make_context(f"{info_name} {args[0]}", args[1:], parent=parent, **extra)
            return super().make_context(info_name, args, parent=parent, **extra)

    return Branching


def command_of(function, epilog: str) -> TyperCommand:
    """A command of its own, outside any application."""
    alone = typer.Typer(add_completion=False, rich_markup_mode="rich", context_settings=HELP_WORDS)
    alone.command(cls=Command, help=paragraphs(function.__doc__), epilog=epilog)(function)
    return typer.main.get_command(alone)


def example(*lines: str) -> str:
    """The foot of a command's help; its brackets are no markup."""
    label = "Example" if len(lines) == 1 else "Examples"
    return "\n\n".join([f"{label}: " + lines[0].replace("[", "\\["), *(line.replace("[", "\\[") for line in lines[1:])])


def paragraphs(text: str) -> str:
    """A docstring with one line a paragraph, to be folded at the width of the terminal."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))
