"""What an image becomes does not depend, to the last bit, on the images computed with it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from smallvit.data import augment, geometry, policies

pytestmark = pytest.mark.exact

NUM = 24
CHUNKS = (1, 2, 5, 23)
SIDES = (8, 11, 14, 16, 28, 32, 37, 64)
Change = Callable[[Tensor, Tensor], Tensor]


def boxes(draws: Tensor, side: int) -> geometry.Geometry:
    five = torch.stack([draws, *((draws * factor) % 1 for factor in (7, 13, 17, 23))], dim=1)
    return geometry.sample_resized_crop(
        five, scale=(0.2, 1.0), ratio=(0.75, 4 / 3), hflip=True, image_size=side
    )


def resampled(size: int, kernel: geometry.Kernel, fill: geometry.Fill = "zero") -> Change:
    return lambda images, draws: geometry.resample(
        images, boxes(draws, images.shape[-1]), (size, size), kernel=kernel, fill=fill
    )


def warped(*, nearest: bool) -> Change:
    def change(images: Tensor, draws: Tensor) -> Tensor:
        rotate, shear = (torch.full_like(draws, policies.CODE[n]) for n in ("rotate", "shear_x"))
        turn = policies.affine_of(rotate.long(), 60 * draws - 30)
        move = geometry.compose(turn, policies.affine_of(shear.long(), draws - 0.5))
        fill = "zero" if nearest else "edge"
        return geometry.warp(images, move, nearest=nearest, fill=fill)

    return change


def jittered(images: Tensor, draws: Tensor) -> Tensor:
    five = torch.stack([draws, *((draws * factor) % 1 for factor in (7, 13, 17, 23))], dim=1)
    return augment.jitter_color_(images, five, strength=(0.4, 0.4, 0.4, 0.1), prob=0.8)


def erased(images: Tensor, draws: Tensor) -> Tensor:
    five = torch.stack([draws, *((draws * factor) % 1 for factor in (7, 13, 17, 23))], dim=1)
    return augment.erase_(images, five, prob=0.8)


CHANGES: dict[str, Change] = {
    **{
        f"policy {name}": lambda images, draws, change=change, name=name: change(
            images, (8 * draws).round() if name == "posterize" else draws
        )
        for name, change in policies.CHANGES.items()
    },
    "contrast": lambda images, draws: augment.adjust_contrast_(images, 2 * draws),
    "hue": lambda images, draws: augment.turn_hue(images, draws - 0.5),
    "blur": lambda images, draws: augment.blur(images, 0.1 + 2 * draws),
    "jitter": jittered,
    "erasing": erased,
    "crop": resampled(16, "bicubic"),
    "crop to 7": resampled(7, "bilinear"),
    "crop to 20": resampled(20, "bicubic"),
    "score map to 8": resampled(8, "bilinear", "edge"),
    "score map to 7": resampled(7, "bilinear", "edge"),
    "nearest warp": warped(nearest=True),
    "bilinear warp": warped(nearest=False),
}


def drawn(side: int, *, levels: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(side)
    images = torch.rand(NUM, 3, side, side, generator=generator)
    if levels:
        images = (images * 255).round_() / 255
    return images, torch.rand(NUM, generator=generator)


@pytest.mark.parametrize("levels", [True, False], ids=["bytes", "floats"])
@pytest.mark.parametrize("name", CHANGES)
def test_an_operation_gives_an_image_the_same_bits_in_any_batch(name, levels):
    for side in SIDES:
        images, draws = drawn(side, levels=levels)
        whole = CHANGES[name](images.clone(), draws)
        for size in CHUNKS:
            parts = [
                CHANGES[name](part.clone(), values)
                for part, values in zip(images.split(size), draws.split(size), strict=True)
            ]
            assert torch.equal(torch.cat(parts), whole), (side, size)


@pytest.mark.parametrize("name", ["contrast", "policy contrast", "jitter"])
def test_the_mean_luminance_has_the_same_bits_in_any_memory_layout(name):
    for side in SIDES:
        images, draws = drawn(side, levels=False)
        whole = CHANGES[name](images.clone(), draws)
        rows_first = images.transpose(1, 2).contiguous().transpose(1, 2)
        channels_last = images.clone(memory_format=torch.channels_last)
        assert torch.equal(CHANGES[name](rows_first, draws), whole), side
        assert torch.equal(CHANGES[name](channels_last, draws), whole), side


@pytest.mark.parametrize("sides", [(7, 14, 42), (33, 11, 11), (21, 14, 7), (32, 32, 96), (1, 1, 1)])
def test_products_in_pairs_are_those_of_float64_and_the_same_in_any_batch(sides):
    rows, inner, columns = sides
    generator = torch.Generator().manual_seed(0)
    left = torch.rand(NUM, rows, inner, generator=generator)
    right = torch.rand(NUM, inner, columns, generator=generator)
    whole = geometry.products(left, right)
    torch.testing.assert_close(whole, (left.double() @ right.double()).float())
    for size in CHUNKS:
        pairs = zip(left.split(size), right.split(size), strict=True)
        assert torch.equal(torch.cat([geometry.products(a, b) for a, b in pairs]), whole)
