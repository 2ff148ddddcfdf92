"""Suites, exports and tables that fell under altered files, kept."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from smallvit.core.errors import ConfigError, DataError, SmallViTError
from smallvit.core.model_config import ModelConfig
from smallvit.data.files.own import open_path
from smallvit.inference.export import exported_model, read_export, write_export
from smallvit.leaderboard.suite import read_suite
from smallvit.models.registry import create_backbone, model_arguments

SUITES = {
    "a long data set": ("datasets: [%s]" % ("a" * 5000), "no folder is called 'aaaa"),
    "data of nobody": ("datasets: [~nobody-at-all/x]", "no folder is called '~nobody-at-all/x'"),
    "a long recipe": ("datasets: [digits]\nrecipe: %s" % ("a" * 5000), "recipe: no path can be"),
    "a long archive": (
        "datasets: [digits]\nbench: {archive: %s}" % ("a" * 5000),
        "bench.archive: ",
    ),
    "images of nobody": (
        "datasets: [digits]\nbench: {ood: [~nobody-at-all]}",
        "bench.ood: no path",
    ),
    "a start of nobody": (
        "datasets: [digits]\nsettings: {pretrain: {init: ~nobody-at-all}}",
        "pretrain.init: no path",
    ),
}


@pytest.mark.parametrize("what", SUITES)
def test_a_suite_that_fell_is_one_line(tmp_path, what):
    text, message = SUITES[what]
    (tmp_path / "suite.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_suite(str(tmp_path / "suite.yaml"))
    assert str(caught.value).startswith(f"{tmp_path}/suite.yaml: ")
    assert message in str(caught.value)


def test_control_characters_of_a_file_are_shown_and_not_sent_to_the_terminal(tmp_path):
    for name in "ab":
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    (tmp_path / "table.csv").write_text(
        'image_path,label\n"\x1b[2J\n\udcff",1\n', "utf-8", "replace"
    )
    with pytest.raises(DataError) as caught:
        open_path(tmp_path / "table.csv")
    assert r"1 of 1 file not found: \x1b[2J\n? (line 3)" in str(caught.value)


CLAIMS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no strides": lambda config: config["model_args"].update(strides=None),
    "strides that are text": lambda config: config["model_args"].update(strides=""),
    "a width of billions": lambda config: config["model_args"].update(width=2**40),
    "a width of thousands": lambda config: config["model_args"].update(width=4000),
    "a depth of billions": lambda config: config["model_args"].update(depth=6 * 2**30 + 2),
    "a width in a list": lambda config: config["model_args"].update(width=[2**40]),
    "a name that is a number": lambda config: config.update(architecture=3),
    "arguments that are a list": lambda config: config.update(model_args=[]),
}


def open_export(folder: Path) -> None:
    read_export(folder)
    exported_model(folder)


@pytest.mark.parametrize("claim", CLAIMS)
def test_an_export_that_fell_is_one_line_and_takes_no_memory(tmp_path, claim):
    config = ModelConfig(name="resnet8_small", width=4, stride=2)
    write_export(
        tmp_path,
        create_backbone(config, num_classes=3, image_size=8),
        arguments=model_arguments(config, num_classes=3, image_size=8)[1],
        class_names=("a", "b", "c"),
        image_size=8,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        card="",
    )
    read_export(tmp_path)
    plain = json.loads((tmp_path / "config.json").read_text())
    CLAIMS[claim](plain)
    (tmp_path / "config.json").write_text(json.dumps(plain))
    with pytest.raises(SmallViTError) as caught:
        open_export(tmp_path)
    assert len(str(caught.value).splitlines()) == 1
