import dataclasses

import pytest
import torch

from smallvit.core import rng
from smallvit.core.errors import ConfigError
from smallvit.core.model_config import ModelConfig
from smallvit.data.batches import ViewBatch
from smallvit.data.config import ViewsConfig
from smallvit.models.registry import create_backbone, create_exported
from smallvit.pretraining.config import MaeConfig
from smallvit.pretraining.mae import MaeObjective, normalize_pixels
from smallvit.pretraining.masks import cut_cells

TINY = MaeConfig(decoder_dim=8, decoder_num_heads=2)
pytestmark = pytest.mark.filterwarnings("ignore:patches of .* px are larger:UserWarning")


def draw(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_batch(images: torch.Tensor, num_patches: int = 16) -> ViewBatch:
    sample = torch.arange(len(images))
    return ViewBatch(
        global_views=images[None],
        local_views=None,
        epoch=0.0,
        progress=0.0,
        mask_draws=rng.uniform(0, "mask", torch.zeros_like(sample), sample, num_patches),
    )


def hidden_patches(batch: ViewBatch) -> torch.Tensor:
    """Three quarters of 16 patches: those with the 12 smallest numbers."""
    assert batch.mask_draws is not None
    return batch.mask_draws <= batch.mask_draws.sort(dim=1).values[:, 11:12]


def on_pixels(patches: torch.Tensor) -> torch.Tensor:
    return patches.unflatten(1, (4, 4)).repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]


@pytest.fixture
def objective(small_vit) -> MaeObjective:
    return MaeObjective(small_vit(num_classes=0), TINY, image_size=16)


@pytest.fixture
def batch() -> ViewBatch:
    return make_batch(draw(3, 3, 16, 16))


def test_predicting_nothing_costs_the_variance_of_normalised_pixels(objective, batch):
    """Closed form: 48 numbers of sample variance 1 have a mean square of 47 / 48."""
    objective.decoder_pred.weight.data.zero_()
    torch.testing.assert_close(objective(batch).loss, torch.tensor(47 / 48))


