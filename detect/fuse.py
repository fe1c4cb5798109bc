"""Several photos of one part: one verdict, one set of defects in 3D.

The rules, all independent of the photos' order:

* A photo with the verdict CANNOT TELL neither accuses nor clears the part; it is named. Without any other the part is
  CANNOT TELL.
* The part is NG where a photo is, and stays so with k photos: a photo's p-value is the share of good photos, itself
  counted, that score as high, and the smallest of k must be at most the false-alarm rate / k (Bonferroni 1936). Where
  the good scores are too few for that, any NG photo makes the part NG and a reason says what that does to the rate.
* Otherwise it is OK, with the share of its surface that the believed photos showed; below `least_coverage`, where one
  is given, CANNOT TELL.
* Defects of different photos are one where the spheres about their centres, their extents across, meet, or where they
  share splats. A chain of such joins is one defect.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from detect.calibrate import Calibration, conformal_p
from detect.defect_kind import KINDS, DefectKind
from detect.defects import Defect
from detect.verdict import Verdict
from prepare.camera import Camera
from recon.fit import compositing_weights
from recon.reference import Reference

SHOWN_SHARE = (
    0.1  # of what a splat's best view shows of it: a photo with less sees it edge-on or through others
)
SHARED_SPLATS = (
    0.2  # of two defects' splats together, from which they are one: half of each shared makes a third
)
SHOULD_SHOW = 0.5  # of a defect's surface that a photo must show to speak against the defect by being silent
MOST_VIEWS = 24  # reference views that say what can be seen of the part: about two seconds a run on two cores


@dataclass(frozen=True)
class PartPhoto:
    """One photo of the part, as far as fusing needs it."""

    name: str  # tells it apart from the others
    verdict: Verdict
    score: float | None
    shown: Float[Tensor, " n"] | None  # `surface_shown` by its camera; None where that is not believed
    defects: tuple[Defect, ...]


@dataclass(frozen=True)
class FusedDefect:
    """One deviation of the part, seen in one photo or more."""

    number: int  # from 1, the highest peak first
    kind: DefectKind  # voted by the photos' peaks; "changed" has no vote where another kind has one
    centre: tuple[float, float, float] | None  # world units, mean weighted by peak; None where no photo knows
    extent: float | None  # world units, the greatest of the photos': each sees it foreshortened
    area: float | None  # world units squared, the greatest of the photos'
    peak: float  # highest map value in any photo
    seen_in: tuple[str, ...]  # photos that show it, in their natural order
    not_seen_in: tuple[str, ...]  # believed photos that show the place but no defect there
    splats: Int[Tensor, " m"]  # indices, ascending: of any photo
    members: tuple[tuple[str, int], ...]  # (photo, index of the defect in it)

    @property
    def agreement(self) -> float:
        """Share of the photos that show the place in which the defect was seen, in (0, 1]."""
        return len(self.seen_in) / (len(self.seen_in) + len(self.not_seen_in))


@dataclass(frozen=True)
class FusedPart:
    """What all photos together say of the part."""

    verdict: Verdict
    p_value: float | None  # the smallest of the believed photos'; None without one
    p_limit: (
        float | None
    )  # an NG photo must not be above; None where the photos' own verdicts stand: one, or too few good scores
    believed: tuple[str, ...]  # photos with a verdict of OK or NG
    doubted: tuple[str, ...]  # photos with CANNOT TELL
    coverage: float  # share of the part's surface that the believed photos show, in [0, 1]
    defects: tuple[FusedDefect, ...]  # empty unless NG


def surface_shown(reference: Reference, camera: Camera) -> Float[Tensor, " n"]:
    """How much of each splat a photo from `camera` shows, world units squared as if it faced the camera, on the CPU."""
    gaussians = reference.gaussians.detached()
    weights = compositing_weights(gaussians, camera, reference.options).cpu()
    here = camera.moved(camera.world_to_cam.cpu())
    depth = here.project(gaussians.means.cpu())[:, 2].clamp_min(0.0)
    return weights * depth.square() / (camera.fl_x * camera.fl_y)


def part_surface(reference: Reference) -> Float[Tensor, " n"]:
    """How much of each splat the reference's view that shows it best does: the surface that photos can show at all.

    Splats below the surface hardly count. Looks at MOST_VIEWS views at most, spread evenly over their order.
    """
    count = min(MOST_VIEWS, len(reference.views))
    chosen = [reference.views[i * len(reference.views) // count] for i in range(count)]
    best = torch.zeros(len(reference.gaussians))
    for view in chosen:
        best = torch.maximum(best, surface_shown(reference, view.camera))
    return best


def fuse(
    photos: Sequence[PartPhoto],
    calibration: Calibration,
    surface: Float[Tensor, " n"],
    least_coverage: float | None = None,
) -> FusedPart:
    """The verdict on the part and its defects, from photos of it against one reference.

    `surface` is the `part_surface` of that reference.
    """
    ordered = sorted(photos, key=lambda photo: photo.name)
    assert len({photo.name for photo in ordered}) == len(ordered), "photos of one name"
    believed = [photo for photo in ordered if photo.verdict.name != "CANNOT TELL"]
    doubted = tuple(photo.name for photo in ordered if photo.verdict.name == "CANNOT TELL")
    shows = {photo.name: _shows(photo, surface) for photo in believed}
    together = torch.zeros_like(surface, dtype=torch.bool)
    for mask in shows.values():
        together |= mask
    coverage = float(surface[together].double().sum() / surface.double().sum().clamp_min(1e-300))
    notes = tuple(
        f"{photo.name} counts for nothing: {photo.verdict.reasons[0]}"
        for photo in ordered
        if photo.verdict.name == "CANNOT TELL"
    )
    names = tuple(photo.name for photo in believed)
    if not believed:
        count = f"{len(ordered)} photos" if len(ordered) != 1 else "photo"
        verdict = Verdict("CANNOT TELL", (f"none of the {count} can be judged", *notes))
        return FusedPart(verdict, None, None, names, doubted, coverage, ())

    p_values = {
        photo.name: conformal_p(calibration, photo.score) for photo in believed if photo.score is not None
    }
    least = min(p_values.values(), default=None)
    limit, note = _p_limit(calibration, len(believed))
    accusing = [photo for photo in believed if photo.verdict.name == "NG"]
    counted = [photo for photo in accusing if limit is None or p_values[photo.name] <= limit + 1e-12]
    covered = f"the photos show {coverage:.0%} of the part's surface"
    if counted:
        found = _join(accusing, shows, surface)
        worst = min(counted, key=lambda photo: (-_of(photo), photo.name))
        what = f"{len(found)} defect{'s' if len(found) != 1 else ''}" if found else "an anomaly"
        reason = (
            f"{what} in {len(accusing)} of {len(believed)} photos; {worst.name}: {worst.verdict.reasons[0]}"
        )
        reasons = (reason, *((note,) if note else ()), covered, *notes)
        return FusedPart(Verdict("NG", reasons), least, limit, names, doubted, coverage, found)
    weak = tuple(
        f"{photo.name} alone would be NG, but among {len(believed)} photos a good part has one that scores so high "
        f"with probability up to {min(1.0, len(believed) * p_values[photo.name]):.0%}"
        for photo in accusing
    )
    if least_coverage is not None and coverage < least_coverage:
        reason = f"{covered}, less than the {least_coverage:.0%} asked for; take more photos from other sides"
        verdict = Verdict("CANNOT TELL", (reason, *weak, *notes))
    else:
        one = len(believed) == 1
        reason = (
            f"no defect in {'the one photo' if one else f'any of {len(believed)} photos'} that can be judged"
        )
        verdict = Verdict("OK", (f"{reason}; {covered}", *weak, *notes))
    return FusedPart(verdict, least, limit, names, doubted, coverage, ())


def _shows(photo: PartPhoto, surface: Float[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """The splats that a photo shows well enough to speak of."""
    if photo.shown is None:
        return torch.zeros_like(surface, dtype=torch.bool)
    return (surface > 0) & (photo.shown >= SHOWN_SHARE * surface)


def _of(photo: PartPhoto) -> float:
    return photo.score if photo.score is not None else 0.0


def _p_limit(calibration: Calibration, count: int) -> tuple[float | None, str]:
    """The largest p-value at which an NG photo among `count` makes the part NG; None where each does, and why."""
    limit = calibration.false_alarm_rate / count
    good = len(calibration.good_scores)
    usable = calibration.source != "fitted"
    if count == 1:
        return None, ""
    if usable and 1.0 / (good + 1) <= limit + 1e-12:
        return limit, ""
    chance = min(1.0, count * max(calibration.false_alarm_rate, 1.0 / (good + 1)))
    return None, (
        f"{good} good photos are too few to hold a false-alarm rate of {calibration.false_alarm_rate:.1%} over {count} "
        f"photos: any NG photo counts, so a good part is NG with probability up to {chance:.0%}"
    )


def _join(
    accusing: Sequence[PartPhoto], shows: Mapping[str, Bool[Tensor, " n"]], surface: Float[Tensor, " n"]
) -> tuple[FusedDefect, ...]:
    """The photos' defects joined, the highest peak first; `accusing` in an order of their own."""
    entries = [
        (photo.name, index, defect) for photo in accusing for index, defect in enumerate(photo.defects)
    ]
    group = list(range(len(entries)))
    for i, j in itertools.combinations(range(len(entries)), 2):
        if group[i] != group[j] and _same(entries[i][2], entries[j][2]):
            old, new = max(group[i], group[j]), min(group[i], group[j])
            group = [new if member == old else member for member in group]
    joined = [
        _fused(
            [entry for entry, member in zip(entries, group, strict=True) if member == root], shows, surface
        )
        for root in sorted(set(group))
    ]
    joined.sort(key=lambda defect: (-defect.peak, defect.members))
    return tuple(
        FusedDefect(**{**vars(defect), "number": number}) for number, defect in enumerate(joined, start=1)
    )


