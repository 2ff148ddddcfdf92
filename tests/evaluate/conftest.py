import pytest
from torch import Tensor, nn


def linear_classifier(weight: Tensor, *, scale: float = 1.0, image_size: int = 4):
    """Build a classifier of colours whose logits are ``scale * weight @ pixels``."""
    # Imported late: the shape checks are switched on after this file is read.
    from smallvit.evaluate.pixel_classifier import PixelClassifier
    from smallvit.models.tokens import AbstractBackbone, Tokens

    class LinearBackbone(AbstractBackbone):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            self.model.weight.data = scale * weight.clone()
            self.embed_dim = weight.shape[1]
            self.patch_size = (image_size, image_size)

        def embed(self, images):
            return images.flatten(1)[:, None, None]

        def encode(self, patches):
            return Tokens(patch=patches.flatten(1, 2), cls=None, grid=(1, 1))

        def classify(self, pooled):
            return self.model(pooled)

    return PixelClassifier(LinearBackbone(), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture
def linear():
    return linear_classifier
