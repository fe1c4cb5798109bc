"""What the paper reports on BrokenChairs-180K's test shapes, to print beside ours; quoted, not reproduced here.

Percent in [0, 100]. Source: Bhunia, Li, Bilen, CVPR 2024, tables and text.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedRow:
    """One method's figures; None where none was published."""

    method: str
    reference: bool  # whether it sees the reference
    auc: float | None  # percent
    accuracy: float | None  # percent, at a probability of 0.5
    box_ap: float | None = None  # percent, at IoU 0.5
    note: str = ""


PUBLISHED = (
    PublishedRow("ResNet18-FPN", False, 74.6, 64.7),
    PublishedRow("ResNet18-FPN + 3 self-attention blocks", False, 75.2, 65.1),
    PublishedRow("ViT", False, 75.4, 65.2, 42.6),
    PublishedRow("LFD", True, None, 64.9, note="retrieval with a threshold"),
    PublishedRow("Lin et al. 2021", True, None, 67.8),
    PublishedRow("A: plain cross-attention", True, 76.1, 66.8, note="no CGA, VLFA, 3DPE"),
    PublishedRow("B: + CGA", True, 76.3, 67.1),
    PublishedRow("C: + VLFA", True, 80.8, 72.3),
    PublishedRow("D: CGA + VLFA", True, 82.6, 73.7, note="no 3DPE"),
    PublishedRow("CMT", True, 84.7, 75.4),
    PublishedRow("CMT, trained with boxes", True, 85.9, 77.3, 56.5),
)
VIEWPOINT_ACCURACY = (
    89.0  # percent, nearest of the 20 views of good photos, by correspondences; 47 by a classifier
)
