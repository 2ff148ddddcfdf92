import logging

import pytest

from smallvit.core.once import say_once, saying_once


def say(caplog: pytest.LogCaptureFixture, *lines: str) -> list[str]:
    with caplog.at_level(logging.INFO, logger="smallvit"):
        for line in lines:
            say_once(logging.INFO, line)
    return [record.getMessage() for record in caplog.records]


def test_each_line_is_said_once_within_and_every_time_outside(caplog):
    with saying_once(), saying_once():
        assert say(caplog, "a", "b", "a") == ["a", "b"]
    assert say(caplog, "a", "a") == ["a", "b", "a", "a"]


def test_the_next_command_says_it_again(caplog):
    for _ in range(2):
        with saying_once():
            say(caplog, "a")
    assert len(caplog.records) == 2
