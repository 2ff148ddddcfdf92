import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smallvit.core.errors import ConfigError, DataError
from smallvit.data.files.own import open_path
from smallvit.data.files.sources import Listing


def save(path: Path, color: tuple[int, int, int] = (10, 20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), color).save(path)


def folder(top: Path, *names: str) -> Path:
    for name in names:
        save(top / name)
    return top


def listed(path: Path, **columns: str) -> Listing:
    return open_path(path, **columns).list_images()


def table(top: Path, text: str, *, name: str = "table.csv", encoding: str = "utf-8") -> Path:
    for image in ("1.png", "2.png", "3.png", "4.png"):
        save(top / image)
    (top / name).write_bytes(text.encode(encoding))
    return top / name


def test_a_folder_of_class_folders_is_one_training_split(tmp_path):
    folder(tmp_path, "b/2.png", "b/1.JPG", "a/x.png", "a/.hidden.png")
    (tmp_path / "a" / "notes.txt").write_text("")
    listing = listed(tmp_path)
    assert listing.class_names == ("a", "b")
    assert list(listing.splits) == ["train"]
    assert list(listing.splits["train"].names) == ["a/x.png", "b/1.JPG", "b/2.png"]
    assert listing.splits["train"].labels.tolist() == [0, 1, 1]
    assert listing.splits["train"].labels.dtype == np.int64


def test_a_folder_states_its_name_and_leaves_the_size_open(tmp_path):
    source = open_path(folder(tmp_path / "my.data.v1.2", "a/1.png", "b/1.png"))
    assert (source.name, source.hflip, source.image_size) == ("my.data.v1.2", True, None)


def test_images_of_hidden_folders_are_passed_over(tmp_path):
    folder(tmp_path, "a/x.png", "b/x.png", "a/.ipynb_checkpoints/x.png", ".git/y.png")
    assert list(listed(tmp_path).splits["train"].names) == ["a/x.png", "b/x.png"]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_split_folders_become_splits(tmp_path, val):
    for split in ("train", val, "test"):
        folder(tmp_path, f"{split}/a/1.png", f"{split}/b/1.png")
    listing = listed(tmp_path)
    assert list(listing.splits) == ["train", "val", "test"]
    assert list(listing.splits["val"].names) == [f"{val}/a/1.png", f"{val}/b/1.png"]
    assert listing.splits["val"].labels.tolist() == [0, 1]


def test_images_of_deeper_folders_count_to_the_first(tmp_path):
    listing = listed(folder(tmp_path, "n.01 x/im.age.1.png", "n.02/deep/er/2.png", "n.02/3.png"))
    assert listing.class_names == ("n.01 x", "n.02")
    assert listing.splits["train"].labels.tolist() == [0, 1, 1]
    assert listing.splits["train"].read(1).size == (8, 8)


def test_names_sort_by_class_though_a_hyphen_comes_before_a_slash(tmp_path):
    listing = listed(folder(tmp_path, "a/1.png", "a-b/1.png"))
    assert list(listing.splits["train"].names) == ["a/1.png", "a-b/1.png"]
    assert listing.splits["train"].labels.tolist() == [0, 1]


@pytest.mark.parametrize("top", [".", "train"])
def test_images_without_class_folders_are_unlabelled(tmp_path, top):
    folder(tmp_path / top, "2.png", "1.png")
    listing = listed(tmp_path)
    assert listing.class_names == ()
    assert listing.splits["train"].labels.tolist() == [-1, -1]
    assert [Path(name).name for name in listing.splits["train"].names] == ["1.png", "2.png"]


def test_of_unlabelled_split_folders_only_train_is_read(tmp_path):
    listing = listed(folder(tmp_path, "train/1.png", "test/2.png", "val/3.png"))
    assert list(listing.splits) == ["train"]
    assert list(listing.splits["train"].names) == ["train/1.png"]


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"nothing is at .*nowhere: --data takes a folder"):
        open_path(tmp_path / "nowhere")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "a.xyz").touch()
    with pytest.raises(DataError, match=r"a\.xyz is another kind of file: --data takes"):
        open_path(tmp_path / "a.xyz")


def test_a_test_folder_without_a_train_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="has test but no train folder: add one"):
        open_path(folder(tmp_path, "test/a/1.png"))


def test_two_folders_of_one_split_are_refused(tmp_path):
    with pytest.raises(DataError, match="has both val and validation: keep one"):
        open_path(folder(tmp_path, "train/a/1.png", "val/a/1.png", "validation/a/1.png"))


