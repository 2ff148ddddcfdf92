import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from smallvit.core.errors import ConfigError, DataError
from smallvit.data.dataset import Dataset, Split
from smallvit.teachers.score_maps import (
    ScoreMapHeader,
    ScoreMaps,
    open_score_maps,
    read_score_maps,
    write_score_maps,
)
from smallvit.teachers.tensor_file import write_tensors

CLASSES = tuple("abcdefghij")
HEADER = ScoreMapHeader(
    dataset="digits",
    fingerprint="f" * 64,
    split_hash="s" * 64,
    class_names=CLASSES,
    grid=(2, 2),
    image_size=16,
    teacher="resnet8_small",
    teacher_hash="t" * 64,
    teacher_train_top1=0.9,
    teacher_val_top1=0.8,
    extra_data="none",
)
DATASET = Dataset(
    name="digits",
    class_names=CLASSES,
    image_size=16,
    splits={
        "labelled": Split(
            images=torch.zeros(4, 3, 16, 16, dtype=torch.uint8),
            labels=torch.zeros(4).long(),
            index=torch.arange(4),
        )
    },
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    hflip=False,
    fingerprint=HEADER.fingerprint,
    split_hashes={"labelled": HEADER.split_hash},
    broken=(),
    store_path=Path(),
)
EVERY = torch.arange(4)
FIVE = replace(DATASET.splits["labelled"], index=torch.arange(5))


def draw(classes: int = 10, *, side: int = 2, sharpness: float = 2.0) -> torch.Tensor:
    logits = torch.randn(4, classes, side, side, generator=torch.Generator().manual_seed(0))
    return (sharpness * logits).softmax(dim=1)


@pytest.fixture
def maps() -> ScoreMaps:
    return ScoreMaps.from_dense([draw()], 5)


@pytest.fixture
def path(maps, tmp_path) -> Path:
    path = tmp_path / "score_maps.safetensors"
    write_score_maps(path, maps, HEADER)
    return path


