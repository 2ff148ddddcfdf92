import hashlib
import logging
import os
import re
import struct
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from filelock import FileLock

from smallvit.core.errors import DataError
from smallvit.data.files import fetch as module
from smallvit.data.files.fetch import (
    download,
    fetch_dataset,
    find_difference,
    hub_folder,
    is_present,
    manual_steps,
)
from smallvit.data.files.registry import DATASETS, DatasetSpec, RemoteFile

CONTENT = os.urandom(200_000)
HTML = b"<!DOCTYPE html><html><body>Sign in</body></html>"


class Server(ThreadingHTTPServer):
    """A loopback server whose paths answer as ``serve`` says; it keeps each request.

    Attributes:
        requests: Path and headers, in order.
        url: Its address.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.requests: list[tuple[str, Mapping[str, str]]] = []
        self.answers: dict[str, Callable[[Handler], None]] = {}

    def serve(self, path: str, answer: Callable[["Handler"], None]) -> str:
        self.answers[path] = answer
        return self.url + path

    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.requests]

    def paths(self) -> list[str]:
        return [path for path, _ in self.requests]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.requests.append((self.path, dict(self.headers)))
        self.server.answers[self.path](self)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Answer; a header that is empty is not sent."""
        self.send_response(status)
        for name, value in ({"Content_Length": str(len(body))} | headers).items():
            if value:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


def file_answer(
    content: bytes,
    *,
    cut: tuple[int, ...] = (),
    ranges: bool = True,
) -> Callable[[Handler], None]:
    """Serve a file.

    Args:
        content: The file.
        cut: Bytes after which the first, second ... connection ends.
        ranges: Whether parts can be had.
    """
    cuts = list(cut)

    def answer(handler: Handler) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        start, status, headers = 0, 200, {}
        if ranges and asked:
            start = int(asked[1])
            if start >= len(content):
                handler.reply(416, Content_Range=f"bytes */{len(content)}")
                return
            status = 206
            headers["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body = content[start:]
        headers["Content_Length"] = str(len(body))
        handler.reply(status, body[: cuts.pop(0)] if cuts else body, **headers)

    return answer


def status_answer(status: int, **headers: str) -> Callable[[Handler], None]:
    return lambda handler: handler.reply(status, b"", **headers)


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "BACK_OFF_S", 0)
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def remote(*urls: str, content: bytes = CONTENT, **fields) -> RemoteFile:
    md5 = hashlib.md5(content).hexdigest()
    return RemoteFile(**{"name": "x.bin", "urls": urls, "md5": md5, "target": "x.bin"} | fields)


def dataset(*files: RemoteFile, hub: str | None = None) -> DatasetSpec:
    return DatasetSpec(
        name="pets",
        num_classes=2,
        num_train=2,
        num_test=0,
        image_size=8,
        hflip=True,
        citation="",
        license="",
        page="https://example.org/pets",
        files=files,
        hub=hub,
    )


def make_zip(path: Path, **content: str) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in content.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return path.read_bytes()


