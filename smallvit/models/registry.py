"""Building a model from its config, by timm's names and arguments."""

import warnings
from dataclasses import dataclass
from typing import Annotated, Any

import timm
from timm.models.vision_transformer import VisionTransformer

from smallvit.core.config import Range
from smallvit.core.errors import ConfigError, UnknownNameError
from smallvit.models.resnet import ResNetBackbone, SmallResNet
from smallvit.models.tokens import AbstractBackbone
from smallvit.models.vit import VitBackbone

# The toolkit's own names for timm architectures; exports carry timm's name.
ALIASES = {"vit_tiny": "vit_tiny_patch16_224", "vit_small": "vit_small_patch16_224"}
SMALL_RESNETS = ("resnet8_small", "resnet14_small", "resnet20_small", "resnet56_small")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which network, and where it departs from its defaults; null keeps the architecture's own.

    Attributes:
        name: ``vit_tiny``, ``vit_small``, ``resnet8_small`` to ``resnet56_small``, or any timm
            vision transformer (``vit_*``) with a class token.
        patch_size: Side of a patch in pixels; null is an eighth of the image's side, at least 2.
        embed_dim: Width of a transformer.
        depth: Blocks of a transformer, or layers of a ResNet (8, 14, 20, ...).
        num_heads: Attention heads; they must divide the width.
        mlp_ratio: Hidden width of an MLP over ``embed_dim``.
        drop_path_rate: Stochastic depth of the last block; earlier blocks have less.
        width: Channels of a ResNet's first stage.
        stride: Pixels a cell of a ResNet's feature map: 1, 2 or 4.
    """

    name: str = "vit_tiny"
    patch_size: Annotated[int | None, Range(ge=1)] = None
    embed_dim: Annotated[int | None, Range(ge=8)] = None
    depth: Annotated[int | None, Range(ge=1)] = None
    num_heads: Annotated[int | None, Range(ge=1)] = None
    mlp_ratio: Annotated[float | None, Range(gt=0)] = None
    drop_path_rate: Annotated[float | None, Range(ge=0, lt=1)] = None
    width: Annotated[int | None, Range(ge=4)] = None
    stride: Annotated[int | None, Range(ge=1, le=4)] = None

    def __post_init__(self) -> None:
        known = known_models()
        if self.name not in known:
            raise UnknownNameError("model", self.name, known)
        cnn_only = {"width": self.width, "stride": self.stride}
        vit_only = {
            key: getattr(self, key)
            for key in ("patch_size", "embed_dim", "num_heads", "mlp_ratio", "drop_path_rate")
        }
        for key, value in (vit_only if self.name in SMALL_RESNETS else cnn_only).items():
            if value is not None:
                raise ConfigError(
                    f"model.{key} ({value}) is no setting of {self.name}: leave it out"
                )
        if self.embed_dim and self.num_heads and self.embed_dim % self.num_heads:
            raise ConfigError(
                f"model.num_heads ({self.num_heads}) must divide model.embed_dim ({self.embed_dim})"
            )
        if self.name in SMALL_RESNETS and self.depth is not None and (self.depth - 2) % 6:
            raise ConfigError(f"model.depth must be 8, 14, 20, ... for a ResNet, got {self.depth}")
        if self.stride == 3:
            raise ConfigError("model.stride must be 1, 2 or 4, got 3")


def known_models() -> list[str]:
    """List the names that a config takes."""
    transformers = timm.list_models("vit_*", module="vision_transformer")
    return [*ALIASES, *SMALL_RESNETS, *transformers]


def model_arguments(
    config: ModelConfig, *, num_classes: int, image_size: int
) -> tuple[str, dict[str, Any]]:
    """Return timm's name and all arguments of a model, as an export records them.

    Raises:
        ConfigError: If the patch does not divide the image or leaves fewer than 4 tokens.
    """
    name = ALIASES.get(config.name, config.name)
    if config.name in SMALL_RESNETS:
        strides = {1: (1, 1, 1), 2: (1, 2, 1), 4: (1, 2, 2), None: (1, 2, 2)}[config.stride]
        given: dict[str, Any] = {"depth": config.depth, "width": config.width, "strides": strides}
        if image_size // (strides[1] * strides[2]) < 2:
            raise ConfigError(f"model.stride ({config.stride}) leaves one cell of {image_size} px")
    else:
        patch_size = config.patch_size or max(2, image_size // 8)
        if image_size % patch_size or image_size // patch_size < 2:
            fits = [p for p in range(1, image_size // 2 + 1) if image_size % p == 0]
            raise ConfigError(
                f"model.patch_size ({patch_size}) must divide data.image_size ({image_size}) into "
                f"at least 4 tokens; {', '.join(map(str, fits))} would"
            )
        if patch_size > max(2, image_size // 8):
            warnings.warn(
                f"patches of {patch_size} px are larger than an eighth of a {image_size} px image; "
                f"small images want {max(2, image_size // 8)} px or less",
                stacklevel=2,
            )
        keys = ("embed_dim", "depth", "num_heads", "mlp_ratio", "drop_path_rate")
        given = {key: getattr(config, key) for key in keys}
        given |= {"img_size": image_size, "patch_size": patch_size, "dynamic_img_size": True}
    given = {key: value for key, value in given.items() if value is not None}
    return name, given | {"num_classes": num_classes}


def create_backbone(config: ModelConfig, *, num_classes: int, image_size: int) -> AbstractBackbone:
    """Build a model with fresh weights.

    Args:
        config: Which one.
        num_classes: Classes of its head.
        image_size: Side of the square images it is made for, in pixels.

    Raises:
        ConfigError: If the settings do not go together.
    """
    name, arguments = model_arguments(config, num_classes=num_classes, image_size=image_size)
    return create_exported(name, arguments)


def create_exported(name: str, arguments: dict[str, Any]) -> AbstractBackbone:
    """Build a model from timm's name and arguments, as an export records them.

    Raises:
        ConfigError: If timm refuses them, or the architecture has no token adapter.
    """
    try:
        model = timm.create_model(name, **arguments)
    except AssertionError as error:
        raise ConfigError(f"{name} cannot be built: {error}") from error
    if isinstance(model, SmallResNet):
        return ResNetBackbone(model)
    if not isinstance(model, VisionTransformer) or model.cls_token is None:
        raise ConfigError(f"{name} has no class token and no adapter; try vit_tiny")
    return VitBackbone(model)
