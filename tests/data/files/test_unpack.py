import bz2
import errno
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from smallvit.core.errors import DataError
from smallvit.data.files import unpack as module
from smallvit.data.files.unpack import unpack

FILES = {"set/a/1.png": b"one", "set/a/2.png": b"two" * 5000, "set/b/3.png": b""}
COMPRESSED = {".gz": gzip.open, ".tgz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
SUFFIXES = ["zip", "tar", "tar.gz", "tgz", "tar.xz", "tar.bz2"]


def make_tar(path: Path, *members: tarfile.TarInfo, **content: bytes) -> Path:
    with ExitStack() as stack:
        opener = COMPRESSED.get(path.suffix)
        stream = None if opener is None else stack.enter_context(opener(path, "wb"))
        archive = stack.enter_context(tarfile.open(path, "w", fileobj=stream))
        for member in members:
            archive.addfile(member)
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def make_archive(path: Path, content: Mapping[str, bytes]) -> Path:
    if path.suffix != ".zip":
        return make_tar(path, **content)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return path


def member(name: str, kind: bytes, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    return info


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_refused(archive: Path, match: str) -> None:
    """Refused, with nothing left of it beside the archive or above."""
    below = archive.parent / "data"
    below.mkdir()
    before = contents(archive.parent)
    with pytest.raises(DataError, match=match) as caught:
        unpack(archive, below / "set")
    assert "\n" not in str(caught.value)
    assert str(archive) in str(caught.value)
    assert list(below.iterdir()) == []
    assert contents(archive.parent) == before


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_entry_of_the_targets_name_becomes_the_target(tmp_path, suffix):
    archive = make_archive(tmp_path / f"x.{suffix}", FILES | {"readme": b"beside"})
    unpack(archive, tmp_path / "data" / "set")
    assert contents(tmp_path / "data") == FILES


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_without_such_an_entry_the_whole_becomes_the_target(tmp_path, suffix):
    files = {"train/a/1.png": b"1", "./valid/a/2.png": b"2", "README": b"3"}
    unpack(make_archive(tmp_path / f"x.{suffix}", files), tmp_path / "data" / "cinic-10")
    assert contents(tmp_path / "data" / "cinic-10") == {
        "train/a/1.png": b"1",
        "valid/a/2.png": b"2",
        "README": b"3",
    }


def test_a_compressed_file_becomes_the_target(tmp_path):
    archive = tmp_path / "idx.gz"
    archive.write_bytes(gzip.compress(b"pixels" * 1000))
    unpack(archive, tmp_path / "raw" / "idx")
    assert contents(tmp_path / "raw") == {"idx": b"pixels" * 1000}


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_folders_without_files_and_folder_entries_are_made(tmp_path, suffix):
    archive = tmp_path / f"x.{suffix}"
    if suffix == "zip":
        make_archive(archive, {"set/empty/": b"", "set/1": b"1"})
    else:
        make_tar(archive, member("set/empty", tarfile.DIRTYPE), **{"set/1": b"1"})
    unpack(archive, tmp_path / "set")
    assert (tmp_path / "set" / "empty").is_dir()


@pytest.mark.parametrize("suffix", ["zip", "tar"])
def test_resource_forks_of_macos_are_left_out(tmp_path, suffix):
    junk = {"__MACOSX/set/._1": b"x", "set/._1": b"x", "set/.DS_Store": b"x"}
    unpack(make_archive(tmp_path / f"x.{suffix}", {"set/1": b"1"} | junk), tmp_path / "set")
    assert contents(tmp_path / "set") == {"1": b"1"}


def test_a_target_that_exists_is_replaced(tmp_path):
    make_archive(tmp_path / "old.zip", {"set/old": b"1", "set/both": b"1"})
    make_archive(tmp_path / "new.zip", {"set/both": b"2"})
    (tmp_path / "data").mkdir()
    for name in ("old", "new"):
        unpack(tmp_path / f"{name}.zip", tmp_path / "data" / "set")
    assert contents(tmp_path / "data") == {"set/both": b"2"}


def test_a_failure_keeps_the_target_that_exists(tmp_path):
    archive = make_archive(tmp_path / "x.tar.gz", FILES)
    unpack(archive, tmp_path / "data" / "set")
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(DataError, match="is broken"):
        unpack(archive, tmp_path / "data" / "set")
    assert contents(tmp_path / "data") == FILES


def test_no_target_is_seen_before_it_is_whole_and_leftovers_of_a_killed_process_go(tmp_path):
    leftover = tmp_path / "data" / ".set.partial" / "unpacked" / "set" / "half"
    leftover.mkdir(parents=True)
    seen: list[bool] = []
    archive = make_archive(tmp_path / "x.zip", FILES)
    unpack(
        archive,
        tmp_path / "data" / "set",
        progress=lambda done, total: seen.append((tmp_path / "data" / "set").exists()),
    )
    assert seen
    assert not any(seen)
    assert contents(tmp_path / "data") == FILES
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["set"]


@pytest.mark.parametrize("suffix", [*SUFFIXES, "gz"])
def test_progress_ends_at_the_length_of_the_archive(tmp_path, suffix):
    archive = tmp_path / f"x.{suffix}"
    content = os.urandom(3 * 2**20)
    if suffix == "gz":
        archive.write_bytes(gzip.compress(content, 1))
    else:
        make_archive(archive, {"set/1": content, "set/2": content[:100]})
    calls: list[tuple[int, int]] = []
    unpack(archive, tmp_path / "set", progress=lambda *call: calls.append(call))
    size = archive.stat().st_size
    assert calls[-1] == (size, size)
    assert calls == sorted(set(calls))


@pytest.mark.parametrize("name", ["../evil", "set/../../../evil", "/evil"])
@pytest.mark.parametrize("suffix", ["zip", "tar"])
@pytest.mark.parametrize("old", [False, True], ids=["", "Python before 3.11.4"])
def test_nothing_is_written_outside_the_target(tmp_path, suffix, name, old, monkeypatch):
    if old:
        monkeypatch.delattr(tarfile, "data_filter")
    archive = make_archive(tmp_path / f"x.{suffix}", {"set/1": b"1", name: b"evil"})
    assert_refused(archive, "is broken .*outside of the folder")
    assert [path for path in contents(tmp_path) if path != archive.name] == []
    assert not Path("/evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_an_older_python_without_the_filter_unpacks_files_and_folders_alone(
    tmp_path, kind, monkeypatch
):
    monkeypatch.delattr(tarfile, "data_filter")
    archive = make_tar(tmp_path / "x.tar", member("set/x", kind, "1"), **{"set/1": b"1"})
    assert_refused(archive, "is broken .*neither a file nor a folder")


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_that_lead_outside_and_devices_are_refused(tmp_path, kind):
    evil = member("set/x", kind, "../../evil")
    archive = make_tar(tmp_path / "x.tar", evil, **{"set/x/through": b"evil", "set/1": b"1"})
    assert_refused(archive, "is broken .*(outside the destination|special file)")


@pytest.mark.parametrize("suffix", [*SUFFIXES, "gz"])
@pytest.mark.parametrize("kept", [0.5, 0.9], ids=str)
def test_an_archive_cut_short_is_broken(tmp_path, suffix, kept):
    archive = tmp_path / f"x.{suffix}"
    files = {f"set/{i}": os.urandom(2000) for i in range(5)}
    if suffix == "gz":
        archive.write_bytes(gzip.compress(files["set/0"]))
    else:
        make_archive(archive, files)
    if suffix == "tar":  # without its padding at the end
        archive.write_bytes(archive.read_bytes()[: 5 * (512 + 2048)])
    plain = archive.read_bytes()
    archive.write_bytes(plain[: int(kept * len(plain))])
    assert_refused(archive, r"is broken \(.+\): remove it and fetch it again")


@pytest.mark.parametrize("suffix", [*SUFFIXES, "gz"])
def test_another_file_of_that_name_is_broken(tmp_path, suffix):
    archive = tmp_path / f"x.{suffix}"
    archive.write_bytes(b"<!doctype html>" + b"no archive" * 200)
    assert_refused(archive, "is broken")


@pytest.mark.parametrize("suffix", ["zip", "tar", "gz"])
def test_a_full_disk_is_told_before_anything_is_written(tmp_path, suffix, monkeypatch):
    archive = tmp_path / f"x.{suffix}"
    content = os.urandom(2_000_000)
    if suffix == "gz":
        archive.write_bytes(gzip.compress(content, 1))
    else:
        make_archive(archive, {"set/1": content})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    with pytest.raises(DataError, match=r"needs 2\.\d MB in .*, 0\.1 MB are free"):
        unpack(archive, tmp_path / "data" / "set")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_disk_that_becomes_full_meanwhile_is_explained_and_the_old_target_stays(
    tmp_path, monkeypatch
):
    archive = make_archive(tmp_path / "x.zip", {"set/1": b"new"})
    (tmp_path / "set").write_bytes(b"old")

    def rename(self: Path, target: Path) -> None:
        if self.parent.name == "unpacked":
            raise OSError(errno.ENOSPC, "full")
        os.rename(self, target)  # noqa: PTH104 - Path's own is replaced

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(DataError, match=r"became full while .*x\.zip was unpacked: make room"):
        unpack(archive, tmp_path / "set")
    assert contents(tmp_path) == {"x.zip": archive.read_bytes(), "set": b"old"}


def test_a_name_that_the_system_refuses_is_explained(tmp_path):
    archive = make_archive(tmp_path / "x.zip", {"set/" + "n" * 300: b"1"})
    with pytest.raises(DataError, match=r"cannot unpack .*x\.zip to .*set \(File name too long\)"):
        unpack(archive, tmp_path / "set")
    assert contents(tmp_path) == {"x.zip": archive.read_bytes()}
