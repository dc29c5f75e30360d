"""MODEL_OR_RUN: which run folder or backbone a word on the command line means, its card, its plan and its model."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveate.errors import FoveateError

if TYPE_CHECKING:
    from foveate.adaptive import AdaptiveModel
    from foveate.card import Card
    from foveate.cascade import Cascade
    from foveate.cascade_plan import CascadePlan
    from foveate.plan import Plan

ASSETS = Path(__file__).resolve().parent.parent / "assets"


@dataclass(frozen=True)
class Target:
    """What a user named. folder: the run, or None for a backbone called `text`."""

    text: str
    folder: Path | None = None

    def record(self) -> dict[str, Any]:
        """run.json of a run; empty where there is none."""
        try:
            return json.loads((self.folder / "run.json").read_text(encoding="utf-8")) if self.folder else {}
        except (OSError, ValueError):
            return {}

    def architecture(self) -> str:
        """timm's name of the backbone; empty for a run whose backbone.json is damaged."""
        try:
            return json.loads((self.folder / "backbone.json").read_text(encoding="utf-8"))["architecture"] if self.folder else self.text
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    @property
    def embedded(self) -> bool:
        """Whether a run, or a backbone's weights, come with the package."""
        return ASSETS in self.folder.resolve().parents if self.folder else (ASSETS / f"{self.text}.safetensors").is_file()


def target_of(text: str) -> Target:
    """A folder with plan.json is a run, then come embedded runs, then backbones. Loads no torch; a backbone's name is not checked yet.

    Raises FoveateError for a folder that is no run and for a path that does not exist.
    """
    from foveate.card import stored_card
    from foveate.embedded import embedded_run, embedded_runs
    from foveate.presets import presets

    path = Path(text)
    if (path / "plan.json").is_file():
        return Target(text, path)
    if text in embedded_runs():
        return Target(text, embedded_run(text))
    if path.is_dir() and stored_card(text) is None:
        started = (path / "run.json").is_file()
        raise FoveateError(
            f"{text}, a folder without plan.json",
            "a run folder, as `foveate train` and `foveate adapt` leave it",
            "finish that training: repeat its command with --resume" if started else "check the path (`ls`)",
        )
    if path.is_file():
        raise FoveateError(
            f"{text}, which is a file", "a run folder or a backbone's name", "give the backbone's name, and its weights with --weights FILE"
        )
    if len(path.parts) > 1 or text.startswith((".", "~")):
        runs = f", an embedded run ({', '.join(embedded_runs())})" if embedded_runs() else ""
        raise FoveateError(
            f"run {text!r}, which is no folder here", f"a run folder{runs}, or a backbone (`foveate models`)", "check the path (`ls`)"
        )
    if text in presets():
        raise FoveateError(
            f"{text}, which is a preset's name", "a run folder or a backbone (`foveate models`)", f"give it as a plan: {presets()[text].model} --plan {text}"
        )
    return Target(text)


def cards_of_target(target: Target) -> list[Card]:
    """The backbone of each effort of a cascade's run in numbers, of any other target the one it has."""
    from foveate.cascade_plan import CascadePlan

    plan = plan_of(target, None)
    folders = plan.folders(target.folder) if isinstance(plan, CascadePlan) else []
    return [card_of_target(Target(str(folder), folder)) for folder in folders] or [card_of_target(target)]


def card_of_target(target: Target) -> Card:
    """The backbone in numbers, without torch where a card is at hand; of a cascade's run that of its highest effort.

    Raises FoveateError with near names for an unknown backbone.
    """
    from foveate.card import stored_card
    from foveate.counting import card_of

    if target.folder is None:
        return card_of(target.text)
    if hasattr(plan_of(target, None), "efforts"):
        return cards_of_target(target)[-1]
    try:
        backbone = json.loads((target.folder / "backbone.json").read_text(encoding="utf-8"))
        card = stored_card(backbone["architecture"]) if not backbone["arguments"] else None
    except (OSError, ValueError, KeyError, TypeError):
        card = None
    if card is not None:
        return card
    from foveate.store import load  # which also says what is wrong with a damaged run

    return load(target.folder).card


def plan_of(target: Target, plan: str | None) -> Plan | CascadePlan:
    """The plan that was asked for, else the run's own, else the dense one."""
    from foveate.plan import Plan
    from foveate.presets import presets

    if plan is not None:
        return Plan.parse(plan if plan in presets() else named_run(plan))
    return Plan.parse(str(target.folder)) if target.folder else Plan()


def single_plan_of(target: Target, plan: str | None) -> Plan:
    """As `plan_of`, for what one model is needed for. Raises FoveateError for a cascade."""
    from foveate.cascade_plan import CascadePlan

    found = plan_of(target, plan)
    if isinstance(found, CascadePlan):
        where = plan or target.text
        raise FoveateError(f"{where}, which is a cascade of {len(found.efforts)} efforts", "the plan or the run of one model",
                           f"take one of its efforts, such as {where}/effort-1; `foveate cascade` joins efforts that were trained one by one")
    return found


