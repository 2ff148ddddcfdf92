"""What people type, and which name they mean.

The words of other tools and of habit come before likeness: ``lr`` is nearer to ``log`` than to
``optim.lr`` in letters alone. Names are those of settings, as a recipe writes them; an option is
the same with dashes in front. A name may be followed by the value that is meant.
"""

import difflib
from collections.abc import Iterable, Sequence

LIKE = 0.6  # of difflib, from 0 to 1: below it, words share little more than some letters
MOST_NEAR = 3

# Names that there are here (several, of which those are meant that are known at the place), and the
# words of others for them.
WORDS: dict[str, str] = {
    # Length and optimizer.
    "epochs": "epoch num_epochs n_epochs max_epochs num_train_epochs passes steps "
    "max_steps iterations",
    "lr": "learning_rate base_lr lr_base lr0 blr",
    "weight_decay": "wd decay",
    "batch_size": "bs b batch batchsize train_batch_size",
    "optim.name": "opt optimizer",
    "warmup_epochs": "warmup warmup_steps",
    "schedule.epochs, min_lr": "scheduler sched",
    "grad_clip_norm": "clip_grad max_norm grad_clip",
    "ema_decay": "ema",
    "micro_batch": "accum accumulate grad_accum_steps gradient_accumulation_steps",
    # Device and precision.
    "device cuda, cuda": "gpu",
    "device cuda": "gpus cuda",
    "device cpu": "cpu",
    "device": "accelerator",
    "cuda": "0",
    "precision bf16, bf16": "amp bfloat16",
    "precision bf16": "bf16 mixed_precision",
    "precision fp16": "fp16",
    "fp16": "float16 16",
    "precision fp16, fp16": "half",
    "bf16": "mixed",
    "precision fp32": "fp32",
    "fp32": "float32 full 32",
    "precision": "dtype",
    # Data.
    "num_classes": "classes nc",
    "data": "data_path data_dir dataset_path dataset_dir folder dir root images "
    "img_dir train_dir train source csv input",
    "dataset": "data_set ds",
    "val_fraction": "val val_split valid val_size",
    "test_fraction": "test test_split",
    "label_fraction": "labels",
    "hflip": "flip",
    "image_size, img_size": "size imgsz input_size resolution",
    "image_size": "img_size",
    "img_size": "image_size",
    # Network, starts and folders.
    "model": "arch architecture backbone net network model_name",
    "patch_size": "patch",
    "num_heads": "heads",
    "depth": "layers",
    "embed_dim": "dim",
    "drop_path_rate": "drop_path dropout",
    "method": "algorithm algo loss",
    "method, pretrain.method.name": "ssl",
    "init timm:NAME, from timm:NAME": "pretrained",
    "init, from": "weights pretrained_weights start",
    "init, adopt": "from",
    "from, adopt": "init",
    "init, resume": "checkpoint checkpoint_path ckpt load",
    "resume": "resume_from resume_from_checkpoint continue",
    "token_label": "token_labels token_labeling",
    "score_maps": "maps",
    "teacher": "annotator",
    "out": "output o output_dir out_dir outdir save_dir log_dir project",
    "overwrite": "exist_ok force yes",
    "offline": "no_download",
    "dry_run": "debug dryrun fast_dev_run",
    "recipe": "config cfg c yaml",
    "seed": "random_seed random_state manual_seed",
    "every_steps": "log_interval print_freq",
    "checkpoint_steps": "save_every",
    # Augmentation.
    "augment.policy": "aug auto_augment aa",
    "mixup_alpha": "mixup",
    "cutmix_alpha": "cutmix",
    "erasing_prob": "reprob random_erasing",
    "method.label_smoothing": "smoothing label_smoothing",
    "color_jitter": "jitter",
    # Values.
    "adamw": "adam",
    "mocov3": "moco moco_v3",
    "ibot, dino": "dinov2",
    "mae": "masked_autoencoder",
    "lejepa": "jepa",
    "vit_tiny, vit_small": "vit",
    "resnet20_small": "resnet",
    "resnet18_small": "resnet18",
    "gani_swin, sl_swin": "swin",
    "gani_cait, sl_cait": "cait",
    "cct_7_3x1": "cct",
    "lvvit_tiny": "lvvit",
    "tiny-imagenet": "tinyimagenet",
    "val": "validation",
}
MEANT = {word: names.split(", ") for names, words in WORDS.items() for word in words.split()}