def test_fewer_than_two_classes_are_refused(tmp_path):
    expected = "has 1 class folder with images; at least 2 are needed, one folder a class; or give "
    expected += r"the sub-folder itself, .*/a, for images without labels"
    with pytest.raises(DataError, match=expected):
        open_path(folder(tmp_path, "a/1.png"))


def test_a_folder_without_images_names_the_table_beside(tmp_path):
    (tmp_path / "labels.csv").touch()
    with pytest.raises(DataError, match=r"has no images but .*--data .*labels\.csv"):
        open_path(tmp_path)


@pytest.mark.parametrize("name", ["", "a/b"])
def test_a_folder_without_images_says_so(tmp_path, name):
    (tmp_path / name).mkdir(parents=True, exist_ok=True)
    with pytest.raises(DataError, match="has no images: give a folder with a folder of images for"):
        open_path(tmp_path)


@pytest.mark.parametrize("suffix", ["heic", "JP2", "dng", "svg"])
def test_images_in_a_format_that_is_not_read_are_refused(tmp_path, suffix):
    folder(tmp_path, "a/1.png", "b/1.png", "a/.hidden.png")
    for name in ("a/2", "b/2"):
        (tmp_path / f"{name}.{suffix}").touch()
    expected = (
        rf"has 2 images in a format that is not read \(such as a/2\.{suffix}\): convert to PNG"
    )
    with pytest.raises(DataError, match=expected):
        open_path(tmp_path)


def test_drawings_beside_parquet_files_are_passed_over(tmp_path):
    for name in ("x.parquet", "logo.svg"):
        (tmp_path / name).touch()
    assert open_path(tmp_path).name == tmp_path.name


@pytest.mark.parametrize("name", ["a/0.png", "a/x", "c"])
def test_links_to_nothing_are_refused_with_a_count(tmp_path, name):
    folder(tmp_path, "a/1.png", "b/1.png")
    for link in (name, "b/9.png"):
        (tmp_path / link).symlink_to(tmp_path / "gone")
    expected = rf"has links to nothing \(2; the first: {min(name, 'b/9.png')}\): bring back"
    with pytest.raises(DataError, match=expected):
        open_path(tmp_path)


def test_links_to_images_and_folders_are_followed(tmp_path):
    folder(tmp_path / "far", "1.png")
    folder(tmp_path / "near", "a/1.png")
    (tmp_path / "near" / "a" / "2.png").symlink_to(tmp_path / "far" / "1.png")
    for name in ("b", "c"):
        (tmp_path / "near" / name).symlink_to(tmp_path / "far")
    names = list(listed(tmp_path / "near").splits["train"].names)
    assert names == ["a/1.png", "a/2.png", "b/1.png", "c/1.png"]


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_link_to_a_folder_that_holds_it_is_refused(tmp_path, target):
    top = folder(tmp_path / "top", "a/1.png", "b/1.png")
    (top / "a" / "link").symlink_to(target)
    with pytest.raises(DataError, match=r"a/link.* is a link to a folder that holds it: remove it"):
        open_path(tmp_path)


def test_names_that_are_not_utf8_are_read_and_can_be_printed(tmp_path):
    top = tmp_path / os.fsdecode(b"root\xff")
    folder(top, os.fsdecode(b"a\xfe/1\xe9.png"), "b/1.png")
    source = open_path(top)
    listing = source.list_images()
    printed = (source.name, *listing.class_names, *listing.splits["train"].names)
    assert printed == ("root\ufffd", "a\ufffd", "b", "a\ufffd/1\ufffd.png", "b/1.png")
    assert listing.splits["train"].read(0).size == (8, 8)


def test_the_name_of_a_table_that_is_not_utf8_can_be_printed(tmp_path):
    text = "image_path,label\n1.png,a\n2.png,b\n"
    assert open_path(table(tmp_path, text, name=os.fsdecode(b"t\xe9.csv"))).name == "t\ufffd"


