import copy

import pytest
import timm
import torch
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from smallvit.core.errors import ConfigError
from smallvit.models.swin import SwinBackbone

WINDOW = 4


def timms_swin(**settings) -> SwinTransformer:
    """16, 8 and 4 cells a side at 32 px, two blocks a stage, the second one shifted."""
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 2, "window_size": WINDOW, "embed_dim": 8}
    sizes |= {"depths": (2, 2, 2), "num_heads": (1, 2, 4), "num_classes": 5, **settings}
    model = timm.create_model("swin_tiny_patch4_window7_224", **sizes)
    for parameter in model.parameters():
        # Far from zero, biases and relative positions too: none of them may get lost.
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def small_swin(**settings) -> SwinBackbone:
    return SwinBackbone(timms_swin(**settings)).eval()


def images(height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", [(32, 32), (16, 32), (32, 64), (48, 48)])
def test_tokens_are_those_of_timm_at_the_built_size(size):
    backbone = small_swin(img_size=size)
    tokens = backbone(images(*size))
    plain = timms_swin(img_size=size)
    expected = plain.forward_features(images(*size))
    torch.testing.assert_close(tokens.patch, expected.flatten(1, 2))
    assert tokens.grid == expected.shape[1:3]
    assert tokens.cls is None
    torch.testing.assert_close(backbone.logits(tokens), plain(images(*size)))


@pytest.mark.parametrize("size", [(64, 64), (32, 64)])
def test_other_sizes_are_timm_resized(size):
    """Reference: ``set_input_size`` with the same window, for stages that are larger than it."""
    backbone = small_swin(depths=(2, 2), num_heads=(1, 2))
    resized = timms_swin(depths=(2, 2), num_heads=(1, 2))
    resized.set_input_size(size, window_size=WINDOW)
    torch.testing.assert_close(backbone.logits(backbone(images(*size))), resized(images(*size)))


@pytest.mark.parametrize("size", [(16, 16), (24, 40), (20, 28), (8, 64)])
def test_sizes_that_windows_do_not_divide_are_timm_with_dynamic_size(size):
    backbone = small_swin(dynamic_img_size=True)
    tokens = backbone(images(*size))
    expected = timms_swin(dynamic_img_size=True)(images(*size))
    torch.testing.assert_close(backbone.logits(tokens), expected)
    assert tokens.patch.shape[1] == tokens.grid[0] * tokens.grid[1]


def test_masks_are_built_once_a_size():
    backbone = small_swin()
    sizes = ((32, 32), (16, 16), (32, 32), (16, 16))
    seen = []
    for size in sizes:
        backbone(images(*size))
        seen.append({key: id(mask) for key, mask in backbone.masks.items()})
    # Stage 3 has one window and no shift. At 32 px stages 1 and 2 have 16 and 8 cells a side; at
    # 16 px they have 8, for which a mask is there already, and 4.
    assert [len(masks) for masks in seen] == [2, 3, 3, 3]
    assert seen[1].items() >= seen[0].items()
    assert seen[1] == seen[2] == seen[3]


def test_masks_from_inference_serve_training():
    backbone = small_swin()
    with torch.inference_mode():
        backbone(images())
    # A backward pass could not keep an inference tensor.
    assert [mask.is_inference() for mask in backbone.masks.values()] == [False, False]


def test_masks_are_no_part_of_the_state():
    backbone = small_swin()
    before = list(backbone.state_dict())
    backbone(images(16, 16))
    assert list(backbone.state_dict()) == before


@pytest.mark.parametrize(("side", "shift"), [((8, 8), (2, 2)), ((4, 12), (0, 2)), ((4, 4), (1, 3))])
def test_mask_parts_cells_that_were_not_neighbours(side, shift):
    """Reference: a loop; cells meet if neither came round an edge that the other did not."""
    block = small_swin().model.layers[0].blocks[1]
    block.shift_size = shift
    mask = block.get_attn_mask(torch.zeros(1, *side, 8))
    cells = [(i, j) for i in range(4) for j in range(4)]
    for number in range(mask.shape[0]):
        top, left = 4 * (number // (side[1] // 4)), 4 * (number % (side[1] // 4))
        came = [
            (top + i >= side[0] - shift[0] and shift[0] > 0, left + j >= side[1] - shift[1])
            for i, j in cells
        ]
        assert mask[number].tolist() == [[0.0 if a == b else -100.0 for b in came] for a in came]


def test_copies_share_no_masks():
    backbone = small_swin()
    twin = copy.deepcopy(backbone)
    twin(images())
    assert len(twin.masks) == 2
    assert not backbone.masks


def test_attention_and_merging_may_be_replaced():
    class Nothing(nn.Module):
        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            assert mask is None or mask.shape[1:] == (WINDOW**2, WINDOW**2)
            return torch.zeros_like(x)

    class EverySecond(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, ::2, ::2].repeat(1, 1, 1, 2)

    backbone = small_swin()
    for stage in backbone.model.layers:
        for block in stage.blocks:
            block.attn = Nothing()
    backbone.model.layers[1].downsample = EverySecond()
    assert backbone(images()).grid == (4, 4)


def test_checkpointing_computes_blocks_twice_and_leaves_gradients_as_they_are():
    gradients, calls = [], []
    for enable in (False, True):
        backbone, count = small_swin(), []
        attn = backbone.model.layers[0].blocks[1].attn
        attn.register_forward_hook(lambda module, inputs, output, count=count: count.append(1))
        backbone.set_grad_checkpointing(enable)
        backbone(images(16, 16)).pooled.square().sum().backward()
        gradients.append(attn.qkv.weight.grad)
        calls.append(len(count))
    assert calls == [1, 2]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_compiles_into_one_graph_at_every_size(without_shape_checks):
    backbone = small_swin(depths=(1, 2), num_heads=(1, 2))
    compiled = torch.compile(backbone, fullgraph=True, backend="eager")
    for size in ((32, 32), (24, 40)):
        torch.testing.assert_close(compiled(images(*size)).patch, backbone(images(*size)).patch)


def test_other_pooling_is_refused():
    with torch.device("meta"):
        model = timm.create_model("swin_tiny_patch4_window7_224", img_size=32, global_pool="max")
    with pytest.raises(ConfigError, match=r"global_pool \('max'\) of a Swin must be 'avg'"):
        SwinBackbone(model)
