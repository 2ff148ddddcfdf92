import pytest

from smallvit.leaderboard.board import Bin, Evidence, sum_evidence


def test_evidence_of_a_row_counts_the_images_of_all_its_runs():
    bins = (Bin(count=1, confidence=0.5, accuracy=1.0), Bin(count=0, confidence=0, accuracy=0))
    other = (Bin(count=3, confidence=0.7, accuracy=0.0), Bin(count=2, confidence=1, accuracy=0.5))
    summed = sum_evidence(
        [
            Evidence(
                class_names=("cat", "dog"),
                confusion=((1, 2), (3, 4)),
                reliability=each,
                reliability_scaled=bins,
            )
            for each in (bins, other)
        ]
    )
    assert summed.confusion == ((2, 4), (6, 8))
    assert summed.reliability[0].count == 4
    assert summed.reliability[0].confidence == pytest.approx((0.5 + 3 * 0.7) / 4)
    assert summed.reliability[0].accuracy == pytest.approx(0.25)
    assert summed.reliability[1] == other[1]
