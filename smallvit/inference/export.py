"""Weights to start from: exports, which ``timm.create_model("local-dir:...")`` loads; timm's."""

import difflib
import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models import PretrainedCfg, get_pretrained_cfg, is_model_pretrained, split_model_name_tag
from timm.models._hub import save_for_hf
from torch import Tensor, nn

from smallvit.core.errors import ConfigError, DataError, UnknownNameError, explained, reason
from smallvit.core.hashing import tensor_bytes
from smallvit.core.whole_file import writable
from smallvit.inference.pixels import BROKEN, PIXELS
from smallvit.models.convert.adapt import adapt, position_grid
from smallvit.models.registry import ALIASES, create_exported, settings_from
from smallvit.models.tokens import AbstractBackbone

WEIGHTS = "model.safetensors"
# Beside the plain model: timm takes model.safetensors where a folder has more files than that.
TOKEN_HEAD = "token_head.safetensors"
HUB_TIMEOUT_S = 30.0
LARGEST_ARGUMENT = 4096  # where no axis of the weights is longer: images have no weights


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
    token_head: nn.Linear | None = None,
    pixels: Mapping[str, Any] | None = None,
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
        token_head: Classifier of patch tokens that was trained beside the network, kept in a file
            of its own; the plain model knows nothing of it.
        pixels: How files became the pixels that it was trained on, for ``read_image``; ``None``
            where that is not known.

    Raises:
        DataError: If the folder cannot be made.
    """
    assert token_head is None or backbone.token_head is None, "the network has a token head itself"
    with explained(lambda error: f"cannot create {folder}: {error.strerror}"):
        folder.mkdir(parents=True, exist_ok=True)
    names: dict[str, Any] = {"label_names": list(class_names)} if arguments["num_classes"] else {}
    save_for_hf(
        backbone.model,
        str(folder),
        model_config=names if pixels is None else {**names, PIXELS: dict(pixels)},
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
    if token_head is None:
        (folder / TOKEN_HEAD).unlink(missing_ok=True)  # of an earlier export in this folder
    else:
        save_file(token_head.state_dict(), folder / TOKEN_HEAD)
    (folder / "README.md").write_text(writable(card), encoding="utf-8")


def usage(*, read: bool = True) -> str:
    """Say how an export is used, for its card.

    Args:
        read: Whether ``read_image`` reads files as the network saw them.
    """
    load = (
        "Load it with timm; `import smallvit` registers architectures of its own.\n\n```python\n"
        "import smallvit as sv\nimport timm\n\n"
        'model = timm.create_model("local-dir:<this folder>", pretrained=True).eval()\n'
    )
    if read:
        load += (
            'image = sv.read_image("<file>", like="<this folder>", normalized=True)\n'
            "output = model(image[None])\n"
        )
    after = (
        "`read_image` returns the pixels that training saw of a file, bit for bit; other readers "
        "differ in size, rotation, transparency and grey values.\n"
    )
    return f"{load}```\n" + (f"\n{after}" if read else "")


def read_export(folder: Path) -> AbstractBackbone:
    """Load an exported network, and the token head that was trained beside it as ``aux_head``.

    Raises:
        DataError: If files are missing or broken, or the token head is of another network.
    """
    with _whole(folder):
        config = _read_config(folder)
        weights = load_file(folder / WEIGHTS)
        architecture, arguments = config["architecture"], config["model_args"]
        _check_claims(architecture, arguments, weights)
        backbone = create_exported(architecture, arguments)
        backbone.model.load_state_dict(weights)
    if (folder / TOKEN_HEAD).is_file():
        backbone.aux_head = _read_token_head(folder / TOKEN_HEAD, backbone)
    return backbone


def _check_claims(architecture: str, arguments: Any, weights: Mapping[str, Tensor]) -> None:
    """Refuse arguments of another network than that of the weights, before it takes its memory."""
    longest = max((side for weight in weights.values() for side in weight.shape), default=0)
    most = max(longest, len(weights), LARGEST_ARGUMENT)
    if not all(abs(number) <= most for number in _numbers(arguments)):  # so written, NaN too
        raise ValueError("an argument is larger than anything of the weights")
    with torch.device("meta"):
        claimed = create_exported(architecture, arguments).model.state_dict()
    if {name: value.shape for name, value in claimed.items()} != {
        name: value.shape for name, value in weights.items()
    }:
        raise ValueError("the weights are of another network")


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, int | float) else []


def _read_token_head(path: Path, backbone: AbstractBackbone) -> nn.Linear:
    """Build the classifier of a network's patch tokens from a file; refuse that of another one."""
    remedy = "repeat its run, or remove the file to go without"
    with explained(lambda error: f"{path} is broken ({error}): {remedy}", OSError, SafetensorError):
        weights = load_file(path)
    if backbone.token_head is not None:
        raise DataError(f"{path}: {backbone.model_name} has a token head of its own: {remedy}")
    num_classes: Any = backbone.model.num_classes
    fitting = {"weight": (num_classes, backbone.embed_dim), "bias": (num_classes,)}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if found != fitting:
        raise DataError(
            f"{path} does not fit {backbone.model_name}: {_shapes(found)}, here "
            f"{_shapes(fitting)}: {remedy}"
        )
    head = nn.Linear(backbone.embed_dim, num_classes)
    head.load_state_dict(weights)
    return head


