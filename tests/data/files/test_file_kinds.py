import pytest

from smallvit.core.errors import DataError
from smallvit.data.files.images import open_image
from smallvit.data.files.load import usual_size
from smallvit.data.files.own import open_path

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 1234\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "a pointer of Git LFS, the file itself was not fetched: run `git lfs pull`"),
        (b"\n<!DOCTYPE html><html>", "a web page, which a server sent in place of the file"),
        (b"<html>403</html>", "a web page"),
        (b"404: Not Found", "a server's answer that the file is not there: download it again"),
        (b"%PDF-1.7", "PDF, of a format that is not read: convert it to PNG"),
        (b"PK\x03\x04", "a zip archive, of a format that is not read"),
        (b"\x00\x00\x00\x18ftypheic", "HEIC or another format that is not read"),
        (b"", "the file is empty"),
    ],
)
def test_what_stands_in_place_of_an_image_is_named_with_a_remedy(content, message):
    with pytest.raises(ValueError, match=message):
        open_image(content)


def test_a_clone_without_its_large_files_says_so_before_packing(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"{i}.jpg").write_bytes(POINTER)
    listing = open_path(tmp_path).list_images()
    with pytest.raises(DataError, match=r"none of the 6 .*cat/0\.jpg \(a pointer of Git LFS.*pull"):
        usual_size(listing)


@pytest.mark.parametrize("name", ["a.csv", "a.npz", "a.parquet"])
def test_a_pointer_in_place_of_a_table_says_so(tmp_path, name):
    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(DataError, match="is a pointer of Git LFS, the file itself was not fetched"):
        open_path(tmp_path / name).list_images()
