"""The recipes of Gani et al.: every value of the paper's code, and that they are found."""

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from timm.layers.drop import DropPath

from smallvit.core.config import to_plain
from smallvit.core.model_config import ModelConfig
from smallvit.data.batches import ViewBatch
from smallvit.data.files.registry import get_dataset_spec
from smallvit.data.order import Order
from smallvit.data.policies import choose_autoaugment
from smallvit.engine.config import LogConfig, RuntimeConfig
from smallvit.engine.fit import fit
from smallvit.engine.log import read_metrics
from smallvit.engine.optim import create_optimizer, set_schedule
from smallvit.engine.plan import FitPlan
from smallvit.engine.runtime import open_runtime
from smallvit.models.registry import create_backbone
from smallvit.pretraining.config import DinoConfig
from smallvit.pretraining.dino import DinoObjective
from smallvit.runs.recipe import check_recipe, find_recipe, load_recipe

# AutoAugment's policies as their code chooses them: CIFAR-10's for names with CIFAR in them.
POLICIES = {
    "cifar10": "autoaugment-cifar10",
    "cifar100": "autoaugment-cifar10",
    "svhn": "autoaugment-svhn",
    "cinic10": "autoaugment-imagenet",
    "tiny-imagenet": "autoaugment-imagenet",
}
RECIPES = [f"{data}/gani-{model}" for data in POLICIES for model in ("vit", "cait", "swin")]
METHOD = {
    "name": "dino",
    "num_prototypes": 1024,
    "hidden_dim": 512,
    "bottleneck_dim": 256,
    "head_batch_norm": False,
    "student_temp": 0.1,
    "teacher_temp": 0.07,
    "warmup_teacher_temp": 0.04,
    "warmup_teacher_temp_epochs": 10.0,
    "center_momentum": 0.9,
    "momentum": 0.996,
    "freeze_last_layer_epochs": 1.0,
    "ema_teacher_mode": "eval",
}
COLOURS = {
    "color_jitter": (0.4, 0.4, 0.2, 0.1),
    "color_jitter_prob": 0.8,
    "grey_prob": 0.2,
    "blur_prob": (1.0, 0.1, 0.5),
    "blur_sigma": (0.1, 2.0),
    "solarize_prob": 0.2,
}
STAGE_1 = {
    "name": "adamw",
    "lr": 2e-4,
    "backbone_lr_scale": 1.0,
    "batch_size": 512,
    "weight_decay": 0.04,
    "weight_decay_end": 0.4,
    "decay": "matrices",
    "grad_clip_norm": 3.0,
    "grad_clip_mode": "parameter",
}
STAGE_2 = {
    "name": "adamw",
    "lr": 1e-3,
    "backbone_lr_scale": 1.0,
    "batch_size": 256,
    "weight_decay": 0.05,
    "weight_decay_end": None,
    "decay": "all",
    "betas": (0.9, 0.999),
    "grad_clip_norm": None,
}
SCHEDULE_1 = {"epochs": 200.0, "warmup_epochs": 30.0, "min_lr": 1e-6}
SCHEDULE_2 = {"epochs": 100.0 * 3, "warmup_epochs": 10.0 * 3, "min_lr": 1e-6}
AUGMENT = {
    "crop": "pad",
    "color_jitter": (0.0, 0.0, 0.0, 0.0),
    "autoaugment_rules": "deepvoltaire",
    "erasing_prob": 0.25,
    "erasing_aspect": "uniform",
    "cutmix_alpha": 1.0,
    "mixup_alpha": 1.0,
    "mix_prob": 0.5,
    "repeats": 1,
}


def recipe_of(name: str):
    return load_recipe(name, {})[0]


def values(config: object, keys: Mapping[str, object]) -> dict[str, object]:
    return {key: getattr(config, key) for key in keys}


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_free_of_faults_and_of_figures(name):
    assert check_recipe(find_recipe(name)) == []
    assert recipe_of(name).expected is None


@pytest.mark.parametrize("name", RECIPES)
def test_views_are_those_of_the_paper(name):
    recipe = recipe_of(name)
    views = recipe.pretrain.method.views
    large = recipe.data.dataset == "tiny-imagenet"
    side = recipe.data.image_size
    assert (side, side * views.local_size) == ((64, 32) if large else (32, 16))
    assert (views.num_global, views.num_local) == (2, 8)
    assert views.global_scale == ((0.5, 1.0) if large else (0.7, 1.0))
    assert views.local_scale == ((0.2, 0.4) if large else (0.2, 0.5))
    assert values(views, COLOURS) == COLOURS


@pytest.mark.parametrize("name", RECIPES)
def test_stage_one_is_that_of_the_paper(name):
    stage = recipe_of(name).pretrain
    assert values(stage.method, METHOD) == METHOD
    assert values(stage.optim, STAGE_1) == STAGE_1
    assert values(stage.schedule, SCHEDULE_1) == SCHEDULE_1


@pytest.mark.parametrize("name", RECIPES)
def test_stage_two_is_that_of_the_paper(name):
    recipe = recipe_of(name)
    stage, spec = recipe.finetune, get_dataset_spec(recipe.data.dataset or "")
    assert values(stage.optim, STAGE_2) == STAGE_2
    assert values(stage.schedule, SCHEDULE_2) == SCHEDULE_2
    assert values(stage.augment, AUGMENT) == AUGMENT
    assert stage.augment.padding * spec.image_size == 4
    assert choose_autoaugment(stage.augment.policy, spec.autoaugment) == POLICIES[spec.name]
    assert stage.method.label_smoothing == 0.1


