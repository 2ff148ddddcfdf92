"""Agreement with published code: stored values, the package itself where installed, and OpenCV's
and SciPy's operations written out.

``reference.npz`` was made with imagecorruptions-imaug 1.1.5 (OpenCV 5.0.0, scikit-image 0.26.0,
Pillow 13.0.0) by ``make_reference`` below, which is all that this file needs of it.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.ndimage import zoom as scipy_zoom

from smallvit.evaluate.corruptions import blur, digital, filters, noise, weather
from smallvit.evaluate.corruptions.draws import Draws
from smallvit.evaluate.corruptions.parameters import STRENGTHS
from smallvit.evaluate.corruptions.spatter import spatter

REFERENCE = Path(__file__).with_name("reference.npz")
SIDE = 32
# Levels by which a pixel may differ, and the part of the pixels that may differ by one level: the
# published code truncates, so whole numbers fall to either side by rounding error (with a
# disk of 29 pixels one in 29).
DETERMINISTIC = {
    "gaussian_blur": (1, 0.005),
    "defocus_blur": (1, 0.06),
    "brightness": (1, 0.05),
    "contrast": (1, 0.005),
    "saturate": (1, 0.05),
    "pixelate": (0, 0),
    "jpeg_compression": (0, 0),
}
FUNCTIONS = {
    function.__name__: function
    for function in (
        blur.gaussian_blur,
        blur.defocus_blur,
        weather.brightness,
        weather.fog,
        digital.contrast,
        digital.saturate,
        digital.pixelate,
        digital.jpeg_compression,
        noise.gaussian_noise,
        noise.speckle_noise,
        spatter,
    )
}


class GivenDraws(Draws):
    """Draws that a test states."""

    def uniform(self, what, *shape):
        return GIVEN[what].float().reshape(1, *shape)

    def normal(self, what, *shape):
        return GIVEN[what].float().reshape(1, *shape)


DRAWS = GivenDraws(seed=0, purpose="", indices=torch.zeros(1, dtype=torch.int64))


def picture() -> np.ndarray:
    """Colours that run smoothly, a dark and a bright edge, and a grey and a black patch."""
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    channels = [np.sin(7 * x + 2 * y), np.cos(5 * y - 3 * x), np.sin(9 * x * y + 1)]
    pixels = (127.5 + 110 * np.stack(channels, axis=2)).astype(np.uint8)
    pixels[4:9, 4:12] = 90
    pixels[20:23, 5:30] = (250, 240, 200)
    pixels[25:30, 20:26] = 0
    return pixels


def numbers(count: int) -> np.ndarray:
    """Numbers in [0, 1) without a generator: the golden ratio's multiples."""
    return np.arange(1, count + 1) * 0.6180339887498949 % 1


def normals(count: int) -> np.ndarray:
    """Numbers of about the standard normal distribution: sums of twelve, less six."""
    scattered = np.sin(np.arange(1.0, 12 * count + 1) * 12.9898) * 43758.5453 % 1
    return scattered.reshape(count, 12).sum(axis=1) - 6


GIVEN = {
    "noise": torch.from_numpy(normals(3 * SIDE**2).reshape(SIDE, SIDE, 3).transpose(2, 0, 1)),
    "drops": torch.from_numpy(normals(SIDE**2)),
    "cloud": torch.from_numpy(numbers(SIDE**2 - 1)),
}


