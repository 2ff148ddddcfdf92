import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import smallvit as sv
from smallvit.core.errors import ConfigError, DataError
from smallvit.core.model_config import ModelConfig
from smallvit.data.dataset import Dataset
from smallvit.data.files.config import DataConfig
from smallvit.data.files.load import load_dataset
from smallvit.data.views import eval_batches
from smallvit.inference.export import write_export
from smallvit.models.registry import create_backbone, model_arguments

SIZE = 16


def rgb(side: int = 40) -> Image.Image:
    y, x = np.mgrid[:side, :side] / side
    channels = [np.sin(9 * x + 4 * y), np.cos(11 * y - 3 * x), np.where(x > 0.5, 0.8, -0.8)]
    return Image.fromarray((127.5 + 120 * np.stack(channels, axis=-1)).astype(np.uint8))


def turned() -> dict[str, object]:
    exif = Image.Exif()
    exif[0x0112] = 6
    return {"exif": exif}


def alpha() -> Image.Image:
    image = rgb()
    image.putalpha(Image.fromarray(np.tile(np.arange(40, dtype=np.uint8) * 6, (40, 1))))
    return image


def deep(top: int, dtype: str) -> Image.Image:
    values = np.asarray(rgb().convert("L")).astype(np.float64) / 255 * top
    return Image.fromarray(values.astype(dtype))


