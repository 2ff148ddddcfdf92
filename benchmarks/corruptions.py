"""Corruptions: batched on the device against one image at a time.

First the corruption work of a robustness score: 10,000 images of 32 px under 15 corruptions at 5
severities, with the strengths of CIFAR-10-C; seconds a type and in all, extrapolated from fewer
images unless ``--full`` is given. Then the speed against per-image code with the same strengths,
those of ImageNet-C, on the same images, timed alternately: the package imagecorruptions-imaug where
it is installed, else NumPy, SciPy and PIL for the types that take a few lines. A figure of the
comparison is the median of the rounds; both are summed over types and severities. Ours runs in the
machine's threads; the per-image code has one, and so has none to wait for.

    python benchmarks/corruptions.py [--quick] [--full] [--data FOLDER]
"""

import argparse
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.ndimage import zoom as scipy_zoom
from torch import Tensor

from smallvit.core.run_folder import environment
from smallvit.data.files.images import open_image, to_rgb
from smallvit.data.files.sources import find_files
from smallvit.engine.config import RuntimeConfig
from smallvit.engine.runtime import open_runtime
from smallvit.evaluate.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from smallvit.evaluate.corruptions.parameters import LARGEST_SIDE, STRENGTHS, Strength

SIDE, TEST_IMAGES, LIMIT_S = 32, 10_000, 600
BATCH = 1000
PACKAGE = "imagecorruptions"

PerImage = Callable[[Image.Image, int], object]


