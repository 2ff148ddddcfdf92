import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

# Tiny tensors: a second thread only waits, and the kill tests compare runs bit for bit.
torch.set_num_threads(1)


@pytest.fixture
def small_vit() -> Callable[..., Any]:
    """Build the stand-in: 2 blocks, 16 wide, 2 heads, patches of 4 px, the same weights always."""
    # Imported late: the shape checks are switched on after this file is read.
    from smallvit.core.model_config import ModelConfig
    from smallvit.models.registry import create_backbone
    from smallvit.models.vit import VitBackbone

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


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the pictures of runs empty: to draw them takes most of the time of a short run."""
    import smallvit.inference.token_pictures
    import smallvit.leaderboard.attention  # whose pictures stay: it has the function from now on
    import smallvit.runs.job

    def touch_curves(_: Path, picture: Path, title: str) -> None:
        picture.parent.mkdir(exist_ok=True)
        picture.write_text("left out")

    def touch_tokens(*args: Any, **settings: Any) -> None:
        (folder,) = (arg for arg in args if isinstance(arg, Path))
        for name in ("tokens_pca.png", "attention.png"):
            (folder / name).touch()

    monkeypatch.setattr(smallvit.runs.job, "draw_curves", touch_curves)
    monkeypatch.setattr(smallvit.inference.token_pictures, "draw_tokens", touch_tokens)


@pytest.fixture
def without_shape_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch the shape checks of the tests off: they are no code that torch.compile can trace."""
    from smallvit.models.tokens import Tokens

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    monkeypatch.setattr(Tokens, "__init__", inspect.unwrap(Tokens.__init__))
    torch._dynamo.reset()
