import dataclasses

import pytest
import torch

from smallvit.core import rng
from smallvit.core.errors import ConfigError
from smallvit.core.model_config import ModelConfig
from smallvit.data.batches import ViewBatch
from smallvit.data.config import ViewsConfig
from smallvit.models.registry import create_backbone, create_exported
from smallvit.pretraining.config import SimMimConfig
from smallvit.pretraining.simmim import SimMimObjective

TINY = {"embed_dim": 16, "depth": 2, "num_heads": 2}
# Settings, side of the image, and side of the cell that a final token stands for.
MODELS = {
    "vit_tiny": (TINY | {"patch_size": 4}, 16, 4),
    "gani_cait": (TINY | {"patch_size": 4}, 16, 4),
    "gani_swin": ({"embed_dim": 24}, 32, 8),
    "sl_swin": ({"embed_dim": 24}, 32, 8),
    "sl_vit": (TINY | {"patch_size": 4}, 16, 4),
    "lvvit_tiny": (TINY | {"patch_size": 4}, 16, 4),
    "t2t_vit_7": (TINY | {"patch_size": 4}, 16, 4),
    "vit_tiny_convstem": (TINY | {"patch_size": 4}, 16, 4),
    "vit_tiny_dwconv": (TINY | {"patch_size": 4}, 16, 4),
    "cct_7_3x1": (TINY | {"patch_size": 4}, 16, 4),
    "resnet8_small": ({"width": 4}, 16, 4),
    "convnext_atto_small": ({}, 16, 8),
}
# Parts that only pool the final tokens.
POOLING = {"gani_cait": {"cls_token", "blocks_token_only"}, "cct_7_3x1": {"attention_pool"}}
pytestmark = pytest.mark.filterwarnings("ignore:patches of .* px are larger:UserWarning")


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_batch(images: torch.Tensor, num_cells: int = 16) -> ViewBatch:
    sample = torch.arange(len(images))
    return ViewBatch(
        global_views=images[None],
        local_views=None,
        epoch=0.0,
        progress=0.0,
        mask_draws=rng.uniform(0, "mask", torch.zeros_like(sample), sample, num_cells),
    )


def build(name: str) -> tuple[SimMimObjective, ViewBatch]:
    settings, side, _ = MODELS[name]
    torch.manual_seed(0)
    config = ModelConfig(name=name, **settings)
    backbone = create_backbone(config, num_classes=0, image_size=side)
    objective = SimMimObjective(backbone, SimMimConfig(), image_size=side)
    return objective, make_batch(draw(2, 3, side, side), objective.mask_draws)


def hidden_cells(batch: ViewBatch) -> torch.Tensor:
    """0.6 of 16 cells: those with the 10 smallest numbers."""
    assert batch.mask_draws is not None
    return batch.mask_draws <= batch.mask_draws.sort(dim=1).values[:, 9:10]


def on_pixels(cells: torch.Tensor, cell: int) -> torch.Tensor:
    grid = (round(cells.shape[1] ** 0.5),) * 2
    return cells.unflatten(1, grid).repeat_interleave(cell, 1).repeat_interleave(cell, 2)[:, None]


def test_predicting_nothing_costs_the_mean_of_absolute_hidden_pixels():
    """Closed form, by a mask over pixels instead of cells."""
    objective, batch = build("vit_tiny")
    objective.decoder.weight.data.zero_()
    objective.decoder.bias.data.zero_()
    images = batch.global_views[0]
    expected = images[on_pixels(hidden_cells(batch), 4).expand_as(images)].abs().mean()
    torch.testing.assert_close(objective(batch).loss, expected)


