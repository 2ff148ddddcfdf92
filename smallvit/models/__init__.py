"""Networks behind one token interface; importing this package registers its models with timm."""

from smallvit.models import (  # noqa: F401
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
