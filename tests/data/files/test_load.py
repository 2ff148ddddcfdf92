import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smallvit.core.errors import ConfigError, DataError, UnknownNameError
from smallvit.data.dataset import Dataset, class_counts
from smallvit.data.files.config import DataConfig
from smallvit.data.files.load import (
    find_image_size,
    load_dataset,
    open_source,
    prepare_dataset,
    usual_size,
)
from smallvit.data.files.registry import DatasetSpec
from smallvit.data.files.sources import Listing, Source, SourceSplit

CPU = torch.device("cpu")
META = torch.device("meta")


def noise(num: int, seed: int = 0, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, side, side, 3), dtype=np.uint8)


def make_source(
    *,
    classes: tuple[str, ...] = ("a", "b"),
    image_size: int | None = 8,
    labels: Callable[[int], int] = lambda i: i % 2,
    **splits: np.ndarray,
) -> Source:
    def split(name: str, pixels: np.ndarray) -> SourceSplit:
        return SourceSplit(
            names=[f"{name}/{i:03}.png" for i in range(len(pixels))],
            labels=np.asarray([labels(i) if classes else -1 for i in range(len(pixels))]),
            read=lambda i: Image.fromarray(pixels[i]),
        )

    listing = Listing(
        class_names=classes, splits={name: split(name, pixels) for name, pixels in splits.items()}
    )
    return Source(
        name="data", key="k", hflip=True, image_size=image_size, list_images=lambda: listing
    )


def load(cache: Path, source: Source | None = None, **options) -> Dataset:
    source = source or make_source(train=noise(60))
    return prepare_dataset(source, DataConfig(**options), cache_dir=cache)


def make_folder(top: Path, *, num: int = 10, size: int = 8) -> Path:
    for i, image in enumerate(noise(num, side=size)):
        path = top / "ab"[i % 2] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return top


def test_channel_statistics_equal_those_of_numpy(tmp_path):
    dataset = load(tmp_path)
    train = dataset.splits["train"]
    pixels = train.images[train.index].numpy() / 255
    assert len(train) < len(train.images)
    assert dataset.mean == pytest.approx(pixels.mean(axis=(0, 2, 3)))
    assert dataset.std == pytest.approx(pixels.std(axis=(0, 2, 3)))
    again = load(tmp_path)
    assert (again.mean, again.std) == (dataset.mean, dataset.std)


def test_split_and_statistics_are_in_one_file_that_can_be_read(tmp_path):
    dataset = load(tmp_path)
    (path,) = dataset.store_path.glob("splits-*.json")
    plain = json.loads(path.read_text())
    assert (tuple(plain["mean"]), tuple(plain["std"])) == (dataset.mean, dataset.std)
    for name in ("train", "labelled", "val", "test"):
        assert plain[name] == dataset.splits[name].index.tolist()


def test_a_broken_stored_split_is_cut_again_as_it_was(tmp_path, caplog):
    dataset = load(tmp_path)
    (path,) = dataset.store_path.glob("splits-*.json")
    whole = path.read_text()
    path.write_text(whole[:50])
    with caplog.at_level(logging.WARNING, logger="smallvit"):
        assert load(tmp_path).split_hashes == dataset.split_hashes
    assert "is broken" in caplog.text
    assert path.read_text() == whole


