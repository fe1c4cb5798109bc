"""The camera of a photo: rough hypotheses, refined together, the best one to the end, and whether to believe it."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from pose.coarse import Hypothesis, coarse_cameras
from pose.index import RENDER_PX, PoseIndex
from pose.inner_edges import PhotoEdges, Support, shape_edges, support
from pose.keypoints import extractor
from pose.landmarks import LANDMARK_PX, Landmarks
from pose.matching import match, pnp_cameras
from pose.pyramid import PhotoLevel, SplatLevels, photo_pyramid
from pose.refine_adam import SPLATPOSE, AdamConfig, refine_adam
from pose.refine_gauss_newton import LevenbergConfig, Refined, exposure_prior, refine_levenberg
from pose.residual import Exposure
from pose.se3 import turn_deg
from prepare.camera import Camera, fit_within
from prepare.image import resize
from recon.gaussians import Gaussians
from recon.rasterize import RasterOptions, rasterize
from recon.reference import Reference

INLIER_NORM = 0.15  # residual norm over rgb up to which a pixel agrees
SAME_DEG = 1.0  # refined hypotheses nearer than this are the same camera
OTHER_DEG = 5.0  # cameras further apart than this are different answers
# A different camera whose cost is within this factor of the best's explains the photo as well.
AMBIGUOUS = 1.15
OUTLINE_ALIKE = 3.0  # likewise where outlines alone were compared and inner edges decide
TIED = 1.1  # likewise where a part looks nearly the same from several sides
MOST_TIED = 8  # of which so many are followed
ACROSS = 0.05  # cosine of axes at right angles
MOST_TURNED = 23  # sides tried by what is known of the part's symmetry
LEAST_COST = 1e-5  # mean robust loss a pixel below which differences mean nothing
UNSETTLED_COST = 2e-4  # likewise before a camera has settled
CERTAIN = 0.99  # belief that the worst good photo held out gets by each measure (`calibrate_belief`)


@dataclass(frozen=True)
class LocateConfig:
    """How the camera is sought; what is solved along with it stands in `levenberg`."""

    hypotheses: int = 12
    """Rough cameras tried at the coarsest size."""
    levenberg: LevenbergConfig = field(default_factory=LevenbergConfig)
    """The second-order refinement."""
    refine: Literal["levenberg", "adam", "splatpose"] = "levenberg"
    """levenberg; or, to compare with, Adam at full size from the best rough camera: ours, or SplatPose's recipe."""


@dataclass(frozen=True)
class BeliefLimits:
    """What a believable camera must show; from held-out good photos (`calibrate_belief`), else these defaults.

    A measure at its limit gives a belief of 0.5, one `..._scale` above it 0.73 (a logistic curve).
    """

    least_inliers: float = 0.75  # share of the part's pixels whose colour agrees
    least_overlap: float = 0.80  # intersection over union of rendered and photographed silhouette
    least_in_frame: float = 0.65  # share of the part's silhouette that lies within the photo
    most_sigma_deg: float = 0.5  # standard deviation of the turn by the normal equations
    least_part_share: float = 0.002  # of the image that the part covers
    inliers_scale: float = 0.04
    overlap_scale: float = 0.025


