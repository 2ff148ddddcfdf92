"""What people type, and which name they mean.

The words of other tools and of habit come before likeness: ``lr`` is nearer to ``log`` than to
``optim.lr`` in letters alone. Names are those of settings, as a recipe writes them; an option is
the same with dashes in front. A name may be followed by the value that is meant.
"""

import difflib
from collections.abc import Iterable, Sequence

LIKE = 0.6  # of difflib, from 0 to 1: below it, words share little more than some letters
MOST_NEAR = 3

# Words for a setting or a value, and the names that it may have here, of which those are meant
# that are known at the place.
MEANT: dict[str, Sequence[str]] = {
    # Length and optimizer.
    "epoch": ["epochs"],
    "num_epochs": ["epochs"],
    "n_epochs": ["epochs"],
    "max_epochs": ["epochs"],
    "num_train_epochs": ["epochs"],
    "passes": ["epochs"],
    "steps": ["epochs"],
    "max_steps": ["epochs"],
    "iterations": ["epochs"],
    "learning_rate": ["lr"],
    "base_lr": ["lr"],
    "lr_base": ["lr"],
    "lr0": ["lr"],
    "blr": ["lr"],
    "wd": ["weight_decay"],
    "decay": ["weight_decay"],
    "bs": ["batch_size"],
    "b": ["batch_size"],
    "batch": ["batch_size"],
    "batchsize": ["batch_size"],
    "train_batch_size": ["batch_size"],
    "opt": ["optim.name"],
    "optimizer": ["optim.name"],
    "warmup": ["warmup_epochs"],
    "warmup_steps": ["warmup_epochs"],
    "scheduler": ["schedule.epochs", "min_lr"],
    "sched": ["schedule.epochs", "min_lr"],
    "clip_grad": ["grad_clip_norm"],
    "max_norm": ["grad_clip_norm"],
    "grad_clip": ["grad_clip_norm"],
    "ema": ["ema_decay"],
    "accum": ["micro_batch"],
    "accumulate": ["micro_batch"],
    "grad_accum_steps": ["micro_batch"],
    "gradient_accumulation_steps": ["micro_batch"],
    # Device and precision.
    "gpu": ["device cuda", "cuda"],
    "gpus": ["device cuda"],
    "cuda": ["device cuda"],
    "cpu": ["device cpu"],
    "accelerator": ["device"],
    "0": ["cuda"],
    "amp": ["precision bf16", "bf16"],
    "bf16": ["precision bf16"],
    "bfloat16": ["precision bf16", "bf16"],
    "fp16": ["precision fp16"],
    "float16": ["fp16"],
    "half": ["precision fp16", "fp16"],
    "16": ["fp16"],
    "mixed": ["bf16"],
    "mixed_precision": ["precision bf16"],
    "fp32": ["precision fp32"],
    "float32": ["fp32"],
    "full": ["fp32"],
    "32": ["fp32"],
    "dtype": ["precision"],
    # Data.
    "classes": ["num_classes"],
    "nc": ["num_classes"],
    "data_path": ["data"],
    "data_dir": ["data"],
    "dataset_path": ["data"],
    "dataset_dir": ["data"],
    "folder": ["data"],
    "dir": ["data"],
    "root": ["data"],
    "images": ["data"],
    "img_dir": ["data"],
    "train_dir": ["data"],
    "train": ["data"],
    "source": ["data"],
    "csv": ["data"],
    "input": ["data"],
    "data_set": ["dataset"],
    "ds": ["dataset"],
    "val": ["val_fraction"],
    "val_split": ["val_fraction"],
    "valid": ["val_fraction"],
    "val_size": ["val_fraction"],
    "test": ["test_fraction"],
    "test_split": ["test_fraction"],
    "labels": ["label_fraction"],
    "flip": ["hflip"],
    "size": ["image_size", "img_size"],
    "img_size": ["image_size"],
    "image_size": ["img_size"],
    "imgsz": ["image_size", "img_size"],
    "input_size": ["image_size", "img_size"],
    "resolution": ["image_size", "img_size"],
    # Network, starts and folders.
    "arch": ["model"],
    "architecture": ["model"],
    "backbone": ["model"],
    "net": ["model"],
    "network": ["model"],
    "model_name": ["model"],
    "patch": ["patch_size"],
    "heads": ["num_heads"],
    "layers": ["depth"],
    "dim": ["embed_dim"],
    "drop_path": ["drop_path_rate"],
    "dropout": ["drop_path_rate"],
    "algorithm": ["method"],
    "algo": ["method"],
    "ssl": ["method", "pretrain.method.name"],
    "loss": ["method"],
    "pretrained": ["init timm:NAME", "from timm:NAME"],
    "weights": ["init", "from"],
    "pretrained_weights": ["init", "from"],
    "start": ["init", "from"],
    "from": ["init", "adopt"],
    "init": ["from", "adopt"],
    "checkpoint": ["init", "resume"],
    "checkpoint_path": ["init", "resume"],
    "ckpt": ["init", "resume"],
    "load": ["init", "resume"],
    "resume_from": ["resume"],
    "resume_from_checkpoint": ["resume"],
    "continue": ["resume"],
    "token_labels": ["token_label"],
    "token_labeling": ["token_label"],
    "maps": ["score_maps"],
    "annotator": ["teacher"],
    "output": ["out"],
    "o": ["out"],
    "output_dir": ["out"],
    "out_dir": ["out"],
    "outdir": ["out"],
    "save_dir": ["out"],
    "log_dir": ["out"],
    "project": ["out"],
    "exist_ok": ["overwrite"],
    "force": ["overwrite"],
    "yes": ["overwrite"],
    "no_download": ["offline"],
    "debug": ["dry_run"],
    "dryrun": ["dry_run"],
    "fast_dev_run": ["dry_run"],
    "config": ["recipe"],
    "cfg": ["recipe"],
    "c": ["recipe"],
    "yaml": ["recipe"],
    "random_seed": ["seed"],
    "random_state": ["seed"],
    "manual_seed": ["seed"],
    "log_interval": ["every_steps"],
    "print_freq": ["every_steps"],
    "save_every": ["checkpoint_steps"],
    # Augmentation.
    "aug": ["augment.policy"],
    "auto_augment": ["augment.policy"],
    "aa": ["augment.policy"],
    "mixup": ["mixup_alpha"],
    "cutmix": ["cutmix_alpha"],
    "reprob": ["erasing_prob"],
    "random_erasing": ["erasing_prob"],
    "smoothing": ["method.label_smoothing"],
    "label_smoothing": ["method.label_smoothing"],
    "jitter": ["color_jitter"],
    # Values.
    "adam": ["adamw"],
    "moco": ["mocov3"],
    "moco_v3": ["mocov3"],
    "dinov2": ["ibot", "dino"],
    "masked_autoencoder": ["mae"],
    "jepa": ["lejepa"],
    "vit": ["vit_tiny", "vit_small"],
    "resnet": ["resnet20_small"],
    "resnet18": ["resnet18_small"],
    "swin": ["gani_swin", "sl_swin"],
    "cait": ["gani_cait", "sl_cait"],
    "cct": ["cct_7_3x1"],
    "lvvit": ["lvvit_tiny"],
    "tinyimagenet": ["tiny-imagenet"],
    "validation": ["val"],
}

