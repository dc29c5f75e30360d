import pytest

from foveate.errors import FoveateError
from foveate.train.recipe import RECIPES, Recipe, recipe_named


@pytest.mark.parametrize("name", RECIPES)
def test_presets_survive_json(name):
    assert Recipe.from_json(RECIPES[name].to_json()) == RECIPES[name]


def test_the_paper_s_recipe():
    recipe = recipe_named("spvit")
    assert (recipe.epochs, recipe.batch_size, recipe.schedule) == (60, 256, "cosine")
    assert (recipe.lr, recipe.backbone_lr) == (5e-4, 5e-6)
    assert (recipe.kl_weight, recipe.distill_weight) == (0.5, 0.5)


def test_patch_drop_repeats_its_last_value():
    recipe = Recipe(patch_drop=[0.75, 0.5])
    assert [recipe.patch_drop_at(epoch) for epoch in range(4)] == [0.75, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    "setting",
    [
        {"epochs": 0},
        {"epochs": 1.5},
        {"batch_size": True},
        {"lr": 0},
        {"lr": float("nan")},
        {"lr": "fast"},
        {"backbone_lr": -1},
        {"schedule": "step"},
        {"betas": (0.9,)},
        {"label_smoothing": 1.0},
        {"drop_path": 1},
        {"augmentation": "strong"},
        {"patch_drop": ()},
        {"patch_drop": 0.5},
        {"precision": "16"},
        {"seed": -1},
        {"split": "test"},
    ],
)
def test_values_out_of_range_are_refused_by_name(setting):
    (name, value), = setting.items()
    with pytest.raises(FoveateError) as caught:
        Recipe(**setting)
    assert f"{name}={value!r}" in caught.value.given and name in caught.value.do


def test_unknown_settings_and_broken_json_are_refused():
    with pytest.raises(FoveateError, match="learning_rate"):
        Recipe().but(learning_rate=1)
    with pytest.raises(FoveateError, match="not JSON"):
        Recipe.from_json("{")
    with pytest.raises(FoveateError, match="list"):
        Recipe.from_json("[]")
    with pytest.raises(FoveateError, match="base-nano"):
        recipe_named("base")
