"""Recipes of supervised training alone: every value of their papers' code, or said to be ours."""

from typing import Any

import pytest
import torch

from smallvit.core.config import to_plain
from smallvit.core.model_config import ModelConfig
from smallvit.engine.optim import create_optimizer, set_schedule
from smallvit.runs.recipe import check_recipe, find_recipe, load_recipe

UNMIXED = {"cutmix_alpha": 0.0, "mixup_alpha": 0.0, "color_jitter": [0.0] * 4}
# timm's and torchvision's ranges are the same: 9 of 10 is 27 of 30.
RANDAUGMENT = {"policy": "randaugment", "randaugment_ops": 1, "randaugment_magnitude": 27}
CCT = {
    "model": {"name": "cct_7_3x1", "drop_path_rate": 0.1},
    "method": {"label_smoothing": 0.1},
    "augment": {
        **RANDAUGMENT,
        "crop": "resized",
        "scale": [0.8, 1.0],
        "ratio": [3 / 4, 4 / 3],
        "cutmix_alpha": 1.0,
        "mixup_alpha": 0.8,
        "mix_prob": 1.0,
        "repeats": 1,
    },
    "optim": {
        "name": "adamw",
        "batch_size": 128,
        "weight_decay": 0.06,
        "weight_decay_end": None,
        "decay": "matrices",
        "betas": [0.9, 0.999],
        "grad_clip_norm": None,
        "backbone_lr_scale": 1.0,
    },
    "schedule": {"epochs": 300.0, "warmup_epochs": 10.0, "min_lr": 1e-5},
}
DEIT = {
    "model": {
        "name": "vit_tiny",
        "patch_size": 4,
        "embed_dim": 192,
        "depth": 12,
        "num_heads": 3,
        "mlp_ratio": 4.0,
        "drop_path_rate": 0.1,
    },
    "method": {"label_smoothing": 0.1},
    "augment": {
        **RANDAUGMENT,
        "crop": "pad",
        "padding": 4 / 32,
        "color_jitter": [0.0] * 4,
        "erasing_prob": 0.25,
        "cutmix_alpha": 1.0,
        "mixup_alpha": 0.8,
        "mix_prob": 1.0,
        "repeats": 3,
    },
    "optim": {
        "name": "adamw",
        "lr": 1e-3,
        "batch_size": 256,
        "weight_decay": 0.05,
        "weight_decay_end": None,
        "decay": "products",
        "betas": [0.9, 0.999],
        "grad_clip_norm": None,
        "backbone_lr_scale": 1.0,
    },
    "schedule": {"epochs": 300.0, "warmup_epochs": 5.0, "min_lr": 1e-5},
}
TRANSFER = {
    "model": {"name": "t2t_vit_14", "patch_size": 16, "drop_path_rate": 0.1},
    "method": {"label_smoothing": 0.0},
    "augment": {
        **UNMIXED,
        "crop": "pad",
        "padding": 28 / 224,
        "policy": "none",
        "erasing_prob": 0.0,
        "repeats": 1,
    },
    "optim": {
        "name": "sgd",
        "lr": 0.05,
        "backbone_lr_scale": 0.01,
        "batch_size": 64,
        "weight_decay": 5e-4,
        "weight_decay_end": None,
        "decay": "all",
        "momentum": 0.9,
        "nesterov": False,
        "grad_clip_norm": None,
    },
    "schedule": {"epochs": 60.0, "warmup_epochs": 0.0, "min_lr": 2e-4},
}
RELABEL = {
    "model": {"name": "resnet18_small"},
    "method": {"label_smoothing": 0.0},
    "token_label": {"token_weight": 0.0, "cls_target": "pooled", "mix_token": False},
    "augment": {
        **UNMIXED,
        "crop": "resized",
        "scale": [0.35, 1.0],
        "ratio": [3 / 4, 4 / 3],
        "policy": "none",
        "erasing_prob": 0.0,
        "repeats": 1,
    },
    "optim": {
        "name": "sgd",
        "lr": 0.1 * 256 / 1024,
        "backbone_lr_scale": 1.0,
        "batch_size": 256,
        "weight_decay": 1e-4,
        "weight_decay_end": None,
        "decay": "all",
        "momentum": 0.9,
        "nesterov": True,
        "grad_clip_norm": None,
    },
    "schedule": {"epochs": 300.0, "warmup_epochs": 5.0, "min_lr": 0.0},
}
VALUES: dict[str, dict[str, Any]] = {
    "cifar10/cct-7-3x1": CCT,
    "cifar100/cct-7-3x1": CCT,
    "cifar10/deit-vit": DEIT,
    "cifar100/deit-vit": DEIT,
    "cifar10/t2t-transfer": TRANSFER,
    "cifar100/t2t-transfer": TRANSFER,
    "cifar10/relabel-resnet": RELABEL,
}
# What the authors of CCT set for each data set.
CCT_OWN = {"cifar10/cct-7-3x1": (5.5e-4, 0.0), "cifar100/cct-7-3x1": (6.0e-4, 0.25)}
ARMS = {"cct-7-3x1": ("scratch",), "deit-vit": ("scratch",), "t2t-transfer": ()}


