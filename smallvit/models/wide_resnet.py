"""Wide residual networks for small images: ``wrn_16_8`` and ``wrn_28_10``.

Shapes in this file:
    B    images
    H W  feature map read
    h w  feature map made
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from smallvit.core.errors import ConfigError
from smallvit.models.architecture import Facts, register_architecture
from smallvit.models.resnet import SmallResNet, check_cells

STEM_WIDTH = 16
STRIDES = (1, 2, 2)


class PreActivationBlock(nn.Module):
    """Batch norm, ReLU and 3x3 convolution, twice, added to what the block reads.

    Args:
        in_chans: Channels of the input.
        out_chans: Channels of the output; the shortcut is a 1x1 convolution where they differ,
            and reads the activated input.
        stride: Stride of the first convolution and of the shortcut.
        drop_rate: Dropout between the convolutions.
    """

    def __init__(
        self, in_chans: int, out_chans: int, stride: int, *, drop_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_chans)
        self.conv1 = nn.Conv2d(in_chans, out_chans, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chans)
        self.drop = nn.Dropout(drop_rate)
        self.conv2 = nn.Conv2d(out_chans, out_chans, 3, 1, 1, bias=False)
        self.shortcut = None
        if in_chans != out_chans or stride != 1:
            self.shortcut = nn.Conv2d(in_chans, out_chans, 1, stride, bias=False)

    def forward(self, x: Float[Tensor, "B in H W"]) -> Float[Tensor, "B out h w"]:
        """Return the sum of both paths."""
        active = torch.relu(self.bn1(x))
        out = self.drop(torch.relu(self.bn2(self.conv1(active))))
        return self.conv2(out) + (x if self.shortcut is None else self.shortcut(active))


def create_wide_resnet(
    *,
    depth: int = 28,
    width_factor: int = 10,
    drop_rate: float = 0.0,
    img_size: int | Sequence[int] = 32,
    **rest: Any,
) -> SmallResNet:
    """Build a wide ResNet: pre-activation blocks, three stages, cells of 4 px.

    Args:
        depth: Layers, 10, 16, 22, 28, ...: the paper counts the shortcuts of the three stages.
        width_factor: Channels of the stages over 16, 32 and 64.
        drop_rate: Dropout inside the blocks; the paper tries 0.3.
        img_size: Side, or height and width, that the cells must fit, in pixels; any other size
            works too.
        rest: As ``SmallResNet`` has it: ``num_classes``, ``in_chans``.

    Raises:
        ConfigError: If blocks of two layers do not add up to the depth, or the image is too small.

    Source:
        Zagoruyko and Komodakis, 2016, Wide Residual Networks, https://arxiv.org/abs/1605.07146,
        section 3 and table 1.
    """
    check_cells(img_size, STRIDES)
    num_blocks, over = divmod(depth - 4, 2 * len(STRIDES))
    if num_blocks < 1 or over:
        raise ConfigError(f"a wide ResNet cannot have {depth} layers; 10, 16, 22, 28, ... would do")
    model = SmallResNet(
        create_block=partial(PreActivationBlock, drop_rate=drop_rate),
        num_blocks=num_blocks,
        stem_width=STEM_WIDTH,
        widths=[STEM_WIDTH * width_factor * 2**stage for stage in range(len(STRIDES))],
        strides=STRIDES,
        pre_activation=True,
        **rest,
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


VARIANTS: dict[str, dict[str, Any]] = {
    "wrn_16_8": {"depth": 16, "width_factor": 8},
    "wrn_28_10": {"depth": 28, "width_factor": 10},
}

for _name, _arguments in VARIANTS.items():
    register_architecture(
        _name,
        create_wide_resnet,
        f"Wide ResNet of {_arguments['depth']} layers, {_arguments['width_factor']} times as wide.",
        classifier="fc",
        first_conv="conv",
        pooling="avg",
        facts=Facts(settings=frozenset(), is_cnn=True),
        **_arguments,
    )
