"""Which part a photo shows: the references of a workspace ranked by cheap evidence, the likeliest ones located in full.

Evidence of a reference is its fit: the share of the part's pixels that agree in colour, times the silhouettes' overlap,
each over the least that the reference's own held-out good photos must reach. So about 1 is where belief begins for every
reference, and one that is dark, plain or badly fitted gains nothing by it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from detect.verdict import Verdict
from pose.coarse import Hypothesis
from pose.locate import BeliefLimits, Located, agreement, rough_cameras
from pose.pyramid import PhotoLevel, photo_pyramid
from pose.refine_gauss_newton import Refined, refine_levenberg
from pose.residual import Exposure
from prepare.camera import Camera
from prepare.errors import InputError
from prepare.image import resize
from prepare.scene import ViewImage
from splatad.finder import over_background
from splatad.inspector import Inspection, Inspector
from splatad.lens import QueryLens

SMALL_PX = (50, 100)  # sizes at which references are compared
COMPARED = 4  # references compared at first, by the similarity of their rough views
REFINED_VIEWS = 4  # rough views of each that are refined at first
# small evidence at which a reference is the right one as good as surely; below, all are compared
CLEAR = 0.85
CLOSE = 0.8  # share of the best small evidence from which on a reference is located in full too
PLAUSIBLE = 0.5  # least small evidence for that; the best reference is always located
MOST_LOCATED = 3  # references located in full at most


@dataclass(frozen=True)
class Candidate:
    """How well a reference explains a photo."""

    name: str
    evidence: float  # fit over what its own good photos must reach, >= 0; about 1 and more is believable
    located: bool  # the evidence is of the full camera search, not of a small image


@dataclass(frozen=True)
class Identified:
    """Which part a photo shows."""

    name: str | None  # the reference; None: none of them
    nearest: (
        str | None
    )  # the reference that `inspection` was made against; None where there is no part in the photo
    inspection: Inspection  # CANNOT TELL where no reference is believed
    # Best first: the believed ones, others located in full, those compared small. Empty where no part is in the photo.
    candidates: tuple[Candidate, ...]


class Identifier:
    """Tells which of several references a photo shows. The references stay loaded, some 30 MB each.

    A photo's result depends on the photo and on which references there are: not on their order, nor on other photos.
    """

    def __init__(self, inspectors: Mapping[str, Inspector]) -> None:
        """`inspectors` by the references' names, at least one."""
        assert inspectors
        self.inspectors = {name: inspectors[name] for name in sorted(inspectors)}

    def identify(self, path: Path) -> Identified:
        """The part that the photo in `path` shows, and its inspection against that part's reference.

        Raises: InputError for a file that is no readable photo, or whose lens suits no reference (`--lens reference`).
        """
        started = time.perf_counter()
        photos = self._read(path)
        after_read = time.perf_counter()
        seconds = {"read": after_read - started}
        similar = {name: _rough_views(self.inspectors[name], *photo) for name, photo in photos.items()}
        ranked = sorted(
            (n for n, views in similar.items() if views), key=lambda n: (-similar[n][0].similarity, n)
        )
        small = self._compared_small(photos, similar, ranked)
        found: dict[str, Located] = {}
        for candidate in small[:MOST_LOCATED]:
            if found and candidate.evidence < max(PLAUSIBLE, CLOSE * small[0].evidence):
                break
            result = self.inspectors[candidate.name].locate(*photos[candidate.name])
            if result is not None:
                found[candidate.name] = result
        if not found:
            name, (image, lens) = next(iter(photos.items()))
            inspection = self.inspectors[name].judge(path.name, image, None, seconds, lens)
            return Identified(None, None, inspection, ())
        full = sorted(
            (
                Candidate(name, _evidence(located.inliers, located.overlap, self._limits(name)), True)
                for name, located in found.items()
            ),
            key=lambda candidate: (not found[candidate.name].believed, *_order(candidate)),
        )
        nearest = full[0].name
        located = found[nearest]
        # The other references' searches count here, the named one's under its own stages.
        seconds["which part"] = time.perf_counter() - after_read - sum(located.seconds.values())
        inspection = self.inspectors[nearest].judge(
            path.name, photos[nearest][0], located, seconds, photos[nearest][1]
        )
        candidates = (*full, *(candidate for candidate in small if candidate.name not in found))
        if located.believed:
            return Identified(nearest, nearest, inspection, candidates)
        first, *more = located.reasons
        reason = f"none of the {len(self.inspectors)} references: the nearest is {nearest}, but {first}"
        return Identified(
            None, nearest, replace(inspection, verdict=Verdict("CANNOT TELL", (reason, *more))), candidates
        )

    def _compared_small(
        self,
        photos: Mapping[str, tuple[ViewImage, QueryLens]],
        similar: Mapping[str, tuple[Hypothesis, ...]],
        ranked: list[str],
    ) -> list[Candidate]:
        """References with their evidence at SMALL_PX, best first: the most similar ones, or all where none is clear."""

        def evidence(name: str, views: slice) -> float:
            return _small_evidence(self.inspectors[name], *photos[name], similar[name][views])

        def in_order() -> list[Candidate]:
            return sorted((Candidate(name, value, False) for name, value in values.items()), key=_order)

        values = {name: evidence(name, slice(REFINED_VIEWS)) for name in ranked[:COMPARED]}
        if max(values.values(), default=0.0) < CLEAR:
            values |= {name: evidence(name, slice(REFINED_VIEWS)) for name in ranked[COMPARED:]}
        if max(values.values(), default=0.0) < CLEAR:
            for candidate in in_order()[:COMPARED]:
                again = evidence(candidate.name, slice(REFINED_VIEWS, None))
                values[candidate.name] = max(candidate.evidence, again)
        return in_order()

    def _limits(self, name: str) -> BeliefLimits:
        return self.inspectors[name].loaded.calibration.belief

    def _read(self, path: Path) -> dict[str, tuple[ViewImage, QueryLens]]:
        """The photo as each reference takes it, decoded once for all that want the same of it."""
        lenses: dict[str, QueryLens] = {}
        refused: InputError | None = None
        for name, inspector in self.inspectors.items():
            try:
                lenses[name] = inspector.lens(path)
            except InputError as error:  # of another shape than this reference's photos, if not unreadable
                refused = refused or error
        if refused is not None and not lenses:
            raise refused
        decoded: dict[object, ViewImage] = {}
        photos = {}
        for name, lens in lenses.items():
            size_px = self.inspectors[name].loaded.reference.size_px
            straight = lens.distortion is None or lens.distortion.is_trivial
            c = lens.camera
            key = size_px if straight else (size_px, lens.distortion, c.fl_x, c.fl_y, c.cx, c.cy)
            if key not in decoded:
                decoded[key] = self.inspectors[name].finder.decode(path, lens)
            image = decoded[key]
            height, width = image.alpha.shape
            own = replace(image, camera=c.resized(width, height))
            photos[name] = (self.inspectors[name].cut_out(own, lens), lens)
        return photos