FILES: dict[str, tuple[Callable[[], Image.Image], str, dict[str, object]]] = {
    "rgb": (rgb, "png", {}),
    "grey16": (lambda: deep(4095, "uint16"), "png", {}),
    "grey32": (lambda: deep(4000, "int32"), "tif", {}),
    "alpha": (alpha, "png", {}),
    "exif": (rgb, "jpg", turned()),
    "cmyk": (lambda: rgb().convert("CMYK"), "jpg", {}),
    "palette": (lambda: rgb().quantize(40), "gif", {}),
    "progressive": (lambda: rgb(200), "jpg", {"progressive": True}),
    "large": (lambda: rgb(300), "jpg", {}),
    "wide": (lambda: rgb(99).crop((0, 10, 99, 50)), "webp", {}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of one file of each kind, and of others to cut splits from."""
    root = tmp_path_factory.mktemp("data") / "kinds"
    for name in "ab":
        (root / name).mkdir(parents=True)
    for name, (make, suffix, options) in FILES.items():
        make().save(root / "a" / f"{name}.{suffix}", **options)
    for i in range(12):
        values = np.roll(np.asarray(rgb()), i + 1, axis=0)
        Image.fromarray(values).save(root / "ab"[i % 2] / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    config = DataConfig(path=folder, image_size=SIZE, test_fraction=0.2, val_fraction=0.2)
    return load_dataset(config, data_dir=folder, cache_dir=folder.parent / "cache")


@pytest.fixture(scope="module")
def export(folder: Path, dataset: Dataset) -> Path:
    config = ModelConfig(patch_size=2, embed_dim=16, depth=1, num_heads=2)
    facts = {"num_classes": 2, "image_size": SIZE}
    write_export(
        folder.parent / "run" / "export",
        create_backbone(config, **facts),
        arguments=model_arguments(config, **facts)[1],
        class_names=dataset.class_names,
        image_size=SIZE,
        mean=dataset.mean,
        std=dataset.std,
        card="",
        pixels={"fit": "crop", "grey_range": dataset.grey_range},
    )
    return folder.parent / "run" / "export"


def packed(dataset: Dataset, array: np.ndarray) -> bool:
    images = dataset.splits["train"].images.numpy()
    return bool((images == array).all(axis=(1, 2, 3)).any())


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_has_the_pixels_that_packing_made_of_it(folder, dataset, export, kind):
    path = folder / "a" / f"{kind}.{FILES[kind][1]}"
    assert dataset.grey_range == (0, 4095)
    for image in (path, str(path), path.read_bytes()):
        found = sv.read_image(image, like=export)
        assert (found.dtype, found.shape) == (np.uint8, (3, SIZE, SIZE))
        assert packed(dataset, found)
    assert packed(dataset, sv.read_image(path, size=SIZE, grey_range=(0, 4095)))


@pytest.mark.parametrize("kind", FILES)
def test_a_pil_image_is_read_as_its_file_and_left_as_it_is(folder, dataset, export, kind):
    with Image.open(folder / "a" / f"{kind}.{FILES[kind][1]}") as image:
        before = image.size, image.mode
        assert packed(dataset, sv.read_image(image, like=export))
        assert (image.size, image.mode) == before


def test_normalized_images_are_those_that_evaluation_sees(dataset, export):
    (images, _), *_ = eval_batches(dataset, dataset.splits["test"], 64)
    pixels = dataset.splits["test"].take(torch.arange(len(dataset.splits["test"])))
    for seen, array in zip(images, pixels.numpy(), strict=True):
        image = Image.fromarray(array.transpose(1, 2, 0))
        assert torch.equal(sv.read_image(image, like=export, normalized=True), seen)


def test_a_run_stands_for_its_export(folder, export):
    image = folder / "a" / "rgb.png"
    assert np.array_equal(
        sv.read_image(image, like=export.parent), sv.read_image(image, like=export)
    )


def test_timm_loads_an_export_that_says_how_files_are_read(export):
    model = timm.create_model(f"local-dir:{export}", pretrained=True)
    assert model.pretrained_cfg["label_names"] == ["a", "b"]


def test_grey_values_of_more_bits_ask_for_a_scale_where_none_is_known(folder):
    with pytest.raises(ConfigError, match=r"grey16.png has grey .*: give grey_range=\(LOW, HIGH\)"):
        sv.read_image(folder / "a" / "grey16.png", size=SIZE)


def test_exports_without_a_scale_read_each_file_by_itself_as_they_did(folder, export, tmp_path):
    config = json.loads((export / "config.json").read_text())
    del config["pixels"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = sv.read_image(folder / "a" / "grey16.png", like=tmp_path)
    assert found.max() <= 15  # the upper 8 of 16 bits


@pytest.mark.parametrize(
    ("image", "options", "error", "message"),
    [
        ("rgb.png", {}, ConfigError, "like=RUN_OR_EXPORT, or size=PIXELS: give one"),
        ("rgb.png", {"size": 0}, ConfigError, "size must be a whole number of pixels"),
        ("rgb.png", {"size": 8, "normalized": True}, ConfigError, "needs like=RUN_OR_EXPORT"),
        ("rgb.png", {"size": 8, "grey_range": (3, 3)}, ConfigError, "black and white"),
        ("rgb.png", {"like": "nowhere"}, DataError, "nowhere is neither a run with an export"),
        ("none.png", {"size": 8}, DataError, r"none.png cannot be read: .*No such file"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(folder, image, options, error, message):
    with pytest.raises(error, match=message):
        sv.read_image(folder / "a" / image, **options)


@pytest.mark.usefixtures("without_shape_checks")
def test_an_array_is_refused_with_a_remedy():
    with pytest.raises(ConfigError, match=r"not ndarray: for an array, PIL.Image.fromarray"):
        sv.read_image(np.zeros((8, 8, 3), dtype=np.uint8), size=8)  # pyright: ignore


def test_content_that_breaks_off_is_refused():
    stream = BytesIO()
    rgb().save(stream, "PNG")
    with pytest.raises(DataError, match="the image cannot be read"):
        sv.read_image(stream.getvalue()[:200], size=8)


def test_segmentation_exports_are_refused_since_their_images_are_fitted_otherwise(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"pretrained_cfg": {"input_size": [3, 8, 8], "mean": [0, 0, 0], "std": [1, 1, 1]}, '
        '"pixels": {"fit": "pad", "grey_range": null}}'
    )
    with pytest.raises(ConfigError, match="trained for segmentation"):
        sv.read_image(rgb(), like=tmp_path)