def _same(a: Defect, b: Defect) -> bool:
    """Whether two defects are one: spheres that meet, or shared splats."""
    if a.centre is not None and b.centre is not None:
        reach = ((a.extent or 0.0) + (b.extent or 0.0)) / 2
        if math.dist(a.centre, b.centre) <= reach:
            return True
    if len(a.splats) == 0 or len(b.splats) == 0:
        return False
    shared = int(torch.isin(a.splats, b.splats).sum())
    return shared >= SHARED_SPLATS * (len(a.splats) + len(b.splats) - shared)


def _fused(
    entries: Sequence[tuple[str, int, Defect]],
    shows: Mapping[str, Bool[Tensor, " n"]],
    surface: Float[Tensor, " n"],
) -> FusedDefect:
    """One defect of its members, numbered 0."""
    defects = [defect for _, _, defect in entries]
    placed = [(defect.centre, defect.peak) for defect in defects if defect.centre is not None]
    centre = None
    if placed:
        total = math.fsum(peak for _, peak in placed)
        x, y, z = (math.fsum(place[axis] * peak for place, peak in placed) / total for axis in range(3))
        centre = (x, y, z)
    votes: dict[DefectKind, float] = {
        kind: math.fsum(defect.peak for defect in defects if defect.kind == kind)
        for kind in KINDS
        if kind != "changed"
    }
    kind: DefectKind = max(votes, key=lambda k: votes[k])
    seen = tuple(dict.fromkeys(name for name, _, _ in entries))
    splats = torch.unique(torch.cat([defect.splats for defect in defects]))
    own = surface[splats].double()
    silent = tuple(
        name
        for name, mask in shows.items()
        if name not in seen
        and float(own.sum()) > 0
        and float(own[mask[splats]].sum()) >= SHOULD_SHOW * float(own.sum())
    )
    return FusedDefect(
        number=0,
        kind=kind if votes[kind] > 0 else "changed",
        centre=centre,
        extent=max((d.extent for d in defects if d.extent is not None), default=None),
        area=max((d.area for d in defects if d.area is not None), default=None),
        peak=max(defect.peak for defect in defects),
        seen_in=seen,
        not_seen_in=silent,
        splats=splats,
        members=tuple((name, index) for name, index, _ in entries),
    )
