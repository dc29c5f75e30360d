"""train and adapt: a dense base, and a plan fine-tuned with its dense model as teacher."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foveate.cli.answer import answering, note, waiting
from foveate.cli.options import Data, DataDir, Device, Json, ModelOrRun, Pretrained, Strict, Weights
from foveate.cli.recipes import check_patches, chosen_recipe, settings_of, usual_recipe, usual_teacher
from foveate.cli.runs import check_folder, report_run, test_once
from foveate.errors import FoveateError

if TYPE_CHECKING:
    from foveate.cli.targets import Target
    from foveate.plan import Plan
    from foveate.train.recipe import Recipe

CALIBRATION_IMAGES, CALIBRATION_BATCH = 256, 32  # as many images as PIVOT calibrates on
Out = Annotated[Path, typer.Option(metavar="RUN", show_default=False, help="Folder for the run: weights, checkpoints, metrics, settings.")]
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on where an interrupted run in --out stopped; the result is that of an uninterrupted run.")
]
RECIPES_HELP = "base-nano, spvit, vitality, iret, pivot (the papers' recipes), earlyexit (frozen backbone), spvit-nano, vitality-nano, iret-nano, pivot-nano, earlyexit-nano (short, for 28x28 images)"
RecipeName = Annotated[str, typer.Option(metavar="RECIPE", help=f"{RECIPES_HELP}, or a recipe.json.")]
Epochs = Annotated[int | None, typer.Option(min=1, metavar="N", show_default=False, help="Passes over the training images. Default: the recipe's.")]
Batch = Annotated[
    int | None, typer.Option("--batch-size", min=1, metavar="N", show_default=False, help="Images a step over all processes. Default: the recipe's.")
]
TrainSplit = Annotated[
    str | None, typer.Option("--split", metavar="SPLIT", show_default=False, help="Images trained on: train, or train+validation. Default: the recipe's.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", show_default=False, help="Any other setting of the recipe, such as lr=1e-3 or augmentation=full; may be repeated."),
]
Seed = Annotated[
    int | None, typer.Option(min=0, metavar="N", show_default=False, help="First weights, order of images and all noise follow from it. Default: the recipe's, 0.")
]
Steps = Annotated[
    int | None, typer.Option(min=1, metavar="N", show_default=False, help="Stop after N steps; --resume goes on from there. Default: to the end.")
]
Devices = Annotated[int, typer.Option(min=1, metavar="N", help="Processes on this machine that share each batch (GPUs, or CPU processes).")]
Nodes = Annotated[int, typer.Option(min=1, metavar="N", help="Machines that share each batch; start the command on each with torchrun.")]
Workers = Annotated[int, typer.Option(min=0, metavar="N", help="Processes that read images; worth it for folders, not for small sets.")]


def train(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", show_default=False, help="A backbone's name in timm (`foveate models`).")],
    out: Out,
    data: Data = None,
    data_dir: DataDir = None,
    recipe: RecipeName = "base-nano",
    epochs: Epochs = None,
    batch_size: Batch = None,
    split: TrainSplit = None,
    settings: Settings = None,
    model_settings: Annotated[
        list[str] | None,
        typer.Option("--model-set", metavar="KEY=VALUE", show_default=False, help="An argument of timm.create_model, such as img_size=64; may be repeated."),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(metavar="RUN", show_default=False, help="First weights from a run, or grow:RUN from a twin with larger patches or another image size (grow:foveate_nano_p4)."),
    ] = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    resume: Resume = False,
    seed: Seed = None,
    steps: Steps = None,
    device: Device = "auto",
    devices: Devices = 1,
    nodes: Nodes = 1,
    workers: Workers = 0,
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Train a dense backbone.

    Validates after each epoch and tests once at the end. Ctrl-C or a crash loses at most five minutes: --resume goes on.
    """
    from foveate.cli.targets import named_weights

    with answering(json) as answer:
        chosen = chosen_recipe(recipe, seed, epochs, batch_size, split, settings)
        first = [word for word, given in (("--init", init), ("--weights", weights), ("--pretrained", pretrained)) if given]
        if len(first) > 1:
            raise FoveateError(" and ".join(first), "one source of first weights", f"keep {first[0]} alone")
        check_folder(out, resume)
        with waiting("loading torch"):
            from foveate.train.base import train_base

        extra = settings_of(model_settings, "--model-set")
        check_patches(model, extra)
        start = init or (str(weights) if weights else None)
        if start:
            grown = start.startswith("grow:")
            start = "grow:" * grown + named_weights(start.removeprefix("grow:"))
        with _stoppable():
            train_base(
                model, out, data or ("imagefolder" if data_dir else "fashion-mnist-subset"), chosen, data_dir=data_dir, pretrained=pretrained,
                init=start, settings=extra, strict=strict, resume=resume, limit_steps=steps, device=device,
                devices=devices, num_nodes=nodes, workers=workers, command=ctx.obj,
            )  # fmt: skip
        report_run(answer, out)


