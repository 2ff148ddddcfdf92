import warnings
from collections.abc import Callable

import pytest
import torch

from smallvit.models.registry import ModelConfig, create_backbone
from smallvit.models.vit import VitBackbone


@pytest.fixture(autouse=True)
def _one_thread():
    """Tensors of a few kilobytes are faster on one core, and sums do not depend on the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_vit() -> Callable[..., VitBackbone]:
    """Build the stand-in: 2 blocks, 16 wide, 2 heads, patches of 4 px, the same weights always."""

    def build(*, num_classes: int = 5, image_size: int = 16, **settings: float) -> VitBackbone:
        config = ModelConfig(patch_size=4, embed_dim=16, depth=2, num_heads=2, **settings)
        torch.manual_seed(0)
        with warnings.catch_warnings():
            # Four tokens a side: too few for real images, enough here.
            warnings.filterwarnings("ignore", message="patches of 4 px")
            backbone = create_backbone(config, num_classes=num_classes, image_size=image_size)
        assert isinstance(backbone, VitBackbone)
        return backbone

    return build
