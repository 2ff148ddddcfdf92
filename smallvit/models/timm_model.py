"""Any other timm model behind the token interface.

Shapes in this file:
    B    images
    N    patch tokens, row-major over the token grid (N = h * w)
    D    width of what the classifier reads
    C    classes
    H W  image in pixels
    h w  token grid
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from timm.models import get_model_input_config
from timm.models.volo import VOLO
from torch import Tensor, nn

from smallvit.core.errors import ConfigError, explained
from smallvit.models.tokens import MODEL_ERRORS, AbstractBackbone, Tokens


@dataclass(frozen=True, kw_only=True)
class FeatureLayout:
    """Where the patch tokens lie in what a model's ``forward_features`` returns.

    Attributes:
        axes: timm's letters for the order of the axes.
        num_prefix: Tokens in front of the patches; 0 in a feature map.
        img_size: Height and width of the image that was looked at, in pixels.
        grid_size: Token grid of that image.
    """

    axes: Literal["NCHW", "NHWC", "NLC"]
    num_prefix: int
    img_size: tuple[int, int]
    grid_size: tuple[int, int]

    def grid(self, height: int, width: int, num_patches: int) -> tuple[int, int]:
        """Return the token grid of an image, sides in pixels, that has so many tokens.

        Raises:
            ConfigError: If no grid of such cells has that many.
        """
        rows, columns = height * self.grid_size[0], width * self.grid_size[1]
        down = (rows // self.img_size[0], columns // self.img_size[1])
        up = (-(-rows // self.img_size[0]), -(-columns // self.img_size[1]))
        for grid in (down, up):
            if grid[0] * grid[1] == num_patches:
                return grid
        raise ConfigError(
            f"{num_patches} tokens of {height} x {width} px make no grid: give the model images "
            "whose sides are multiples of its patches"
        )


class TimmBackbone(AbstractBackbone[Any]):
    """Wrap a timm model of which only ``forward_features``, head and classifier are known.

    Such models share no place between patches and network. ``embed`` therefore returns the
    pixels: what mixes patches mixes pixels here, and a patch is one pixel. The layout of the
    features is found once, on one image of the size that the model was built for (of timm's own
    size where none is built in); so is whether tokens, pooling and classifier together give the
    model's own logits. Other sizes go through the model as they are, and it takes or refuses them.

    The model's own head brings patch tokens into the space that the classifier reads: it is shown
    each of them as the features of an image that has no other. Batch norms in the head then use
    their running statistics, also in training, and leave them as they are: those are of images.

    Args:
        model: The timm model; it keeps its own class and parameter names.

    Raises:
        ConfigError: If it does not run at its own size, gives no patch tokens, or has no single
            classifier that reads them.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.patch_size = (1, 1)
        name = type(model).__name__
        classifier = self.model.get_classifier()
        if not isinstance(classifier, nn.Module):
            raise ConfigError(
                f"{name} has more than one classifier: try deit_tiny_patch16_224 or vit_tiny"
            )
        if isinstance(classifier, nn.Conv2d):
            raise ConfigError(
                f"{name} has a convolution for a classifier: try resnet18 or vit_tiny"
            )
        height, width = get_model_input_config(model)["input_size"][1:]
        images = _noise(height, width, like=next(model.parameters()))
        refusal = "{} does not run on images of {} x {} px ({}): try larger ones, or vit_tiny"
        with (
            explained(
                lambda error: refusal.format(name, height, width, str(error).partition("\n")[0]),
                *MODEL_ERRORS,
                into=ConfigError,
            ),
            self.probing(),
        ):
            expected, features = self.model(images), self.model.forward_features(images)
            self.layout = _find_layout(model, images, features)
            self.head_norms = _find_batch_norms(self.model, features)
            self.embed_dim = self.model.forward_head(features, pre_logits=True).shape[-1]
            logits = self.logits(self(images))
        if not images.is_meta and not torch.allclose(logits, expected, rtol=1e-3, atol=1e-3):
            raise ConfigError(f"{name} makes its logits of more than pooled tokens: try vit_tiny")

    @property
    def token_head(self) -> nn.Module | None:
        """VOLO's classifier of patch tokens; no other timm model has one."""
        return self.model.aux_head if isinstance(self.model, VOLO) else None

    @property
    def drop_refusal(self) -> str:
        """Why it cannot leave patches out."""
        return "it is known to take whole images only"

    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B H W 3"]:
        """Return the pixels, channels last."""
        return images.movedim(1, -1)

    def encode(self, patches: Float[Tensor, "B H W 3"]) -> Tokens:
        """Run pixels through the model, and its head over the whole and over each token."""
        features = self.model.forward_features(patches.movedim(-1, 1))
        cls = self.model.forward_head(features, pre_logits=True)
        if self.layout.axes == "NLC":
            num_prefix = self.layout.num_prefix
            num_patches = features.shape[1] - num_prefix
            grid = self.layout.grid(patches.shape[1], patches.shape[2], num_patches)
            # A copy in every place of a prefix token: pooling by class token finds it there.
            cells = features[:, num_prefix:].flatten(0, 1)[:, None].expand(-1, num_prefix + 1, -1)
        else:
            channels_last = features if self.layout.axes == "NHWC" else features.movedim(1, -1)
            grid = (channels_last.shape[1], channels_last.shape[2])
            cells = channels_last.flatten(0, 2)[:, None, None]  # (B * N, 1, 1, D)
            cells = cells if self.layout.axes == "NHWC" else cells.movedim(-1, 1)
        patch = self._by_token(lambda x: self.model.forward_head(x, pre_logits=True), cells)
        return Tokens(patch=patch.unflatten(0, (cls.shape[0], -1)), cls=cls, grid=grid)

    def classify(self, pooled: Float[Tensor, "... D"]) -> Float[Tensor, "... C"]:
        """Apply the model's own classifier."""
        if pooled.ndim == 2:
            return self.model.get_classifier()(pooled)
        # Flat: LeViT's classifier opens with a batch norm, which takes (images, channels) only.
        logits = self._by_token(self.model.get_classifier(), pooled.flatten(0, -2))
        return logits.unflatten(0, pooled.shape[:-1])

    def _by_token(self, part: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Run a part of the head on patch tokens, its batch norms as in evaluation."""
        norms = [self.model.get_submodule(name) for name in self.head_norms]
        training = [norm.training for norm in norms]
        try:
            for norm in norms:
                norm.training = False
            return part(x)
        finally:
            for norm, was in zip(norms, training, strict=True):
                norm.training = was


def _noise(height: int, width: int, *, like: Tensor) -> Float[Tensor, "1 3 H W"]:
    images = torch.empty(1, 3, height, width, device=like.device, dtype=like.dtype)
    if images.is_meta:
        return images
    # A generator of its own: building a model must not move the random numbers of a run.
    return images.normal_(generator=torch.Generator(like.device).manual_seed(0))


def _find_batch_norms(model: Any, features: Any) -> list[str]:
    """Name the batch norms of a model's head, the classifier included."""
    found: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: found.append(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    model.forward_head(features)
    for hook in hooks:
        hook.remove()
    return found


def _find_layout(model: Any, images: Float[Tensor, "1 3 H W"], features: Any) -> FeatureLayout:
    """Find the patch tokens of one image.

    Raises:
        ConfigError: If there are none.
    """
    size = height, width = images.shape[2], images.shape[3]
    shape = tuple(features.shape) if isinstance(features, Tensor) else ()
    if len(shape) == 4:
        channels_last = getattr(model, "output_fmt", None) == "NHWC"
        channels_last = channels_last or shape[1] != model.num_features == shape[3]
        axes, grid = ("NHWC", shape[1:3]) if channels_last else ("NCHW", shape[2:])
        return FeatureLayout(axes=axes, num_prefix=0, img_size=size, grid_size=grid)
    if len(shape) == 3:
        has_class_token = getattr(model, "cls_token", None) is not None
        num_prefix = getattr(model, "num_prefix_tokens", int(has_class_token))
        num_patches = shape[1] - num_prefix
        grid = (
            round(math.sqrt(num_patches * height / width)),
            round(math.sqrt(num_patches * width / height)),
        )
        if num_patches and grid[0] * grid[1] == num_patches:
            return FeatureLayout(axes="NLC", num_prefix=num_prefix, img_size=size, grid_size=grid)
    raise ConfigError(
        f"{type(model).__name__} gives no grid of patch tokens (features {list(shape)} of "
        f"{height} x {width} px): try cait_xxs24_224 or vit_tiny"
    )
