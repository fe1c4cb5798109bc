"""Figures that other work has published for MAD-Sim, to print beside ours; quoted, not reproduced here.

All rates are percent in [0, 100], times are seconds per photo. Papers differ in input size, seeds and hardware: gaps of
about one point between them may be protocol rather than method, so every row carries its source.
"""

from __future__ import annotations

from dataclasses import dataclass

MAD_SIM_MEAN = "MAD-Sim mean"  # the unweighted mean over the 20 classes

_PAD = "PAD benchmark, README of EricLee0224/PAD"
_SPLATPOSE = "SplatPose paper, arXiv 2404.06832 (as quoted by third parties)"
_PIAD = "PIAD paper, CVPR 2025"


@dataclass(frozen=True)
class PublishedRow:
    """One method's figures on one class, or on the mean of all; None where nothing was published."""

    method: str
    scope: str  # a class name such as "01Gorilla", or MAD_SIM_MEAN
    image_auroc: float | None  # percent
    pixel_auroc: float | None  # percent
    aupro: float | None  # percent, false positive rates to 0.3
    seconds_per_photo: float | None  # s, on the hardware named in `note`
    source: str
    note: str = ""  # protocol, hardware, doubts

    @property
    def is_mean(self) -> bool:
        """Whether this is the mean over MAD-Sim, not a figure of the class asked for."""
        return self.scope == MAD_SIM_MEAN


@dataclass(frozen=True)
class _PerClass:
    name: str
    patchcore_pixel: float
    patchcore_image: float
    omnipose_pixel: float
    omnipose_image: float
    splatpose_image: float
    splatpose_spread: float  # standard deviation over seeds


_PER_CLASS = (
    _PerClass("01Gorilla", 88.4, 66.8, 99.5, 93.6, 91.7, 1.1),
    _PerClass("02Unicorn", 58.9, 92.4, 98.2, 94.0, 97.9, 1.1),
    _PerClass("03Mallard", 66.1, 59.3, 97.4, 84.7, 97.4, 0.5),
    _PerClass("04Turtle", 77.5, 87.0, 99.1, 95.6, 97.2, 0.7),
    _PerClass("05Whale", 60.9, 86.0, 98.3, 82.5, 95.4, 3.0),
    _PerClass("06Bird", 88.6, 82.9, 95.7, 92.4, 94.0, 1.2),
    _PerClass("07Owl", 86.3, 72.9, 99.4, 88.2, 86.8, 0.9),
    _PerClass("08Sabertooth", 69.4, 76.6, 98.5, 95.7, 95.2, 1.5),
    _PerClass("09Swan", 73.5, 75.2, 98.8, 86.5, 93.0, 0.7),
    _PerClass("10Sheep", 79.9, 89.4, 97.7, 90.1, 96.7, 0.1),
    _PerClass("11Pig", 83.5, 85.7, 97.7, 88.3, 96.1, 1.9),
    _PerClass("12Zalika", 64.9, 68.2, 99.1, 88.2, 89.9, 0.7),
    _PerClass("13Pheonix", 62.4, 71.4, 99.4, 82.3, 84.2, 0.3),
    _PerClass("14Elephant", 56.2, 78.6, 99.0, 92.5, 94.7, 0.9),
    _PerClass("15Parrot", 70.7, 78.0, 99.5, 97.0, 96.1, 1.1),
    _PerClass("16Cat", 85.6, 78.7, 97.7, 84.9, 84.2, 1.3),
    _PerClass("17Scorpion", 79.9, 82.1, 95.9, 91.5, 99.2, 0.1),
    _PerClass("18Obesobeso", 91.9, 89.5, 98.0, 97.1, 95.7, 0.7),
    _PerClass("19Bear", 79.5, 84.2, 99.3, 98.8, 98.9, 0.2),
    _PerClass("20Puppy", 73.3, 65.6, 98.8, 93.5, 96.1, 0.9),
)

_MEANS = (
    PublishedRow(
        "SplatPose", MAD_SIM_MEAN, 93.9, 99.5, 95.8, 5.0, _SPLATPOSE,
        "seconds without the search for the starting pose",
    ),
    PublishedRow(
        "SplatPose (PIAD's re-run)", MAD_SIM_MEAN, 94.9, 99.0, None, 8.40, _PIAD,
        "400 x 400 px; RTX 4090: 3.78 + 4.45 + 0.17 s",
    ),
    PublishedRow("PIAD", MAD_SIM_MEAN, 97.4, 99.5, None, 7.42, _PIAD, "400 x 400 px; RTX 4090: 3.34 + 3.87 + 0.21 s"),
    PublishedRow("IGSPAD", MAD_SIM_MEAN, 98.0, 99.7, None, None, "IGSPAD, ACM MM 2024, abstract"),
    PublishedRow(
        "OmniposeAD", MAD_SIM_MEAN, 90.9, 98.4, 86.6, 66.0, f"{_PAD}; AUPRO and seconds: {_SPLATPOSE}",
        "the README prints a pixel AUROC of 97.8, but its own rows average 98.35; the later papers cite 98.4",
    ),
    PublishedRow(
        "OmniposeAD (PIAD's re-run)", MAD_SIM_MEAN, 91.9, 98.4, None, 51.70, _PIAD,
        "400 x 400 px; RTX 4090: 4.22 + 47.31 + 0.17 s",
    ),
    PublishedRow(
        "PatchCore", MAD_SIM_MEAN, 78.5, 74.7, None, None, _PAD,
        "2D features, no pose; the README's own rows average 74.87 pixel AUROC",
    ),
)  # fmt: skip

_SINGLE = (
    PublishedRow(
        "SplatPose+ (one re-run)", "01Gorilla", 92.0, 99.7, 95.8, None,
        "fork chansses/SplatPosePlus", "independent re-run, one seed; the paper's own table is not readable to us",
    ),
)  # fmt: skip


def published_for(class_name: str) -> list[PublishedRow]:
    """Published rows to show beside our figures on a class: the class's own first, then the means over MAD-Sim.

    The name is matched whatever its case ("01gorilla"); for a class that nobody has published, only the means come
    back, and `is_mean` says so.
    """
    wanted = class_name.casefold()
    rows = [row for entry in _PER_CLASS if entry.name.casefold() == wanted for row in _rows_of(entry)]
    rows += [row for row in _SINGLE if row.scope.casefold() == wanted]
    return rows + list(_MEANS)


def _rows_of(entry: _PerClass) -> list[PublishedRow]:
    spread = f"standard deviation over seeds {entry.splatpose_spread}"
    if entry.name == "16Cat":
        spread += "; uncertain: repeats Pheonix's value and does not fit the published mean"
    return [
        PublishedRow("SplatPose", entry.name, entry.splatpose_image, None, None, None, _SPLATPOSE, spread),
        PublishedRow("OmniposeAD", entry.name, entry.omnipose_image, entry.omnipose_pixel, None, None, _PAD),
        PublishedRow("PatchCore", entry.name, entry.patchcore_image, entry.patchcore_pixel, None, None, _PAD),
    ]