def test_listed_classes_keep_their_probability_and_the_others_share_the_rest(maps):
    dense, prob = maps.dense(EVERY), draw()
    order = prob.argsort(dim=1, descending=True)
    listed, others = order[:, :5], order[:, 5:]
    kept, shared = dense.gather(1, listed), dense.gather(1, others)
    torch.testing.assert_close(kept, prob.gather(1, listed), rtol=1e-3, atol=1e-5)
    rest = prob.gather(1, others).sum(dim=1, keepdim=True) / 5
    torch.testing.assert_close(shared, rest.expand_as(shared), rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("sharpness", [0.1, 2.0, 20.0])
def test_no_unlisted_class_outranks_a_listed_one(sharpness):
    """Fault of the published code: logit 0 for the others, above the listed negative ones."""
    prob = draw(sharpness=sharpness)
    dense = ScoreMaps.from_dense([prob], 5).dense(EVERY)
    order = prob.argsort(dim=1, descending=True)
    lowest_listed = dense.gather(1, order[:, :5]).amin(dim=1)
    highest_unlisted = dense.gather(1, order[:, 5:]).amax(dim=1)
    # Below 6e-8 float16 has nothing but zero for a listed class.
    assert bool((highest_unlisted <= lowest_listed + 1e-6).all())
    assert torch.equal(dense.argmax(dim=1), prob.argmax(dim=1))


def test_negative_logits_keep_the_top_class_at_its_probability():
    """The case measured on the published code, where 0.717 fell to 0.484."""
    logits = torch.tensor([1.5, -0.5, -1.0, -1.5, -2.0, -3.0, -3.0, -3.5, -4.0, -4.0])
    prob = logits.softmax(dim=0)[None, :, None, None].expand(1, 10, 2, 2)
    dense = ScoreMaps.from_dense([prob], 5).dense(torch.tensor([0]))
    torch.testing.assert_close(dense[:, 0], prob[:, 0], rtol=1e-3, atol=0)


@pytest.mark.parametrize("top_k", [10, 50])
def test_all_classes_are_kept_where_k_reaches_them(top_k):
    maps = ScoreMaps.from_dense([draw()], top_k)
    assert maps.prob.shape == (4, 10, 2, 2)
    torch.testing.assert_close(maps.dense(EVERY), draw(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("classes", "top_k"), [(10, 5), (10, 10), (10, 1), (5000, 5), (2, 5)])
def test_distributions_sum_to_one(classes, top_k):
    dense = ScoreMaps.from_dense([draw(classes)], top_k).dense(EVERY)
    torch.testing.assert_close(dense.sum(dim=1), torch.ones(4, 2, 2), rtol=0, atol=1e-5)


def test_class_index_is_exact_above_2048():
    """The published code stores the index in float16, where 2049 is 2048."""
    prob = draw(5000, sharpness=5.0)
    maps = ScoreMaps.from_dense([prob], 5)
    assert torch.equal(maps.index.long(), prob.topk(5, dim=1).indices)
    assert maps.index.max() > 2048
    assert torch.equal(maps.dense(EVERY).argmax(dim=1), prob.argmax(dim=1))


def test_batches_are_joined_in_order(maps):
    parts = ScoreMaps.from_dense((part for part in draw().split([1, 3])), 5)
    assert torch.equal(parts.prob, maps.prob)
    assert torch.equal(parts.index, maps.index)


def test_positions_pick_images(maps):
    position = torch.tensor([3, 1, 3])
    assert torch.equal(maps.dense(position), maps.dense(EVERY)[position])


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (3, 3), (8, 8), (2, 5), (7, 1)])
def test_grids_of_any_shape_come_back(grid, tmp_path):
    """The published code needs a map of at least six columns."""
    logits = torch.randn(4, 10, *grid, generator=torch.Generator().manual_seed(0))
    maps = ScoreMaps.from_dense([logits.softmax(dim=1)], 10)
    write_score_maps(tmp_path / "maps.safetensors", maps, replace(HEADER, grid=grid))
    read, header = read_score_maps(tmp_path / "maps.safetensors")
    assert header.grid == grid
    torch.testing.assert_close(read.dense(EVERY), logits.softmax(dim=1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("classes", [2, 10, 200, 3000])
def test_class_counts_of_any_size_come_back_with_dots_in_their_names(classes, tmp_path):
    """The published code cuts the names of class folders at the first dot."""
    names = tuple(f"{i:03d}.Black_footed.{i}" for i in range(classes))
    dense = draw(classes, sharpness=5.0)
    maps = ScoreMaps.from_dense([dense], 5)
    header = replace(HEADER, class_names=names)
    write_score_maps(tmp_path / "maps.safetensors", maps, header)
    read, found = read_score_maps(tmp_path / "maps.safetensors")
    assert found.class_names == names
    assert torch.equal(read.dense(EVERY).argmax(dim=1), dense.argmax(dim=1))


def test_a_file_returns_what_was_written(maps, path):
    read, header = read_score_maps(path)
    assert header == HEADER
    assert read.num_classes == 10
    for name in ("prob", "index", "rest"):
        assert torch.equal(getattr(read, name), getattr(maps, name))
    assert list(path.parent.iterdir()) == [path]


def test_fitting_maps_are_accepted(path):
    assert open_score_maps(path, DATASET)[1] == HEADER


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"fingerprint": "e" * 64}, "other images"),
        ({"split_hashes": {"labelled": "e" * 64}}, "other training split"),
        ({"class_names": CLASSES[::-1]}, "other classes"),
        ({"class_names": (*CLASSES[:9], "x")}, r"other classes \(class 9 is 'j', here 'x'\)"),
        ({"class_names": CLASSES[:3]}, r"other classes \(10 classes, here 3\)"),
        ({"splits": {"labelled": FIVE}}, r"other number of images \(4, here 5\)"),
    ],
)
def test_maps_of_something_else_are_refused(path, change, what):
    with pytest.raises(DataError, match=f"was written for {what}"):
        open_score_maps(path, replace(DATASET, **change))


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no score maps at"):
        read_score_maps(tmp_path / "none.safetensors")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.9])
