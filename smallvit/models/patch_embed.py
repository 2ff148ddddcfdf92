"""Convolutional stems: images in, embedded patches out, channels last.

Shapes in this file:
    B    images
    D    embed dim
    c    colours
    H W  image in pixels
    h w  token grid
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LvvitStem(nn.Module):
    """LV-ViT's stem: a 7x7 convolution of stride 2, two of 3x3, then one that makes the patches.

    The last one's kernel and stride are half the patch: 8 for the 16 px of ImageNet, 2 for 4 px.

    Args:
        patch_size: Pixels of a cell; even.
        embed_dim: D.
        width: Channels before the last convolution.
        in_chans: Colours.

    Source:
        Jiang et al., 2021, All Tokens Matter: Token Labeling for Training Better Vision
        Transformers, https://arxiv.org/abs/2104.10858; layer sizes as in
        zihangJiang/TokenLabeling@9dbfd59, tlt/models/layers.py:316-420, whose patch is always 16.
    """

    def __init__(
        self, *, patch_size: int, embed_dim: int, width: int = 64, in_chans: int = 3
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.proj = nn.Conv2d(width, embed_dim, patch_size // 2, stride=patch_size // 2)

    def forward(self, x: Float[Tensor, "B c H W"]) -> Float[Tensor, "B h w D"]:
        """Embed the patches."""
        x = torch.relu(self.bn1(self.conv1(_channels_last(x))))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = torch.relu(self.bn3(self.conv3(x)))
        return self.proj(x).movedim(1, -1)


class ConvStem(nn.Module):
    """Overlapping patches: a 3x3 convolution of stride 2 for each halving, then one of 1x1.

    The channels double from layer to layer and reach the embed dim in the last.

    Args:
        patch_size: Pixels of a cell; a power of two.
        embed_dim: D.
        in_chans: Colours.

    Source:
        Xiao et al., 2021, Early Convolutions Help Transformers See Better,
        https://arxiv.org/abs/2106.14881; GELU where the paper has ReLU, as in the blocks, and no
        block is left out in return.
    """

    def __init__(self, *, patch_size: int, embed_dim: int, in_chans: int = 3) -> None:
        super().__init__()
        num_layers = patch_size.bit_length() - 1
        chans = [in_chans, *(embed_dim // 2**i for i in reversed(range(num_layers)))]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(chans[i], chans[i + 1], 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(chans[i + 1]),
                    nn.GELU(),
                )
                for i in range(num_layers)
            )
        )
        self.proj = nn.Conv2d(embed_dim, embed_dim, 1)

    def forward(self, x: Float[Tensor, "B c H W"]) -> Float[Tensor, "B h w D"]:
        """Embed the patches."""
        return self.proj(self.layers(_channels_last(x))).movedim(1, -1)


class ConvTokenizer(nn.Module):
    """CCT's stem: layers of a 3x3 convolution, a ReLU and a max pooling that halves the sides.

    Args:
        patch_size: Pixels of a cell; a power of two, a layer for each halving.
        embed_dim: D.
        width: Channels between layers.
        in_chans: Colours.

    Source:
        Hassani et al., 2021, Escaping the Big Data Paradigm with Compact Transformers,
        https://arxiv.org/abs/2104.05704; sizes and start as in
        SHI-Labs/Compact-Transformers@afd82fd, src/utils/tokenizer.py.
    """

    def __init__(
        self, *, patch_size: int, embed_dim: int, width: int = 64, in_chans: int = 3
    ) -> None:
        super().__init__()
        num_layers = patch_size.bit_length() - 1
        chans = [in_chans, *[width] * (num_layers - 1), embed_dim]
        convs = [
            nn.Conv2d(chans[i], chans[i + 1], 3, padding=1, bias=False) for i in range(num_layers)
        ]
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight)
        self.layers = nn.Sequential(
            *(nn.Sequential(conv, nn.ReLU(), nn.MaxPool2d(3, 2, 1)) for conv in convs)
        )

    def forward(self, x: Float[Tensor, "B c H W"]) -> Float[Tensor, "B h w D"]:
        """Embed the patches."""
        return self.layers(_channels_last(x)).movedim(1, -1)


def is_even(patch_size: int) -> bool:
    """Tell whether ``LvvitStem`` can make such patches."""
    return patch_size >= 2 and patch_size % 2 == 0


def is_power_of_two(patch_size: int) -> bool:
    """Tell whether ``ConvStem`` and ``ConvTokenizer`` can make such patches."""
    return patch_size >= 2 and patch_size.bit_count() == 1


def _channels_last(x: Float[Tensor, "B c H W"]) -> Float[Tensor, "B c H W"]:
    # Tokens are channels last anyway. On two cores of an AMD EPYC, forward and backward at 32 px
    # are 1.1 (ConvStem, bfloat16) to 4.2 times (ConvTokenizer, bfloat16) as fast.
    return x.contiguous(memory_format=torch.channels_last)
