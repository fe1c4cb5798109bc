"""What can be wrong with a chair: one component moved, turned, broken, swapped or missing, and whether a camera sees it.

Ranges and limits: `shared/specs/cmt.md` 2.3, that is our own; those of BrokenChairs-180K were never published.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from prepare.camera import Camera
from prepare.generate.chair_parts import LABELS, Chair, Component, Cutter, Solid, rotation_about
from prepare.generate.chair_render import Hits, cast
from prepare.generate.shapes import Box, Ellipsoid

Kind = Literal["position", "rotation", "broken", "swapped", "missing"]
KINDS: tuple[Kind, ...] = ("position", "rotation", "broken", "swapped", "missing")

SHIFT = (0.05, 0.25)  # of the component's diagonal
LEAST_SHIFT = 0.02  # world units
TURN_DEG = (10.0, 35.0)
REMOVED = (0.10, 0.70)  # share of the surface that a break takes
TOUCH = 0.035  # world units between the points of surfaces that touch
DEPTH_STEP = 0.01  # world units of depth by which a pixel's geometry differs
LEAST_SHARE = 0.002  # of the picture that must differ
LEAST_PX = 40
MOST_IOU = 0.9  # of the component's masks before and after
LEAST_VISIBLE = 0.25  # of the component that nothing hides
AREA = (0.01, 0.5)  # share of the chair's surface that a missing component has
FARTHEST = 1.04  # world units from the origin that an anomaly may reach
# How often BrokenChairs-180K's anomalies are on a part of each label, thousands (its histogram).
COMMON = {
    "Leg": 31.7, "BackSurface": 15.4, "Arm": 13.7, "SeatSurface": 9.6, "BackFrame": 6.3, "SeatFrame": 4.0,
    "SeatSupport": 2.7, "SurfaceBase": 2.3, "BackSupport": 2.1, "Footrest": 1.7, "Other": 2.3,
}  # fmt: skip
CHECK_PX = 128  # resolution at which proposals are judged


@dataclass(frozen=True)
class Proposal:
    """A chair with one component changed; `component` is its index in both."""

    chair: Chair
    component: int


@dataclass(frozen=True)
class Clouds:
    """Points on the surface of every component of a chair."""

    points: tuple[Float[np.ndarray, "_ xyz=3"], ...]

    def rest(self, component: int) -> cKDTree:
        """All but one component."""
        return cKDTree(np.concatenate([p for i, p in enumerate(self.points) if i != component]))


def clouds_of(chair: Chair) -> Clouds:
    return Clouds(tuple(component.cloud() for component in chair.components))


def propose(
    kind: Kind, chair: Chair, clouds: Clouds, donor: Callable[[], Chair], rng: np.random.Generator
) -> Proposal | None:
    """`chair` with an anomaly of `kind` on a random component; None where this draw came to nothing sensible."""
    index = _choose(chair, clouds, rng)
    part, cloud = chair.components[index], clouds.points[index]
    rest = clouds.rest(index)
    if kind == "missing":
        share = len(cloud) / sum(map(len, clouds.points))
        if not AREA[0] <= share <= AREA[1]:
            return None
        changed = replace(part, solids=())
    elif kind == "position":
        changed = _shifted(part, cloud, rng)
    elif kind == "rotation":
        changed = _turned(part, cloud, rest, rng)
    elif kind == "broken":
        broken = _broken(part, cloud, rest, rng)
        if broken is None:
            return None
        changed = broken
    else:
        swapped = _swapped(part, donor(), rng)
        if swapped is None:
            return None
        changed = swapped
    if kind in ("position", "rotation", "swapped"):
        now = changed.cloud()
        if len(now) == 0 or _gaps(rest, now).min() > TOUCH or np.linalg.norm(now, axis=1).max() > FARTHEST:
            return None
    components = list(chair.components)
    components[index] = changed
    return Proposal(Chair(chair.family, tuple(components)), index)


def _choose(chair: Chair, clouds: Clouds, rng: np.random.Generator) -> int:
    """A component: its label as often as in BrokenChairs-180K, then by the root of its surface."""
    by_label = {name: [i for i, c in enumerate(chair.components) if c.label == name] for name in LABELS}
    names = [name for name in LABELS if by_label[name]]
    weight = np.array([COMMON[name] for name in names])
    label = names[int(rng.choice(len(names), p=weight / weight.sum()))]
    area = np.sqrt([len(clouds.points[i]) for i in by_label[label]])
    return by_label[label][int(rng.choice(len(area), p=area / area.sum()))]


def _gaps(rest: cKDTree, cloud: Float[np.ndarray, "n xyz=3"]) -> Float[np.ndarray, " n"]:
    """Distance of each point to the nearest of the rest, world units."""
    return np.asarray(rest.query(cloud)[0])


def _shifted(part: Component, cloud: np.ndarray, rng: np.random.Generator) -> Component:
    diagonal = float(np.linalg.norm(np.ptp(cloud, axis=0)))
    direction = rng.normal(size=3)
    direction /= np.linalg.norm(direction)
    shift = direction * max(LEAST_SHIFT, float(rng.uniform(*SHIFT)) * diagonal)
    return replace(part, solids=tuple(s.moved(np.eye(3), np.zeros(3), shift) for s in part.solids))


def _turned(part: Component, cloud: np.ndarray, rest: cKDTree, rng: np.random.Generator) -> Component:
    """About a point where the component touches the rest."""
    gaps = _gaps(rest, cloud)
    near = np.flatnonzero(gaps <= max(float(gaps.min()), TOUCH))
    about = cloud[int(rng.choice(near))]
    turn = rotation_about(rng.normal(size=3), math.radians(float(rng.uniform(*TURN_DEG))))
    return replace(part, solids=tuple(s.moved(turn, about, np.zeros(3)) for s in part.solids))


def _broken(part: Component, cloud: np.ndarray, rest: cKDTree, rng: np.random.Generator) -> Component | None:
    """Less a ball or a box about a point of its surface, as large as takes the drawn share; nothing may float."""
    centre = cloud[int(rng.integers(len(cloud)))]
    share = float(rng.uniform(*REMOVED))
    offset = cloud - centre
    cutter: Cutter
    if rng.random() < 0.5:
        radius = float(np.quantile(np.linalg.norm(offset, axis=1), share))
        cutter = Cutter(Ellipsoid((radius,) * 3), centre, np.eye(3))
    else:
        turn = rotation_about(rng.normal(size=3), float(rng.uniform(0, math.pi)))
        aspect = rng.uniform(0.7, 1.4, 3)
        reach = float(np.quantile(np.abs(offset @ turn / aspect).max(axis=1), share))
        half = reach * aspect
        cutter = Cutter(Box((float(half[0]), float(half[1]), float(half[2])), 0.001), centre, turn)
    left = cloud[~cutter.holds(cloud)]
    removed = 1 - len(left) / len(cloud)
    if len(left) < 8 or not REMOVED[0] <= removed <= REMOVED[1] or _floats(left, rest):
        return None
    return replace(part, solids=tuple(replace(s, cut=cutter) for s in part.solids))


def _floats(left: np.ndarray, rest: cKDTree) -> bool:
    """Whether some piece of `left` touches neither the rest nor a piece that does."""
    pairs = cKDTree(left).query_pairs(1.8 * TOUCH, output_type="ndarray")
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(left),) * 2)
    count, piece = connected_components(graph, directed=False)
    held = np.zeros(count, bool)
    held[piece[_gaps(rest, left) <= TOUCH]] = True
    return not bool(held[piece].mean() > 0.97)


def _swapped(part: Component, donor: Chair, rng: np.random.Generator) -> Component | None:
    """The donor's component of the same label (and kind, where it has one), brought into the old one's box."""
    options = [c for c in donor.components if c.label == part.label]
    same = [c for c in options if c.kind == part.kind]
    options = same or options
    if not options:
        return None
    other = options[int(rng.integers(len(options)))]
    old, new = part.bounds(), other.bounds()
    scale = np.maximum(old[1] - old[0], 0.01) / np.maximum(new[1] - new[0], 0.01)
    if scale.max() / scale.min() > 12 or scale.max() > 5:
        return None
    solids: tuple[Solid, ...] = tuple(
        s.stretched(scale, new.mean(axis=0), old.mean(axis=0)) for s in other.solids
    )
    return replace(part, kind=other.kind, solids=solids)


@dataclass(frozen=True)
class Change:
    """Where two renders of a chair from one camera differ in geometry, at the rays' resolution."""

    changed: Bool[np.ndarray, "rows columns"]
    old: Bool[np.ndarray, "rows columns"]  # the component before
    new: Bool[np.ndarray, "rows columns"]  # and after


