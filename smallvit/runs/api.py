"""The stages as Python functions, with the settings of the command line.

Each takes what its command takes, by the same names; ``None`` is what the recipe says.
"""

import logging
from pathlib import Path
from typing import Any

from smallvit.core.alone import alone
from smallvit.core.python_call import python_call
from smallvit.core.run_folder import Run
from smallvit.engine.config import Compile, Device, Precision
from smallvit.runs.config import Stage
from smallvit.runs.options import DataLike, RunLike, Section, read_arguments
from smallvit.runs.outcome import describe_outcome
from smallvit.runs.request import Request, resolve
from smallvit.runs.stage import run_stage

logger = logging.getLogger("smallvit")


def pretrain(
    data: DataLike | None = None,
    *,
    init: RunLike | None = None,
    allow_leak: bool | None = None,
    model: str | Section | None = None,
    method: str | Section | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    optim: Section | None = None,
    schedule: Section | None = None,
    monitor: Section | None = None,
    recipe: Path | str | None = None,
    dataset: str | None = None,
    seed: int | None = None,
    device: Device | None = None,
    precision: Precision | None = None,
    compile: Compile | None = None,
    deterministic: bool | None = None,
    grad_checkpointing: bool | None = None,
    micro_batch: int | None = None,
    log: Section | None = None,
    out: Path | str | None = None,
    resume: RunLike | None = None,
    overwrite: bool = False,
    offline: bool = False,
    dry_run: bool = False,
    verbose: bool = True,
    **more: Any,
) -> Run | None:
    """Run stage 1: ``pretrain("digits", epochs=20, optim={"lr": 1e-3})``.

    Args:
        data: Name of a data set, path of images, or a mapping of data settings.
        init: Run or export to go on from, ``"timm:NAME"`` for timm's weights, or ``"scratch"``.
            Without a recipe it brings its model, and a run its data.
        allow_leak: Take weights that may have seen held-out images of this data; it is recorded.
        model: Name of the network, or a mapping of its settings.
        method: Name of the method (``"dino"``, ``"ibot"``, ``"mae"``, ...), or a mapping of its
            settings.
        epochs: Passes over the training images.
        batch_size: Images of one optimizer step.
        optim: Optimizer: ``{"lr": 1e-3}``.
        schedule: Length and learning rate.
        monitor: What is measured on the way.
        recipe: Shipped recipe or file; by default the one for the dataset and model.
        dataset: Name of a data set, or ``hf:owner/name@revision`` of the Hub.
        seed: Seed of everything but the splits.
        device: Device to compute on.
        precision: Precision of matrix products.
        compile: Whether networks are compiled; auto does so on a CUDA device.
        deterministic: On a CUDA device, use only operations that give the same bits every time.
        grad_checkpointing: Compute blocks again in the backward pass: less memory, more time.
        micro_batch: Images of one forward and backward pass, at most; a step adds up several.
        log: How often to write.
        out: Run folder; by default a new one under the runs folder.
        resume: Run to continue, with its own settings.
        overwrite: Replace an earlier run in ``out``.
        offline: Download nothing.
        dry_run: Check settings, data and model, take one step, write nothing.
        verbose: Show progress, in a notebook in one line.
        **more: Settings by their dotted names, as in ``**{"optim.lr": 1e-3}``.

    Returns:
        The run; ``None`` after a dry run.

    Raises:
        SmallViTError: What the command line would print, with its exit code.
    """
    return _make("pretrain", locals())


