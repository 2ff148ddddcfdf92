"""Every shipped recipe is free of faults and trains."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from smallvit.core.model_config import ModelConfig
from smallvit.pretraining.config import METHODS, DinoConfig
from smallvit.runs.config import Call, Recipe
from smallvit.runs.label import SCORE_MAPS
from smallvit.runs.recipe import (
    check_recipe,
    find_recipe,
    load_recipe,
    read_layer,
    shipped,
    with_values,
)
from smallvit.runs.stage import run_stage

RECIPES = list(shipped())
# Recipes of a method differ from their generic one in stage 1 alone, as a test below says.
OF_METHODS = [
    name for name in RECIPES if name.startswith("generic/") and "-" in name and "-cpu" not in name
]
STAGE_1 = [*OF_METHODS, *(name for name in RECIPES if "/gani-" in name)]
# Recipes of stage 2 alone, and how to make their networks small.
STAGE_2 = [name for name in RECIPES if "pretrain" not in read_layer(find_recipe(name)).values]
TINY = {"depth": 1, "embed_dim": 16, "num_heads": 2}
SMALLER: dict[str, dict[str, Any]] = {
    "cct-7-3x1": TINY,
    "deit-vit": TINY,
    "t2t-transfer": TINY | {"patch_size": 4},  # the least of its stem
    "relabel-resnet": {"width": 4},
}
CLASSES, IMAGES_A_CLASS = 2, 8


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder of two class folders of noise, one darker than the other."""
    root = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0)
    for label in range(CLASSES):
        (root / f"class {label}").mkdir()
        for number in range(IMAGES_A_CLASS):
            pixels = noise.integers(128 * label, 128 * (label + 1), (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"class {label}" / f"{number}.png")
    return root


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLVIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SMALLVIT_RUNS_DIR", str(tmp_path / "runs"))


def two_steps(name: str, pictures: Path) -> Recipe:
    """Return a recipe on synthetic pictures, every stage cut to two steps of four images."""
    # 16 pictures, of which 4 are for testing and 2 for validation: 2 steps of 4 are 8 of 10. At 16
    # pixels a ViT whose patch is an eighth of the side has as many tokens as at 64.
    stage = {"optim": {"batch_size": 4}, "schedule": {"epochs": 0.8}}
    overrides: dict[str, dict[str, Any]] = {
        "data": {"path": str(pictures), "image_size": 16, "label_fraction": 1.0},
        "runtime": {"device": "cpu"},
        "pretrain": stage,
        "teacher": stage,
        "finetune": stage,
    }
    patch_size = load_recipe(name, {})[0].model.patch_size
    if patch_size is not None:
        overrides["data"]["image_size"] = 8 * patch_size
    return load_recipe(name, overrides)[0]


def maps_of(recipe: Recipe) -> Path:
    """Write score maps with a teacher that took enough steps to tell dark from light."""
    teacher = {
        "model": {"name": "resnet8_small", "width": 4, "depth": None, "stride": None},
        "augment": {"crop": "none", "erasing_prob": 0.0},
        "optim": {"lr": 0.05},
        "schedule": {"epochs": 6.0, "eval_epochs": 6.0},
    }
    run = run_stage(with_values(recipe, {"teacher": teacher}), "teacher", Call())
    assert run is not None
    maps = run_stage(with_values(recipe, {"label": {"teacher": str(run.path)}}), "label", Call())
    assert maps is not None
    return maps.path / SCORE_MAPS


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_for_a_gpu_names_one_for_a_cpu(name):
    recipe, _ = load_recipe(name, {})
    for_gpu = "GPU" in recipe.description or recipe.finetune.schedule.epochs >= 60
    assert (recipe.cpu_recipe is not None) == (for_gpu and name != "digits/vit_tiny")
    if recipe.cpu_recipe is not None:
        there, _ = load_recipe(recipe.cpu_recipe, {})
        assert there.cpu_recipe is None
        assert there.data.image_size in (None, recipe.data.image_size) or "/" in name


def test_there_are_recipes():
    assert "digits/vit_tiny" in RECIPES
    assert {name for name in RECIPES if name.startswith("generic/")}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_free_of_faults(name):
    assert check_recipe(find_recipe(name)) == []


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_says_what_it_is_for(name):
    recipe, label = load_recipe(name, {})
    assert label == name
    assert recipe.description
    assert recipe.paper


@pytest.mark.parametrize("name", STAGE_1)
def test_recipe_takes_two_steps_of_stage_1(name, pictures, tmp_path):
    recipe = two_steps(name, pictures)
    # Less of the same: a stage of Swin wants its 4 patches, other networks do with two blocks.
    smaller = {"patch_size": 1} if recipe.model.name == "gani_swin" else {"depth": 2}
    views = {"num_local": min(recipe.pretrain.method.views.num_local, 1)}
    settings = {"model": smaller, "pretrain": {"method": {"views": views}}}
    run = run_stage(with_values(recipe, settings), "pretrain", Call(out=tmp_path / "pretrain"))
    assert run is not None
    assert run.result["steps"] == 2
    assert run.result["method"] == load_recipe(name, {})[0].pretrain.method.name


@pytest.mark.parametrize("name", STAGE_2)
def test_recipe_takes_two_steps_of_stage_2(name, pictures, tmp_path):
    recipe = two_steps(name, pictures)
    smaller = SMALLER[name.partition("/")[2]]
    side = 8 * smaller.get("patch_size", 2)
    recipe = with_values(
        recipe, {"model": {"patch_size": None} | smaller, "data": {"image_size": side}}
    )
    run = run_stage(recipe, "finetune", Call(out=tmp_path / "first"))
    assert run is not None
    assert run.result["steps"] == 2
    assert not run.result["token_labels"]
    # What its teacher or its start brings.
    if "token_label" in read_layer(find_recipe(name)).values["finetune"]:
        labels = {"score_maps": str(maps_of(recipe)), "token_label": {"enabled": True}}
    else:
        labels = {"init": str(run.path)}
    again = run_stage(
        with_values(recipe, {"finetune": labels}), "finetune", Call(out=tmp_path / "again")
    )
    assert again is not None
    assert again.result["steps"] == 2
    assert again.result["token_labels"] or again.result["init"] == "finetune"


@pytest.mark.parametrize("name", [n for n in RECIPES if n not in {*STAGE_1, *STAGE_2}])
def test_recipe_takes_two_steps_of_each_stage(name, pictures, tmp_path):
    recipe = two_steps(name, pictures)
    start = run_stage(recipe, "pretrain", Call(out=tmp_path / "pretrain"))
    teacher = run_stage(recipe, "teacher", Call(out=tmp_path / "teacher"))
    assert start is not None
    assert teacher is not None
    assert start.result["steps"] == teacher.result["steps"] == 2
    settings = {
        "init": str(start.path),
        "score_maps": str(maps_of(recipe)),
        "token_label": {"enabled": True},
    }
    both = run_stage(
        with_values(recipe, {"finetune": settings}), "finetune", Call(out=tmp_path / "both")
    )
    assert both is not None
    assert both.result["steps"] == 2
    assert both.result["init"] == "pretrain"
    assert both.result["token_labels"]


@pytest.mark.parametrize("name", OF_METHODS)
def test_recipe_of_a_method_shares_all_but_stage_1_with_the_generic_one(name):
    own = read_layer(find_recipe(name)).values
    generic = read_layer(find_recipe(name.partition("-")[0])).values
    differ = {key for key in own.keys() | generic.keys() if own.get(key) != generic.get(key)}
    assert differ == {"description", "paper", "pretrain"}


@pytest.mark.parametrize("method", sorted(set(METHODS) - {DinoConfig().name}))
@pytest.mark.parametrize(("dataset", "size"), [("cifar10", 32), ("tiny-imagenet", 64)])
def test_naming_a_method_finds_its_recipe(method, dataset, size):
    asked = {"data": {"dataset": dataset}, "pretrain": {"method": {"name": method}}}
    recipe, label = load_recipe(None, asked)
    assert label == f"generic/{size}px-{method}"
    assert recipe.pretrain.method.name == method
    assert f"--method {method}" in find_recipe(label).read_text()


def test_every_fault_of_a_recipe_is_reported(tmp_path):
    path = tmp_path / "faulty.yaml"
    path.write_text(
        "data:\n  dataset: digits\nmodel:\n  embed_dims: 64\npretrain:\n  optim:\n    lr: -1.0\n"
    )
    errors = check_recipe(path)
    assert len(errors) == 2
    assert "unknown key 'model.embed_dims' (value 64); did you mean 'embed_dim'?" in errors[0]
    assert "pretrain.optim.lr: must be > 0, got -1.0" in errors[1]


def test_a_network_that_cannot_be_built_is_a_fault(tmp_path):
    path = tmp_path / "faulty.yaml"
    path.write_text("data:\n  dataset: digits\nmodel:\n  patch_size: 3\n")
    (error,) = check_recipe(path)
    assert "model.patch_size (3) must divide images of 8 x 8 px" in error


def test_another_model_does_not_get_the_sizes_of_the_recipes_own():
    recipe, _ = load_recipe("generic/32px", {"model": {"name": "gani_swin", "window_size": 2}})
    assert recipe.model == ModelConfig(name="gani_swin", window_size=2)
    same, _ = load_recipe("generic/32px", {"model": {"name": "vit_tiny", "depth": 3}})
    assert (same.model.embed_dim, same.model.depth) == (192, 3)


def test_another_teacher_does_not_get_the_sizes_of_the_recipes_own():
    recipe, _ = load_recipe("generic/32px", {"teacher": {"model": {"name": "wrn_16_8"}}})
    assert recipe.teacher.model == ModelConfig(name="wrn_16_8")
    assert recipe.model.embed_dim == 192
