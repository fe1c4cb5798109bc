"""What good photos leave and what they score when each is inspected as if the reference had never seen it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from detect.anomaly_map import DifferenceDetector
from detect.comparer import START, Comparer, load_comparers
from detect.expected import FITTED_WEIGHT, ExpectedResidual, ResidualSums, expectation, residual_sums
from detect.train_comparer import HALVES, Example, TrainConfig, examples_of, train_halves
from pose.index import PoseIndex
from pose.locate import BeliefLimits, Located, locate
from pose.pyramid import SplatLevels
from pose.se3 import turn_deg
from prepare.errors import InputError
from recon.fit import Photo
from recon.gaussians import Gaussians
from recon.rasterize import RasterOptions, rasterize

ASTRAY_DEG = 2.0  # a found camera farther from the true one is a wrong one
NO_LIMITS = BeliefLimits(
    least_inliers=0.0, least_overlap=0.0, least_in_frame=0.0, most_sigma_deg=float("inf")
)


@dataclass(frozen=True)
class GoodPhotos:
    """Residual statistics of the reference's own photos, photo by photo."""

    total: ResidualSums
    own: tuple[ResidualSums, ...]  # each photo's share of `total`
    new: tuple[bool, ...]  # whether the photo was compared with splats that were fitted without it

    @property
    def expected(self) -> ExpectedResidual:
        return self.total.expected()

    def expected_without(self, i: int) -> ExpectedResidual:
        """What the others leave."""
        return self.total.plus(self.own[i], -1.0).expected()


@dataclass(frozen=True)
class GoodScores:
    """Of the good photos whose camera was found."""

    scores: tuple[float, ...]
    names: tuple[str, ...]
    located: tuple[Located, ...]
    angles_deg: tuple[float, ...]  # to the nearest photo that the judging splats were fitted to
    unfit: tuple[str, ...]  # names of the photos whose camera was not found


def look_at_good_photos(
    detector: DifferenceDetector,
    photos: Sequence[Photo],
    unseen: Sequence[Gaussians | None],
    on_photo: Callable[[int, int], object] | None = None,
) -> GoodPhotos:
    """The residuals of `photos`, those of the reference's views in their order.

    `unseen[i]` are splats of the part fitted without photo i, None where there are none. The statistics are carried by the
    reference's own splats all the same. `detector.expected` is not looked at.

    Raises: InputError without photos.
    """
    reference = detector.reference
    if not photos:
        raise InputError(f"reference {reference.name}: no photos; fit it again")
    total: ResidualSums | None = None
    own: list[ResidualSums] = []
    new = []
    for i, photo in enumerate(photos):
        new.append(unseen[i] is not None or reference.views[i].held_out)
        sums = residual_sums(reference, photo, detector.difference, unseen[i])
        if not new[-1]:
            sums = sums.plus(sums, FITTED_WEIGHT - 1.0)
        own.append(sums)
        total = sums if total is None else total.plus(sums)
        if on_photo is not None:
            on_photo(i + 1, len(photos))
    assert total is not None
    return GoodPhotos(total, tuple(own), tuple(new))


def halves_of(unseen: Sequence[Gaussians | None]) -> tuple[int, ...]:
    """Which half each photo belongs to: photos that one fit has not seen together stay together."""
    groups: dict[int, int] = {}
    for gaussians in unseen:
        groups.setdefault(id(gaussians), len(groups))
    return tuple(groups[id(gaussians)] % HALVES for gaussians in unseen)


def train_on_good_photos(
    detector: DifferenceDetector,
    photos: Sequence[Photo],
    unseen: Sequence[Gaussians | None],
    good: GoodPhotos,
    config: TrainConfig,
    on_photo: Callable[[int, int], object] | None = None,
    on_step: Callable[[int, int], object] | None = None,
) -> tuple[Comparer, ...]:
    """The networks of `detect.train_comparer` for this part; every photo needs splats that have not seen it."""
    reference = detector.reference
    done: list[int] = []

    def make(i: int) -> list[Example]:
        torch.set_num_threads(1)
        gaussians = unseen[i]
        assert gaussians is not None
        expected = expectation(reference, good.expected_without(i), photos[i].camera)
        made = examples_of(
            photos[i], gaussians, reference.options, expected, detector.difference, config.synthetic,
            config.seed * 1_000_003 + i,
        )  # fmt: skip
        done.append(i)
        if on_photo is not None:
            on_photo(len(done), len(photos))
        return made

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(2) as pool:
            examples = list(pool.map(make, range(len(photos))))
    finally:
        torch.set_num_threads(threads)
    (start,) = load_comparers(START)
    return train_halves(examples, halves_of(unseen), config, start, on_step)


@torch.no_grad()
def score_good_photos(
    detector: DifferenceDetector,
    index: PoseIndex,
    photos: Sequence[Photo],
    unseen: Sequence[Gaussians | None],
    good: GoodPhotos,
    on_photo: Callable[[int, int], object] | None = None,
) -> GoodScores:
    """Score and camera of each photo that some splats have not seen (of all, where there are none), as a query's.

    The camera is sought from the true one: the search among all sides ends there or fails, and a failure, or a camera
    more than ASTRAY_DEG off, gives no score.
    A photo's own residuals are taken out of the statistics first, and of the detector's networks, where it has any, only
    those judge that have not learned from it.
    """
    reference = detector.reference
    device = reference.gaussians.device
    options = RasterOptions(antialiased=reference.options.antialiased, depth=True)
    halves = halves_of(unseen)
    levels: dict[int, SplatLevels] = {}
    chosen = [i for i, new in enumerate(good.new) if new] or list(range(len(photos)))
    scores, names, located, angles, unfit = [], [], [], [], []
    for done, i in enumerate(chosen):
        photo = photos[i]
        fitted_without = unseen[i]
        gaussians = reference.gaussians if fitted_without is None else fitted_without.to(device)
        views = reference.views
        if fitted_without is not None:
            views = tuple(
                replace(view, held_out=unseen[j] is fitted_without) for j, view in enumerate(reference.views)
            )
        shown = replace(reference, gaussians=gaussians, views=views)
        key = id(fitted_without)
        if key not in levels:
            levels[key] = SplatLevels(gaussians)
        found = locate(
            shown, index, levels[key], photo.rgb, photo.alpha, photo.camera,
            background=photo.background, limits=NO_LIMITS, start=photo.camera,
        )  # fmt: skip
        # The true camera is known here: one that went astray says nothing of what good photos look like. At an inspection it
        # is the belief's to notice, by limits that only right cameras have set.
        if found is None or turn_deg(found.camera.world_to_cam, photo.camera.world_to_cam) > ASTRAY_DEG:
            unfit.append(photo.name)
        else:
            camera = found.camera.moved(found.camera.world_to_cam.to(device))
            render = rasterize(gaussians, camera, photo.background.to(device), options=options)
            others = tuple(one for half, one in enumerate(detector.comparers) if half != halves[i])
            judge = replace(detector, expected=good.expected_without(i), comparers=others)
            located.append(found)
            scores.append(
                judge.anomaly_map(photo.rgb.to(device), photo.alpha.to(device), render, camera).score
            )
            names.append(photo.name)
            angles.append(shown.nearest_view_deg(photo.camera))
        if on_photo is not None:
            on_photo(done + 1, len(chosen))
    return GoodScores(tuple(scores), tuple(names), tuple(located), tuple(angles), tuple(unfit))
