"""How well CMT tells defective from good on a split: the same every time, pooled over processes.

Nothing is cropped, flipped or drawn; all distinct views are used in order; every photo of the split counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from detect.cmt.batches import Drawing, Group, load_batch
from detect.cmt.correspondence import nearest_direction
from detect.cmt.losses import CHANGED_SHARE, iou
from detect.cmt.model import CMT
from detect.cmt.parallel import rank, sum_over_processes, world
from detect.metrics import auroc, average_precision
from prepare.errors import InputError
from prepare.shape_pairs import ShapePairs

IOU_HIT = 0.5


@dataclass(frozen=True)
class EvaluateConfig:
    """What is evaluated."""

    split: str = "test"
    """Shapes of this split."""
    aided: bool = False
    """Whether the view from the photo's own camera is given."""
    found_masks: float = 0.0
    """Share of the photos whose mask is found in the photo, as at inspection; of the others it is the true one."""
    views: int = 0
    """Views of each shape, spread evenly; 0: all."""
    most: int = 0
    """Photos at most, spread evenly over the split; 0: all."""
    threshold: float = 0.5
    """Probability from which a photo is called defective, as chosen on held-out shapes."""
    photos_at_once: int = 8
    """Photos that are encoded together."""


@dataclass(frozen=True)
class Evaluation:
    """What was said of every photo, and the figures that follow. Rates are in [0, 1]."""

    photo: Int[np.ndarray, "photos"]  # index in the pack
    score: Float[np.ndarray, "photos"]  # probability of a defect
    label: Int[np.ndarray, "photos"]
    kind: Int[np.ndarray, "photos"]  # index into the pack's types
    part: Int[np.ndarray, "photos"]  # index into the pack's parts, -1 none
    box: Float[np.ndarray, "photos 4"]
    overlap: Float[np.ndarray, "photos"]  # IoU with the true box, NaN where there is none
    view_right: Float[np.ndarray, "photos"]  # 1 where the view by votes is the nearest, NaN where unknown
    view_angle: Float[np.ndarray, "photos"]  # degrees between it and the photo, NaN where unknown
    patch: Float[np.ndarray, "photos cells"] | None  # logits
    change: Float[np.ndarray, "photos cells"]  # true share of the cell that changed
    threshold: float
    types: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    remarks: tuple[str, ...] = field(default=())

    @property
    def auc(self) -> float:
        """Area under the ROC of all photos; 0.5 where one class is missing."""
        return auroc(self.score, self.label) if 0 < self.label.mean() < 1 else 0.5

    @property
    def best_threshold(self) -> float:
        """The probability that parts good from defective with the fewest mistakes here: for use on another split."""
        order = np.argsort(self.score, kind="stable")
        scores, labels = self.score[order], self.label[order]
        # Cut before place i: those below are good. Only between different scores.
        right = np.concatenate([[0], np.cumsum(labels == 0)]) + np.concatenate(
            [np.cumsum((labels == 1)[::-1])[::-1], [0]]
        )
        possible = np.concatenate([[True], scores[1:] > scores[:-1], [True]])
        cut = int(np.where(possible, right, -1).argmax())
        if cut == 0:
            return 0.0
        if cut == len(scores):
            return 1.0
        return float((scores[cut - 1] + scores[cut]) / 2)

    def accuracy(self, threshold: float) -> float:
        """Share of the photos on the right side of `threshold`."""
        return float(((self.score > threshold) == (self.label == 1)).mean())

    @property
    def box_ap(self) -> float:
        """Average precision of boxes at IoU 0.5: all photos ranked by score, one true box in each defective one."""
        boxes = np.isfinite(self.overlap)
        hit = boxes & (self.overlap > IOU_HIT)
        if not boxes.any() or not hit.any():
            return 0.0
        return average_precision(self.score, hit) * float(hit.sum()) / float(boxes.sum())

    def figures(self) -> dict[str, float]:
        """All figures that this split defines, by name."""
        boxes = np.isfinite(self.overlap)
        called = boxes & (self.score > 0.5)
        out = {
            "photos": float(len(self.score)),
            "auc": self.auc,
            "accuracy": self.accuracy(0.5),
            "accuracy_at_threshold": self.accuracy(self.threshold),
            "box_ap": self.box_ap,
        }
        if boxes.any():
            out["mean_iou"] = float(self.overlap[boxes].mean())
            out["iou_rate"] = float((self.overlap[boxes] > IOU_HIT).mean())
        if called.any():
            # As published: of the defective photos that are called so.
            out["iou_rate_of_called"] = float((self.overlap[called] > IOU_HIT).mean())
        if self.patch is not None and 0 < (changed := self.change > CHANGED_SHARE).mean() < 1:
            out["patch_auroc"] = auroc(self.patch.ravel().astype(np.float64), changed.ravel())
        known = np.isfinite(self.view_right)
        if known.any():
            out["viewpoint_accuracy"] = float(self.view_right[known].mean())
            out["viewpoint_angle_deg"] = float(np.median(self.view_angle[known]))
        return out

    def by_type(self) -> dict[str, dict[str, float]]:
        """Of each type of defect against all good photos: how many, AUC, recall at the threshold, mean IoU."""
        return self._by(self.kind, self.types)

    def by_part(self) -> dict[str, dict[str, float]]:
        """The same of each defective part."""
        return self._by(self.part, self.parts)

    def _by(self, which: np.ndarray, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
        good = self.label == 0
        out = {}
        for number, name in enumerate(names):
            own = (which == number) & ~good
            if own.any():
                rows = own | good
                out[name] = {
                    "photos": float(own.sum()),
                    "auc": auroc(self.score[rows], self.label[rows]) if good.any() else math.nan,
                    "recall": float((self.score[own] > self.threshold).mean()),
                    "mean_iou": float(np.nanmean(self.overlap[own]))
                    if np.isfinite(self.overlap[own]).any()
                    else 0.0,
                }
        return out


@torch.no_grad()
def evaluate(
    network: CMT,
    pack: ShapePairs,
    config: EvaluateConfig,
    device: torch.device | None = None,
    on_photo: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """`network` on the photos of a split; in eval mode afterwards. Several processes share the shapes.

    Raises: InputError where the split is empty or the pack has no aiding views though they are asked for.
    """
    device = device or torch.device("cpu")
    if config.aided and not pack.has_aided:
        raise InputError(
            f"{pack.folder}: no aiding views (aided.npy); make the pack with them, or evaluate without pose"
        )
    if config.aided and not network.config.aided:
        raise InputError("network: trained without aiding views; evaluate it without pose")
    photos = pack.queries_of(config.split)
    if len(photos) == 0:
        raise InputError(f"{pack.folder}: split {config.split} has no photos; choose another")
    if 0 < config.most < len(photos):
        photos = photos[np.linspace(0, len(photos) - 1, config.most).round().astype(np.int64)]
    number = min(config.views or pack.view_count, pack.view_count)
    views = tuple(np.linspace(0, pack.view_count, number, endpoint=False).astype(int).tolist())
    network.eval()
    cells = pack.columns**2
    n = len(photos)
    values = {
        "score": torch.zeros(n, dtype=torch.float64),
        "box": torch.zeros(n, 4, dtype=torch.float64),
        "vote": torch.zeros(n, dtype=torch.float64),
        "patch": torch.zeros(n, cells if network.config.patches else 0),
        "change": torch.zeros(n, cells),
    }
    shapes = np.asarray(pack["query_shape"])[photos]
    drawing = Drawing(aided=config.aided, found_masks=config.found_masks)
    done = 0
    for turn, shape in enumerate(np.unique(shapes)):
        if turn % world() != rank():
            continue
        rows = np.flatnonzero(shapes == shape)
        kept = None
        for first in range(0, len(rows), config.photos_at_once):
            some = rows[first : first + config.photos_at_once]
            group = Group(int(shape), tuple(photos[some].tolist()), views, 0)
            batch = load_batch(pack, [group], drawing, 0).to(device)
            own = cells_views = None
            if network.config.reference:
                if kept is None:  # the shape's views, encoded once
                    kept = network.encode(
                        batch.views[:number], batch.view_share[:number], batch.view_xyz[:number]
                    )
                cells_views = kept
                if len(batch.views) > number:
                    aiding = network.encode(
                        batch.views[number:], batch.view_share[number:], batch.view_xyz[number:]
                    )
                    cells_views = kept.joined(aiding)
            own = network.encode(batch.photos, batch.photo_share)
            output = network.compare(own, cells_views, batch.view_of, batch.aided)
            values["score"][some] = output.logit.double().sigmoid().cpu()
            values["box"][some] = output.box.double().cpu()
            if output.disagreement is not None:
                values["vote"][some] = output.disagreement.argmin(dim=1).double().cpu()
            if output.patch is not None:
                patch = output.patch
                if output.unexplained is not None and config.aided:
                    patch = torch.maximum(patch, output.unexplained)
                values["patch"][some] = patch.float().cpu()
            values["change"][some] = batch.change.float().cpu()
            done += len(some)
            if on_photo is not None:
                on_photo(done, n)
    on_device = {name: tensor.to(device) for name, tensor in values.items()}
    sum_over_processes(on_device.values())
    values = {name: tensor.cpu() for name, tensor in on_device.items()}

    label = np.asarray(pack["query_label"])[photos].astype(np.int64)
    truth = np.asarray(pack["query_box"])[photos].astype(np.float64)
    has_box = (label == 1) & np.isfinite(truth).all(axis=1)
    overlap = iou(values["box"], torch.from_numpy(np.nan_to_num(truth))).numpy()
    right, angle = _viewpoints(pack, photos, shapes, views, values["vote"].long(), network.config.reference)
    remarks = () if values["patch"].shape[1] else ("no head for cells: no patch figures",)
    return Evaluation(
        photos,
        values["score"].numpy(),
        label,
        np.asarray(pack["query_type"])[photos].astype(np.int64),
        np.asarray(pack["query_part"])[photos].astype(np.int64),
        values["box"].numpy(),
        np.where(has_box, overlap, np.nan),
        right,
        angle,
        values["patch"].numpy() if values["patch"].shape[1] else None,
        values["change"].numpy(),
        config.threshold,
        tuple(pack.types),
        tuple(pack.parts),
        remarks,
    )


def _viewpoints(
    pack: ShapePairs,
    photos: np.ndarray,
    shapes: np.ndarray,
    views: tuple[int, ...],
    vote: torch.Tensor,
    reference: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each good photo's vote is the nearest view, and its angle; NaN for defective ones and unknown cameras."""
    right, angle = np.full(len(photos), np.nan), np.full(len(photos), np.nan)
    cameras = np.asarray(pack["query_camera"])[photos]
    rows = np.flatnonzero(
        np.isfinite(cameras).all(axis=(1, 2)) & (np.asarray(pack["query_label"])[photos] == 0)
    )
    if not reference or len(rows) == 0:
        return right, angle
    of_views = np.asarray(pack["view_camera"])[shapes[rows]][:, list(views)]
    nearest, angles = nearest_direction(torch.from_numpy(cameras[rows]), torch.from_numpy(of_views))
    right[rows] = (nearest == vote[rows]).double().numpy()
    angle[rows] = angles.gather(1, vote[rows][:, None])[:, 0].numpy()
    return right, angle


def summary(evaluation: Evaluation) -> dict[str, Any]:
    """All figures as plain values, for a file."""
    return {"figures": evaluation.figures(), "types": evaluation.by_type(), "parts": evaluation.by_part()}
