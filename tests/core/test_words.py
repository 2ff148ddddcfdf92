import pytest

from smallvit.core.errors import suggest
from smallvit.core.words import alike, command_hint, either, meant, needed, read_tables, unneeded

OPTIONS = ["optim.lr", "optim.weight-decay", "log.every-steps", "batch-size", "device", "seed"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--lr", ["optim.lr"]),
        ("--learning-rate", ["optim.lr"]),
        ("wd", ["optim.weight-decay"]),
        ("--bs", ["batch-size"]),
        ("--gpu", ["device cuda"]),
        ("--every-steps", ["log.every-steps"]),
        ("--finetune.optim.lr", ["optim.lr"]),
        ("zzz", []),
    ],
)
def test_what_people_mean_comes_before_likeness(word, expected):
    assert meant(word, OPTIONS) == expected


def test_settings_of_that_name_in_several_sections_are_all_named():
    known = ["pretrain.schedule.epochs", "finetune.schedule.epochs", "seed"]
    assert meant("--epochs", known) == known[:2]


def test_a_meant_name_that_is_not_known_here_is_not_offered():
    assert meant("lr", ["label.batch_size"]) == []


def test_values_are_meant_too():
    assert meant("gpu", ["auto", "cpu", "cuda"]) == ["cuda"]
    assert meant("float16", ["auto", "fp32", "bf16", "fp16"]) == ["fp16"]


def test_likeness_needs_more_than_a_few_letters():
    assert alike("--lrr", ["lr", "log"]) == ["lr"]
    assert alike("rl", ["name", "lr"]) == ["lr"]
    assert alike("bs", ["seed"]) == []
    assert alike("epoch", ["teacher"]) == []


def test_what_is_needed_by_nobody_says_why():
    assert "no loader has workers" in unneeded("--num-workers")
    assert suggest("num_workers", ["lr"]) == f": {unneeded('workers')}"


def test_a_word_that_is_meant_here_is_not_called_unneeded():
    assert suggest("classes", ["num_classes"]).startswith("; did you mean 'num_classes'?")


@pytest.mark.parametrize("word", ["predict", "explain", "embed", "export"])
def test_commands_to_come_say_so_and_what_does_the_job(word):
    hint = command_hint([word])
    assert hint.startswith(f"{word} is not built yet: ")
    assert "RUN" in hint


def test_a_command_below_another_has_its_own_hint():
    assert command_hint(["runs", "list"]) == "`smallvit runs ls` lists them"
    assert "not built yet" in command_hint(["recipes", "cp"])
    assert command_hint(["runs", "nothing"]) == ""


def test_names_are_joined_as_one_says_them():
    assert either(["a"]) == "a"
    assert either(["a", "b", "c"]) == "a, b or c"


def test_what_a_command_needs_is_said_of_each_and_of_no_other():
    assert needed("eval") == needed("runs show") == "a run: `smallvit runs ls` lists them"
    assert needed("runs") == needed("doctor") == ""


def test_the_tables_are_written_as_words_are_compared():
    tables = read_tables()
    words = " ".join([*tables["meant"].values(), *tables["commands"]]).split()
    assert all(word == word.lower() for word in words)
    assert "-" not in " ".join(tables["meant"].values())
    commands = {f"commands of {name}" for name in ("runs", "recipes", "data")}
    assert tables.keys() == {"meant", "unneeded", "commands", "needed"} | commands