@pytest.mark.parametrize("name", RECIPES)
def test_fine_tuning_by_the_recipe_alone_is_the_papers_baseline(name):
    """Their ViT, Swin and CaiT (scratch): no stage 1, no token labels."""
    recipe = recipe_of(name)
    assert recipe.finetune.init is None
    assert recipe.finetune.score_maps is None
    assert not recipe.finetune.token_label.enabled
    assert "scratch" in recipe.arms


@pytest.mark.parametrize("name", RECIPES[:3])
def test_stochastic_depth_is_that_of_the_paper(name):
    """Linear in ViT and Swin, the same in every block of patches of CaiT."""
    model = create_backbone(recipe_of(name).model, num_classes=10, image_size=32).model
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    assert max(rates) == pytest.approx(0.1)
    assert (min(rates) == pytest.approx(0.1)) == name.endswith("cait")


def test_stage_two_shows_each_image_300_times():
    """Their 100 epochs are three passes each: 195 steps of 256 a pass, in which 80 are left out."""
    stage = recipe_of("cifar10/gani-vit").finetune
    order = Order(50_000, stage.optim.batch_size, 0, torch.device("cpu"))
    steps = order.num_steps(stage.schedule.epochs)
    assert steps * 256 / 50_000 == pytest.approx(100 * 3, abs=256 / 50_000)
    assert steps / (100 * 3 * 195) == pytest.approx(1, abs=0.002)


@pytest.mark.parametrize("name", RECIPES)
def test_model_is_the_papers_by_name_alone(name):
    recipe = recipe_of(name)
    assert recipe.model == ModelConfig(name=Path(name).name.replace("-", "_"))


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_differ_only_where_the_paper_does(name):
    """Beside data, model and what follows from the size: nothing but AutoAugment's policy."""
    plain, first = (to_plain(recipe_of(n)) for n in (name, RECIPES[0]))
    for recipe in (plain, first):
        for key in ("description", "data", "model", "cpu_recipe"):
            del recipe[key]
        for key in ("global_scale", "local_scale"):
            del recipe["pretrain"]["method"]["views"][key]
        for key in ("policy", "padding"):
            del recipe["finetune"]["augment"][key]
    assert plain == first


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_found_by_data_and_model(name):
    data, model = name.split("/")
    asked = {"data": {"dataset": data}, "model": {"name": model.replace("-", "_")}}
    assert load_recipe(None, asked)[1] == name


def test_the_schedule_has_the_papers_values_at_its_ends(small_vit):
    """Closed form at 1,000 steps: warm-up ends at step 150, the cosine at the last."""
    stage = recipe_of("cifar10/gani-vit").pretrain
    optimizer = create_optimizer(small_vit(), stage.optim)

    def at(step: int) -> tuple[float, float]:
        settings = {"step": step, "total_steps": 1000}
        rate = set_schedule(optimizer, stage.optim, stage.schedule, **settings)
        return rate, max(group["weight_decay"] for group in optimizer.param_groups)

    assert at(0) == pytest.approx((2e-4 / 151, 0.04))
    assert at(150)[0] == pytest.approx(2e-4)
    assert at(1000) == pytest.approx((1e-6, 0.4))


def test_a_run_of_three_steps_trains_with_the_papers_warm_ups(small_vit, tmp_path):
    """Reference code failed here: 30 epochs of warm-up of the rate, 10 of the temperature."""
    stage = recipe_of("cifar10/gani-vit").pretrain
    assert isinstance(stage.method, DinoConfig)
    assert (stage.schedule.warmup_epochs, stage.method.warmup_teacher_temp_epochs) == (30.0, 10.0)
    objective = DinoObjective(small_vit(drop_path_rate=0.1), stage.method)
    before = [p.clone() for p in objective.ema_teacher.parameters()]
    (tmp_path / "checkpoints").mkdir()
    plan = FitPlan(
        title="test",
        seed=0,
        total_steps=3,
        epoch_steps=2.0,
        optim=stage.optim,
        schedule=stage.schedule,
        log=LogConfig(every_steps=1),
        runtime=open_runtime(RuntimeConfig(device="cpu", precision="fp32")),
        folder=tmp_path,
    )

    def batches(step: int) -> ViewBatch:
        generator = torch.Generator().manual_seed(step)
        return ViewBatch(
            global_views=torch.randn(2, 4, 3, 16, 16, generator=generator),
            local_views=torch.randn(8, 4, 3, 8, 8, generator=generator),
            epoch=step / 2,
            progress=step / 3,
        )

    fit(objective, batches, plan)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert len(rows) == 3
    assert all(math.isfinite(row["train/loss"]) for row in rows)
    assert all(0 < row["opt/lr"] <= 2e-4 for row in rows)
    assert any(
        not torch.equal(p, b)
        for p, b in zip(objective.ema_teacher.parameters(), before, strict=True)
    )
    assert objective.config.target_temp(batches(2).epoch) == pytest.approx(0.043)


def test_defaults_of_the_method_are_the_papers():
    assert recipe_of("cifar100/gani-swin").pretrain.method == DinoConfig()
