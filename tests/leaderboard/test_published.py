import csv
import io
from importlib import resources

import pytest

from smallvit.leaderboard.published import published_name, published_references


def test_the_package_carries_the_published_figures():
    # Gani et al., BMVC 2022, https://arxiv.org/abs/2210.07240: CIFAR-10, ViT, 96.41 %.
    (reference,) = (
        each
        for each in published_references(["cifar10"])
        if (each.study, each.method, each.model) == ("gani2022", "view-prediction", "vit")
        and each.metric == "top1"
    )
    assert (reference.value, reference.params_m, reference.labels) == (96.41, 2.8, "all labels")
    assert "best epoch on the test split" in reference.budget


def test_figures_of_corrupted_images_belong_to_the_clean_data():
    of_corruptions = [each for each in published_references(["cifar100"]) if each.of_corruptions]
    assert {each.dataset for each in of_corruptions} == {"cifar100"}
    assert len(of_corruptions) == 6
    assert not any(each.metric.startswith("top1") for each in of_corruptions)


def test_the_part_of_the_labels_is_read_from_the_metric():
    labels = {each.labels for each in published_references(["tiny-imagenet"])}
    assert labels == {"all labels", *(f"{part}% of the labels" for part in (25, 50, 75))}


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("cifar10", "cifar10"),
        ("cifar10-jpeg", "cifar10"),
        ("cifar100", "cifar100"),
        ("cifar1", None),
        ("digits", None),
        ("tiny-imagenet", "tiny-imagenet"),
    ],
)
def test_a_variant_has_the_figures_of_what_it_is_a_variant_of(dataset, name):
    assert published_name(dataset) == name
    assert {each.dataset for each in published_references([dataset])} == ({name} - {None})


def test_each_figure_comes_once():
    both = published_references(["cifar10-jpeg", "cifar10"])
    assert both == published_references(["cifar10"])
    assert len(set(both)) == len(both)


def test_every_line_of_the_file_is_read():
    text = resources.files("smallvit.leaderboard").joinpath("published.csv").read_text("utf-8")
    lines = list(csv.DictReader(io.StringIO(text)))
    names = {line["dataset"] for line in lines}
    assert len(published_references(sorted(names))) == len(lines)
