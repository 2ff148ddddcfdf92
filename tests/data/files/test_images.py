import warnings
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageOps

from smallvit.data.files import images
from smallvit.data.files.images import IMAGE_SUFFIXES, UNREAD_SUFFIXES, open_image, to_rgb


def colours(array: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, array.reshape(3, -1).T.tolist()))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def picture(side: int) -> Image.Image:
    """Draw waves and an edge: content of several scales, none finer than 1/32 of the side."""
    y, x = np.mgrid[:side, :side] / side
    channels = [np.sin(9 * x + 4 * y), np.cos(11 * y - 3 * x), np.where(x > 0.5, 0.8, -0.8)]
    return Image.fromarray((127.5 + 120 * np.stack(channels, axis=-1)).astype(np.uint8))


def resized_whole(content: bytes, size: int) -> np.ndarray:
    with Image.open(BytesIO(content)) as image:
        fitted = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(fitted).transpose(2, 0, 1)


def test_rgb_of_the_wanted_size_is_only_transposed():
    image = noise(8, 8)
    assert np.array_equal(to_rgb(image, 8), np.asarray(image).transpose(2, 0, 1))


def test_rgb_of_the_wanted_size_is_not_copied_by_pil(monkeypatch):
    image = noise(8, 8)
    for name in ("copy", "convert", "resize", "crop", "transpose"):
        monkeypatch.delattr(Image.Image, name)
    assert to_rgb(image, 8).shape == (3, 8, 8)


def test_grey_is_repeated_over_the_channels():
    assert colours(to_rgb(Image.new("L", (8, 8), 77), 8)) == {(77, 77, 77)}


def test_grey_with_alpha_and_one_bit_images_become_rgb():
    assert colours(to_rgb(Image.new("LA", (8, 8), (0, 0)), 8)) == {(255, 255, 255)}
    assert colours(to_rgb(Image.new("1", (8, 8), 1), 8)) == {(255, 255, 255)}
    assert colours(to_rgb(Image.new("1", (8, 8), 0), 8)) == {(0, 0, 0)}


@pytest.mark.parametrize(
    ("alpha", "expected"), [(0, (255, 255, 255)), (255, (10, 20, 30)), (51, (206, 208, 210))]
)
def test_transparency_is_laid_over_white(alpha, expected):
    (found,) = colours(to_rgb(Image.new("RGBA", (8, 8), (10, 20, 30, alpha)), 8))
    assert np.abs(np.subtract(found, expected)).max() <= 1


def test_cmyk_black_and_white_stay_black_and_white():
    assert colours(to_rgb(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), 8)) == {(0, 0, 0)}
    assert colours(to_rgb(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), 8)) == {(255, 255, 255)}


def test_a_palette_image_takes_the_colours_of_its_palette():
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    assert colours(to_rgb(image, 8)) == {(200, 100, 50)}


@pytest.mark.parametrize("transparency", [1, b"\xff\x00"])
def test_a_transparent_palette_colour_becomes_white(transparency):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    opened = open_image(encoded(image, "PNG", transparency=transparency))
    assert colours(to_rgb(opened, 8)) == {(255, 255, 255)}


def test_sixteen_bit_grey_keeps_its_upper_eight_bits():
    values = np.asarray([[0, 255], [256, 65535]], dtype=np.uint16)
    opened = open_image(encoded(Image.fromarray(values), "PNG"))
    assert opened.mode == "I;16"
    assert to_rgb(opened, 2)[0].tolist() == [[0, 0], [1, 255]]


def test_big_endian_sixteen_bit_grey_keeps_its_upper_eight_bits():
    values = np.asarray([[0, 255], [256, 65535]], dtype=">u2")
    image = Image.frombytes("I;16B", (2, 2), values.tobytes())
    assert to_rgb(image, 2)[0].tolist() == [[0, 0], [1, 255]]


@pytest.mark.parametrize(("top", "expected"), [(65535, 255), (256, 1), (200, 200), (0, 0)])
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_wide_grey_without_a_range_is_scaled_where_it_needs_sixteen_bits(dtype, top, expected):
    image = Image.fromarray(np.full((4, 4), top, dtype=dtype))
    assert colours(to_rgb(image, 4)) == {(expected,) * 3}


def test_floats_within_zero_and_one_are_scaled_by_255():
    image = Image.fromarray(np.asarray([[0, 0.25], [0.5, 1]], dtype=np.float32))
    assert to_rgb(image, 2)[0].tolist() == [[0, 64], [128, 255]]


def test_an_integer_image_of_zeros_and_ones_is_not_scaled():
    image = Image.fromarray(np.asarray([[0, 1]] * 2, dtype=np.int32))
    assert to_rgb(image, 2)[0].tolist() == [[0, 1]] * 2