@pytest.mark.parametrize("name", ["vit_tiny", "gani_swin"])
def test_loss_is_the_mean_absolute_error_of_hidden_pixels(name):
    """Loops over images and cells, and a masked pass by hand."""
    objective, batch = build(name)
    objective.eval()
    cell = MODELS[name][2]
    side = batch.global_views.shape[-1] // cell
    errors = []
    for image, hides in zip(batch.global_views[0], hidden_cells(batch), strict=True):
        patches = objective.student.embed(image[None]).clone()
        span = patches.shape[1] // side
        for i in range(side**2):
            if hides[i]:
                top, left = span * (i // side), span * (i % side)
                patches[0, top : top + span, left : left + span] = objective.mask_token
        drawn = objective.decoder(objective.student.encode(patches).patch[0])
        for i in range(side**2):
            if hides[i]:
                top, left = cell * (i // side), cell * (i % side)
                pixels = image[:, top : top + cell, left : left + cell]
                errors.append((drawn[i].view(cell, cell, 3).permute(2, 0, 1) - pixels).abs())
    assert len(errors) == 2 * 10
    torch.testing.assert_close(objective(batch).loss, torch.stack(errors).mean())


@pytest.mark.parametrize("name", MODELS)
def test_hidden_pixels_do_not_reach_the_prediction(name):
    objective, batch = build(name)
    objective.eval()
    cell = MODELS[name][2]
    images = batch.global_views[0]
    hidden = hidden_cells(batch) if objective.mask_draws == 16 else batch.mask_draws < 0.5
    hidden[1] = hidden[0]
    index = hidden[0].nonzero().T.expand(2, -1)
    hides = on_pixels(hidden, cell)
    others = torch.where(hides, draw(*images.shape, seed=5), images)
    assert torch.equal(objective.predict(images, index), objective.predict(others, index))
    seen = torch.where(hides, images, images.flip(0))
    assert not torch.equal(objective.predict(images, index), objective.predict(seen, index))


@pytest.mark.parametrize("name", MODELS)
def test_every_architecture_trains_all_but_what_only_pools(name):
    objective, batch = build(name)
    output = objective(batch)
    output.loss.backward()
    assert output.loss.isfinite()
    missing = {
        key.removeprefix("student.model.").partition(".")[0]
        for key, p in objective.named_parameters()
        if p.requires_grad and p.grad is None
    }
    assert missing == POOLING.get(name, set())
    assert objective.decoder.out_features == 3 * MODELS[name][2] ** 2


def test_any_timm_model_is_trained():
    backbone = create_exported("regnetx_002", {"num_classes": 0})
    objective = SimMimObjective(backbone, SimMimConfig(), image_size=64)
    objective(make_batch(draw(2, 3, 64, 64), objective.mask_draws)).loss.backward()
    assert objective.mask_token.shape == (3,)
    assert objective.mask_token.grad.abs().sum() > 0


def test_a_sample_has_the_same_mask_in_any_batch():
    objective, batch = build("vit_tiny")
    objective.eval()
    losses = [
        objective(
            dataclasses.replace(
                batch,
                global_views=batch.global_views[:, i : i + 1],
                mask_draws=batch.mask_draws[i : i + 1],
            )
        ).loss
        for i in range(2)
    ]
    torch.testing.assert_close(objective(batch).loss, torch.stack(losses).mean())


def test_state_dict_gives_the_same_loss():
    objective, batch = build("vit_tiny")
    torch.manual_seed(9)
    backbone = create_backbone(ModelConfig(**MODELS["vit_tiny"][0]), num_classes=0, image_size=16)
    other = SimMimObjective(backbone, SimMimConfig(), image_size=16)
    assert other(batch).loss != objective(batch).loss
    other.load_state_dict(objective.state_dict())
    assert torch.equal(other(batch).loss, objective(batch).loss)


def test_64_px_with_patches_of_8_in_bfloat16():
    config = ModelConfig(patch_size=8, **TINY)
    backbone = create_backbone(config, num_classes=0, image_size=64)
    objective = SimMimObjective(backbone, SimMimConfig(), image_size=64)
    batch = make_batch(draw(2, 3, 64, 64), objective.mask_draws)
    exact = objective(batch).loss
    with torch.autocast("cpu", torch.bfloat16):
        rough = objective(batch).loss
    assert objective.mask_draws == 64
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0)


def test_the_network_sees_whole_images_when_it_is_used():
    objective, batch = build("vit_tiny")
    assert objective.exported is objective.student
    assert objective.exported(batch.global_views[0]).patch.shape == (2, 16, 16)


def test_twenty_steps_on_one_batch_lower_the_loss():
    objective, batch = build("vit_tiny")
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = objective(batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


def test_a_grid_that_does_not_divide_the_image_is_refused():
    """36 px in patches of 2 are 18, then 9, then 5 cells."""
    config = ModelConfig(name="gani_swin", embed_dim=24, patch_size=2)
    backbone = create_backbone(config, num_classes=0, image_size=36)
    with pytest.raises(ConfigError, match="cells of 5 x 5 tokens, which do not divide"):
        SimMimObjective(backbone, SimMimConfig(), image_size=36)


def test_more_than_one_view_is_refused():
    with pytest.raises(ConfigError, match=r"views.num_global \(2\) must be 1: simmim sees one"):
        SimMimConfig(views=ViewsConfig(num_local=0))
