"""Residual networks for small images: stem, stages, mean and classifier, and their token adapter.

Shapes in this file:
    B    images
    D    channels of the last stage
    C    classes
    c    colours
    H W  image in pixels
    h w  feature map
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from timm.models import checkpoint
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from smallvit.core.errors import ConfigError
from smallvit.models.architecture import Facts, register_architecture, sides
from smallvit.models.tokens import AbstractBackbone, Tokens


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut.

    Args:
        in_chans: Channels of the input.
        out_chans: Channels of the output; the shortcut is a 1x1 convolution where they differ.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(self, in_chans: int, out_chans: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chans, out_chans, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_chans)
        self.conv2 = nn.Conv2d(out_chans, out_chans, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chans)
        self.shortcut = nn.Identity()
        if in_chans != out_chans or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_chans, out_chans, 1, stride, bias=False), nn.BatchNorm2d(out_chans)
            )

    def forward(self, x: Float[Tensor, "B in H W"]) -> Float[Tensor, "B out h w"]:
        """Return the activated sum of both paths."""
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """A 3x3 stem without pooling, stages of residual blocks, mean and classifier.

    The ResNets of CIFAR and wide ResNets differ in their blocks, and in where the network's own
    batch norm and ReLU stand.

    Args:
        create_block: Makes a block from its channels in, its channels out and its stride.
        num_blocks: Blocks of each stage.
        stem_width: Channels of the stem.
        widths: Channels of each stage.
        strides: Stride of each stage; their product is the size of a cell of the feature map.
        pre_activation: Whether blocks norm what they read: norm and ReLU then follow the last
            block instead of the stem.
        num_classes: C; 0 leaves the classifier out.
        in_chans: Colours.
    """

    def __init__(
        self,
        *,
        create_block: Callable[[int, int, int], nn.Module],
        num_blocks: int,
        stem_width: int,
        widths: Sequence[int],
        strides: Sequence[int],
        pre_activation: bool = False,
        num_classes: int = 10,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        self.num_features = self.head_hidden_size = widths[-1]
        self.num_classes = num_classes
        self.pre_activation = pre_activation
        self.grad_checkpointing = False
        self.conv = nn.Conv2d(in_chans, stem_width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(widths[-1] if pre_activation else stem_width)
        self.feature_info: list[dict[str, Any]] = []
        blocks, chans, cell = [], stem_width, 1
        for width, stride in zip(widths, strides, strict=True):
            for block in range(num_blocks):
                blocks.append(create_block(chans, width, stride if block == 0 else 1))
                chans = width
            cell *= stride
            last = f"blocks.{len(blocks) - 1}"
            self.feature_info.append({"num_chs": width, "reduction": cell, "module": last})
        self.num_blocks = num_blocks
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(chans, num_classes) if num_classes else nn.Identity()

    def forward_stem(self, x: Float[Tensor, "B c H W"]) -> Float[Tensor, "B width H W"]:
        """Return the stem's feature map."""
        # Channels last from here on: a training step of resnet8_small on two Zen 5 cores is 1.3
        # (bf16) to 1.6 (fp32) times as fast.
        x = self.conv(x.contiguous(memory_format=torch.channels_last))
        return x if self.pre_activation else torch.relu(self.bn(x))

    def forward_stages(self, x: Float[Tensor, "B width H W"]) -> Float[Tensor, "B D h w"]:
        """Return the last feature map, normed and activated, of the stem's."""
        for block in self.blocks:
            x = self.run_block(block, x)
        return self.last_norm(x)

    def run_block(
        self, block: nn.Module, x: Float[Tensor, "B in H W"]
    ) -> Float[Tensor, "B out h w"]:
        """Run one block, checkpointed if that is chosen."""
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x)
        return block(x)

    def last_norm(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D h w"]:
        """Norm and activate the last block's output where that block does not."""
        return torch.relu(self.bn(x)) if self.pre_activation else x

    def forward_features(self, x: Float[Tensor, "B c H W"]) -> Float[Tensor, "B D h w"]:
        """Return the last feature map."""
        return self.forward_stages(self.forward_stem(x))

    def forward_head(
        self, x: Float[Tensor, "B D h w"], pre_logits: bool = False
    ) -> Float[Tensor, "B out"]:
        """Pool the feature map and classify it."""
        x = x.mean(dim=(2, 3))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Float[Tensor, "B c H W"]) -> Float[Tensor, "B C"]:
        """Return class logits."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Float[Tensor, "B c H W"],
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Return the feature maps of chosen stages, and the final one.

        Args:
            x: Images.
            indices: Stages: the last n, or a list; ``None`` is all.
            norm: Apply the network's last norm to the last stage.
            stop_early: Leave out the stages after the last one asked for.
            output_fmt: ``NCHW``.
            intermediates_only: Leave the final feature map out.
        """
        assert output_fmt == "NCHW", "output_fmt must be NCHW"
        num_stages = len(self.feature_info)
        take, last = feature_take_indices(num_stages, indices)
        blocks = list(self.blocks)[: (last + 1) * self.num_blocks if stop_early else None]
        whole = len(blocks) == num_stages * self.num_blocks
        x, found = self.forward_stem(x), []
        for i, block in enumerate(blocks):
            x = self.run_block(block, x)
            stage, index = divmod(i, self.num_blocks)
            if index == self.num_blocks - 1 and stage in take:
                found.append(self.last_norm(x) if norm and stage == num_stages - 1 else x)
        if intermediates_only:
            return found
        return self.last_norm(x) if whole else x, found

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop what ``forward_intermediates`` of these stages does not need."""
        wanted = indices if isinstance(indices, int) else list(indices)
        take, last = feature_take_indices(len(self.feature_info), wanted)
        shorter = last < len(self.feature_info) - 1
        self.blocks = self.blocks[: (last + 1) * self.num_blocks]
        self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if self.pre_activation and (prune_norm or shorter):
            self.bn = nn.Identity()
        if prune_head or shorter:
            self.reset_classifier(0)
        return take

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return patterns that sort parameters by depth, for layer-wise learning rates."""
        blocks = (r"^blocks\.(\d+)", None)
        if self.pre_activation:
            return {"stem": r"^conv", "blocks": [blocks, (r"^bn", (99999,))]}
        return {"stem": r"^conv|bn", "blocks": [blocks]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Choose whether blocks are computed again in the backward pass, to save memory.

        Batch norms then see each batch twice, so their running means follow it faster; gradients
        are the same.
        """
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one; pooling is the mean."""
        self.num_classes = num_classes
        where = {"device": self.conv.weight.device, "dtype": self.conv.weight.dtype}
        fc = nn.Linear(self.num_features, num_classes, **where) if num_classes else nn.Identity()
        self.fc = fc


class ResNetBackbone(AbstractBackbone[SmallResNet]):
    """A ``SmallResNet`` whose feature-map cells are the patch tokens; it has no class token.

    Args:
        model: The network.
    """

    def __init__(self, model: SmallResNet) -> None:
        super().__init__()
        self.model = model
        self.embed_dim = model.num_features
        self.patch_size = (1, 1)

    def embed(self, images: Float[Tensor, "B c H W"]) -> Float[Tensor, "B h w E"]:
        """Return the stem's feature map, channels last."""
        return self.model.forward_stem(images).movedim(1, -1)

    def encode(self, patches: Float[Tensor, "B h w E"]) -> Tokens:
        """Run the stages on the stem's feature map."""
        features = self.model.forward_stages(patches.movedim(-1, 1))
        grid = (features.shape[2], features.shape[3])
        return Tokens(patch=features.flatten(2).mT, cls=None, grid=grid)

    def classify(self, pooled: Float[Tensor, "... D"]) -> Float[Tensor, "... C"]:
        """Apply the model's own classifier."""
        return self.model.fc(pooled)


def stage_strides(stride: int, num_stages: int) -> tuple[int, ...]:
    """Return the strides of stages that make cells of ``stride`` px, the first stage at full size.

    Raises:
        ConfigError: If no such strides of 1 and 2 exist; the message says which cells do.
    """
    cells = [2**i for i in range(num_stages)]
    if stride not in cells:
        raise ConfigError(
            f"{num_stages} stages cannot make cells of {stride} px; "
            f"{', '.join(map(str, cells))} would do"
        )
    halved = cells.index(stride)
    return (1, *[2] * halved, *[1] * (num_stages - 1 - halved))


def check_cells(img_size: int | Sequence[int], strides: Sequence[int]) -> None:
    """Refuse strides that leave a feature map of one cell along a side.

    Raises:
        ConfigError: Names the smallest image that would do.
    """
    height, width = sides(img_size)
    cell = math.prod(strides)
    if min(height, width) < 2 * cell:
        raise ConfigError(
            f"cells of {cell} px are too large for images of {height} x {width} px; "
            f"--data.image-size from {2 * cell} on, or a smaller model.stride, would do"
        )


def create_small_resnet(
    *,
    depth: int = 20,
    width: int = 16,
    strides: Sequence[int] = (1, 2, 2),
    img_size: int | Sequence[int] = 32,
    **rest: Any,
) -> SmallResNet:
    """Build a ResNet with a CIFAR stem: each stage has twice the channels of the one before.

    Args:
        depth: Layers: 8, 14, 20, ... with three stages; 10, 18, 26, ... with four.
        width: Channels of stem and first stage.
        strides: Stride of each stage, of three or four.
        img_size: Side, or height and width, that the strides must fit, in pixels; any other size
            works too.
        rest: As ``SmallResNet`` has it: ``num_classes``, ``in_chans``.

    Raises:
        ConfigError: If blocks of two layers do not add up to the depth, or the image is too small.

    Source:
        He et al., 2016, Deep Residual Learning, https://arxiv.org/abs/1512.03385, section 4.2;
        1x1 shortcuts (option B) instead of padded ones.
    """
    check_cells(img_size, strides)
    layers = 2 * len(strides)
    num_blocks, over = divmod(depth - 2, layers)
    if num_blocks < 1 or over:
        first = layers + 2
        raise ConfigError(
            f"a ResNet of {len(strides)} stages cannot have {depth} layers; "
            f"{first}, {first + layers}, {first + 2 * layers}, ... would do"
        )
    return SmallResNet(
        create_block=ResidualBlock,
        num_blocks=num_blocks,
        stem_width=width,
        widths=[width * 2**stage for stage in range(len(strides))],
        strides=strides,
        **rest,
    )


VARIANTS: dict[str, dict[str, Any]] = {
    "resnet8_small": {"depth": 8},
    "resnet14_small": {"depth": 14},
    "resnet20_small": {"depth": 20},
    "resnet56_small": {"depth": 56},
    "resnet18_small": {"depth": 18, "width": 64, "strides": (1, 2, 2, 2)},
}


def _check_depth(settings: Mapping[str, Any]) -> None:
    depth = settings.get("depth")
    if depth is not None and (depth - 2) % 6:
        raise ConfigError(f"model.depth must be 8, 14, 20, ... for a ResNet, got {depth}")


THREE_STAGES = Facts(
    settings=frozenset({"depth", "width", "stride"}),
    is_cnn=True,
    check=_check_depth,
)
FOUR_STAGES = Facts(settings=frozenset({"width", "stride"}), is_cnn=True, num_stages=4)

for _name, _arguments in VARIANTS.items():
    register_architecture(
        _name,
        create_small_resnet,
        f"ResNet of {_arguments['depth']} layers with a CIFAR stem.",
        classifier="fc",
        first_conv="conv",
        pooling="avg",
        facts=FOUR_STAGES if len(_arguments.get("strides", ())) == 4 else THREE_STAGES,
        **_arguments,
    )
