import math

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models._manipulate import group_with_matcher
from torch import nn

from smallvit.core.errors import ConfigError
from smallvit.models.transformer import SmallTransformer, TransformerBackbone, sinusoid


def tiny(**settings: object) -> SmallTransformer:
    """4 x 4 cells of 4 px, a class token, three blocks."""
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2}
    return timm.create_model("vit_tiny_convstem", **{"global_pool": "token", **sizes, **settings})


def images(height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (12, 28)])
def test_positions_of_other_grids_are_resampled_but_for_the_class_tokens(size):
    model = tiny().eval()
    grid = (size[0] // 4, size[1] // 4)
    expected = resample_abs_pos_embed(model.pos_embed, list(grid), [4, 4], num_prefix_tokens=1)
    patches = torch.zeros(2, *grid, 16)
    found = model.add_positions(patches) - torch.cat(
        [model.cls_token.expand(2, -1, -1), patches.flatten(1, 2)], dim=1
    )
    torch.testing.assert_close(found, expected.expand(2, -1, -1))
    tokens = TransformerBackbone(model)(images(*size))
    assert (tokens.grid, tokens.patch.shape[1]) == (grid, grid[0] * grid[1])


def test_images_that_the_patch_does_not_divide_are_refused():
    with pytest.raises(ConfigError, match=r"patches of 4 px do not divide images of 16 x 18 px"):
        tiny()(images(16, 18))


def test_unknown_pooling_is_refused(without_shape_checks):
    with pytest.raises(ConfigError, match="global_pool must be token, avg, sequence, got 'max'"):
        tiny(global_pool="max")


def test_sinusoid_is_that_of_the_paper():
    table = sinusoid(5, 6)[0]
    for place in range(5):
        for i in range(3):
            angle = place / 10_000 ** (2 * i / 6)
            assert table[place, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[place, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_levels_are_what_leaves_the_blocks():
    model, outputs = tiny().eval(), []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    final, levels = model.forward_intermediates(images(), return_prefix_tokens=True)
    for (level, prefix), output in zip(levels, outputs, strict=True):
        assert torch.equal(level.flatten(2).mT, output[:, 1:])
        assert torch.equal(prefix, output[:, :1])
    assert torch.equal(final, model.norm(outputs[-1]))
    normed = model.forward_intermediates(
        images(), [2], norm=True, output_fmt="NLC", intermediates_only=True
    )
    assert torch.equal(normed[0], final[:, 1:])


def test_stopping_early_and_pruning_leave_the_levels_asked_for():
    model = tiny().eval()
    whole = model.forward_intermediates(images(), [0, 1], intermediates_only=True)
    early = model.forward_intermediates(images(), [0, 1], stop_early=True, intermediates_only=True)
    assert model.prune_intermediate_layers([0, 1]) == [0, 1]
    pruned = model.forward_intermediates(images(), [0, 1], intermediates_only=True)
    assert len(model.blocks) == 2
    for levels in (early, pruned):
        assert all(torch.equal(a, b) for a, b in zip(whole, levels, strict=True))


def test_groups_go_from_stem_to_heads():
    model = tiny()
    groups = group_with_matcher(
        model.named_parameters(), model.group_matcher(), return_values=False, reverse=True
    )
    assert groups["cls_token"] == groups["pos_embed"] == groups["patch_embed.proj.weight"] == 0
    assert [groups[f"blocks.{i}.mlp.fc1.weight"] for i in range(3)] == [1, 2, 3]
    assert groups["norm.weight"] == 3
    assert groups["head.weight"] == 4


def test_a_new_classifier_is_where_and_what_the_old_one_was():
    model = tiny().to(torch.bfloat16)
    model.reset_classifier(7)
    assert (model.head.out_features, model.head.weight.dtype) == (7, torch.bfloat16)
    model.reset_classifier(0)
    assert isinstance(model.head, nn.Identity)


def test_batch_norms_of_the_stem_see_each_image_once_when_blocks_are_checkpointed():
    counts = []
    for enable in (False, True):
        model = tiny().train()
        model.set_grad_checkpointing(enable)
        model(images()).square().sum().backward()
        counts.append(dict(model.named_buffers()))
    torch.testing.assert_close(counts[0], counts[1])
