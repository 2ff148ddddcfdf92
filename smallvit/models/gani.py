"""The three networks of Gani et al. for small images, as arguments of timm's own architectures.

``gani_vit``, ``gani_cait`` and ``gani_swin`` are names for timm's VisionTransformer, Cait and
SwinTransformer with the paper's sizes, so that an export loads with timm alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm
from timm.layers.weight_init import trunc_normal_
from timm.models.cait import Cait
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from smallvit.core.errors import UnknownNameError
from smallvit.models.architecture import (
    TRANSFORMER,
    WINDOWS,
    Facts,
    choose_patch,
    register_architecture,
)
from smallvit.models.tokens import AbstractBackbone
from smallvit.models.vit import VitBackbone


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A timm architecture and where the paper's network departs from it.

    Attributes:
        architecture: timm's name.
        doc: What it is, in one line.
        arguments: timm's arguments.
    """

    architecture: str
    doc: str
    arguments: dict[str, Any]


PRESETS = {
    "gani_vit": Preset(
        architecture="vit_tiny_patch16_224",
        doc="ViT of Gani et al., 2.7 M parameters: 9 blocks, 192 wide, 12 heads.",
        arguments={
            "embed_dim": 192,
            "depth": 9,
            "num_heads": 12,
            "mlp_ratio": 2.0,
            "drop_path_rate": 0.1,
            "dynamic_img_size": True,
        },
    ),
    "gani_cait": Preset(
        architecture="cait_xxs24_224",
        doc="CaiT of Gani et al., 8.1 M parameters: 24 + 2 blocks, 192 wide, 4 heads.",
        arguments={
            "embed_dim": 192,
            "depth": 24,
            "num_heads": 4,
            "mlp_ratio": 2.0,
            "init_values": 1e-5,
            "drop_path_rate": 0.1,
        },
    ),
    "gani_swin": Preset(
        architecture="swin_tiny_patch4_window7_224",
        doc="Swin of Gani et al., 7.0 M parameters: 2 + 6 + 4 blocks, 96 to 384 wide, window 4.",
        arguments={
            "embed_dim": 96,
            "depths": (2, 6, 4),
            "num_heads": (3, 6, 12),
            "window_size": 4,
            "mlp_ratio": 2.0,
            "drop_path_rate": 0.1,
            "dynamic_img_size": True,
        },
    ),
}


def gani_architecture(
    name: str, img_size: int | Sequence[int], patch_size: int | None = None
) -> tuple[str, dict[str, Any]]:
    """Return timm's name and arguments of one of the paper's networks.

    At 32, 64 and 224 px the patches are of 4, 8 and 16 px, and of 2, 4 and 4 px for Swin, which
    starts on a finer grid and halves it twice.

    Args:
        name: ``gani_vit``, ``gani_cait`` or ``gani_swin``.
        img_size: Side, or height and width, in pixels.
        patch_size: Side of a patch in pixels; ``None`` goes by the image.

    Raises:
        UnknownNameError: If it is none of the three.
        ConfigError: If the patch does not divide the image.

    Source:
        Gani et al., 2022, How to Train Vision Transformer on Small-scale Datasets?,
        https://arxiv.org/abs/2210.07240. hananshafi/vits-for-small-scale-datasets@43a7493,
        train_ssl.py:196-248; the class-attention blocks of CaiT keep an MLP ratio of 4 there and
        here (models/cait.py:184). Swin's layer norms add 1e-5 to the variance as timm's do, where
        theirs add 1e-6.
    """
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    preset = PRESETS[name]
    swin = {"tokens": 16, "most": 4, "windows": True} if "depths" in preset.arguments else {}
    patch_size = choose_patch(img_size, patch_size, **swin)
    arguments = {"img_size": img_size, "patch_size": patch_size, **preset.arguments}
    return preset.architecture, arguments


def init_as_published(model: nn.Module) -> None:
    """Draw the weights of a fresh network that timm draws otherwise than the paper's code.

    All is a truncated normal of standard deviation 0.02 there, and biases are 0: the class token,
    which timm's ViT starts with 1e-6, and the patch embedding of CaiT, a linear layer there and a
    convolution, with torch's default, in timm. The convolutions of ViT and Swin have that default
    in both.

    Source:
        hananshafi/vits-for-small-scale-datasets@43a7493, models/vit.py, __init__;
        models/cait.py:192-194 and its _init_weights.
    """
    if isinstance(model, VisionTransformer):
        assert model.cls_token is not None
        trunc_normal_(model.cls_token, std=0.02)
    elif isinstance(model, Cait):
        embedding: Any = model.patch_embed.proj
        trunc_normal_(embedding.weight, std=0.02)
        nn.init.zeros_(embedding.bias)


def _register(name: str, preset: Preset) -> None:
    def build(
        *, img_size: int | Sequence[int], patch_size: int | None = None, **given: Any
    ) -> nn.Module:
        architecture, arguments = gani_architecture(name, img_size, patch_size)
        model = timm.create_model(architecture, **{**arguments, **given})
        init_as_published(model)
        return model

    def init(backbone: AbstractBackbone) -> None:
        init_as_published(backbone.model)
        if isinstance(backbone, VitBackbone):
            backbone.published_positions = True

    swin = "depths" in preset.arguments
    facts = Facts(
        settings=WINDOWS if swin else TRANSFORMER,
        timm_model=partial(gani_architecture, name),
        # Depths, which no setting gives.
        told_by=(preset.architecture, {"depths": preset.arguments["depths"]}) if swin else None,
        init=init,
    )
    register_architecture(name, build, preset.doc, facts=facts)


for _name, _preset in PRESETS.items():
    _register(_name, _preset)
