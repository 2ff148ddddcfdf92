import pytest

from smallvit.core.errors import ConfigError
from smallvit.runs.provenance import check_leak, join_extra_data


@pytest.mark.parametrize(
    ("seen", "dataset"),
    [
        ("cifar10", "cinic10"),
        ("cinic10", "cifar10"),
        ("cinic10", "cifar10-jpeg"),
        ("digits, uoft-cs/cifar10, svhn", "CINIC-10"),
        ("unknown (weights of vit_cifar10.pth)", "cinic10"),
        ("cifar10 (with 3 of the 20 test images)", "cinic10"),
    ],
)
def test_cifar_10_and_cinic_10_leak_into_one_another(seen, dataset):
    with pytest.raises(ConfigError, match=r"--teacher runs/a saw .* pass --allow-leak") as caught:
        check_leak(seen, dataset, allow=False, option="--teacher runs/a")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("seen", "dataset"),
    [
        ("none", "cinic10"),
        ("cifar10", "cifar10"),
        ("cifar100", "cinic10"),
        ("cifar10", "cifar100"),
        ("cinic10", "svhn"),
        ("cifar10", "cifar10-jpeg"),
        ("timm weights resnet18.a1_in1k (trained on what their tag says)", "cinic10"),
    ],
)
@pytest.mark.parametrize("allow", [True, False])
def test_what_shares_no_images_stays_as_it_is(seen, dataset, allow):
    assert check_leak(seen, dataset, allow=allow, option="--from runs/a") == seen


def test_an_allowed_leak_is_recorded_where_it_is_and_not_asked_for_again():
    marked = check_leak("cifar10, digits", "cinic10", allow=True, option="--from a")
    assert marked == "cifar10 (shares images: --allow-leak), digits"
    assert check_leak(marked, "cinic10", allow=False, option="--teacher b") == marked
    assert join_extra_data(marked, "none", "svhn") == f"{marked}, svhn"


def test_what_was_not_allowed_before_is_asked_for_beside_what_was():
    seen = "cifar10 (shares images: --allow-leak), my-cifar-10"
    with pytest.raises(ConfigError, match="saw my-cifar-10,"):
        check_leak(seen, "cinic10", allow=False, option="--from a")