def test_a_truncated_file_is_refused(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(DataError, match="write it again with smallvit label"):
        read_score_maps(path)


def test_a_file_of_something_else_is_refused(path):
    path.write_text("accuracy: 100 %")
    with pytest.raises(DataError, match="write it again with smallvit label"):
        read_score_maps(path)


def test_another_format_is_refused(maps, path):
    write_score_maps(path, maps, replace(HEADER, version=2))
    with pytest.raises(DataError, match="has format 2, this version reads 1: write it again"):
        read_score_maps(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -2.0])
@pytest.mark.parametrize("name", ["prob", "rest"])
def test_values_that_are_no_probabilities_are_refused(maps, path, name, value):
    getattr(maps, name).view(-1)[-1] = value
    write_score_maps(path, maps, HEADER)
    with pytest.raises(DataError, match="no probabilities"):
        read_score_maps(path)


def test_negative_values_are_refused_even_where_the_sum_is_one(maps, path):
    maps.prob[0, :, 0, 0] = torch.tensor([1.5, -0.5, 0, 0, 0])
    maps.rest[0, 0, 0] = 0
    write_score_maps(path, maps, HEADER)
    with pytest.raises(DataError, match="no probabilities"):
        read_score_maps(path)


@pytest.mark.parametrize("index", [-1, 10])
def test_a_class_out_of_range_is_refused(maps, path, index):
    maps.index[2, 0, 0, 0] = index
    write_score_maps(path, maps, HEADER)
    with pytest.raises(DataError, match="lists classes outside 0 to 9"):
        read_score_maps(path)


def test_a_file_of_an_earlier_version_has_the_defaults(maps, path):
    """It had no checksum, no temperature and no flip, and safetensors wrote it."""
    header = {key: json.dumps(value) for key, value in asdict(HEADER).items()}
    del header["temperature"], header["flip"]
    save_file(maps.tensors, path, header)
    read, found = read_score_maps(path)
    assert found == HEADER
    assert (found.temperature, found.flip) == (1.0, False)
    assert torch.equal(read.prob, maps.prob)


@pytest.mark.parametrize(
    "change",
    [
        {"prob": torch.zeros(4, 5, 2, 3).half()},
        {"prob": torch.zeros(4, 4, 2, 2).half()},
        {"prob": torch.zeros(20).half()},
        {"index": torch.zeros(4, 6, 2, 2).int()},
        {"index": torch.zeros(3, 5, 2, 2).int()},
        {"rest": torch.zeros(4, 2, 1).half()},
        {"rest": torch.zeros(5, 2, 2).half()},
        {"rest": torch.zeros(4, 2, 2).int()},
    ],
)
def test_tensors_that_do_not_go_together_are_refused(maps, path, change):
    write_tensors(path, {**maps.tensors, **change}, asdict(HEADER))
    with pytest.raises(DataError, match="do not fit a 2x2 grid and 10 classes"):
        read_score_maps(path)


def test_a_grid_of_the_header_that_is_not_the_maps_is_refused(maps, path):
    write_score_maps(path, maps, replace(HEADER, grid=(4, 4)))
    with pytest.raises(DataError, match="do not fit a 4x4 grid"):
        read_score_maps(path)


def test_more_listed_classes_than_there_are_names_are_refused(maps, path):
    write_score_maps(path, maps, replace(HEADER, class_names=CLASSES[:4]))
    with pytest.raises(DataError, match="do not fit a 2x2 grid and 4 classes"):
        read_score_maps(path)


@pytest.mark.parametrize("name", ["prob", "rest", "index"])
def test_a_missing_tensor_is_refused(maps, path, name):
    tensors = maps.tensors
    del tensors[name]
    write_tensors(path, tensors, asdict(HEADER))
    with pytest.raises(DataError, match="write it again with smallvit label"):
        read_score_maps(path)


def test_a_flipped_bit_of_the_header_is_noticed(path):
    whole = path.read_bytes()
    length = 8 + int.from_bytes(whole[:8], "little")
    for place in range(0, length, 5):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 7
        path.write_bytes(changed)
        with pytest.raises(DataError):
            read_score_maps(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_teacher_that_answers_with_no_numbers_is_refused(value):
    dense = draw()
    dense[1, :, 0, 1] = value
    with pytest.raises(DataError, match="NaN or infinite probabilities"):
        ScoreMaps.from_dense([dense], 5)
