import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

from smallvit.core.errors import ConfigError, DataError
from smallvit.data.files.layout import parse_layout
from smallvit.data.files.own import open_path
from smallvit.data.files.sources import Source

CLASSES = ("cat", "dog", "owl")


def fill(top: Path, *folders: str) -> Path:
    for folder in folders:
        (top / folder).mkdir(parents=True)
        for name in ("1.png", "2.png"):
            Image.new("RGB", (8, 8)).save(top / folder / name)
    return top


def splits(*names: str) -> list[str]:
    return [f"{split}/{name}" for split in names for name in CLASSES]


def counts(source: Source) -> dict[str, int]:
    return {split: len(found.names) for split, found in source.list_images().splits.items()}


def class_names(source: Source) -> tuple[str, ...]:
    return source.list_images().class_names


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        open_path(path)
    return str(caught.value)


def first_remedy(path: Path) -> Source:
    """Do what the message says first."""
    message = refusal(path)
    layout = re.search(r"--data\.layout ('[^']*'|[^ ;]+)", message)
    other = re.search(r"--data (.+?)(;|$)", message)
    if layout is not None and (other is None or layout.start() < other.start()):
        return open_path(path, layout=shlex.split(layout[1])[0].rstrip(","))
    assert other is not None, message
    return open_path(Path(shlex.split(other[1])[0]))


@pytest.mark.parametrize(
    ("folders", "train", "test"),
    [
        (splits("training_set", "test_set"), 6, 6),
        (splits("trainset", "testset"), 6, 6),
        (splits("Train data", "Test data"), 6, 6),
        (splits("birds_train", "birds_test"), 6, 6),
        ([*splits("seg_train/seg_train", "seg_test/seg_test"), "seg_pred/seg_pred"], 6, 6),
        (splits("train/train", "test/test"), 6, 6),
        ([*splits("train/images"), "test"], 6, None),
        (["train/train", "test/test"], 2, None),
        (["training_images", "test_images"], 2, None),
        ([*splits("training_set"), "test_set"], 6, None),
        (splits("training_data", "test"), 6, 6),
        (splits("birds/birds/train", "birds/birds/test"), 6, 6),
        (splits("birds/train"), 6, None),
        (["birds/cat", "birds/dog"], 4, None),
        (["birds/a/cat", "birds/a/dog"], 4, None),
        (splits("train", "val", "validation"), 6, None),
        (splits("train", "dev", "test"), 6, 6),
        (splits("test"), 6, None),
        (["car", "train", "ship"], 6, None),
        (["car", "train", "test"], 6, None),
        (["car", "test"], 4, None),
        (["cat", "dog", "all/cat", "all/dog"], 4, None),
        (["bottle/train", "bottle/test", "cable/train", "cable/test"], 2, None),
        (splits("amazon/images", "webcam/images"), 6, 6),
        (["train2017", "val2017"], 2, None),
        (["train/images", "valid/images"], 2, None),
        ([*splits("images", "segmentations")], 6, 6),
    ],
)
def test_a_layout_that_can_be_meant_otherwise_stops_with_a_remedy_that_works(
    tmp_path, folders, train, test
):
    found = counts(first_remedy(fill(tmp_path / "data", *folders)))
    assert (found["train"], found.get("test")) == (train, test)


def test_folders_called_like_splits_are_named_with_both_readings(tmp_path):
    path = fill(tmp_path, *splits("training_set", "test_set"))
    message = refusal(path)
    assert (
        "test_set, training_set are called like splits: if they are, --data.layout train="
        in message
    )
    assert message.endswith("if they are classes, --data.layout classes")
    assert class_names(open_path(path, layout="classes")) == ("test_set", "training_set")
    assert class_names(open_path(path, layout="train=training_set,test=test_set")) == CLASSES


def test_a_folder_that_wraps_another_is_named_with_what_it_holds(tmp_path):
    message = refusal(fill(tmp_path / "data", *splits("birds/birds/train", "birds/birds/test")))
    assert "holds one folder, birds/birds, which holds 2 folders (test, train)" in message
    assert "without labels" not in message


def test_classes_that_share_their_folders_stop_and_can_be_named(tmp_path):
    path = fill(tmp_path, "cat/2019", "cat/2020", "dog/2019", "dog/2020")
    assert "cat, dog hold the same folders (2019, 2020)" in refusal(path)
    assert class_names(open_path(path, layout="classes")) == ("cat", "dog")
    assert counts(open_path(path, layout="unlabelled")) == {"train": 8}
    assert class_names(open_path(path, layout="unlabelled")) == ()


