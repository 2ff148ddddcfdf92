import math

import pytest
import torch
from PIL import ImageEnhance, ImageOps
from PIL.Image import Resampling, Transform
from torchvision.transforms import v2
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.transforms.v2 import InterpolationMode

from smallvit.data import augment, geometry, policies
from smallvit.data.policies import CODE, GEOMETRIC, OPERATIONS, Operations

pytestmark = pytest.mark.exact

THEIRS = {
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "autocontrast": "AutoContrast",
}


def photographs(size: int = 32) -> torch.Tensor:
    """Bytes: noise, smooth colours, a dark image, an even one."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, 3, size, size), generator=generator).float()
    coarse = torch.rand(3, 3, 5, 5, generator=generator) * 255
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 255)
    even = torch.full((1, 3, size, size), 90.0)
    return torch.cat([pixels, smooth, smooth[:1] / 4, even]).round().to(torch.uint8)


def apply(name: str, magnitude: float, images: torch.Tensor) -> torch.Tensor:
    operations = Operations(
        code=torch.full((len(images), 1), CODE[name]),
        magnitude=torch.full((len(images), 1), float(magnitude)),
        possible=(name,),
    )
    return (policies.apply_operations(images.float() / 255, operations) * 255).round()


def torchvision(name: str, magnitude: float, images: torch.Tensor) -> torch.Tensor:
    """What torchvision's v2 policies do to bytes."""
    fill = {torch.Tensor: None}
    op, nearest = THEIRS.get(name, name.title()), InterpolationMode.NEAREST
    policy = v2.AutoAugment()
    done = [
        policy._apply_image_or_video_transform(image, op, magnitude, nearest, fill)
        for image in images
    ]
    return torch.stack(done).float()


# One level, where torchvision rounds down and this does not; two for colour, where torchvision
# rounds down twice.
@pytest.mark.parametrize(
    ("name", "magnitude", "tolerance"),
    [
        ("brightness", 0.5, 1),
        ("brightness", -0.9, 1),
        ("color", 0.72, 2),
        ("color", -0.9, 2),
        ("contrast", 0.5, 1),
        ("contrast", -0.9, 1),
        ("sharpness", 0.9, 1),
        ("sharpness", -0.6, 1),
        ("posterize", 8, 0),
        ("posterize", 5, 0),
        ("posterize", 2, 0),
        ("autocontrast", 0, 1),
        ("equalize", 0, 0),
        ("invert", 0, 0),
        ("identity", 0, 0),
    ],
)
def test_colour_operations_equal_torchvision_within_a_level(name, magnitude, tolerance):
    images = photographs()
    off = (apply(name, magnitude, images) - torchvision(name, magnitude, images)).abs()
    assert off.max() <= tolerance
    if name not in ("identity", "invert") and magnitude != 8:
        assert (apply(name, magnitude, images) - images).abs().max() > 3


@pytest.mark.parametrize("level", [255.0, 226.67, 128.0, 28.33, 0.0])
def test_solarize_equals_torchvision(level):
    images = photographs()
    expected = torchvision("solarize", level / 255, images)
    assert torch.equal(apply("solarize", level, images), expected)


@pytest.mark.parametrize(
    ("name", "magnitude"),
    [
        ("shear_x", 0.3),
        ("shear_x", -0.21),
        ("shear_x", 0.99),
        ("shear_y", 0.27),
        ("shear_y", -0.13),
        ("translate_x", 9.0),
        ("translate_x", -4.0),
        ("translate_y", 14.0),
        ("translate_y", -1.0),
        ("rotate", 30.0),
        ("rotate", -13.0),
        ("rotate", 135.0),
    ],
)
def test_geometric_operations_equal_torchvision(name, magnitude):
    images = photographs()
    ours = magnitude / 32 if name.startswith("translate") else magnitude
    found, expected = apply(name, ours, images), torchvision(name, magnitude, images)
    # A source half-way between two pixels may fall to either.
    assert (found != expected).float().mean() < 0.01
    assert (found != images).float().mean() > 0.05


def test_equalize_of_an_even_or_two_level_image_leaves_what_pil_leaves():
    even = torch.full((1, 3, 8, 8), 90, dtype=torch.uint8)
    two = even.clone()
    two[..., 0] = 40
    images = torch.cat([even, two])
    assert torch.equal(apply("equalize", 0, images), torchvision("equalize", 0, images))


def test_images_too_small_for_sharpness_stay_as_they_are():
    images = torch.rand(1, 3, 2, 5)
    assert torch.equal(augment.adjust_sharpness(images, torch.tensor([0.1])), images)


