import json
import sys
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from smallvit.core.errors import ConfigError, DataError
from smallvit.data.files import parquet as reader
from smallvit.data.files.own import open_path
from smallvit.data.files.parquet import list_parquet
from smallvit.data.files.sources import Columns, Listing


def listed(path: Path, **columns: str) -> Listing:
    return open_path(path, **columns).list_images()


def png(value: int) -> bytes:
    stream = BytesIO()
    Image.new("L", (4, 4), value % 256).save(stream, "PNG")
    return stream.getvalue()


def parquet(
    path: Path,
    labels: Any,
    *,
    features: dict | None = None,
    options: dict | None = None,
    **columns: Any,
) -> Path:
    """Write images whose grey level is their row, as the Hub writes them."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    images = [{"bytes": png(i), "path": f"{i}.png"} for i in range(len(labels))]
    columns = {"image": images, "label": labels} | columns
    made = pa.table({name: values for name, values in columns.items() if values is not None})
    if features is not None:
        made = made.replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(made, path, **(options or {}))
    return path


def class_label(*names: str) -> dict:
    return {"_type": "ClassLabel", "names": list(names)}


def grey(listing: Listing, i: int, split: str = "train") -> int:
    return int(np.asarray(listing.splits[split].read(i))[0, 0])


def test_a_parquet_file_lists_its_images(tmp_path):
    path = parquet(tmp_path / "mine.parquet", [1, 0, 1], features={"label": class_label("x", "y")})
    source = open_path(path)
    listing = source.list_images()
    assert (source.name, source.hflip, source.image_size) == ("mine", True, None)
    assert listing.class_names == ("x", "y")
    assert listing.splits["train"].labels.tolist() == [1, 0, 1]
    assert [grey(listing, i) for i in (2, 0, 1)] == [2, 0, 1]
    assert listing.splits["train"].names[2] == "mine.parquet row 2"


def test_a_link_to_a_parquet_file_has_its_own_name(tmp_path):
    blob = parquet(tmp_path / "blobs" / "0123abcd", [1, 0, 1])
    (tmp_path / "mine.parquet").symlink_to(blob)
    assert open_path(tmp_path / "mine.parquet").name == "mine"


def test_a_parquet_file_that_went_away_is_not_called_broken(tmp_path):
    source = open_path(parquet(tmp_path / "mine.parquet", [1, 0, 1]))
    (tmp_path / "mine.parquet").unlink()
    with pytest.raises(FileNotFoundError):
        source.list_images()


def test_binary_images_and_numbers_without_names_are_read(tmp_path):
    path = parquet(tmp_path / "a.parquet", [2, 0, 1], image=[png(7), png(8), png(9)])
    listing = listed(path)
    assert listing.class_names == ("0", "1", "2")
    assert grey(listing, 1) == 8


def test_numbers_without_names_may_leave_gaps(tmp_path):
    parquet(tmp_path / "train.parquet", [3, 1, 2, 10])
    parquet(tmp_path / "test.parquet", [10, 2, 1, 3])
    listing = listed(tmp_path)
    assert listing.class_names == ("1", "2", "3", "10")
    assert listing.splits["train"].labels.tolist() == [2, 0, 1, 3]
    assert listing.splits["test"].labels.tolist() == [3, 1, 0, 2]


def test_numbers_may_be_dictionary_encoded(tmp_path):
    pa = pytest.importorskip("pyarrow")
    path = parquet(tmp_path / "a.parquet", pa.array([7, 5, 7]).dictionary_encode())
    assert listed(path).class_names == ("5", "7")
    assert listed(path).splits["train"].labels.tolist() == [1, 0, 1]


def test_truth_values_are_classes(tmp_path):
    listing = listed(parquet(tmp_path / "a.parquet", [True, False, True]))
    assert listing.class_names == ("false", "true")
    assert listing.splits["train"].labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("kind", ["large", "view", "fixed", "dictionary"])
@pytest.mark.parametrize("struct", [False, True])
def test_images_of_every_binary_type_are_read(tmp_path, kind, struct):
    pa = pytest.importorskip("pyarrow")
    images = [png(7), png(8), png(9)]
    types = {
        "large": pa.large_binary,
        "view": pa.binary_view,
        "fixed": lambda: pa.binary(len(images[0])),
        "dictionary": lambda: pa.dictionary(pa.int32(), pa.binary()),
    }
    column = pa.array(images).dictionary_encode()
    column = column if kind == "dictionary" else pa.array(images, types[kind]())
    assert column.type == types[kind]()
    if struct:
        column = pa.StructArray.from_arrays([column, pa.array(["x"] * 3)], ["bytes", "path"])
    try:
        path = parquet(tmp_path / "a.parquet", [0, 1, 1], image=column)
    except pa.ArrowNotImplementedError:
        pytest.skip("this pyarrow writes no views")
    listing = listed(path)
    assert [grey(listing, i) for i in range(3)] == [7, 8, 9]


def test_a_column_of_identifiers_is_not_taken_for_images(tmp_path):
    pa = pytest.importorskip("pyarrow")
    path = parquet(tmp_path / "a.parquet", [0, 1], uuid=pa.array([bytes(16)] * 2, pa.binary(16)))
    assert grey(listed(path), 1) == 1


def test_labels_in_string_views_are_text(tmp_path):
    pa = pytest.importorskip("pyarrow")
    labels = pa.array(["dog", "cat", "dog"], pa.string_view())
    try:
        path = parquet(tmp_path / "a.parquet", labels)
    except pa.ArrowNotImplementedError:
        pytest.skip("this pyarrow writes no views")
    assert listed(path).class_names == ("cat", "dog")


@pytest.mark.parametrize("encoded", [False, True])
def test_labels_in_text_are_classes_by_alphabet(tmp_path, encoded):
    pa = pytest.importorskip("pyarrow")
    labels = pa.array(["dog", "cat", "dog"])
    path = parquet(tmp_path / "a.parquet", labels.dictionary_encode() if encoded else labels)
    listing = listed(path)
    assert listing.class_names == ("cat", "dog")
    assert listing.splits["train"].labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    "names",
    [
        (
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
            "data/test-0.parquet",
        ),
        ("train/0.parquet", "train/1.parquet", "Testing/0.parquet"),
        ("test/train-0.parquet", "test/train-1.parquet", "train/test-0.parquet"),
    ],
)
def test_names_of_parquet_files_or_folders_give_the_split(tmp_path, names):
    for name, labels in zip(names, ([0, 1], [1, 1, 0], [1, 0]), strict=True):
        parquet(tmp_path / name, labels)
    listing = listed(tmp_path)
    assert listing.splits["train"].labels.tolist() == [0, 1, 1, 1, 0]
    assert listing.splits["test"].labels.tolist() == [1, 0]
    assert [grey(listing, i) for i in range(5)] == [0, 1, 0, 1, 2]
    assert grey(listing, 1, "test") == 1


def test_parquet_files_whose_names_give_no_split_are_all_of_train(tmp_path):
    for name in ("0.parquet", "b/1.parquet"):
        parquet(tmp_path / name, [0, 1])
    assert listed(tmp_path).splits["train"].labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("train-0.parquet", "more.parquet"),
            r"1 parquet file \(such as more.parquet\) give no split",
        ),
        (("test-0.parquet", "val.parquet"), "parquet files of val and test but none of train"),
    ],
)
def test_parquet_files_that_leave_the_split_open_are_refused(tmp_path, names, message):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=message):
        open_path(tmp_path)


def test_a_split_column_divides_a_parquet_file(tmp_path):
    splits = ["test", "train", "train", "Test"]
    listing = listed(parquet(tmp_path / "a.parquet", [0, 1, 0, 1], split=splits))
    assert listing.splits["train"].labels.tolist() == [1, 0]
    assert [grey(listing, i) for i in range(2)] == [1, 2]
    assert [grey(listing, i, "test") for i in range(2)] == [0, 3]
    assert listing.splits["test"].names[1] == "a.parquet row 3"


def test_without_labels_only_the_train_rows_of_parquet_files_are_read(tmp_path):
    for split in ("train", "test"):
        parquet(tmp_path / f"{split}.parquet", [0, 1], label=None)
    listing = listed(tmp_path)
    assert listing.class_names == ()
    assert list(listing.splits) == ["train"]
    assert listing.splits["train"].labels.tolist() == [-1, -1]


def test_the_only_class_label_of_the_metadata_is_the_label(tmp_path):
    features = {"fine": class_label("x", "y"), "label": {"_type": "Value", "dtype": "int64"}}
    path = parquet(tmp_path / "a.parquet", [5, 6], features=features, fine=[1, 0])
    assert listed(path).splits["train"].labels.tolist() == [1, 0]


def test_several_class_labels_have_to_be_told_apart(tmp_path):
    features = {"fine": class_label("x", "y"), "label": class_label("u", "v")}
    path = parquet(tmp_path / "a.parquet", [0, 1], features=features, fine=[1, 0])
    with pytest.raises(
        ConfigError, match=r"columns of class labels \(fine, label\): .*--data\.label-c"
    ):
        listed(path)
    assert listed(path, label_column="fine").class_names == ("x", "y")


def test_several_image_columns_have_to_be_told_apart(tmp_path):
    path = parquet(tmp_path / "a.parquet", [0, 1], mask=[png(5), png(6)])
    with pytest.raises(
        ConfigError, match=r"several columns .*\(image, mask\): .*--data\.image-column"
    ):
        listed(path)
    assert grey(listed(path, image_column="mask"), 1) == 6


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"image_column": "img"},
            r"no column 'img'; its columns: image, label, x: set --data\.image",
        ),
        ({"label_column": "kind"}, r"no column 'kind'; .*: set --data\.label-column"),
        ({"image_column": "x"}, r"column 'x' .* is double, not encoded images; .* is: image"),
        ({"label_column": "x"}, r"column 'x' .* is double, neither integers nor text"),
    ],
)
def test_columns_that_do_not_fit_are_refused(tmp_path, columns, message):
    path = parquet(tmp_path / "a.parquet", [0, 1], x=[0.5, 1.5])
    with pytest.raises(ConfigError, match=message):
        listed(path, **columns)


def test_a_parquet_file_without_images_is_refused(tmp_path):
    path = parquet(tmp_path / "a.parquet", [0, 1], image=["1.png", "2.png"])
    with pytest.raises(ConfigError, match="no column of encoded images, only image, label: "):
        listed(path)


@pytest.mark.parametrize(
    ("labels", "features", "message"),
    [
        (
            [0, 1, -1, -1],
            {"label": class_label("x", "y")},
            r"2 of 4 rows .* row 2, -1; .* 0 to 1\)",
        ),
        (
            [0, 1, 2],
            {"label": class_label("x", "y")},
            r"1 of 3 rows .* row 2, 2; classes are 0 to 1",
        ),
        ([0, -5, 1], None, r"1 of 3 rows .* row 1, -5; classes are not negative"),
        ([0, 0], {"label": class_label("x", "y")}, r"no y in train"),
        ([0, 0], None, "all images are of one class, '0'"),
        ([0, None, 1], None, "1 of 3 rows have no label: remove them"),
        (["a", "", None], None, "2 of 3 rows have no label"),
        ([], {"label": class_label("x", "y")}, "no images in train"),
    ],
)
def test_faulty_labels_of_a_parquet_file_are_refused_with_counts(
    tmp_path, labels, features, message
):
    pa = pytest.importorskip("pyarrow")
    kind = pa.string() if "a" in labels else pa.int64()
    image = None if labels else pa.array([], pa.binary())
    extra = {} if image is None else {"image": image}
    path = parquet(tmp_path / "a.parquet", pa.array(labels, kind), features=features, **extra)
    with pytest.raises(DataError, match=message):
        listed(path)


@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("empty", [None, {"bytes": None, "path": "1.png"}])
def test_rows_without_an_image_are_counted(tmp_path, statistics, empty):
    images = [{"bytes": png(0), "path": "0.png"}, empty, empty]
    options = {"write_statistics": statistics, "row_group_size": 2}
    path = parquet(tmp_path / "a.parquet", [0, 1, 1], image=images, options=options)
    with pytest.raises(DataError, match=r"a\.parquet: 2 of 3 rows have no image"):
        listed(path)


@pytest.mark.parametrize("name", ["image", "label", "split"])
def test_a_repeated_column_in_use_is_refused(tmp_path, name):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns = {"image": [png(0), png(1)], "label": [0, 1], "split": ["train"] * 2}
    names = [*columns, name]
    pq.write_table(pa.table([columns[each] for each in names], names), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=rf"a\.parquet has 2 columns '{name}': rename all but one"):
        listed(tmp_path / "a.parquet")


def test_a_repeated_column_that_is_not_used_does_no_harm(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns = [[png(0), png(1)], [0, 1], ["x", "y"], ["x", "y"]]
    made = pa.table(columns, ["image", "label", "note", "note"])
    pq.write_table(made, tmp_path / "a.parquet")
    assert listed(tmp_path / "a.parquet").class_names == ("0", "1")


def test_files_with_other_columns_or_classes_are_refused(tmp_path):
    parquet(tmp_path / "train.parquet", [0, 1], features={"label": class_label("x", "y")})
    parquet(tmp_path / "test.parquet", [0, 1], features={"label": class_label("y", "x")})
    with pytest.raises(DataError, match="differ: the files of a dataset need the same columns"):
        listed(tmp_path)


def test_a_broken_parquet_file_is_refused_by_name(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"a\.parquet is not a whole parquet file .*: replace it"):
        listed(tmp_path / "a.parquet")


@pytest.mark.parametrize("row_group_size", [7, 1000])
def test_rows_are_read_right_in_any_order_and_from_many_threads(
    tmp_path, row_group_size, monkeypatch
):
    monkeypatch.setattr(reader, "BATCH_BYTES", 500)  # few rows
    options = {"row_group_size": row_group_size}
    for name in ("0", "1"):
        parquet(tmp_path / f"{name}.parquet", [i % 2 for i in range(100)], options=options)
    listing = listed(tmp_path)
    order = np.random.default_rng(0).permutation(200).tolist() + list(range(200))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: grey(listing, i), order))
    assert found == [i % 100 for i in order]


@pytest.mark.parametrize("batch_bytes", [1, 2000, 10**6])
@pytest.mark.parametrize("row_group_size", [5, 1000])
def test_rows_a_little_out_of_order_are_decompressed_once(
    tmp_path, batch_bytes, row_group_size, monkeypatch
):
    monkeypatch.setattr(reader, "BATCH_BYTES", batch_bytes)
    options = {"row_group_size": row_group_size}
    path = parquet(tmp_path / "a.parquet", [i % 2 for i in range(300)], options=options)
    listing = listed(path)
    started = []
    iterate = reader._iter_leaf
    monkeypatch.setattr(reader, "_iter_leaf", lambda *args: started.append(args) or iterate(*args))
    for i in range(240):
        assert grey(listing, i + 48) == (i + 48) % 256
        assert grey(listing, i) == i
    groups = -(-300 // row_group_size)
    assert len(started) <= groups + -(-48 // row_group_size)  # row 0 comes after row 48


def test_rows_behind_a_broken_page_fail_and_later_row_groups_are_read(tmp_path):
    options = {"row_group_size": 10, "compression": "none", "use_dictionary": False}
    path = parquet(tmp_path / "a.parquet", [i % 2 for i in range(30)], options=options)
    listing = listed(path)
    content = bytearray(path.read_bytes())
    start = content.index(png(10)) - 60  # the header of the second group's page
    content[start : start + 50] = b"\xff" * 50
    path.write_bytes(content)
    for i in (10, 11):
        with pytest.raises(OSError, match="deserialize"):
            listing.splits["train"].read(i)
    assert [grey(listing, i) for i in (3, 25)] == [3, 25]


def test_key_of_parquet_files_changes_with_files_and_columns(tmp_path):
    path = parquet(tmp_path / "a.parquet", [0, 1], other=[1, 0])
    keys = {open_path(path).key, open_path(path, label_column="other").key, open_path(tmp_path).key}
    assert len(keys) == 2  # a folder of one file is that file
    parquet(tmp_path / "b.parquet", [0, 1], other=[1, 0])
    assert open_path(tmp_path).key not in keys


def test_parquet_without_pyarrow_names_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").touch()
    source = open_path(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"needs pyarrow: pip install 'smallvit\[parquet\]'"):
        source.list_images()


def test_a_listing_of_named_files_is_one_split_each(tmp_path):
    files = {
        "train": [parquet(tmp_path / "x.parquet", [0, 1, 2])],
        "val": [parquet(tmp_path / "y.parquet", [2, 1, 0])],
    }
    listing = list_parquet(files, Columns("image", "label"))
    assert listing.splits["val"].labels.tolist() == [2, 1, 0]


def test_a_layout_names_files_or_rows_and_leaves_out_what_has_no_labels(tmp_path):
    labels, files = ["a", "b", "a", "b"], tmp_path / "files"
    parquet(files / "first-0.parquet", labels)
    parquet(files / "second-0.parquet", labels, label=None)
    assert list(listed(files, layout="train=first").splits) == ["train"]
    parquet(files / "second-0.parquet", labels)
    assert list(listed(files, layout="train=first,test=second").splits) == ["train", "test"]
    assert listed(files, layout="unlabelled").class_names == ()
    rows = parquet(tmp_path / "rows.parquet", labels, split=["one", "one", "two", "two"])
    assert list(listed(rows, layout="train=one,test=two").splits) == ["train", "test"]
    with pytest.raises(DataError, match=r"no row has the split 'x', .*; there are one, two"):
        listed(rows, layout="train=x")
    with pytest.raises(ConfigError, match="classes is for folders of images"):
        listed(rows, layout="classes")


@pytest.mark.parametrize("column", [{"label": None}, {}])
def test_a_test_file_without_labels_is_refused_with_the_layout_that_leaves_it_out(tmp_path, column):
    parquet(tmp_path / "train-0.parquet", [0, 1, 0, 1])
    parquet(tmp_path / "test-0.parquet", [-1, -1, -1, -1], **column)
    with pytest.raises(DataError, match=r"as in --data\.layout train=train"):
        listed(tmp_path)
    assert list(listed(tmp_path, layout="train=train").splits) == ["train"]


def test_a_parquet_file_of_paths_is_read_once_it_is_a_csv(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.csv
    import pyarrow.parquet

    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(png(1))
    rows = pa.table({"image_path": ["1.png", "2.png"], "label": ["a", "b"]})
    pyarrow.parquet.write_table(rows, tmp_path / "rows.parquet")
    with pytest.raises(ConfigError, match="where it names files, save it as CSV"):
        listed(tmp_path / "rows.parquet")
    pyarrow.csv.write_csv(rows, tmp_path / "rows.csv")
    assert listed(tmp_path / "rows.csv").class_names == ("a", "b")
