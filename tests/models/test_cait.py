import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.cait import Cait

from smallvit.models.cait import CaitBackbone


def small_cait(**settings) -> CaitBackbone:
    """4 x 4 patches, 2 + 2 blocks; layer scale of 0.5 so that the blocks can be seen."""
    torch.manual_seed(0)
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    sizes |= {"init_values": 0.5, "num_classes": 5, **settings}
    return CaitBackbone(timm.create_model("cait_xxs24_224", **sizes)).eval()


def images(height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.randn(3, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_tokens_are_those_of_timm():
    backbone = small_cait()
    tokens = backbone(images())
    together = torch.cat([tokens.cls[:, None], tokens.patch], dim=1)
    torch.testing.assert_close(together, backbone.model.forward_features(images()))
    assert tokens.grid == (4, 4)


def test_logits_are_those_of_timm():
    backbone = small_cait()
    torch.testing.assert_close(backbone.logits(backbone(images())), backbone.model(images()))


def test_mean_pooling_has_no_class_vector():
    backbone = small_cait(global_pool="avg")
    tokens = backbone(images())
    assert tokens.cls is None
    torch.testing.assert_close(backbone.logits(tokens), backbone.model(images()))


@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 16), (24, 20)])
def test_other_sizes_are_timm_with_resampled_positions(height, width):
    """Reference: a model built for that size, with the positions that torch resamples to it."""
    backbone = small_cait()
    state = backbone.model.state_dict()
    square = state["pos_embed"].reshape(1, 4, 4, 16).permute(0, 3, 1, 2)
    size = (height // 4, width // 4)
    resampled = F.interpolate(square, size=size, mode="bicubic", antialias=True)
    state["pos_embed"] = resampled.flatten(2).mT
    sizes = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
    rebuilt = Cait(img_size=(height, width), **sizes).eval()
    rebuilt.load_state_dict(state)
    tokens = backbone(images(height, width))
    torch.testing.assert_close(backbone.logits(tokens), rebuilt(images(height, width)))
    assert tokens.grid == size


def test_a_model_built_for_oblong_images_keeps_its_positions():
    backbone = small_cait(img_size=(8, 16))
    tokens = backbone(images(8, 16))
    torch.testing.assert_close(tokens.cls, backbone.model.forward_features(images(8, 16))[:, 0])
    assert tokens.grid == (2, 4)


def test_patches_are_row_major():
    changed = images()
    changed[:, :, 4:8, 8:12] += 1
    backbone = small_cait()
    differs = (backbone.embed(images()) != backbone.embed(changed)).any(dim=-1)
    assert differs[0].nonzero().tolist() == [[1, 2]]


def test_checkpointing_computes_blocks_twice_and_leaves_gradients_as_they_are():
    gradients, calls = [], []
    for enable in (False, True):
        backbone, count = small_cait(), []
        attn = backbone.model.blocks[0].attn
        attn.register_forward_hook(lambda module, inputs, output, count=count: count.append(1))
        backbone.set_grad_checkpointing(enable)
        backbone(images()).pooled.square().sum().backward()
        gradients.append(attn.qkv.weight.grad)
        calls.append(len(count))
    assert calls == [1, 2]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_compiles_into_one_graph_at_every_size(without_shape_checks):
    backbone = small_cait(depth=1, depth_token_only=1)
    compiled = torch.compile(backbone, fullgraph=True, backend="eager")
    for size in ((16, 16), (8, 12)):
        torch.testing.assert_close(compiled(images(*size)).patch, backbone(images(*size)).patch)