def torchvision_magnitude(policy: type, name: str, bins: int, i: int) -> tuple[float, bool]:
    """Size of an operation in bin ``i`` of images of 32 px, in our unit, and if it has a sign."""
    magnitudes, signed = policy._AUGMENTATION_SPACE[THEIRS.get(name, name.title())]
    size = float(magnitudes(bins, 32, 32).expand(bins)[i])
    if name.startswith("translate"):
        size = int(size) / 32
    return size * 255 if name == "solarize" else size, signed


@pytest.mark.parametrize("name", ["cifar10", "svhn", "imagenet"])
def test_autoaugment_tables_are_torchvisions(name):
    expected = v2.AutoAugment(v2.AutoAugmentPolicy(name))._policies
    assert len(expected) == 25
    for row, pair in enumerate(expected):
        prob = torch.tensor([operation[1] for operation in pair])
        chosen, positive = torch.tensor([(row + 0.5) / 25]), torch.ones(2)
        draws = torch.stack([torch.cat([chosen, prob + d, positive]) for d in (-1e-4, 1e-4)])
        found = policies.sample_operations(
            f"autoaugment-{name}", draws, num_ops=2, magnitude=0, image_size=32
        )
        for slot, (operation, prob, bins) in enumerate(pair):
            done, left_out = (OPERATIONS[code] for code in found.code[:, slot])
            assert left_out == "identity"
            if prob:
                assert THEIRS.get(done, done.title()) == operation
            if prob and bins is not None:
                size, _ = torchvision_magnitude(v2.AutoAugment, done, 10, bins)
                assert found.magnitude[0, slot].item() == pytest.approx(size)


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_magnitudes_are_torchvisions(policy):
    theirs = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}[policy]
    num = len(theirs._AUGMENTATION_SPACE)
    for i in range(31):
        bins = [(i + 0.5) / 31] if policy == "trivialaugment" else []
        draws = torch.tensor(
            [[(k + 0.5) / num, *bins, sign] for k in range(num) for sign in (1, 0)]
        )
        found = policies.sample_operations(policy, draws, num_ops=1, magnitude=i, image_size=32)
        names = [OPERATIONS[code] for code in found.code[::2, 0]]
        assert {THEIRS.get(name, name.title()) for name in names} == set(theirs._AUGMENTATION_SPACE)
        for name, (plus, minus) in zip(names, found.magnitude.view(num, 2).tolist(), strict=True):
            if name in ("identity", "autocontrast", "equalize"):
                continue  # which have no size
            size, signed = torchvision_magnitude(theirs, name, 31, i)
            assert (plus, minus) == pytest.approx((size, -size if signed else size))


def test_autoaugment_applies_each_operation_with_its_probability():
    draws = torch.rand(50_000, 5, generator=torch.Generator().manual_seed(0))
    found = policies.sample_operations(
        "autoaugment-cifar10", draws, num_ops=2, magnitude=0, image_size=32
    )
    table = v2.AutoAugment(v2.AutoAugmentPolicy("cifar10"))._policies
    for name in ("equalize", "translate_y", "invert"):
        theirs = THEIRS.get(name, name.title())
        expected = sum(prob for pair in table for other, prob, _ in pair if other == theirs) / 25
        assert (found.code == CODE[name]).sum() / 50_000 == pytest.approx(expected, abs=0.01)
    signed = found.magnitude[found.code == CODE["translate_y"]]
    assert (signed < 0).float().mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(("policy", "slots"), [("randaugment", 3), ("trivialaugment", 1)])
def test_operations_are_drawn_evenly(policy, slots):
    draws = torch.rand(
        20_000, policies.num_draws(policy, 3), generator=torch.Generator().manual_seed(0)
    )
    found = policies.sample_operations(policy, draws, num_ops=3, magnitude=30, image_size=32)
    assert found.code.shape == (20_000, slots)
    share = torch.bincount(found.code.flatten(), minlength=14) / found.code.numel()
    assert share[:14].min() > 1 / 14 - 0.01
    assert share[14:].sum() == 0


def test_randaugment_has_one_magnitude_and_trivialaugment_all_of_them():
    draws = torch.rand(2000, 6, generator=torch.Generator().manual_seed(0))
    rand = policies.sample_operations("randaugment", draws, num_ops=3, magnitude=30, image_size=32)
    rotations = rand.magnitude[rand.code == CODE["rotate"]].abs().unique()
    torch.testing.assert_close(rotations, torch.tensor([30.0]))
    trivial = policies.sample_operations(
        "trivialaugment", draws[:, :3], num_ops=1, magnitude=0, image_size=32
    )
    rotations = trivial.magnitude[trivial.code == CODE["rotate"]].abs().unique()
    assert len(rotations) > 25
    assert rotations.max() <= 135


