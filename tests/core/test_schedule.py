import pytest

from smallvit.core.schedule import cosine


@pytest.mark.parametrize(("progress", "value"), [(0, 2.0), (1 / 3, 1.75), (0.5, 1.5), (1, 1.0)])
def test_cosine_passes_its_closed_form_points(progress, value):
    assert cosine(2.0, 1.0, progress) == pytest.approx(value)


def test_cosine_falls_all_the_way():
    values = [cosine(1.0, 0.0, step / 100) for step in range(101)]
    assert values == sorted(values, reverse=True)


def test_cosine_between_equal_ends_is_constant():
    assert {cosine(0.5, 0.5, step / 10) for step in range(11)} == {0.5}
