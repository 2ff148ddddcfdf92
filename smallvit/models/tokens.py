"""One token interface for every architecture.

Shapes in this file:
    B    images
    N    patch tokens, row-major over the token grid (N = h * w)
    M    patches that a network is given
    D    embed dim of the final tokens
    E    embed dim of the patches, before the network
    T    all tokens that a transformer runs, prefix tokens in front
    C    classes
    H W  image in pixels
    h w  token grid
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import torch
from jaxtyping import Float, Int
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn

from smallvit.core.errors import ConfigError

# Which vector stands for an image.
Features = Literal["pooled", "patches"]
# Part of the best token's logits that a network with a token head adds to the class logits:
# zihangJiang/TokenLabeling@9dbfd59, tlt/models/lvvit.py:208-211.
TOKEN_READOUT = 0.5
# What timm's networks raise for images that they do not take.
MODEL_ERRORS = (AssertionError, IndexError, RuntimeError, ValueError)
# Why a network sees pixels of patches that it is not given.
STEM_MIXES = "its stem mixes neighbouring patches"


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Final tokens of a batch of images.

    Attributes:
        patch: Normalised patch tokens.
        cls: Class token, or the vector that the architecture's own pooling makes; ``None`` where
            that is the mean of the patch tokens.
        grid: Token grid (h, w).
    """

    patch: Float[Tensor, "B N D"]
    cls: Float[Tensor, "B D"] | None
    grid: tuple[int, int]

    @property
    def pooled(self) -> Float[Tensor, "B D"]:
        """One vector an image: the class token, else the mean of the patch tokens."""
        return self.patch.mean(dim=1) if self.cls is None else self.cls

    def features(self, kind: Features) -> Float[Tensor, "B D"]:
        """Return one vector an image: ``pooled``, or the mean of the patch tokens."""
        return self.pooled if kind == "pooled" else self.patch.mean(dim=1)


ModelT = TypeVar("ModelT", bound=nn.Module)


