"""Who may import whom (house.md): each line is held by one small test over the source tree."""

import ast
import fnmatch
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import foveate as fv

ROOT = Path(fv.__file__).parent
# Rooms that never load torch, not even lazily.
TORCH_FREE = ("errors", "files", "plan", "trace", "ledger", "card", "workload", "counting", "presets", "machine", "embedded", "gates",
              "cascade_plan", "budgets", "efforts", "simulation", "simulated", "methods.base", "methods.*.config", "methods.*.cost",
              "methods.*.paths", "report.*", "sim.*", "search.*")
HEAVY = {"torch", "torchvision", "timm", "lightning", "safetensors", "openvino", "sklearn"}
SIBLINGS = ("train", "measure", "runtime", "serve")
JOINERS = ("cli", "demo", "__main__")
# Imports inside functions that are there for a quick start, or because a package is optional; none of them dodges a cycle.
LAZY = {
    "foveate": {"foveate.*"},  # public names load what they need at first use
    "foveate.methods": {"foveate.methods.*"},  # the registry opens a room when a model or a count needs it
    "foveate.counting": {"foveate.backbones.describe"},  # a name without a card loads torch once
    "foveate.runtime.openvino_backend": {"openvino", "openvino.*"},
    "foveate.runtime.int8": {"nncf"},  # seconds, for those who quantise
    "foveate.cli.*": {"*"},
    "foveate.__main__": {"*"},
}


@functools.cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    files = {f: f.relative_to(ROOT.parent).with_suffix("") for f in ROOT.rglob("*.py")}
    return {".".join(p.parts).removesuffix(".__init__"): f for f, p in files.items()}


def imported(node: ast.AST) -> Iterator[str]:
    """Modules that an import statement, or import_module with a literal, names; packages whose names might be modules as those."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, "imports are absolute here"
        inside = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (name if name in modules() else node.module for name in inside)
    elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in ("import_module", "__import__"):
        argument = node.args[0]
        if isinstance(argument, ast.Constant):
            yield argument.value
        elif isinstance(argument, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "*" for part in argument.values)


@functools.cache
def imports(module: str) -> tuple[frozenset[str], frozenset[str]]:
    """What a module imports when it is loaded, and what its functions import later."""
    tree = ast.parse(modules()[module].read_text(encoding="utf-8"))
    inside = [n for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) for n in ast.walk(f)]
    later = {name for node in inside for name in imported(node)}
    inner = {id(n) for n in inside}
    return frozenset(name for node in ast.walk(tree) if id(node) not in inner for name in imported(node)), frozenset(later)


def everything(module: str) -> frozenset[str]:
    return imports(module)[0] | imports(module)[1]


def fits(name: str, pattern: str) -> bool:
    """Whether a dotted name is the pattern, in which * stands for anything."""
    if pattern.endswith(".*") and name == pattern[:-2]:
        return True
    return fnmatch.fnmatchcase(name, pattern)


def inside(name: str, *rooms: str) -> bool:
    return any(name == f"foveate.{room}" or name.startswith(f"foveate.{room}.") for room in rooms)


def third_party(module: str) -> set[str]:
    return {name.split(".")[0] for name in everything(module)}


TORCHLESS = [m for m in modules() if any(fits(m, f"foveate.{p}") for p in TORCH_FREE)]
OPEN = list(modules())


def test_the_tree_was_found():
    assert {"foveate", "foveate.plan", "foveate.methods.spvit.config", "foveate.nn.tokens"} <= set(OPEN)
    assert set(TORCHLESS) >= {"foveate.plan", "foveate.methods.spvit.cost", "foveate.report.table", "foveate.report"}
    assert "torch" in third_party("foveate.nn.tokens") and "foveate.nn.precision" in everything("foveate.nn.tokens")


@pytest.mark.parametrize("module", TORCHLESS)
def test_torch_free_rooms_never_name_torch(module):
    assert not third_party(module) & HEAVY


@pytest.mark.parametrize("module", TORCHLESS)
def test_torch_free_rooms_load_no_torch_through_others(module):
    seen, todo = set(), [module]
    while todo:
        name = todo.pop()
        parents = [".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 2)]
        for part in parents:
            if part in modules() and part not in seen:
                seen.add(part)
                todo += imports(part)[0]
                assert not {n.split(".")[0] for n in imports(part)[0]} & HEAVY, f"{module} loads {part}"


def test_nothing_torch_free_loads_torch_when_it_runs():
    """Plans, presets, traces and counts of known backbones, in a process of their own."""
    code = f"""
import importlib, sys
import foveate as fv
assert not {HEAVY} & set(sys.modules), 'import foveate'
for name in {[m for m in TORCHLESS]}:
    importlib.import_module(name)
