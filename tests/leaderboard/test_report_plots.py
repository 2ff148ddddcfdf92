import pytest

from smallvit.leaderboard.board import Bin
from smallvit.leaderboard.report_plots import (
    FULL_AXIS,
    Axis,
    Line,
    Point,
    create_plots,
    fit_axis,
    reliability_dots,
    whisker,
)
from smallvit.leaderboard.rows import build_rows


def line(*values, std=0.0):
    points = [Point(x=x, mean=mean, std=std, at=f"{x:g}") for x, mean in values]
    return Line(name="both", style=0, points=points)


def test_axis_places_values_in_percent_of_its_width():
    axis = Axis(low=0.9, high=1.0, step=0.05)
    assert [axis.place(value) for value in (0.9, 0.95, 1.0)] == pytest.approx([0, 50, 100])
    assert axis.ticks == pytest.approx([0.9, 0.95, 1.0])
    assert axis.place(0.5) == 0
    assert FULL_AXIS.ticks == [0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize("correct", [0, 3, 50, 99, 100])
def test_a_fitted_axis_holds_every_error_bar(entry, correct):
    rows = build_rows([entry(correct=correct), entry("both", correct=min(correct + 1, 100))])
    ends = [end for row in rows for end in whisker(row)]
    axis = fit_axis(ends)
    assert 0 <= axis.low <= min(ends) + 1e-9
    assert max(ends) - 1e-9 <= axis.high <= 1


def test_a_fitted_axis_has_a_width_without_any_spread():
    axis = fit_axis([1.0, 1.0])
    assert (axis.low, axis.high) == pytest.approx((0.999, 1.0))


def test_a_plot_spans_its_points_from_left_to_right_and_from_bottom_to_top():
    (plot,) = create_plots([("", line((1, 0.2), (2, 0.4), (3, 0.6)))], "severity")
    first, middle, last = (plot.across(x) for x in (1, 2, 3))
    assert plot.left < first < middle < last < plot.width - plot.right
    assert middle == pytest.approx((first + last) / 2)
    assert plot.down(0.2) == plot.height - plot.bottom
    assert plot.down(0.6) == plot.top


@pytest.mark.parametrize(
    ("scale", "values"), [("linear", (0, 2, 4)), ("log", (0.01, 0.1, 1.0)), ("root", (0, 4, 16))]
)
def test_the_scale_spreads_the_abscissa(scale, values):
    (plot,) = create_plots([("", line(*((x, 0.5) for x in values)))], "x", scale=scale)
    left, middle, right = (plot.across(x) for x in values)
    assert middle == pytest.approx((left + right) / 2, abs=0.02)


def test_panels_share_an_axis_that_holds_their_error_bars():
    lines = [("a", line((1, 0.5), std=0.1)), ("b", line((1, 0.9), std=0.05)), ("c", line())]
    first, second = create_plots(lines, "x")
    assert first.axis == second.axis
    assert first.axis.low <= 0.4
    assert first.axis.high >= 0.95
    assert create_plots([("c", line())], "x") == []


def test_ticks_that_would_touch_are_not_named():
    (plot,) = create_plots([("", line((0, 0.5), (0.1, 0.5), (8, 0.5)))], "x")
    assert [name for _, name in plot.x_ticks] == ["0", "", "8"]


def test_reliability_draws_only_bins_with_images():
    empty = Bin(count=0, confidence=0.0, accuracy=0.0)
    bins = (
        empty,
        Bin(count=10, confidence=0.4, accuracy=0.5),
        Bin(count=40, confidence=0.9, accuracy=0.8),
    )
    dots = reliability_dots(bins)
    assert [(x, y) for x, y, _ in dots] == [(40, 50), (90, 20)]
    assert dots[1][2] == "40 images: confidence 90.00 %, accuracy 80.00 %"
    assert reliability_dots((empty,)) == []