@dataclass(frozen=True)
class Located:
    """The camera of a photo, and how far to believe it."""

    camera: Camera  # at the photo's fitted size
    believed: bool  # belief of at least one half
    belief: float  # how likely this is the camera, in [0, 1]: the least of what the measures below say
    reasons: tuple[str, ...]  # why not believed, in plain words; empty where believed
    inliers: float  # share of the part's pixels whose colour agrees, in [0, 1]
    overlap: float  # silhouettes' intersection over union, in [0, 1]
    in_frame: float  # share of the part's silhouette that lies within the photo, in [0, 1]
    sigma_deg: float  # standard deviation of the turn, degrees
    sigma_shift: float  # standard deviation of the shift, share of the distance
    agreement: float  # share of the carried hypotheses that ended at this camera, in [0, 1]
    nearest_view_deg: float  # angle to the nearest reference photo
    alternatives: tuple[Camera, ...]  # cameras on other sides of the part from which it looks the same
    ambiguity: str  # what of the camera the photo leaves open, in plain words; empty where nothing
    exposure: Exposure  # photo = gain * render + bias, on the part
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
    landmarks: Landmarks | None = None,
    start: Camera | None = None,
    inner: PhotoEdges | None = None,
    towards: Sequence[Float[Tensor, "xyz=3"]] = (),
) -> Located | None:
    """The camera that took `rgb` (over the reference's background), None where the photo shows nothing.

    `alpha` is the part's share of each pixel as far as known (ones: not known), `lens` the photo's intrinsics at its
    size. Rough cameras come from the index of small renders and, where there are `landmarks`, from matched features
    too; a `start` within a few degrees of the truth, where it is given, is the only one. A camera that is not believed
    is sought a second time, from larger photos on. Where `rgb` is an outline alone, the photo's `inner` edges decide
    between cameras that it does not tell apart, and a camera whose inner edges the photo does not show is sought a second
    time too. `towards` are directions from the part's centre (world) in which other evidence, such as votes of matched
    features, has the camera: rough cameras of those sides are tried too. The result depends on these and the photo alone.
    """
    config, limits = config or LocateConfig(), limits or BeliefLimits()
    background = reference.background if background is None else background
    started = time.perf_counter()
    if start is not None:
        cameras = [start]
    else:
        sides = viewed_from(index, reference.volume.centre, towards)
        hypotheses = rough_cameras(index, rgb, alpha, lens, background, limits, config.hypotheses, sides)
        if not hypotheses:
            return None
        cameras = [hypothesis.camera for hypothesis in hypotheses]
        if landmarks is not None:
            cameras = _matched_cameras(landmarks, rgb, alpha, lens) + cameras
    pyramid = photo_pyramid(rgb)
    after_coarse = time.perf_counter()
    judge = _Judge(reference, levels, rgb, alpha, background, limits)
    if config.refine == "levenberg":
        search = _Search(reference, levels, pyramid, background, config, inner)
        outcome = search.from_afar(cameras) if start is None else search.from_near(cameras)
        located = judge.judged(outcome, len(cameras))
        if start is None and not (located.believed and search.shows_edges(outcome.best)):
            second = search.from_near(cameras)
            if search.is_better(second.best, outcome.best):
                located = judge.judged(second, len(cameras))
    else:
        adam = SPLATPOSE if config.refine == "splatpose" else AdamConfig()
        best = refine_adam(
            levels, pyramid[-1], cameras[0], background, reference.volume.centre, reference.options, adam
        )  # fmt: skip
        located = judge.judged(_Outcome(best, 1.0, []), 1)
    seconds = {
        "coarse pose": after_coarse - started,
        "fine pose": time.perf_counter() - after_coarse,
    }
    return replace(located, seconds=seconds)


def rough_cameras(
    index: PoseIndex,
    rgb: Float[Tensor, "height width rgb=3"],
    alpha: Float[Tensor, "height width"],
    lens: Camera,
    background: Float[Tensor, "rgb=3"],
    limits: BeliefLimits,
    most: int = 12,
    sides: Sequence[int] = (),
) -> tuple[Hypothesis, ...]:
    """At most `most` rough cameras from the index, best first, and those of its rows `sides`; none where the photo shows no part.
    See `locate`."""
    if float((alpha > 0.5).float().mean()) < limits.least_part_share:
        return ()
    height, width = alpha.shape
    width, height = fit_within(width, height, RENDER_PX)
    small_rgb, small_alpha = resize(rgb, width, height), _resize_plane(alpha, width, height)
    difference = difference_from_background(small_rgb, small_alpha, background)
    return coarse_cameras(index, difference, small_alpha, lens.resized(width, height), most=most, sides=sides)


def viewed_from(
    index: PoseIndex, centre: Float[Tensor, "xyz=3"], towards: Sequence[Float[Tensor, "xyz=3"]]
) -> list[int]:
    """The rows of the index whose cameras see `centre` from nearest to each of these directions (world), each row once."""
    poses = index.world_to_cam
    cameras = -(poses[:, :3, :3].transpose(1, 2) @ poses[:, :3, 3:])[..., 0] - centre
    cameras = torch.nn.functional.normalize(cameras, dim=1)
    return list(dict.fromkeys(int((cameras @ side.to(cameras)).argmax()) for side in towards))