@pytest.mark.parametrize("value", [-1, 65536, np.nan, np.inf])
def test_grey_values_of_no_known_range_are_refused(value):
    image = Image.fromarray(np.full((4, 4), value, dtype=np.float32))
    with pytest.raises(ValueError, match=r"grey values from .* fit none of the ranges"):
        to_rgb(image, 4)


def test_one_pixel_fills_the_image():
    assert colours(to_rgb(Image.new("RGB", (1, 1), (9, 8, 7)), 16)) == {(9, 8, 7)}


@pytest.mark.parametrize("size", [(1, 50), (50, 1), (7, 30), (31, 17), (1, 5000), (5000, 1)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_any_shape_becomes_a_square(size, kind):
    found = to_rgb(open_image(encoded(Image.new("RGB", size, (90, 90, 90)), kind)), 8)
    assert found.shape == (3, 8, 8)
    assert found.dtype == np.uint8
    assert colours(found) == {(90, 90, 90)}


def test_a_wide_image_is_cut_to_its_centre():
    pixels = np.zeros((8, 24, 3), dtype=np.uint8)
    pixels[:, 8:16] = 255
    assert colours(to_rgb(Image.fromarray(pixels), 8)) == {(255, 255, 255)}


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("side", [8, 64])
def test_exif_rotation_is_applied(kind, side):
    pixels = np.zeros((side, side, 3), dtype=np.uint8)
    pixels[: side // 2] = 255  # orientation 6 turns it a quarter clockwise, to the right
    exif = Image.Exif()
    exif[0x0112] = 6
    found = to_rgb(open_image(encoded(Image.fromarray(pixels), kind, exif=exif)), 8)
    assert found[:, :, 5:].min() >= 250
    assert found[:, :, :3].max() <= 5


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_turned_as_pil_does(orientation):
    image = noise(8, 8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(encoded(image, "PNG", exif=exif))
    upright = ImageOps.exif_transpose(open_image(encoded(image, "PNG", exif=exif)))
    assert np.array_equal(to_rgb(opened, 8), np.asarray(upright).transpose(2, 0, 1))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"abc"])
def test_malformed_exif_data_leave_an_image_as_it_lies(kind, exif):
    content = encoded(Image.new("RGB", (8, 8), (9, 9, 9)), kind, exif=exif)
    assert colours(to_rgb(open_image(content), 8)) == {(9, 9, 9)}


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation_counts(kind):
    frames = [Image.new("RGB", (8, 8), color) for color in ((255, 0, 0), (0, 255, 0))]
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert colours(to_rgb(open_image(content), 8)) == {(255, 0, 0)}


def test_a_small_jpeg_is_decoded_whole():
    content = encoded(noise(63, 63), "JPEG")
    assert np.array_equal(to_rgb(open_image(content), 16), resized_whole(content, 16))


@pytest.mark.parametrize(
    ("side", "decoded"), [(63, 63), (64, 32), (128, 32), (250, 63), (999, 125)]
)
def test_a_large_jpeg_is_decoded_at_no_less_than_twice_the_size(side, decoded):
    image = open_image(encoded(picture(side), "JPEG"))
    to_rgb(image, 16)
    assert image.size == (decoded, decoded)


def test_a_large_jpeg_looks_as_if_decoded_whole():
    content = encoded(picture(512), "JPEG", quality=95)
    scaled = to_rgb(open_image(content), 32).astype(int)
    assert 0 < np.abs(scaled - resized_whole(content, 32)).mean() < 1


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "CMYK"])
@pytest.mark.parametrize("side", [400, 451])
def test_a_large_image_looks_as_if_resized_whole(mode, side):
    image = picture(side).crop((0, 0, side, side - 20)).convert(mode)
    content, whole = encoded(image, "TIFF"), encoded(image.convert("RGB"), "PNG")
    scaled = to_rgb(open_image(content), 32).astype(int)
    assert 0 < np.abs(scaled - resized_whole(whole, 32)).mean() < 0.3


def test_an_image_below_four_times_the_size_is_resized_whole():
    content = encoded(noise(63, 63), "PNG")
    assert np.array_equal(to_rgb(open_image(content), 16), resized_whole(content, 16))


def test_a_transparent_colour_is_taken_out_before_pixels_are_averaged():
    image = Image.new("RGB", (64, 64), (255, 0, 0))
    image.paste((0, 0, 0), (0, 0, 64, 33))
    opened = open_image(encoded(image, "PNG", transparency=(0, 0, 0)))
    found = to_rgb(opened, 8)
    assert found[0].min() == 255  # red and white, no black between them
    assert found[1].max() == 255