def make_images(count: int) -> Tensor:
    """Make smooth images with some noise: their histograms are nearer photographs' than noise's."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 6, 6, generator=generator)
    smooth = F.interpolate(coarse, SIDE, mode="bicubic")
    noise = 0.05 * torch.randn(count, 3, SIDE, SIDE, generator=generator)
    return ((smooth + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def read_images(folder: Path, count: int) -> Tensor:
    """Read the first images of a folder."""
    files = find_files(folder)[:count]
    pixels = np.stack([to_rgb(open_image(folder / file.name), SIDE) for file in files])
    return torch.from_numpy(pixels)


def noise_of(x: np.ndarray, strength: Strength) -> np.ndarray:
    """Gaussian noise, the usual way."""
    return x + np.random.default_rng().normal(scale=strength[0], size=x.shape)


def shots_of(x: np.ndarray, strength: Strength) -> np.ndarray:
    """Shot noise, the usual way."""
    return np.random.default_rng().poisson(x * strength[0]) / strength[0]


def impulses_of(x: np.ndarray, strength: Strength) -> np.ndarray:
    """Impulse noise, the usual way."""
    generator = np.random.default_rng()
    hit, white = generator.random(x.shape) < strength[0], generator.random(x.shape) < 0.5
    return np.where(hit, white, x)


def contrast_of(x: np.ndarray, strength: Strength) -> np.ndarray:
    """Contrast, the usual way."""
    mean = x.mean(axis=(0, 1))
    return (x - mean) * strength[0] + mean


def glass_of(x: np.ndarray, strength: Strength) -> np.ndarray:
    """Glass blur, the usual way: a loop over pixels."""
    sigma, reach, rounds = strength[0], int(strength[1]), int(strength[2])
    x = gaussian_filter(x, (sigma, sigma, 0), mode="nearest")
    generator = np.random.default_rng()
    for _ in range(rounds):
        shift = generator.integers(-reach, reach, (2, SIDE, SIDE)).tolist()
        for row in range(SIDE - reach, reach, -1):
            for column in range(SIDE - reach, reach, -1):
                right, down = shift[0][row - 1][column - 1], shift[1][row - 1][column - 1]
                x[row, column] = x[row + down, column + right]
    return gaussian_filter(x, (sigma, sigma, 0), mode="nearest")


def zooms_of(x: np.ndarray, strength: Strength) -> np.ndarray:
    """Zoom blur, the usual way."""
    factors = np.arange(1, *strength)
    total = x.copy()
    for factor in factors:
        cut = int(np.ceil(SIDE / factor))
        start = (SIDE - cut) // 2
        part = x[start : start + cut, start : start + cut]
        total += scipy_zoom(part, (factor, factor, 1), order=1)[:SIDE, :SIDE]
    return total / (len(factors) + 1)


def jpeg_of(image: Image.Image, severity: int) -> np.ndarray:
    """Encode and decode, the usual way."""
    file = BytesIO()
    image.save(
        file, "JPEG", quality=int(STRENGTHS["imagenet"]["jpeg_compression"][severity - 1][0])
    )
    return np.asarray(Image.open(file))


def pixels_of(image: Image.Image, severity: int) -> np.ndarray:
    """Shrink and enlarge, the usual way."""
    side = int(SIDE * STRENGTHS["imagenet"]["pixelate"][severity - 1][0])
    small = image.resize((side, side), Image.Resampling.BOX)
    return np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BOX))


def on_bytes(name: str, function: Callable[[np.ndarray, Strength], np.ndarray]) -> PerImage:
    """Wrap a function of values in [0, 1] as one of an image and a severity."""

    def change(image: Image.Image, severity: int) -> np.ndarray:
        changed = function(np.asarray(image) / 255, STRENGTHS["imagenet"][name][severity - 1])
        return (np.clip(changed, 0, 1) * 255).astype(np.uint8)

    return change


def references() -> tuple[str, dict[str, PerImage]]:
    """Return the name of the per-image code and its functions."""
    if importlib.util.find_spec(PACKAGE):
        module = importlib.import_module(f"{PACKAGE}.corruptions")
        functions = {name: getattr(module, name) for name in CORRUPTIONS}
        return "imagecorruptions-imaug", {
            name: lambda image, severity, function=function: np.uint8(function(image, severity))
            for name, function in functions.items()
        }
    simple = {
        "gaussian_noise": noise_of,
        "shot_noise": shots_of,
        "impulse_noise": impulses_of,
        "glass_blur": glass_of,
        "zoom_blur": zooms_of,
        "contrast": contrast_of,
    }
    functions = {name: on_bytes(name, function) for name, function in simple.items()}
    functions |= {"jpeg_compression": jpeg_of, "pixelate": pixels_of}
    return "NumPy, SciPy and PIL", functions


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that ``work`` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def corrupt_all(images: Tensor, name: str, severity: int) -> None:
    """Corrupt images in batches, as a score does."""
    for first, batch in zip(range(0, len(images), BATCH), images.split(BATCH), strict=True):
        indices = torch.arange(first, first + len(batch), device=images.device)
        corrupt(batch, name, severity, seed=0, indices=indices)
    if images.is_cuda:
        torch.cuda.synchronize()


def time_types(images: Tensor) -> dict[str, float]:
    """Return the seconds of each corruption for 10,000 images at the five severities."""
    seconds = {}
    for name in CORRUPTIONS:
        for severity in SEVERITIES:  # builds the tables
            corrupt_all(images[:2], name, severity)
        spent = sum(timed(lambda s=s, n=name: corrupt_all(images, n, s)) for s in SEVERITIES)
        seconds[name] = spent * TEST_IMAGES / len(images)
    return seconds


def compare(images: Tensor, functions: dict[str, PerImage], few: int, rounds: int) -> list[float]:
    """Return images a second of ours and of the per-image code, over types and severities."""
    pixels = images[:few].permute(0, 2, 3, 1).contiguous().numpy()
    pictures = [Image.fromarray(image) for image in pixels]
    ours, reference = 0.0, 0.0

    def one_by_one(function: PerImage, severity: int) -> None:
        for picture in pictures:
            function(picture, severity)

    with patch.dict(LARGEST_SIDE, clear=True):  # ImageNet-C's strengths at any size
        for name, function in functions.items():
            for severity in SEVERITIES:
                one_by_one(function, severity)  # compiles what numba compiles
                corrupt_all(images[:2], name, severity)
                pairs = [
                    (
                        timed(lambda s=severity, n=name: corrupt_all(images, n, s)) / len(images),
                        timed(lambda s=severity, f=function: one_by_one(f, s)) / few,
                    )
                    for _ in range(rounds)
                ]
                ours += statistics.median(pair[0] for pair in pairs)
                reference += statistics.median(pair[1] for pair in pairs)
    cells = len(functions) * len(SEVERITIES)
    return [cells / ours, cells / reference]


def main() -> None:
    """Time the corruptions and print the ratios as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer images and one round")
    parser.add_argument("--full", action="store_true", help="all 10,000 images in all 75 cells")
    parser.add_argument("--data", type=Path, help="folder of images; made images without")
    arguments = parser.parse_args()
    count = TEST_IMAGES if arguments.full else 256 if arguments.quick else 1000
    few, rounds = (2, 1) if arguments.quick else (20, 3)
    images = read_images(arguments.data, count) if arguments.data else make_images(count)
    open_runtime(RuntimeConfig(device="cpu"))  # as a run sets the machine up
    threads = torch.get_num_threads()
    seconds = time_types(images)
    total = sum(seconds.values())
    how = "measured" if arguments.full else f"extrapolated from {len(images)}"
    for name, spent in seconds.items():
        print(f"{name}: {spent:.1f} s for 10,000 images x 5 severities")
    print(f"10,000 images x 75 cells: {total:.0f} s in {threads} threads, {how}")
    label, functions = references()
    fast, slow = compare(images[:BATCH], functions, few, rounds)
    print(
        f"{fast:,.0f} against {slow:,.0f} images/s of {label}, one image at a time "
        f"({', '.join(functions)}; {rounds} rounds)"
    )
    gpu = {}
    if torch.cuda.is_available():
        gpu = {"gpu": round(sum(time_types(images.cuda()).values()), 1)}
        print(f"on the GPU: {gpu['gpu']} s")
    env = environment([])
    about = {"machine": env["machine"], "commit": env["commit"]}
    print(
        json.dumps(
            [
                {
                    "claim": f"corruption work of 10,000 images of 32 px x 75 cells, {how}, "
                    "against the most it may take",
                    "ours": round(total, 1),
                    "reference": LIMIT_S,
                    "ratio": round(total / LIMIT_S, 3),
                    "unit": "s",
                    **gpu,
                    **about,
                },
                {
                    "claim": f"corruptions in batches against {label} image by image",
                    "ours": round(fast, 1),
                    "reference": round(slow, 1),
                    "ratio": round(fast / slow, 2),
                    "unit": "images/s",
                    **about,
                },
            ]
        )
    )


if __name__ == "__main__":
    main()