def test_splits_cut_from_one_piece_are_disjoint_and_cover_it(tmp_path):
    dataset = load(tmp_path)
    parts = [set(dataset.splits[name].index.tolist()) for name in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 60
    for name in ("train", "val", "test"):
        assert min(class_counts(dataset.splits[name], 2)) > 0


def test_copies_of_an_image_are_on_one_side_of_the_cut(tmp_path):
    dataset = load(tmp_path, make_source(train=np.tile(noise(40), (2, 1, 1, 1))))
    for name in ("train", "labelled", "val", "test"):
        index = dataset.splits[name].index % 40
        assert (torch.bincount(index) != 1).all()


def test_label_fractions_are_nested_and_leave_the_training_split(tmp_path):
    some, more = load(tmp_path, label_fraction=0.1), load(tmp_path, label_fraction=0.5)
    few, many = (set(d.splits["labelled"].index.tolist()) for d in (some, more))
    assert few < many < set(more.splits["train"].index.tolist())
    assert some.split_hashes["train"] == more.split_hashes["train"]
    assert some.split_hashes["labelled"] != more.split_hashes["labelled"]


def test_a_split_seed_changes_the_cut_and_not_the_pixels(tmp_path):
    first, second = load(tmp_path), load(tmp_path, split_seed=1)
    assert first.split_hashes != second.split_hashes
    assert first.fingerprint == second.fingerprint


def test_mirroring_is_that_of_the_source_unless_told(tmp_path):
    source = replace(make_source(train=noise(60)), hflip=False)
    assert load(tmp_path, source).hflip is False
    assert load(tmp_path, source, hflip=True).hflip is True


def test_splits_that_the_data_brings_are_kept(tmp_path):
    source = make_source(train=noise(10), val=noise(8, 1), test=noise(6, 2))
    dataset = load(tmp_path, source)
    assert [len(dataset.splits[name]) for name in ("train", "val", "test")] == [10, 8, 6]
    assert dataset.splits["val"].images is not dataset.splits["train"].images


def test_a_missing_validation_split_is_cut_from_train(tmp_path):
    source = make_source(train=noise(40), test=noise(10, 1))
    dataset = load(tmp_path, source, val_fraction=0.2)
    sizes = [len(dataset.splits[name]) for name in ("train", "val", "test")]
    assert sizes[0] + sizes[1] == 40
    assert sizes[1:] == [5, 10]
    assert dataset.splits["val"].images is dataset.splits["train"].images


def test_a_class_without_images_in_a_split_is_refused(tmp_path):
    source = make_source(train=noise(10), test=noise(1, 1))
    with pytest.raises(DataError, match=r"data: the splits .* \(train 2, test 1\): no b in test"):
        load(tmp_path, source)


def test_images_too_few_to_be_split_are_refused_with_a_seed_that_would_do(tmp_path):
    source = make_source(train=noise(4))
    with pytest.raises(DataError, match=r"or cut with data\.split_seed \d+$") as caught:
        load(tmp_path, source)
    seed = int(str(caught.value).split()[-1])
    assert all(load(tmp_path, source, split_seed=seed).splits.values())


def test_classes_that_the_cut_left_out_are_told_in_one_line_with_a_seed_that_would_do(tmp_path):
    source = make_source(classes=tuple("abcde"), labels=lambda i: i % 5, train=noise(40))
    dataset = load(tmp_path, source)
    absent = {
        name: [
            dataset.class_names[label]
            for label, count in enumerate(class_counts(dataset.splits[name], 5))
            if count == 0
        ]
        for name in ("val", "test")
    }
    (note,) = dataset.notes
    assert note.startswith(f"no val image of {', '.join(absent['val'])}")
    assert absent["val"]
    other = load(tmp_path, source, split_seed=int(note.split()[-1]))
    assert other.notes == ()
    for name in ("train", "val", "test"):
        assert min(class_counts(other.splits[name], 5)) > 0


def test_images_without_labels_are_all_for_training(tmp_path):
    dataset = load(tmp_path, make_source(classes=(), train=noise(20)))
    assert not dataset.labelled
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 20,
        "labelled": 0,
        "val": 0,
        "test": 0,
    }
    assert [class_counts(split, dataset.num_classes) for split in dataset.splits.values()] == [
        []
    ] * 4
    assert dataset.mean == pytest.approx((noise(20) / 255).mean(axis=(0, 1, 2)))


def test_test_images_that_are_in_train_are_told_with_what_they_are_worth(tmp_path):
    train, test = noise(400), noise(200, 1)
    test[6:9] = train[10:13]
    dataset = load(tmp_path, make_source(train=train, test=test))
    assert dataset.notes == (
        "3 of 200 test images are also in train (same pixels): the test accuracy may be up to 1.5 "
        "points too high; the splits stay as they come; first: test/006.png = train/010.png",
    )


def test_repeats_under_another_class_are_told(tmp_path):
    train, test = noise(40), noise(2, 1)
    train[21] = train[6]
    train[30] = train[8]
    test[:] = train[0]
    dataset = load(tmp_path, make_source(train=train, test=test))
    in_train, across, in_test = dataset.notes
    assert in_train == (
        "1 of 40 train images repeat one of another class (same pixels); first: train/021.png = "
        "train/006.png"
    )
    assert across == (
        "2 of 2 test images are also in train (same pixels), 1 of them under another class: the "
        "test accuracy may be up to 50 points too high; the splits stay as they come; first: "
        "test/001.png = train/000.png"
    )
    assert in_test.startswith("1 of 2 test images repeat one of another class")


