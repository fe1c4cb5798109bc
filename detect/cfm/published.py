"""What has been published on MVTec 3D-AD and Eyecandies, to print beside ours; quoted, not reproduced here.

Rates in [0, 1] as published. Every row says where it was read: few of these papers could be read whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Trust = Literal["read", "recalled", "confirmed mean"]
MARKS: dict[Trust, str] = {"read": "", "confirmed mean": "~", "recalled": "?"}
TRUST_NOTE = (
    "?: from memory, unconfirmed; ~: per class from memory, the mean confirmed by three tables; "
    "else read in a later paper's table"
)
MVTEC_3D, EYECANDIES = "mvtec-3d", "eyecandies"
MEAN = "mean"
MVTEC_CLASSES = (
    "bagel", "cable_gland", "carrot", "cookie", "dowel", "foam", "peach", "potato", "rope", "tire",
)  # fmt: skip
EYECANDIES_CLASSES = (
    "CandyCane", "ChocolateCookie", "ChocolatePraline", "Confetto", "GummyBear", "HazelnutTruffle",
    "LicoriceSandwich", "Lollipop", "Marshmallow", "PeppermintCandy",
)  # fmt: skip
METRICS = ("image_auroc", "pixel_auroc", "aupro_30", "aupro_1")

_TRD = "table of the TRD authors (repository hito2448/TRD)"
_CVPR = "CFM, CVPR 2024"
_GRC = "table of GRC-Net"


@dataclass(frozen=True)
class PublishedRow:
    """One method's figures of one kind, by class."""

    method: str
    dataset: str
    metric: str  # of METRICS; AUPRO in the papers' form
    classes: tuple[float, ...]  # in the dataset's order; empty where only the mean is known
    mean: float
    source: str
    trust: Trust = "read"
    note: str = ""

    def value(self, name: str) -> float | None:
        """The figure of a class, or of "mean"; None where it is not known."""
        names = MVTEC_CLASSES if self.dataset == MVTEC_3D else EYECANDIES_CLASSES
        if name == MEAN:
            return self.mean
        return self.classes[names.index(name)] if self.classes and name in names else None


@dataclass(frozen=True)
class SpeedRow:
    """Frames per second at 224 x 224 and the size of all parameters."""

    method: str
    frames_per_second: float
    megabytes: float | None
    source: str
    trust: Trust = "read"


@dataclass(frozen=True)
class FewShotRow:
    """Means over MVTec 3D-AD's classes from so many training photos; None where nothing is known."""

    method: str
    shots: int
    image_auroc: float | None
    pixel_auroc: float | None
    aupro_30: float | None
    aupro_1: float | None
    source: str
    trust: Trust = "read"


def _mvtec(
    method: str, metric: str, classes: tuple[float, ...], mean: float, source: str = _TRD, trust: Trust = "read", note: str = ""
) -> PublishedRow:  # fmt: skip
    return PublishedRow(method, MVTEC_3D, metric, classes, mean, source, trust, note)


