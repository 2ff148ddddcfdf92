"""Suites are read strictly and planned so that cells share what they build on."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from smallvit.core.config import nest
from smallvit.core.errors import ConfigError
from smallvit.core.run_folder import write_recipe
from smallvit.leaderboard.suite import (
    Plan,
    passes_of,
    plan_suite,
    read_suite,
    samples_of,
    shipped_suites,
)
from smallvit.runs.recipe import load_recipe, recipes_root, stage_values

TINY = {"datasets": ["digits"]}
FOUR_ARMS = TINY | {"inits": ["scratch", "dino"], "token_label": [False, True]}


@pytest.fixture(autouse=True)
def _places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMALLVIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SMALLVIT_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("SMALLVIT_OFFLINE", "1")


@pytest.fixture
def plan(tmp_path: Path) -> Any:
    """Write a suite to a file and plan it."""

    def make(values: dict[str, Any]) -> Plan:
        (tmp_path / "my.yaml").write_text(yaml.safe_dump(values))
        return plan_suite(read_suite(str(tmp_path / "my.yaml")))

    return make


def stages(plan: Plan) -> dict[str, int]:
    names = [node.stage for node in plan.nodes.values()]
    return {stage: names.count(stage) for stage in ("pretrain", "teacher", "label", "finetune")}


def test_cells_share_what_they_build_on(plan):
    """3 seeds of stage 1; a teacher and its maps for each of 2 fractions and 3 seeds."""
    of_suite = plan(FOUR_ARMS | {"fractions": [0.1, 1.0], "seeds": [0, 1, 2]})
    assert len(of_suite.cells) == 2 * 2 * 2 * 3
    assert stages(of_suite) == {"pretrain": 3, "teacher": 6, "label": 6, "finetune": 24}


def test_a_run_comes_after_those_that_it_needs(plan):
    of_suite = plan(FOUR_ARMS)
    order = list(of_suite.nodes)
    for node in of_suite.nodes.values():
        assert all(order.index(need) < order.index(node.name) for need in node.needs)
    both = of_suite.nodes["finetune/digits-vit_tiny-dino-tl-f1-s0"]
    assert both.needs == ("pretrain/digits-vit_tiny-dino-s0", "label/digits-f1-s0")
    assert of_suite.nodes["label/digits-f1-s0"].needs == ("teacher/digits-f1-s0",)


def test_a_cell_names_the_runs_that_it_builds_on(plan, tmp_path):
    nodes = plan(FOUR_ARMS).nodes
    root = tmp_path / "runs" / "suites" / "my"
    both = nodes["finetune/digits-vit_tiny-dino-tl-f1-s0"].recipe.finetune
    assert both.init == str(root / "pretrain" / "digits-vit_tiny-dino-s0")
    assert both.score_maps == root / "label" / "digits-f1-s0" / "score_maps.safetensors"
    assert both.token_label.enabled
    scratch = nodes["finetune/digits-vit_tiny-scratch-f1-s0"].recipe.finetune
    assert (scratch.init, scratch.score_maps) == ("scratch", None)
    assert not scratch.token_label.enabled


def test_stage_1_sees_all_images_whatever_part_of_the_labels_stage_2_has(plan):
    of_suite = plan(FOUR_ARMS | {"fractions": [0.1]})
    fractions = {node.stage: node.recipe.data.label_fraction for node in of_suite.nodes.values()}
    assert fractions == {"pretrain": 1.0, "teacher": 0.1, "label": 0.1, "finetune": 0.1}
    assert any("without their labels" in note for note in of_suite.notes())
    assert plan(FOUR_ARMS).notes() == []


@pytest.mark.parametrize(
    ("source", "expected"), [("online", ["teacher"]), ("ema", []), ("stored", ["label"])]
)
def test_token_labels_need_what_their_source_reads(plan, source, expected):
    settings = nest({"finetune.token_label.source": source})
    of_suite = plan(TINY | {"token_label": [True], "settings": settings})
    (cell,) = of_suite.cells
    assert [need.split("/")[0] for need in of_suite.nodes[cell].needs] == expected


def test_a_method_brings_its_own_stage_1_and_leaves_stage_2_alone(plan):
    """cifar10/gani-vit has no recipe of SimCLR: stage 1 is generic/32px-simclr's."""
    suite = {"datasets": ["cifar10"], "models": ["gani_vit"], "inits": ["scratch", "simclr"]}
    nodes = plan(suite).nodes
    pretrain = nodes["pretrain/cifar10-gani_vit-simclr-s0"].recipe
    assert pretrain.pretrain == load_recipe("generic/32px-simclr", {})[0].pretrain
    assert pretrain.model.name == "gani_vit"
    published = load_recipe("cifar10/gani-vit", {})[0].finetune
    for init in ("scratch", "simclr"):
        cell = nodes[f"finetune/cifar10-gani_vit-{init}-f1-s0"].recipe
        assert cell.finetune.schedule == published.schedule
        assert cell.finetune.optim == published.optim


