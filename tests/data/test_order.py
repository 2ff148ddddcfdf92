import pytest
import torch

from smallvit.data.order import Order

CPU = torch.device("cpu")


@pytest.mark.parametrize("repeats", [1, 2, 3, 5])
@pytest.mark.parametrize(("size", "batch_size"), [(10, 3), (10, 5), (7, 7), (7, 16), (1, 4)])
def test_every_pass_sees_each_sample_repeats_times_in_a_row(size, batch_size, repeats):
    order = Order(size, batch_size, 0, CPU, repeats=repeats)
    once = Order(size, 1, 0, CPU)
    draws = [order.draw(step) for step in range(3 * size * repeats)]
    position = torch.cat([draw.position for draw in draws]).tolist()
    epoch = torch.cat([draw.epoch for draw in draws]).tolist()
    assert all(len(draw.position) == len(draw.epoch) == batch_size for draw in draws)
    for slot in range(3 * size * repeats):
        sample = once.draw(slot // repeats)
        assert position[slot] == sample.position.item()
        assert epoch[slot] == sample.epoch.item() * repeats + slot % repeats


def test_a_pass_drops_no_remainder():
    draws = [Order(10, 3, 0, CPU).draw(step) for step in range(10)]
    position = torch.cat([draw.position for draw in draws])
    epoch = torch.cat([draw.epoch for draw in draws])
    assert epoch.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    for number in range(3):
        assert position[epoch == number].sort().values.tolist() == list(range(10))


def test_every_slot_has_randomness_of_its_own():
    order = Order(10, 4, 0, CPU, repeats=3)
    draws = [order.draw(step) for step in range(45)]
    keys = {
        key
        for draw in draws
        for key in zip(draw.epoch.tolist(), draw.position.tolist(), strict=True)
    }
    assert len(keys) == 45 * 4


@pytest.mark.parametrize("repeats", [1, 3])
def test_a_draw_depends_on_the_step_and_not_on_those_before(repeats):
    used, fresh = (Order(10, 4, 0, CPU, repeats=repeats) for _ in range(2))
    for step in (0, 9, 3, 8, 1):
        used.draw(step)
    for step in (7, 2):
        assert torch.equal(used.draw(step).position, fresh.draw(step).position)
        assert torch.equal(used.draw(step).epoch, fresh.draw(step).epoch)


def test_another_batch_size_sees_the_samples_in_the_same_order():
    small, large = Order(10, 2, 0, CPU), Order(10, 6, 0, CPU)
    few = torch.cat([small.draw(step).position for step in range(15)])
    many = torch.cat([large.draw(step).position for step in range(5)])
    assert torch.equal(few, many)


def test_the_order_of_a_seed_never_changes():
    # Order of the first release: the runs of a seed must stay comparable.
    draw = Order(10, 12, 3, CPU).draw(0)
    assert draw.position.tolist() == [9, 4, 2, 6, 3, 0, 5, 1, 8, 7, 0, 9]
    assert draw.epoch.tolist() == [0] * 10 + [1] * 2


def test_passes_and_seeds_have_orders_of_their_own():
    order = Order(50, 50, 0, CPU)
    assert not torch.equal(order.draw(0).position, order.draw(1).position)
    assert not torch.equal(order.draw(0).position, Order(50, 50, 1, CPU).draw(0).position)


@pytest.mark.parametrize("repeats", [1, 4])
@pytest.mark.parametrize(("epochs", "steps"), [(1, 3), (3, 10), (0.5, 2), (0.01, 1), (0, 1)])
def test_steps_of_a_run_are_its_samples_over_the_batch_size(epochs, steps, repeats):
    assert Order(10, 3, 0, CPU, repeats=repeats).num_steps(epochs) == steps
