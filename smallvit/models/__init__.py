"""Networks behind one token interface; importing this package registers its models with timm."""

from smallvit.models import (
    cct,
    convnext,
    gani,
    lvvit,
    resnet,
    sl_models,
    small_vit,
    t2t_vit,
    wide_resnet,
)

__all__ = [
    "cct",
    "convnext",
    "gani",
    "lvvit",
    "resnet",
    "sl_models",
    "small_vit",
    "t2t_vit",
    "wide_resnet",
]
