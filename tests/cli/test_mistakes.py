"""Words that the command line does not take: one line with what would do."""

import pytest

from smallvit.cli.app import main

LINES = {
    "pretrain --lr 0.1": "unknown option --lr; did you mean --optim.lr?",
    "pretrain --wd 0.1": "did you mean --optim.weight-decay?",
    "pretrain --bs 8": "did you mean --batch-size?",
    "pretrain --gpu": "did you mean --device cuda?",
    "pretrain --device gpu": "--device: cannot be 'gpu'; did you mean 'cuda'?",
    "pretrain --precision float16": "did you mean 'fp16'?",
    "pretrain --workers 4": "no loader has workers, leave it out",
    "pretrain --epoch 4": "did you mean --epochs?",
    "pretrain --num-classes 4": "the classes are counted in the data",
    "pretrain --resume-from x": "did you mean --resume?",
    "pretrain --ckpt x": "did you mean --init or --resume?",
    "pretrain --pretrained": "did you mean --init timm:NAME?",
    "pretrain --val 0.2": "did you mean --data.val-fraction?",
    "pretrain --output-dir x": "did you mean --out?",
    "pretrain --img-size 32": "did you mean --data.image-size?",
    "pretrain --arch vit": "did you mean --model?",
    "pretrain --amp": "did you mean --precision bf16?",
    "pretrain --no-offline": "--offline is off unless it is given",
    "pretrain --method.name mae": "did you mean --method?",
    "models --classes 4": "did you mean --num-classes?",
    "teacher --init x": "did you mean --from?",
    "eval x --lr 3": "`smallvit eval --help` lists those there are",
    "run generic/32px --epochs 3": "--pretrain.schedule.epochs, --teacher.schedule.epochs or",
    "run": "run needs a recipe: `smallvit recipes ls`",
    "eval": "eval needs a run: `smallvit runs ls`",
    "data info": "data info needs a data set, a folder",
    "convert x": "convert needs --out",
    "pretrain --dataset": "--dataset needs a value",
    "finetune epochs=3": "finetune does not take 'epochs=3': options are written --epochs 3",
    "pretrain digits": "pretrain does not take 'digits': a data set is named by --dataset digits",
    "pretrain own.yaml": "a recipe is named by --recipe own.yaml",
    "pretrain --offline true": "a switch has no value",
    "pretrain --epochs two": "--epochs: must be a number, got 'two'",
    "pretrain --seed 1.5": "--seed: must be a whole number, got '1.5'",
    "pretrain --seed 1 --seed 2": "--seed is given twice",
    "predict run a.png": "predict is not built yet: RUN/export",
    "export run": "export is not built yet",
    "train --data x": "`smallvit run RECIPE --data FOLDER`",
    "test": "`smallvit eval RUN`",
    "download": "`smallvit data get NAME`",
    "list": "`smallvit data ls`",
    "--list": "`smallvit data ls`",
    "trian": "unknown command 'trian'; did you mean 'pretrain'?",
    "runs rm": "runs rm is not built yet: a run is its folder, delete that",
    "recipes list": "`smallvit recipes ls` lists them",
    "recipes show generic/64": "did you mean 'generic/64px'? `smallvit recipes ls` lists them",
    "models vit_tyni": "did you mean 'vit_tiny'? `smallvit models` lists them",
}


@pytest.mark.parametrize("line", LINES)
def test_what_was_meant_is_said_in_one_line(line, capsys):
    assert main(line.split()) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert LINES[line] in said[0]


@pytest.mark.parametrize("words", [["help", "runs"], ["runs", "--help"]])
def test_help_is_a_command_too(words, capsys):
    assert main(words) == 0
    assert "Usage: smallvit runs" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["version", "--version", "-V"])
def test_the_version_is_asked_for_in_three_ways(word, capsys):
    assert main([word]) == 0
    assert capsys.readouterr().out.strip()[0].isdigit()