def test_three_augment_is_grey_solarized_or_blurred():
    draws = torch.rand(3000, 2, generator=torch.Generator().manual_seed(0))
    found = policies.sample_operations("3-augment", draws, num_ops=1, magnitude=0, image_size=32)
    for name in ("grey", "solarize", "blur"):
        share = (found.code == CODE[name]).float().mean().item()
        assert share == pytest.approx(1 / 3, abs=0.03)
    sigma = found.magnitude[found.code == CODE["blur"]]
    assert 0.1 <= sigma.min() < 0.2
    assert 1.9 < sigma.max() <= 2.0


def test_one_image_a_time_gives_what_the_batch_gave():
    images = photographs().float() / 255
    draws = torch.rand(len(images), 6, generator=torch.Generator().manual_seed(1))
    settings = {"num_ops": 3, "magnitude": 12, "image_size": 32}
    together = policies.apply_operations(
        images.clone(), policies.sample_operations("randaugment", draws, **settings)
    )
    for i in range(len(images)):
        operations = policies.sample_operations("randaugment", draws[i : i + 1], **settings)
        alone = policies.apply_operations(images[i : i + 1].clone(), operations)
        torch.testing.assert_close(alone[0], together[i])


def test_computing_all_images_gives_what_computing_the_chosen_ones_gives():
    images = photographs().float() / 255
    code = torch.tensor([CODE[name] for name in ("rotate", "equalize", "identity", "invert")])
    code = code.repeat(2)[: len(images)]
    value = torch.full((len(images),), 20.0)
    operations = Operations(code=code[:, None], magnitude=value[:, None], possible=OPERATIONS)
    drawn, everything = policies.apply_operations(images.clone(), operations), images.clone()
    policies.apply_to_all_(
        everything, code, value, ("rotate", "equalize", "identity", "invert"), "torchvision"
    )
    torch.testing.assert_close(drawn, everything)


def test_two_moves_come_to_one_transform():
    operations = Operations(
        code=torch.tensor([[CODE["translate_x"], CODE["rotate"]]]),
        magnitude=torch.tensor([[0.25, 90.0]]),
        possible=("identity", *GEOMETRIC),
    )
    spot = torch.zeros(1, 3, 8, 8)
    spot[..., 2:4, 1:3] = 1
    moved = policies.total_move(operations)
    images = policies.apply_operations(spot.clone(), operations)
    assert moved is not None
    torch.testing.assert_close(geometry.warp(spot, moved, nearest=True, fill="zero"), images)
    assert images.sum() == spot.sum()
    assert not torch.equal(images, spot)


def test_without_geometric_operations_nothing_moves():
    draws = torch.rand(4, 2, generator=torch.Generator().manual_seed(0))
    operations = policies.sample_operations(
        "3-augment", draws, num_ops=1, magnitude=0, image_size=32
    )
    assert policies.total_move(operations) is None


# -- The rules of DeepVoltaire's AutoAugment


def pil(name: str, magnitude: float, image: torch.Tensor) -> torch.Tensor:
    """What hananshafi/vits-for-small-scale-datasets@43a7493, utils/transforms.py, does in PIL."""
    picture, grey = to_pil_image(image), (128, 128, 128)
    size, (width, height) = picture.size, picture.size
    match name:
        case "shear_x" | "shear_y":
            across = name == "shear_x"
            affine = (1, magnitude * across, 0, magnitude * (not across), 1, 0)
            done = picture.transform(
                size, Transform.AFFINE, affine, Resampling.BICUBIC, fillcolor=grey
            )
        case "translate_x" | "translate_y":
            across = name == "translate_x"
            affine = (1, 0, -magnitude * width * across, 0, 1, -magnitude * height * (not across))
            done = picture.transform(size, Transform.AFFINE, affine, fillcolor=grey)
        case "rotate":
            done = picture.rotate(magnitude, fillcolor=grey)
        case "solarize":
            done = ImageOps.solarize(picture, magnitude)
        case "contrast":
            done = ImageEnhance.Contrast(picture).enhance(1 + magnitude)
        case "color":
            done = ImageEnhance.Color(picture).enhance(1 + magnitude)
        case "sharpness":
            done = ImageEnhance.Sharpness(picture).enhance(1 + magnitude)
        case "brightness":
            done = ImageEnhance.Brightness(picture).enhance(1 + magnitude)
        case "posterize":
            done = ImageOps.posterize(picture, round(magnitude))
        case _:
            done = getattr(ImageOps, name)(picture)
    return pil_to_tensor(done).float()


