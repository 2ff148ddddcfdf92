import os

import pytest

from smallvit.core.places import dead_link, kept_environment


@pytest.mark.parametrize("before", [None, ":16:8"])
@pytest.mark.parametrize("name", ["CUBLAS_WORKSPACE_CONFIG", "HF_HUB_OFFLINE"])
def test_a_variable_that_a_run_set_is_as_it_was_after_it(name, before, monkeypatch):
    if before is None:
        monkeypatch.delenv(name, raising=False)
    else:
        monkeypatch.setenv(name, before)
    with kept_environment():
        os.environ[name] = ":4096:8"
    assert os.environ.get(name) == before


def test_a_link_to_nothing_is_said_of_itself_and_of_what_is_below_it(tmp_path):
    link = tmp_path / "link"
    link.symlink_to("/nowhere/else")
    said = "a link to /nowhere/else, which is not there: mount or make that, or remove the link"
    assert dead_link(link) == f"is {said}"
    assert dead_link(link / "runs" / "one") == f"is below {link}, {said}"
    assert dead_link(tmp_path) is None
    assert dead_link(tmp_path / "absent") is None
