"""``smallvit label``: interruptions, checks and refusals; its class folders have dots."""

import json
import logging
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from smallvit.cli.app import main
from smallvit.runs import label as label_module
from smallvit.teachers.score_maps import Parts, ScoreMaps, read_score_maps
from smallvit.teachers.teacher import Teacher

RECIPE = {
    "data": {"image_size": 8, "split_seed": 574},  # cuts 72, 8 and 20, half of them of each class
    "runtime": {"device": "cpu"},
    "teacher": {
        "model": {"name": "resnet8_small", "width": 4, "stride": 2},
        "augment": {"crop": "none", "policy": "none", "mix_prob": 0.0, "repeats": 1},
        "optim": {"batch_size": 16, "lr": 0.01},
        "schedule": {"epochs": 4.0, "warmup_epochs": 0.0, "eval_epochs": 4.0},
    },
}


@pytest.fixture(scope="module")
def teacher(session_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that tells dark from bright images."""
    folder = tmp_path_factory.mktemp("teacher")
    generator = np.random.default_rng(0)
    for label, name in enumerate(("dark.v1", "bright.v1")):
        (folder / "cinic10" / name).mkdir(parents=True)
        for i in range(50):
            pixels = generator.integers(0, 128, (8, 8, 3)) + 127 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "cinic10" / name / f"{i}.png")
    recipe = {**RECIPE, "data": {**RECIPE["data"], "path": str(folder / "cinic10")}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SMALLVIT_CACHE_DIR", str(session_cache))
        out = ["--out", str(folder / "run")]
        assert main(["teacher", "--recipe", str(folder / "recipe.yaml"), *out]) == 0
    logging.getLogger("smallvit").handlers.clear()
    return folder / "run"


@pytest.fixture
def own_teacher(teacher: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may break."""
    return Path(shutil.copytree(teacher, tmp_path / "teacher"))


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part on disk for each batch: five for the 72 images."""
    monkeypatch.setattr(label_module, "PART_IMAGES", 1)


def label(teacher: Path, out: Path, *more: str) -> int:
    batches = ["--label.batch-size", "16"]  # a teacher's run has no settings of the maps
    return main(["label", "--teacher", str(teacher), "--out", str(out), *batches, *more])


def change_forward(monkeypatch: pytest.MonkeyPatch, at: int, change) -> None:
    """Let something happen in the teacher's forward pass number ``at``."""
    forward, count = Teacher.forward, iter(range(1, 1000))

    def changed(self, images):
        dense = forward(self, images)
        return change(dense) if next(count) == at else dense

    monkeypatch.setattr(Teacher, "forward", changed)


def change_weights(run: Path, change) -> None:
    path = run / "export" / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def change_result(run: Path, **values: str) -> None:
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, **values}))


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_label_run_holds_maps_a_picture_and_no_parts(teacher, tmp_path, capsys):
    run = tmp_path / "run"
    assert label(teacher, run) == 0
    assert "images/s" in capsys.readouterr().err
    assert {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()} == {
        *("recipe.yaml", "env.json", "result.json", "train.log", "score_maps.safetensors"),
        "learned.npz",
        "plots/alignment.png",
    }
    maps, header = read_score_maps(run / "score_maps.safetensors")
    assert header.class_names == ("bright.v1", "dark.v1")
    assert (header.temperature, header.flip, header.extra_data) == (1.0, False, "none")
    result = json.loads((run / "result.json").read_text())
    assert result["samples_seen"] == len(maps.prob) == 72
    assert result["metrics"]["val/teacher_top1"] == header.teacher_val_top1


def test_temperature_and_flip_change_the_maps_and_are_in_the_header(teacher, tmp_path):
    more = ["--label.temperature", "4", "--label.flip", "--data.hflip"]
    assert label(teacher, tmp_path / "plain") == 0
    assert label(teacher, tmp_path / "soft", *more) == 0
    plain, _ = read_score_maps(tmp_path / "plain" / "score_maps.safetensors")
    soft, header = read_score_maps(tmp_path / "soft" / "score_maps.safetensors")
    assert (header.temperature, header.flip) == (4.0, True)
    assert soft.prob[:, 0].float().mean() < plain.prob[:, 0].float().mean()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_label_goes_on_to_the_same_file(
    teacher, tmp_path, capsys, small_parts, number, code
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert label(teacher, whole) == 0
    with pytest.MonkeyPatch.context() as patch:

        def stop(dense):
            os.kill(os.getpid(), number)
            return dense

        change_forward(patch, 3, stop)
        assert label(teacher, broken) == code
    line = last_line(capsys)
    assert "after image 48 of 72" in line
    assert line.endswith(f"continue with smallvit label --resume {broken}")
    assert json.loads((broken / "result.json").read_text())["status"] == "interrupted"
    assert not (broken / "score_maps.safetensors").exists()
    assert main(["label", "--resume", str(broken)]) == 0
    ours, theirs = (run / "score_maps.safetensors" for run in (broken, whole))
    assert ours.read_bytes() == theirs.read_bytes()
    assert not (broken / "parts").exists()
    assert json.loads((broken / "result.json").read_text())["status"] == "completed"


def test_a_crashed_label_goes_on_after_its_last_whole_part(
    teacher, tmp_path, monkeypatch, small_parts
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert label(teacher, whole) == 0
    with pytest.MonkeyPatch.context() as patch:

        def crash(dense):
            raise RuntimeError

        change_forward(patch, 4, crash)
        assert label(teacher, broken) == 1
    (part,) = (broken / "parts").glob("*32.safetensors")
    part.write_bytes(part.read_bytes()[:-1])
    sizes = []
    forward = Teacher.forward
    monkeypatch.setattr(
        Teacher, "forward", lambda self, images: sizes.append(len(images)) or forward(self, images)
    )
    assert main(["label", "--resume", str(broken)]) == 0
    # From the broken part on, then those computed again one by one.
    assert sizes == [16, 16, 8] + [1] * 10
    ours, theirs = (run / "score_maps.safetensors" for run in (broken, whole))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.fixture
def stopped(teacher: Path, tmp_path: Path, small_parts: None) -> Path:
    """A run that was stopped after its second batch."""
    with pytest.MonkeyPatch.context() as patch:

        def crash(dense):
            raise RuntimeError

        change_forward(patch, 3, crash)
        own = shutil.copytree(teacher, tmp_path / "its-teacher")
        assert label(own, tmp_path / "stopped") == 1
    return tmp_path / "stopped"


def test_resume_refuses_changed_settings(stopped, capsys):
    assert main(["label", "--resume", str(stopped), "--label.temperature", "2"]) == 2
    assert "label.temperature: 1.0 -> 2.0" in last_line(capsys)


def test_resume_refuses_a_teacher_that_was_trained_again(stopped, tmp_path, capsys):
    change_weights(tmp_path / "its-teacher", lambda weights: weights["fc.bias"].add_(0.01))
    assert main(["label", "--resume", str(stopped)]) == 2
    assert "was written with other teacher: put" in last_line(capsys)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--overwrite"], "--resume goes on in its own folder"),
        (["--recipe", "digits/vit_tiny"], "--resume brings its own recipe"),
    ],
)
def test_resume_takes_no_folder_and_no_recipe(stopped, capsys, more, message):
    assert main(["label", "--resume", str(stopped), *more]) == 2
    assert message in last_line(capsys)


