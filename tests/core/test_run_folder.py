import json
from pathlib import Path

import pytest

from smallvit.core import run_folder
from smallvit.core.errors import ConfigError, DataError
from smallvit.core.run_folder import create_folder, find_runs, new_folder, open_run, write_json


def make_run(path: Path, **changes) -> Path:
    path.mkdir(parents=True)
    result = {"stage": "finetune", "status": "completed", "started": "2026-01-01"}
    write_json(path / "result.json", result | changes)
    return path


def test_a_written_file_is_whole_and_leaves_no_partial_one(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    write_json(tmp_path / "a.json", {"x": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_written_recipe_is_read_again_in_its_order(tmp_path):
    data = {"path": "Bäume/x", "split_version": 2}
    recipe = {"stage": "finetune", "data": data, "augment": {"scale": [0.5, 1.0]}}
    run_folder.write_recipe(tmp_path / "recipe.yaml", recipe)
    found = run_folder.Run(tmp_path).recipe
    assert found == recipe
    assert list(found) == list(recipe)


def test_runs_are_found_by_start_and_broken_ones_passed_over(tmp_path):
    late = make_run(tmp_path / "a" / "late", started="2026-03-01")
    early = make_run(tmp_path / "b" / "early", started="2026-02-01")
    (make_run(tmp_path / "broken") / "result.json").write_text("{")
    assert [run.path for run in find_runs(tmp_path)] == [early, late]


def test_runs_are_ordered_by_the_moment_of_their_start_not_by_the_clock_on_the_wall(tmp_path):
    # Summer time ends between them: the clock goes back from 3 to 2.
    second = make_run(tmp_path / "a", started="2026-10-25T02:10:00+0100")
    first = make_run(tmp_path / "b", started="2026-10-25T02:50:00+0200")
    abroad = make_run(tmp_path / "c", started="2026-10-24T21:00:00-0700")
    unknown = make_run(tmp_path / "d", started="yesterday")
    assert [run.path for run in find_runs(tmp_path)] == [unknown, first, second, abroad]


def test_a_finished_run_is_opened(tmp_path):
    run = open_run(make_run(tmp_path / "run"))
    assert run.completed
    assert run.result["stage"] == "finetune"


def test_a_run_that_is_absent_or_unfinished_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere is not there: 'smallvit runs ls' shows"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(
        DataError, match="is interrupted: finish it with smallvit finetune --resume"
    ):
        open_run(make_run(tmp_path / "two", status="interrupted"))


def test_a_new_folder_never_names_one_that_exists(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.time, "strftime", lambda form: "20260101-000000")
    names = []
    for _ in range(3):
        path = new_folder(tmp_path, "digits", "vit")
        path.mkdir(parents=True)
        names.append(path.name)
    stem = "20260101-000000-vit"
    assert names == [stem, f"{stem}-2", f"{stem}-3"]


def test_an_existing_run_is_replaced_only_when_told(tmp_path):
    path = make_run(tmp_path / "run")
    with pytest.raises(ConfigError, match="holds a run: replace it with --overwrite"):
        create_folder(path, overwrite=False)
    create_folder(path, overwrite=True)
    assert [file.name for file in path.iterdir()] == ["run.lock"]  # until the run ends


def test_a_folder_that_is_no_run_is_never_overwritten(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="is no run, so --overwrite leaves it alone"):
        create_folder(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_a_folder_that_cannot_be_made_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot create .*file/run: Not a directory"):
        create_folder(tmp_path / "file" / "run", overwrite=False)


def test_environment_names_versions_machine_and_command():
    found = run_folder.environment(["smallvit", "train"])
    assert found["argv"] == ["smallvit", "train"]
    assert {"torch", "numpy"} <= set(found["versions"])
    assert found["machine"].endswith("cores")
    json.dumps(found)
