import pytest
import torch
from torch import nn

from smallvit.data.augment import normalize, to_float
from smallvit.data.dataset import Split
from smallvit.engine.config import RuntimeConfig
from smallvit.engine.runtime import open_runtime
from smallvit.evaluate.classify import predict_logits
from smallvit.evaluate.pixel_classifier import (
    PixelClassifier,
    pixel_batches,
    predict_pixels,
)
from smallvit.models.measure import frozen

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def images_of(num: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (num, 3, 16, 16), generator=generator, dtype=torch.uint8)


def test_logits_are_those_of_the_network_on_normalised_images(small_vit):
    backbone, runtime = small_vit(), open_runtime(RuntimeConfig(device="cpu", precision="fp32"))
    images = images_of(5)
    inputs = normalize(to_float(images), torch.tensor(MEAN), torch.tensor(STD))
    labels = torch.zeros(5, dtype=torch.int64)
    wanted, _ = predict_logits(backbone, [(inputs, labels)], autocast=runtime.autocast)
    found = predict_pixels(
        PixelClassifier(backbone, MEAN, STD), images.split(5), autocast=runtime.autocast
    )
    assert torch.equal(found, wanted)


def test_a_network_in_training_is_put_in_evaluation_mode(small_vit):
    backbone = small_vit(drop_path_rate=0.5).train()
    classifier = PixelClassifier(backbone, MEAN, STD)
    assert not any(module.training for module in classifier.modules())


def test_batches_are_colours_of_the_split_in_its_order():
    images = images_of(6)
    split = Split(images=images, labels=torch.arange(6), index=torch.tensor([5, 0, 3]))
    batches = list(pixel_batches(split, 2))
    assert [labels.tolist() for _, labels in batches] == [[5, 0], [3]]
    torch.testing.assert_close(batches[1][0], images[3:4].float() / 255)


@pytest.mark.parametrize("fails", [False, True])
def test_a_frozen_network_is_afterwards_as_it_was(fails):
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval()).train()
    module[1].eval()
    module[0].bias.requires_grad_(False)
    try:
        with frozen(module):
            assert not any(part.training for part in module.modules())
            assert not any(parameter.requires_grad for parameter in module.parameters())
            if fails:
                raise ValueError
    except ValueError:
        pass
    assert [part.training for part in module.modules()] == [True, True, False]
    assert [p.requires_grad for p in module.parameters()] == [True, False, True, True]