@pytest.fixture
def pets(server, tmp_path) -> DatasetSpec:
    """A dataset of one archive, ``pets.zip``, that the server has."""
    content = make_zip(tmp_path / "made.zip", **{"pets/a/1.png": "1", "pets/b/2.png": "2"})
    url = server.serve("/pets.zip", file_answer(content))
    return dataset(remote(url, content=content, name="pets.zip", target="pets"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def visible(folder: Path) -> list[str]:
    return [name for name in names(folder) if not name.startswith(".")]


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_file_is_downloaded_whole_and_nothing_else_stays(server, tmp_path, size):
    url = server.serve("/x", file_answer(CONTENT))
    calls: list[tuple[str, int, int | None]] = []
    path = download(remote(url, size=size), tmp_path, lambda *call: calls.append(call))
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == ["x.bin"]
    assert calls[-1] == ("downloading x.bin", len(CONTENT), len(CONTENT))
    assert server.requests[0][1]["User-Agent"].startswith("smallvit/")


def test_a_connection_cut_short_is_asked_for_the_rest(server, tmp_path):
    url = server.serve("/x", file_answer(CONTENT, cut=(70_000, 50_000)))
    assert download(remote(url), tmp_path).read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=70000-", "bytes=120000-"]


def test_a_connection_cut_short_too_often_fails_and_the_next_try_goes_on(server, tmp_path):
    url = server.serve("/x", file_answer(CONTENT, cut=(9000, *[1000] * 3)))
    with pytest.raises(DataError, match=r"ended after 12,000 of 200,000 bytes"):
        download(remote(url), tmp_path)
    assert names(tmp_path) == ["x.bin.part"]
    assert download(remote(url), tmp_path).read_bytes() == CONTENT
    assert server.ranges()[-1] == "bytes=12000-"
    assert names(tmp_path) == ["x.bin"]


def test_a_connection_that_brings_enough_is_always_worth_another(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_ENOUGH", 10_000)
    url = server.serve("/x", file_answer(CONTENT, cut=(10_000,) * 19))
    assert download(remote(url), tmp_path).read_bytes() == CONTENT


def test_a_part_that_a_killed_process_left_is_completed(server, tmp_path):
    (tmp_path / "x.bin.part").write_bytes(CONTENT[:150_000])
    url = server.serve("/x", file_answer(CONTENT))
    assert download(remote(url), tmp_path).read_bytes() == CONTENT
    assert server.ranges() == ["bytes=150000-"]


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_part_that_is_whole_is_only_verified(server, tmp_path, size):
    (tmp_path / "x.bin.part").write_bytes(CONTENT)
    url = server.serve("/x", file_answer(CONTENT))
    assert download(remote(url, size=size), tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == (1 if size is None else 0)


def test_a_server_that_ignores_ranges_sends_the_whole_and_that_is_taken(server, tmp_path):
    (tmp_path / "x.bin.part").write_bytes(b"x" * 50_000)
    url = server.serve("/x", file_answer(CONTENT, ranges=False))
    assert download(remote(url), tmp_path).read_bytes() == CONTENT
    assert server.ranges() == ["bytes=50000-"]


@pytest.mark.parametrize("answered", ["bytes 0-149999/200000", "bytes 5-9", "", "items 1-2/3"])
def test_a_part_that_is_not_the_one_asked_for_is_started_afresh(server, tmp_path, answered):
    (tmp_path / "x.bin.part").write_bytes(CONTENT[:50_000])
    whole = file_answer(CONTENT)

    def answer(handler: Handler) -> None:
        if "Range" in handler.headers:
            handler.reply(206, CONTENT[50_000:], Content_Range=answered)
        else:
            whole(handler)

    assert download(remote(server.serve("/x", answer)), tmp_path).read_bytes() == CONTENT
    assert server.ranges() == ["bytes=50000-", None]


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_part_that_is_too_long_is_started_afresh(server, tmp_path, size):
    (tmp_path / "x.bin.part").write_bytes(CONTENT + b"more")
    url = server.serve("/x", file_answer(CONTENT))
    assert download(remote(url, size=size), tmp_path).read_bytes() == CONTENT
    assert server.ranges()[-1] is None


def test_a_part_with_wrong_bytes_is_started_afresh(server, tmp_path):
    (tmp_path / "x.bin.part").write_bytes(b"x" * 50_000)
    url = server.serve("/x", file_answer(CONTENT))
    assert download(remote(url), tmp_path).read_bytes() == CONTENT
    assert server.ranges() == ["bytes=50000-", None]


def test_a_part_of_one_address_is_completed_from_another(server, tmp_path):
    first = server.serve("/1", file_answer(CONTENT, cut=(90_000, 0, 0, 0, 0)))
    second = server.serve("/2", file_answer(CONTENT))
    assert download(remote(first, second), tmp_path).read_bytes() == CONTENT
    assert server.requests[-1][0] == "/2"
    assert server.ranges()[-1] == "bytes=90000-"


def test_a_redirect_is_followed_with_the_range(server, tmp_path):
    (tmp_path / "x.bin.part").write_bytes(CONTENT[:50_000])
    url = server.serve("/old", status_answer(302, Location="/new"))
    server.serve("/new", file_answer(CONTENT))
    assert download(remote(url), tmp_path).read_bytes() == CONTENT
    assert server.ranges() == ["bytes=50000-"] * 2


def test_without_a_length_the_checksum_tells(server, tmp_path):
    url = server.serve("/x", lambda handler: handler.reply(200, CONTENT, Content_Length=""))
    assert download(remote(url), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (status_answer(404), "HTTP 404 Not Found"),
        (status_answer(204), "HTTP 204 No Content"),
        (file_answer(b""), "0 bytes, expected 200,000"),
        (file_answer(CONTENT[:-1]), "199,999 bytes, expected 200,000"),
        (file_answer(bytes(200_000)), f"md5 {hashlib.md5(bytes(200_000)).hexdigest()}, expected"),
        (file_answer(b"\n <HTML><body>" + bytes(199_986)), "an HTML page, not the file"),
        (lambda handler: handler.reply(200, HTML, Content_Type="text/html; charset=utf-8"), "HTML"),
        (status_answer(302, Location="file:///etc/passwd"), "HTTP 302"),
    ],
)
def test_the_next_address_is_taken_and_a_lone_one_is_explained(server, tmp_path, answer, why):
    bad = server.serve("/bad", answer)
    good = server.serve("/good", file_answer(CONTENT))
    lone = remote(bad, size=200_000)
    with pytest.raises(DataError) as caught:
        download(lone, tmp_path)
    assert why in str(caught.value)
    assert f"run again later, or download {bad} (md5 {lone.md5})" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []
    assert download(remote(bad, good, size=200_000), tmp_path).read_bytes() == CONTENT
    assert server.paths() == ["/bad", "/bad", "/good"]


def test_addresses_are_tried_in_order_and_all_reasons_are_given(server, tmp_path):
    urls = [server.serve(f"/{code}", status_answer(code)) for code in (404, 403, 501)]
    with pytest.raises(DataError, match=r"/404: HTTP 404.*; .*/403: HTTP 403.*; .*/501: HTTP 501"):
        download(remote(*urls), tmp_path)
    assert server.paths() == ["/404", "/403", "/501"]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again_and_its_part_kept(server, tmp_path, status):
    (tmp_path / "x.bin.part").write_bytes(CONTENT[:50_000])
    answers = [status_answer(status), status_answer(status), file_answer(CONTENT)]
    url = server.serve("/x", lambda handler: answers.pop(0)(handler))
    assert download(remote(url), tmp_path).read_bytes() == CONTENT
    assert server.ranges() == ["bytes=50000-"] * 3


def test_a_server_that_stays_busy_is_given_up_for_the_next(server, tmp_path):
    busy = server.serve("/busy", status_answer(503))
    good = server.serve("/good", file_answer(CONTENT))
    with pytest.raises(DataError, match="/busy: HTTP 503 Service Unavailable"):
        download(remote(busy), tmp_path)
    assert download(remote(busy, good), tmp_path).read_bytes() == CONTENT
    assert server.paths() == ["/busy"] * 8 + ["/good"]


def test_an_html_page_does_not_cost_the_part_that_is_there(server, tmp_path):
    (tmp_path / "x.bin.part").write_bytes(CONTENT[:50_000])
    page = server.serve("/page", lambda handler: handler.reply(200, HTML))
    good = server.serve("/good", file_answer(CONTENT))
    assert download(remote(page, good), tmp_path).read_bytes() == CONTENT
    assert server.ranges() == ["bytes=50000-"] * 2


def test_a_server_that_is_not_there_is_explained(server, tmp_path):
    server.server_close()
    with pytest.raises(DataError, match=r"127\.0\.0\.1:\d+/x: .*[Cc]onnection refused"):
        download(remote(f"{server.url}/x"), tmp_path)


def test_a_server_that_says_nothing_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT_S", 0.05)
    silent = threading.Event()
    url = server.serve("/x", lambda handler: silent.wait(5) and None)
    with pytest.raises(DataError, match="timed out"):
        download(remote(url), tmp_path)
    silent.set()
    assert len(server.requests) == 1


def test_a_full_disk_is_told_before_anything_is_written(server, tmp_path, monkeypatch):
    url = server.serve("/x", file_answer(CONTENT))
    usage = SimpleNamespace(free=1000)
    monkeypatch.setattr("smallvit.data.files.unpack.shutil.disk_usage", lambda path: usage)
    with pytest.raises(DataError, match=r"downloading x\.bin needs 0\.2 MB in .*0\.0 MB are free"):
        download(remote(url), tmp_path)
    assert names(tmp_path) == []


def test_a_dataset_is_downloaded_unpacked_and_its_archive_kept(pets, server, tmp_path):
    calls: list[str] = []
    assert not is_present(pets, tmp_path / "data")
    fetch_dataset(pets, tmp_path / "data", progress=lambda what, *_: calls.append(what))
    assert visible(tmp_path / "data") == ["pets", "pets.zip"]
    assert (tmp_path / "data" / "pets" / "b" / "2.png").read_text() == "2"
    assert calls[0] == "downloading pets.zip"
    assert calls[-1] == "unpacking pets.zip"
    assert is_present(pets, tmp_path / "data")


def test_what_is_there_is_left_alone_even_where_nothing_can_be_written(pets, server, tmp_path):
    make_unpacked(tmp_path / "data" / "pets")
    fetch_dataset(pets, tmp_path / "data", offline=True)
    fetch_dataset(pets, tmp_path / "data")
    assert names(tmp_path / "data") == ["pets"]
    assert server.requests == []


def test_an_empty_folder_in_the_place_of_a_dataset_is_replaced(pets, tmp_path):
    (tmp_path / "data" / "pets").mkdir(parents=True)
    assert not is_present(pets, tmp_path / "data")
    assert "pets.zip" in manual_steps(pets, tmp_path / "data")
    with pytest.raises(DataError, match="pets is missing and downloads are off"):
        fetch_dataset(pets, tmp_path / "data", offline=True)
    fetch_dataset(pets, tmp_path / "data")
    assert visible(tmp_path / "data") == ["pets", "pets.zip"]
    assert (tmp_path / "data" / "pets" / "a" / "1.png").read_text() == "1"


def test_an_empty_folder_is_replaced_by_the_data_of_the_users(tmp_path):
    (tmp_path / "data" / "pets").mkdir(parents=True)
    mine = make_unpacked(tmp_path / "mine" / "pets")
    spec = dataset(remote(name="pets.zip", target="pets"))
    fetch_dataset(spec, tmp_path / "data", origin=mine, offline=True)
    assert (tmp_path / "data" / "pets" / "a" / "1.png").read_text() == "mine"


@pytest.mark.parametrize("origin", [".", "pets"])
def test_an_empty_folder_of_the_users_is_refused(pets, tmp_path, origin):
    (tmp_path / "mine" / "pets").mkdir(parents=True)
    with pytest.raises(DataError, match="holds nothing that is missing of pets"):
        fetch_dataset(pets, tmp_path / "data", origin=tmp_path / "mine" / origin, offline=True)


def test_a_file_that_is_used_as_it_is_is_not_unpacked(server, tmp_path):
    url = server.serve("/x", file_answer(CONTENT))
    fetch_dataset(dataset(remote(url)), tmp_path)
    assert (tmp_path / "x.bin").read_bytes() == CONTENT


def test_an_archive_put_there_by_hand_is_verified_and_unpacked_offline(pets, server, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    os.replace(tmp_path / "made.zip", data / "pets.zip")  # noqa: PTH105 - plain
    fetch_dataset(pets, data, offline=True)
    assert visible(data) == ["pets", "pets.zip"]
    assert server.requests == []


def test_a_wrong_archive_put_there_by_hand_is_refused_and_stays(pets, tmp_path):
    (tmp_path / "pets.zip").write_bytes(b"other")
    md5 = hashlib.md5(b"other").hexdigest()
    expected = rf"pets\.zip is not the official file \(md5 {md5}, expected {pets.files[0].md5}\)"
    with pytest.raises(DataError, match=f"{expected}: remove it"):
        fetch_dataset(pets, tmp_path)
    assert (tmp_path / "pets.zip").read_bytes() == b"other"


def test_offline_the_message_gives_every_missing_file_by_address_sum_and_place(tmp_path):
    files = [remote(f"https://a.org/{n}", f"https://b.org/{n}", name=n, target=n) for n in "xyz"]
    (tmp_path / "y").write_bytes(CONTENT)
    with pytest.raises(DataError) as caught:
        fetch_dataset(dataset(*files), tmp_path, offline=True)
    steps = "; ".join(
        f"download https://a.org/{n} or https://b.org/{n} (md5 {files[0].md5}) to {tmp_path / n}"
        for n in "xz"
    )
    assert caught.value.exit_code == 3
    assert str(caught.value) == (
        f"pets is missing and downloads are off: {steps}; then run `smallvit data get pets`, or "
        "`smallvit data get pets --from PATH` with the files at any PATH"
    )
    assert manual_steps(dataset(*files), tmp_path) in str(caught.value)
    assert manual_steps(dataset(files[1]), tmp_path) == ""


@pytest.mark.parametrize("workers", [2, 4])
def test_of_several_at_once_one_fetches(pets, server, tmp_path, workers):
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda _: fetch_dataset(pets, tmp_path / "data"), range(workers)))
    assert len(server.requests) == 1
    assert visible(tmp_path / "data") == ["pets", "pets.zip"]


def test_a_folder_that_cannot_be_written_is_explained(pets, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot bring pets to .*file.*SMALLVIT_DATA_DIR"):
        fetch_dataset(pets, tmp_path / "file" / "data")


def test_kept_archives_are_verified_by_length_and_sum(tmp_path):
    files = [
        remote(name=name, target=name, size=size)
        for name, size in {"good": 200_000, "short": 200_000, "other": None}.items()
    ]
    (tmp_path / "good").write_bytes(CONTENT)
    (tmp_path / "short").write_bytes(CONTENT[:-1])
    (tmp_path / "other").write_bytes(bytes(9))
    md5 = hashlib.md5(bytes(9)).hexdigest()
    assert [find_difference(tmp_path / file.name, file) for file in files] == [
        None,
        "199,999 bytes, expected 200,000",
        f"md5 {md5}, expected {files[0].md5}",
    ]


def test_a_dataset_without_files_needs_nothing(tmp_path):
    fetch_dataset(dataset(), tmp_path / "data", offline=True)
    assert not (tmp_path / "data").exists()


def make_unpacked(path: Path) -> Path:
    (path / "a").mkdir(parents=True)
    (path / "a" / "1.png").write_text("mine")
    return path


@pytest.mark.parametrize("name", ["pets.zip", "pets (1).zip"])
def test_an_archive_of_the_users_is_known_by_name_or_sum_and_copied(pets, server, tmp_path, name):
    mine = (tmp_path / "made.zip").rename(tmp_path / name)
    fetch_dataset(pets, tmp_path / "data", origin=mine, offline=True)
    assert visible(tmp_path / "data") == ["pets", "pets.zip"]
    assert mine.exists()
    assert server.requests == []


def test_of_several_at_once_that_are_given_data_one_copies_and_none_fails(tmp_path):
    mine = make_unpacked(tmp_path / "mine" / "pets")
    spec = dataset(remote(name="pets.zip", target="pets"))
    started = threading.Barrier(3)

    def fetch(_: int) -> None:
        started.wait(5)
        fetch_dataset(spec, tmp_path / "data", origin=mine)

    (tmp_path / "data").mkdir()
    with ThreadPoolExecutor(2) as pool, FileLock(tmp_path / "data" / ".pets.lock"):
        both = [pool.submit(fetch, i) for i in range(2)]
        started.wait(5)
        time.sleep(0.1)  # both see that it is missing and wait for the lock
    assert [future.exception() for future in both] == [None, None]


@pytest.mark.parametrize("name", ["pets.zip", "pets (1).zip"])
def test_another_archive_of_the_users_is_refused_with_both_sums(pets, tmp_path, name):
    make_zip(tmp_path / name, **{"pets/evil": "1"})
    md5 = hashlib.md5((tmp_path / name).read_bytes()).hexdigest()
    with pytest.raises(DataError, match=rf"\(md5 {md5}.*{pets.files[0].md5}") as caught:
        fetch_dataset(pets, tmp_path / "data", origin=tmp_path / name)
    assert "\n" not in str(caught.value)
    assert visible(tmp_path / "data") == []


def test_a_folder_with_the_archives_is_taken(pets, server, tmp_path):
    (tmp_path / "made.zip").rename(tmp_path / "pets.zip")
    fetch_dataset(pets, tmp_path / "data", origin=tmp_path, offline=True)
    assert visible(tmp_path / "data") == ["pets", "pets.zip"]
    assert server.requests == []


@pytest.mark.parametrize(
    ("target", "place", "origin"),
    [
        ("pets", "pets", "."),
        ("pets", "pets", "pets"),
        ("pets", "Pets", "Pets"),
        ("Pets/raw", "Pets/raw", "."),
        ("Pets/raw", "Pets/raw", "Pets"),
        ("Pets/raw", "Pets/raw", "Pets/raw"),
    ],
)
def test_unpacked_data_is_copied_from_its_folder_or_the_one_above(
    tmp_path, caplog, target, place, origin
):
    spec = dataset(remote(name="pets.zip", target=target))
    mine = make_unpacked(tmp_path / "mine" / place)
    with caplog.at_level(logging.INFO, logger="smallvit"):
        fetch_dataset(spec, tmp_path / "data", origin=tmp_path / "mine" / origin, offline=True)
    copied = tmp_path / "data" / target
    assert (copied / "a" / "1.png").read_text() == "mine"
    assert not copied.samefile(mine)
    assert (mine / "a" / "1.png").exists()
    assert "no checksum was verified" in caplog.text


def test_links_in_unpacked_data_become_files(tmp_path):
    mine = make_unpacked(tmp_path / "mine" / "pets")
    (mine / "a" / "2.png").symlink_to(mine / "a" / "1.png")
    spec = dataset(remote(name="pets.zip", target="pets"))
    fetch_dataset(spec, tmp_path / "data", origin=mine)
    assert not (tmp_path / "data" / "pets" / "a" / "2.png").is_symlink()
    assert (tmp_path / "data" / "pets" / "a" / "2.png").read_text() == "mine"


@pytest.mark.parametrize(
    ("link", "why"), [("/gone", "No such file"), ("2.png", "[Ss]ymbolic link|many levels")]
)
def test_a_link_of_the_users_that_leads_nowhere_is_named_as_theirs(tmp_path, link, why):
    mine = make_unpacked(tmp_path / "mine" / "pets")
    (mine / "2.png").symlink_to(link)
    spec = dataset(remote(name="pets.zip", target="pets"))
    with pytest.raises(DataError, match=rf"cannot read {mine}/2\.png in --from .*{why}") as caught:
        fetch_dataset(spec, tmp_path / "data", origin=tmp_path / "mine")
    assert "SMALLVIT_DATA_DIR" not in str(caught.value)
    assert visible(tmp_path / "data") == []


@pytest.mark.parametrize("link", [".", ".."])
def test_a_folder_of_the_users_that_links_to_itself_is_refused(tmp_path, link):
    mine = make_unpacked(tmp_path / "mine" / "pets")
    (mine / "a" / "again").symlink_to(link)
    spec = dataset(remote(name="pets.zip", target="pets"))
    with pytest.raises(DataError, match=rf"{mine}/a/again in --from is a link to a folder that"):
        fetch_dataset(spec, tmp_path / "data", origin=mine)
    assert visible(tmp_path / "data") == []


def test_a_folder_linked_twice_is_copied_twice(tmp_path):
    mine = make_unpacked(tmp_path / "mine" / "pets")
    (mine / "b").symlink_to("a")
    fetch_dataset(dataset(remote(name="pets.zip", target="pets")), tmp_path / "data", origin=mine)
    assert (tmp_path / "data" / "pets" / "b" / "1.png").read_text() == "mine"


def test_a_data_folder_that_cannot_be_written_is_not_blamed_on_the_users(tmp_path):
    make_unpacked(tmp_path / "pets")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / ".pets.partial").symlink_to("/gone")
    spec = dataset(remote(name="pets.zip", target="pets"))
    with pytest.raises(DataError, match=r"cannot bring pets to .*SMALLVIT_DATA_DIR"):
        fetch_dataset(spec, tmp_path / "data", origin=tmp_path)


def test_modes_of_unpacked_data_are_not_copied(tmp_path):
    mine = make_unpacked(tmp_path / "mine" / "pets")
    expected = mine.stat().st_mode
    mine.chmod(0o555)
    fetch_dataset(dataset(remote(name="pets.zip", target="pets")), tmp_path / "data", origin=mine)
    assert (tmp_path / "data" / "pets").stat().st_mode == expected
    mine.chmod(expected)


def test_what_the_users_folder_lacks_is_downloaded(server, tmp_path):
    other = os.urandom(100)
    url = server.serve("/y", file_answer(other))
    spec = dataset(remote("http://x.invalid"), remote(url, content=other, name="y", target="y"))
    (tmp_path / "x.bin").write_bytes(CONTENT)
    fetch_dataset(spec, tmp_path / "data", origin=tmp_path)
    assert visible(tmp_path / "data") == ["x.bin", "y"]


def test_a_folder_of_the_users_without_anything_of_it_is_refused(pets, server, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(
        DataError, match=r"mine holds nothing .* of pets: expected pets\.zip or, unpacked, pets$"
    ):
        fetch_dataset(pets, tmp_path / "data", origin=tmp_path / "mine")
    assert server.requests == []


def test_a_path_of_the_users_that_is_absent_is_refused(pets, tmp_path):
    with pytest.raises(DataError, match=r"no file or folder at .*nowhere: --from takes"):
        fetch_dataset(pets, tmp_path / "data", origin=tmp_path / "nowhere")


def test_a_data_folder_inside_the_users_is_refused(pets, tmp_path):
    mine = make_unpacked(tmp_path / "pets")
    with pytest.raises(DataError, match=r"pets holds the data folder, .*: give another --from"):
        fetch_dataset(pets, mine / "data", origin=mine)


def test_a_path_that_is_not_needed_is_told(pets, tmp_path, caplog):
    make_unpacked(tmp_path / "data" / "pets")
    with caplog.at_level(logging.INFO, logger="smallvit"):
        fetch_dataset(pets, tmp_path / "data", origin=tmp_path)
    assert "nothing of pets is missing" in caplog.text


HUB = "owner/stanford_cars@" + "0" * 40


def test_a_dataset_of_the_hub_is_fetched_once(tmp_path, monkeypatch):
    calls: list[tuple[str, Path, bool]] = []

    def fetch_hub(reference: str, folder: Path, *, offline: bool) -> None:
        calls.append((reference, folder, offline))
        folder.mkdir()
        (folder / "train.parquet").touch()

    monkeypatch.setitem(
        sys.modules, "smallvit.data.files.hub", SimpleNamespace(fetch_hub=fetch_hub)
    )
    for _ in range(2):
        fetch_dataset(dataset(hub=HUB), tmp_path, offline=True)
    assert calls == [(HUB, tmp_path / "stanford_cars", True)]
    assert is_present(dataset(hub=HUB), tmp_path)


@pytest.mark.parametrize("folder", ["stanford_cars", "downloads"])
def test_parquet_files_of_the_users_stand_in_for_the_hub(tmp_path, folder):
    mine = tmp_path / "mine" / folder / "data"
    mine.mkdir(parents=True)
    (mine / "train-0.parquet").write_bytes(struct.pack("<L", 1))
    fetch_dataset(dataset(hub=HUB), tmp_path / "data", origin=mine.parent, offline=True)
    assert (tmp_path / "data" / "stanford_cars" / "data" / "train-0.parquet").exists()


def test_the_manual_step_of_a_dataset_of_the_hub_names_its_commit(tmp_path):
    steps = manual_steps(dataset(hub=HUB), tmp_path)
    assert f"https://huggingface.co/datasets/owner/stanford_cars/tree/{'0' * 40}" in steps
    assert str(tmp_path / "stanford_cars") in steps


def test_each_dataset_of_the_hub_has_a_folder_of_its_own(tmp_path):
    (tmp_path / "stanford_cars").mkdir()
    (tmp_path / "stanford_cars" / "train.parquet").touch()
    birds = dataset(hub="owner/birds@" + "0" * 40)
    assert is_present(dataset(hub=HUB), tmp_path)
    assert not is_present(birds, tmp_path)
    assert str(tmp_path / "birds") in manual_steps(birds, tmp_path)
    folders = [hub_folder(spec.hub) for spec in DATASETS.values() if spec.hub is not None]
    assert len(set(folders)) == len(folders)