def _matched_cameras(
    landmarks: Landmarks,
    rgb: Float[Tensor, "height width rgb=3"],
    alpha: Float[Tensor, "height width"],
    lens: Camera,
) -> list[Camera]:
    """Cameras by PnP from features of the photo that match those of the part; none where too few do."""
    width, height = fit_within(lens.width, lens.height, LANDMARK_PX)
    small, mask = resize(rgb, width, height), _resize_plane(alpha, width, height) > 0.5
    keypoints = extractor(landmarks.extractor).extract(small, mask)
    matches = match(keypoints, landmarks, ratio=1.0)
    found = pnp_cameras(keypoints, landmarks, matches, lens.resized(width, height))
    return [result.camera for result in found]


@dataclass(frozen=True)
class _Outcome:
    """Where a search ended."""

    best: Refined  # at the finest level
    agreed: float  # share of the cameras carried that ended at the best
    alternatives: list[Refined]  # as good, on other sides of the part


class _Search:
    """From rough cameras to the one that matches best."""

    def __init__(
        self,
        reference: Reference,
        levels: SplatLevels,
        pyramid: tuple[PhotoLevel, ...],
        background: Float[Tensor, "rgb=3"],
        config: LocateConfig,
        inner: PhotoEdges | None = None,
    ) -> None:
        self.reference, self.levels, self.pyramid = reference, levels, pyramid
        self.background, self.inner = background, inner
        self.config = config.levenberg

    def refine(
        self, camera: Camera, rank: int, most: int, start: Exposure | None = None, *, last_round: bool = False
    ) -> Refined:
        """`camera` after at most `most` steps at level `rank` (the finest where there are fewer)."""
        rank = min(rank, len(self.pyramid) - 1)
        config = self.config
        if most:
            config = replace(config, iterations=tuple(min(most, n) for n in config.iterations))
        return refine_levenberg(
            self.levels, self.pyramid[rank : rank + 1], camera, self.background, self.reference.volume.centre,
            self.reference.options, config, last_round=last_round, exposure=start,
        )  # fmt: skip

    def from_afar(self, cameras: list[Camera]) -> _Outcome:
        """All of `cameras` a few steps at 50 px, fewer and fewer further up."""
        tried = [self.refine(camera, 0, 3) for camera in cameras]
        carried = [self.refine(r.camera, 0, 6, r.exposure) for r in _leading(tried, 2.0, 5)]
        carried = [self.refine(r.camera, 1, 5, r.exposure) for r in _leading(carried, 1.6, 4)]
        carried.sort(key=_cost)
        finalists = [self.refine(r.camera, 1, 0, r.exposure) for r in _leading(carried, 1.4, 3)]
        return self._decided(
            [self.refine(r.camera, 2, 0, r.exposure) for r in _leading(finalists, 1.2, 3)], carried
        )

    def from_near(self, cameras: list[Camera]) -> _Outcome:
        """All of `cameras` at 200 px at once, where what repeats on the part (fins, teeth) is not yet one grey.

        Smaller photos of such a part fit best a few degrees off, and from there no level further up comes back. Costs
        some two and a half times `from_afar`.
        """
        carried = [self.refine(camera, 2, 6) for camera in cameras]
        carried.sort(key=_cost)
        return self._decided(
            [self.refine(r.camera, 2, 0, r.exposure) for r in _leading(carried, 1.4, 3)], carried
        )

    def _decided(self, finalists: list[Refined], carried: list[Refined]) -> _Outcome:
        """The best of `finalists` to the end; `carried`: those they were taken from, best first."""
        agreed = sum(
            turn_deg(r.camera.world_to_cam, carried[0].camera.world_to_cam) < SAME_DEG for r in carried
        ) / len(carried)
        finalists = sorted(finalists, key=_cost)
        if self.inner is not None and len(finalists) > 1:
            finalists = self._by_inner_edges(finalists)
        alike = self._alike(finalists)
        if alike and self.inner is None:
            cameras = _turned([r.camera for r in (finalists[0], *alike)], self.reference.volume.centre)
            turned = [self.refine(camera, 1, 0, finalists[0].exposure) for camera in cameras]
            if turned:
                turned = [self.refine(r.camera, 2, 0, r.exposure) for r in _leading(turned, 1.4, 3)]
            finalists = _distinct(sorted([finalists[0], *alike, *turned], key=_cost), 2 * MOST_TIED)
            alike = self._alike(finalists)[:MOST_TIED]
        best, *rivals = [
            self.refine(r.camera, 3, 0, r.exposure, last_round=True) for r in (finalists[0], *alike)
        ]
        if self.inner is not None:  # the edges have decided, finer outlines say no more
            return _Outcome(best, agreed, rivals)
        # What sets a nearly symmetric part's sides apart may be too small for the sizes before the last.
        best, *rivals = sorted((best, *rivals), key=_cost)
        alike = [r for r in rivals if r.cost < AMBIGUOUS * best.cost + LEAST_COST]
        return _Outcome(best, agreed, alike)

    def _alike(self, finalists: list[Refined]) -> list[Refined]:
        """Of `finalists`, best first, those on other sides than the first that explain the photo as well."""
        return [
            r
            for r in finalists[1:]
            if r.cost < AMBIGUOUS * finalists[0].cost + LEAST_COST
            and turn_deg(r.camera.world_to_cam, finalists[0].camera.world_to_cam) >= OTHER_DEG
        ]

    def _by_inner_edges(self, finalists: list[Refined]) -> list[Refined]:
        """Of `finalists`, best outline first: the one whose edges the photo shows best, then those that it shows as well."""
        supports = [
            (r, self._support(r))
            for r in finalists
            if r.cost < OUTLINE_ALIKE * finalists[0].cost + LEAST_COST
        ]
        first, most = supports[0]
        for r, shown in supports[1:]:
            if shown.exceeds(most):
                first, most = r, shown
        return [first, *(r for r, shown in supports if r is not first and not most.exceeds(shown))]

    def _support(self, result: Refined) -> Support:
        assert self.inner is not None
        reference = self.reference
        edges = shape_edges(
            reference.gaussians, result.camera, reference.options, reference.volume.half_size, self.inner.within
        )  # fmt: skip
        return support(edges, self.inner)

    def shows_edges(self, result: Refined) -> bool:
        """Whether the photo shows the shape's inner edges, as far as these are asked for."""
        return self.inner is None or self._support(result).seen

    def is_better(self, result: Refined, other: Refined) -> bool:
        """Whether a second search's `result` replaces the first's."""
        if self.inner is None:
            return result.cost < other.cost - LEAST_COST
        return self._by_inner_edges(sorted([other, result], key=_cost))[0] is result