def compare(good: Chair, good_hits: Hits, bad: Chair, bad_hits: Hits, component: int) -> Change:
    """Rays that meet another component, or the same one at another depth."""
    before, after = owners_at(good, good_hits), owners_at(bad, bad_hits)
    both = (before >= 0) & (after >= 0)
    with np.errstate(invalid="ignore"):
        moved = np.abs(good_hits.depth - bad_hits.depth) > DEPTH_STEP
    return Change((before != after) | (both & moved), before == component, after == component)


def owners_at(chair: Chair, hits: Hits) -> np.ndarray:
    """Index of the component at each ray, -1 for none."""
    return np.where(hits.solid >= 0, np.append(chair.owners(), np.int16(-1))[hits.solid], np.int16(-1))


def is_seen(kind: Kind, good: Chair, good_hits: Hits, proposal: Proposal, camera: Camera) -> bool:
    """Whether the anomaly shows clearly from `camera`, by the limits above."""
    component = proposal.component
    bad_hits = cast(proposal.chair.solids(), camera)
    change = compare(good, good_hits, proposal.chair, bad_hits, component)
    pixel = (256 / camera.width) ** 2
    if change.changed.sum() * pixel < max(LEAST_PX, LEAST_SHARE * 256**2):
        return False
    if kind in ("position", "rotation", "swapped"):
        union = (change.old | change.new).sum()
        if (change.old & change.new).sum() > MOST_IOU * union:
            return False
    shown = _shown(good, component, change.old, camera)
    if kind in ("position", "rotation", "swapped") and shown < LEAST_VISIBLE:
        shown = _shown(proposal.chair, component, change.new, camera)
    return shown >= LEAST_VISIBLE


def _shown(chair: Chair, component: int, mask: np.ndarray, camera: Camera) -> float:
    """The share of a component's silhouette that nothing hides."""
    alone = cast(list(chair.components[component].solids), camera).solid >= 0
    return float(mask.sum() / max(alone.sum(), 1))
