"""models, methods, count: what there is and what it costs, without torch."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
import re
from typing import Annotated, Any

import typer

from foveate.cli.answer import answering, note, table
from foveate.cli.options import Json, ModelOrRun, PlanText
from foveate.cli.seen import Exits, Fractions, Tokens, TraceOf, exits_of, fractions_of, tokens_of, trace_of
from foveate.errors import FoveateError

Pattern = Annotated[
    str | None, typer.Argument(metavar="[PATTERN]", show_default=False, help="Only names that contain this; * and ? are wildcards.")
]


def models(pattern: Pattern = None, json: Json = False) -> None:
    """List supported backbones: parameters, MACs, tokens.

    These have cards in the package, so that they are counted without torch. Further models of timm's Vision Transformer, Eva,
    PiT, Swin, LeViT and MobileViT families work too: their card is made when they are first named.
    """
    from foveate.card import shipped_names, stored_card
    from foveate.counting import count
    from foveate.embedded import embedded_runs

    with answering(json) as answer:
        rows = []
        for name in _matching(shipped_names(), pattern):
            card = stored_card(name)
            first = card.blocks[0]
            rows.append({
                "model": name, "family": card.family, "params": card.params, "macs": count(card).macs, "image_size": list(card.image_size),
                "tokens": card.prefix_tokens + first.patches, "blocks": card.depth, "dim": card.blocks[-1].dim, "heads": card.blocks[-1].heads,
            })  # fmt: skip
        answer.data = {"models": rows, "runs": list(embedded_runs())}
        shown = table("model", "family", "params (M)", "GMACs", "pixels", "tokens", "blocks", "width", "heads", left=2)
        for row in rows:
            figures = (f"{row['params'] / 1e6:.3f}", f"{row['macs'] / 1e9:.3f}", f"{row['image_size'][0]}x{row['image_size'][1]}")
            shown.add_row(row["model"], row["family"], *figures, *(str(row[key]) for key in ("tokens", "blocks", "dim", "heads")))
        answer.shown = [shown, "Tokens: of the first block, class token and registers included. Width and heads: of the last block."]
        if embedded_runs():
            answer.shown.append(f"Embedded runs: {', '.join(embedded_runs())}")


def methods(
    name: Annotated[str | None, typer.Argument(metavar="[METHOD]", show_default=False, help="Only this method.")] = None,
    json: Json = False,
) -> None:
    """List methods with their settings, and presets.

    A plan names methods with their settings: spvit(after=\\[3,6,9], keep=\\[0.7,0.49,0.343]). Several are joined by +.
    """
    from foveate.methods import METHODS, method_class
    from foveate.presets import presets

    with answering(json) as answer:
        chosen = METHODS if name is None else {name: method_class(name)}
        described = [_described(word, cls) for word, cls in chosen.items()]
        known = [p for p in presets().values() if any(m["method"] in chosen for m in p.plan["methods"])]
        answer.data = {
            "methods": described,
            "presets": [{"preset": p.name, "model": p.model, "macs": p.gmacs * 1e9, "recipe": p.recipe, "teacher": p.teacher, "fitted": p.fitted, "source": p.source,
                         "plan": p.plan} for p in known],
        }  # fmt: skip
        for method in described:
            shown = table("setting", "default", "meaning", left=3)
            for setting in method["settings"]:
                shown.add_row(setting["setting"], _literal(setting), setting["meaning"])
            answer.shown += [f"{method['method']}: {method['summary']}", shown]
        listed = table("preset", "for", "GMACs", "source", left=2)
        listed.columns[3].justify = "left"
        for p in known:
            listed.add_row(p.name, p.model, f"{p.gmacs:g}", p.source)
        answer.shown.append(listed)


def count(
    model_or_run: ModelOrRun,
    plan: PlanText = None,
    tokens: Tokens = None,
    trace: TraceOf = None,
    fractions: Fractions = None,
    exits: Exits = None,
    include: Annotated[
        str, typer.Option(metavar="PART", help="all, blocks (without embeddings and heads, as some papers count), or attention (between projections and output linears, as ViTALiTy counts).")
    ] = "all",
    json: Json = False,
) -> None:
    """Count multiply-accumulates (MACs) and parameters of a plan.

    The "GFLOPs" of the papers are giga-MACs. A plan whose cost depends on the image needs --trace, --tokens, --exits or (for a
    cascade) --fractions; without them the figure is an upper bound and says so. For backbones with a card, and runs of them, torch is not loaded.
    """
    from foveate.cli.targets import cards_of_target, plan_of, target_of
    from foveate.counting import count as counted
    from foveate.ledger import Ledger

    with answering(json) as answer:
        target = target_of(model_or_run)
        chosen, cards = plan_of(target, plan), cards_of_target(target)
        card, seen, shares = cards[-1], trace_of(trace), fractions_of(fractions)
        models = cards if len(cards) > 1 and hasattr(chosen, "efforts") else card
        ledger: Ledger = counted(models, chosen, trace=seen, tokens=tokens_of(tokens), include=include, fractions=shares, exits=exits_of(exits))
        dense = counted(card, include=include)
        answer.data = {
            "model": card.name, "plan": str(chosen), "macs": ledger.macs, "params": ledger.params, "label": ledger.label, "include": include,
            "macs_dense": dense.macs, "params_dense": dense.params, "by_operation": ledger.by_operation(), "shares": ledger.shares(),
            "arithmetic": ledger.arithmetic(),
        }  # fmt: skip
        efforts = _efforts(models, chosen, seen, shares, include)
        answer.data |= {"efforts": efforts} if efforts else {}
        answer.shown = [f"{card.name}, {chosen}", ledger.table()]
        if efforts:
            shown = table("effort", "plan", "run by", "MMACs an image", "MMACs of the mean image", left=2)
            for row in efforts:
                figures = (f"{row['run_percent']:.1f} %", f"{row['macs'] / 1e6:,.2f}", f"{row['run_percent'] / 100 * row['macs'] / 1e6:,.2f}")
                shown.add_row(str(row["effort"]), row["plan"], *figures)
            answer.shown.append(shown)
        if str(chosen) != "dense":
            answer.shown.append(f"{ledger.macs / 1e9:.4g} GMACs, {100 * ledger.macs / dense.macs:.1f} % of the dense {dense.macs / 1e9:.4g}")
        if include == "attention":
            answer.shown.append(", ".join(f"{number / 1e6:,.1f} M {name}" for name, number in ledger.arithmetic().items()))
        if chosen.data_dependent and "bound" in ledger.label:
            note("the cost of this plan depends on the image; --trace RUN, --tokens N,N,..., --exits F,F,... or (cascades) --fractions F,F,... counts what ran")


def _efforts(models: Any, plan: Any, trace: Any, fractions: Any, include: str) -> list[dict[str, Any]]:
    """What each effort of a cascade costs and how many images run it; empty for another plan."""
    from foveate.cascade_plan import passes
    from foveate.counting import effort_ledgers

    if not hasattr(plan, "efforts"):
        return []
    ledgers = effort_ledgers(models, plan, trace)
    return [{"effort": number, "plan": str(effort), "run_percent": 100 * share, "macs": ledger.only(include).macs, "params": ledger.params}
            for number, ((effort, share), ledger) in enumerate(zip(passes(plan, fractions, trace), ledgers), 1)]


def _matching(names: tuple[str, ...], pattern: str | None) -> list[str]:
    found = [name for name in names if pattern is None or fnmatch.fnmatch(name, f"*{pattern}*")]
    if not found:
        near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
        raise FoveateError(
            f"no backbone with a card whose name contains {pattern!r}",
            "part of a name in `foveate models`",
            f"did you mean {' or '.join(near)}?" if near else "try a shorter part, such as deit or swin",
        )
    return found


def _described(word: str, cls: type) -> dict[str, Any]:
    """A method's summary and settings, read from its dataclass and the docstring that explains the fields."""
    summary, meanings = cls.__doc__.strip().splitlines()[0], _meanings(cls)
    settings = []
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING
        settings.append({"setting": field.name, "required": required, "default": None if required else field.default, "meaning": meanings[field.name]})
    return {"method": word, "summary": summary, "settings": settings}


def _meanings(cls: type) -> dict[str, str]:
    fields, meanings, current = [field.name for field in dataclasses.fields(cls)], {}, []
    for line in map(str.strip, cls.__doc__.strip().splitlines()[1:]):
        head = re.match(r"([\w, ]+?): (.*)", line)
        names = head[1].split(", ") if head else []
        if names and set(names) <= set(fields):
            current, line = names, head[2]
        for name in current:
            meanings[name] = f"{meanings.get(name, '')} {line}".strip()
    return {name: meanings.get(name, "") for name in fields}


def _literal(setting: dict[str, Any]) -> str:
    if setting["required"]:
        return "required"
    value = setting["default"]
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