plan = fv.Plan.parse("spvit-deit-small")
assert fv.Plan.from_json(plan.to_json()) == plan and plan.digest() and fv.Trace(images=1).to_json()
for name, plan in (("deit_small_patch16_224", plan), ("swin_tiny_patch4_window7_224", "spvit-swin-tiny"), ("lvvit_s", "structure(keep=0.5)")):
    assert fv.count(name, plan).macs > 0
try:
    fv.Plan.parse("spvit(after=3, keep=7)")
except fv.FoveateError:
    pass
assert not {HEAVY} & set(sys.modules), sorted({HEAVY} & set(sys.modules))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"})
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("module", OPEN)
def test_timm_is_named_in_backbones_and_train_only(module):
    assert inside(module, "backbones", "train") or "timm" not in third_party(module)


@pytest.mark.parametrize("module", [m for m in OPEN if m.count(".") > 2 and m.startswith("foveate.methods.")])
def test_rooms_of_methods_never_import_one_another(module):
    own = ".".join(module.split(".")[:3])
    rooms = {".".join(m.split(".")[:3]) for m in OPEN if m.startswith("foveate.methods.") and m.count(".") == 3}
    assert not {name for name in everything(module) if any(fits(name, f"{room}.*") for room in rooms - {own})}


def test_method_rooms_hold_the_same_files():
    rooms = [p for p in (ROOT / "methods").iterdir() if (p / "config.py").exists()]
    assert len(rooms) >= 3
    for room in rooms:
        assert {"config.py", "cost.py", "layers.py", "__init__.py"} <= {p.name for p in room.iterdir()}


@pytest.mark.parametrize("sibling", SIBLINGS)
def test_train_measure_runtime_and_serve_are_siblings(sibling):
    for module in OPEN:
        if inside(module, sibling):
            assert not {n for n in everything(module) if inside(n, *(s for s in SIBLINGS if s != sibling))}, module


@pytest.mark.parametrize("module", OPEN)
def test_only_the_command_line_and_the_demo_join_the_siblings(module):
    joined = {s for s in SIBLINGS for name in everything(module) if inside(name, s)}
    assert len(joined) <= 1 or inside(module, *JOINERS)


@pytest.mark.parametrize("module", OPEN)
def test_nobody_imports_the_command_line_or_the_demo(module):
    assert inside(module, *JOINERS) or not {n for n in everything(module) if inside(n, *JOINERS)}


@pytest.mark.parametrize("room, may", [
    ("errors", ()), ("files", ()), ("sim", ("sim",)), ("nn", ("nn", "errors")), ("ledger", ("errors",)), ("trace", ("errors",)),
    ("backbones", ("backbones", "nn", "card", "ledger", "errors")), ("report", ("report", "errors", "files")),
    ("methods", ("methods", "nn", "card", "ledger", "workload", "trace", "errors")), ("machine", ("errors",)),
    ("plan", ("methods", "presets", "errors", "gates", "cascade_plan")), ("presets", ("errors",)), ("gates", ("errors",)),
    ("cascade_plan", ("errors", "gates", "trace")), ("budgets", ("errors",)),
])
def test_rooms_know_only_what_lies_below_them(room, may):
    for module in OPEN:
        if inside(module, room):
            above = {n for n in everything(module) if n.startswith("foveate.") and not inside(n, *may)}
            assert not {n for n in above if "*" not in n}, f"{module} imports {sorted(above)}"


def test_there_are_no_cycles():
    """Neither at load nor through functions, but for the documented lazy doors."""
    graph = {}
    for module in OPEN:
        lazy = {n for n in imports(module)[1] if not allowed(module, n)}
        graph[module] = {n for n in imports(module)[0] | lazy if n in modules() and n != module}
    done, path = set(), []

    def visit(module: str) -> None:
        assert module not in path, " -> ".join([*path[path.index(module):], module])
        if module in done:
            return
        path.append(module)
        for name in graph[module]:
            visit(name)
        done.add(path.pop())

    for module in graph:
        visit(module)


def allowed(module: str, name: str) -> bool:
    return any(fits(name, pattern) for door, patterns in LAZY.items() if fits(module, door) for pattern in patterns)


@pytest.mark.parametrize("module", OPEN)
def test_imports_inside_functions_are_the_documented_ones(module):
    assert not {name for name in imports(module)[1] if not allowed(module, name)}


# the public names


def test_every_public_name_is_there():
    for name in fv.__all__:
        assert getattr(fv, name) is not None and name in dir(fv)
    with pytest.raises(AttributeError, match="nonsense"):
        fv.nonsense


@pytest.mark.parametrize("module", OPEN)
def test_every_module_says_what_it_is(module):
    text = modules()[module].read_text(encoding="utf-8")
    assert not text.strip() or ast.get_docstring(ast.parse(text)), "a module without a docstring"