@pytest.mark.parametrize("norm_pix", [True, False])
def test_loss_is_the_mean_square_error_of_hidden_patches(small_vit, batch, norm_pix):
    """Loops over images and patches, and a decoder run by hand."""
    config = dataclasses.replace(TINY, norm_pix=norm_pix)
    objective = MaeObjective(small_vit(num_classes=0), config, image_size=16).eval()
    model, decoder = objective.student.model, objective.decoder
    images, errors = batch.global_views[0], []
    for image, hides in zip(images, hidden_patches(batch), strict=True):
        x = model._pos_embed(model.patch_embed(image[None]))
        kept = [0] + [1 + i for i in range(16) if not hides[i]]
        x = objective.decoder_embed(model.norm(model.blocks(x[:, kept])))
        full = decoder.mask_token.repeat(1, 17, 1)
        full[:, kept] = x
        out = objective.decoder_pred(decoder.norm(decoder.blocks(full + decoder.pos_embed)))
        for i in range(16):
            if hides[i]:
                top, left = 4 * (i // 4), 4 * (i % 4)
                pixels = image[:, top : top + 4, left : left + 4].permute(1, 2, 0).flatten()
                if norm_pix:
                    pixels = (pixels - pixels.mean()) / (pixels.var() + 1e-6).sqrt()
                errors.append((out[0, 1 + i] - pixels).square().mean())
    assert len(errors) == 3 * 12
    torch.testing.assert_close(objective(batch).loss, torch.stack(errors).mean())


def test_hidden_pixels_do_not_reach_the_prediction(objective, batch):
    """Only through the target: its gradient is there, that of the prediction is zero."""
    images = batch.global_views[0].clone().requires_grad_()
    hidden = hidden_patches(batch)
    places = [hides.nonzero().T for hides in (hidden, ~hidden)]
    index = [p[1].unflatten(0, (3, -1)) for p in places]
    objective.predict(images, *index).square().sum().backward()
    reached = images.grad.abs() > 0
    assert not (reached & on_pixels(hidden)).any()
    assert (reached | on_pixels(hidden)).all()


def test_a_cell_lists_its_pixels_by_row_then_column_then_colour():
    image = torch.arange(3 * 4 * 4.0).view(1, 3, 4, 4)
    cells = cut_cells(image, (2, 2))
    torch.testing.assert_close(cells[0, 1], image[0, :, :2, 2:].permute(1, 2, 0).flatten())


def test_a_patch_of_one_colour_is_normalised_to_zero():
    assert torch.equal(normalize_pixels(torch.full((1, 1, 48), 0.5)), torch.zeros(1, 1, 48))


@pytest.mark.parametrize("name", ["vit_tiny", "gani_cait"])
def test_gradients_reach_every_trained_parameter(name):
    """The class token among them, and CaiT's class attention."""
    config = ModelConfig(name=name, patch_size=4, embed_dim=16, depth=2, num_heads=2)
    backbone = create_backbone(config, num_classes=0, image_size=16)
    objective = MaeObjective(backbone, TINY, image_size=16)
    objective(make_batch(draw(2, 3, 16, 16))).loss.backward()
    missing = [n for n, p in objective.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert not objective.decoder.pos_embed.requires_grad


def test_the_class_token_is_trained_through_the_decoder(objective, batch):
    objective(batch).loss.backward()
    assert objective.student.model.cls_token.grad.abs().sum() > 0


def test_a_network_without_class_token_gives_the_decoder_patches_alone():
    arguments = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    pooling = {"class_token": False, "global_pool": "avg", "dynamic_img_size": True}
    backbone = create_exported("vit_tiny_patch16_224", {**arguments, **pooling, "num_classes": 0})
    objective = MaeObjective(backbone, TINY, image_size=16)
    assert objective.decoder.sequence_length == 16
    assert objective(make_batch(draw(2, 3, 16, 16))).loss.isfinite()


def test_a_sample_has_the_same_mask_in_any_batch(objective, batch):
    assert objective.mask_draws == 16
    alone = dataclasses.replace(
        batch, global_views=batch.global_views[:, 1:], mask_draws=batch.mask_draws[1:]
    )
    objective.eval()
    first = dataclasses.replace(
        batch, global_views=batch.global_views[:, :1], mask_draws=batch.mask_draws[:1]
    )
    loss = (objective(first).loss + 2 * objective(alone).loss) / 3
    torch.testing.assert_close(objective(batch).loss, loss)


def test_state_dict_gives_the_same_loss(small_vit, objective, batch):
    other = MaeObjective(small_vit(num_classes=0), TINY, image_size=16)
    for parameter in objective.parameters():
        parameter.data.mul_(1.1)
    assert other(batch).loss != objective(batch).loss
    other.load_state_dict(objective.state_dict())
    assert torch.equal(other(batch).loss, objective(batch).loss)


def test_64_px_with_patches_of_8_and_two_images_in_bfloat16():
    config = ModelConfig(patch_size=8, embed_dim=16, depth=2, num_heads=2)
    backbone = create_backbone(config, num_classes=0, image_size=64)
    objective = MaeObjective(backbone, TINY, image_size=64)
    batch = make_batch(draw(2, 3, 64, 64), objective.mask_draws)
    exact = objective(batch).loss
    with torch.autocast("cpu", torch.bfloat16):
        rough = objective(batch).loss
    assert objective.decoder_pred.out_features == 3 * 8 * 8
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0)


def test_the_network_sees_whole_images_when_it_is_used(objective):
    assert objective.exported is objective.student
    assert objective.exported(draw(2, 3, 16, 16)).patch.shape == (2, 16, 16)


def test_twenty_steps_on_one_batch_lower_the_loss(objective, batch):
    optimizer = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = objective(batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vit_tiny_convstem", "its stem mixes neighbouring patches"),
        ("resnet8_small", "its layers need the whole grid of patches"),
    ],
)
def test_a_network_that_cannot_drop_patches_is_refused(name, reason):
    backbone = create_backbone(ModelConfig(name=name), num_classes=0, image_size=16)
    message = rf"mae drops patches, which {name} cannot \({reason}\): use --method simmim or ibot"
    with pytest.raises(ConfigError, match=message) as error:
        MaeObjective(backbone, MaeConfig(), image_size=16)
    assert "\n" not in str(error.value)


def test_what_is_named_instead_takes_the_network():
    """Its 8 x 8 tokens divide no image of 30 px, so that masks in place are refused too."""
    backbone = create_backbone(ModelConfig(name="resnet8_small"), num_classes=0, image_size=30)
    with pytest.raises(ConfigError, match="use --method dino, which hides none, or --model"):
        MaeObjective(backbone, MaeConfig(), image_size=30)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": ViewsConfig(num_local=0)}, r"views.num_global \(2\) must be 1: mae sees one"),
        ({"views": ViewsConfig(num_global=1)}, r"views.num_local \(8\) must be 0"),
        ({"decoder_dim": 90}, r"decoder_dim \(90\) must be a multiple of 4"),
        ({"decoder_num_heads": 5}, r"decoder_num_heads \(5\) must divide method.decoder_dim"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        MaeConfig(**settings)
