import itertools
import json
import logging
import re
from functools import partial

import numpy as np
import pytest
import torch

from smallvit.core.errors import DataError
from smallvit.data.files.splits import (
    Cut,
    CutSettings,
    StoredCut,
    cut_by_position,
    cut_splits,
    find_seed,
    split_hash,
    stored_cut,
)

CLASSES = 4
LABELS = np.asarray([i % CLASSES for i in range(2000)] + [0] * 200)
CONTENTS = np.random.default_rng(0).integers(0, 1 << 64, len(LABELS), dtype=np.uint64)
NAMES = ("ant", "bee", "cat", "dog")
FRACTIONS = (0.001, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)


def cut(labels: np.ndarray = LABELS, contents: np.ndarray = CONTENTS, **changes) -> Cut:
    arguments = {"val_fraction": 0.1, "test_fraction": 0.2, "label_fraction": 1.0, "seed": 0}
    return cut_splits(labels, contents, NAMES, CutSettings(**(arguments | changes)))


def sides(found: Cut, num: int = len(LABELS)) -> np.ndarray:
    side = np.full(num, -1)
    for number, name in enumerate(("train", "val", "test")):
        side[vars(found)[name]] = number
    return side


def stored(**changes) -> StoredCut:
    return StoredCut(**vars(cut(**changes)), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))


def fail() -> StoredCut:
    raise AssertionError("cut anew")


def test_the_cut_of_a_seed_never_changes():
    # Results under a split seed must stay comparable.
    contents = np.arange(24, dtype=np.uint64) + np.uint64((1 << 64) - 12)  # on both sides of 0
    found = cut_splits(
        np.asarray([i % 3 for i in range(24)]),
        contents,
        "abc",
        CutSettings(val_fraction=0.2, test_fraction=0.25, label_fraction=0.5, seed=7),
    )
    assert found.train.tolist() == [0, 1, 2, 3, 4, 5, 6, 9, 10, 11, 16, 17, 18, 19, 22]
    assert found.labelled.tolist() == [3, 4, 6, 11, 16, 17, 22]
    assert found.val.tolist() == [13, 14]
    assert found.test.tolist() == [7, 8, 12, 15, 20, 21, 23]


def test_the_first_cut_of_a_seed_never_changes():
    # Indices of the first release, which runs that name no version have.
    found = cut_by_position(
        np.asarray([i % 3 for i in range(24)]),
        np.arange(24, dtype=np.uint64)[::-1].copy(),
        "abc",
        CutSettings(val_fraction=0.2, test_fraction=0.25, label_fraction=0.5, seed=7),
    )
    assert found.train.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 14, 18, 22, 23]
    assert found.labelled.tolist() == [1, 4, 12, 14, 18, 23]
    assert found.val.tolist() == [16, 20, 21]
    assert found.test.tolist() == [6, 10, 11, 15, 17, 19]


def test_copies_followed_the_first_in_the_first_cut():
    contents = np.concatenate([np.arange(220), [3, 3, 60]]).astype(np.uint64)
    labels = np.concatenate([LABELS[:220], [3, 1, 0]])  # the second copy has another class
    settings = CutSettings(val_fraction=0.1, test_fraction=0.2, label_fraction=1.0, seed=0)
    plain = cut_by_position(labels[:220], contents[:220], NAMES, settings)
    side = sides(cut_by_position(labels, contents, NAMES, settings), 223)
    before = sides(plain, 220)
    assert side.tolist() == [*before, before[3], before[3], before[60]]


def test_parts_are_sorted_disjoint_and_cover_everything():
    found = cut(label_fraction=0.3)
    together = np.concatenate([found.train, found.val, found.test])
    assert np.array_equal(np.sort(together), np.arange(len(LABELS)))
    for index in vars(found).values():
        assert np.array_equal(index, np.sort(index))


def test_every_class_gets_its_shares_up_to_chance():
    side = sides(cut())
    for label in range(CLASSES):
        counts = np.bincount(side[label == LABELS], minlength=3)
        for count, share in zip(counts, (0.72, 0.08, 0.2), strict=True):
            wanted, spread = counts.sum() * share, np.sqrt(counts.sum() * share * (1 - share))
            assert abs(count - wanted) < 3 * spread


def test_added_images_and_another_order_move_no_image():
    side = sides(cut())
    order = np.random.default_rng(1).permutation(len(LABELS))
    assert np.array_equal(sides(cut(LABELS[order], CONTENTS[order])), side[order])
    fewer = order[:600]
    assert np.array_equal(sides(cut(LABELS[fewer], CONTENTS[fewer]), 600), side[fewer])


def test_another_label_moves_no_image():
    labels = (LABELS + 1) % CLASSES
    assert np.array_equal(sides(cut(labels)), sides(cut()))


def test_images_of_the_same_content_are_on_one_side():
    contents = CONTENTS[np.random.default_rng(0).integers(0, 900, len(LABELS))]
    found = cut(contents=contents, label_fraction=0.5)
    side = sides(found)
    assert (side >= 0).all()
    for value in np.unique(contents):
        members = np.flatnonzero(contents == value)
        assert len(set(side[members].tolist())) == 1
        assert np.isin(members, found.labelled).sum() in (0, len(members))


def test_labelled_images_are_the_rounded_fraction_of_each_class():
    found = cut(label_fraction=0.25)
    assert set(found.labelled) < set(found.train)
    wanted = [round(count * 0.25) for count in np.bincount(LABELS[found.train])]
    assert np.bincount(LABELS[found.labelled]).tolist() == wanted


