"""How good are found cameras? Errors of single photos, their recall curve's area, and one summary for a table.

Errors of a photo without a camera are infinite: it stays in every figure. Angles are true geodesic degrees; distances
between camera centres come in world units and scaled to iNeRF's scenes (`scaled_distance`), so that 0.05 means the
same whatever unit a scene is measured in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from detect.metrics import object_shift_percent, rotation_error_deg, translation_error
from pose.se3 import rotation_from_vector
from prepare.camera import rigid_inverse

INERF_DISTANCE = 4.03  # of the cameras to the object in NeRF-synthetic, where iNeRF's 0.05 and 0.2 come from
AUC_DEG = (5.0, 10.0, 20.0)
AUC_DISTANCE = (0.05, 0.1, 0.2)  # scaled to INERF_DISTANCE
WRONG_DEG = 2.0  # a believed camera that is off by more is an unflagged error


@dataclass(frozen=True)
class PoseError:
    """How far one found camera is from the true one; all infinite where none was found."""

    rotation_deg: float  # geodesic angle, [0, 180]
    centre_distance: float  # between the camera centres, world units
    scaled_distance: float  # the same, scaled so that the cameras stand INERF_DISTANCE from the part
    shift_percent: float  # how far the part's centre moves in the camera's frame, percent of its distance


NO_CAMERA = PoseError(math.inf, math.inf, math.inf, math.inf)


@dataclass(frozen=True)
class PoseResult:
    """One photo (or one start) of an evaluation."""

    error: PoseError
    believed: bool | None  # None where no belief was formed
    seconds: float  # to find the camera


@dataclass(frozen=True)
class PoseSummary:
    """Figures over all attempts; shares and areas in percent, quantiles infinite where cameras were not found."""

    attempts: int  # photos, or photos times starts
    found: int
    auc_deg: dict[str, float]  # area under the recall curve up to 5, 10, 20 degrees
    auc_distance: dict[str, float]  # up to 0.05, 0.1, 0.2, scaled
    auc_world_distance: dict[str, float]  # up to 0.05, 0.1, 0.2 world units
    under_5_deg: float  # iNeRF's two shares
    under_005_distance: float  # scaled
    rotation_deg: dict[str, float]  # median, mean, p95, max
    centre_distance: dict[str, float]  # likewise, world units
    scaled_distance: dict[str, float]
    shift_percent: dict[str, float]
    believed: float | None  # share; None where no belief was formed
    unflagged_errors: int | None  # believed, and off by more than WRONG_DEG
    flagged_right: int | None  # not believed, though within WRONG_DEG
    seconds_median: float


@dataclass(frozen=True)
class PublishedPose:
    """Areas that a paper prints, percent, at 5, 10, 20 degrees and at 0.05, 0.1, 0.2 world units."""

    method: str
    setting: str
    auc_deg: tuple[float, float, float]
    auc_distance: tuple[float, float, float]


# Source: PIAD (CVPR 2025), Table 6: two synthetic objects, 190 queries with known poses. Its angle is that between the
# principal axes (a roll about them does not count), not the geodesic one of ours.
PUBLISHED = (
    PublishedPose("OmniposeAD", "Sprockets", (98.65, 99.32, 99.66), (92.98, 96.49, 98.25)),
    PublishedPose("SplatPose", "Sprockets", (99.29, 99.65, 99.82), (92.34, 96.17, 98.08)),
    PublishedPose("PIAD", "Sprockets", (99.48, 99.74, 99.87), (95.06, 97.53, 98.76)),
    PublishedPose("OmniposeAD", "Amphora, light varies", (27.36, 33.14, 47.24), (32.96, 38.65, 43.59)),
    PublishedPose("SplatPose", "Amphora, light varies", (64.11, 67.28, 71.72), (53.18, 59.42, 64.24)),
    PublishedPose("PIAD", "Amphora, light varies", (65.22, 68.09, 71.82), (58.87, 73.64, 84.20)),
)


def pose_error(
    estimate: Float[Tensor, "4 4"],
    truth: Float[Tensor, "4 4"],
    origin: Float[Tensor, "xyz=3"],
    distance: float,
) -> PoseError:
    """Errors of `estimate` against `truth`, world_to_cam matrices of any rigid camera convention, the same for both.

    `origin` is the part's centre in world coordinates and `distance` (> 0) that of its typical camera from it.
    """
    shift = float(translation_error(estimate, truth))
    return PoseError(
        rotation_deg=float(rotation_error_deg(estimate, truth)),
        centre_distance=shift,
        scaled_distance=shift * INERF_DISTANCE / distance,
        shift_percent=float(object_shift_percent(estimate, truth, origin)),
    )


def recall_area(errors: Sequence[float], threshold: float) -> float:
    """Percent in [0, 100]: area under the recall curve for errors from 0 to `threshold`, divided by it ("AUC@threshold").

    The curve joins (0, 0) and the points (e_i, i/n) of the errors in rising order with straight lines and stays level
    after the last error below the threshold t, e_k; integrated exactly, with n all photos:
    AUC = 1/n [sum over e_i < t of (1 - e_i/t) + e_k / (2t)]. The area under the steps themselves lacks the last term.
    An infinite error (no camera) counts in n alone.

    Source: the pose AUC of Sarlin et al., "SuperGlue" (CVPR 2020), written from the formula.
    Raises: ValueError without errors, for a NaN or negative one, or a threshold that is not above 0.
    """
    values = np.asarray(errors, dtype=np.float64)
    if values.size == 0 or not bool((values >= 0).all()):
        raise ValueError(f"AUC: errors of at least one photo are needed, none NaN or negative; got {errors}")
    if not threshold > 0:
        raise ValueError(f"AUC: the threshold must be above 0, got {threshold}")
    below = values[values < threshold]
    if below.size == 0:
        return 0.0
    area = np.sum(1 - below / threshold) + below.max() / (2 * threshold)
    return float(100 * area / values.size)


def summarize(results: Sequence[PoseResult]) -> PoseSummary:
    """The figures of an evaluation.

    Raises: ValueError without results.
    """
    if not results:
        raise ValueError("pose metrics: no photos were given")
    turns = [result.error.rotation_deg for result in results]
    centres = [result.error.centre_distance for result in results]
    scaled = [result.error.scaled_distance for result in results]
    shifts = [result.error.shift_percent for result in results]
    count = len(results)
    judged = [(result.believed, turn) for result, turn in zip(results, turns, strict=True)]
    has_belief = all(believed is not None for believed, _ in judged)
    return PoseSummary(
        attempts=count,
        found=sum(math.isfinite(turn) for turn in turns),
        auc_deg={f"{limit:g}": recall_area(turns, limit) for limit in AUC_DEG},
        auc_distance={f"{limit:g}": recall_area(scaled, limit) for limit in AUC_DISTANCE},
        auc_world_distance={f"{limit:g}": recall_area(centres, limit) for limit in AUC_DISTANCE},
        under_5_deg=100 * sum(turn < 5 for turn in turns) / count,
        under_005_distance=100 * sum(distance < 0.05 for distance in scaled) / count,
        rotation_deg=_spread(turns),
        centre_distance=_spread(centres),
        scaled_distance=_spread(scaled),
        shift_percent=_spread(shifts),
        believed=100 * sum(bool(believed) for believed, _ in judged) / count if has_belief else None,
        unflagged_errors=sum(bool(b) and turn > WRONG_DEG for b, turn in judged) if has_belief else None,
        flagged_right=sum(not b and turn <= WRONG_DEG for b, turn in judged) if has_belief else None,
        seconds_median=float(np.median([result.seconds for result in results])),
    )


def perturbed_start(
    world_to_cam: Float[Tensor, "4 4"],
    centre: Float[Tensor, "xyz=3"],
    distance: float,
    generator: torch.Generator,
    *,
    most_deg: float = 40.0,
    most_shift: float = 0.2,
) -> Float[Tensor, "4 4"]:
    """A camera near the true one to start from: turned by up to `most_deg` about a random axis, moved along each axis.

    The turn is about the part's centre `centre`, uniform in ±most_deg, its axis uniform on the sphere; the moves along
    the world's axes are uniform in ±most_shift, in units of a scene whose cameras stand INERF_DISTANCE from the part:
    multiplied by `distance` / INERF_DISTANCE here. float64; drawn from `generator` alone.

    Source: the protocol of Yen-Chen et al., "iNeRF" (IROS 2021). The pivot is ours: turned in place by 40 degrees, the
    width of MAD-Sim's whole photo, a camera would not see the part.
    """
    axis = torch.randn(3, generator=generator, dtype=torch.float64)
    angle, *shift = (
        (2 * torch.rand(4, generator=generator, dtype=torch.float64) - 1)
        * torch.tensor([math.radians(most_deg)] + 3 * [most_shift * distance / INERF_DISTANCE])
    ).tolist()
    turn = rotation_from_vector(angle * axis / axis.norm())
    pivot = centre.double()
    moved = torch.eye(4, dtype=torch.float64)  # takes the true camera to where it starts, in the world
    moved[:3, :3] = turn
    moved[:3, 3] = pivot - turn @ pivot + torch.tensor(shift, dtype=torch.float64)
    return world_to_cam.double() @ rigid_inverse(moved)


def _spread(errors: Sequence[float]) -> dict[str, float]:
    """Median, mean, 95 % (the smallest measured error that at least 95 % do not pass) and largest."""
    values = np.sort(np.asarray(errors, dtype=np.float64))
    return {
        "median": float(np.median(values)),
        "mean": float(values.mean()),
        "p95": float(values[math.ceil(0.95 * len(values) - 1e-9) - 1]),
        "max": float(values[-1]),
    }
