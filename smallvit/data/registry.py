"""The datasets that smallvit knows by name, one entry each.

An entry is a record of facts, not code: adding a dataset means adding an entry here and, if its
files have a layout of their own, a reader in ``sources.py``.
"""

from dataclasses import dataclass

from smallvit.core.errors import ConfigError, UnknownNameError


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """Facts about one image-classification dataset.

    Attributes:
        name: Name on the command line and in result tables.
        num_classes: Number of classes.
        num_train: Images in the official training split, or in all where there is one split.
        num_test: Images in the official test split; 0 where a test split is cut.
        image_size: Side of the images, in pixels.
        hflip: Whether a mirrored image keeps its class; digits do not.
        citation: Paper that introduced the dataset.
        license: Terms under which the images may be used, as the source states them.
    """

    name: str
    num_classes: int
    num_train: int
    num_test: int
    image_size: int
    hflip: bool
    citation: str
    license: str

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ConfigError(
                f"{self.name}: num_classes must be at least 2, got {self.num_classes}"
            )


_KRIZHEVSKY = "Krizhevsky, 2009, Learning Multiple Layers of Features from Tiny Images"

DATASETS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="digits",
            num_classes=10,
            num_train=1797,
            num_test=0,
            image_size=8,
            hflip=False,
            citation="Alpaydin and Kaynak, 1998, Optical Recognition of Handwritten Digits, UCI",
            license="CC BY 4.0",
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
        ),
    )
}


def get_dataset_spec(name: str) -> DatasetSpec:
    """Look up a dataset by name.

    Raises:
        UnknownNameError: If no entry has that name; the message lists those there are.
    """
    try:
        return DATASETS[name]
    except KeyError:
        raise UnknownNameError("dataset", name, DATASETS) from None
