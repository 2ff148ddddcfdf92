"""Runs that an older version made go on and are scored: its recipes lack later settings."""

import json

import yaml

from smallvit.cli.app import main
from smallvit.engine.checkpoint import load_checkpoint, save_checkpoint

LATER = (
    "data.split_version",
    "model.window_size",
    "model.weight_init",
    "runtime.grad_checkpointing",
    "pretrain.init",
    "pretrain.method.name",
    "pretrain.method.ema_teacher_mode",
    "pretrain.method.views.num_global",
    "pretrain.monitor",
    *(
        f"{stage}.optim.{key}"
        for stage in ("pretrain", "finetune")
        for key in ("decay", "grad_clip_mode")
    ),
)
FIRST_CUT = ("--data.split-version", "1")  # of a recipe that names none in a run folder


def make_old(run) -> dict:
    """Take the later settings out of a run, which then counts as interrupted."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    for path in LATER:
        *sections, key = path.split(".")
        values = recipe
        for section in sections:
            values = values.get(section, {})
        assert values == {} or key in values, path
        values.pop(key, None)
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    state = load_checkpoint(run / "checkpoints" / "last.pt")
    del state["format"]
    state["identity"]["settings"] = json.dumps(recipe)
    save_checkpoint(run / "checkpoints" / "last.pt", state)
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"status": "interrupted"}))
    return recipe


def test_a_run_without_later_settings_goes_on_twice_and_is_scored(tiny, tmp_path, capsys):
    run = tmp_path / "old"
    assert main(["finetune", "--recipe", tiny, *FIRST_CUT, "--out", str(run)]) == 0
    recipe = make_old(run)
    assert main(["finetune", "--resume", str(run), "--model.weight-init", "mimetic"]) == 2
    assert "model.weight_init: trunc_normal -> mimetic" in capsys.readouterr().err
    assert main(["finetune", "--resume", str(run)]) == 0
    assert yaml.safe_load((run / "recipe.yaml").read_text()) == recipe
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"status": "interrupted"}))
    assert main(["finetune", "--resume", str(run)]) == 0
    assert main(["eval", str(run)]) == 0


def test_a_finished_run_without_later_settings_is_still_found(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SMALLVIT_RUNS_DIR", str(tmp_path / "runs"))
    assert main(["pretrain", "--recipe", tiny, *FIRST_CUT]) == 0
    (run,) = (path.parent for path in (tmp_path / "runs").rglob("result.json"))
    make_old(run)
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"status": "completed"}))
    capsys.readouterr()
    assert main(["finetune", "--recipe", tiny, *FIRST_CUT, "--token-label"]) == 0
    assert "passing over" not in capsys.readouterr().err
    runs = [json.loads(p.read_text()) for p in (tmp_path / "runs").rglob("result.json")]
    assert {r["init"] for r in runs if r["stage"] == "finetune"} == {"pretrain"}


def test_a_pretrain_run_of_before_there_were_methods_goes_on_and_starts_others(
    tiny, tmp_path, capsys
):
    run = tmp_path / "old"
    start = ["pretrain", "--recipe", tiny, *FIRST_CUT, "--epochs", "0.1"]
    assert main([*start, "--out", str(run)]) == 0
    recipe = make_old(run)
    assert "name" not in recipe["pretrain"]["method"]
    assert main(["pretrain", "--resume", str(run), "--method", "mae"]) == 2
    assert "continues a run of method dino" in capsys.readouterr().err
    assert main(["pretrain", "--resume", str(run)]) == 0
    assert yaml.safe_load((run / "recipe.yaml").read_text()) == recipe
    short = ["--epochs", "0.05", "--batch-size", "16", "--init", str(run)]
    for stage in ("pretrain", "finetune"):
        assert main([stage, *short, "--out", str(tmp_path / stage)]) == 0
        result = json.loads((tmp_path / stage / "result.json").read_text())
        assert result["init"] == "pretrain"
        assert result["upstream"]["pretrain"]["samples_seen"] > 0


def split_facts(run) -> tuple:
    env = json.loads((run / "env.json").read_text())
    return env["dataset"]["fingerprint"], env["dataset"]["counts"], env["split_hashes"]


def test_an_old_run_keeps_its_cut_and_hands_it_on(tiny, tmp_path):
    run, short = tmp_path / "old", ["--epochs", "0.05", "--batch-size", "16"]
    assert main(["pretrain", "--recipe", tiny, *FIRST_CUT, *short, "--out", str(run)]) == 0
    make_old(run)
    assert main(["pretrain", "--resume", str(run)]) == 0
    # Counts of the first release for the digits of this seed.
    assert split_facts(run)[1] == {"train": 1295, "labelled": 259, "val": 143, "test": 359}
    for name, options in {
        "started": ["--init", str(run)],
        "named": ["--init", str(run), "--dataset", "digits"],
        "again": ["--recipe", str(run / "recipe.yaml"), "--model.weight-init", "trunc_normal"],
    }.items():
        assert main(["finetune", *options, *short, "--out", str(tmp_path / name)]) == 0
        assert split_facts(tmp_path / name) == split_facts(run)
        recipe = yaml.safe_load((tmp_path / name / "recipe.yaml").read_text())
        assert recipe["data"]["split_version"] == 1


def test_a_new_run_is_cut_by_content_and_says_so_in_its_recipe(tiny, tmp_path):
    run = tmp_path / "new"
    assert main(["pretrain", "--recipe", tiny, "--epochs", "0.05", "--out", str(run)]) == 0
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["data"]["split_version"] == 2
    assert split_facts(run)[1] == {"train": 1306, "labelled": 263, "val": 147, "test": 344}


def test_an_old_run_that_learned_what_the_new_cut_holds_out_is_refused_with_its_cut(
    tiny, tmp_path, capsys
):
    run, short = tmp_path / "old", ["--epochs", "0.5"]
    assert main(["finetune", "--recipe", tiny, *FIRST_CUT, *short, "--out", str(run)]) == 0
    words = ["finetune", "--recipe", tiny, *short, "--init", str(run), "--dry-run"]
    capsys.readouterr()
    assert main(words) == 2
    assert "take its cut with --data.split-version 1" in capsys.readouterr().err
    assert main([*words, *FIRST_CUT]) == 0