def test_images_of_train_under_another_class_flatter_no_accuracy(tmp_path):
    train, test = noise(40), noise(6, 1)
    test[3] = train[0]
    (note,) = load(tmp_path, make_source(train=train, test=test)).notes
    assert note == (
        "1 of 6 test images are also in train (same pixels), 1 of them under another class; the "
        "splits stay as they come; first: test/003.png = train/000.png"
    )


def test_repeats_in_one_class_need_no_note(tmp_path):
    train = noise(40)
    train[20] = train[6]
    dataset = load(tmp_path, make_source(train=train))
    hashes = np.concatenate([dataset.content_hashes[name] for name in ("train", "val", "test")])
    assert len(np.unique(hashes)) == 39
    assert dataset.notes == ()


@pytest.mark.parametrize(("size", "usual"), [(9, 8), (30, 28), (33, 32), (300, 256)])
def test_images_are_packed_at_the_usual_size_nearest_to_theirs(tmp_path, size, usual):
    source = make_source(image_size=None, train=noise(24, side=size))
    assert usual_size(source.list_images()) == usual
    assert load(tmp_path, source).image_size == usual
    assert load(tmp_path, source, image_size=16).image_size == 16


def test_a_size_found_once_is_remembered_and_a_broken_note_of_it_mended(tmp_path):
    calls = []
    source = make_source(image_size=None, train=noise(24, side=30))
    listing = source.list_images()

    def list_images() -> Listing:
        calls.append(0)
        return listing

    source = replace(source, list_images=list_images)
    assert [find_image_size(source, cache_dir=tmp_path) for _ in range(2)] == [28, 28]
    assert len(calls) == 1
    (path,) = (tmp_path / "packed").iterdir()
    path.write_text("29")
    assert find_image_size(source, cache_dir=tmp_path) == 28
    assert load(tmp_path, replace(source, key="other")).image_size == 28
    assert len(calls) == 3  # sizing and packing share one


def test_data_in_a_cache_that_cannot_be_written_is_split_as_in_one_that_can(tmp_path, monkeypatch):
    source = make_source(image_size=None, train=noise(60))
    dataset = load(tmp_path, source)
    for path in (*dataset.store_path.glob("splits-*"), *(tmp_path / "packed").glob("*.size")):
        path.unlink()

    def fail(path: Path, *arguments: object, **options: object) -> None:
        raise OSError(30, "Read-only file system", str(path))

    for name in (
        "smallvit.data.files.store.FileLock",
        "pathlib.Path.write_text",
        "pathlib.Path.mkdir",
    ):
        monkeypatch.setattr(name, fail)
    again = load(tmp_path, source)
    assert (again.split_hashes, again.image_size) == (dataset.split_hashes, dataset.image_size)
    assert (again.mean, again.std) == (dataset.mean, dataset.std)


def test_images_none_of_which_decodes_are_refused():
    def fail(i: int) -> Image.Image:
        raise OSError

    split = SourceSplit(names=["x.png", "y.png"], labels=np.zeros(2, dtype=int), read=fail)
    with pytest.raises(DataError, match=r"none of the 2 images .* first: x\.png"):
        usual_size(Listing(class_names=("a",), splits={"train": split}))


def test_moving_a_dataset_moves_each_array_once(tmp_path):
    moved = load(tmp_path).to(META)
    assert moved.splits["train"].images is moved.splits["test"].images
    assert moved.splits["train"].images.device == META
    assert moved.notes == load(tmp_path).notes


def test_on_the_cpu_images_stay_memory_mapped(tmp_path):
    dataset = load(tmp_path)
    images = dataset.splits["train"].images
    assert dataset.to(CPU).splits["train"].images.data_ptr() == images.data_ptr()


@pytest.mark.parametrize(
    ("max_bytes", "devices"),
    [
        (None, ["meta", "meta"]),
        (60 * 192, ["meta", "meta"]),
        (60 * 192 - 1, ["meta", "cpu"]),
        (40 * 192 - 1, ["cpu", "meta"]),
        (0, ["cpu", "cpu"]),
    ],
)
def test_arrays_that_do_not_fit_stay_on_the_host(tmp_path, max_bytes, devices):
    dataset = load(tmp_path, make_source(train=noise(40), test=noise(20, 1)))
    moved = dataset.to(META, max_bytes=max_bytes)
    parts = [moved.splits[name] for name in ("train", "test")]
    assert [part.images.device.type for part in parts] == devices
    assert all(part.labels.device == part.index.device == META for part in parts)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gets_the_same_images_streamed_as_moved(tmp_path):
    dataset, device = load(tmp_path), torch.device("cuda")
    streamed = dataset.to(device, max_bytes=0).splits["val"]
    moved = dataset.to(device).splits["val"]
    position = torch.arange(len(moved), device=device).flip(0)
    assert (streamed.images.device.type, moved.images.device.type) == ("cpu", "cuda")
    assert streamed.take(position).device == moved.images.device
    assert torch.equal(streamed.take(position), moved.take(position))
    wanted = dataset.splits["val"].take(position.cpu())
    assert torch.equal(streamed.take(position).cpu(), wanted)