def test_an_empty_class_folder_names_class_split_and_remedy(tmp_path):
    folder(tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png")
    (tmp_path / "test" / "b").mkdir()
    (tmp_path / "test" / "b" / "1.npy").touch()
    expected = r"test: class folder 'b' has no image but files that are not read \(\.npy\): add .*"
    with pytest.raises(DataError, match=expected + "'b' to test, or remove that folder from every"):
        open_path(tmp_path)


def test_splits_with_other_classes_are_refused_with_counts(tmp_path):
    folder(
        tmp_path, "train/a/1.png", "train/b/1.png", "test/a/1.png", "test/c/1.png", "test/d/1.png"
    )
    expected = r"all 4 classes \(train 2, test 3\): no c, d in train; no b in test: add"
    with pytest.raises(DataError, match=expected):
        open_path(tmp_path)


def test_images_beside_class_folders_are_refused_with_an_example(tmp_path):
    folder(tmp_path, "train/a/1.png", "train/b/1.png", "train/x.png", "train/y.png")
    with pytest.raises(DataError, match=r"train has 2 images in no class folder \(such as x.png\)"):
        open_path(tmp_path)


def test_a_folder_of_images_takes_no_columns(tmp_path):
    with pytest.raises(ConfigError, match=r"--data\.image-column .* are for CSV and parquet"):
        open_path(folder(tmp_path, "a/1.png", "b/1.png"), image_column="x")


def test_images_beside_parquet_files_are_refused(tmp_path):
    folder(tmp_path, "a/1.png")
    (tmp_path / "x.parquet").touch()
    with pytest.raises(DataError, match="holds 1 image and 1 parquet file: give a folder of"):
        open_path(tmp_path)


def test_an_unreadable_folder_is_one_line(tmp_path, monkeypatch):
    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot read .*: Permission denied"):
        open_path(tmp_path)


def test_key_of_a_folder_changes_with_its_files_and_not_without(tmp_path):
    folder(tmp_path, "a/1.png", "b/1.png")
    before = open_path(tmp_path).key
    assert open_path(tmp_path).key == before
    save(tmp_path / "b/2.png")
    assert open_path(tmp_path).key != before


def test_a_csv_lists_its_images_in_order(tmp_path):
    path = table(tmp_path, "image_path,label,note\n2.png,dog,x\n1.png,cat,\n3.png,dog,y\n")
    source = open_path(path)
    listing = source.list_images()
    assert (source.name, source.hflip, source.image_size) == ("table", True, None)
    assert listing.class_names == ("cat", "dog")
    assert list(listing.splits["train"].names) == ["2.png", "1.png", "3.png"]
    assert listing.splits["train"].labels.tolist() == [1, 0, 1]
    assert listing.splits["train"].read(0).size == (8, 8)


@pytest.mark.parametrize("more", [",,", ",foo,foo", ",label ,x"])
def test_repeated_columns_of_a_csv_that_are_not_used_do_no_harm(tmp_path, more):
    path = table(tmp_path, f"image_path,kind{more}\n1.png,a,,\n2.png,b,,\n")
    columns = {"label_column": "kind"}
    assert listed(path, **columns).class_names == ("a", "b")
    path.write_text(f"image_path,kind{more}\n1.png,a,\n")
    with pytest.raises(DataError, match="line 2: 3 cells under 4 columns"):
        listed(path, **columns)


def test_a_csv_may_name_absolute_paths(tmp_path):
    save(tmp_path / "far" / "5.jpg")
    path = table(tmp_path / "near", f"image_path,label\n{tmp_path}/far/5.jpg,a\n1.png,b\n")
    assert listed(path).splits["train"].read(0).size == (8, 8)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_delimiter_and_line_ends_are_found(tmp_path, delimiter, end):
    lines = ("label,image_path", "a,1.png", '"b, c",2.png', "")
    text = end.join(line.replace(",", delimiter) for line in lines)
    assert listed(table(tmp_path, text)).class_names == ("a", f"b{delimiter} c")


def test_a_byte_order_mark_quotes_and_blank_lines_are_understood(tmp_path):
    path = table(
        tmp_path, '"image_path","label"\n"1.png","\u00e9"\n\n2.png, b \n', encoding="utf-8-sig"
    )
    assert listed(path).class_names == ("b", "\u00e9")


def test_integer_labels_sort_by_number_and_others_by_alphabet(tmp_path):
    rows = "image_path,label\n1.png,10\n2.png,9\n3.png,{}\n"
    assert listed(table(tmp_path / "a", rows.format("-1"))).class_names == ("-1", "9", "10")
    assert listed(table(tmp_path / "b", rows.format("x"))).class_names == ("10", "9", "x")


@pytest.mark.parametrize("val", ["val", "VALID", "validation"])
def test_the_split_column_divides_the_rows(tmp_path, val):
    text = f"image_path,label,split\n1.png,a,train\n2.png,a,{val}\n3.png,b,{val}\n4.png,b,Train\n"
    listing = listed(table(tmp_path, text))
    assert list(listing.splits["train"].names) == ["1.png", "4.png"]
    assert list(listing.splits["val"].names) == ["2.png", "3.png"]
    assert listing.splits["val"].labels.tolist() == [0, 1]


def test_without_a_label_column_only_the_rows_of_train_are_read(tmp_path):
    path = table(tmp_path, "image_path,split\n1.png,train\ngone.png,test\n2.png,train\n")
    listing = listed(path)
    assert listing.class_names == ()
    assert list(listing.splits) == ["train"]
    assert listing.splits["train"].labels.tolist() == [-1, -1]


def test_other_columns_can_be_named(tmp_path):
    path = table(tmp_path, "file,class\n1.png,a\n2.png,b\n")
    assert listed(path, image_column="file", label_column="class").class_names == ("a", "b")


HEAD = "image_path,label,split\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file,label\n1.png,a\n",
            r"no column 'image_path'; its columns: file, label: .*--data\.im",
        ),
        ("label,image_path,label\n", "more than one column 'label'; its columns: label, image"),
        ("", "no column 'image_path'"),
        (HEAD, "has a header and no rows"),
        (HEAD + "1.png,a,train\n2.png,b,tset\n", r"line 3: unknown split 'tset'; known: train"),
        (HEAD + "1.png,a,\n", "line 2: unknown split ''"),
        (HEAD + "1.png,,train\n", "line 2: no label: fill the cell or remove the row"),
        (HEAD + ",a,train\n", "line 2: no image_path"),
        (HEAD + "1.png,a\n", "line 2: 2 cells under 3 columns"),
        (HEAD + "1.png,a,b,train\n", "line 2: 4 cells under 3 columns"),
        (HEAD + '1.png,"a,train\n2.png,b,train\n', "line 3: unexpected end of data"),
        (HEAD + "1.png,a,test\n2.png,b,test\n", "no row has the split train: name"),
        (HEAD + "1.png,a,train\n2.png,a,train\n", "all images are of one class, 'a'"),
        (
            HEAD + "1.png,a,train\n2.png,b,train\n3.png,a,test\n",
            r"\(train 2, test 1\): no b in test",
        ),
        (HEAD + "1.png,a,train\n2.png,b,test\n", r"no b in train; no a in test"),
        (HEAD + "1.png,a,train\n./1.png,a,train\n", r"names \./1\.png twice \(lines 2 and 3\)"),
        (HEAD + "1.png,a,train\n1.png,b,train\n", "with two labels, 'a' and 'b' .lines 2 and 3"),
        (HEAD + "1.png,a,train\n1.png,a,test\n", "in two splits, train and test .lines 2 and 3"),
    ],
)
def test_a_faulty_csv_is_refused_with_the_place(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        open_path(table(tmp_path, text))


def test_a_named_label_column_has_to_be_there(tmp_path):
    with pytest.raises(DataError, match=r"no column 'kind'; its columns: image_path, label"):
        open_path(table(tmp_path, "image_path,label\n1.png,a\n"), label_column="kind")


def test_missing_files_are_counted_and_the_first_three_named(tmp_path):
    rows = "".join(f"no/{i}.png,a\n" for i in range(5))
    expected = r"5 of 6 files not found: no/0\.png \(line 3\), no/1\.png \(line 4\), .*5\), \.\.\.:"
    with pytest.raises(DataError, match=expected):
        open_path(table(tmp_path, f"image_path,label\n1.png,b\n{rows}"))


def test_a_folder_is_no_image_of_a_csv(tmp_path):
    (tmp_path / "d").mkdir()
    with pytest.raises(DataError, match="1 of 2 files not found: d"):
        open_path(table(tmp_path, "image_path,label\nd,a\n1.png,b\n"))


def test_a_csv_of_another_encoding_is_refused(tmp_path):
    path = table(tmp_path, "image_path,label\n1.png,\u00e9\n", encoding="latin-1")
    with pytest.raises(DataError, match=r"not UTF-8 \(byte 23, line 2\): save it as UTF-8"):
        open_path(path)


def test_key_of_a_csv_changes_with_content_columns_and_images(tmp_path):
    path = table(tmp_path, "image_path,label,other\n1.png,a,b\n2.png,b,a\n")
    keys = {open_path(path).key, open_path(path, label_column="other").key}
    save(tmp_path / "1.png", (1, 1, 1))
    os.utime(tmp_path / "1.png", ns=(1, 1))
    keys.add(open_path(path).key)
    path.write_text("image_path,label,other\n1.png,b,b\n2.png,a,a\n")
    keys.add(open_path(path).key)
    assert len(keys) == 4
