"""The methods of stage 1 by name.

Adding one means a file with its config and objective, and its two lines here.
"""

from smallvit.core.errors import UnknownNameError
from smallvit.models.tokens import AbstractBackbone, Features
from smallvit.pretraining.dino import DinoConfig, DinoObjective
from smallvit.pretraining.ibot import IbotConfig, IbotObjective
from smallvit.pretraining.lejepa import LeJepaConfig, LeJepaObjective
from smallvit.pretraining.mae import MaeConfig, MaeObjective
from smallvit.pretraining.method import AbstractPretraining
from smallvit.pretraining.mocov3 import MocoV3Config, MocoV3Objective
from smallvit.pretraining.simclr import SimClrConfig, SimClrObjective
from smallvit.pretraining.simmim import SimMimConfig, SimMimObjective

MethodConfig = (
    DinoConfig | IbotConfig | MaeConfig | SimMimConfig | MocoV3Config | SimClrConfig | LeJepaConfig
)
_METHODS: dict[type, type[AbstractPretraining]] = {
    DinoConfig: DinoObjective,
    IbotConfig: IbotObjective,
    MaeConfig: MaeObjective,
    SimMimConfig: SimMimObjective,
    MocoV3Config: MocoV3Objective,
    SimClrConfig: SimClrObjective,
    LeJepaConfig: LeJepaObjective,
}
METHODS: dict[str, type] = {config().name: config for config in _METHODS}


def get_method(name: str) -> type:
    """Look up a method's config by name.

    Raises:
        UnknownNameError: If there is none; the message lists those there are.
    """
    if name not in METHODS:
        raise UnknownNameError("method", name, METHODS)
    return METHODS[name]


def features_of(config: MethodConfig) -> Features:
    """Return what of an image a method trains, which is what is scored."""
    return _METHODS[type(config)].features


def create_objective(
    backbone: AbstractBackbone, config: MethodConfig, *, image_size: int
) -> AbstractPretraining:
    """Build a method around a network.

    Args:
        backbone: The network to train.
        config: Which method, and its settings.
        image_size: Side of the images, in pixels.

    Raises:
        ConfigError: If the method does not go with the network.
    """
    return _METHODS[type(config)](backbone, config, image_size=image_size)
