import itertools
import json
import logging

import numpy as np
import pytest
import torch

from smallvit.core.errors import DataError
from smallvit.data.splits import Cut, StoredCut, cut_splits, load_cut, split_hash, store_cut

LABELS = np.asarray([i % 4 for i in range(200)] + [0] * 20)
NAMES = ("ant", "bee", "cat", "dog")
FRACTIONS = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)


def cut(labels: np.ndarray = LABELS, **changes) -> Cut:
    arguments = {"val_fraction": 0.1, "test_fraction": 0.2, "label_fraction": 1.0, "seed": 0}
    return cut_splits(labels, class_names=NAMES, **(arguments | changes))


def sides(found: Cut, num: int) -> np.ndarray:
    side = np.full(num, -1)
    for number, name in enumerate(("train", "val", "test")):
        side[vars(found)[name]] = number
    return side


def stored(**changes) -> StoredCut:
    return StoredCut(cut=cut(**changes), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


def test_class_counts_of_each_part_are_the_rounded_fractions():
    # Class 0 has 70 images: 14 for testing, 6 of the other 56 for validation; the others have 50.
    found = cut()
    counts = {name: np.bincount(LABELS[index]).tolist() for name, index in vars(found).items()}
    assert counts["test"] == [14, 10, 10, 10]
    assert counts["val"] == [6, 4, 4, 4]
    assert counts["train"] == [50, 36, 36, 36] == counts["labelled"]


@pytest.mark.parametrize("hashes", [None, np.arange(24, dtype=np.uint64)[::-1].copy()])
def test_the_cut_of_a_seed_never_changes(hashes):
    # Indices of the first release: results under a split seed must stay comparable.
    labels = np.asarray([i % 3 for i in range(24)])
    found = cut_splits(
        labels,
        class_names="abc",
        val_fraction=0.2,
        test_fraction=0.25,
        label_fraction=0.5,
        seed=7,
        hashes=hashes,
    )
    assert found.train.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 14, 18, 22, 23]
    assert found.labelled.tolist() == [1, 4, 12, 14, 18, 23]
    assert found.val.tolist() == [16, 20, 21]
    assert found.test.tolist() == [6, 10, 11, 15, 17, 19]


def test_parts_are_sorted_disjoint_and_cover_everything():
    found = cut(label_fraction=0.3)
    together = np.concatenate([found.train, found.val, found.test])
    assert np.array_equal(np.sort(together), np.arange(len(LABELS)))
    for index in vars(found).values():
        assert np.array_equal(index, np.sort(index))


def test_images_of_the_same_content_are_on_one_side():
    hashes = np.random.default_rng(0).integers(0, 90, len(LABELS), dtype=np.uint64)
    found = cut(hashes=hashes, label_fraction=0.5)
    side = sides(found, len(LABELS))
    assert (side >= 0).all()
    for value in np.unique(hashes):
        members = np.flatnonzero(hashes == value)
        assert len(set(side[members].tolist())) == 1
        assert np.isin(members, found.labelled).sum() in (0, len(members))


def test_copies_follow_the_first_and_move_nothing():
    hashes = np.concatenate([np.arange(220), [3, 3, 60]]).astype(np.uint64)
    labels = np.concatenate([LABELS, [3, 1, 0]])  # the second copy has another class
    side, plain = sides(cut(labels, hashes=hashes), 223), sides(cut(), 220)
    assert side.tolist() == [*plain, plain[3], plain[3], plain[60]]


def test_counts_are_those_of_the_different_images():
    labels = np.repeat([0, 1, 2, 3], 10)
    labels = np.concatenate([labels, np.zeros(30, dtype=np.int64)])
    hashes = np.concatenate([np.arange(40), np.zeros(30)]).astype(np.uint64)  # 30 copies of one
    found = cut(labels, hashes=hashes)
    first = {name: index[index < 40] for name, index in vars(found).items()}
    assert np.bincount(labels[first["test"]]).tolist() == [2, 2, 2, 2]
    assert np.bincount(labels[first["val"]]).tolist() == [1, 1, 1, 1]


