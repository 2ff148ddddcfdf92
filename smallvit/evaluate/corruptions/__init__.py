"""The common corruptions of Hendrycks and Dietterich, in batches on the device of the images."""

from smallvit.evaluate.corruptions.batch import PROTOCOL, corrupt
from smallvit.evaluate.corruptions.official import OfficialCorruptions, open_official
from smallvit.evaluate.corruptions.parameters import (
    ALL_CORRUPTIONS,
    CORRUPTIONS,
    EXTRA_CORRUPTIONS,
    SEVERITIES,
)

__all__ = [
    "ALL_CORRUPTIONS",
    "CORRUPTIONS",
    "EXTRA_CORRUPTIONS",
    "PROTOCOL",
    "SEVERITIES",
    "OfficialCorruptions",
    "corrupt",
    "open_official",
]