LISTS = (
    "`smallvit data ls`, `smallvit models`, `smallvit recipes ls` and `smallvit runs ls` list what "
    "there is"
)
# What no name is for, and why; here and below, several words for one thing stand together.
UNNEEDED: dict[str, str] = {
    "workers num_workers j dataloader_num_workers pin_memory prefetch": "images lie packed in "
    "memory and no loader has workers, leave it out",
    "classes num_classes nb_classes n_classes nc": "the classes are counted in the data, leave "
    "it out",
    "devices num_gpus ngpus nproc nproc_per_node world_size": "several GPUs are for torchrun "
    "--nproc-per-node N -m smallvit COMMAND",
    "wandb tensorboard log_wandb tracker mlflow": "a run writes metrics.jsonl and "
    "plots/curves.png, and there is no tracker",
    "v verbose quiet q log_level loglevel": "set the environment variable SMALLVIT_LOG_LEVEL "
    "to DEBUG, INFO, WARNING or ERROR",
    "patience early_stopping": "the best weights on validation are exported at the end, and "
    "nothing stops earlier",
    "list": "`smallvit data ls`, `smallvit models`, `smallvit recipes ls` and `smallvit runs "
    "ls` list what there is",
}

NOT_BUILT = "is not built yet"
# Words in the place of a command, and what they are for.
COMMANDS: dict[str, str] = {
    "predict infer inference classify": f"predict {NOT_BUILT}: RUN/export is a network that "
    "timm loads, with its class names; docs/python.md shows how it names an image",
    "explain": f"explain {NOT_BUILT}: `smallvit bench RUN` draws attention into its "
    "leaderboard, and a pretrain run has plots/",
    "embed features extract": f"embed {NOT_BUILT}: RUN/export is a network that timm loads, "
    "and its forward_features gives features; docs/python.md shows how",
    "export onnx deploy": f"export {NOT_BUILT}: every run has written RUN/export, a folder "
    "that timm loads as local-dir:RUN/export and torch.onnx.export takes from there",
    "train fit": "`smallvit run RECIPE --data FOLDER` trains every stage, `smallvit finetune "
    "--data FOLDER` a classifier alone",
    "test score evaluate validate val": "`smallvit eval RUN` scores a run on validation, with "
    "--split test on test",
    "download fetch get": "`smallvit data get NAME` fetches a data set, `smallvit data ls` "
    "lists them",
    "list ls": LISTS,
    "dataset datasets": "`smallvit data ls` lists data sets, `smallvit data info` shows one",
    "show info describe": "`smallvit data info NAME`, `smallvit recipes show NAME` and "
    "`smallvit runs show RUN` show one",
    "check": "`smallvit data check NAME` looks at data, `smallvit recipes check FILE` at a recipe",
    "resume continue": "the command of the stage goes on with --resume RUN",
    "leaderboard compare rank benchmark suite suites": "`smallvit bench RUN RUN` compares "
    "runs, `smallvit bench SUITE` makes those of a suite",
    "ssl selfsup stage1 stage-1": "`smallvit pretrain` is stage 1",
    "stage2 stage-2 fine-tune supervised": "`smallvit finetune` is stage 2",
    "distill annotate token-label": "`smallvit finetune --token-label` makes teacher and score "
    "maps that are missing",
    "demo start init": "`smallvit quickstart` runs the whole pipeline",
    "segmentation seg": "`smallvit segment` trains a segmentation head",
    "config": "settings are a recipe, `smallvit recipes ls` lists those there are",
    "env": "`smallvit doctor` shows versions, devices and folders",
}
# The same below a command that has commands of its own.
SUBCOMMANDS: dict[str, dict[str, str]] = {
    "runs": {
        "rm delete remove": f"runs rm {NOT_BUILT}: a run is its folder, delete that",
        "compare diff": f"runs compare {NOT_BUILT}: `smallvit bench RUN RUN` compares them",
    },
    "recipes": {
        "cp copy": f"recipes cp {NOT_BUILT}: `smallvit recipes show NAME > FILE.yaml` makes a copy",
    },
    "data": {"download fetch pull": "`smallvit data get NAME` fetches it"},
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
        return _look_up(COMMANDS, word.lower())
    if word.lower() in LIST_WORDS:
        return f"`smallvit {above[0]} ls` lists them"
    return _look_up(SUBCOMMANDS.get(above[0], {}), word.lower())


def unneeded(word: str) -> str:
    """Return why no setting of that name is needed, if the table knows."""
    return _look_up(UNNEEDED, _plain(word))


def _look_up(table: dict[str, str], word: str) -> str:
    """Return what a table says of a word; nothing where no key of it has the word."""
    return next((text for words, text in table.items() if word in words.split()), "")


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
