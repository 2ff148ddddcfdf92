import dataclasses
from typing import get_args

import pytest

from smallvit.core.errors import UnknownNameError
from smallvit.data.config import ViewsConfig
from smallvit.pretraining.config import METHODS, MethodConfig, get_method
from smallvit.pretraining.method import AbstractPretraining
from smallvit.pretraining.registry import create_objective


def test_every_method_is_registered_under_its_configs_name():
    assert set(METHODS.values()) == set(get_args(MethodConfig))
    assert all(config().name == name for name, config in METHODS.items())
    assert set(METHODS) >= {"dino", "ibot", "mae", "simmim", "mocov3", "simclr", "lejepa"}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_built_by_name_around_the_network(name, small_vit):
    backbone = small_vit()
    config = get_method(name)()
    objective = create_objective(backbone, config, image_size=16)
    assert isinstance(objective, AbstractPretraining)
    assert backbone in list(objective.modules())
    assert type(objective.exported) is type(backbone)


@pytest.mark.parametrize("name", METHODS)
def test_every_config_is_frozen_and_has_its_views(name):
    config = get_method(name)()
    assert isinstance(config.views, ViewsConfig)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.name = "other"


def test_an_unknown_method_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownNameError, match="unknown method 'moco'; did you mean 'mocov3'"):
        get_method("moco")