@pytest.mark.parametrize(
    "folders",
    [
        ["train_station", "test_tube"],
        ["cat/a", "cat/b", "dog"],
        ["n1/images", "n2/images", "n3/images"],
        ["training shoes", "boots"],
        ["valley", "testament", "trainer"],
    ],
)
def test_classes_that_only_look_a_little_like_splits_are_read(tmp_path, folders):
    source = open_path(fill(tmp_path, *folders))
    assert class_names(source) == tuple(sorted({name.partition("/")[0] for name in folders}))


def test_classes_may_be_called_train_and_test(tmp_path):
    path = fill(tmp_path, "train", "test")
    assert class_names(open_path(path, layout="classes")) == ("test", "train")
    source = open_path(path)
    assert (class_names(source), counts(source)) == ((), {"train": 2})
    assert "if these folders are the classes, set --data.layout classes" in source.notes[0]


@pytest.mark.parametrize("test", ["test", "test/unknown", "test/test", "test/images"])
def test_a_test_folder_without_labels_is_left_out_and_said(tmp_path, test):
    path = fill(tmp_path, *splits("train"), test)
    source = open_path(path)
    assert (class_names(source), counts(source)) == (CLASSES, {"train": 6})
    assert source.notes[0].startswith("left out: test, whose 2 images lie in")
    assert counts(open_path(path, layout="train=train")) == {"train": 6}


def test_a_test_folder_without_labels_that_was_named_is_refused_with_a_remedy(tmp_path):
    path = fill(tmp_path, *splits("train"), "test")
    expected = (
        r"test has 2 images in no class folder .* or leave a split out, as in --data\.layout t"
    )
    with pytest.raises(DataError, match=expected):
        open_path(path, layout="train=train,test=test")


def test_an_empty_split_folder_is_left_out_and_said(tmp_path):
    fill(tmp_path, *splits("train"))
    (tmp_path / "test").mkdir()
    assert open_path(tmp_path).notes == ("left out: test, which has no images",)


def test_a_split_that_lacks_classes_can_be_left_out(tmp_path):
    path = fill(tmp_path, *splits("train"), "test/cat", "test/dog")
    assert "or leave a split out, as in --data.layout train=train" in refusal(path)
    assert counts(open_path(path, layout="train=train")) == {"train": 6}


def test_what_is_left_out_by_a_layout_is_counted(tmp_path):
    path = fill(tmp_path, *splits("a", "b"), "c d")
    source = open_path(path, layout="train=a, test=b")
    assert source.notes == (
        "left out: 2 images outside the folders of data.layout (such as c d/1.png)",
    )
    assert source.kind == "split folders a, b"


def test_the_layout_is_part_of_the_key_and_none_is_the_key_of_before(tmp_path):
    path = fill(tmp_path, "a", "b")
    keys = {open_path(path, layout=each).key for each in (None, "classes", "unlabelled", "train=a")}
    assert len(keys) == 4


def test_a_name_with_a_comma_and_a_space_can_be_given(tmp_path):
    path = fill(tmp_path, *splits("a, b", "c d"))
    assert counts(open_path(path, layout="train=a, b,test=c d")) == {"train": 6, "test": 6}


@pytest.mark.parametrize("text", ["bad", "", "test=a", "train=a,train=b", "train=../a", "train="])
def test_a_layout_of_no_form_is_refused_with_the_forms(text):
    with pytest.raises(ConfigError, match=r"data\.layout cannot be .*: give classes \(each folder"):
        parse_layout(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train=a,test=a/b", "a holds the folder of another split"),
        ("train=a,test=a", "gives two splits one folder"),
    ],
)
def test_splits_need_folders_of_their_own(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_layout(text)


def test_a_folder_of_a_layout_that_is_not_there_names_those_that_are(tmp_path):
    path = fill(tmp_path, *splits("a/inner"), "b")
    expected = "no image in c, which data.layout names as train; folders with images: a, a/inner, b"
    with pytest.raises(DataError, match=expected):
        open_path(path, layout="train=c")


def test_older_runs_read_their_folders_as_before(tmp_path):
    path = fill(tmp_path, *splits("training_set", "test_set"))
    assert class_names(open_path(path, sure=False)) == ("test_set", "training_set")


def test_older_runs_list_splits_in_the_order_of_their_folders_as_their_fingerprint_does(tmp_path):
    path = fill(tmp_path, *splits("train", "val", "test"))
    assert [*open_path(path, sure=False).list_images().splits] == ["test", "train", "val"]
    assert [*open_path(path).list_images().splits] == ["train", "val", "test"]


def test_images_without_labels_name_the_table_beside_them(tmp_path):
    path = fill(tmp_path, "train", "test")
    (path / "train.csv").write_text("image_path,label\ntrain/1.png,a\ntrain/2.png,b\n")
    note = open_path(path).notes[1]
    assert (
        note == f"without labels; or give the table, --data {path}/train.csv, if it has the classes"
    )
    assert class_names(open_path(path / "train.csv")) == ("a", "b")
