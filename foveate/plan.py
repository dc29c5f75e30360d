"""Plan: which method does what in which block; a frozen, versioned value that goes to JSON and back."""

from __future__ import annotations

import ast
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable, Sequence

from foveate.cascade_plan import CascadePlan
from foveate.errors import FoveateError
from foveate.gates import Gate
from foveate.methods import METHODS, method_class
from foveate.methods.base import Method
from foveate.presets import preset

VERSION = 1
_INLINE = "spvit(after=[3,6,9], keep=[0.7,0.49,0.343])"


@dataclass(frozen=True)
class Plan:
    """An ordered tuple of method settings; `Plan([])` changes nothing.

    Raises FoveateError if something else than method settings is given or a method appears twice.
    """

    methods: tuple[Method, ...] = ()

    def __init__(self, methods: Iterable[Method] = ()):
        methods = (methods,) if isinstance(methods, Method) else methods
        try:
            methods = tuple(methods)
        except TypeError:
            methods = (methods,)
        for m in methods:
            if not isinstance(m, Method):
                raise FoveateError(f"Plan([...]) with {m!r}", "settings of methods, such as fv." + ", fv.".join(c.__name__ for c in METHODS.values()),
                                   f"write fv.Plan([fv.SPViT(after=(3, 6, 9), keep=(0.7, 0.49, 0.343))]), or fv.Plan.parse({_INLINE!r})")
        names = [m.name for m in methods]
        for name in names:
            if names.count(name) > 1:
                raise FoveateError(f"a plan with {name} twice", "each method once", f"join the two into one {name}(...) with all its stages")
        object.__setattr__(self, "methods", methods)

    @staticmethod
    def cascade(efforts: Sequence["Plan"], gate: Gate | Sequence[Gate], fractions: Sequence[float] | None = None) -> CascadePlan:
        """A plan of plans (semantics.md 15): `efforts` from the cheapest to the dearest, with one `gate` for all or one behind each but the last.

        fractions: the share of images that each effort answers, if known; they sum to 1. Raises FoveateError as CascadePlan does.
        """
        efforts = [Plan(e) if isinstance(e, (Method, list, tuple)) else e for e in efforts] if isinstance(efforts, (list, tuple)) else efforts
        return CascadePlan(efforts, gate, fractions)

    @property
    def data_dependent(self) -> bool:
        """Whether the cost differs from image to image."""
        return any(m.data_dependent for m in self.methods)

    def find(self, name: str) -> Method | None:
        """The settings of the method called `name`, or None."""
        return next((m for m in self.methods if m.name == name), None)

    def validate(self, card) -> None:
        """Raises FoveateError if a method does not fit the backbone that `card` describes."""
        if pruning := [m.name for m in self.methods if m.prunes]:
            card.check_tokens(f"{pruning[0]}, which prunes tokens,")
        for m in self.methods:
            if m.inside:
                card.check_inside(f"{m.name}, which prunes tokens inside a block,", m.stages(card))
            if m.watches(card):
                card.check_class_token(f"{m.name}, which reads what the class token attends to,")
        if len(leaving := [m.name for m in self.methods if m.exits(card)]) > 1:
            raise FoveateError(f"a plan with the exits of {leaving[0]} and {leaving[1]}", "one method with exits", "leave one of the two out")
        self.watched(card)
        for m in self.settled(card):
            m.validate(card)
        inside: dict[int, Method] = {}
        for m in self.settled(card):
            for block in m.stages(card) if m.inside else ():
                if inside.setdefault(block, m) is not m:
                    raise FoveateError(f"a plan in which both {inside[block].name} and {m.name} prune tokens inside block {block}",
                                       "one such method in a block", f"leave block {block} out of one of the two")

    def settled(self, card) -> tuple[Method, ...]:
        """The methods, where one says "all" beside another that names blocks, with the blocks that are left for it."""
        owners = self.attention(card)
        left = {m: tuple(sorted(block for block, owner in owners.items() if owner is m)) for m in self.methods if m.attention() == "all"}
        return tuple(m.but(blocks=left[m]) if 0 < len(left.get(m, ())) < card.depth else m for m in self.methods)

    def attention(self, card) -> dict[int, Method]:
        """Which method skips or replaces the attention of which 1-based block; raises FoveateError where two claim one.

        A method that names no blocks takes those that no other names (semantics.md 13).
        """
        claims = {m: m.attention() for m in self.methods}
        owners: dict[int, Method] = {}
        for m, blocks in claims.items():
            for block in blocks if blocks != "all" else ():
                if block in owners:
                    raise FoveateError(f"a plan in which both {owners[block].name} and {m.name} take the attention of block {block}",
                                       "one method for the attention of a block", f"leave block {block} out of one of the two")
                owners[block] = m
        everywhere = [m for m, blocks in claims.items() if blocks == "all"]
        if len(everywhere) > 1:
            raise FoveateError(f"a plan in which {everywhere[0].name} and {everywhere[1].name} both take the attention of all blocks",
                               "one method for the attention of a block", f"name the blocks of each: {everywhere[0].name}(blocks=[1, 2, 3])")
        for m in everywhere:
            owners |= {block: m for block in range(1, card.depth + 1) if block not in owners}
        return owners

    def stages(self, card) -> tuple[int, ...]:
        """The 1-based blocks behind which, or inside which, tokens are pruned, in the order in which that happens."""
        found = [(block, not m.inside) for m in self.settled(card) for block in m.stages(card)]
        return tuple(block for block, _ in sorted(found))

    def exits(self, card) -> tuple[int, ...]:
        """The 1-based blocks behind which an image may leave, the last block included; empty for a plan without early exits."""
        found = {block for m in self.methods for block in m.exits(card)}
        return tuple(sorted(found | {card.depth})) if found else ()

    def watched(self, card) -> frozenset[int]:
        """The blocks whose attention of the class token is read: where the attention asked for is skipped, that of the last one before (semantics.md 12).

        Raises FoveateError where there is none before.
        """
        skipped = {block for m in self.methods if m.skips for block in m.attention()}
        found = set()
        for m in self.methods:
            for block in m.watches(card):
                active = [b for b in range(1, block + 1) if b not in skipped]
                if not active:
                    raise FoveateError(f"{m.name}, which reads what the class token attends to in block {block}, beside skipped attentions of blocks 1 to {block}",
                                       f"an attention in one of the blocks 1 to {block}", f"leave one of them out of the skipped blocks")
                found.add(active[-1])
        return frozenset(found)

    def to_dict(self) -> dict[str, Any]:
        return {"foveate_plan": VERSION, "methods": [m.to_dict() for m in self.methods]}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2)

    def digest(self) -> str:
        """Twelve hexadecimal digits that name the plan: equal plans have equal digests.

        Settings at their defaults do not count, so that a setting added later leaves the names of older runs as they are.
        """
        methods = [{"method": m.name} | m.explicit() for m in self.methods]
        return hashlib.sha256(json.dumps({"foveate_plan": VERSION, "methods": methods}, sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def from_json(cls, text: str, source: str = "plan JSON") -> "Plan | CascadePlan":
        """Reads `to_json`'s text of a plan or a cascade; raises FoveateError on broken JSON, a newer version, unknown keys or wrong types."""
        try:
            data = json.loads(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise FoveateError(f"{source} that is not JSON ({error})", "a file written by Plan.to_json", "check the file for truncation, or write it anew") from None
        return cls.from_dict(data, source)

    @classmethod
    def from_dict(cls, data: Any, source: str = "plan JSON") -> "Plan | CascadePlan":
        shape = '{"foveate_plan": 1, "methods": [{"method": "spvit", ...}]}'
        if not isinstance(data, dict) or "foveate_plan" not in data:
            raise FoveateError(f"{source} without foveate_plan", shape, "is this a plan? They are written by Plan.to_json")
        version = data["foveate_plan"]
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise FoveateError(f"{source} with foveate_plan={version!r}", f"a whole number from 1 to {VERSION}", "write the plan anew with Plan.to_json")
        if version > VERSION:
            raise FoveateError(f"{source} of version {version}", f"versions up to {VERSION} (this foveate)", "upgrade foveate: pip install --upgrade foveate")
        if "cascade" in data:
            return CascadePlan.from_dict(data, source, cls.from_dict)
        unknown = sorted(set(data) - {"foveate_plan", "methods"})
        if unknown:
            raise FoveateError(f"{source} with {', '.join(map(repr, unknown))}", "the keys foveate_plan and methods", "remove the unknown keys")
        methods = data.get("methods")
        if not isinstance(methods, list) or not all(isinstance(m, dict) and isinstance(m.get("method"), str) for m in methods):
            raise FoveateError(f"{source} with methods={methods!r}", shape, "give a list of objects, each with its method's name")
        return cls(method_class(m["method"]).from_dict({k: v for k, v in m.items() if k != "method"}) for m in methods)

    @classmethod
    def parse(cls, text: str) -> "Plan | CascadePlan":
        """Reads a plan as the command line takes it: a file or run folder, a preset's name, or the inline form.

        The inline form is `spvit(after=[3,6,9], keep=[0.7,0.49,0.343])`, several methods joined by `+`, `dense`
        for none; it is parsed as literals, never evaluated.
        """
        text = text.strip()
        if text in ("dense", ""):
            return cls()
        path = Path(text)
        if file := _file(path):
            return cls.from_json(file.read_text(encoding="utf-8", errors="replace"), str(file))
        if "(" in text or text in METHODS:
            return cls(_inline(text))
        if path.suffix == ".json" or len(path.parts) > 1:
            raise FoveateError(f"plan {text!r}, which is no file here", f"an existing file or run folder, a preset, or {_INLINE}", "check the path (`ls`)")
        return cls.from_dict(preset(text).plan, f"preset {text}")

    def __str__(self) -> str:
        return " + ".join(f"{m.name}({_arguments(m)})" for m in self.methods) or "dense"


def _file(path: Path) -> Path | None:
    """The plan file that `path` or the run folder `path` is, if there is one."""
    try:
        return next((p for p in (path / "plan.json", path) if p.is_file()), None)
    except OSError:  # a text too long to be a path
        return None


def _arguments(method: Method) -> str:
    return ", ".join(f"{k}={v}" for k, v in method.explicit().items()).replace("'", "")


def _inline(text: str) -> list[Method]:
    def broken(why: str) -> FoveateError:
        return FoveateError(f"plan {text!r}: {why}", f"{_INLINE}, several joined by +", "quote the whole plan and use name=value inside the brackets")

    def walk(node: ast.expr) -> list[Method]:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return walk(node.left) + walk(node.right)
        if isinstance(node, ast.Name):
            return [method_class(node.id).from_dict({})]
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            raise broken("not a method with brackets")
        if node.args or any(k.arg is None for k in node.keywords):
            raise broken(f"{node.func.id} has a value without a name")
        names = [k.arg for k in node.keywords]
        if len(set(names)) < len(names):
            raise broken(f"{node.func.id} has {max(names, key=names.count)} twice")
        return [method_class(node.func.id).from_dict({k.arg: value(k.value) for k in node.keywords})]

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return {"true": True, "false": False}.get(node.id, node.id)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):  # a word such as lowrank+sparse
            parts = value(node.left), value(node.right)
            if all(isinstance(part, str) for part in parts):
                return "+".join(parts)
        try:
            return ast.literal_eval(node)
        except (ValueError, TypeError, MemoryError, RecursionError):
            raise broken(f"{ast.unparse(node)} is not a plain value") from None

    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise broken(getattr(error, "msg", None) or type(error).__name__) from None
    try:
        return walk(tree.body)
    except RecursionError:
        raise broken("too many parts") from None