class AbstractBackbone(nn.Module, ABC, Generic[ModelT]):
    """A timm model seen as tokens.

    Attributes:
        model: The plain timm model that is trained and exported; its classifier reads ``pooled``.
        embed_dim: D.
        patch_size: Pixels (height, width) of a cell that ``embed`` makes; images and views are
            multiples of it.
        name: What it was asked for by; ``None`` where it was built without one.
        aux_head: Classifier of patch tokens that token labeling trained beside ``model``, which
            has none of its own; ``None`` where nothing did.
    """

    model: ModelT
    embed_dim: int
    patch_size: tuple[int, int]
    name: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self.aux_head: nn.Linear | None = None

    @property
    def token_head(self) -> nn.Module | None:
        """The model's own classifier of patch tokens (LV-ViT); most have none."""
        return None

    @property
    def drop_refusal(self) -> str | None:
        """Why ``encode_visible`` cannot leave patches out; ``None`` where it can."""
        return "its layers need the whole grid of patches"

    @property
    def model_name(self) -> str:
        """Name of the model: as it was asked for, else timm's, else that of its class."""
        if self.name is not None:
            return self.name
        facts = getattr(self.model, "pretrained_cfg", None) or {}
        return facts.get("architecture") or type(self.model).__name__

    @abstractmethod
    def embed(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w E"]:
        """Embed the patches, before any position or class token is added."""

    @abstractmethod
    def encode(self, patches: Float[Tensor, "B h w E"]) -> Tokens:
        """Run embedded patches through the network."""

    def encode_visible(
        self, patches: Float[Tensor, "B h w E"], visible: Int[Tensor, "B M"]
    ) -> Tokens:
        """Run some of the embedded patches through a network that can leave the others out.

        Each gets the position that it has in the whole grid. Nothing of the others is seen,
        neither by a patch nor by the class token or the pooling.

        Args:
            patches: Of whole images.
            visible: Which of them to run, by their row-major position, each once.

        Returns:
            The tokens of those patches alone, M of them in the order of ``visible``; ``grid`` is
            that of all patches.

        Raises:
            ConfigError: If the network cannot; ``drop_refusal`` says why.
        """
        raise ConfigError(f"{self.model_name} cannot leave patches out: {self.drop_refusal}")

    @abstractmethod
    def classify(self, pooled: Float[Tensor, "... D"]) -> Float[Tensor, "... C"]:
        """Apply the model's own classifier to pooled features or to each token."""

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Tokens:
        """Return the tokens of images of any size that the architecture can divide."""
        return self.encode(self.embed(images))

    def classify_tokens(self, patch: Float[Tensor, "B N D"]) -> Float[Tensor, "B N C"]:
        """Return dense logits.

        They are those of the model's own token head, else of the auxiliary one, else of the image
        classifier at every place.
        """
        head = self.aux_head if self.token_head is None else self.token_head
        return self.classify(patch) if head is None else head(patch)

    def logits(self, tokens: Tokens) -> Float[Tensor, "B C"]:
        """Return the image logits that ``model`` itself returns for these tokens."""
        logits = self.classify(tokens.pooled)
        if self.token_head is None:
            return logits
        return logits + TOKEN_READOUT * self.token_head(tokens.patch).amax(dim=1)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Choose whether blocks are computed again in the backward pass, to save memory."""
        self.model.set_grad_checkpointing(enable)  # pyright: ignore[reportCallIssue]

    def grid(self, image_size: int | Sequence[int]) -> tuple[int, int]:
        """Return the token grid of images of a side, or of a height and width, in pixels."""
        return self.probe(image_size)[1].grid

    def embed_grid(self, image_size: int | Sequence[int]) -> tuple[int, int]:
        """Return the grid that ``embed`` makes of images of a size, in pixels."""
        with self.probing():
            patches = self.embed(self._blank(image_size))
        return (patches.shape[1], patches.shape[2])

    def probe(self, image_size: int | Sequence[int]) -> tuple[Float[Tensor, "1 h w E"], Tokens]:
        """Return what ``embed`` and ``encode`` make of one black image, for their shapes.

        Args:
            image_size: Side, or height and width, in pixels.
        """
        with self.probing():
            patches = self.embed(self._blank(image_size))
            return patches, self.encode(patches)

    def _blank(self, image_size: int | Sequence[int]) -> Float[Tensor, "1 3 H W"]:
        height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
        return next(self.parameters()).new_zeros(1, 3, height, width)

    @contextmanager
    def probing(self) -> Iterator[None]:
        """Leave no trace of a forward pass, such as running statistics."""
        training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(training)


class AbstractSequenceBackbone(AbstractBackbone[ModelT]):
    """A model that adds positions to its patches and then takes any sequence of tokens."""

    @property
    def drop_refusal(self) -> str | None:
        """Why it cannot leave patches out: shifted patches and convolutions see neighbours."""
        return None if self.separates_patches() else STEM_MIXES

    def separates_patches(self) -> bool:
        """Tell whether the model sees each patch alone before its attention."""
        embed: Any = self.model.patch_embed
        # Else convolutions of a hybrid, or a stem of its own.
        proj = embed.proj if isinstance(embed, PatchEmbed) else None
        return isinstance(proj, nn.Conv2d) and proj.kernel_size == proj.stride

    @abstractmethod
    def add_positions(self, patches: Float[Tensor, "B h w E"]) -> Float[Tensor, "B T E"]:
        """Flatten the patches, put prefix tokens, if any, in front, and add positions."""

    @abstractmethod
    def run(self, x: Float[Tensor, "B T E"], grid: tuple[int, int]) -> Tokens:
        """Run tokens with positions through the blocks and the last norm."""

    def encode(self, patches: Float[Tensor, "B h w E"]) -> Tokens:
        """Run embedded patches through the transformer and its last norm."""
        return self.run(self.add_positions(patches), (patches.shape[1], patches.shape[2]))

    def encode_visible(
        self, patches: Float[Tensor, "B h w E"], visible: Int[Tensor, "B M"]
    ) -> Tokens:
        """Run some of the embedded patches, and all prefix tokens, through the transformer."""
        if self.drop_refusal is not None:
            return super().encode_visible(patches, visible)
        grid, x = (patches.shape[1], patches.shape[2]), self.add_positions(patches)
        prefix, patch = x.tensor_split([x.shape[1] - grid[0] * grid[1]], dim=1)
        chosen = torch.take_along_dim(patch, visible[..., None], dim=1)
        return self.run(torch.cat([prefix, chosen], dim=1), grid)
