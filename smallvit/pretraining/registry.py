"""The methods of stage 1 by name.

Adding one means its config, a file with its objective, and its two lines here.
"""

from smallvit.models.tokens import AbstractBackbone, Features
from smallvit.pretraining import config as settings
from smallvit.pretraining.config import MethodConfig
from smallvit.pretraining.dino import DinoObjective
from smallvit.pretraining.ibot import IbotObjective
from smallvit.pretraining.lejepa import LeJepaObjective
from smallvit.pretraining.mae import MaeObjective
from smallvit.pretraining.method import AbstractPretraining
from smallvit.pretraining.mocov3 import MocoV3Objective
from smallvit.pretraining.simclr import SimClrObjective
from smallvit.pretraining.simmim import SimMimObjective

_METHODS: dict[type, type[AbstractPretraining]] = {
    settings.DinoConfig: DinoObjective,
    settings.IbotConfig: IbotObjective,
    settings.MaeConfig: MaeObjective,
    settings.SimMimConfig: SimMimObjective,
    settings.MocoV3Config: MocoV3Objective,
    settings.SimClrConfig: SimClrObjective,
    settings.LeJepaConfig: LeJepaObjective,
}


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