def _shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shapes[name])}" for name in sorted(shapes, reverse=True))


def exported_model(folder: Path) -> dict[str, Any]:
    """Return the settings of ``ModelConfig`` that an export's network has.

    What a setting does not cover stays as the name makes it; ``initialize_from`` tells where the
    two differ.

    Raises:
        DataError: If the folder holds no export.
    """
    with _whole(folder):
        config = _read_config(folder)
        architecture, arguments = config["architecture"], config["model_args"]
        if not isinstance(architecture, str) or not isinstance(arguments, dict):
            raise TypeError
        return settings_from(architecture, arguments)


@dataclass(frozen=True, kw_only=True)
class ExportedInput:
    """The images that an exported network takes.

    Attributes:
        image_size: Their side, in pixels.
        mean: Per-channel mean that they are normalised with.
        std: Per-channel standard deviation.
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def exported_input(folder: Path) -> ExportedInput:
    """Return what an export says of the images that its network takes.

    Raises:
        DataError: If it says nothing of them.
    """
    with _whole(folder):
        facts = _read_config(folder)["pretrained_cfg"]
        (a, b, c), (d, e, f) = facts["mean"], facts["std"]
        size = int(facts["input_size"][-1])
        return ExportedInput(image_size=size, mean=(a, b, c), std=(d, e, f))


def _whole(folder: Path) -> AbstractContextManager[None]:
    """Explain what is raised where a folder holds no whole export."""
    return explained(lambda error: _not_whole(folder, error), *BROKEN, SafetensorError)


def _not_whole(folder: Path, error: Exception) -> str:
    """Say that a folder holds no whole export, and how to have it again."""
    run = folder.parent
    what = f"{folder} is no whole export ({type(error).__name__})"
    try:
        result = json.loads((run / "result.json").read_text())
        again = f"smallvit {result['stage']} --resume {run}"
    except (OSError, ValueError, LookupError, TypeError):
        return f"{what}: write or copy it again"
    if "adopted" in result or any((run / "checkpoints").glob("*.pt")):
        return f"{what}: remove it, then {again} writes it again"
    return f"{what}: repeat its run, with --recipe {run / 'recipe.yaml'}"


def _read_config(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())
    # A folder that timm wrote may name its classes alone.
    return {"model_args": {"num_classes": config["num_classes"]}, **config}


def initialize_from(
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
    config = _read_config(folder)
    patch = max(exported.patch_size)
    what = config["architecture"] + (f" with patches of {patch} px" if patch > 1 else "")
    same_classes = config.get("label_names") == list(class_names)
    origin = f"--init {folder} holds a {what}"
    return _fill(backbone.model, exported.model, origin, same_classes=same_classes)


def find_timm_weights(name: str) -> str:
    """Return the whole name, with its tag, of weights that timm has.

    Args:
        name: Of a timm model, with or without the tag of its weights.

    Raises:
        UnknownNameError: If timm has no such model, or no such weights of it.
        ConfigError: If timm has no weights of that model at all.
    """
    architecture, tag = split_model_name_tag(name)
    architecture = ALIASES.get(architecture, architecture)
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(name, timm.list_pretrained(), n=5)
        raise UnknownNameError("timm weights", name, {*ALIASES, *near})
    if not is_model_pretrained(f"{architecture}.{tag}" if tag else architecture):
        tagged = timm.list_pretrained(f"{architecture}.*")
        if not tagged:
            raise ConfigError(
                f"timm has no weights of {architecture}: name weights that "
                "timm.list_pretrained() lists"
            )
        raise UnknownNameError("timm weights", name, tagged)
    tag = tag or _config_of(architecture).tag
    return f"{architecture}.{tag}" if tag else architecture


def initialize_from_timm(backbone: AbstractBackbone, name: str, *, offline: bool) -> list[str]:
    """Copy timm's weights into a fresh network, by name, all but the classifier.

    Weights for another image, patch or window size are resampled.

    Args:
        backbone: Network to fill.
        name: Whole name of the weights.
        offline: Download nothing; what was downloaded before is used.

    Returns:
        One line for each weight that was resampled or not loaded.

    Raises:
        ConfigError: If anything else differs, by name and shape.
        DataError: If they cannot be had; the message says how to put them there by hand.
    """
    source = _load_timm(name, offline=offline)
    origin = f"timm:{name} is for another network"
    return _fill(backbone.model, source, origin, same_classes=False)


def _load_timm(name: str, *, offline: bool) -> nn.Module:
    config = _config_of(name)
    repo, overlay = config.hf_hub_id, {}
    cached = try_to_load_from_cache(repo, WEIGHTS) if repo else None
    if config.file is None and isinstance(cached, str):
        overlay = {"file": cached}
    elif config.file is None and offline:
        # The Hub's client reads its own setting when it is imported, which may be too early.
        raise DataError(_unreachable(name, repo, "offline"))

    def explain(error: Exception) -> str:
        return _unreachable(name, repo, f"{type(error).__name__}: {reason(error)[:200]}")

    with explained(explain, Exception):  # every release has the errors of its own HTTP library
        if repo and config.file is None and not overlay:
            # Asked first: the download of timm tries for 50 s where there is no network.
            HfApi().model_info(repo, timeout=HUB_TIMEOUT_S)
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)


def _config_of(name: str) -> PretrainedCfg:
    config = get_pretrained_cfg(name)
    assert config is not None
    return config


def _unreachable(name: str, repo: str | None, why: str) -> str:
    where = f"of {repo} from the Hugging Face Hub" if repo else "of timm's release"
    return (
        f"timm weights {name} could not be fetched ({why}): run once with a network, or "
        f"download config.json and {WEIGHTS} {where} and name their folder instead"
    )


def _fill(model: nn.Module, source: nn.Module, origin: str, *, same_classes: bool) -> list[str]:
    """Copy weights by name, adapted to other sizes; return one line for each that was not as is.

    Args:
        model: Where to.
        source: Where from.
        origin: What the source is, for the message where it does not fit.
        same_classes: Whether both classify the same.
    """
    try:
        weights, notes = adapt(
            source.state_dict(), model, grid=position_grid(source), same_classes=same_classes
        )
    except ConfigError as error:
        raise ConfigError(
            f"{origin}: {error}: leave --model and its settings out to take its own, set "
            "model.patch_size to its own, or start from scratch"
        ) from error
    model.load_state_dict(weights, strict=False)
    return notes


def weights_hash(model: nn.Module, aux_head: nn.Module | None = None) -> str:
    """Return the SHA-256 of all weights, by name.

    Args:
        model: Plain model.
        aux_head: Token head that annotates in place of its classifier.
    """
    weights = sorted(model.state_dict().items())
    if aux_head is not None:
        weights += sorted(aux_head.state_dict(prefix="aux_head.").items())
    digest = hashlib.sha256()
    for name, value in weights:
        digest.update(name.encode())
        digest.update(tensor_bytes(value))
    return digest.hexdigest()