def adapt(
    ctx: typer.Context,
    model_or_run: ModelOrRun,
    plan: Annotated[
        str,
        typer.Option(
            metavar="PLAN",
            show_default=False,
            help="A plan file, a run folder (its plan), a preset's name, or the inline form: spvit(after=\\[3,6,9], keep=\\[0.7,0.49,0.343]), quoted.",
        ),
    ],
    out: Out,
    data: Data = None,
    data_dir: DataDir = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            show_default=False,
            help=f"{RECIPES_HELP}, or a recipe.json. Default: the preset's; else that of the plan's first method, with -nano for foveate_nano* and iret_nano.",
        ),
    ] = None,
    epochs: Epochs = None,
    batch_size: Batch = None,
    split: TrainSplit = None,
    settings: Settings = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="MODEL_OR_RUN", show_default=False, help="Who teaches instead: a run, an embedded backbone, or a name in timm whose weights timm fetches (regnety_160.deit_in1k). Default: the preset's teacher."),
    ] = None,
    sliced: Annotated[
        str | None,
        typer.Option("--slice", metavar="MODEL_OR_RUN", show_default=False, help="Start iret_* from the leading channels and heads of a dense DeiT: a run or an embedded backbone."),
    ] = None,
    scratch: Annotated[bool, typer.Option("--scratch", help="Start from fresh weights, as IRET is trained, instead of a trained dense model.")] = False,
    resume: Resume = False,
    seed: Seed = None,
    steps: Steps = None,
    device: Device = "auto",
    devices: Devices = 1,
    nodes: Nodes = 1,
    workers: Workers = 0,
    strict: Strict = False,
    json: Json = False,
) -> None:
    """Fine-tune a plan, with the dense model as teacher, or train it from scratch.

    Validates after each epoch, tests once at the end, and leaves a run folder that every other command takes, with the trace of the test set.
    """
    from foveate.cli.targets import single_plan_of

    with answering(json) as answer:
        target = dense_target(model_or_run)
        chosen = single_plan_of(target, plan)
        setting = chosen_recipe(recipe or usual_recipe(target, plan), seed, epochs, batch_size, split, settings)
        check_folder(out, resume)
        fine_tune(
            target, chosen, out, setting, data=data, data_dir=data_dir, weights=weights, pretrained=pretrained, teacher=teacher or usual_teacher(plan),
            scratch=scratch, sliced=sliced, strict=strict, resume=resume, limit_steps=steps, device=device, devices=devices, num_nodes=nodes,
            workers=workers, command=ctx.obj,
        )  # fmt: skip
        report_run(answer, out)


def dense_target(model_or_run: str) -> Target:
    """The dense run or backbone that a plan starts from; raises FoveateError for a run that has a plan already."""
    from foveate.cli.targets import single_plan_of, target_of

    target = target_of(model_or_run)
    own = single_plan_of(target, None)
    if own.methods:
        raise FoveateError(
            f"{model_or_run}, which already runs by the plan {own}",
            "a dense run, or a backbone with weights",
            "adapt the dense model it came from, with all methods in one plan; eval, bench and predict take another --plan as it is",
        )
    return target


def fine_tune(target: Target, plan: Plan, out: Path, recipe: Recipe, *, data, data_dir, weights, pretrained, strict: bool, device: str,
              teacher: str | None = None, scratch: bool = False, sliced: str | None = None, **options) -> None:
    """Train `plan` on the dense model of `target`, which teaches unless a `teacher` is named, into the run folder `out`, and test it once."""
    with waiting("loading torch and the model"):
        from foveate.cli.images import data_name, preprocessing_for
        from foveate.cli.targets import open_model
        from foveate.cli.teaching import fresh_model, named_teacher
        from foveate.plan import Plan
        from foveate.train.fit import fit, load_sets

        if scratch or sliced:
            model, dense = fresh_model(target, plan, data_name(target, data, data_dir), data_dir, recipe.seed, weights, pretrained, sliced), None
        else:
            dense = open_model(target, Plan(), weights, pretrained)
            model = open_model(target, plan, weights, pretrained, seed=recipe.seed)
        guided = bool(recipe.kl_weight or recipe.distill_weight or recipe.hard_weight)
        master = None if not guided else named_teacher(teacher, model) if teacher else dense
    if guided and master is None:
        note("nobody teaches: the model learns from the labels alone; --teacher names somebody")
    preprocessing = preprocessing_for(target, model)
    with _stoppable():
        sets = load_sets(data_name(target, data, data_dir), recipe, data_dir, preprocessing, strict)
        if model.calibrates:
            with waiting("calibrating"):
                model.calibrate((dense or open_model(target, Plan(), random_weights=True)).eval(), _spread(sets.train, CALIBRATION_IMAGES))
        # The test set is read once, below, together with the trace of what happened.
        fit(model, out, replace(sets, test=None), recipe, teacher=master, preprocessing=preprocessing, strict=strict, device=device, **options)
        test_once(out, model, sets.test, device)


def _spread(images, count: int):
    """Up to `count` images of a set, evenly spaced in it (a folder's are sorted by class), as evaluation sees them, in batches."""
    chosen = [index * len(images) // min(count, len(images)) for index in range(min(count, len(images)))]
    for start in range(0, len(chosen), CALIBRATION_BATCH):
        yield images.batch(chosen[start : start + CALIBRATION_BATCH]).images


@contextmanager
def _stoppable():
    """Lightning ends the process on Ctrl-C; here it stays an interruption, with its own message and exit code."""
    try:
        yield
    except SystemExit as stop:
        raise KeyboardInterrupt from stop
