"""Building a model from its config, by timm's names and arguments."""

import difflib
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import timm
from timm.models.cait import Cait
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

from smallvit.core.errors import ConfigError, UnknownNameError, explained, reason
from smallvit.core.model_config import ModelConfig
from smallvit.models.architecture import (
    ARCHITECTURES,
    LEAST_TOKENS,
    TRANSFORMER,
    WINDOWS,
    Facts,
    choose_patch,
    fitting_patches,
    sides,
)
from smallvit.models.attention import choose_attention
from smallvit.models.blocks import check_heads
from smallvit.models.cait import CaitBackbone
from smallvit.models.initialize import initialize
from smallvit.models.resnet import ResNetBackbone, SmallResNet, stage_strides
from smallvit.models.swin import SwinBackbone
from smallvit.models.timm_model import TimmBackbone
from smallvit.models.tokens import MODEL_ERRORS, AbstractBackbone
from smallvit.models.transformer import SmallTransformer, TransformerBackbone
from smallvit.models.vit import VitBackbone

# The toolkit's own names for timm architectures; exports carry timm's name.
ALIASES = {"vit_tiny": "vit_tiny_patch16_224", "vit_small": "vit_small_patch16_224"}
# timm families whose networks are made for any image and take views of other sizes, where asked to.
ANY_SIZE = ("vision_transformer_hybrid", "vitamin", "eva")
UNKNOWN_ARGUMENT = r"unexpected keyword argument\D*?'(\w+)'"


def own_models() -> list[str]:
    """List the toolkit's names, the default first."""
    return [*ALIASES, *sorted(ARCHITECTURES, key=_natural)]


def unknown_model(name: str) -> UnknownNameError:
    """Return the error of a name that is no model: it lists the toolkit's, and timm's nearest."""
    near = difflib.get_close_matches(name, timm.list_models(), n=1)
    return UnknownNameError("model", name, {*own_models(), *near})


def check_model(config: ModelConfig) -> None:
    """Refuse a model that there is none of, and settings that it does not have.

    Of the default model, settings are left to ``model_arguments``: the command line gives them
    before it gives the name.

    Raises:
        ConfigError: Names the first one.
    """
    if config.name not in own_models() and not timm.is_model(config.name):
        raise unknown_model(config.name)
    if config.name != ModelConfig.name:
        _check_settings(config)
    if config.embed_dim and config.num_heads:
        check_heads(config.embed_dim, config.num_heads, section="model.")
    check = _facts(config.name).check
    if check is not None:
        check(config.given())


def _check_settings(config: ModelConfig) -> None:
    takes = settings_of(config.name)
    for key, value in config.given().items():
        if key not in takes:
            raise ConfigError(f"model.{key} ({value}) is no setting of {config.name}: leave it out")


def settings_of(name: str) -> frozenset[str]:
    """Return the settings of ``ModelConfig`` that a model takes, or may take if it is timm's."""
    if name in ARCHITECTURES:
        return ARCHITECTURES[name].settings
    if timm.models.is_model_in_modules(name, ["swin_transformer", "swin_transformer_v2"]):
        return WINDOWS
    return TRANSFORMER if name in ALIASES else TRANSFORMER | {"window_size"}


def _facts(name: str) -> Facts:
    """Return what is known of a model; of timm's that is nothing beyond the usual."""
    return ARCHITECTURES.get(name, Facts())


def model_arguments(
    config: ModelConfig, *, num_classes: int, image_size: int | Sequence[int]
) -> tuple[str, dict[str, Any]]:
    """Return timm's name and all arguments of a model, as an export records them.

    Args:
        config: Which one.
        num_classes: Classes of its head.
        image_size: Side, or height and width, of the images it is made for, in pixels.

    Raises:
        ConfigError: If the patch does not divide the image or leaves too few tokens.
    """
    check_model(config)
    _check_settings(config)
    given = config.given()
    size = image_size if isinstance(image_size, int) else sides(image_size)
    name, facts = ALIASES.get(config.name, config.name), _facts(config.name)
    if config.stride is not None:
        given["strides"] = stage_strides(given.pop("stride"), facts.num_stages)
    if facts.timm_model is not None:
        name, arguments = facts.timm_model(size, config.patch_size)
    elif config.name in ARCHITECTURES:
        arguments: dict[str, Any] = {"img_size": size}
    else:
        arguments = _timm_arguments(name, config.patch_size, size)
    arguments |= given
    return name, arguments | {"num_classes": num_classes}