# What no name is for, and why.
UNNEEDED: dict[str, str] = {
    **dict.fromkeys(
        ("workers", "num_workers", "j", "dataloader_num_workers", "pin_memory", "prefetch"),
        "images lie packed in memory and no loader has workers, leave it out",
    ),
    **dict.fromkeys(
        ("classes", "num_classes", "nb_classes", "n_classes", "nc"),
        "the classes are counted in the data, leave it out",
    ),
    **dict.fromkeys(
        ("devices", "num_gpus", "ngpus", "nproc", "nproc_per_node", "world_size"),
        "several GPUs are for torchrun --nproc-per-node N -m smallvit COMMAND",
    ),
    **dict.fromkeys(
        ("wandb", "tensorboard", "log_wandb", "tracker", "mlflow"),
        "a run writes metrics.jsonl and plots/curves.png, and there is no tracker",
    ),
    **dict.fromkeys(
        ("v", "verbose", "quiet", "q", "log_level", "loglevel"),
        "set the environment variable SMALLVIT_LOG_LEVEL to DEBUG, INFO, WARNING or ERROR",
    ),
    **dict.fromkeys(
        ("patience", "early_stopping"),
        "the best weights on validation are exported at the end, and nothing stops earlier",
    ),
    "list": "`smallvit data ls`, `smallvit models`, `smallvit recipes ls` and `smallvit runs ls` "
    "list what there is",
}

