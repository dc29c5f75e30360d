"""Plans as values, as JSON and as the command line's text; nothing a text says is ever evaluated."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys

import pytest

import foveate as fv

SPVIT = fv.SPViT(after=(3, 6, 9), keep=(0.7, 0.49, 0.343))
RANDOM, STRUCTURE = fv.Random(after=(2,), keep=(0.5,)), fv.Structure(keep=0.5, blocks=(2, 3))
PLANS = [
    fv.Plan(), fv.Plan([SPVIT]), fv.Plan([SPVIT, STRUCTURE]), fv.Plan([STRUCTURE, RANDOM]), fv.Plan([fv.Structure(keep=0.25)]),
    fv.Plan([fv.SPViT(after=1, keep=1.0, select="argmax", package=False, package_weight=0.5, ratio_weight=0.0, noise="annealed")]),
    fv.Plan([fv.Random(after=(1, 2), keep=(0.75, 0.5), package=False, package_weight=2.0, seed=-3)]),
]


def refused(*words: str):
    """A FoveateError in three parts that names all of `words` in this order."""
    return pytest.raises(fv.FoveateError, match="(?s)given:.*" + ".*".join(words))


# values


def test_a_plan_is_a_frozen_value():
    assert fv.Plan([SPVIT]) == fv.Plan((SPVIT,)) == fv.Plan(SPVIT) == fv.Plan(m for m in [SPVIT])
    assert fv.Plan() == fv.Plan([]) and fv.Plan().methods == ()
    assert fv.Plan([SPVIT]) != fv.Plan([RANDOM]) and fv.Plan([STRUCTURE, SPVIT]) != fv.Plan([SPVIT, STRUCTURE])
    assert len(set(PLANS)) == len(PLANS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        fv.Plan().methods = (SPVIT,)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_plans_survive_json_text_and_pickle(plan):
    assert fv.Plan.from_json(plan.to_json()) == plan
    assert fv.Plan.parse(str(plan)) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan
    assert json.loads(plan.to_json())["foveate_plan"] == 1


@pytest.mark.parametrize("given", [3, "spvit", None, ["spvit"], [fv.SPViT], fv.SPViT, [SPVIT, "random"], {"spvit": 1}])
def test_other_things_are_no_methods(given):
    with refused("Plan"):
        fv.Plan(given)


def test_a_method_stands_once():
    with refused("spvit twice"):
        fv.Plan([SPVIT, fv.SPViT(after=5, keep=0.5)])


def test_find_and_data_dependence():
    assert fv.Plan([STRUCTURE, SPVIT]).find("spvit") is SPVIT and fv.Plan([SPVIT]).find("random") is None
    assert not fv.Plan([SPVIT]).data_dependent and not fv.Plan().data_dependent
    assert fv.Plan([STRUCTURE, fv.SPViT(after=1, keep=0.5, select="argmax")]).data_dependent


# digests


def test_digests_name_plans():
    assert len({p.digest() for p in PLANS}) == len(PLANS)
    assert fv.Plan([SPVIT]).digest() == fv.Plan([fv.SPViT(after=[3, 6, 9], keep=[0.7, 0.49, 0.343], package_weight=1)]).digest()
    assert all(len(p.digest()) == 12 and int(p.digest(), 16) >= 0 for p in PLANS)


def test_a_digest_is_the_same_in_every_process():
    code = "import foveate as fv; print(fv.Plan([fv.SPViT(after=(3, 6, 9), keep=(0.7, 0.49, 0.343))]).digest())"
    ran = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": "5"}, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == fv.Plan([SPVIT]).digest()


def test_a_setting_added_later_leaves_older_digests_alone():
    """Runs name their plan by its digest: it must not change because a newer foveate knows one more setting."""

    @dataclasses.dataclass(frozen=True)
    class Later(fv.SPViT):
        invented: str = "no"

    old = fv.Plan([SPVIT])
    assert fv.Plan([Later(after=(3, 6, 9), keep=(0.7, 0.49, 0.343))]).digest() == old.digest()
    assert fv.Plan([Later(after=(3, 6, 9), keep=(0.7, 0.49, 0.343), invented="yes")]).digest() != old.digest()


# JSON


def test_json_of_an_older_foveate_takes_defaults():
    text = '{"foveate_plan": 1, "methods": [{"method": "spvit", "after": [3, 6, 9], "keep": [0.7, 0.49, 0.343]}]}'
    assert fv.Plan.from_json(text) == fv.Plan([SPVIT])


@pytest.mark.parametrize("text, words", [
    ("", "JSON"), ("{", "JSON"), ("nonsense", "JSON"), (None, "JSON"), (b"\xff\xfe", "JSON"), ("[" * 100_000, "JSON"),
    ('{"foveate_plan": 1, "methods": [' + "9" * 5000 + "]}", "JSON|methods"),
    ("[]", "foveate_plan"), ("3", "foveate_plan"), ("null", "foveate_plan"), ('{"methods": []}', "foveate_plan"),
    ('{"foveate_plan": 2, "methods": []}', "version 2"), ('{"foveate_plan": 99}', "version 99"),
    ('{"foveate_plan": "1", "methods": []}', "foveate_plan='1'"), ('{"foveate_plan": true, "methods": []}', "foveate_plan=True"),
    ('{"foveate_plan": 1.0, "methods": []}', "foveate_plan=1.0"), ('{"foveate_plan": 0, "methods": []}', "foveate_plan=0"),
    ('{"foveate_plan": -1, "methods": []}', "foveate_plan=-1"),
    ('{"foveate_plan": 1}', "methods=None"), ('{"foveate_plan": 1, "methods": {}}', "methods"),
    ('{"foveate_plan": 1, "methods": [3]}', "methods"), ('{"foveate_plan": 1, "methods": [{"after": [3]}]}', "methods"),
    ('{"foveate_plan": 1, "methods": [{"method": 3}]}', "methods"), ('{"foveate_plan": 1, "methods": [{"method": null}]}', "methods"),
    ('{"foveate_plan": 1, "methods": [], "gate": 3}', "'gate'"),
    ('{"foveate_plan": 1, "methods": [{"method": "spvti"}]}', "'spvti'"),
    ('{"foveate_plan": 1, "methods": [{"method": "spvit", "after": [3], "keep": [0.5], "temperature": 2}]}', "'temperature'"),
    ('{"foveate_plan": 1, "methods": [{"method": "spvit", "after": [3]}]}', "without keep"),
    ('{"foveate_plan": 1, "methods": [{"method": "spvit", "after": "3", "keep": [0.5]}]}', "after='3'"),
    ('{"foveate_plan": 1, "methods": [{"method": "spvit", "after": [3], "keep": [NaN]}]}', "keep"),
    ('{"foveate_plan": 1, "methods": [{"method": "spvit", "after": [3], "keep": [1e999]}]}', "keep"),
    ('{"foveate_plan": 1, "methods": [{"method": "spvit", "after": [3], "keep": [0.5], "package": 1}]}', "package=1"),
    ('{"foveate_plan": 1, "methods": [{"method": "spvit", "after": [3], "keep": [0.5]}, {"method": "spvit", "after": [4], "keep": [0.4]}]}', "twice"),
])
def test_wrong_json_is_refused(text, words):
    with refused(words):
        fv.Plan.from_json(text)


def test_a_newer_plan_says_how_to_read_it():
    with pytest.raises(fv.FoveateError, match="upgrade"):
        fv.Plan.from_json('{"foveate_plan": 2, "methods": []}')


# the command line's text


@pytest.mark.parametrize("text, plan", [
    ("dense", fv.Plan()), ("", fv.Plan()), (" dense ", fv.Plan()),
    ("spvit(after=[3,6,9],keep=[0.7,0.49,0.343])", fv.Plan([SPVIT])),
    ("spvit( after = (3, 6, 9), keep=(.7, .49, .343) )", fv.Plan([SPVIT])),
    ("spvit(after=3,keep=0.5,select=argmax,package=false)", fv.Plan([fv.SPViT(after=3, keep=0.5, select="argmax", package=False)])),
    ("spvit(after=3,keep=0.5,select='argmax',package=False)", fv.Plan([fv.SPViT(after=3, keep=0.5, select="argmax", package=False)])),
    ("structure(keep=0.5, blocks=all)", fv.Plan([fv.Structure(keep=0.5)])),
    ("structure(keep=0.5,blocks=[2,3]) + random(after=2,keep=0.5)", fv.Plan([STRUCTURE, RANDOM])),
    ("random(after=2, keep=0.5, seed=-3)", fv.Plan([fv.Random(after=2, keep=0.5, seed=-3)])),
])
def test_inline_plans(text, plan):
    assert fv.Plan.parse(text) == plan


@pytest.mark.parametrize("text, words", [
    ("spvit", "without after, keep"), ("spvit()", "without after, keep"), ("spvit(after=3)", "without keep"),
    ("spvit([3], [0.5])", "without a name"), ("spvit(3, keep=0.5)", "without a name"), ("spvit(**{'after': 3})", "without a name"),
    ("spvit(after=3, keep=0.5", "spvit"), ("spvit(after=3, keep=)", "spvit"), ("spvit(after=3)(keep=0.5)", "spvit"),
    ("spvit(after=3, after=4, keep=0.5)", "after"),
    ("spvit(after=range(3), keep=0.5)", "range"), ("spvit(after=3, keep=1/2)", "1 / 2"), ("spvit(after=3, keep=0.5) - random()", "spvit"),
    ("spvit(after=3, keep={[]: 1})", "spvit"), ("spvit(after=3, keep=0.5, select=f'{1}')", "spvit"),
    ("spvit(after=__import__('os').system('true'), keep=0.5)", "__import__"), ("__import__('os').system('true')", "spvit|__import__|not a method"),
    ("os.system(after=3)", "not a method"), ("lambda: spvit(after=3)", "not a method"), ("[spvit(after=3)]", "not a method"),
    ("spvti(after=3, keep=0.5)", "'spvti'"), ("spvit(after=3, keep=0.5, depth=3)", "'depth'"), ("(", r"\("), ("spvit(\0)", "spvit"),
    ("spvit(" * 3000, "spvit"), ("+".join(["spvit()"] * 50_000), "spvit"), ("spvit(after=" + "(" * 150 + ")" * 150 + ", keep=0.5)", "spvit"),
    ("spvit(after=" + "-" * 5000 + "3, keep=0.5)", "spvit"),
    ("deit-smal", "preset 'deit-smal'"), ("spvit-deit-smal", "spvit-deit-small"), ("a" * 5000, "a"), ("\0", "preset"),
    ("runs/nowhere", "runs/nowhere"), ("plan.json", "plan.json"), ("/nowhere/plan.json", "nowhere"),
])
def test_wrong_texts_are_refused(text, words):
    with refused(words):
        fv.Plan.parse(text)


def test_files_and_run_folders(tmp_path, monkeypatch):
    plan = fv.Plan([SPVIT])
    monkeypatch.chdir(tmp_path)
    for folder in ("run", "run (2)"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "plan.json").write_text(plan.to_json())
        assert fv.Plan.parse(folder) == plan
        assert fv.Plan.parse(str(tmp_path / folder)) == plan
        assert fv.Plan.parse(f"{folder}/plan.json") == plan
    (tmp_path / "mine").write_text(plan.to_json())
    assert fv.Plan.parse("mine") == plan
    (tmp_path / "run" / "plan.json").write_bytes(b"\xff\x00{")
    with refused("plan.json", "JSON"):
        fv.Plan.parse("run")
    (tmp_path / "empty").mkdir()
    with refused("'empty'|empty"):
        fv.Plan.parse("empty")
    (tmp_path / "spvit").mkdir()
    assert fv.Plan.parse("spvit(after=2, keep=0.5)") == fv.Plan([fv.SPViT(after=2, keep=0.5)])


def test_presets_are_plans():
    assert fv.Plan.parse("spvit-deit-small") == fv.Plan([fv.SPViT(after=(3, 6, 9), keep=(0.637, 0.406, 0.259))])


def test_messages_have_three_parts():
    with pytest.raises(fv.FoveateError) as caught:
        fv.Plan.parse("spvit(after=3, keep=7)")
    error = caught.value
    assert isinstance(error, ValueError) and error.given == "spvit(keep=7)" or "keep" in error.given
    assert all((error.given, error.allowed, error.do)) and str(error).count("\n") == 2
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
