import pytest

from smallvit.leaderboard.report_text import (
    format_difference,
    format_p,
    format_std,
    format_time,
    format_value,
    row_labels,
    short_count,
)
from smallvit.leaderboard.rows import Figure, build_rows


@pytest.mark.parametrize(
    ("time_s", "text"),
    [
        (0.0, "0.0 s"),
        (12.34, "12.3 s"),
        (59.94, "59.9 s"),
        (59.99, "1 min 00 s"),
        (245.0, "4 min 05 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (3900.0, "1 h 05 min"),
    ],
)
def test_times_are_written_as_a_person_reads_them(time_s, text):
    assert format_time(time_s) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.12345, "fraction", "12.35"),
        (1.23456, "nats", "1.235"),
        (1.5, "ratio", "1.500"),
        (2_500_000.0, "count", "2.50 M"),
        (3_456.7, "images/s", "3,457"),
        (4.321, "ms", "4.32"),
        (312.4, "MiB", "312"),
    ],
)
def test_each_unit_has_its_own_digits(value, unit, text):
    assert format_value(value, unit) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999_999, "999,999"), (999_999.6, "1.00 M"), (17_600_000_000, "17.60 G")],
)
def test_large_counts_are_shortened(count, text):
    assert short_count(count) == text


def test_a_single_seed_has_no_standard_deviation():
    assert format_std(Figure(mean=0.5, std=None, n=1), "fraction") == ""
    assert format_std(Figure(mean=0.5, std=0.012, n=3), "fraction") == "\u00b1 1.20"


def test_differences_have_a_sign_and_small_p_values_no_false_digits():
    assert [format_difference(value) for value in (0.0123, -0.2, 0.0)] == [
        "+1.23",
        "-20.00",
        "+0.00",
    ]
    assert [format_p(value) for value in (0.00004, 0.012, 1.0)] == ["< 0.001", "0.012", "1.000"]


def test_rows_are_named_by_what_tells_them_apart(entry):
    rows = build_rows([entry(), entry("both")])
    assert row_labels(rows) == ["scratch", "both"]
    rows = build_rows([entry(), entry(label_fraction=0.1), entry(model="vit_tiny")])
    assert row_labels(rows) == [
        "scratch, vit_nano, 100 %",
        "scratch, vit_nano, 10 %",
        "scratch, vit_tiny, 100 %",
    ]
