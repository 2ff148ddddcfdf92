from pathlib import Path

import pytest
from PIL import Image

from smallvit.core.errors import ConfigError, DataError
from smallvit.data.files.own import open_path
from smallvit.data.files.sources import Listing


def table(
    top: Path,
    text: str,
    *,
    name: str = "table.csv",
    encoding: str = "utf-8",
    images: str = "1 2 3 4",
) -> Path:
    for image in images.split():
        path = top / (image if "." in image else f"{image}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    (top / name).write_bytes(text.encode(encoding))
    return top / name


def listed(path: Path, **options: str) -> Listing:
    return open_path(path, **options).list_images()


def names(listing: Listing) -> list[str]:
    return list(listing.splits["train"].names)


ROWS = "image_path,label\n1.png,a\n2.png,b\n"


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.txt", "t.TAB"])
@pytest.mark.parametrize("mark", [",", "\t"])
def test_tables_of_any_suffix_are_read_by_their_content(tmp_path, name, mark):
    path = table(tmp_path, ROWS.replace(",", mark), name=name)
    assert listed(path).class_names == ("a", "b")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_encodings_with_a_mark_are_read_and_utf_16_without_is_said(tmp_path, encoding):
    path = table(tmp_path, ROWS.replace(",a", ",\u00e9"), encoding=encoding)
    if encoding == "utf-16-le":
        with pytest.raises(DataError, match="null characters: if it is UTF-16, save it as UTF-8"):
            open_path(path)
    else:
        assert listed(path).class_names == ("b", "\u00e9")


def test_paths_of_windows_are_read(tmp_path):
    text = "image_path,label\nimages\\0000.jpg,a\nimages\\deep\\1.png,b\n"
    path = table(tmp_path, text, images="images/0000.jpg images/deep/1.png")
    assert names(listed(path)) == ["images/0000.jpg", "images/deep/1.png"]
    assert listed(path).splits["train"].read(0).size == (8, 8)


def test_one_image_written_in_two_ways_is_named_twice(tmp_path):
    text = "image_path,label\nimages\\1.png,a\nimages/1.png,b\n"
    with pytest.raises(DataError, match="with two labels, 'a' and 'b'"):
        open_path(table(tmp_path, text, images="images/1.png"))


def test_a_path_with_a_drive_is_said_to_be_one(tmp_path):
    text = "image_path,label\nC:\\images\\1.png,a\n2.png,b\n"
    with pytest.raises(DataError, match="a path of Windows with its drive"):
        open_path(table(tmp_path, text))


def test_names_without_a_suffix_are_the_one_image_of_that_stem(tmp_path):
    path = table(tmp_path, "image_path,label\nx/1,a\n2.b,b\n", images="x/1.jpg 2.b.png")
    assert names(listed(path)) == ["x/1.jpg", "2.b.png"]


def test_a_stem_of_two_images_is_refused_with_both(tmp_path):
    path = table(tmp_path, "image_path,label\n1,a\n2,b\n", images="1.jpg 1.png 2.png")
    with pytest.raises(DataError, match=r"not found: 1 \(line 2\) \(could be 1\.jpg, 1\.png\)"):
        open_path(path)


@pytest.mark.parametrize("folder", ["train_images", "data/train"])
def test_images_in_the_one_folder_beside_are_found_and_said(tmp_path, folder):
    path = table(
        tmp_path, "image_path,label\n1,a\n2.png,b\n", images=f"{folder}/1.png {folder}/2.png"
    )
    source = open_path(path)
    assert source.notes == (f"the images of table.csv are in {folder}",)
    assert names(source.list_images()) == [f"{folder}/1.png", f"{folder}/2.png"]


def test_images_in_two_folders_beside_are_not_guessed(tmp_path):
    path = table(tmp_path, ROWS, images="x/1.png x/2.png y/1.png y/2.png")
    with pytest.raises(DataError, match=r"there are such in x, y: write the folder before each"):
        open_path(path)


@pytest.mark.parametrize(
    ("labels", "several"),
    [
        (("a", "b", "a b"), "a b"),
        (("a", "b", "a|b"), "a|b"),
        (("c", "a|b", "b|c"), "a|b"),
        (("a", "b", '"a,b"'), "a,b"),
        (("a", "b", "a;b"), "a;b"),
        (("a", "b", "\"['a', 'b']\""), "['a', 'b']"),
    ],
)
def test_several_labels_in_one_cell_are_refused_in_one_line(tmp_path, labels, several):
    rows = "".join(f"{i}.png,{label}\n" for i, label in enumerate(labels, 1))
    path = table(tmp_path, f"image_path,label\n{rows}")
    with pytest.raises(DataError, match=r"rows? name several classes in one cell") as caught:
        open_path(path)
    assert repr(several) in str(caught.value)


def test_a_class_that_is_named_like_two_can_be_written_as_the_message_says(tmp_path):
    path = table(tmp_path, ROWS + "3.png,a b\n")
    with pytest.raises(DataError, match="write it without ' ', as in 'a_b'"):
        open_path(path)
    path.write_text(path.read_text().replace("a b", "a_b"))
    assert listed(path).class_names == ("a", "a_b", "b")


@pytest.mark.parametrize("labels", [("red car", "blue car", "red bus"), ("hot dog", "dog", "cat")])
def test_classes_of_two_words_are_classes(tmp_path, labels):
    rows = "".join(f"{i}.png,{label}\n" for i, label in enumerate(labels, 1))
    assert len(listed(table(tmp_path, f"image_path,label\n{rows}")).class_names) == 3


@pytest.mark.parametrize(
    ("header", "image", "label"),
    [
        ("filename,class", "filename", "class"),
        ("image,label", "image", "label"),
        ("id,breed", "id", "breed"),
        ("file,category", "file", "category"),
        ("x,y", "x", "y"),
    ],
)
def test_other_headers_are_answered_with_the_options_that_name_them(tmp_path, header, image, label):
    path = table(tmp_path, ROWS.replace("image_path,label", header))
    said = f"as in --data.image-column {image} --data.label-column {label}"
    with pytest.raises(DataError, match=said):
        open_path(path)
    assert listed(path, image_column=image, label_column=label).class_names == ("a", "b")


def test_a_table_whose_labels_have_another_name_says_so(tmp_path):
    source = open_path(table(tmp_path, ROWS.replace("label", "class")))
    assert source.notes == (
        "without labels: there is no column label among class, of which --data.label-column can "
        "name one",
    )


def test_columns_of_0_and_1_are_said_to_be_no_labels(tmp_path):
    text = "image_path,scab,rust\n1.png,0,1\n2.png,1,0\n"
    assert "the columns scab, rust hold 0 and 1" in open_path(table(tmp_path, text)).notes[0]


@pytest.mark.parametrize("text", ["1.png,a\n2.png,b\n", "1.png 0\n2.png 1\n", "1.png\n2.png\n"])
def test_a_table_without_a_header_says_which_line_to_add(tmp_path, text):
    path = table(tmp_path, text, name="train.txt")
    with pytest.raises(DataError, match="line 1 names an image, not the columns: put the line"):
        open_path(path)
    if "," in text:
        path.write_text("image_path,label\n" + text)
        assert listed(path).class_names == ("a", "b")


def test_the_separator_that_excel_is_told_is_passed_over(tmp_path):
    path = table(tmp_path, "sep=;\n" + ROWS.replace(",", ";"))
    assert listed(path).class_names == ("a", "b")


def test_a_layout_says_what_the_splits_are_called(tmp_path):
    text = "image_path,label,split\n1.png,a,one\n2.png,b,one\n3.png,a,two\n4.png,,x\n"
    path = table(tmp_path, text.replace(",,x", ",b,x"))
    source = open_path(path, layout="train=one")
    assert list(source.list_images().splits) == ["train"]
    assert source.notes == ("left out: 2 rows of splits that data.layout names not",)
    with pytest.raises(DataError, match=r"no row has the split 'foo', .* there are one, two, x"):
        open_path(path, layout="train=foo")
    with pytest.raises(ConfigError, match="classes is for folders"):
        open_path(path, layout="classes")
    with pytest.raises(ConfigError, match="has no column split: leave it out"):
        open_path(table(tmp_path / "b", ROWS), layout="train=one")


def test_a_layout_can_leave_labels_unread(tmp_path):
    assert listed(table(tmp_path, ROWS), layout="unlabelled").class_names == ()


def test_a_web_page_in_place_of_a_table_is_named(tmp_path):
    with pytest.raises(DataError, match="is a web page, which a server sent in place of the file"):
        open_path(table(tmp_path, "<!DOCTYPE html>\n<html></html>"))


def test_the_command_that_mends_an_encoding_does(tmp_path):
    path = table(tmp_path, ROWS.replace(",a", ",\u00e9"), encoding="cp1252")
    with pytest.raises(DataError, match=r"by iconv -f cp1252 -t utf-8 table\.csv > new\.csv"):
        open_path(path)
    (tmp_path / "new.csv").write_bytes(path.read_bytes().decode("cp1252").encode())
    assert listed(tmp_path / "new.csv").class_names == ("b", "\u00e9")