def agreement(
    gaussians: Gaussians,
    camera: Camera,
    exposure: Exposure,
    rgb: Float[Tensor, "height width rgb=3"],
    alpha: Float[Tensor, "height width"],
    background: Float[Tensor, "rgb=3"],
    options: RasterOptions,
) -> tuple[float, float]:
    """Of the pixels that show the part in photo or render: the share whose colour agrees, and the share in both.

    A photo over clutter has a part share `alpha` of 1 everywhere: then only what is rendered counts.
    """
    with torch.no_grad():
        render = rasterize(gaussians, camera, exposure.behind(background), options=options)
    rendered = render.alpha.cpu() > 0.5
    photographed = alpha > 0.5 if bool((alpha < 0.98).any()) else rendered
    union = rendered | photographed
    count = max(1, int(union.sum()))
    agreeing = (exposure.applied(render.rgb.cpu()) - rgb).norm(dim=-1) < INLIER_NORM
    return int((union & agreeing).sum()) / count, int((rendered & photographed).sum()) / count


class _Judge:
    """What speaks for a camera, and whether that is enough."""

    def __init__(
        self,
        reference: Reference,
        levels: SplatLevels,
        rgb: Float[Tensor, "height width rgb=3"],
        alpha: Float[Tensor, "height width"],
        background: Float[Tensor, "rgb=3"],
        limits: BeliefLimits,
    ) -> None:
        self.reference, self.levels, self.limits = reference, levels, limits
        self.rgb, self.alpha, self.background = rgb, alpha, background

    def agreeing(self, camera: Camera, exposure: Exposure) -> tuple[float, float]:
        """Inliers and overlap at the photo's size."""
        reference = self.reference
        return agreement(
            reference.gaussians, camera, exposure, self.rgb, self.alpha, self.background, reference.options
        )

    def in_frame(self, camera: Camera) -> float:
        """Share of the part's silhouette within the photo, by a small render with a margin as wide as the photo."""
        small = camera.resized(*fit_within(camera.width, camera.height, RENDER_PX))
        width, height = small.width, small.height
        wide = replace(small, cx=small.cx + width, cy=small.cy + height, width=3 * width, height=3 * height)
        with torch.no_grad():
            black = torch.zeros_like(self.background)
            alpha = rasterize(self.levels.at(50), wide, black, options=self.reference.options).alpha
        total = float(alpha.sum())
        return float(alpha[height : 2 * height, width : 2 * width].sum()) / total if total > 1e-6 else 0.0

    def judged(self, outcome: _Outcome, tried: int) -> Located:
        """`outcome` of `tried` rough cameras; without the seconds."""
        reference, limits = self.reference, self.limits
        best, alternatives = outcome.best, outcome.alternatives
        height, width = self.alpha.shape
        camera = best.camera.resized(width, height)
        inliers, overlap = self.agreeing(camera, best.exposure)
        in_frame = self.in_frame(camera)
        sigma_deg, sigma_shift, free_axis = _spread(
            best, float((camera.centre - reference.volume.centre).norm())
        )
        beliefs, reasons = [], []
        for value, limit, scale, reason in (
            (
                inliers, limits.least_inliers, limits.inliers_scale,
                f"only {inliers:.0%} of the part looks as it should from the best camera found (at least "
                f"{limits.least_inliers:.0%} is expected): another part, or a view that could not be found",
            ),
            (
                overlap, limits.least_overlap, limits.overlap_scale,
                f"the part's outline agrees to {overlap:.0%} only (at least {limits.least_overlap:.0%} is expected)",
            ),
            (
                in_frame, limits.least_in_frame, 0.03,
                f"only {in_frame:.0%} of the part is within the photo (at least {limits.least_in_frame:.0%} is needed)",
            ),
        ):  # fmt: skip
            beliefs.append(_logistic((value - limit) / max(scale, 1e-6)))
            if value < limit:
                reasons.append(reason)
        ambiguity = ""
        if not sigma_deg <= limits.most_sigma_deg:
            if not reasons and free_axis is not None:
                ambiguity = (
                    f"the part looks the same however it is turned about the axis {_rounded(free_axis)} of the "
                    "reference's frame: that angle is not known"
                )
            else:
                reasons.append(f"the camera's angle is uncertain by {sigma_deg:.2f} degrees")
                # Infinite where the normal equations are singular.
                known = math.isfinite(sigma_deg)
                beliefs.append(_logistic(4.0 * math.log(limits.most_sigma_deg / sigma_deg)) if known else 0.0)
        if alternatives and not reasons:
            ambiguity = f"the part looks the same from {len(alternatives) + 1} sides: which of them the photo shows is not known"
        return Located(
            camera=camera,
            believed=not reasons,
            belief=min(beliefs),
            reasons=tuple(reasons),
            inliers=inliers,
            overlap=overlap,
            in_frame=in_frame,
            sigma_deg=sigma_deg,
            sigma_shift=sigma_shift,
            agreement=outcome.agreed,
            nearest_view_deg=reference.nearest_view_deg(camera),
            alternatives=tuple(r.camera.resized(width, height) for r in alternatives if not reasons),
            ambiguity=ambiguity,
            exposure=best.exposure,
            hypotheses=tried,
            seconds={},
        )