def test_a_labelled_fraction_is_that_of_the_different_images():
    many = np.concatenate([CONTENTS, np.full(500, CONTENTS[cut().train[0]])])
    labels = np.concatenate([LABELS, np.full(500, LABELS[cut().train[0]])])
    found = cut(labels, many, label_fraction=0.1)
    assert set(found.labelled[found.labelled < len(LABELS)]) == set(
        cut(label_fraction=0.1).labelled
    )


@pytest.mark.parametrize("fraction", FRACTIONS)
def test_label_fractions_are_stratified_and_the_same_in_any_order(fraction):
    found = cut(label_fraction=fraction)
    per_class = np.bincount(LABELS[found.labelled], minlength=CLASSES)
    wanted = np.bincount(LABELS[found.train]) * fraction
    assert (np.abs(per_class - np.maximum(wanted, 1)) <= 0.5).all()
    again = cut(LABELS[::-1], CONTENTS[::-1].copy(), label_fraction=fraction)
    assert set(len(LABELS) - 1 - again.labelled) == set(found.labelled)


def test_label_fractions_are_nested():
    parts = [set(cut(label_fraction=f).labelled) for f in FRACTIONS]
    assert all(small < large for small, large in itertools.pairwise(parts))
    assert len(parts[0]) == CLASSES  # at least one a class
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


def seed_named(error: DataError) -> int:
    found = re.search(r"data\.split_seed (\d+)$", str(error))
    assert found is not None, error
    return int(found[1])


def test_a_class_that_the_cut_leaves_nothing_to_train_on_is_named_with_a_seed_that_does():
    for content in np.flatnonzero(sides(cut()) > 0)[:20]:
        labels = np.asarray([0] * 40 + [1])
        contents = np.concatenate([CONTENTS[:40], CONTENTS[[content]]])
        settings = CutSettings(val_fraction=0.1, test_fraction=0.2, label_fraction=1.0, seed=0)
        call = partial(cut_splits, labels, contents, NAMES[:2])
        with pytest.raises(
            DataError, match="class 'bee' has 1 image, and the cut leaves"
        ) as caught:
            call(settings)
        found = call(settings._replace(seed=seed_named(caught.value)))
        assert 40 in found.train


@pytest.mark.parametrize("split", ["val", "test"])
def test_an_empty_split_is_refused_with_a_seed_that_fills_it(split):
    some = np.flatnonzero(sides(cut()) != {"val": 1, "test": 2}[split])[:30]
    with pytest.raises(DataError, match=f"none of the 30 images falls into the {split} split") as e:
        cut(LABELS[some], CONTENTS[some])
    found = cut(LABELS[some], CONTENTS[some], seed=seed_named(e.value))
    assert len(found.val) > 0
    assert len(found.test) > 0


def test_no_seed_is_named_where_none_would_do():
    with pytest.raises(DataError, match=r"give the splits yourself$"):
        cut(LABELS[:4], np.full(4, 7, dtype=np.uint64))


def test_a_seed_that_gives_every_class_of_each_split_is_found():
    labels, contents = LABELS[:40], CONTENTS[:40]
    seed = find_seed(labels, contents, NAMES, CutSettings(0.1, 0.2, 1.0, seed=0))
    assert seed is not None
    found = cut(labels, contents, seed=seed)
    for index in (found.train, found.val, found.test):
        assert set(labels[index]) == set(range(CLASSES))


def test_a_stored_cut_is_loaded_as_it_was(tmp_path, caplog):
    found = stored(label_fraction=0.5, val_fraction=0.0)
    assert stored_cut(tmp_path, "settings", lambda: found) is found
    loaded = stored_cut(tmp_path, "settings", fail)
    assert (loaded.mean, loaded.std) == (found.mean, found.std)
    for name in ("train", "labelled", "val", "test"):
        assert np.array_equal(getattr(loaded, name), getattr(found, name))
    with pytest.raises(AssertionError, match="cut anew"):
        stored_cut(tmp_path, "other settings", fail)
    assert len(list(tmp_path.iterdir())) == 1
    assert caplog.records == []


@pytest.mark.parametrize("text", ["", '{"train": [0', "[]", '{"train": [0]}'])
def test_a_broken_stored_cut_is_made_anew_with_a_warning(tmp_path, caplog, text):
    stored_cut(tmp_path, 0, stored)
    (path,) = tmp_path.glob("splits-*.json")
    whole = path.read_text()
    path.write_text(text)
    with caplog.at_level(logging.WARNING, logger="smallvit"):
        stored_cut(tmp_path, 0, stored)
    assert f"{path} in the cache is broken" in caplog.text
    assert path.read_text() == whole


def test_a_stored_cut_with_an_altered_index_is_not_used(tmp_path, caplog):
    stored_cut(tmp_path, 0, stored)
    (path,) = tmp_path.glob("splits-*.json")
    plain = json.loads(path.read_text())
    plain["test"][0] = plain["train"][0]
    path.write_text(json.dumps(plain))
    with pytest.raises(AssertionError, match="cut anew"):
        stored_cut(tmp_path, 0, fail)
    assert "the indices do not fit their hash" in caplog.text


def test_hash_of_a_split_tells_indices_and_borders_apart():
    a, b = np.asarray([1, 2]), np.asarray([3])
    assert split_hash(a, b) == split_hash(torch.tensor([1, 2]), torch.tensor([3]))
    assert len({split_hash(a, b), split_hash(b, a), split_hash(np.asarray([1, 2, 3]))}) == 3


def test_no_seed_is_tried_where_a_class_has_too_few_different_images(monkeypatch):
    labels = np.array([0] * 30 + [1] * 5)
    contents = np.concatenate([np.arange(30), [100, 100, 100, 101, 101]]).astype(np.uint64)
    monkeypatch.setattr("smallvit.core.rng.uniform", None)
    settings = CutSettings(0.2, 0.2, 1.0, seed=0)
    assert find_seed(labels, contents, ("a", "b"), settings) is None