def test_dataset_and_path_together_are_refused():
    with pytest.raises(ConfigError, match=r"data\.dataset \('digits'\) and data\.path \('x'\)"):
        DataConfig(dataset="digits", path=Path("x"))


def test_an_unknown_dataset_is_refused_when_the_config_is_made():
    with pytest.raises(UnknownNameError, match="unknown dataset 'digit'; did you mean 'digits'"):
        DataConfig(dataset="digit")


def test_a_dataset_of_the_hub_needs_no_entry():
    config = DataConfig(dataset="hf:owner/name@abc", image_column="img", label_column="y")
    assert config.dataset == "hf:owner/name@abc"


@pytest.mark.parametrize("name", ["image_column", "label_column"])
def test_columns_of_a_known_dataset_are_refused(name):
    with pytest.raises(ConfigError, match=rf"data\.{name} is for tables and the Hub, not for cif"):
        replace(DataConfig(dataset="cifar10"), **{name: "x"})


def test_no_data_named_lists_what_there_is(tmp_path):
    with pytest.raises(ConfigError, match=r"no data named: .*cifar10, cifar100, "):
        load_dataset(DataConfig(), data_dir=tmp_path, cache_dir=tmp_path)


def test_a_folder_of_the_users_is_opened_and_packed(tmp_path):
    config = DataConfig(path=make_folder(tmp_path / "mine", num=30))
    dataset = load_dataset(config, data_dir=tmp_path, cache_dir=tmp_path, offline=True)
    assert (dataset.name, dataset.class_names, dataset.image_size) == ("mine", ("a", "b"), 8)
    assert sum(len(dataset.splits[name]) for name in ("train", "val", "test")) == 30


def test_columns_are_handed_to_the_reader_of_a_table(tmp_path):
    make_folder(tmp_path, num=4)
    lines = [f"{'ab'[i % 2]}/{i:03}.png,{'xy'[i % 2]}\n" for i in range(4)]
    (tmp_path / "table.csv").write_text("where,what\n" + "".join(lines))
    config = DataConfig(path=tmp_path / "table.csv", image_column="where", label_column="what")
    source = open_source(config, data_dir=tmp_path, offline=True)
    assert source.list_images().class_names == ("x", "y")


def test_a_dataset_that_comes_with_a_library_needs_no_files(tmp_path):
    config = DataConfig(dataset="digits")
    dataset = load_dataset(config, data_dir=tmp_path, cache_dir=tmp_path, offline=True)
    assert sum(len(dataset.splits[name]) for name in ("train", "val", "test")) == 1797
    assert not dataset.hflip


def test_an_absent_dataset_is_fetched_before_it_is_opened(tmp_path, monkeypatch):
    calls, source = [], make_source(train=noise(4))

    def fetch_dataset(spec: DatasetSpec, data_dir: Path, **options: object) -> None:
        calls.append((spec.name, data_dir, options))

    def open_named(spec: DatasetSpec, *, data_dir: Path) -> Source:
        calls.append((spec.name, data_dir))
        return source

    monkeypatch.setattr("smallvit.data.files.fetch.fetch_dataset", fetch_dataset)
    monkeypatch.setattr("smallvit.data.files.official.open_named", open_named)
    config = DataConfig(dataset="cifar10")
    assert open_source(config, data_dir=tmp_path, offline=False, progress=print) is source
    assert calls == [
        ("cifar10", tmp_path, {"offline": False, "progress": print}),
        ("cifar10", tmp_path),
    ]


def test_an_absent_dataset_is_explained_offline(tmp_path):
    with pytest.raises(DataError, match=r"cifar10.*https://"):
        open_source(DataConfig(dataset="cifar10"), data_dir=tmp_path, offline=True)


def test_an_absent_dataset_of_the_hub_is_explained_offline(tmp_path):
    config = DataConfig(dataset=f"hf:owner/name@{'0' * 40}")
    with pytest.raises(DataError, match="owner/name"):
        open_source(config, data_dir=tmp_path, offline=True)


