import pytest
import timm
import torch
from timm.models.convnext import ConvNeXt

from smallvit.models import convnext  # noqa: F401  (registers the name)
from smallvit.models.convnext import convnext_architecture

TINY = {"dims": (8, 16, 16, 32), "depths": (1, 1, 1, 1), "num_classes": 5}


def images(height: int = 32, width: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def tiny(**arguments) -> ConvNeXt:
    torch.manual_seed(0)
    return timm.create_model("convnext_atto_small", **{**TINY, **arguments}).eval()


@pytest.mark.parametrize(
    ("img_size", "patch_size"),
    [(28, 1), (32, 1), (64, 1), ((32, 128), 1), (96, 3), (128, 4), (224, 4), ((99, 128), 1)],
)
def test_patch_leaves_32_cells_a_side_and_divides_the_image(img_size, patch_size):
    assert convnext_architecture(img_size)[1]["patch_size"] == patch_size


def test_patch_of_two_makes_cells_as_large_as_one_of_four():
    """Why 2 is not among the patches: timm adds a stride to it."""
    cells = [
        timm.create_model("convnext_atto", patch_size=p, **TINY).feature_info[-1] for p in (2, 4)
    ]
    assert [cell["reduction"] for cell in cells] == [32, 32]


@pytest.mark.parametrize(
    ("height", "width", "grid"), [(32, 32, (4, 4)), (64, 64, (8, 8)), (48, 32, (6, 4))]
)
def test_last_cells_are_an_eighth_of_the_first(height, width, grid):
    model = tiny(img_size=(height, width))
    assert model.forward_features(images(height, width)).shape == (2, 32, *grid)


def test_timm_alone_builds_the_same_network():
    """What an export names: same parameter names and logits without this package's entry."""
    ours = tiny(img_size=64)
    name, arguments = convnext_architecture(64)
    theirs = timm.create_model(name, **arguments, **TINY).eval()
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(images(64, 64)), theirs(images(64, 64)))


def test_norm_stands_before_pooling():
    """So the mean of the dense logits is the image's."""
    model = tiny()
    features = model.forward_features(images()).flatten(2).mT
    torch.testing.assert_close(model.head.fc(features).mean(dim=1), model(images()))


def test_parameters_are_those_of_the_architecture_but_for_stem_and_classes():
    """timm's own at 1000 classes reads patches of 16 pixels instead of 1."""
    with torch.device("meta"):
        ours, theirs = timm.create_model("convnext_atto_small"), timm.create_model("convnext_atto")
    counts = [sum(p.numel() for p in model.parameters()) for model in (ours, theirs)]
    assert counts[1] - counts[0] == 3 * 40 * (16 - 1) + 990 * 321


@pytest.mark.usefixtures("without_shape_checks")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiles_into_one_graph(checkpointing):
    model = tiny()
    model.set_grad_checkpointing(checkpointing)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images()), model(images()))


def test_bfloat16_is_near_float32():
    model = tiny()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(images())
    torch.testing.assert_close(logits.float(), model(images()), rtol=0.05, atol=0.05)


def test_levels_of_a_non_square_image():
    wrapped = timm.create_model(
        "convnext_atto_small", **TINY, features_only=True, out_indices=(0, 1, 2, 3)
    )
    shapes = [tuple(level.shape[1:]) for level in wrapped(images(32, 48))]
    assert shapes == [(8, 32, 48), (16, 16, 24), (16, 8, 12), (32, 4, 6)]
