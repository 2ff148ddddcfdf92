"""What a leaderboard measures of each run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from smallvit.core.config import Range
from smallvit.core.errors import ConfigError, DataError

Corruptions = Literal["none", "generated", "official", "both"]
AttackName = Literal["fgsm", "pgd", "autoattack"]
Eps = Annotated[float, Range(gt=0, le=255)]
# All that needs no further package and no further data, on a part of the test images.
ROBUST: dict[str, Any] = {
    "probes": True,
    "corruptions": "generated",
    "attacks": ("fgsm", "pgd"),
    "ood": ("noise",),
    "subset": 1000,
}


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What is measured beyond the accuracy and calibration of the classifier.

    Attributes:
        probes: Score the backbone too, by k-NN and a linear probe on the labelled images.
        corruptions: Which corrupted images to score: made here (``generated``), those of the
            published archive (``official``), or both, each in columns of its own.
        archive: Folder of the published archive.
        attacks: Attacks on the images that are scored for robustness.
        eps: Largest changes of a colour that attacks may make, in levels of 255.
        pgd_steps: Gradients of a restart of PGD.
        pgd_restarts: Random places that PGD starts from.
        ood: Sets that the classifier should be less sure of: ``noise``, data sets or folders.
        subset: Test images that are corrupted and attacked, drawn by the seed; null is all.
        cost: Time the network.
        seed: Of corruptions, attacks, noise and the subset.
    """

    probes: bool = False
    corruptions: Corruptions = "none"
    archive: Path | None = None
    attacks: tuple[AttackName, ...] = ()
    eps: tuple[Eps, ...] = (1.0, 2.0, 8.0)
    pgd_steps: Annotated[int, Range(ge=1)] = 20
    pgd_restarts: Annotated[int, Range(ge=1)] = 1
    ood: tuple[str, ...] = ()
    subset: Annotated[int | None, Range(ge=1)] = None
    cost: bool = True
    seed: Annotated[int, Range(ge=0)] = 0

    def check(self) -> None:
        """Refuse settings that contradict each other, and folders that are not there.

        Not done when it is built: the command line builds one of the options given alone.

        Raises:
            ConfigError: With the value and what it needs.
            DataError: If a folder is not there.
        """
        reads = self.corruptions in ("official", "both")
        if reads and self.archive is None:
            raise ConfigError(
                f"corruptions {self.corruptions} reads the published archive: name its folder with "
                "--archive"
            )
        if self.archive is not None and not reads:
            raise ConfigError(
                f"archive {self.archive} is read with corruptions official or both, not "
                f"{self.corruptions}"
            )
        if self.attacks and not self.eps:
            raise ConfigError("attacks need an eps: leave it out for 1, 2 and 8")
        robust = bool(self.attacks) or self.corruptions != "none"
        needs = (
            ("eps", "--attacks", bool(self.attacks)),
            ("pgd_steps", "--attacks pgd", "pgd" in self.attacks),
            ("pgd_restarts", "--attacks pgd", "pgd" in self.attacks),
            ("subset", "--corruptions or --attacks", robust),
        )
        for name, option, there in needs:
            value = getattr(self, name)
            if not there and value != getattr(BenchConfig, name):
                values = value if isinstance(value, tuple) else (value,)
                shown = ", ".join(f"{each:g}" for each in values)
                raise ConfigError(
                    f"{name} {shown} is of {option}, which is not asked for: add it, or leave "
                    f"{name} out"
                )
        paths = [Path(name) for name in self.ood if "/" in name and not name.startswith("hf:")]
        for path in (*paths, *([self.archive] if self.archive else [])):
            if not path.expanduser().exists():
                raise DataError(f"{path} is not there: name the folder of its images")
