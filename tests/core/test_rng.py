import hashlib

import pytest
import torch

from smallvit.core import rng

pytestmark = pytest.mark.exact

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def splitmix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def reference_draws(seed: int, purpose: str, epoch: int, index: int, num: int) -> list[float]:
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    key = int.from_bytes(digest, "little")
    sample = splitmix((splitmix((epoch * GOLDEN + key) & MASK) + index * GOLDEN) & MASK)
    words = (splitmix((sample + n * GOLDEN) & MASK) for n in range(1, num + 1))
    return [(word >> 40) * 2.0**-24 for word in words]


def draw(seed: int, purpose: str, epoch: list[int], index: list[int], num: int) -> torch.Tensor:
    return rng.uniform(seed, purpose, torch.tensor(epoch), torch.tensor(index), num)


def test_splitmix_of_the_first_two_counters_is_the_published_sequence():
    assert splitmix(GOLDEN) == 0xE220A8397B1DCDAF
    assert splitmix(2 * GOLDEN & MASK) == 0x6E789E6AA1B965F4


@pytest.mark.parametrize(
    ("seed", "purpose", "epoch", "index"),
    [(0, "order", 0, 0), (7, "view/0", 3, 49_999), (123_456_789, "augment", 299, 1)],
)
def test_uniform_equals_splitmix_in_plain_python(seed, purpose, epoch, index):
    drawn = draw(seed, purpose, [epoch], [index], 6)[0].tolist()
    assert drawn == reference_draws(seed, purpose, epoch, index, 6)


def test_a_sample_drawn_alone_gets_the_numbers_it_gets_among_others():
    alone = draw(1, "augment", [5], [42], 4)
    among = draw(1, "augment", [0, 5, 5], [42, 41, 42], 4)
    assert torch.equal(alone[0], among[2])


def test_more_draws_of_a_sample_begin_with_the_fewer():
    assert torch.equal(draw(1, "a", [0], [9], 3), draw(1, "a", [0], [9], 8)[:, :3])


def test_hundred_thousand_draws_have_the_moments_of_the_uniform_distribution():
    index = torch.arange(20_000)
    draws = rng.uniform(0, "moments", torch.zeros_like(index), index, 5).double()
    # Standard errors: 0.0009 of the mean, 0.0002 of the variance.
    assert draws.mean().item() == pytest.approx(1 / 2, abs=0.004)
    assert draws.var().item() == pytest.approx(1 / 12, abs=0.001)
    assert draws.min() >= 0
    assert draws.max() < 1


def test_draws_of_neighbouring_samples_and_columns_are_uncorrelated():
    index = torch.arange(20_000)
    draws = rng.uniform(0, "moments", torch.zeros_like(index), index, 3).double()
    pairs = torch.stack([draws[:-1, 0], draws[1:, 0], draws[:-1, 1], draws[:-1, 2]])
    assert (torch.corrcoef(pairs) - torch.eye(4)).abs().max() < 0.03


def test_seed_purpose_epoch_and_index_each_change_the_numbers():
    keys = [(0, "a", 0, 0), (1, "a", 0, 0), (0, "b", 0, 0), (0, "a", 1, 0), (0, "a", 0, 1)]
    assert len({draw(s, p, [e], [i], 1).item() for s, p, e, i in keys}) == len(keys)


def test_permutation_holds_each_index_once():
    order = rng.permutation(0, "order", 0, 1000)
    assert torch.equal(order.sort().values, torch.arange(1000))


def test_permutation_differs_by_epoch_seed_and_purpose_and_repeats_itself():
    first = rng.permutation(0, "order", 0, 100)
    assert torch.equal(first, rng.permutation(0, "order", 0, 100))
    for other in ((0, "order", 1), (1, "order", 0), (0, "split", 0)):
        assert not torch.equal(first, rng.permutation(*other, 100))


def test_scalar_is_the_draw_of_the_step_as_floats():
    assert rng.scalar(3, "mix", 17, 2) == reference_draws(3, "mix", 0, 17, 2)


def test_step_seed_is_the_hash_of_the_step():
    digest = hashlib.blake2b(b"7/model/42", digest_size=8).digest()
    assert rng.step_seed(7, 42) == int.from_bytes(digest, "little") & (MASK >> 1)


def test_step_seed_is_a_seed_that_torch_takes_and_differs_by_step():
    seeds = {rng.step_seed(0, step) for step in range(100)}
    assert len(seeds) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.Generator().manual_seed(max(seeds))
