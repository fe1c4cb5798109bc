"""The camera of a photo: rough hypotheses, refined together, the best one to the end, and whether to believe it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pose.coarse import coarse_cameras
from pose.index import RENDER_PX, PoseIndex
from pose.pyramid import LEVELS_PX, PhotoLevel, SplatLevels, photo_pyramid
from pose.refine_adam import SPLATPOSE, AdamConfig, refine_adam
from pose.refine_gauss_newton import LevenbergConfig, Refined, refine_levenberg
from pose.residual import Exposure
from prepare.camera import Camera, fit_within
from prepare.image import resize
from recon.rasterize import rasterize
from recon.reference import Reference

INLIER_NORM = 0.15  # residual norm over rgb up to which a pixel agrees
AGREE_DEG = 1.0  # refined hypotheses nearer than this are the same camera


@dataclass(frozen=True)
class LocateConfig:
    """How the camera is sought."""

    hypotheses: int = 12
    """Rough cameras tried at the coarsest size."""
    carried: int = 6
    """Cameras carried to the second size."""
    levenberg: LevenbergConfig = field(default_factory=LevenbergConfig)
    """The second-order refinement."""
    refine: Literal["levenberg", "adam", "splatpose"] = "levenberg"
    """levenberg; or, to compare with, Adam at full size from the best rough camera: ours, or SplatPose's recipe."""


@dataclass(frozen=True)
class BeliefLimits:
    """What a believable camera must show; from held-out good photos (`calibrate_belief`), else these defaults."""

    least_inliers: float = 0.75  # share of the part's pixels whose colour agrees
    least_overlap: float = 0.80  # intersection over union of rendered and photographed silhouette
    most_sigma_deg: float = 0.5  # standard deviation of the turn by the normal equations
    least_part_share: float = 0.002  # of the image that the part covers


@dataclass(frozen=True)
class Located:
    """The camera of a photo, and how far to believe it."""

    camera: Camera  # at the photo's fitted size
    believed: bool
    reasons: tuple[str, ...]  # why not believed, in plain words; empty where believed
    inliers: float  # share of the part's pixels whose colour agrees, in [0, 1]
    overlap: float  # silhouettes' intersection over union, in [0, 1]
    sigma_deg: float  # standard deviation of the turn, degrees
    sigma_shift: float  # standard deviation of the shift, share of the distance
    agreement: float  # share of the carried hypotheses that ended at this camera, in [0, 1]
    nearest_view_deg: float  # angle to the nearest reference photo
    exposure: Exposure  # photo = gain * render + bias
    hypotheses: int  # tried
    seconds: Mapping[str, float]  # by stage


def difference_from_background(
    rgb: Float[Tensor, "height width rgb=3"],
    alpha: Float[Tensor, "height width"],
    background: Float[Tensor, "rgb=3"],
) -> Float[Tensor, "height width rgb=3"]:
    """The photo less its background, zero off the part."""
    return (rgb - background) * (alpha > 0.02).to(rgb.dtype)[..., None]


def locate(
    reference: Reference,
    index: PoseIndex,
    levels: SplatLevels,
    rgb: Float[Tensor, "height width rgb=3"],
    alpha: Float[Tensor, "height width"],
    lens: Camera,
    *,
    background: Float[Tensor, "rgb=3"] | None = None,
    config: LocateConfig | None = None,
    limits: BeliefLimits | None = None,
) -> Located | None:
    """The camera that took `rgb` (over the reference's background), None where the photo shows nothing.

    `alpha` is the part's share of each pixel as far as known (ones: not known), `lens` the photo's intrinsics at its
    size. The result depends on the photo and the reference alone.
    """
    config, limits = config or LocateConfig(), limits or BeliefLimits()
    background = reference.background if background is None else background
    started = time.perf_counter()
    height, width = alpha.shape
    if float((alpha > 0.5).float().mean()) < limits.least_part_share:
        return None
    small_width, small_height = fit_within(width, height, RENDER_PX)
    small_rgb, small_alpha = (
        resize(rgb, small_width, small_height),
        _resize_plane(alpha, small_width, small_height),
    )
    hypotheses = coarse_cameras(
        index,
        difference_from_background(small_rgb, small_alpha, background),
        small_alpha,
        lens.resized(small_width, small_height),
        most=config.hypotheses,
    )
    if not hypotheses:
        return None
    pyramid = photo_pyramid(rgb, LEVELS_PX if max(width, height) > 200 else LEVELS_PX[:3])
    after_coarse = time.perf_counter()
    pivot = reference.volume.centre

    def refine(camera: Camera, stages: tuple[PhotoLevel, ...], last_round: bool) -> Refined:
        return refine_levenberg(
            levels,
            stages,
            camera,
            background,
            pivot,
            reference.options,
            config.levenberg,
            last_round=last_round,
        )

    if config.refine != "levenberg":
        adam = SPLATPOSE if config.refine == "splatpose" else AdamConfig()
        best = refine_adam(
            levels, pyramid[-1], hypotheses[0].camera, background, pivot, reference.options, adam
        )
        times = {"coarse pose": after_coarse - started, "fine pose": time.perf_counter() - after_coarse}
        camera = best.camera.resized(width, height)
        return _judged(reference, rgb, alpha, camera, best, 1.0, 1, background, limits, times)

    # All hypotheses at the coarsest size, the best few distinct ones at the next, the best one to the end. A runner-up
    # is followed too where the two are hard to tell apart.
    coarsest = sorted((refine(h.camera, pyramid[:1], False) for h in hypotheses), key=lambda r: r.cost)
    distinct = _distinct([r for r in coarsest if r.cost < 3.0 * coarsest[0].cost], config.carried)
    if len(pyramid) > 1:
        middle = sorted((refine(r.camera, pyramid[1:2], False) for r in distinct), key=lambda r: r.cost)
    else:
        middle = distinct
    agreement = sum(_angle_deg(r.camera, middle[0].camera) < AGREE_DEG for r in middle) / len(middle)
    finalists = [middle[0]] + [
        r
        for r in middle[1:]
        if r.cost < 1.5 * middle[0].cost and _angle_deg(r.camera, middle[0].camera) >= AGREE_DEG
    ]
    if len(pyramid) > 2:
        finalists = sorted((refine(r.camera, pyramid[2:3], False) for r in finalists), key=lambda r: r.cost)
    best = refine(finalists[0].camera, pyramid[3:] or pyramid[-1:], True)
    after_fine = time.perf_counter()
    camera = best.camera.resized(width, height)
    return _judged(
        reference, rgb, alpha, camera, best, agreement, len(hypotheses), background, limits,
        {"coarse pose": after_coarse - started, "fine pose": after_fine - after_coarse},
    )  # fmt: skip


