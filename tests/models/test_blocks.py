import pytest
import torch
from torch import nn
from torch.nn import functional

from smallvit.models.blocks import Block, Mlp

GRID = (2, 3)


def tokens(num_prefix: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, num_prefix + 6, 4, generator=generator)


def depthwise_mlp() -> Mlp:
    torch.manual_seed(0)
    return Mlp(embed_dim=4, hidden_dim=5, depthwise=True)


def test_plain_mlp_is_two_layers_and_a_gelu():
    mlp = Mlp(embed_dim=4, hidden_dim=5)
    hidden = functional.gelu(tokens() @ mlp.fc1.weight.T + mlp.fc1.bias)
    torch.testing.assert_close(mlp(tokens(), GRID), hidden @ mlp.fc2.weight.T + mlp.fc2.bias)


def test_zero_convolution_leaves_the_plain_mlp():
    """Closed form: GELU(0) = 0, so the convolution adds nothing."""
    mlp, plain = depthwise_mlp(), Mlp(embed_dim=4, hidden_dim=5)
    plain.load_state_dict(mlp.state_dict(), strict=False)
    nn.init.zeros_(mlp.dwconv.weight)
    nn.init.zeros_(mlp.dwconv.bias)
    torch.testing.assert_close(mlp(tokens(1), GRID), plain(tokens(1), GRID))


def test_depthwise_mlp_is_the_explicit_sum_over_neighbours():
    mlp, x = depthwise_mlp(), tokens()
    hidden = functional.gelu(mlp.fc1(x)).unflatten(1, GRID)
    kernel = mlp.dwconv.weight[:, 0]  # (D, 3, 3)
    mixed = torch.zeros_like(hidden)
    for row in range(2):
        for column in range(3):
            total = mlp.dwconv.bias.expand(2, -1)
            for near_row in range(max(0, row - 1), min(2, row + 2)):
                for near_column in range(max(0, column - 1), min(3, column + 2)):
                    weight = kernel[:, near_row - row + 1, near_column - column + 1]
                    total = total + weight * hidden[:, near_row, near_column]
            mixed[:, row, column] = hidden[:, row, column] + functional.gelu(total)
    torch.testing.assert_close(mlp(x, GRID), mlp.fc2(mixed.flatten(1, 2)))


def test_class_token_passes_the_convolution_by():
    """It is transformed like a plain token, and no patch token sees it."""
    mlp, x = depthwise_mlp(), tokens(1)
    out = mlp(x, GRID)
    torch.testing.assert_close(out[:, 0], mlp.fc2(functional.gelu(mlp.fc1(x[:, 0]))))
    torch.testing.assert_close(out[:, 1:], mlp(x[:, 1:], GRID))


class Constant(nn.Module):
    """A branch that returns the same number everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor, grid: tuple[int, int] | None = None) -> torch.Tensor:
        return torch.full_like(x, self.value)


@pytest.mark.parametrize("residual_scale", [1.0, 2.0, 4.0])
def test_both_branches_are_divided_by_the_residual_scale(residual_scale):
    block = Block(embed_dim=4, attn=Constant(1.0), mlp=Constant(2.0), residual_scale=residual_scale)
    torch.testing.assert_close(block(tokens(), GRID), tokens() + 3 / residual_scale)


def test_branches_read_normalised_tokens():
    """The MLP's norm sees what attention has added to."""
    block = Block(embed_dim=4, attn=nn.Identity(), mlp=Mlp(embed_dim=4, hidden_dim=5))
    x = tokens()
    x = x + functional.layer_norm(x, (4,), eps=1e-6)
    expected = x + block.mlp(functional.layer_norm(x, (4,), eps=1e-6), GRID)
    torch.testing.assert_close(block(tokens(), GRID), expected)


def test_stochastic_depth_drops_whole_branches_in_training_only():
    block = Block(embed_dim=4, attn=Constant(1.0), mlp=Constant(0.0), drop_path=0.5)
    torch.manual_seed(0)
    added = block(torch.zeros(64, 6, 4), GRID)
    assert set(added.flatten().tolist()) == {0.0, 2.0}
    assert torch.equal(added.amin(dim=(1, 2)), added.amax(dim=(1, 2)))
    assert torch.equal(block.eval()(torch.zeros(2, 6, 4), GRID), torch.ones(2, 6, 4))