def test_every_cell_of_a_data_set_has_the_same_supervised_passes(plan):
    suite = FOUR_ARMS | {"inits": ["scratch", "dino", "mae"], "fractions": [0.1, 0.5]}
    of_suite = plan(suite | {"settings": nest({"finetune.schedule.epochs": 7.0})})
    assert {passes_of(of_suite.nodes[name]) for name in of_suite.cells} == {7.0}


def test_models_whose_recipes_are_not_comparable_are_refused(plan):
    """The recipe of digits has their own 8 px, the generic one of 32 px scales them up."""
    models = {"models": ["vit_tiny", "gani_vit"]}
    with pytest.raises(ConfigError, match=r"vit_tiny and gani_vit differ in data.image_size: None"):
        plan(TINY | models)
    size = {"settings": nest({"data.image_size": 32, "finetune.schedule.epochs": 3.0})}
    assert len(plan(TINY | models | size).cells) == 2
    # With token labels a teacher for all of them is needed too.
    with pytest.raises(ConfigError, match=r"differ in teacher\..*: give it in settings"):
        plan(TINY | models | size | {"token_label": [True]})


def test_settings_count_for_every_cell(plan):
    settings = nest({"model.embed_dim": 16, "pretrain.schedule.epochs": 0.5})
    of_suite = plan(FOUR_ARMS | {"inits": ["dino", "mae"], "settings": settings})
    assert {node.recipe.model.embed_dim for node in of_suite.nodes.values()} == {16}
    stage_1 = [node for node in of_suite.nodes.values() if node.stage == "pretrain"]
    assert {node.recipe.pretrain.schedule.epochs for node in stage_1} == {0.5}
    assert {node.recipe.pretrain.method.name for node in stage_1} == {"dino", "mae"}


def test_seeds_are_outermost_so_that_the_first_table_stands_early(plan):
    cells = plan(FOUR_ARMS | {"seeds": [5, 3]}).cells
    assert [name.rpartition("-s")[2] for name in cells] == ["5"] * 4 + ["3"] * 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dataset": ["digits"]}, r"unknown key 'dataset' .*did you mean 'datasets'"),
        ({"datasets": []}, "datasets is empty: list at least one"),
        ({"datasets": "digits"}, "datasets: must be a list, got 'digits'"),
        ({"datasets": ["digit"]}, "no folder is called 'digit'; did you mean 'digits'"),
        ({"models": ["vit_tinny"]}, "models: unknown model 'vit_tinny'; did you mean 'vit_tiny'"),
        ({"inits": ["dinno"]}, "inits: cannot be 'dinno'; did you mean 'dino'"),
        ({"token_label": [1]}, "token_label: must be true or false, got 1"),
        ({"fractions": [0.1, 10]}, r"fractions: must be > 0 and <= 1, got \[0.1, 10\]"),
        ({"seeds": [0, 1, 0]}, "seeds: 0 is listed 2 times"),
        ({"recipe": "digits/vit_tinny"}, "no recipe 'digits/vit_tinny'"),
        ({"settings": 3}, "settings: must be a mapping, got 3"),
        ({"settings": {"seed": 3}}, r"settings.seed \(3\) .*: give it as seeds"),
        (
            {"settings": nest({"data.label_fraction": 0.1})},
            r"settings.data.label_fraction \(0.1\) .*: give it as fractions",
        ),
        (
            {"settings": nest({"finetune.optim.rl": 0.1})},
            r"my.yaml: settings: unknown key 'finetune.optim.rl' .*did you mean 'lr'",
        ),
        ({"settings": nest({"pretrain.optim.lr": -1.0})}, r"optim.lr: must be > 0, got -1.0"),
        ({"bench": ["fgsm"]}, r"bench: must be a mapping, got \['fgsm'\]"),
    ],
)
def test_mistakes_are_named_with_file_and_value(plan, values, message):
    with pytest.raises(ConfigError, match=message):
        plan(TINY | values)