def test_sixteen_bit_grey_is_averaged_after_it_became_eight_bits():
    values = np.full((64, 64), 300 * 256 // 2, dtype=np.uint16)
    assert colours(to_rgb(open_image(encoded(Image.fromarray(values), "PNG")), 8)) == {(150,) * 3}


def is_locked() -> bool:
    with ThreadPoolExecutor(1) as pool:  # this thread may take it again
        taken = pool.submit(images._one_huge_image.acquire, blocking=False).result()
        if taken:
            pool.submit(images._one_huge_image.release).result()
    return not taken


@pytest.mark.parametrize(
    ("kind", "options", "side", "alone"),
    [
        ("PNG", {}, 40, False),
        ("PNG", {}, 41, True),
        ("JPEG", {}, 64, False),  # decoded at a quarter
        ("JPEG", {"progressive": True}, 64, True),
    ],
)
def test_huge_images_are_decoded_one_by_one(monkeypatch, kind, options, side, alone):
    monkeypatch.setattr(images, "HUGE_PIXELS", 1600)
    locked = []
    convert = images.over_white

    def spy(image: Image.Image) -> Image.Image:
        locked.append(is_locked())
        return convert(image)

    monkeypatch.setattr(images, "over_white", spy)
    to_rgb(open_image(encoded(picture(side), kind, **options)), 8)
    assert locked == [alone]
    assert not is_locked()


def test_an_image_of_many_pixels_is_accepted_without_a_warning():
    side = 11_000  # 121 million pixels, where PIL by itself would warn
    assert open_image(encoded(Image.new("1", (side, side)), "PNG")).size == (side, side)


@pytest.mark.parametrize("side", [14_000, 20_000])
@pytest.mark.parametrize("action", ["error", "ignore"])
def test_an_image_of_too_many_pixels_is_refused_by_its_header(side, action):
    header = encoded(Image.new("1", (1, 1)), "BMP")
    header = header[:18] + side.to_bytes(4, "little") * 2 + header[26:]
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        with pytest.raises(ValueError, match="more than 178,956,970 pixels: make it smaller"):
            open_image(header)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match="the file is empty"):
        open_image(tmp_path / "a.png")


def test_heic_is_refused_with_a_remedy():
    content = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + bytes(64)
    with pytest.raises(ValueError, match=r"HEIC .* that is not read: convert it to PNG or JPEG"):
        open_image(content)


def test_text_is_refused():
    with pytest.raises(ValueError, match="no image, or of a format that is not read"):
        open_image(b"some text")


@pytest.mark.parametrize("kind", ["EPS", "JPEG2000", "ICO"])
def test_only_the_stated_formats_are_tried(kind):
    with pytest.raises(ValueError, match="of a format that is not read: convert it to PNG"):
        open_image(encoded(noise(32, 32), kind))


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_files_of_every_suffix_are_read(tmp_path, suffix):
    noise(32, 32).save(tmp_path / f"a{suffix}")
    assert to_rgb(open_image(tmp_path / f"a{suffix}"), 8).shape == (3, 8, 8)


def test_pictures_of_two_cameras_are_read_as_their_first():
    left, right = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), "black")
    opened = open_image(encoded(left, "MPO", save_all=True, append_images=[right]))
    assert opened.format == "MPO"
    assert colours(to_rgb(opened, 8)) == {(255, 255, 255)}


def test_avif_is_either_read_or_refused_by_its_suffix():
    assert ".avif" in IMAGE_SUFFIXES | UNREAD_SUFFIXES
    assert not IMAGE_SUFFIXES & UNREAD_SUFFIXES


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
@pytest.mark.parametrize("side", [64, 512])
def test_half_a_file_is_never_half_a_picture(kind, side):
    content = encoded(noise(side, side), kind)
    half = content[: len(content) // 2]
    with pytest.raises((OSError, ValueError)):
        to_rgb(open_image(half), 16)


def test_the_content_decides_and_not_the_suffix(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(Image.new("RGB", (8, 8), (1, 2, 3)), "PNG"))
    assert colours(to_rgb(open_image(path), 8)) == {(1, 2, 3)}


def test_an_opened_image_does_not_need_its_file_any_more(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    image = open_image(tmp_path / "a.gif")
    (tmp_path / "a.gif").write_bytes(b"")
    image.seek(1)
    assert colours(to_rgb(image, 8)) == {(0, 0, 255)}


def test_the_stated_limit_is_pils_own_error_level():
    assert images.MAX_PIXELS == 2 * (1024 * 1024 * 1024 // 4 // 3)


def test_memory_of_large_images_is_not_kept_by_the_allocator():
    assert Image.core.get_block_size() > 2**25  # the largest that glibc may keep
