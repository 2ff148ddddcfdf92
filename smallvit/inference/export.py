"""The export of a run: a folder that ``timm.create_model("local-dir:...")`` loads."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models._hub import save_for_hf

from smallvit.core.errors import ConfigError, DataError
from smallvit.models.convert import adapt, position_grid
from smallvit.models.registry import create_exported, settings_from
from smallvit.models.tokens import AbstractBackbone

WEIGHTS = "model.safetensors"


def write_export(
    folder: Path,
    backbone: AbstractBackbone,
    *,
    arguments: dict[str, Any],
    class_names: tuple[str, ...],
    image_size: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    card: str,
) -> None:
    """Write weights, architecture, class names and preprocessing.

    Args:
        folder: Where to.
        backbone: Trained network; its plain timm model is saved.
        arguments: All arguments that build the model anew.
        class_names: In the order of the logits.
        image_size: Side of the images, in pixels.
        mean: Per-channel mean that inputs are normalised with.
        std: Per-channel standard deviation.
        card: Text of the README.

    Raises:
        DataError: If the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot create {folder}: {error.strerror}") from error
    names = {"label_names": list(class_names)} if arguments["num_classes"] else {}
    save_for_hf(
        backbone.model,
        str(folder),
        model_config=names,
        model_args=arguments,
        safe_serialization=True,
        data_config={
            "input_size": (3, image_size, image_size),
            "mean": mean,
            "std": std,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
        },
    )
    (folder / "README.md").write_text(card)


def read_export(folder: Path) -> AbstractBackbone:
    """Load an exported network.

    Raises:
        DataError: If files are missing or broken.
    """
    try:
        config = _read_config(folder)
        weights = load_file(folder / WEIGHTS)
        backbone = create_exported(config["architecture"], config["model_args"])
        backbone.model.load_state_dict(weights)
    except (OSError, KeyError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        raise DataError(
            f"{folder} is no whole export ({type(error).__name__}): finish its run, or repeat it"
        ) from error
    return backbone


def exported_model(folder: Path) -> dict[str, Any]:
    """Return the settings of ``ModelConfig`` that an export's network has.

    What a setting does not cover stays as the name makes it; ``initialise_from`` tells where the
    two differ.

    Raises:
        DataError: If the folder holds no export.
    """
    try:
        config = _read_config(folder)
        architecture, arguments = config["architecture"], config["model_args"]
        if not isinstance(arguments, dict):
            raise TypeError
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder} is no export ({type(error).__name__})") from error
    return settings_from(architecture, arguments)


def _read_config(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())
    # A folder that timm wrote may name its classes alone.
    return {"model_args": {"num_classes": config["num_classes"]}, **config}


def initialise_from(
    backbone: AbstractBackbone, folder: Path, class_names: tuple[str, ...]
) -> list[str]:
    """Copy an export's weights into a fresh network, by name.

    Weights for another image, patch or window size are resampled; a classifier of other classes
    stays fresh.

    Args:
        backbone: Network to fill.
        folder: Export to take the weights from.
        class_names: What the network is to classify, in the order of its logits.

    Returns:
        One line for each weight that was resampled or not loaded.

    Raises:
        ConfigError: If anything else differs, by name and shape.
    """
    exported = read_export(folder)
    source = exported.model
    config = _read_config(folder)
    try:
        weights, notes = adapt(
            source.state_dict(),
            backbone.model,
            grid=position_grid(source),
            same_classes=config.get("label_names") == list(class_names),
        )
    except ConfigError as error:
        patch = max(exported.patch_size)
        what = config["architecture"] + (f" with patches of {patch} px" if patch > 1 else "")
        raise ConfigError(
            f"--init {folder} holds a {what}: {error}: leave --model and its settings out to take "
            "its own, set model.patch_size to its own, or start from scratch"
        ) from error
    backbone.model.load_state_dict(weights, strict=False)
    return notes


def weights_hash(model: torch.nn.Module) -> str:
    """Return the SHA-256 of all weights, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
