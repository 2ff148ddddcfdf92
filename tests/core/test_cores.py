import os

import pytest

from smallvit.core import cores as module
from smallvit.core.cores import cores


@pytest.fixture(autouse=True)
def eight_allowed(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "CGROUP", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)


def test_cores_are_those_that_the_process_may_use_not_those_of_the_machine():
    assert cores() == 8


@pytest.mark.parametrize(
    ("text", "count"), [("150000 100000", 2), ("max 100000", 8), ("10000 100000", 1), ("", 8)]
)
def test_a_container_is_given_the_time_of_fewer_cores(tmp_path, text, count):
    (tmp_path / "cpu.max").write_text(text)
    assert cores() == count


@pytest.mark.parametrize(("quota", "count"), [(300000, 3), (-1, 8)])
def test_older_containers_say_it_in_two_files(tmp_path, quota, count):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cores() == count