def test_there_must_be_a_run_to_resume_or_a_teacher(capsys):
    assert main(["label", "--resume", "runs/none"]) == 2
    assert "no run there" in last_line(capsys)
    assert main(["label"]) == 2
    assert "give --teacher RUN" in last_line(capsys)


def test_a_teacher_at_chance_is_refused_before_anything_is_written(own_teacher, tmp_path, capsys):
    change_weights(own_teacher, lambda weights: weights["fc.weight"].zero_())
    assert label(own_teacher, tmp_path / "run") == 2
    line = last_line(capsys)
    assert "names the right class of 50.00%" in line
    assert "chance (naming one class always: 50.00%)" in line
    assert not (tmp_path / "run").exists()


def test_a_teacher_with_nan_weights_is_refused_before_anything_is_written(
    own_teacher, tmp_path, capsys
):
    change_weights(own_teacher, lambda weights: weights["fc.bias"].fill_(torch.nan))
    assert label(own_teacher, tmp_path / "run") == 3
    assert "NaN or infinite" in last_line(capsys)
    assert not (tmp_path / "run").exists()


def test_a_map_with_nan_ends_in_one_line_and_leaves_no_maps(
    teacher, tmp_path, capsys, monkeypatch, small_parts
):
    change_forward(monkeypatch, 2, lambda dense: dense * torch.nan)
    assert label(teacher, tmp_path / "run") == 3
    assert "NaN or infinite probabilities" in last_line(capsys)
    assert not list((tmp_path / "run").rglob("*.safetensors"))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "failed"


def test_maps_of_other_images_fail_the_spot_check_and_are_removed(
    teacher, tmp_path, capsys, monkeypatch
):
    join = Parts.join

    def shuffled(self) -> ScoreMaps:
        maps = join(self)
        return ScoreMaps(
            prob=maps.prob.roll(36, 0), index=maps.index.roll(36, 0), rest=maps.rest, num_classes=2
        )

    monkeypatch.setattr(Parts, "join", shuffled)
    assert label(teacher, tmp_path / "run") == 3
    assert "not what the teacher says of the same images" in last_line(capsys)
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_what_an_adopted_teacher_has_seen_is_carried_along(own_teacher, tmp_path):
    seen = "timm weights resnet18.a1_in1k"
    change_result(own_teacher, extra_data=seen)
    assert label(own_teacher, tmp_path / "run") == 0
    assert read_score_maps(tmp_path / "run" / "score_maps.safetensors")[1].extra_data == seen
    assert json.loads((tmp_path / "run" / "result.json").read_text())["extra_data"] == seen


def test_a_teacher_that_shares_images_with_the_test_split_needs_leave(
    own_teacher, tmp_path, capsys
):
    change_result(own_teacher, extra_data="cifar10")
    assert label(own_teacher, tmp_path / "run") == 2
    assert "--allow-leak" in last_line(capsys)
    assert not (tmp_path / "run").exists()
    assert label(own_teacher, tmp_path / "run", "--allow-leak") == 0
    _, header = read_score_maps(tmp_path / "run" / "score_maps.safetensors")
    assert header.extra_data.startswith("cifar10")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--label.temperature", "0"], "temperature: must be > 0"),
        (["--label.flip", "--data.no-hflip"], "label.flip averages over mirrored images"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(teacher, tmp_path, capsys, more, message):
    assert label(teacher, tmp_path / "run", *more) == 2
    assert message in last_line(capsys)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_writes_nothing(teacher, tmp_path):
    assert label(teacher, tmp_path / "run", "--dry-run") == 0
    assert not (tmp_path / "run").exists()
