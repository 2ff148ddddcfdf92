from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def draw_shape(
    generator: np.random.Generator, side: int, *, disc: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return noise with a bright disc or a dark square on it, and its mask."""
    y, x = np.mgrid[:side, :side]
    top, left = generator.uniform(0.3, 0.7, 2) * side
    radius = 0.28 * side
    pixels = generator.normal(120, 20, (side, side, 3))
    mask = np.zeros((side, side), dtype=np.uint8)
    if disc:
        inside = (y - top) ** 2 + (x - left) ** 2 < radius**2
        pixels[inside] += 90
        mask[inside] = 1
    else:
        inside = np.maximum(abs(y - top), abs(x - left)) < radius
        pixels[inside] -= 90
        mask[inside] = 2
    return pixels.clip(0, 255).astype(np.uint8), mask


@pytest.fixture
def shapes(tmp_path: Path) -> Callable[..., Path]:
    """Write a folder of made shapes with their masks."""

    def write(counts: Mapping[str, int], *, side: int = 16, name: str = "shapes") -> Path:
        generator = np.random.default_rng(0)
        for split, count in counts.items():
            for kind in ("images", "masks"):
                (tmp_path / name / kind / split).mkdir(parents=True)
            for i in range(count):
                pixels, mask = draw_shape(generator, side, disc=i % 2 == 0)
                Image.fromarray(pixels).save(tmp_path / name / "images" / split / f"{i}.png")
                Image.fromarray(mask).save(tmp_path / name / "masks" / split / f"{i}.png")
        return tmp_path / name

    return write