def _spread(best: Refined, distance: float) -> tuple[float, float, Float[Tensor, "xyz=3"] | None]:
    """Standard deviations of turn (degrees) and shift (share of the distance) by the normal matrix's inverse.

    The noise is the mean squared residual per channel at the end; neighbouring pixels are taken as independent. Exposure
    and focal length are unknowns too, so what they leave open counts. Third: the world axis about which alone the part
    may be turned freely, where the turn is open about one axis only.
    """
    pixels = 3 * best.camera.width * best.camera.height
    noise = max(best.normal.squared / pixels, 1e-8)
    hessian = best.normal.hessian.clone()
    hessian.diagonal()[-6:] += torch.from_numpy(exposure_prior(best.normal))
    eigenvalues = torch.linalg.eigvalsh(hessian)
    if not bool(torch.isfinite(eigenvalues).all()) or float(eigenvalues[0]) <= 0:
        return math.inf, math.inf, None
    covariance = torch.linalg.inv(hessian) * noise
    turn = math.degrees(math.sqrt(float(covariance[:3, :3].trace())))
    shift = math.sqrt(float(covariance[3:6, 3:6].trace())) / max(distance, 1e-9)
    spreads, axes = torch.linalg.eigh(covariance[:3, :3])
    free = None
    if float(spreads[2]) > 100.0 * float(spreads[1]):
        free = best.camera.world_to_cam[:3, :3].T.double() @ axes[:, 2]
    return turn, shift, free