def _rough_views(inspector: Inspector, image: ViewImage, lens: QueryLens) -> tuple[Hypothesis, ...]:
    """The reference's rough cameras for the photo, best first; none where the photo shows no part."""
    loaded = inspector.loaded
    background = loaded.reference.background
    height, width = image.alpha.shape
    return rough_cameras(
        loaded.index,
        over_background(image, background),
        image.alpha,
        lens.camera.resized(width, height),
        background,
        loaded.calibration.belief,
    )


def _small_evidence(
    inspector: Inspector, image: ViewImage, lens: QueryLens, views: tuple[Hypothesis, ...]
) -> float:
    """The reference's evidence by the photo at SMALL_PX, from the best of `views`; 0 without any."""
    if not views:
        return 0.0
    loaded = inspector.loaded
    reference = loaded.reference
    photo = over_background(image, reference.background)
    pyramid = photo_pyramid(photo, SMALL_PX)
    levenberg = inspector.finder.config_for(lens).levenberg

    def refined(camera: Camera, level: PhotoLevel, exposure: Exposure | None) -> Refined:
        return refine_levenberg(
            loaded.levels,
            (level,),
            camera,
            reference.background,
            reference.volume.centre,
            reference.options,
            levenberg,
            last_round=False,
            exposure=exposure,
        )

    best = min((refined(view.camera, pyramid[0], None) for view in views), key=lambda r: r.cost)
    level = pyramid[-1]
    if len(pyramid) > 1:
        best = refined(best.camera, level, best.exposure)
    splats = loaded.levels.at(level.size_px)
    inliers, overlap = agreement(
        splats,
        best.camera.moved(best.camera.world_to_cam.to(splats.device)),
        best.exposure,
        level.target.permute(1, 2, 0),
        resize(image.alpha[..., None], level.width, level.height)[..., 0],
        reference.background,
        reference.options,
    )
    return _evidence(inliers, overlap, loaded.calibration.belief)


def _evidence(inliers: float, overlap: float, limits: BeliefLimits) -> float:
    return inliers * overlap / (limits.least_inliers * limits.least_overlap)


def _order(candidate: Candidate) -> tuple[float, str]:
    """Sort key: the strongest evidence first, names where it is the same."""
    return -candidate.evidence, candidate.name