def settings_from(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of ``ModelConfig`` nearest to timm's name and arguments of a model.

    Args:
        name: timm's name, as an export records it.
        arguments: All arguments that build the model.
    """
    name = next(
        (own for own, facts in ARCHITECTURES.items() if _tells(facts, name, arguments)), name
    )
    takes = settings_of(name)
    own = {key: value for key, value in arguments.items() if key in takes and value is not None}
    if "strides" in arguments and "stride" in takes:
        own["stride"] = math.prod(arguments["strides"])
    return {"name": name, **own}


def _tells(facts: Facts, name: str, arguments: Mapping[str, Any]) -> bool:
    """Tell whether timm's name and arguments are those of an architecture with these facts."""
    if facts.told_by is None or facts.told_by[0] != name:
        return False
    told = ((arguments.get(key), value) for key, value in facts.told_by[1].items())
    # An export has lists where the code has tuples.
    return all((tuple(a) if isinstance(a, list) else a) == b for a, b in told)


def create_backbone(
    config: ModelConfig, *, num_classes: int, image_size: int | Sequence[int]
) -> AbstractBackbone:
    """Build a model with fresh weights.

    Args:
        config: Which one.
        num_classes: Classes of its head.
        image_size: Side, or height and width, of the images it is made for, in pixels.

    Raises:
        ConfigError: If the settings do not go together.
    """
    name, arguments = model_arguments(config, num_classes=num_classes, image_size=image_size)
    backbone = create_exported(name, arguments)
    backbone.name = config.name
    init = _facts(config.name).init
    if init is not None:
        init(backbone)
    check_fit(backbone, config.name, image_size)
    initialize(backbone, config.weight_init)
    return backbone


def create_exported(name: str, arguments: dict[str, Any]) -> AbstractBackbone:
    """Build a model from timm's name and arguments, as an export records them.

    Raises:
        ConfigError: If timm refuses them, or the architecture cannot be seen as tokens.
    """

    def refusal(error: Exception) -> str:
        unknown = re.search(UNKNOWN_ARGUMENT, str(error))
        if unknown is not None:
            what = f"{unknown[1]} is no setting of it: leave model.{unknown[1]} out"
        elif "divisible by num_heads" in str(error):
            what = "num_heads must divide embed_dim: give both model.embed_dim and model.num_heads"
        else:
            given = ", ".join(f"{key} {value}" for key, value in arguments.items())
            what = f"{reason(error)} (from {given})"
        return f"{name} cannot be built: {what}"

    with explained(
        refusal,
        *MODEL_ERRORS,
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        into=ConfigError,
    ):
        try:
            model = timm.create_model(name, **arguments)
        except TypeError as error:
            unknown = re.search(UNKNOWN_ARGUMENT, str(error))
            if unknown is None or unknown[1] != "img_size":
                raise
            # Made for any image.
            others = {key: value for key, value in arguments.items() if key != "img_size"}
            model = timm.create_model(name, **others)
    if type(model) is Cait:  # sl_cait has heads of a width of their own
        first: Any = model.blocks[0]
        check_heads(model.embed_dim, first.attn.num_heads, section="model.")
    adapters = (adapter for kind, adapter in ADAPTERS if isinstance(model, kind))
    adapter = next(adapters, TimmBackbone)
    # A distilled DeiT has a second classifier; a ViT of one size gives patches without their grid.
    if isinstance(model, VisionTransformer) and not (
        model.dynamic_img_size and not hasattr(model, "head_dist")
    ):
        adapter = TimmBackbone
    backbone = adapter(model)
    choose_attention(backbone)
    return backbone


# Token adapter of each class of model; any other has the one of timm's common interface.
ADAPTERS: tuple[tuple[type, Any], ...] = (
    (SmallTransformer, TransformerBackbone),
    (VisionTransformer, VitBackbone),
    (Cait, CaitBackbone),
    (SwinTransformer, SwinBackbone),
    (SmallResNet, ResNetBackbone),
)


@contextmanager
def fitting(
    backbone: AbstractBackbone, name: str, image_size: int | Sequence[int]
) -> Iterator[None]:
    """Run a network on images of a size, and refuse it where it takes none of these.

    Raises:
        ConfigError: If a Swin stage is smaller than its window, or the network fails.
    """
    height, width = sides(image_size)
    if isinstance(backbone, SwinBackbone):
        _check_windows(backbone, name, (height, width))
    with explained(
        lambda error: (
            f"{name} takes no images of {height} x {width} px ({reason(error)}): "
            f"{_advice((height, width), name)}"
        ),
        *MODEL_ERRORS,
        into=ConfigError,
    ):
        yield


def check_fit(
    backbone: AbstractBackbone,
    name: str,
    image_size: int | Sequence[int],
    *,
    grid: tuple[int, int] | None = None,
) -> None:
    """Refuse a network that images of this size leave too little to attend to.

    Args:
        backbone: The network.
        name: What to call it.
        image_size: Side, or height and width, of the images, in pixels.
        grid: Its token grid for them; ``None`` finds it by a forward pass.

    Raises:
        ConfigError: If a Swin stage is smaller than its window, or 4 tokens or fewer are left.
    """
    height, width = sides(image_size)
    with fitting(backbone, name, image_size):
        grid = grid or backbone.grid(image_size)
    if grid[0] * grid[1] < (2 if _facts(name).is_cnn else LEAST_TOKENS):
        advice = _advice((height, width), name)
        fits = _fitting_patches((height, width), backbone, grid)
        if fits:
            advice = f"model.patch_size {' or '.join(map(str, fits))} would leave more"
        raise ConfigError(
            f"{name} leaves {grid[0]} x {grid[1]} tokens of {height} x {width} px: {advice}"
        )
    patch = max(backbone.patch_size)
    eighth = max(2, min(height, width) // 8)
    if patch > eighth:
        smaller = [p for p in fitting_patches((height, width)) if p <= eighth]
        warnings.warn(
            f"patches of {patch} px are larger than an eighth of a {min(height, width)} px image; "
            f"small images want {_smaller_patch(smaller, eighth)}",
            stacklevel=2,
        )


def _smaller_patch(smaller: Sequence[int], eighth: int) -> str:
    if smaller:
        return f"{eighth} px or less, such as model.patch_size {max(smaller)}"
    return f"{eighth} px or less, which no patch of such images is: take another --data.image-size"


def _timm_arguments(
    name: str, patch_size: int | None, size: int | tuple[int, int]
) -> dict[str, Any]:
    """Return what a timm model is built with for small images; the patch is checked."""
    arguments: dict[str, Any] = {"img_size": size}
    if timm.models.is_model_in_modules(name, ["vision_transformer", "deit"]):
        patch = choose_patch(size, patch_size)
        return arguments | {"patch_size": patch, "dynamic_img_size": True}
    if timm.models.is_model_in_modules(name, ["swin_transformer"]):
        patch = choose_patch(size, patch_size, tokens=16, windows=True)
        return arguments | {"patch_size": patch, "dynamic_img_size": True}
    if patch_size is not None or timm.models.is_model_in_modules(name, ["cait"]):
        arguments["patch_size"] = choose_patch(size, patch_size)
    if timm.models.is_model_in_modules(name, ANY_SIZE):
        arguments["dynamic_img_size"] = True
    if timm.models.is_model_in_modules(name, ["levit"]):
        arguments["distilled"] = False  # one classifier
    if timm.models.is_model_in_modules(name, ["swin_transformer_v2"]):
        arguments["strict_img_size"] = False
    return arguments


def _check_windows(backbone: SwinBackbone, name: str, size: tuple[int, int]) -> None:
    """Refuse a Swin one of whose stages is smaller than the window asked for."""
    layers: list[Any] = list(backbone.model.layers)
    # timm shrinks windows to stages that are smaller: the largest one is what was asked for.
    window = max(max(block.window_size) for stage in layers for block in stage.blocks)
    stages = [stage.blocks[0].input_resolution for stage in layers]
    for number, stage in enumerate(stages, start=1):
        if min(stage) < window:
            raise ConfigError(
                f"{name}: stage {number} has {stage[0]} x {stage[1]} patches of images of "
                f"{size[0]} x {size[1]} px, smaller than its window of {window}: "
                f"{_fitting_windows(size, window, max(backbone.patch_size), stages)} would fit"
            )


def _fitting_windows(
    size: tuple[int, int], window: int, patch: int, stages: list[tuple[int, int]]
) -> str:
    """Say which smaller patch, which smaller window, or which of both fit every stage of a Swin."""
    common = math.gcd(*size)
    # Patches are merged two by two, an odd row with nothing.
    last = {
        p: -(-(min(size) // p) // 2 ** (len(stages) - 1))
        for p in range(1, patch + 1)
        if common % p == 0
    }
    same_window = [p for p in last if p < patch and last[p] >= window]
    # As wide as the first stage: a wider one was asked for, and would be too wide again.
    shrunk = f" with model.window_size {window}" if window == min(stages[0]) else ""
    fits = [f"model.patch_size {max(same_window)}{shrunk}"] if same_window else []
    if 2 < last[patch] < window:
        fits.append(f"model.window_size {last[patch]}")
    both = [p for p in last if p < patch and 2 < last[p] < window]
    if not fits and both:
        fits = [f"model.patch_size {max(both)} with model.window_size {last[max(both)]}"]
    larger = window * patch * 2 ** (len(stages) - 1)
    return " or ".join(fits) or (
        f"model.patch_size {patch}{shrunk} with --data.image-size {larger}"
    )


def _advice(size: tuple[int, int], name: str) -> str:
    """Say what to take instead of a network that makes too little of images of a size."""
    advice = _facts(name).advice
    if advice is not None:
        return advice(size)
    if name in own_models():
        return "take larger images (--data.image-size)"
    return (
        "take larger images (--data.image-size), a smaller model.patch_size if it has patches, or "
        "a model for small ones, such as resnet18_small or convnext_atto_small"
    )


def _fitting_patches(
    size: tuple[int, int], backbone: AbstractBackbone, grid: tuple[int, int]
) -> list[int]:
    """List smaller patches that would leave enough tokens, where the model has a patch at all."""
    patch = max(backbone.patch_size)
    shrunk = size[0] // patch // max(grid[0], 1)
    common = math.gcd(*size)
    return [
        p
        for p in range(1, patch)
        if common % p == 0 and (size[0] // p // shrunk) * (size[1] // p // shrunk) >= LEAST_TOKENS
    ]


def _natural(name: str) -> list[int | str]:
    """Sort t2t_vit_7 before t2t_vit_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