ROWS = (
    _mvtec("BTF", "image_auroc", (0.918, 0.748, 0.967, 0.883, 0.932, 0.582, 0.896, 0.912, 0.921, 0.886), 0.865),
    _mvtec("M3DM", "image_auroc", (0.994, 0.909, 0.972, 0.976, 0.960, 0.942, 0.973, 0.899, 0.972, 0.850), 0.945),
    _mvtec("Shape-Guided", "image_auroc", (0.986, 0.894, 0.983, 0.991, 0.976, 0.857, 0.990, 0.965, 0.960, 0.869), 0.947),
    _mvtec("AST", "image_auroc", (0.983, 0.873, 0.976, 0.971, 0.932, 0.885, 0.974, 0.981, 1.00, 0.797), 0.937),
    _mvtec("MMRD", "image_auroc", (0.999, 0.943, 0.964, 0.943, 0.992, 0.912, 0.949, 0.901, 0.994, 0.901), 0.950, note="depth"),
    _mvtec(
        "CFM", "image_auroc", (0.994, 0.888, 0.984, 0.993, 0.980, 0.888, 0.941, 0.943, 0.980, 0.953), 0.954, _CVPR,
        "confirmed mean",
    ),
    _mvtec(
        "CFM (in TRD)", "image_auroc", (0.988, 0.875, 0.984, 0.992, 0.997, 0.924, 0.964, 0.949, 0.979, 0.950), 0.960,
        note="a second version, unexplained",
    ),
    _mvtec("3D-ADNAS", "image_auroc", (0.997, 1.00, 0.971, 0.986, 0.966, 0.948, 0.897, 0.873, 1.00, 0.867), 0.951, note="depth"),
    _mvtec("TRD, depth", "image_auroc", (0.996, 0.961, 0.982, 0.985, 0.997, 0.901, 0.992, 0.976, 1.00, 0.833), 0.962),
    _mvtec("TRD, normals", "image_auroc", (0.989, 0.995, 0.997, 0.970, 1.00, 0.988, 0.996, 0.983, 1.00, 0.917), 0.984),
    _mvtec(
        "FPFH alone (BTF)", "image_auroc", (0.825, 0.534, 0.952, 0.783, 0.883, 0.581, 0.758, 0.889, 0.929, 0.656),
        0.779, "BTF README", note="3D alone, memory bank",
    ),
    _mvtec("BTF", "pixel_auroc", (), 0.992),
    _mvtec("M3DM", "pixel_auroc", (), 0.992),
    _mvtec("AST", "pixel_auroc", (), 0.976),
    _mvtec("CFM", "pixel_auroc", (0.997, 0.992, 0.999, 0.972, 0.987, 0.993, 0.998, 0.999, 0.998, 0.998), 0.993),
    _mvtec("TRD, normals", "pixel_auroc", (), 0.996),
    _mvtec("FPFH alone (BTF)", "pixel_auroc", (), 0.978, "BTF README", note="3D alone, memory bank"),
    _mvtec("BTF", "aupro_30", (0.976, 0.969, 0.979, 0.973, 0.933, 0.888, 0.975, 0.981, 0.950, 0.971), 0.959),
    _mvtec("M3DM", "aupro_30", (0.970, 0.971, 0.979, 0.950, 0.941, 0.932, 0.977, 0.971, 0.971, 0.975), 0.964),
    _mvtec("Shape-Guided", "aupro_30", (0.981, 0.973, 0.982, 0.971, 0.962, 0.978, 0.981, 0.983, 0.974, 0.975), 0.976),
    _mvtec("AST", "aupro_30", (0.970, 0.947, 0.981, 0.939, 0.913, 0.906, 0.979, 0.982, 0.889, 0.940), 0.944),
    _mvtec("MMRD", "aupro_30", (0.986, 0.990, 0.991, 0.951, 0.990, 0.901, 0.990, 0.990, 0.987, 0.982), 0.976, note="depth"),
    _mvtec(
        "CFM", "aupro_30", (0.979, 0.972, 0.982, 0.945, 0.950, 0.968, 0.980, 0.982, 0.975, 0.981), 0.971, _CVPR,
        "confirmed mean",
    ),
    _mvtec(
        "CFM (in TRD)", "aupro_30", (0.980, 0.966, 0.982, 0.947, 0.959, 0.967, 0.982, 0.983, 0.976, 0.982),
        0.972, note="a second version, unexplained",
    ),
    _mvtec("TRD, normals", "aupro_30", (0.975, 0.980, 0.982, 0.971, 0.981, 0.982, 0.982, 0.983, 0.978, 0.979), 0.979),
    _mvtec(
        "FPFH alone (BTF)", "aupro_30", (0.974, 0.878, 0.982, 0.908, 0.892, 0.730, 0.977, 0.982, 0.956, 0.962),
        0.924, "BTF README", note="3D alone, memory bank",
    ),
    _mvtec("BTF", "aupro_1", (), 0.383, _CVPR, "recalled"),
    _mvtec("AST", "aupro_1", (), 0.398, _CVPR, "recalled"),
    _mvtec("M3DM", "aupro_1", (), 0.394, _CVPR, "recalled"),
    _mvtec("CFM", "aupro_1", (0.459, 0.431, 0.485, 0.469, 0.394, 0.413, 0.468, 0.487, 0.464, 0.476), 0.455, _CVPR, "recalled"),
    PublishedRow("AST", EYECANDIES, "image_auroc", (), 0.780, _GRC),
    PublishedRow("EasyNet", EYECANDIES, "image_auroc", (), 0.869, _GRC),
    PublishedRow(
        "M3DM", EYECANDIES, "image_auroc", (0.624, 0.958, 0.958, 1.00, 0.886, 0.758, 0.949, 0.836, 1.00, 1.00),
        0.897, _GRC, "confirmed mean",
    ),
    PublishedRow(
        "CFM", EYECANDIES, "image_auroc", (0.680, 0.931, 0.952, 0.880, 0.865, 0.782, 0.917, 0.840, 0.998, 0.962),
        0.881, _GRC, "confirmed mean",
    ),
    PublishedRow("AST", EYECANDIES, "pixel_auroc", (), 0.902, _GRC),
    PublishedRow("M3DM", EYECANDIES, "pixel_auroc", (), 0.977, _GRC),
    PublishedRow("CFM", EYECANDIES, "pixel_auroc", (), 0.974, _GRC),
    PublishedRow("AST", EYECANDIES, "aupro_30", (), 0.744, _GRC),
    PublishedRow("M3DM", EYECANDIES, "aupro_30", (), 0.882, _GRC),
    PublishedRow(
        "CFM", EYECANDIES, "aupro_30", (0.942, 0.902, 0.831, 0.965, 0.875, 0.762, 0.791, 0.913, 0.939, 0.949),
        0.887, _GRC, "confirmed mean",
    ),
)  # fmt: skip

