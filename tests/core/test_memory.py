"""How much memory there is, by what the system says."""

import pytest
import torch

from smallvit.core import memory

MEMINFO = "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    8000000 kB\n"


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A machine of 16 GB, of which 8 GB are free, without control groups."""
    for name in ("MEMINFO", "GROUPS", "GROUP_ROOT"):
        monkeypatch.setattr(memory, name, tmp_path / name.lower())
    (tmp_path / "meminfo").write_text(MEMINFO)
    return tmp_path


def write_group(folder, **values) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in values.items():
        (folder / name.replace("__", ".")).write_text(f"{value}\n")


def test_memory_that_can_be_had_is_free(system):
    assert memory.free_bytes() == 8_000_000 * 1024


def test_the_limit_of_a_container_counts(system):
    """Caches of files within it can be dropped."""
    (system / "groups").write_text("0::/jobs/17\n")
    write_group(system / "group_root" / "jobs" / "17", memory__max="max", memory__current=5)
    write_group(
        system / "group_root" / "jobs",
        memory__max=4 * 10**9,
        memory__current=3 * 10**9,
        memory__stat=f"anon 1\ninactive_file {10**9}",
    )
    assert memory.free_bytes() == 2 * 10**9


def test_the_limit_of_an_old_control_group_counts(system):
    (system / "groups").write_text("3:cpu,cpuacct:/x\n4:memory:/outside/name\n")
    write_group(
        system / "group_root" / "memory",
        memory__limit_in_bytes=10**9,
        memory__usage_in_bytes=2 * 10**9,
    )
    assert memory.free_bytes() == 0


def test_a_system_that_does_not_say_is_not_guessed(system):
    (system / "meminfo").unlink()
    assert memory.free_bytes() is None


@pytest.mark.skipif(memory.resident_bytes() is None, reason="the system does not say")
def test_the_peak_is_that_of_what_is_done_meanwhile():
    memory.start_peak()
    before = memory.resident_bytes()
    torch.ones(30_000_000)
    assert memory.peak_bytes() - before > 100e6


def test_it_is_told_whether_the_peak_starts_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "missing" / "clear_refs")
    assert memory.start_peak() is False
    monkeypatch.setattr(memory, "CLEAR", tmp_path / "clear_refs")
    assert memory.start_peak() is True


@pytest.mark.parametrize(("count", "text"), [(3.94e9, "3.9 GB"), (420e6, "420 MB")])
def test_bytes_are_written_for_people(count, text):
    assert memory.format_bytes(count) == text