def make_reference(package) -> dict[str, np.ndarray]:
    """Run the published code with ImageNet-C's strengths, which it has, and our draws."""
    made, image = {}, Image.fromarray(picture())
    for name in DETERMINISTIC:
        for severity in (1, 5):
            made[f"{name}/{severity}"] = np.uint8(getattr(package, name)(image, severity))
    patch = pytest.MonkeyPatch()
    noise_of = {
        SIDE * SIDE * 3: normals(3 * SIDE**2).reshape(SIDE, SIDE, 3),
        SIDE * SIDE: normals(SIDE**2).reshape(SIDE, SIDE),
    }
    patch.setattr(
        np.random, "normal", lambda loc=0, scale=1, size=(): loc + scale * noise_of[np.prod(size)]
    )
    for name, severity in (("gaussian_noise", 1), ("speckle_noise", 3)):
        made[f"{name}/{severity}"] = np.uint8(getattr(package, name)(image, severity))
    for severity in (3, 4):
        made[f"spatter/{severity}"] = np.uint8(package.spatter(image, severity))
    used = 0

    def uniform(low, high, shape):
        nonlocal used
        used += np.prod(shape)
        part = numbers(SIDE**2 - 1)[used - np.prod(shape) : used]
        return low + (high - low) * np.float32(part).astype(float).reshape(shape)

    patch.setattr(np.random, "uniform", uniform)
    made["fog/2"] = np.uint8(package.fog(image, 2))
    patch.undo()
    kept = {key: value[::2, ::2] for key, value in made.items()}
    kept["line"] = package._motion_blur(picture(), 6, 2, 30)[::2, ::2].astype(np.float32)
    return kept


def ours(name: str, severity: int) -> np.ndarray:
    images = torch.from_numpy(picture()).permute(2, 0, 1)[None]
    levels = FUNCTIONS[name](images, STRENGTHS["imagenet"][name][severity - 1], DRAWS)
    if levels.is_floating_point():
        levels = (levels + blur.ROUNDING).clamp(0, 255)
    return levels[0].to(torch.uint8).permute(1, 2, 0)[::2, ::2].numpy().astype(int)


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(REFERENCE) as stored:
        return dict(stored)


def check(name: str, severity: int, reference: dict[str, np.ndarray]) -> None:
    difference = np.abs(ours(name, severity) - reference[f"{name}/{severity}"].astype(int))
    most, part = DETERMINISTIC.get(name, (1, 0.02))
    assert difference.max() <= most
    assert (difference > 0).mean() <= part


CASES = [(name, severity) for name in DETERMINISTIC for severity in (1, 5)] + [
    ("gaussian_noise", 1),
    ("speckle_noise", 3),
    ("spatter", 3),
    ("spatter", 4),
    ("fog", 2),
]


@pytest.mark.parametrize(("name", "severity"), CASES)
def test_agrees_with_stored_values_of_the_published_code(name, severity, reference):
    check(name, severity, reference)


@pytest.mark.filterwarnings("ignore")
def test_agrees_with_the_published_code_where_it_is_installed():
    package = pytest.importorskip("imagecorruptions.corruptions", exc_type=ImportError)
    made = make_reference(package)
    for name, severity in CASES:
        check(name, severity, made)


def test_a_line_blur_is_that_of_the_published_code(reference):
    images = torch.from_numpy(picture()).permute(2, 0, 1)[None].double()
    blurred = filters.blur_along_line(images, torch.tensor([30.0]), radius=6, sigma=2)
    found = blurred[0].permute(1, 2, 0)[::2, ::2].numpy()
    np.testing.assert_allclose(found, reference["line"], atol=0.01)


@pytest.mark.parametrize(("size", "factor"), [(32, 1.06), (32, 2.25), (33, 1.75), (8, 1.25)])
def test_zoom_is_the_clipped_zoom_of_scipy(size, factor):
    pixels = np.random.default_rng(0).random((size, size))
    cut = int(np.ceil(size / factor))
    start = (size - cut) // 2
    large = scipy_zoom(pixels[start : start + cut, start : start + cut], factor, order=1)
    trim = (len(large) - size) // 2
    found = filters.zoom(torch.from_numpy(pixels), factor)
    np.testing.assert_allclose(
        found.numpy(), large[trim : trim + size, trim : trim + size], atol=1e-9
    )