def teacher(
    data: DataLike | None = None,
    *,
    adopt: RunLike | None = None,
    allow_leak: bool | None = None,
    model: str | Section | None = None,
    method: str | Section | None = None,
    augment: Section | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    optim: Section | None = None,
    schedule: Section | None = None,
    recipe: Path | str | None = None,
    dataset: str | None = None,
    seed: int | None = None,
    device: Device | None = None,
    precision: Precision | None = None,
    compile: Compile | None = None,
    deterministic: bool | None = None,
    grad_checkpointing: bool | None = None,
    micro_batch: int | None = None,
    log: Section | None = None,
    out: Path | str | None = None,
    resume: RunLike | None = None,
    overwrite: bool = False,
    offline: bool = False,
    dry_run: bool = False,
    verbose: bool = True,
    **more: Any,
) -> Run | None:
    """Train the annotator of stage 2, or take the network that ``adopt`` names.

    Args:
        data: Name of a data set, path of images, or a mapping of data settings.
        adopt: Trained network to take instead of training one: run, export, ``"timm:NAME"``, or a
            file of weights with ``model``. A run brings its data.
        allow_leak: With ``adopt``, take a network that may have seen held-out images, and record
            it.
        model: Name of the network, or a mapping of its settings.
        method: Settings of the loss.
        augment: Augmentation.
        epochs: Passes over the training images.
        batch_size: Images of one optimizer step.
        optim: Optimizer: ``{"lr": 1e-3}``.
        schedule: Length and learning rate.
        recipe: Shipped recipe or file; by default the one for the dataset and model.
        dataset: Name of a data set, or ``hf:owner/name@revision`` of the Hub.
        seed: Seed of everything but the splits.
        device: Device to compute on.
        precision: Precision of matrix products.
        compile: Whether networks are compiled; auto does so on a CUDA device.
        deterministic: On a CUDA device, use only operations that give the same bits every time.
        grad_checkpointing: Compute blocks again in the backward pass: less memory, more time.
        micro_batch: Images of one forward and backward pass, at most; a step adds up several.
        log: How often to write.
        out: Run folder; by default a new one under the runs folder.
        resume: Run to continue, with its own settings.
        overwrite: Replace an earlier run in ``out``.
        offline: Download nothing.
        dry_run: Check settings, data and model, take one step, write nothing.
        verbose: Show progress, in a notebook in one line.
        **more: Settings by their dotted names, as in ``**{"optim.lr": 1e-3}``.

    Returns:
        The run; ``None`` after a dry run.

    Raises:
        SmallViTError: What the command line would print, with its exit code.
    """
    return _make("teacher", locals())


def label(
    teacher: RunLike | None = None,
    *,
    data: DataLike | None = None,
    allow_leak: bool | None = None,
    top_k: int | None = None,
    temperature: float | None = None,
    flip: bool | None = None,
    batch_size: int | None = None,
    recipe: Path | str | None = None,
    dataset: str | None = None,
    seed: int | None = None,
    device: Device | None = None,
    precision: Precision | None = None,
    compile: Compile | None = None,
    deterministic: bool | None = None,
    grad_checkpointing: bool | None = None,
    micro_batch: int | None = None,
    out: Path | str | None = None,
    resume: RunLike | None = None,
    overwrite: bool = False,
    offline: bool = False,
    dry_run: bool = False,
    verbose: bool = True,
    **more: Any,
) -> Run | None:
    """Write a teacher's score maps; by default of the data that it was trained on.

    Args:
        teacher: Run of the teacher; only a run to continue knows its own.
        data: Other images to label, as for ``pretrain``.
        allow_leak: Take a teacher that may have seen test images of this data; it is recorded.
        top_k: Classes listed for each patch; by default 5, or all where there are 10 or fewer.
        temperature: What the teacher's logits are divided by; above 1 its maps are softer.
        flip: Average each map with that of the mirrored image: twice the time.
        batch_size: Images of one forward pass.
        recipe: Shipped recipe or file; by default the teacher's.
        dataset: Name of a data set, or ``hf:owner/name@revision`` of the Hub.
        seed: Seed of everything but the splits.
        device: Device to compute on.
        precision: Precision of matrix products.
        compile: Whether networks are compiled; auto does so on a CUDA device.
        deterministic: On a CUDA device, use only operations that give the same bits every time.
        grad_checkpointing: Compute blocks again in the backward pass: less memory, more time.
        micro_batch: Images of one forward and backward pass, at most; a step adds up several.
        out: Run folder; by default a new one under the runs folder.
        resume: Run to continue, with its own settings.
        overwrite: Replace an earlier run in ``out``.
        offline: Download nothing.
        dry_run: Check everything and label one batch, write nothing.
        verbose: Show progress, in a notebook in one line.
        **more: Settings by their dotted names, as in ``**{"optim.lr": 1e-3}``.

    Returns:
        The run; ``None`` after a dry run.

    Raises:
        SmallViTError: What the command line would print, with its exit code.
    """
    return _make("label", locals())