def test_labelled_images_are_training_images():
    found = cut(label_fraction=0.25)
    assert set(found.labelled) < set(found.train)
    assert np.bincount(LABELS[found.labelled]).tolist() == [12, 9, 9, 9]


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_label_fractions_are_stratified_and_the_same_twice(fraction):
    found = cut(label_fraction=fraction)
    per_class = np.bincount(LABELS[found.labelled], minlength=4)
    wanted = np.bincount(LABELS[found.train]) * fraction
    assert (np.abs(per_class - np.maximum(wanted, 1)) <= 0.5).all()
    assert split_hash(found.labelled) == split_hash(cut(label_fraction=fraction).labelled)


def test_label_fractions_are_nested():
    parts = [set(cut(label_fraction=f).labelled) for f in FRACTIONS]
    assert all(small < large for small, large in itertools.pairwise(parts))
    assert len(parts[0]) == 4  # at least one a class
    assert parts[-1] == set(cut().train)


def test_label_fraction_changes_no_other_part():
    assert np.array_equal(cut(label_fraction=0.1).val, cut().val)
    assert np.array_equal(cut(label_fraction=0.1).test, cut().test)


def test_validation_fraction_does_not_move_the_test_split():
    assert np.array_equal(cut(val_fraction=0.5).test, cut().test)


def test_no_fraction_cuts_nothing():
    found = cut(val_fraction=0.0, test_fraction=0.0)
    assert len(found.val) == len(found.test) == 0
    assert len(found.train) == len(LABELS)


def test_same_seed_cuts_alike_and_another_otherwise():
    assert np.array_equal(cut().test, cut().test)
    assert not np.array_equal(cut().test, cut(seed=1).test)


def test_a_class_too_small_for_every_split_is_refused_by_name():
    labels = np.asarray([0] * 10 + [1] * 2)
    with pytest.raises(DataError, match="class 'bee' has 2 different images, too few for every"):
        cut(labels)


def test_copies_do_not_make_a_class_large_enough():
    labels = np.asarray([0] * 10 + [1] * 12 + [2] * 10 + [3] * 10)
    hashes = np.arange(42, dtype=np.uint64)
    hashes[10:22] = 10
    with pytest.raises(DataError, match="class 'bee' has 1 different images, too few"):
        cut(labels, hashes=hashes)


def test_a_stored_cut_is_loaded_as_it_was(tmp_path):
    found = stored(label_fraction=0.5, val_fraction=0.0)
    store_cut(found, tmp_path, "key")
    loaded = load_cut(tmp_path, "key")
    assert loaded is not None
    assert (loaded.mean, loaded.std) == (found.mean, found.std)
    for name, index in vars(found.cut).items():
        assert np.array_equal(vars(loaded.cut)[name], index)
    assert [path.name for path in tmp_path.iterdir()] == ["splits-key.json"]


def test_statistics_of_a_stored_cut_can_be_read(tmp_path):
    store_cut(stored(), tmp_path, "key")
    plain = json.loads((tmp_path / "splits-key.json").read_text())
    assert (plain["mean"], plain["std"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


def test_a_cut_that_was_never_stored_is_none_without_a_warning(tmp_path, caplog):
    assert load_cut(tmp_path, "key") is None
    assert caplog.records == []


@pytest.mark.parametrize("text", ["", '{"train": [0', "[]", '{"train": [0]}'])
def test_a_broken_stored_cut_is_none_with_a_warning(tmp_path, caplog, text):
    (tmp_path / "splits-key.json").write_text(text)
    with caplog.at_level(logging.WARNING, logger="smallvit"):
        assert load_cut(tmp_path, "key") is None
    assert "splits-key.json is broken" in caplog.text


def test_a_stored_cut_with_an_altered_index_is_not_used(tmp_path, caplog):
    store_cut(stored(), tmp_path, "key")
    path = tmp_path / "splits-key.json"
    plain = json.loads(path.read_text())
    plain["test"][0] = plain["train"][0]
    path.write_text(json.dumps(plain))
    assert load_cut(tmp_path, "key") is None
    assert "the indices do not fit their hash" in caplog.text


def test_hash_of_a_split_tells_indices_and_borders_apart():
    a, b = np.asarray([1, 2]), np.asarray([3])
    assert split_hash(a, b) == split_hash(torch.tensor([1, 2]), torch.tensor([3]))
    assert len({split_hash(a, b), split_hash(b, a), split_hash(np.asarray([1, 2, 3]))}) == 3