def named_run(text: str) -> str:
    """An embedded run's name as its folder, any other text as it is."""
    from foveate.embedded import embedded_run, embedded_runs

    return str(embedded_run(text)) if text in embedded_runs() and not Path(text).exists() else text


def named_weights(text: str) -> str:
    """An embedded run's or backbone's name as its folder or file, any other text as it is."""
    file = ASSETS / f"{text}.safetensors"
    return str(file) if file.is_file() and not Path(text).exists() else named_run(text)


def open_model(
    target: Target,
    plan: Plan | CascadePlan,
    weights: Path | None = None,
    pretrained: bool = False,
    random_weights: bool = False,
    seed: int = 0,
) -> AdaptiveModel | Cascade:
    """The model of `target` under `plan`, in evaluation mode on the CPU; new parts of methods get weights by `seed`.

    A cascade of a backbone or of a plain run has that one's weights in every effort.

    random_weights: a backbone may stay without trained weights (to measure time, where they do not matter).
    Raises FoveateError for a backbone without weights, and for weights or a plan that do not fit.
    """
    import torch

    from foveate.adoption import adapt, check_complete, replan
    from foveate.cascade import Cascade
    from foveate.cascade_plan import CascadePlan
    from foveate.store import load

    own = plan_of(target, None)
    if isinstance(plan, CascadePlan) and not isinstance(own, CascadePlan):
        efforts = [open_model(target, effort, weights, pretrained, random_weights, seed) for effort in plan.efforts]
        return Cascade(efforts, plan.gates, plan.fractions)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if target.folder is None:
            return adapt(_backbone(target, weights, pretrained, random_weights), plan, target.text).eval()
        if weights or pretrained:
            raise FoveateError(f"other weights for the run {target.text}", "a run with its own weights", "leave out --weights and --pretrained")
        model = load(target.folder)
        if plan == model.plan:
            return model
        if isinstance(model, Cascade):
            return _other_gates(target, model, plan)
        model = replan(model, plan).eval()
        if not random_weights:
            check_complete(model, model.missing, "another plan on")
        return model


def _other_gates(target: Target, model: Cascade, plan: Any) -> Cascade:
    if getattr(plan, "efforts", None) != model.plan.efforts:
        raise FoveateError(f"the plan {plan} for {target.text}, which is a cascade of other efforts", "its own efforts, behind any gates",
                           f"give the plan to one of its efforts, such as {target.text}/effort-1")
    return model.gated(plan.gates, plan.fractions)


def untrained(target: Target, plan: Plan) -> list[str]:
    """Methods of `plan` whose parts the target has no trained weights for."""
    given = plan_of(target, None)
    own = {method.name: method for method in getattr(given, "methods", ())}
    methods = [m for effort in getattr(plan, "efforts", [plan]) for m in effort.methods] if not hasattr(given, "efforts") else []
    return [m.name for m in methods if m.name == "spvit" and getattr(own.get(m.name), "after", None) != m.after]


def _backbone(target: Target, weights: Path | None, pretrained: bool, random_weights: bool):
    from foveate.train.base import create_base

    classes = card_of_target(target).num_classes
    if weights and pretrained:
        raise FoveateError("--weights and --pretrained", "one of the two", "leave out --pretrained: the file has the weights")
    if weights:
        return _with_weights(target.text, classes, Path(named_weights(str(weights))))
    if not (pretrained or target.embedded or random_weights):
        near = difflib.get_close_matches(target.text, [p.stem for p in ASSETS.glob("*.safetensors")], n=1)
        raise FoveateError(
            f"backbone {target.text} without weights",
            "--weights FILE.safetensors, --pretrained (timm downloads them), a run folder" + (f", or {near[0]}, whose weights are embedded" if near else ""),
            f"train it: foveate train {target.text} --data-dir DIR --out runs/base, then give runs/base instead",
        )
    return create_base(target.text, classes, pretrained or target.embedded)


def _with_weights(name: str, classes: int, weights: Path):
    """The backbone with a checkpoint's weights, its head as wide as the checkpoint's."""
    from foveate.store import load_weights
    from foveate.train.base import create_base
    from foveate.train.grow import read_weights

    model = create_base(name, classes)
    head = (model.pretrained_cfg or {}).get("classifier")
    if isinstance(head, str) and weights.exists():
        kernel = read_weights(weights).get(f"{head}.weight")
        if kernel is not None and len(kernel) != classes:
            model = create_base(name, len(kernel))
    load_weights(model, weights)
    return model.eval()
