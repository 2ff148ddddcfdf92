"""Views made on the device: several of one image for stage 1, image with score map for stage 2.

Shapes in this file:
    V    views of one image
    B    images
    C    classes
    H W  image or view in pixels
    h w  token grid
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from smallvit.core import rng
from smallvit.data import augment, geometry, mix, policies
from smallvit.data.batches import LabeledBatch, TokenBox, ViewBatch
from smallvit.data.config import AugmentConfig, Policy, ViewsConfig
from smallvit.data.dataset import Dataset, Split, channel_tensors
from smallvit.data.order import Draw, InOrder, Order

DRAWS = 5 + 5 + 4  # uniform numbers of a view: crop and flip, colours, grey and blur and solarize
FIXED_DRAWS = 5 + 5 + 5 + mix.NUM_DRAWS  # of stage 2, before those of the policy
BLOCK_PIXELS = 2**19  # of stage 2's images made together: 512 of 32 px
ScoreMapReader = Callable[[Tensor], Tensor]


class ViewBatches:
    """Stage-1 batches by step: a step's views depend on nothing but the seed and the step.

    Args:
        dataset: On the training device.
        order: Which samples each step takes.
        config: The views.
        total_steps: Steps of the whole run.
        mask_draws: Uniform numbers an image that the method makes its masks of.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Order,
        config: ViewsConfig,
        total_steps: int,
        *,
        mask_draws: int = 0,
    ) -> None:
        self.dataset = dataset
        self.split = dataset.splits["train"]
        self.order = order
        self.config = config
        self.total_steps = total_steps
        self.mask_draws = mask_draws
        self.mean, self.std = channel_tensors(dataset, order.device)

    def __call__(self, step: int) -> ViewBatch:
        """Make the views of one step."""
        draw = self.order.draw(step)
        # In memory as (B, H, 3, W), which resampling works on: converted once for all views.
        images = self.split.take(draw.position).transpose(1, 2).contiguous().transpose(1, 2)
        images = augment.to_float(images)
        config, side = self.config, self.dataset.image_size
        local_side = round(side * config.local_size)
        global_views = images.new_empty(config.num_global, len(images), 3, side, side)
        local_views = images.new_empty(config.num_local, len(images), 3, local_side, local_side)
        draws = self._draws(draw)
        for column, (number, view) in enumerate(
            zip(self._numbers(), (*global_views, *local_views), strict=True)
        ):
            self._make(images, draws[:, column], number, out=view)
        return ViewBatch(
            global_views=global_views,
            local_views=local_views if config.num_local else None,
            epoch=step * self.order.batch_size / self.order.size,
            progress=step / self.total_steps,
            mask_draws=rng.uniform(
                self.order.seed, "mask", draw.epoch, draw.position, self.mask_draws
            )
            if self.mask_draws
            else None,
        )

    def geometries(self, step: int) -> list[geometry.Geometry]:
        """Return where in its image each view of a step lies: the large ones, then the small."""
        draws = self._draws(self.order.draw(step)).unbind(1)
        return [
            view_geometry(draws, number, self.config, self.dataset)
            for number, draws in zip(self._numbers(), draws, strict=True)
        ]

    def _numbers(self) -> list[int]:
        """Number the views: 0 and 1 are the large ones, all from 2 on the small ones."""
        return [*range(self.config.num_global), *range(2, 2 + self.config.num_local)]

    def _draws(self, draw: Draw) -> Float[Tensor, "B V n"]:
        num_views = self.config.num_global + self.config.num_local
        return rng.uniform(
            self.order.seed, "views", draw.epoch, draw.position, DRAWS * num_views
        ).unflatten(1, (num_views, DRAWS))

    def _make(
        self,
        images: Float[Tensor, "B 3 H W"],
        draws: Float[Tensor, "B n"],
        number: int,
        *,
        out: Float[Tensor, "B 3 h w"],
    ) -> None:
        """Make one view of every image in ``out``."""
        config = self.config
        crop = view_geometry(draws, number, config, self.dataset)
        side = out.shape[-1]
        view = geometry.resample(images, crop, (side, side), kernel="bicubic", fill="zero")
        view = augment.jitter_color_(
            view.contiguous().clamp_(0, 1),
            draws[:, 5:10],
            strength=config.color_jitter,
            prob=config.color_jitter_prob,
        )
        view = augment.drop_color_(view, draws[:, 10] < config.grey_prob)
        low, high = config.blur_sigma
        blurred = draws[:, 11] < config.blur_prob[min(number, 2)]
        sigma = low + (high - low) * draws[:, 12]
        view = augment.change_chosen_(view, blurred, augment.blur, sigma)
        if number == 1:
            view = augment.solarize_(view, draws[:, 13] < config.solarize_prob)
        augment.normalize(view, self.mean, self.std, out=out)