# Levels that may differ, and the part of values that may differ by more.
@pytest.mark.parametrize(
    ("name", "bins", "tolerance", "part"),
    [
        ("shear_x", range(1, 10), 1, 0.001),
        ("shear_y", range(1, 10), 1, 0.001),
        ("translate_x", range(10), 0, 0.0),
        ("translate_y", range(10), 0, 0.0),
        ("rotate", range(1, 10), 0, 0.01),
        ("solarize", range(10), 0, 0.0),
        ("posterize", range(10), 0, 0.0),
        ("contrast", range(10), 2, 0.0),
        ("color", range(10), 2, 0.0),
        ("brightness", range(10), 1, 0.0),
        ("sharpness", range(10), 1, 0.0),
        ("autocontrast", [0], 1, 0.0),
        ("equalize", [0], 0, 0.0),
        ("invert", [0], 0, 0.0),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_operations_by_deepvoltaires_rules_are_pils(name, bins, tolerance, part, sign):
    """Each magnitude of the tables in their utils/autoaug.py, at 32 px, in both signs they draw."""
    images = photographs()
    for i in bins:
        theirs = theirs_of(name, i) * (sign if name in SIGNS else 1)
        ours = math.ceil(theirs * 32 - 0.5) / 32 if "translate" in name else theirs
        operations = Operations(
            code=torch.full((len(images), 1), CODE[name]),
            magnitude=torch.full((len(images), 1), float(ours)),
            possible=(name,),
            rules="deepvoltaire",
        )
        found = (policies.apply_operations(images.float() / 255, operations) * 255).round()
        expected = torch.stack([pil(name, theirs, image) for image in images])
        assert ((found - expected).abs() > tolerance).float().mean() <= part


# utils/transforms.py there: all that draws from (-1, 1). Rotations turn one way.
SIGNS = ("shear_x", "shear_y", "translate_x", "translate_y", *policies.SIGNED[5:])


def theirs_of(name: str, i: int) -> float:
    """Magnitude by their utils/autoaug.py, class SubPolicy."""
    tops = {"shear": 0.3, "translate": 150 / 331, "rotate": 30.0}
    tops |= dict.fromkeys(("contrast", "color", "brightness", "sharpness"), 0.9)
    tops |= {"autocontrast": 0.0, "equalize": 0.0, "invert": 0.0}
    if name == "posterize":
        return round(8 - 4 * i / 9)
    return (
        256 - 256 * i / 9
        if name == "solarize"
        else tops[name.removesuffix("_x").removesuffix("_y")] * i / 9
    )


@pytest.mark.parametrize("name", ["cifar10", "svhn", "imagenet"])
def test_autoaugment_by_deepvoltaires_rules_draws_their_magnitudes_and_signs(name):
    draws = torch.rand(4000, 5, generator=torch.Generator().manual_seed(0))
    settings = {"num_ops": 2, "magnitude": 0, "image_size": 32}
    policy = f"autoaugment-{name}"
    found = policies.sample_operations(policy, draws, rules="deepvoltaire", **settings)
    plain = policies.sample_operations(policy, draws, **settings)
    assert torch.equal(found.code, plain.code)
    for code in found.code.unique().tolist():
        operation = OPERATIONS[code]
        if operation == "identity":
            continue
        values = found.magnitude[found.code == code].unique().tolist()
        expected = [
            theirs_of(operation, i) * s
            for i in range(10)
            for s in (1, -1)[: 1 + (operation in SIGNS)]
        ]
        if "translate" in operation:
            expected = [math.ceil(value * 32 - 0.5) / 32 for value in expected]
        assert all(min(abs(v - e) for e in expected) < 1e-4 for v in values)
        if operation in SIGNS and max(values) > 0:
            assert min(values) < 0


def test_computing_all_images_by_deepvoltaires_rules_gives_what_the_chosen_ones_give():
    images = photographs().float() / 255
    names = ("rotate", "shear_x", "identity", "shear_y", "translate_x")
    code = torch.tensor([CODE[name] for name in names]).repeat(2)[: len(images)]
    value = torch.full((len(images),), 0.25)
    operations = Operations(
        code=code[:, None], magnitude=value[:, None], possible=names, rules="deepvoltaire"
    )
    drawn, everything = policies.apply_operations(images.clone(), operations), images.clone()
    policies.apply_to_all_(everything, code, value, names, "deepvoltaire")
    torch.testing.assert_close(drawn, everything)