def test_an_unknown_suite_lists_the_shipped_ones():
    with pytest.raises(ConfigError, match=r"no suite 'digit', .*did you mean 'digits'"):
        read_suite("digit")


def test_two_folders_of_one_name_are_refused(plan, tmp_path):
    for parent in ("a", "b"):
        (tmp_path / parent / "photos").mkdir(parents=True)
    with pytest.raises(ConfigError, match="2 are called 'photos': rename a folder"):
        plan({"datasets": ["a/photos", "b/photos"]})


def test_a_folder_is_found_from_the_suites_own(plan, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    of_suite = plan({"datasets": ["photos"], "settings": nest({"data.image_size": 32})})
    (cell,) = of_suite.cells
    assert of_suite.nodes[cell].recipe.data.path == tmp_path / "photos"


def test_a_data_set_that_cannot_be_read_leaves_the_others_alone(plan, tmp_path):
    (tmp_path / "empty").mkdir()
    of_suite = plan({"datasets": ["empty", "digits"]})
    (broken, whole) = of_suite.cells
    assert "empty" in of_suite.faults[broken]
    assert list(of_suite.nodes) == [whole]


def test_a_run_with_other_settings_is_refused_by_name(plan, tmp_path):
    of_suite = plan(TINY)
    (cell,) = of_suite.cells
    folder = of_suite.folder / cell
    folder.mkdir(parents=True)
    recipe = of_suite.nodes[cell].recipe
    write_recipe(folder / "recipe.yaml", stage_values(recipe, "finetune"))
    (folder / "result.json").write_text(json.dumps({"status": "completed"}))
    assert plan(TINY).done(cell)
    old = recipe.finetune.schedule.epochs
    with pytest.raises(
        ConfigError, match=rf"{cell} was made with .*schedule.epochs: {old} -> 9.0\): choose"
    ):
        plan(TINY | {"settings": nest({"finetune.schedule.epochs": 9.0})})


def test_samples_are_passes_times_images(plan):
    """Digits: 1,797 images, of which 20 % test and of the others 10 % validate."""
    passes = {f"{stage}.schedule.epochs": 2.0 for stage in ("pretrain", "teacher", "finetune")}
    suite = FOUR_ARMS | {"fractions": [0.5], "settings": nest(passes)}
    train = 1_797 * 0.8 * 0.9
    samples = {node.stage: samples_of(node) for node in plan(suite).nodes.values()}
    expected = {"pretrain": 2 * train, "teacher": train, "label": train / 2, "finetune": train}
    assert samples == pytest.approx(expected)


def test_there_are_shipped_suites():
    assert shipped_suites() == ["cifar10-few-labels", "digits", "small-data"]


@pytest.mark.parametrize("name", ["cifar10-few-labels", "digits", "small-data"])
def test_a_shipped_suite_is_what_its_header_says(name):
    suite = read_suite(name)
    text = (recipes_root() / "suites" / f"{name}.yaml").read_text()
    assert f"# command: smallvit bench {name}\n" in text
    assert suite.config.description
    assert suite.config.paper
    of_suite = plan_suite(suite)
    assert re.findall(r"# cells: (\d+)\D.*? (\d+) runs", text) == [
        (str(len(of_suite.cells)), str(len(of_suite.nodes)))
    ]
    assert not of_suite.faults
    stage_2 = {passes_of(of_suite.nodes[cell]) for cell in of_suite.cells}
    assert stage_2 == {300.0}