def recipe_of(name: str):
    return load_recipe(name, {})[0]


@pytest.mark.parametrize("name", VALUES)
def test_values_are_those_of_the_paper(name):
    recipe = recipe_of(name)
    stage = to_plain(recipe.finetune) | {"model": to_plain(recipe.model)}
    for section, values in VALUES[name].items():
        assert {key: stage[section][key] for key in values} == values


@pytest.mark.parametrize("name", VALUES)
def test_every_value_that_is_not_the_default_is_in_the_table(name):
    """So that no setting of these stages goes unseen."""
    recipe = recipe_of(name)
    stage = to_plain(recipe.finetune) | {"model": to_plain(recipe.model)}
    plain = to_plain(type(recipe)())
    default = plain["finetune"] | {"model": to_plain(ModelConfig())}
    known = {"augment": {"erasing_prob"}, "optim": {"lr"}} if name in CCT_OWN else {}
    for section in ("model", "method", "token_label", "augment", "optim", "schedule"):
        unseen = stage[section].keys() - VALUES[name].get(section, {}).keys()
        unseen -= known.get(section, set()) | {"eval_epochs"}
        assert {key: stage[section][key] for key in unseen} == {
            key: default[section][key] for key in unseen
        }


@pytest.mark.parametrize("name", CCT_OWN)
def test_cct_has_the_rate_and_erasing_of_its_data_set(name):
    stage = recipe_of(name).finetune
    assert (stage.optim.lr, stage.augment.erasing_prob) == CCT_OWN[name]


@pytest.mark.parametrize("name", VALUES)
def test_recipe_is_free_of_faults_and_of_figures(name):
    recipe = recipe_of(name)
    assert check_recipe(find_recipe(name)) == []
    assert recipe.expected is None
    assert recipe.data.dataset == name.partition("/")[0]
    assert recipe.data.image_size == (224 if "t2t" in name else 32)
    assert recipe.arms == ARMS.get(name.partition("/")[2], ("scratch", "token-labels"))


def test_a_pass_of_repeated_augmentation_is_no_longer_than_another():
    """DeiT's sampler takes as many samples a pass as there are images; so does ``epochs`` here."""
    stage = recipe_of("cifar10/deit-vit").finetune
    assert (stage.schedule.epochs, stage.augment.repeats) == (300.0, 3)


def test_transfer_starts_and_ends_at_the_papers_rates(small_vit):
    """Closed form: 0.05 and 5e-4, half-way to 2e-4 in the middle, both 2e-4 at the end."""
    stage = recipe_of("cifar10/t2t-transfer").finetune
    optimizer = create_optimizer(small_vit(), stage.optim)
    assert isinstance(optimizer, torch.optim.SGD)

    def at(step: int) -> list[float]:
        set_schedule(optimizer, stage.optim, stage.schedule, step=step, total_steps=100)
        return sorted({group["lr"] for group in optimizer.param_groups})

    assert at(0) == pytest.approx([5e-4, 0.05])
    assert at(50) == pytest.approx([3.5e-4, 0.0251])
    assert at(100) == pytest.approx([2e-4])
    assert {group["weight_decay"] for group in optimizer.param_groups} == {5e-4}