@pytest.mark.parametrize("sigma", [0.4, 1.5, 12.0])
@pytest.mark.parametrize(("border", "mode"), [("edge", "nearest"), ("reflect", "reflect")])
def test_smooth_is_the_gaussian_filter_of_scipy(sigma, border, mode):
    pixels = np.random.default_rng(0).random((2, 12, 9))
    found = filters.smooth(torch.from_numpy(pixels), sigma, truncate=3, border=border)
    wanted = gaussian_filter(pixels, (0, sigma, sigma), mode=mode, truncate=3)
    np.testing.assert_allclose(found.numpy(), wanted, atol=1e-12)


def test_displacement_reads_as_map_coordinates_does():
    generator = np.random.default_rng(0)
    pixels, field = generator.random((10, 10)), generator.uniform(-4, 4, (2, 10, 10))
    y, x = np.mgrid[:10, :10]
    wanted = map_coordinates(pixels, (y + field[1], x + field[0]), order=1, mode="reflect")
    images = torch.from_numpy(pixels).expand(1, 3, 10, 10)
    found = digital.displace(images, torch.from_numpy(field)[None])
    np.testing.assert_allclose(found[0, 1].numpy(), wanted, atol=1e-9)


def test_a_shear_maps_the_three_corners_to_their_new_places():
    """Closed form: bright corners of the square land where they are moved, whole pixels here."""
    images = torch.zeros(1, 3, 24, 24, dtype=torch.float64)
    corners = {(20, 20): (2, 1), (20, 4): (-3, 2), (4, 4): (1, 3)}  # x, y: moved right, down
    for x, y in corners:
        images[..., y, x] = 100
    moves = torch.tensor([list(corners.values())], dtype=torch.float64)
    sheared = digital.shear(images, moves)
    for (x, y), (right, down) in corners.items():
        torch.testing.assert_close(sheared[0, 0, y + down, x + right].item(), 100.0)


def test_no_shear_and_no_displacement_leave_the_image():
    images = torch.from_numpy(picture()).permute(2, 0, 1)[None].double()
    torch.testing.assert_close(digital.shear(images, torch.zeros(1, 3, 2).double()), images)
    torch.testing.assert_close(digital.displace(images, torch.zeros(1, 2, 32, 32).double()), images)


@pytest.mark.parametrize("reach", [1, 2, 3])
def test_glass_copies_pixels_as_the_published_loop_does(reach):
    height, width = 9, 11
    shift = np.random.default_rng(reach).integers(-reach, reach, (2, height, width))
    wanted = np.arange(height * width).reshape(height, width)
    for row in range(height - reach, reach, -1):
        for column in range(width - reach, reach, -1):
            right, down = shift[:, row, column]
            # x[a], x[b] = x[b], x[a] on views of an array: the first assignment changes both.
            wanted[row, column] = wanted[row + down, column + right]
    found = blur.glass_sources(
        torch.from_numpy(shift.reshape(1, 2, -1)), (height, width), reach=reach
    )
    assert found[0].tolist() == wanted.flatten().tolist()


def test_numpy_copies_where_the_published_loop_seems_to_swap():
    """The premise of ``glass_sources``."""
    x = np.array([[1, 1, 1], [2, 2, 2]])
    x[0], x[1] = x[1], x[0]
    assert x.tolist() == [[2, 2, 2], [2, 2, 2]]


def test_shot_noise_is_poisson():
    """The quantile at u is the count whose distribution function first exceeds u."""
    from scipy.stats import poisson

    uniform = torch.from_numpy(numbers(3 * 16).reshape(1, 3, 4, 4)).float()
    for photons in (3, 60, 500):
        images = (torch.arange(48) * 16 % 256).to(torch.uint8).reshape(1, 3, 4, 4)
        mean = images.double().numpy() / 255 * photons
        wanted = np.minimum(poisson.ppf(uniform.double().numpy(), mean), photons)
        found = noise.poisson(images, uniform, photons)
        # ppf is -1 at a mean of 0 and a probability of 0 alone.
        np.testing.assert_array_equal(found.numpy(), np.maximum(wanted, 0))