def _judged(
    reference: Reference,
    rgb: Float[Tensor, "height width rgb=3"],
    alpha: Float[Tensor, "height width"],
    camera: Camera,
    best: Refined,
    agreement: float,
    tried: int,
    background: Float[Tensor, "rgb=3"],
    limits: BeliefLimits,
    seconds: Mapping[str, float],
) -> Located:
    with torch.no_grad():
        render = rasterize(reference.gaussians, camera, background, options=reference.options)
    exposure = best.exposure
    shown, covered = render.rgb.cpu(), render.alpha.cpu()
    shown = shown * shown.new_tensor(exposure.gain) + shown.new_tensor(exposure.bias)
    known = bool((alpha < 0.98).any())
    rendered = covered > 0.5
    photographed = alpha > 0.5 if known else rendered
    union = rendered | photographed
    count = max(1, int(union.sum()))
    overlap = int((rendered & photographed).sum()) / count
    norm = (shown - rgb).norm(dim=-1)
    inliers = int((union & (norm < INLIER_NORM)).sum()) / count
    sigma_deg, sigma_shift = _spread(best, float((camera.centre - reference.volume.centre).norm()))
    reasons = []
    if inliers < limits.least_inliers:
        reasons.append(
            f"only {inliers:.0%} of the part looks as it should from the best camera found (at least "
            f"{limits.least_inliers:.0%} is expected): another part, or a view that could not be found"
        )
    if overlap < limits.least_overlap:
        reasons.append(
            f"the part's outline agrees to {overlap:.0%} only (at least {limits.least_overlap:.0%} is expected)"
        )
    if not sigma_deg <= limits.most_sigma_deg:
        reasons.append(f"the camera's angle is uncertain by {sigma_deg:.2f} degrees")
    return Located(
        camera=camera,
        believed=not reasons,
        reasons=tuple(reasons),
        inliers=inliers,
        overlap=overlap,
        sigma_deg=sigma_deg,
        sigma_shift=sigma_shift,
        agreement=agreement,
        nearest_view_deg=reference.nearest_view_deg(camera),
        exposure=exposure,
        hypotheses=tried,
        seconds=seconds,
    )


def _spread(best: Refined, distance: float) -> tuple[float, float]:
    """Standard deviations of turn (degrees) and shift (share of the distance) by the normal matrix's inverse.

    The noise is the mean squared residual per channel at the end; neighbouring pixels are taken as independent.
    """
    pixels = 3 * best.camera.width * best.camera.height
    noise = max(best.normal.squared / pixels, 1e-8)
    eigenvalues = torch.linalg.eigvalsh(best.normal.hessian)
    if not bool(torch.isfinite(eigenvalues).all()) or float(eigenvalues[0]) <= 0:
        return math.inf, math.inf
    covariance = torch.linalg.inv(best.normal.hessian) * noise
    turn = math.degrees(math.sqrt(float(covariance[:3, :3].trace())))
    shift = math.sqrt(float(covariance[3:, 3:].trace())) / max(distance, 1e-9)
    return turn, shift


def _distinct(sorted_results: list[Refined], most: int) -> list[Refined]:
    """The first `most` cameras no two of which are the same."""
    chosen: list[Refined] = []
    for result in sorted_results:
        if all(_angle_deg(result.camera, other.camera) > 2 * AGREE_DEG for other in chosen):
            chosen.append(result)
        if len(chosen) >= most:
            break
    return chosen


def _angle_deg(a: Camera, b: Camera) -> float:
    relative = a.world_to_cam[:3, :3].double() @ b.world_to_cam[:3, :3].double().T
    return math.degrees(math.acos(max(-1.0, min(1.0, (float(relative.trace()) - 1.0) / 2.0))))


def _resize_plane(
    plane: Float[Tensor, "height width"], width: int, height: int
) -> Float[Tensor, "rows columns"]:
    return resize(plane[..., None].expand(-1, -1, 3).contiguous(), width, height)[..., 0]
