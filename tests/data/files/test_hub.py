import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from urllib.parse import unquote

import pytest
from PIL import Image

from smallvit.core.errors import ConfigError, DataError
from smallvit.data.files.hub import choose_config, fetch_hub, open_hub, parse_reference

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONVERTED = "f" * 40
REFERENCE = f"hf:owner/Name-1.0@{COMMIT}"


def parquet(labels: list[int]) -> bytes:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    image, stream = BytesIO(), BytesIO()
    Image.new("L", (4, 4)).save(image, "PNG")
    images = [{"bytes": image.getvalue(), "path": None}] * len(labels)
    pq.write_table(pa.table({"image": images, "label": labels}), stream)
    return stream.getvalue()


class Hub:
    """The few routes of the Hub that a download uses, on the loopback interface."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.branches = {"main": COMMIT, COMMIT: COMMIT}
        self.requests: list[str] = []
        self.refused: set[str] = set()  # files that are listed and not handed out
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        self.requests.append(f"{request.command} {path}")
        repo = "datasets/owner/Name-1.0"
        status, body = 404, b""
        if path.startswith(f"/api/{repo}/revision/"):
            commit = self.branches.get(unquote(path.rpartition("/")[2]))
            if commit is not None:
                files = [{"rfilename": name} for name in self.files]
                info = {"id": "owner/Name-1.0", "sha": commit, "siblings": files}
                status, body = 200, json.dumps(info).encode()
        elif path.startswith(f"/{repo}/resolve/{COMMIT}/"):
            name = unquote(path.removeprefix(f"/{repo}/resolve/{COMMIT}/"))
            if name in self.refused and request.command == "GET":
                status = 403
            else:
                status, body = 200, self.files[name]
        request.send_response(status)
        request.send_header("Content-Length", str(len(body)))
        request.send_header("Content-Type", "application/json")
        request.send_header("X-Repo-Commit", COMMIT)
        request.send_header("ETag", '"some-etag"')
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.parametrize("prefix", ["hf:", ""])
def test_a_reference_has_repo_commit_and_config(prefix):
    parsed = parse_reference(f"{prefix}owner/Name-1.0@{COMMIT}")
    assert (parsed.repo, parsed.revision, parsed.config) == ("owner/Name-1.0", COMMIT, None)
    parsed = parse_reference(f"{prefix}owner/Name-1.0@{COMMIT}#some_config")
    assert (parsed.revision, parsed.config) == (COMMIT, "some_config")
    assert str(parsed) == f"hf:owner/Name-1.0@{COMMIT}#some_config"


@pytest.mark.parametrize(
    "text", ["hf:name", "hf:a/b/c", "a b/c", f"o/n@{COMMIT}@x", "", "o/n@a#b#c"]
)
def test_a_malformed_reference_is_refused(text):
    with pytest.raises(ConfigError, match=r"does not name a dataset .*: hf:OWNER/NAME@COMMIT, or"):
        parse_reference(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "hf:owner/Name-1.0",
            f"names no commit, .*: main is hf:owner/Name-1.0@{COMMIT} at present",
        ),
        ("owner/Name-1.0@v2#c", f"names 'v2', not a full .*: v2 is hf:.*@{CONVERTED}#c at present"),
        (
            "owner/Name-1.0@0123456",
            "names '0123456', .*: take one of 40 hexadecimal digits from http",
        ),
    ],
)
def test_a_branch_is_refused_with_its_present_commit(hub, text, message):
    hub.branches["v2"] = CONVERTED
    with pytest.raises(ConfigError, match=message):
        parse_reference(text)


@pytest.mark.usefixtures("unreachable")
def test_without_network_a_branch_is_refused_with_the_rule():
    with pytest.raises(ConfigError, match=r"take one of 40 .* from .*/datasets/o/n/commits/main"):
        parse_reference("hf:o/n@main")


def test_offline_a_branch_is_refused_without_a_request(hub):
    with pytest.raises(ConfigError, match="take one of 40 hexadecimal digits"):
        parse_reference("hf:owner/Name-1.0@main", offline=True)
    assert hub.requests == []


def test_a_dataset_is_fetched_once_and_read(hub, tmp_path):
    hub.files = {
        "README.md": b"text",
        "data/train-00000-of-00001.parquet": parquet([0, 1, 1]),
        "data/test-00000-of-00001.parquet": parquet([1, 0]),
    }
    source = open_hub(REFERENCE, data_dir=tmp_path, offline=False)
    listing = source.list_images()
    assert (source.name, source.hflip, source.image_size) == ("name-1.0", True, None)
    assert listing.splits["train"].labels.tolist() == [0, 1, 1]
    assert listing.splits["test"].labels.tolist() == [1, 0]
    assert listing.splits["test"].read(1).size == (4, 4)
    hub.requests.clear()
    assert open_hub(REFERENCE, data_dir=tmp_path, offline=True).key == source.key
    assert hub.requests == []


def test_only_parquet_files_are_fetched_and_they_are_real_files(hub, tmp_path):
    hub.files = {"README.md": b"text", "data/train-0.parquet": b"1", "data/[x].parquet": b"2"}
    fetch_hub(REFERENCE, tmp_path / "x", offline=False)
    found = {path for path in tmp_path.rglob("*") if not path.is_dir()}
    assert found == {tmp_path / "x/data/train-0.parquet", tmp_path / "x/data/[x].parquet"}
    assert not any(path.is_symlink() for path in found)


def test_a_download_that_fails_midway_leaves_no_dataset_and_is_continued(hub, tmp_path):
    hub.files = {"train-0.parquet": b"0" * 10, "train-1.parquet": b"1" * 10}
    hub.refused = {"train-1.parquet"}
    with pytest.raises(DataError, match=r"could not be fetched \("):
        fetch_hub(REFERENCE, tmp_path / "x", offline=False)
    assert not (tmp_path / "x").exists()
    hub.refused.clear()
    hub.requests.clear()
    fetch_hub(REFERENCE, tmp_path / "x", offline=False)
    assert (tmp_path / "x" / "train-1.parquet").read_bytes() == b"1" * 10
    assert not any("train-0" in request for request in hub.requests)


def test_one_of_several_configs_has_to_be_named(hub, tmp_path):
    hub.files = {
        "cropped/train-0.parquet": parquet([0, 1]),
        "full/train-0.parquet": parquet([1, 0]),
    }
    expected = rf"several configs \(cropped, full\): name one, as in {REFERENCE}#cropped"
    with pytest.raises(ConfigError, match=expected):
        open_hub(REFERENCE, data_dir=tmp_path, offline=False)
    with pytest.raises(ConfigError, match="no config 'half'; known: cropped, full"):
        open_hub(f"{REFERENCE}#half", data_dir=tmp_path, offline=False)
    listing = open_hub(f"{REFERENCE}#full", data_dir=tmp_path, offline=False).list_images()
    assert listing.splits["train"].labels.tolist() == [1, 0]
    assert not any("cropped" in request for request in hub.requests)


def test_a_config_called_like_a_split_does_not_decide_the_split(hub, tmp_path):
    hub.files = {"a_test/0.parquet": parquet([0, 1]), "b/0.parquet": parquet([1, 0])}
    listing = open_hub(f"{REFERENCE}#a_test", data_dir=tmp_path, offline=False).list_images()
    assert list(listing.splits) == ["train"]


def test_files_in_split_folders_are_one_config():
    reference = parse_reference(REFERENCE)
    names = ["train/0.parquet", "test/0.parquet", "data/train-1.parquet", "train-2.parquet"]
    assert choose_config(reference, names) == names


def test_a_copy_of_the_whole_repository_may_be_put_there_by_hand(tmp_path):
    for config in ("a", "b"):
        path = tmp_path / "hub" / "owner--Name-1.0" / COMMIT / config / "train.parquet"
        path.parent.mkdir(parents=True)
        path.write_bytes(parquet([0, 1]))
    with pytest.raises(ConfigError, match=r"several configs \(a, b\)"):
        open_hub(REFERENCE, data_dir=tmp_path, offline=True)


@pytest.mark.parametrize("folder", ["", "full/"])
def test_a_config_put_there_by_hand_is_read_with_or_without_its_folder(tmp_path, folder):
    path = tmp_path / "hub" / "owner--Name-1.0" / f"{COMMIT}-full" / f"{folder}train.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(parquet([0, 1]))
    source = open_hub(f"{REFERENCE}#full", data_dir=tmp_path, offline=True)
    assert source.list_images().class_names == ("0", "1")


def test_offline_an_absent_dataset_says_what_to_put_where(tmp_path):
    expected = (
        rf"fetches it; by hand: download the parquet files of https://.*/datasets/owner/Name-1\.0/"
        rf"tree/{COMMIT}/full and put them, .*, into .*/hub/owner--Name-1\.0/{COMMIT}-full"
    )
    with pytest.raises(DataError, match=expected):
        open_hub(f"{REFERENCE}#full", data_dir=tmp_path, offline=True)
    with pytest.raises(DataError, match=r"fetched \(offline\)"):
        fetch_hub(REFERENCE, tmp_path / "x", offline=True)


@pytest.mark.usefixtures("unreachable")
def test_without_network_an_absent_dataset_says_what_to_put_where(tmp_path):
    with pytest.raises(DataError, match=r"could not be fetched \(.*\): download the parquet files"):
        open_hub(REFERENCE, data_dir=tmp_path, offline=False)


def test_an_unknown_repository_is_refused_with_the_hubs_reason(hub, tmp_path):
    with pytest.raises(DataError, match=r"could not be fetched \(.*404"):
        open_hub(f"hf:owner/other@{COMMIT}", data_dir=tmp_path, offline=False)


@pytest.mark.parametrize(
    ("converted", "remedy"),
    [(True, f"the Hub's converted copy, hf:owner/Name-1.0@{CONVERTED}"), (False, "look for a")],
)
def test_a_loading_script_is_refused_with_the_converted_copy(hub, tmp_path, converted, remedy):
    hub.files = {"Name-1.0.py": b"code", "README.md": b"text"}
    if converted:
        hub.branches["refs/convert/parquet"] = CONVERTED
    expected = rf"has no parquet file \(it relies on the loading script Name-1\.0\.py, .*{remedy}"
    with pytest.raises(DataError, match=expected):
        open_hub(REFERENCE, data_dir=tmp_path, offline=False)


def test_files_of_other_kinds_are_refused(hub, tmp_path):
    hub.files = {"images.zip": b"PK"}
    with pytest.raises(DataError, match=r"has no parquet file \(it has 1 files? of other kinds\)"):
        open_hub(REFERENCE, data_dir=tmp_path, offline=False)


def test_a_folder_without_parquet_files_is_named(tmp_path):
    (tmp_path / "hub" / "owner--Name-1.0" / COMMIT).mkdir(parents=True)
    with pytest.raises(DataError, match=r"holds no parquet file\): download"):
        open_hub(REFERENCE, data_dir=tmp_path, offline=True)


def test_a_data_folder_that_cannot_be_written_is_one_line(hub, tmp_path):
    (tmp_path / "hub").touch()
    with pytest.raises(DataError, match=r"cannot use the data folder .*SMALLVIT_DATA_DIR"):
        open_hub(REFERENCE, data_dir=tmp_path, offline=False)


@pytest.mark.parametrize(
    ("name", "hflip", "policy"), [("svhn", False, "svhn"), ("cats", True, "imagenet")]
)
def test_a_copy_of_a_known_dataset_is_mirrored_and_augmented_like_it(tmp_path, name, hflip, policy):
    path = tmp_path / "hub" / f"owner--{name}" / COMMIT / "train.parquet"
    path.parent.mkdir(parents=True)
    path.write_bytes(parquet([0, 1]))
    source = open_hub(f"hf:owner/{name}@{COMMIT}", data_dir=tmp_path, offline=True)
    assert (source.hflip, source.autoaugment) == (hflip, policy)