def write_forms(top: Path, labels: list[str], pixels: np.ndarray) -> dict[str, Path]:
    """Write the same images and labels in several forms, in other orders and under other names."""
    forms = {name: top / name / "data" for name in ("folders", "renamed")}
    rows = []
    for i, (label, image) in enumerate(zip(labels, pixels, strict=True)):
        for form, name in (("folders", f"{i:03}.png"), ("renamed", f"{997 * i % 1000:03}.bmp")):
            path = forms[form] / label / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        rows.append(f"{forms['folders'] / label / f'{i:03}.png'},{label}")
    for name, order in (("rows", rows), ("backwards", rows[::-1])):
        forms[name] = top / f"{name}.csv"
        forms[name].write_text("\n".join(["image_path,label", *order]))
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    content = [
        (forms["folders"] / label / f"{i:03}.png").read_bytes() for i, label in enumerate(labels)
    ]
    order = np.random.default_rng(1).permutation(len(labels))
    column = [{"bytes": content[i], "path": None} for i in order]
    tables = {
        "text": pa.table({"image": column, "label": [labels[i] for i in order]}),
        "numbers": pa.table({"image": column, "label": [int(labels[i]) for i in order]}),
    }
    names = sorted(set(labels))  # as text, which other tools number by
    feature = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    numbered = pa.table({"image": column, "label": [names.index(labels[i]) for i in order]})
    tables["named"] = numbered.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": feature}})}
    )
    forms["arrays"] = top / "arrays.npz"
    numbers = np.asarray([int(labels[i]) for i in order])
    np.savez(forms["arrays"], train_images=pixels[order], train_labels=numbers[:, None])
    for name, table in tables.items():
        forms[name] = top / f"{name}.parquet"
        pq.write_table(table, forms[name])
    return forms


def test_one_data_set_has_one_order_cut_and_fingerprint_in_whatever_form(tmp_path):
    labels = [("2", "10", "1")[i % 3] for i in range(90)]
    pixels = noise(90)
    pixels[81] = pixels[0]  # one repeated in its class
    pixels[82] = pixels[3]  # and one under another
    seen = {}
    for form, path in write_forms(tmp_path, labels, pixels).items():
        config = DataConfig(path=path, label_fraction=0.5)
        data = load_dataset(config, data_dir=tmp_path, cache_dir=tmp_path / "cache", offline=True)
        assert data.class_names == ("1", "2", "10"), form
        order = {
            name: (
                split.take(torch.arange(len(split))).tolist(),
                split.labels[split.index].tolist(),
            )
            for name, split in data.splits.items()
        }
        seen[form] = data.fingerprint, data.split_hashes, data.mean, data.std, order
    assert all(facts == seen["folders"] for facts in seen.values())


def test_adding_images_and_another_size_move_no_other_image(tmp_path):
    def sides(config: DataConfig) -> dict[int, str]:
        data = load_dataset(config, data_dir=tmp_path, cache_dir=tmp_path / "cache", offline=True)
        return {
            content: name
            for name in ("train", "val", "test")
            for content in data.content_hashes[name].tolist()
        }

    path = make_folder(tmp_path / "mine", num=60)
    before = sides(DataConfig(path=path))
    for i, image in enumerate(noise(12, seed=1)):
        Image.fromarray(image).save(path / "ab"[i % 2] / f"{i:02}-new.png")
    after = sides(DataConfig(path=path))
    assert len(before) == 60
    assert len(after) == 72
    assert before.items() <= after.items()
    assert sides(DataConfig(path=path, image_size=16)) == after


def test_the_first_cut_keeps_the_order_of_files_and_of_classes_as_text(tmp_path):
    forms = write_forms(tmp_path, [("2", "10")[i % 2] for i in range(40)], noise(40))
    config = DataConfig(path=forms["folders"], split_version=1)
    data = load_dataset(config, data_dir=tmp_path, cache_dir=tmp_path / "cache", offline=True)
    assert data.class_names == ("10", "2")
    assert all((split.index.diff() > 0).all() for split in data.splits.values())


def test_a_known_dataset_keeps_the_published_order_of_its_images(tmp_path):
    config = DataConfig(dataset="digits")
    data = load_dataset(config, data_dir=tmp_path, cache_dir=tmp_path, offline=True)
    assert all((split.index.diff() > 0).all() for split in data.splits.values())
