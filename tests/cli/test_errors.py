"""Bad input: one line, the value, the remedy, the exit code, before any work."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from smallvit.cli.app import main

CASES = {
    "unknown dataset": (["pretrain", "--dataset", "cifar"], 2, "did you mean 'cifar10'"),
    "unknown option": (["pretrain", "--dataset", "digits", "--optim.lrr", "1"], 2, "--optim.lr?"),
    "out of range": (["pretrain", "--dataset", "digits", "--optim.lr", "-3"], 2, "got -3.0"),
    "wrong type": (
        ["pretrain", "--dataset", "digits", "--optim.lr", "fast"],
        2,
        "number, got 'fast'",
    ),
    "unknown recipe": (["pretrain", "--recipe", "digits/vit_tin"], 2, "'digits/vit_tiny'"),
    "no data": (["pretrain"], 2, "--dataset NAME"),
    "missing folder": (["pretrain", "--data", "/no/such"], 3, "nothing is at /no/such"),
    "unknown model": (["pretrain", "--dataset", "digits", "--model", "vit_tny"], 2, "'vit_tiny'"),
    "unfit patch": (
        ["pretrain", "--dataset", "digits", "--model.patch-size", "3"],
        2,
        "model.patch_size (3) must divide",
    ),
    "odd heads": (
        ["pretrain", "--dataset", "digits", "--model.num-heads", "5"],
        2,
        "must divide model.embed_dim",
    ),
    "two data": (["pretrain", "--dataset", "digits", "--data", "x"], 2, "exclude each"),
    "nothing to resume": (["pretrain", "--resume", "runs/none"], 2, "no run there"),
    "no run to score": (["eval", "runs/none"], 2, "runs/none is not there"),
    "no teacher": (
        ["label", "--teacher", "runs/none", "--dataset", "digits"],
        2,
        "--teacher runs/none is not there",
    ),
    "offline": (["pretrain", "--dataset", "cifar100", "--offline"], 3, "cifar-100-python.tar.gz"),
    "maps without labels": (
        ["finetune", "--dataset", "digits", "--score-maps", "x"],
        2,
        "need --token-label",
    ),
    "missing maps": (
        ["finetune", "--dataset", "digits", "--token-label", "--score-maps", "x"],
        2,
        "x is not there: smallvit label writes them",
    ),
    "token labels of nothing": (["finetune", "--token-label"], 2, "or run smallvit pretrain"),
    "a file as folder": (["pretrain", "--data", __file__], 3, "is another kind of file"),
    "no class folders": (["pretrain", "--data", "."], 3, "has no images: give a folder"),
    "label options alone": (
        ["finetune", "--dataset", "digits", "--token-label.token-weight", "1"],
        2,
        "needs --token-label",
    ),
    "size of info": (["data", "info", "digits", "--data.image-size", "-1"], 2, "must be >= 8"),
    "unknown command": (["pretrian"], 2, "did you mean 'pretrain'?"),
    "nothing to bench": (["bench"], 3, "no finished fine-tuned run"),
    "no gpu": (["pretrain", "--dataset", "digits", "--device", "tpu"], 2, "be 'tpu'"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_ends_with_one_line_and_its_exit_code(case, capsys, tmp_path):
    arguments, code, message = CASES[case]
    assert main(arguments) == code
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("smallvit: ")
    assert message in line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optm: {lr: 1}", "recipe.yaml: unknown key 'optm' (value {'lr': 1})"),
        (
            "model: {patch_sze: 2}",
            "unknown key 'model.patch_sze' (value 2); did you mean 'patch_size'",
        ),
        ("model: {patch_size: two}", "model.patch_size: must be a whole number, got 'two'"),
        ("pretrain: {optim: {lr: 0}}", "pretrain.optim.lr: must be > 0, got 0"),
        ("data: {dataset: digts}", "recipe.yaml: unknown dataset 'digts'; did you mean 'digits'"),
        ("runtime: {device: gpu}", "runtime.device: cannot be 'gpu'"),
        ("arms: [ssl, tl]", "arms: cannot be 'tl'"),
        ("seed: [", "no valid YAML"),
        ("data: digits", "data must be a mapping, got 'digits'"),
        ("- 1", "a recipe is a mapping of sections"),
    ],
)
def test_a_bad_recipe_names_file_key_and_value(text, message, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    assert main(["pretrain", "--recipe", str(path), "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_an_existing_run_is_refused_and_lost_only_on_request(tiny, tmp_path, capsys):
    run = ["teacher", "--recipe", tiny, "--epochs", "0.2", "--out", str(tmp_path / "run")]
    assert main(run) == 0
    kept = (tmp_path / "run" / "result.json").read_text()
    assert main(run) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "run" / "result.json").read_text() == kept
    assert main([*run, "--overwrite"]) == 0
    stranger = tmp_path / "letters"
    stranger.mkdir()
    (stranger / "mother.txt").write_text("dear")
    assert main([*run[:-1], str(stranger), "--overwrite"]) == 2
    assert (stranger / "mother.txt").read_text() == "dear"


def test_resume_refuses_changed_settings(tiny, tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["teacher", "--recipe", tiny, "--epochs", "0.2", "--out", str(run)]) == 0
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, "status": "interrupted"}))
    assert main(["teacher", "--resume", str(run), "--optim.lr", "0.5"]) == 2
    assert "teacher.optim.lr: 0.001 -> 0.5" in capsys.readouterr().err


def test_divergence_ends_with_exit_4_and_says_so(tiny, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["teacher", "--recipe", tiny, "--optim.lr", "1e30", "--out", str(run)]
    assert main(arguments) == 4
    assert "NaN or infinite" in capsys.readouterr().err
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "failed"
    assert "NaN" in result["error"]


def test_weights_of_another_width_are_listed_by_name(tiny, copy_run, tmp_path, capsys):
    run = tmp_path / "pretrain"
    copy_run(run, "pretrain", "--epochs", "0.1")
    finetune = ["finetune", "--recipe", tiny, "--init", str(run), "--model.embed-dim", "32"]
    assert main(finetune) == 2
    line = capsys.readouterr().err
    assert "patch_embed.proj.weight is (16, 3, 2, 2), needed (32, 3, 2, 2)" in line
    assert "pos_embed" in line


def test_weights_of_another_patch_are_resampled_and_that_is_said(tiny, copy_run, tmp_path, capsys):
    run = tmp_path / "pretrain"
    copy_run(run, "pretrain", "--epochs", "0.1")
    finetune = ["finetune", "--recipe", tiny, "--init", str(run), "--model.patch-size", "1"]
    assert main([*finetune, "--epochs", "0.1"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "patch_embed.proj.weight resampled from 2 x 2 to 1 x 1" in said
    assert "pos_embed resampled from 4 x 4 to 8 x 8" in said
    assert "head.weight not loaded: not in the weights" in said


def test_an_exported_folder_is_a_start_of_unknown_origin(tiny, copy_run, tmp_path, capsys):
    run, again = tmp_path / "pretrain", tmp_path / "again"
    copy_run(run, "pretrain", "--epochs", "0.1")
    shutil.copytree(run / "export", tmp_path / "export")
    start = ["finetune", "--recipe", tiny, "--init", str(tmp_path / "export"), "--epochs", "0.1"]
    assert main([*start, "--out", str(again)]) == 0
    assert "extra_data is unknown" in " ".join(capsys.readouterr().err.split())
    result = json.loads((again / "result.json").read_text())
    assert result["init"] == "weights"
    assert result["extra_data"] == "unknown (weights of export)"


def test_an_export_brings_its_model_where_no_recipe_is_named(copy_run, tmp_path):
    run, again = tmp_path / "pretrain", tmp_path / "again"
    copy_run(run, "pretrain", "--epochs", "0.1")
    start = ["finetune", "--dataset", "digits", "--init", str(run / "export"), "--epochs", "0.1"]
    assert main([*start, "--out", str(again)]) == 0
    model = yaml.safe_load((again / "recipe.yaml").read_text())["model"]
    assert (model["embed_dim"], model["depth"], model["patch_size"]) == (16, 2, 2)


def test_another_model_than_the_starts_does_not_get_its_sizes(copy_run, tmp_path, capsys):
    run = tmp_path / "pretrain"
    copy_run(run, "pretrain", "--epochs", "0.1")
    start = ["finetune", "--init", str(run), "--model", "resnet8_small", "--epochs", "0.1"]
    assert main(start) == 2
    assert "no setting of resnet8_small" not in capsys.readouterr().err


def test_checkpointing_is_an_option_and_a_network_that_cannot_is_refused(tiny, tmp_path, capsys):
    run = tmp_path / "teacher"
    start = ["teacher", "--recipe", tiny, "--grad-checkpointing", "--epochs", "0.1"]
    assert main([*start, "--out", str(run)]) == 0
    assert yaml.safe_load((run / "recipe.yaml").read_text())["runtime"]["grad_checkpointing"]
    convit = ["--model", "convit_tiny", "--data.image-size", "32", "--model.patch-size", "8"]
    assert main([*start, *convit]) == 2
    assert "grad_checkpointing is not supported by convit_tiny" in capsys.readouterr().err


def test_a_start_that_saw_the_test_images_is_refused(tiny, copy_run, tmp_path, capsys):
    run = tmp_path / "pretrain"
    copy_run(run, "pretrain", "--epochs", "0.1")
    finetune = ["finetune", "--recipe", tiny, "--init", str(run), "--data.split-seed", "1"]
    assert main(finetune) == 2
    said = capsys.readouterr().err
    assert "was pretrained without labels on" in said
    assert "use its data.split_seed and fractions, or pass --allow-leak" in said


def test_a_dry_run_writes_nothing(tiny, tmp_path):
    for stage in ("pretrain", "teacher", "finetune"):
        assert main([stage, "--recipe", tiny, "--dry-run"]) == 0
    assert not (tmp_path / "runs").exists()


def test_help_does_not_import_torch_and_importing_its_models_registers_them():
    code = (
        "import sys, smallvit\n"
        "from smallvit.cli.app import main\n"
        "assert main(['--help']) in (0, None) and 'torch' not in sys.modules\n"
        "import smallvit.models, timm\n"
        "assert timm.create_model('resnet8_small', num_classes=3).num_classes == 3\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