def finetune(
    data: DataLike | None = None,
    *,
    init: RunLike | None = None,
    token_label: bool | Section | None = None,
    teacher: RunLike | None = None,
    score_maps: RunLike | None = None,
    allow_leak: bool | None = None,
    model: str | Section | None = None,
    method: str | Section | None = None,
    augment: Section | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    optim: Section | None = None,
    schedule: Section | None = None,
    recipe: Path | str | None = None,
    dataset: str | None = None,
    seed: int | None = None,
    device: Device | None = None,
    precision: Precision | None = None,
    compile: Compile | None = None,
    deterministic: bool | None = None,
    grad_checkpointing: bool | None = None,
    micro_batch: int | None = None,
    log: Section | None = None,
    out: Path | str | None = None,
    resume: RunLike | None = None,
    overwrite: bool = False,
    offline: bool = False,
    dry_run: bool = False,
    verbose: bool = True,
    **more: Any,
) -> Run | None:
    """Run stage 2: ``finetune("digits", init=run, token_label=True)``.

    Args:
        data: Name of a data set, path of images, or a mapping of data settings.
        init: Run or export to start from, ``"timm:NAME"`` for timm's weights, or ``"scratch"``,
            which ``None`` is as well unless the recipe says otherwise. Without a recipe it brings
            its model, and a run its data.
        token_label: Supervise every patch token with a teacher's score map; a teacher and maps that
            are missing are made. A mapping gives its settings.
        teacher: Run of the teacher that writes the score maps, or with ``token_label={"source":
            "online"}`` labels each batch.
        score_maps: File of score maps written before, or their run.
        allow_leak: Take a start, teacher or maps that may have seen held-out images, and record it.
        model: Name of the network, or a mapping of its settings.
        method: Settings of the loss on the image label.
        augment: Augmentation.
        epochs: Passes over the training images.
        batch_size: Images of one optimizer step.
        optim: Optimizer: ``{"lr": 1e-3}``.
        schedule: Length and learning rate.
        recipe: Shipped recipe or file; by default the one for the dataset and model.
        dataset: Name of a data set, or ``hf:owner/name@revision`` of the Hub.
        seed: Seed of everything but the splits.
        device: Device to compute on.
        precision: Precision of matrix products.
        compile: Whether networks are compiled; auto does so on a CUDA device.
        deterministic: On a CUDA device, use only operations that give the same bits every time.
        grad_checkpointing: Compute blocks again in the backward pass: less memory, more time.
        micro_batch: Images of one forward and backward pass, at most; a step adds up several.
        log: How often to write.
        out: Run folder; by default a new one under the runs folder.
        resume: Run to continue, with its own settings.
        overwrite: Replace an earlier run in ``out``.
        offline: Download nothing.
        dry_run: Check settings, data and model, take one step, write nothing.
        verbose: Show progress, in a notebook in one line.
        **more: Settings by their dotted names, as in ``**{"optim.lr": 1e-3}``.

    Returns:
        The run; ``None`` after a dry run.

    Raises:
        SmallViTError: What the command line would print, with its exit code.
    """
    return _make("finetune", locals())


@alone()
def _make(stage: Stage, arguments: dict[str, Any]) -> Run | None:
    """Make the run of a function's arguments."""
    verbose, offline = arguments.pop("verbose"), arguments.pop("offline")
    with python_call(verbose=verbose, offline=offline):
        options = read_arguments(arguments, stage)
        # What is not named is not looked for among earlier runs.
        request = Request(stage=stage, options=options, source="arguments", continues=False)
        run = run_stage(resolve(request), stage, request.call)
        if run is not None:
            if stage != "label":
                logger.info("%s", describe_outcome(run))
            logger.info("run: %s", run.path)
        return run
