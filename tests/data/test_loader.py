from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from smallvit.core.errors import ConfigError, DataError, UnknownNameError
from smallvit.data.loader import DataConfig, Dataset, Order, class_counts, load_dataset

CPU = torch.device("cpu")


def digits(cache: Path, **options) -> Dataset:
    return load_dataset(
        DataConfig(dataset="digits", **options), data_dir=cache, cache_dir=cache, offline=True
    )


def make_folder(
    top: Path, *, splits: tuple[str, ...] = ("",), num: int = 10, size: int = 8
) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (num, size, size, 3), dtype=np.uint8)
    for split in splits:
        for i, image in enumerate(pixels):
            path = top / split / "ab"[i % 2] / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return top


def load_folder(top: Path, cache: Path, **options) -> Dataset:
    return load_dataset(DataConfig(path=top, **options), data_dir=cache, cache_dir=cache)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(("size", "batch_size"), [(10, 3), (10, 5), (7, 7), (7, 16), (1, 4)])
def test_every_pass_sees_each_sample_once_and_drops_no_remainder(size, batch_size):
    order = Order(size, batch_size, 0, CPU)
    draws = [order.draw(step) for step in range(size * 3)]
    position = torch.cat([draw.position for draw in draws])
    epoch = torch.cat([draw.epoch for draw in draws])
    assert all(len(draw.position) == batch_size for draw in draws)
    for number in range(3):
        seen = position[number * size : (number + 1) * size]
        assert seen.sort().values.tolist() == list(range(size))
        assert (epoch[number * size : (number + 1) * size] == number).all()


def test_a_draw_depends_on_the_step_and_not_on_those_before():
    used, fresh = Order(10, 4, 0, CPU), Order(10, 4, 0, CPU)
    for step in (0, 9, 3, 8, 1):
        used.draw(step)
    for step in (7, 2):
        assert torch.equal(used.draw(step).position, fresh.draw(step).position)
        assert torch.equal(used.draw(step).epoch, fresh.draw(step).epoch)


def test_another_batch_size_sees_the_samples_in_the_same_order():
    small, large = Order(10, 2, 0, CPU), Order(10, 6, 0, CPU)
    few = torch.cat([small.draw(step).position for step in range(15)])
    many = torch.cat([large.draw(step).position for step in range(5)])
    assert torch.equal(few, many)


def test_passes_and_seeds_have_orders_of_their_own():
    order = Order(50, 50, 0, CPU)
    assert not torch.equal(order.draw(0).position, order.draw(1).position)
    assert not torch.equal(order.draw(0).position, Order(50, 50, 1, CPU).draw(0).position)


@pytest.mark.parametrize(("epochs", "steps"), [(1, 3), (3, 10), (0.5, 2), (0.01, 1), (0, 1)])
def test_steps_of_a_run_are_its_samples_over_the_batch_size(epochs, steps):
    assert Order(10, 3, 0, CPU).num_steps(epochs) == steps


def test_channel_statistics_equal_those_of_numpy(tmp_path):
    dataset = load_folder(make_folder(tmp_path / "data", num=40), tmp_path)
    train = dataset.splits["train"]
    pixels = train.images[train.index].numpy() / 255
    assert dataset.mean == pytest.approx(pixels.mean(axis=(0, 2, 3)))
    assert dataset.std == pytest.approx(pixels.std(axis=(0, 2, 3)))
    again = load_folder(tmp_path / "data", tmp_path)
    assert (again.mean, again.std) == (dataset.mean, dataset.std)


def test_broken_channel_statistics_are_computed_anew(tmp_path):
    top = make_folder(tmp_path / "data")
    dataset = load_folder(top, tmp_path)
    for path in dataset.store_path.glob("stats-*.json"):
        path.write_text("[[0.5")
    assert load_folder(top, tmp_path).mean == dataset.mean


def test_splits_cut_from_one_piece_are_disjoint_and_cover_it(cache):
    dataset = digits(cache)
    parts = [set(dataset.splits[name].index.tolist()) for name in ("train", "val", "test")]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 1797
    for name in ("train", "val", "test"):
        assert min(class_counts(dataset.splits[name], 10)) > 0


def test_label_fractions_are_nested_and_leave_the_training_split(cache):
    some, more = digits(cache, label_fraction=0.05), digits(cache, label_fraction=0.2)
    few, many = (set(d.splits["labelled"].index.tolist()) for d in (some, more))
    assert few < many < set(more.splits["train"].index.tolist())
    assert some.split_hashes["train"] == more.split_hashes["train"]
    assert some.split_hashes["labelled"] != more.split_hashes["labelled"]


def test_a_split_seed_changes_the_cut_and_not_the_pixels(cache):
    first, second = digits(cache), digits(cache, split_seed=1)
    assert first.split_hashes != second.split_hashes
    assert first.fingerprint == second.fingerprint


def test_digits_are_not_mirrored_unless_told(cache):
    assert digits(cache).hflip is False
    assert digits(cache, hflip=True).hflip is True


def test_a_folder_with_splits_keeps_them(tmp_path):
    top = make_folder(tmp_path / "data", splits=("train", "val", "test"))
    dataset = load_folder(top, tmp_path)
    assert [len(dataset.splits[name]) for name in ("train", "val", "test")] == [10, 10, 10]
    assert dataset.splits["val"].images is not dataset.splits["train"].images


def test_a_folder_without_a_validation_split_gets_one_cut_from_train(tmp_path):
    top = make_folder(tmp_path / "data", splits=("train", "test"))
    dataset = load_folder(top, tmp_path, val_fraction=0.2)
    assert [len(dataset.splits[name]) for name in ("train", "val", "test")] == [8, 2, 10]
    assert dataset.splits["val"].images is dataset.splits["train"].images


@pytest.mark.parametrize(("size", "usual"), [(9, 8), (30, 28), (33, 32), (300, 256)])
def test_a_folder_is_packed_at_the_usual_size_nearest_to_its_images(tmp_path, size, usual):
    top = make_folder(tmp_path / "data", size=size, num=8)
    assert load_folder(top, tmp_path).image_size == usual


def test_moving_a_dataset_moves_each_array_once(cache):
    moved = digits(cache).to(CPU)
    assert moved.splits["train"].images is moved.splits["test"].images
    assert moved.split_hashes == digits(cache).split_hashes


def test_dataset_and_path_together_are_refused():
    with pytest.raises(ConfigError, match=r"data\.dataset \('digits'\) and data\.path \('x'\)"):
        DataConfig(dataset="digits", path=Path("x"))


def test_an_unknown_dataset_is_refused_when_the_config_is_made():
    with pytest.raises(UnknownNameError, match="unknown dataset 'digit'; did you mean 'digits'"):
        DataConfig(dataset="digit")


def test_no_data_named_lists_what_there_is(tmp_path):
    with pytest.raises(ConfigError, match=r"no data named: .*cifar10, cifar100, digits"):
        load_dataset(DataConfig(), data_dir=tmp_path, cache_dir=tmp_path)


def test_a_class_too_small_to_be_split_is_refused(tmp_path):
    top = make_folder(tmp_path / "data", num=4)
    with pytest.raises(DataError, match="class 0 has 2 images, too few for every split"):
        load_folder(top, tmp_path)


def test_files_none_of_which_decodes_are_refused(tmp_path):
    for label in "ab":
        (tmp_path / "data" / label).mkdir(parents=True)
        (tmp_path / "data" / label / "1.png").write_bytes(b"")
    with pytest.raises(DataError, match="none of the first files looked at can be decoded"):
        load_folder(tmp_path / "data", tmp_path)
