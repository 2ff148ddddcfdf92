"""Files of any content: tables, folders, score maps, checkpoints and exports of altered bytes.

Each reader returns a value or raises an error of one line: it never raises anything else, runs no
code of the file, and takes no memory that the file does not have.
"""

import copy
import json
import os
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from smallvit.core.errors import SmallViTError
from smallvit.core.model_config import ModelConfig
from smallvit.data.dataset import Dataset, Split
from smallvit.data.files.own import open_path
from smallvit.engine.checkpoint import load_checkpoint, save_checkpoint
from smallvit.inference.export import exported_model, read_export, write_export
from smallvit.models.registry import create_backbone, model_arguments
from smallvit.teachers.score_maps import (
    ScoreMapHeader,
    ScoreMaps,
    open_score_maps,
    write_score_maps,
)

EXAMPLES = 40
FUZZ = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
ROOM = 2 * 2**30  # bytes that a reader of these small files may take at most
HEADER_BYTES = 8  # of a safetensors file: the length of its JSON
NUMBERS = [0, 1, -1, 2**31, 2**32, 2**60, 2**63 - 1, 2**64 - 1, -(2**63)]
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.integers(-3, 300),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(["\0", "a" * 3000, "F4", "F8_E8M0", "BF16", "C64", "BOOL", "__metadata__"]),
    st.lists(st.one_of(st.integers(-1, 9), st.sampled_from(NUMBERS)), max_size=5),
    st.dictionaries(st.text(max_size=4), st.none(), max_size=2),
)


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """Let what claims absurd sizes fail at once, not fill the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (in_use + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def changed(original: bytes, tokens: tuple[bytes, ...] = ()) -> st.SearchStrategy[bytes]:
    """Return the file with bits flipped, parts cut, repeated or moved, and numbers replaced."""
    odd = st.one_of(
        st.binary(max_size=9),
        st.sampled_from([*(n.to_bytes(8, "little", signed=n < 0) for n in NUMBERS), *tokens]),
    )

    @st.composite
    def draw_bytes(draw: st.DrawFn) -> bytes:
        content = bytearray(original)
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.integers(0, len(content)))
            length = draw(st.sampled_from([0, 1, 2, 8, 64, 1000]))
            match draw(st.sampled_from(["flip", "cut", "insert", "replace", "repeat", "end"])):
                case "flip" if at < len(content):
                    content[at] ^= 1 << draw(st.integers(0, 7))
                case "cut":
                    del content[at : at + length]
                case "insert":
                    content[at:at] = draw(odd)
                case "replace":
                    new = draw(odd)
                    content[at : at + len(new)] = new
                case "repeat":
                    content[at:at] = content[at : at + length]
                case "end":
                    del content[at:]
        return bytes(content)

    return draw_bytes()


def nodes(tree: Any) -> list[tuple[Any, Any]]:
    """List every (parent, key) below a tree of plain values."""
    items = enumerate(tree) if isinstance(tree, list) else tree.items()
    found = []
    for key, value in items:
        found.append((tree, key))
        if isinstance(value, dict | list):
            found += nodes(value)
    return found


@st.composite
def changed_tree(draw: st.DrawFn, original: Any) -> Any:
    """A tree some of whose values are gone, renamed, or of another kind or size."""
    tree = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        places = nodes(tree)
        if not places:
            return tree
        parent, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(["replace", "replace", "delete", "rename"])):
            case "replace":
                parent[key] = draw(ODD)
            case "delete":
                del parent[key]
            case "rename" if isinstance(parent, dict):
                parent[draw(st.text(max_size=5))] = parent.pop(key)
    return tree


def read(reader: Callable[[Path], object], path: Path) -> None:
    """Read a file; an error is one that the command line can print."""
    try:
        reader(path)
    except SmallViTError as error:
        line = str(error)
        assert 0 < len(line) < 20_000
        assert len(line.splitlines()) == 1


# Tables and folders of images


TABLE = (
    b'image_path,label,split\na.png,cat,train\nb.png,dog,train\nc.png,cat,val\n"d.png",dog,val\n'
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name in "abcd":
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
    return folder


def list_images(path: Path) -> None:
    listing = open_path(path).list_images()
    for split in listing.splits.values():
        assert len(split.names) == len(split.labels) > 0
        assert split.labels.max() < max(len(listing.class_names), 1)


TABLE_TOKENS = (b'"', b'""', b"\r", b"\r\n", b";", b"\t", b"\0", b"\xef\xbb\xbf", b"\xff", b",,",
                b"9" * 5000, b"a" * 140_000, b"../", b"/etc/passwd", "\u2028".encode())  # fmt: skip


@FUZZ
@given(content=st.one_of(changed(TABLE, TABLE_TOKENS), st.binary(max_size=200)))
def test_any_table_is_read_or_refused_in_one_line(images, content):
    (images / "table.csv").write_bytes(content)
    read(list_images, images / "table.csv")


SPLITS = st.sampled_from(
    ["train", "val", "VAL", "valid", "test", "Test", "a", "b", ".hidden", "a b"]
)
NAMES = st.one_of(
    st.sampled_from(
        ["x.png", "y.JPG", "z.heic", "t.csv", "t.parquet", "README", ".png", "\udcff.png"]
    ),
    st.text(
        st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=6
    ),
)
FILES = st.lists(st.tuples(st.lists(SPLITS, max_size=3), NAMES), max_size=8)


@FUZZ
@given(files=FILES, content=st.sampled_from([b"", b"PAR1", b"\x89PNG"]))
def test_any_folder_is_read_or_refused_in_one_line(tmp_path, files, content):
    root = tmp_path / "data"
    for parents, name in files:
        path = root.joinpath(*parents, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        except OSError:  # a file and a folder of one name
            continue
    read(list_images, root)
    shutil.rmtree(root, ignore_errors=True)


# Score maps


CLASSES = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def maps_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("maps") / "score_maps.safetensors"
    generator = torch.Generator().manual_seed(0)
    maps = ScoreMaps.from_batch(torch.rand(4, 3, 2, 2, generator=generator).softmax(1), 2)
    header = ScoreMapHeader(
        dataset="digits",
        fingerprint="f" * 64,
        split_hash="e" * 64,
        class_names=CLASSES,
        grid=(2, 2),
        image_size=8,
        teacher="resnet8_small",
        teacher_hash="d" * 64,
        teacher_train_top1=1.0,
        teacher_val_top1=0.5,
        extra_data="none",
    )
    write_score_maps(path, maps, header)
    return path


def open_maps(path: Path) -> None:
    index = torch.arange(4)
    split = Split(
        images=torch.zeros(4, 3, 8, 8).byte(), labels=torch.zeros_like(index), index=index
    )
    dataset = Dataset(
        name="digits",
        class_names=CLASSES,
        image_size=8,
        splits={"labelled": split},
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        hflip=False,
        fingerprint="f" * 64,
        split_hashes={"labelled": "e" * 64},
        broken=(),
        store_path=Path(),
    )
    maps, _ = open_score_maps(path, dataset)
    assert maps.dense(torch.arange(4)).sum(dim=1).allclose(torch.ones(4, 2, 2), atol=1e-5)


@FUZZ
@given(data=st.data())
def test_score_maps_of_altered_bytes_are_read_or_refused(maps_file, tmp_path, data):
    (tmp_path / "maps").write_bytes(data.draw(changed(maps_file.read_bytes())))
    read(open_maps, tmp_path / "maps")


def with_header(content: bytes, entries: Any) -> bytes:
    """Return a safetensors file with another header before the same tensors."""
    length = int.from_bytes(content[:HEADER_BYTES], "little")
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + content[HEADER_BYTES + length :]


def header_of(content: bytes) -> dict[str, Any]:
    length = int.from_bytes(content[:HEADER_BYTES], "little")
    return json.loads(content[HEADER_BYTES : HEADER_BYTES + length])


@FUZZ
@given(data=st.data(), sealed=st.booleans())
def test_score_maps_of_another_header_are_read_or_refused(maps_file, tmp_path, data, sealed):
    content = maps_file.read_bytes()
    header = header_of(content)
    values = {key: json.loads(value) for key, value in header.pop("__metadata__").items()}
    if not sealed:
        del values["checksum"]  # as of an earlier version: nothing else stands guard
    values = data.draw(st.one_of(st.just(values), changed_tree(values)))
    entries = data.draw(st.one_of(st.just(header), changed_tree(header)))
    written = {str(key): json.dumps(value) for key, value in values.items()}
    (tmp_path / "maps").write_bytes(with_header(content, {"__metadata__": written, **entries}))
    read(open_maps, tmp_path / "maps")


# Checkpoints


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "last.pt"
    save_checkpoint(path, {"weights": {"w": torch.ones(3, 2)}, "step": 4, "names": ["a", "b"]})
    return path


@FUZZ
@given(data=st.data())
def test_a_checkpoint_of_altered_bytes_is_read_or_refused(checkpoint, tmp_path, data):
    tokens = (b"cos\nsystem\n(S'x'\ntR.", b"\x80\x04\x95", b"\x8a\xff", b"PK\x03\x04")
    (tmp_path / "last.pt").write_bytes(data.draw(changed(checkpoint.read_bytes(), tokens)))
    read(load_checkpoint, tmp_path / "last.pt")


CHECKPOINT = {"format": 1, "checksum": "0" * 64}
STATES = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=4),
        st.binary(max_size=4),
        st.sampled_from(
            [
                torch.zeros(1).expand(2**40),
                torch.empty(2**50, device="meta"),
                torch.eye(2).to_sparse(),
                torch.zeros(0),
                torch.tensor(1 + 1j).conj(),
                torch.tensor(1.0, requires_grad=True),
                torch.zeros(2, dtype=torch.float8_e4m3fn),
            ]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=8), st.integers()), inner, max_size=3),
        st.dictionaries(st.sampled_from(["format", "checksum", "step"]), inner, max_size=3),
    ),
    max_leaves=5,
)


@FUZZ
@given(state=STATES, sealed=st.booleans())
def test_any_state_of_torch_is_read_or_refused(tmp_path, state, sealed):
    if sealed and isinstance(state, dict):
        state = CHECKPOINT | state
    torch.save(state, tmp_path / "last.pt")
    read(load_checkpoint, tmp_path / "last.pt")


# Exports


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "export"
    config = ModelConfig(name="resnet8_small", width=4, stride=2)
    write_export(
        folder,
        create_backbone(config, num_classes=3, image_size=8),
        arguments=model_arguments(config, num_classes=3, image_size=8)[1],
        class_names=CLASSES,
        image_size=8,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        card="",
    )
    return folder


@pytest.fixture
def own_export(export: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(export, tmp_path / "export"))


def open_export(folder: Path) -> None:
    read_export(folder)
    exported_model(folder)


@FUZZ
@given(data=st.data())
def test_weights_of_altered_bytes_are_read_or_refused(export, own_export, data):
    original = (export / "model.safetensors").read_bytes()
    tree = changed_tree(header_of(original)).map(lambda tree: with_header(original, tree))
    altered = data.draw(st.one_of(changed(original), tree))
    (own_export / "model.safetensors").write_bytes(altered)
    read(open_export, own_export)


@FUZZ
@given(data=st.data())
def test_another_config_of_an_export_is_read_or_refused(export, own_export, data):
    original = (export / "config.json").read_bytes()
    tree = changed_tree(json.loads(original)).map(lambda tree: json.dumps(tree).encode())
    altered = data.draw(st.one_of(changed(original, (b"NaN", b"Infinity", b"[" * 3000)), tree))
    (own_export / "config.json").write_bytes(altered)
    read(open_export, own_export)
