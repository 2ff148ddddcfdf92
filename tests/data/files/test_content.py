"""Content hashes: the same for the same pixels, whatever holds or packs them."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from smallvit.data.files.content import content_hash, pack_image
from smallvit.data.files.images import open_image, to_rgb


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def coded(image: Image.Image, kind: str, **options) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(("width", "height"), [(40, 33), (200, 150), (600, 520), (1500, 300)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_the_packed_size_changes_no_content_hash_and_no_pixel(kind, width, height):
    content = coded(photograph(width, height), kind)
    hashes = set()
    for size in (8, 32, 64, 224):
        packed = pack_image(lambda: open_image(content), size)
        hashes.add(packed.content)
        assert np.array_equal(packed.pixels, to_rgb(open_image(content), size))
    assert hashes == {content_hash(open_image(content))}


def test_lossless_formats_and_modes_of_the_same_pixels_share_a_hash():
    image = photograph(70, 50)
    files = [coded(image, kind) for kind in ("PNG", "BMP", "TIFF", "PPM")]
    files += [coded(image, "WEBP", lossless=True), coded(image.convert("RGBA"), "PNG")]
    grey = image.convert("L")
    greys = [coded(grey, "PNG"), coded(grey.convert("RGB"), "PNG"), coded(grey, "GIF")]
    found = [content_hash(open_image(file)) for file in files]
    assert found == [content_hash(image)] * len(files)
    assert len({content_hash(open_image(file)) for file in greys}) == 1
    assert content_hash(grey) != content_hash(image)


def test_a_small_jpeg_hashes_as_the_array_of_its_pixels():
    file = coded(photograph(200, 130), "JPEG")
    assert content_hash(open_image(file)) == content_hash(
        Image.fromarray(np.asarray(Image.open(BytesIO(file))))
    )


def test_one_changed_pixel_changes_the_hash():
    pixels = np.array(photograph(640, 480))
    before = content_hash(Image.fromarray(pixels))
    pixels[-1, -1, 2] ^= 1
    assert content_hash(Image.fromarray(pixels)) != before


def test_shape_counts_where_bytes_are_the_same():
    pixels = np.zeros((30, 20, 3), dtype=np.uint8)
    assert content_hash(Image.fromarray(pixels)) != content_hash(
        Image.fromarray(pixels.reshape(20, 30, 3))
    )


@pytest.mark.parametrize("side", [100, 400])
def test_metadata_of_a_jpeg_changes_nothing_but_its_turn_does(side):
    image = photograph(side, side)
    exif = Image.Exif()
    exif[0x010E] = "a description"
    plain = coded(image, "JPEG")
    described = coded(image, "JPEG", exif=exif, comment=b"of somebody")
    exif[0x0112] = 3
    turned = coded(image, "JPEG", exif=exif)
    one, two, three = (content_hash(open_image(file)) for file in (plain, described, turned))
    assert one == two
    assert one != three


def test_an_image_turned_by_its_exif_data_hashes_as_the_upright_one():
    image = photograph(60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = coded(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    assert content_hash(open_image(turned)) == content_hash(image)


@pytest.mark.parametrize("size", [(300, 300), (1500, 300), (2100, 2200)])
@pytest.mark.parametrize("options", [{"optimize": True}, {"progressive": True}])
def test_a_jpeg_coded_anew_without_loss_keeps_its_hash(size, options):
    image = photograph(*size)
    plain, anew = coded(image, "JPEG"), coded(image, "JPEG", **options)
    assert plain != anew
    hashes = {pack_image(lambda f=f: open_image(f), 64).content for f in (plain, anew)}
    assert len(hashes) == 1
    assert hashes == {pack_image(lambda: open_image(anew), 224).content}


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}])
def test_large_jpegs_of_other_pixels_differ(options):
    files = [coded(photograph(300, 300, seed), "JPEG", **options) for seed in range(8)]
    assert len({content_hash(open_image(file)) for file in files}) == 8


def test_grey_of_16_bits_is_hashed_by_its_values():
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    png = content_hash(open_image(coded(Image.fromarray(values), "PNG")))
    assert png == content_hash(Image.fromarray(values.astype(np.int32)))
    assert png == content_hash(Image.fromarray(values.astype(np.float32)))
    other = values.copy()
    other[0, 0] += 1  # lost where 8 bits are kept
    assert content_hash(Image.fromarray(other)) != png


def test_a_file_that_breaks_off_has_no_hash():
    for side in (100, 400):
        file = coded(photograph(side, side), "JPEG")
        with pytest.raises(OSError, match="truncated"):
            pack_image(lambda file=file: open_image(file[: len(file) // 2]), 32)