def _cost(result: Refined) -> float:
    return result.cost


def _leading(results: list[Refined], factor: float, most: int) -> list[Refined]:
    """The `most` different cameras whose cost is within `factor` of the least, best first; more where they tie."""
    ordered = sorted(results, key=_cost)
    different = _distinct(
        [r for r in ordered if r.cost <= factor * ordered[0].cost + UNSETTLED_COST], MOST_TIED
    )
    return [r for i, r in enumerate(different) if i < most or r.cost <= TIED * ordered[0].cost + LEAST_COST]


def _turned(alike: list[Camera], centre: Float[Tensor, "xyz=3"]) -> list[Camera]:
    """Further cameras from which the part should look the same, by what takes those of `alike` to one another.

    A part that looks the same from cameras A and B is, to the eye, turned into itself by A^-1 B: so it looks the same
    from C A^-1 B too. Where two of these turns have axes at right angles (or one and an axis of the world, along which CAD
    files draw), the 24 turns of a box about the part's `centre` are tried too. Rough cameras seldom hold all sides of such
    a part.
    """
    poses = [camera.world_to_cam.double() for camera in alike]
    turns = [torch.linalg.inv(first) @ second for first, second in itertools.permutations(poses, 2)]
    axes = [_axis(turn[:3, :3]) for turn in turns]
    across = [(a, b) for a, b in itertools.combinations(axes, 2) if abs(float(a @ b)) < ACROSS]
    world = torch.eye(3, dtype=torch.float64)
    across += [(a, b) for a, b in itertools.product(axes, world) if abs(float(a @ b)) < ACROSS]
    if across:
        first = across[0][0]
        third = torch.nn.functional.normalize(torch.linalg.cross(first, across[0][1]), dim=0)
        frame = torch.stack([first, torch.linalg.cross(third, first), third])
        for order in itertools.permutations(range(3)):
            for signs in itertools.product((1.0, -1.0), repeat=3):
                box = torch.zeros(3, 3, dtype=torch.float64)
                box[range(3), order] = torch.tensor(signs, dtype=torch.float64)
                if float(torch.linalg.det(box)) > 0:
                    turn = torch.eye(4, dtype=torch.float64)
                    turn[:3, :3] = frame.T @ box @ frame
                    turn[:3, 3] = centre.double() - turn[:3, :3] @ centre.double()
                    turns.append(turn)
    found: list[Camera] = []
    for pose in (third @ turn for third in poses for turn in turns):
        known = (camera.world_to_cam.double() for camera in (*alike, *found))
        if all(turn_deg(pose, other) >= OTHER_DEG for other in known):
            found.append(alike[0].moved(pose.to(alike[0].world_to_cam.dtype)))
            if len(found) == MOST_TURNED:
                break
    return found


def _axis(turn: Float[Tensor, "3 3"]) -> Float[Tensor, "xyz=3"]:
    """The unit axis of a rotation matrix: its eigenvector of eigenvalue one."""
    return torch.linalg.svd(turn - torch.eye(3, dtype=turn.dtype)).Vh[2]


def _logistic(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x > -500 else 0.0


def _rounded(axis: Float[Tensor, "xyz=3"]) -> str:
    return "(" + ", ".join(f"{value:.2f}" for value in axis.tolist()) + ")"


def _distinct(sorted_results: list[Refined], most: int) -> list[Refined]:
    """The first `most` cameras no two of which are the same."""
    chosen: list[Refined] = []
    for result in sorted_results:
        if all(
            turn_deg(result.camera.world_to_cam, other.camera.world_to_cam) > 2 * SAME_DEG for other in chosen
        ):
            chosen.append(result)
        if len(chosen) >= most:
            break
    return chosen


def _resize_plane(
    plane: Float[Tensor, "height width"], width: int, height: int
) -> Float[Tensor, "rows columns"]:
    return resize(plane[..., None].expand(-1, -1, 3).contiguous(), width, height)[..., 0]