NOT_BUILT = "is not built yet"
# Words in the place of a command, and what they are for.
COMMANDS: dict[str, str] = {
    **dict.fromkeys(
        ("predict", "infer", "inference", "classify"),
        f"predict {NOT_BUILT}: RUN/export is a network that timm loads, with its class names; "
        "docs/python.md shows how it names an image",
    ),
    "explain": f"explain {NOT_BUILT}: `smallvit bench RUN` draws attention into its leaderboard, "
    "and a pretrain run has plots/",
    **dict.fromkeys(
        ("embed", "features", "extract"),
        f"embed {NOT_BUILT}: RUN/export is a network that timm loads, and its forward_features "
        "gives features; docs/python.md shows how",
    ),
    **dict.fromkeys(
        ("export", "onnx", "deploy"),
        f"export {NOT_BUILT}: every run has written RUN/export, a folder that timm loads as "
        "local-dir:RUN/export and torch.onnx.export takes from there",
    ),
    **dict.fromkeys(
        ("train", "fit"),
        "`smallvit run RECIPE --data FOLDER` trains every stage, `smallvit finetune --data FOLDER` "
        "a classifier alone",
    ),
    **dict.fromkeys(
        ("test", "score", "evaluate", "validate", "val"),
        "`smallvit eval RUN` scores a run on validation, with --split test on test",
    ),
    **dict.fromkeys(
        ("download", "fetch", "get"),
        "`smallvit data get NAME` fetches a data set, `smallvit data ls` lists them",
    ),
    **dict.fromkeys(("list", "ls"), UNNEEDED["list"]),
    **dict.fromkeys(
        ("dataset", "datasets"),
        "`smallvit data ls` lists data sets, `smallvit data info` shows one",
    ),
    **dict.fromkeys(
        ("show", "info", "describe"),
        "`smallvit data info NAME`, `smallvit recipes show NAME` and `smallvit runs show RUN` show "
        "one",
    ),
    "check": "`smallvit data check NAME` looks at data, `smallvit recipes check FILE` at a recipe",
    **dict.fromkeys(("resume", "continue"), "the command of the stage goes on with --resume RUN"),
    **dict.fromkeys(
        ("leaderboard", "compare", "rank", "benchmark", "suite", "suites"),
        "`smallvit bench RUN RUN` compares runs, `smallvit bench SUITE` makes those of a suite",
    ),
    **dict.fromkeys(("ssl", "selfsup", "stage1", "stage-1"), "`smallvit pretrain` is stage 1"),
    **dict.fromkeys(
        ("stage2", "stage-2", "fine-tune", "supervised"), "`smallvit finetune` is stage 2"
    ),
    **dict.fromkeys(
        ("distill", "annotate", "token-label"),
        "`smallvit finetune --token-label` makes teacher and score maps that are missing",
    ),
    **dict.fromkeys(("demo", "start", "init"), "`smallvit quickstart` runs the whole pipeline"),
    **dict.fromkeys(("segmentation", "seg"), "`smallvit segment` trains a segmentation head"),
    "config": "settings are a recipe, `smallvit recipes ls` lists those there are",
    "env": "`smallvit doctor` shows versions, devices and folders",
}
# The same below a command that has commands of its own.
SUBCOMMANDS: dict[str, dict[str, str]] = {
    "runs": {
        **dict.fromkeys(
            ("rm", "delete", "remove"), f"runs rm {NOT_BUILT}: a run is its folder, delete that"
        ),
        **dict.fromkeys(
            ("compare", "diff"), f"runs compare {NOT_BUILT}: `smallvit bench RUN RUN` compares them"
        ),
    },
    "recipes": {
        **dict.fromkeys(
            ("cp", "copy"),
            f"recipes cp {NOT_BUILT}: `smallvit recipes show NAME > FILE.yaml` makes a copy",
        ),
    },
    "data": dict.fromkeys(("download", "fetch", "pull"), "`smallvit data get NAME` fetches it"),
}
LIST_WORDS = ("list", "all")


def meant(word: str, known: Iterable[str]) -> list[str]:
    """Return the known names that people mean by a word, three at most.

    Args:
        word: What was typed, such as ``--lr``, ``lr`` or ``learning-rate``.
        known: Names that would do, with dots where they lie in sections.

    Returns:
        Names as ``known`` writes them, a meant value after a space: those of the table, else
        settings of that name in other sections.
    """
    names, plain = {_plain(name): name for name in known}, _plain(word)
    found = []
    for target in MEANT.get(plain, ()):
        name, _, value = target.partition(" ")
        found += [f"{each} {value}".rstrip() for each in _called(name, names)]
    section, _, leaf = plain.rpartition(".")
    # ``method.name`` is what ``method`` names.
    rest = section if leaf == "name" else leaf
    return (found or _called(plain, names) or _called(rest, names))[:MOST_NEAR]


def alike(word: str, known: Iterable[str]) -> list[str]:
    """Return the known name that shares most letters with a word, if any shares enough."""
    names, plain = {_plain(name): name for name in known}, _plain(word)
    close = difflib.get_close_matches(plain, names, n=1, cutoff=LIKE)
    close = close or [name for name in names if sorted(name) == sorted(plain)][:1]  # ``rl``
    return [names[name] for name in close]


def either(names: Sequence[str], word: str = "or") -> str:
    """Join names as ``a, b or c``."""
    *most, last = names
    return f"{', '.join(most)} {word} {last}" if most else last


def command_hint(words: Sequence[str]) -> str:
    """Return what to do in place of a command that there is not, if the table knows.

    Args:
        words: The command line from the command on: ``["predict"]`` or ``["runs", "rm"]``.
    """
    *above, word = words
    if not above:
        return COMMANDS.get(word.lower(), "")
    if word.lower() in LIST_WORDS:
        return f"`smallvit {above[0]} ls` lists them"
    return SUBCOMMANDS.get(above[0], {}).get(word.lower(), "")


def unneeded(word: str) -> str:
    """Return why no setting of that name is needed, if the table knows."""
    return UNNEEDED.get(_plain(word), "")


def _called(name: str, names: dict[str, str]) -> list[str]:
    """Return the name itself if it is known, else those that end with it."""
    return [names[name]] if name in names else _below(name, names)


def _below(name: str, names: dict[str, str]) -> list[str]:
    """Return the names that end with a name, those of the fewest sections."""
    found = [plain for plain in names if plain.endswith(f".{name}")]
    depth = min((plain.count(".") for plain in found), default=0)
    return [names[plain] for plain in found if plain.count(".") == depth]


def _plain(word: str) -> str:
    return word.strip().lstrip("-").lower().replace("-", "_")
