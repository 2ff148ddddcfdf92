"""Masked autoencoding: the network sees a quarter of the patches, a decoder draws the others.

Shapes in this file:
    B    images
    N    patches, row-major over the grid
    M    patches that are hidden
    P    numbers in the pixels of a patch
    H W  image in pixels
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from lightly.models.modules import MaskedVisionTransformerDecoderTIMM
from lightly.models.modules.masked_vision_transformer_timm import init_weights
from torch import Tensor, nn

from smallvit.core.errors import ConfigError
from smallvit.core.objective import StepOutput
from smallvit.data.batches import ViewBatch
from smallvit.models.attention import choose_attention
from smallvit.models.tokens import AbstractBackbone
from smallvit.pretraining.config import MaeConfig
from smallvit.pretraining.masks import hide_pixels, indivisible
from smallvit.pretraining.method import AbstractPretraining

# Added to the variance of a patch before its root divides the pixels.
VARIANCE_EPS = 1e-6


class MaeObjective(AbstractPretraining[MaeConfig]):
    """Encoder of visible patches, decoder of all, and the error on hidden ones.

    The decoder reads what the network ends in: its patch tokens and its class token, which is
    trained in this way, or the vector of its own pooling; none where it pools by the mean.

    Args:
        backbone: The network.
        config: Settings.
        image_size: Side of the view, in pixels.

    Raises:
        ConfigError: If the network cannot leave patches out.

    Source:
        As ``MaeConfig``. The network keeps its own start and learned positions where theirs has
        Xavier's and fixed sines.
    """

    def __init__(self, backbone: AbstractBackbone, config: MaeConfig, *, image_size: int) -> None:
        super().__init__(backbone, config)
        if backbone.drop_refusal is not None:
            raise ConfigError(
                f"mae drops patches, which {backbone.model_name} cannot ({backbone.drop_refusal}): "
                f"use --method {_instead(backbone, image_size)}, or --model vit_tiny"
            )
        tokens = backbone.probe(image_size)[1]
        self.grid = tokens.grid
        self.num_prefix = 0 if tokens.cls is None else 1
        dim = config.decoder_dim
        self.decoder_embed = nn.Linear(backbone.embed_dim, dim)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            num_patches=self.grid[0] * self.grid[1],
            embed_dim=dim,
            depth=config.decoder_depth,
            num_heads=config.decoder_num_heads,
            num_prefix_tokens=self.num_prefix,
        )
        height, width = backbone.patch_size
        self.decoder_pred = nn.Linear(dim, 3 * height * width)
        self.decoder_embed.apply(init_weights)
        self.decoder_pred.apply(init_weights)
        choose_attention(self.decoder)

    @property
    def mask_draws(self) -> int:
        """One a patch."""
        return self.grid[0] * self.grid[1]

    def forward(self, batch: ViewBatch) -> StepOutput:
        """Predict the pixels of the patches that the network did not see."""
        assert batch.mask_draws is not None
        images = batch.global_views[0]
        hidden, visible, target = hide_pixels(
            images, batch.mask_draws, self.grid, self.config.mask_ratio
        )
        if self.config.norm_pix:
            target = normalize_pixels(target)
        return StepOutput(loss=F.mse_loss(self.predict(images, hidden, visible), target))

    def predict(
        self,
        images: Float[Tensor, "B 3 H W"],
        hidden: Int[Tensor, "B M"],
        visible: Int[Tensor, "B L"],
    ) -> Float[Tensor, "B M P"]:
        """Return the pixels of hidden patches as visible ones suggest them."""
        tokens = self.student.encode_visible(self.student.embed(images), visible)
        patch = self.decoder_embed(tokens.patch)
        mask_token = self.decoder.mask_token.to(patch.dtype)
        index = visible[..., None].expand_as(patch)
        x = mask_token.expand(len(images), self.mask_draws, -1).scatter(1, index, patch)
        if tokens.cls is not None:
            x = torch.cat([self.decoder_embed(tokens.cls)[:, None], x], dim=1)
        x = self.decoder(x)[:, self.num_prefix :]
        return self.decoder_pred(torch.take_along_dim(x, hidden[..., None], dim=1)).float()


def normalize_pixels(cells: Float[Tensor, "B M P"]) -> Float[Tensor, "B M P"]:
    """Subtract the mean of each cell and divide by its standard deviation."""
    var, mean = torch.var_mean(cells, dim=-1, keepdim=True)
    return (cells - mean) * (var + VARIANCE_EPS).rsqrt()


def _instead(backbone: AbstractBackbone, image_size: int) -> str:
    """Name the methods that take a network which cannot drop patches."""
    if indivisible(*backbone.probe(image_size), image_size):
        return "dino, which hides none"
    return "simmim or ibot, which hide them in place"
