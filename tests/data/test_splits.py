import itertools

import numpy as np
import pytest
import torch

from smallvit.core.errors import DataError
from smallvit.data.splits import Cut, cut_splits, load_cut, split_hash, store_cut

LABELS = np.asarray([i % 4 for i in range(200)] + [0] * 20)


def cut(**changes) -> Cut:
    arguments = {"val_fraction": 0.1, "test_fraction": 0.2, "label_fraction": 1.0, "seed": 0}
    return cut_splits(LABELS, num_classes=4, **(arguments | changes))


def test_class_counts_of_each_part_are_the_rounded_fractions():
    # Class 0 has 70 images: 14 for testing, 6 of the other 56 for validation; the others have 50.
    found = cut()
    counts = {name: np.bincount(LABELS[index]).tolist() for name, index in vars(found).items()}
    assert counts["test"] == [14, 10, 10, 10]
    assert counts["val"] == [6, 4, 4, 4]
    assert counts["train"] == [50, 36, 36, 36] == counts["labelled"]


def test_parts_are_sorted_disjoint_and_cover_everything():
    found = cut(label_fraction=0.3)
    together = np.concatenate([found.train, found.val, found.test])
    assert np.array_equal(np.sort(together), np.arange(len(LABELS)))
    for index in vars(found).values():
        assert np.array_equal(index, np.sort(index))


def test_labelled_images_are_training_images():
    found = cut(label_fraction=0.25)
    assert set(found.labelled) < set(found.train)
    assert np.bincount(LABELS[found.labelled]).tolist() == [12, 9, 9, 9]


def test_label_fractions_are_nested():
    parts = [set(cut(label_fraction=f).labelled) for f in (0.01, 0.05, 0.1, 0.5, 1.0)]
    assert all(small <= large for small, large in itertools.pairwise(parts))
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


def test_a_class_too_small_for_every_split_is_refused():
    labels = np.asarray([0] * 10 + [1] * 2)
    with pytest.raises(DataError, match="class 1 has 2 images, too few for every split"):
        cut_splits(
            labels, num_classes=2, val_fraction=0.1, test_fraction=0.2, label_fraction=1.0, seed=0
        )


def test_a_stored_cut_is_loaded_as_it_was(tmp_path):
    found = cut(label_fraction=0.5, val_fraction=0.0)
    store_cut(found, tmp_path, "key")
    loaded = load_cut(tmp_path, "key")
    assert loaded is not None
    assert all(np.array_equal(vars(loaded)[name], vars(found)[name]) for name in vars(found))
    assert [path.name for path in tmp_path.iterdir()] == ["splits-key.json"]


def test_a_cut_that_was_never_stored_is_none(tmp_path):
    assert load_cut(tmp_path, "key") is None


@pytest.mark.parametrize("text", ["", '{"train": [0', "[]", '{"train": [0]}'])
def test_a_broken_stored_cut_names_its_file(tmp_path, text):
    (tmp_path / "splits-key.json").write_text(text)
    with pytest.raises(DataError, match=r"the stored split .*splits-key\.json is broken"):
        load_cut(tmp_path, "key")


def test_hash_of_a_split_tells_indices_and_borders_apart():
    a, b = np.asarray([1, 2]), np.asarray([3])
    assert split_hash(a, b) == split_hash(torch.tensor([1, 2]), torch.tensor([3]))
    assert len({split_hash(a, b), split_hash(b, a), split_hash(np.asarray([1, 2, 3]))}) == 3