_CMDS = "poster of CMDS-AD"
SPEED = (
    SpeedRow("BTF", 3.197, 381.0, _CVPR, "recalled"),
    SpeedRow("AST", 4.966, 464.0, _CVPR, "recalled"),
    SpeedRow("M3DM", 0.514, 6526.0, _CVPR, "recalled"),
    SpeedRow("CFM", 21.755, 437.9, _CVPR, "recalled"),
    SpeedRow("CFM, on an RTX 2080 Ti", 5.71, 3757.0, "note of CPMAD; memory as it ran"),
    SpeedRow("M3DM, on an RTX 2080 Ti", 1.10, 8402.0, "note of CPMAD; memory as it ran"),
    SpeedRow("CFM (in UniMMAD)", 13.18, None, "note of UniMMAD"),
)
FEW_SHOT = (
    FewShotRow("CFM", 1, 0.698, None, 0.914, None, _CMDS),
    FewShotRow("CFM", 2, 0.730, None, 0.924, None, _CMDS),
    FewShotRow("CFM", 4, 0.808, None, 0.932, None, _CMDS),
    FewShotRow("CFM", 5, 0.811, 0.986, 0.949, 0.382, _CVPR, "recalled"),
    FewShotRow("CFM", 10, 0.845, 0.987, 0.954, 0.398, _CVPR, "recalled"),
    FewShotRow("CFM", 50, 0.906, 0.991, 0.965, 0.431, _CVPR, "recalled"),
    FewShotRow("M3DM", 1, 0.739, None, 0.902, None, _CMDS),
    FewShotRow("M3DM", 2, 0.765, None, 0.906, None, _CMDS),
    FewShotRow("M3DM", 4, 0.793, None, 0.924, None, _CMDS),
    FewShotRow("M3DM", 5, 0.822, None, None, None, _CVPR, "recalled"),
    FewShotRow("M3DM", 10, 0.845, None, None, None, _CVPR, "recalled"),
    FewShotRow("M3DM", 50, 0.907, None, None, None, _CVPR, "recalled"),
)


def published_for(dataset: str, name: str) -> tuple[str, list[tuple[str, dict[str, str]]]]:
    """The scope ("bagel" or "mean") and the methods with their figures, ready to print, of the class or of the mean.

    The mean stands in for a class that the dataset does not have. No rows for another dataset.
    """
    names = {MVTEC_3D: MVTEC_CLASSES, EYECANDIES: EYECANDIES_CLASSES}.get(dataset, ())
    scope = name if name in names else MEAN
    methods: dict[str, dict[str, str]] = {}
    for row in ROWS:
        if row.dataset != (dataset or MVTEC_3D):
            continue
        value = row.value(scope)
        if value is not None:
            mark = MARKS[row.trust]
            if scope == MEAN and row.trust == "confirmed mean":
                mark = ""
            methods.setdefault(row.method, {})[row.metric] = f"{100 * value:.1f}{mark}"
    return scope, list(methods.items())
