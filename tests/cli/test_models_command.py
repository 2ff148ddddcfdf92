"""``smallvit models``: names, sizes and why some do not fit."""

import json
import re

import pytest

from smallvit.cli.app import main


def rows(capsys, *words: str) -> dict[str, dict]:
    assert main(["models", *words, "--json"]) == 0
    return {row["name"]: row for row in json.loads(capsys.readouterr().out)}


def test_figures_of_a_model(capsys):
    assert rows(capsys, "gani_vit")["gani_vit"] == {
        "name": "gani_vit",
        "parameters": 2_697_610,
        "macs": 187_716_864,
        "grid": [8, 8],
        "embed_dim": 192,
    }


def test_patterns_find_the_toolkits_models_first_and_timms_after(capsys):
    found = rows(capsys, "vit_tiny_*16*_224", "--img-size", "48x64", "--num-classes", "3")
    assert found["vit_tiny_patch16_224"]["grid"] == [12, 16]  # patches of 4: 6 does not divide 64
    found = list(rows(capsys, "*resnet18*", "--img-size", "16"))
    assert found[0] == "resnet18_small"
    assert "resnet18" in found


def test_a_size_that_does_not_fit_is_said_once_for_all_models_it_keeps_out(capsys):
    assert main(["models", "resnet??_small", "--img-size", "7"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "not for 7 px: resnet14_small, resnet20_small, resnet56_small: cells of 4 px are too large "
        "for images of 7 x 7 px; --data.image-size from 8 on, or a smaller model.stride, would do",
        "not for 7 px: resnet18_small: cells of 8 px are too large for images of 7 x 7 px; "
        "--data.image-size from 16 on, or a smaller model.stride, would do",
    ]


def test_a_table_leaves_out_what_does_not_fit(capsys):
    assert main(["models", "gani_*", "--img-size", "16"]) == 0
    table, _, reason = capsys.readouterr().out.partition("not for 16 px: ")
    assert "gani_vit" in table
    assert "gani_swin" not in table
    assert reason.startswith("gani_swin: stage 3 has 2 x 2 patches")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--img-size", "abc"], "--img-size must be a side in pixels .*, got 'abc'"),
        (["--img-size", "32x"], "got '32x'"),
        (["--img-size", "0"], "got '0'"),
        (["--img-size", "-8"], "img-size"),
        (["--num-classes", "0"], "--num-classes must be at least 1, got 0"),
        (["gani_vot"], "unknown model 'gani_vot'; did you mean 'gani_vit'"),
        (["*_*"], "more than 200: narrow it down"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(words, message, capsys):
    assert main(["models", *words]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert re.search(message, lines[0])