def view_geometry(
    draws: Float[Tensor, "B n"], number: int, config: ViewsConfig, dataset: Dataset
) -> geometry.Geometry:
    """Turn the uniform numbers of one view into where it lies in each image.

    Args:
        draws: Of which the first five count.
        number: Which view; 0 and 1 are large.
        config: The views.
        dataset: Whose images they are of.
    """
    return geometry.sample_resized_crop(
        draws[:, :5],
        scale=config.global_scale if number < 2 else config.local_scale,
        ratio=config.ratio,
        hflip=dataset.hflip,
        image_size=dataset.image_size,
    )


class LabeledBatches:
    """Stage-2 batches by step: augmented images, labels and, where given, score maps.

    Crop and flip come first, then the policy, colour jitter, erasing and mixing. A score map goes
    through the same crop, flip, affine transforms and mixing as its image.

    Args:
        dataset: On the training device.
        order: Which samples each step takes.
        config: The augmentation.
        score_maps: Returns the teacher's maps (B, C, h, w) of samples by their position in the
            labelled split, or ``None``.
        grid: Student's token grid, which the maps are cropped to.
        mix_token: Whether a box of tokens is taken from another image in every step.
        total_steps: Steps of the whole run, of which ``progress`` is a part.
        mapped_steps: Steps that have score maps, the first ones; ``None`` is all.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Order,
        config: AugmentConfig,
        *,
        score_maps: ScoreMapReader | None = None,
        grid: tuple[int, int] = (1, 1),
        mix_token: bool = False,
        total_steps: int | None = None,
        mapped_steps: int | None = None,
    ) -> None:
        self.dataset = dataset
        self.split = dataset.splits["labelled"]
        self.order = order
        self.config = config
        self.score_maps = score_maps
        self.grid = grid
        self.mix_token = mix_token
        self.total_steps = total_steps
        self.mapped_steps = mapped_steps
        self.policy: Policy = policies.choose_autoaugment(config.policy, dataset.autoaugment)
        self.policy_draws = policies.num_draws(self.policy, config.randaugment_ops)
        self.mean, self.std = channel_tensors(dataset, order.device)
        pixels = order.own_batch_size * dataset.image_size**2
        self.block_steps = max(1, BLOCK_PIXELS // pixels)
        self._block: tuple[int, Tensor, Tensor] | None = None

    def __call__(self, step: int) -> LabeledBatch:
        """Make the batch of one step."""
        draw = self.order.draw(step)
        config, side = self.config, self.dataset.image_size
        images, draws = self._augmented(step)
        mapped = self.mapped_steps is None or step < self.mapped_steps
        maps = self._maps(draw, draws) if mapped and self.score_maps is not None else None
        share = None
        if config.mix_prob and (config.cutmix_alpha or config.mixup_alpha):
            mask = mix.sample_mask(
                self._split(draws)[3],
                cutmix_alpha=config.cutmix_alpha,
                mixup_alpha=config.mixup_alpha,
                prob=config.mix_prob,
                size=(side, side),
            )
            images = mix.blend_partner(images, mask)
            share = mask.mean(dim=(1, 2, 3), dtype=torch.float64).float()
            if maps is not None:
                maps = mix.blend_partner(maps, mix.mask_on_grid(mask, self.grid))
        return LabeledBatch(
            images=images,
            labels=self.split.labels[self.split.index[draw.position]],
            partner_share=share,
            score_maps=maps,
            mix_box=sample_token_box(self.order.seed, step, self.grid) if self.mix_token else None,
            progress=0.0 if self.total_steps is None else step / self.total_steps,
        )

    def where(self, step: int) -> geometry.Geometry:
        """Return where in its image the crop of each sample of a step lies, before the policy."""
        return self._geometry(self._augmented(step)[1])

    def _augmented(self, step: int) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B n"]]:
        """Return a step's augmented images and the uniform numbers that they were made with.

        Those of a few neighbouring steps are made together, since many small operations cost more
        than fewer large ones; no image depends on the others.
        """
        block, number = divmod(step, self.block_steps)
        if self._block is None or self._block[0] != block:
            first = block * self.block_steps
            steps = [self.order.draw(first + i) for i in range(self.block_steps)]
            position = torch.cat([draw.position for draw in steps])
            epoch = torch.cat([draw.epoch for draw in steps])
            num = FIXED_DRAWS + self.policy_draws
            draws = rng.uniform(self.order.seed, "augment", epoch, position, num)
            self._block = (block, self._augment(self.split.take(position), draws), draws)
        size = self.order.own_batch_size
        part = slice(number * size, (number + 1) * size)
        return self._block[1][part], self._block[2][part]

    def _augment(
        self, images: UInt8[Tensor, "B 3 H W"], draws: Float[Tensor, "B n"]
    ) -> Float[Tensor, "B 3 H W"]:
        config, side = self.config, self.dataset.image_size
        _, color_draws, erase_draws, *_ = self._split(draws)
        where = self._geometry(draws)
        if config.crop == "resized":
            out = augment.to_float(images)
            out = geometry.resample(out, where, (side, side), kernel="bicubic", fill="zero")
            out = out.contiguous().clamp_(0, 1)  # the kernel overshoots
        else:
            out = augment.to_float(geometry.shift(images, where, fill="zero"))
        if self.policy != "none":
            out = policies.apply_operations(out, self._operations(draws))
        augment.jitter_color_(out, color_draws, strength=config.color_jitter, prob=1.0)
        out = augment.normalize(out, self.mean, self.std)
        return augment.erase_(
            out, erase_draws, prob=config.erasing_prob, aspect=config.erasing_aspect
        )

    def _split(self, draws: Float[Tensor, "B n"]) -> tuple[Float[Tensor, "B _"], ...]:
        """Share the numbers out: crop, colours, erasing, mixing, policy."""
        return draws.split([5, 5, 5, mix.NUM_DRAWS, self.policy_draws], dim=1)

    def _operations(self, draws: Float[Tensor, "B n"]) -> policies.Operations:
        return policies.sample_operations(
            self.policy,
            self._split(draws)[4],
            num_ops=self.config.randaugment_ops,
            magnitude=self.config.randaugment_magnitude,
            image_size=self.dataset.image_size,
            rules=self.config.autoaugment_rules,
        )

    def _maps(self, draw: Draw, draws: Float[Tensor, "B n"]) -> Float[Tensor, "B C h w"]:
        """Move the score maps as their images were moved."""
        assert self.score_maps is not None
        maps = geometry.resample(
            self.score_maps(draw.position),
            self._geometry(draws),
            self.grid,
            kernel="bilinear",
            fill="edge",
        )
        moved = None if self.policy == "none" else policies.total_move(self._operations(draws))
        return maps if moved is None else geometry.warp(maps, moved, nearest=False, fill="edge")

    def _geometry(self, draws: Float[Tensor, "B n"]) -> geometry.Geometry:
        config, hflip, side = self.config, self.dataset.hflip, self.dataset.image_size
        draws = self._split(draws)[0]
        if config.crop == "resized":
            return geometry.sample_resized_crop(
                draws, scale=config.scale, ratio=config.ratio, hflip=hflip, image_size=side
            )
        padding = round(config.padding * side) if config.crop == "pad" else 0
        return geometry.sample_padded_crop(
            torch.cat([draws[:, :2], draws[:, 4:]], dim=1),
            padding_px=padding,
            image_size=side,
            hflip=hflip,
        )


def sample_token_box(seed: int, step: int, grid: tuple[int, int]) -> TokenBox:
    """Sample MixToken's box of one step on the host, by the rule of CutMix's box.

    Its area is drawn uniformly. Sides are cut to whole tokens and again to an even number of them,
    and the box is clipped at the border, so that its mean area is 0.23 of an 8 x 8 grid and 0.27 of
    a 14 x 14 one.

    Source:
        Yun et al., 2019, CutMix, https://arxiv.org/abs/1905.04899; Beta(1, 1) is uniform.
        zihangJiang/TokenLabeling@9dbfd59, tlt/models/lvvit.py:43-59, rand_bbox.
    """
    area, y, x = rng.scalar(seed, "mix_token", step, 3)
    sides = []
    for place, size in ((y, grid[0]), (x, grid[1])):
        half, center = int(size * area**0.5) // 2, int(place * size)
        sides.append((max(center - half, 0), min(center + half, size)))
    (top, bottom), (left, right) = sides
    return TokenBox(top=top, left=left, bottom=bottom, right=right, grid=grid)


def eval_batches(
    dataset: Dataset, split: Split, batch_size: int
) -> InOrder[tuple[Float[Tensor, "B 3 H W"], Int[Tensor, " B"]]]:
    """Return a split once, in order, without augmentation; the last batch may be smaller."""
    device = split.index.device
    mean, std = channel_tensors(dataset, device)

    def make(position: Tensor) -> tuple[Tensor, Tensor]:
        images = augment.normalize(augment.to_float(split.take(position)), mean, std)
        return images, split.labels[split.index[position]]

    return InOrder(make, torch.arange(len(split), device=device), batch_size)
