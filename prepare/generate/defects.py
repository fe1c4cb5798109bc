"""Faults put on a good product, and the exact mask of what a camera sees of them.

A pixel belongs to the mask when in any of its sub-pixel rays the defect changes what the ray meets: another part (or
none), another depth, or another surface colour. A pixel that only got darker or brighter because light now falls
differently (a new shadow, an opened corner) does not: nothing is wrong with the surface there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from prepare.camera import Camera
from prepare.generate.parts import Assembly, Ball, Colour, Part, Stain
from prepare.generate.raycast import GAMMA, Hits, LightMaps, Surface, View, cast, light, photograph, surface
from prepare.generate.shapes import Box, Ellipsoid, Frustum, Shape, Torus

DefectKind = Literal["Burrs", "Missing", "Stains"]

DEFECT_PX = (25.0, 4800.0)  # least and most area of a mask in a photo of 400 x 400 px
UNSHRUNK_PX = 1000  # most area from which on defects have their usual size
LEAST_PX = 4  # in photos so small that the share would be less
LEAST_CONTRAST = 0.10  # largest channel difference, in [0, 1], that a person notices on a product
SEEN_SHARE = 0.5  # of the mask (and at least the least area) that must differ so much
ATTEMPTS = 200
DEPTH_STEP = 1e-4  # world units
COLOUR_STEP = 1 / 255
SPILLS: tuple[Colour, ...] = (
    (0.36, 0.20, 0.09),  # rust
    (0.06, 0.06, 0.07),  # oil
    (0.88, 0.88, 0.84),  # whitewash
    (0.15, 0.55, 0.25),  # green paint
    (0.12, 0.22, 0.62),  # ink
    (0.78, 0.12, 0.14),  # red paint
    (0.92, 0.80, 0.20),  # yellow paint
)


@dataclass(frozen=True)
class Faulty:
    """A product with a defect. `origin[i]` is the good product's index of part i; -1 for added parts."""

    assembly: Assembly
    origin: Int[np.ndarray, " parts"]
    words: str  # what was done, for people


@dataclass(frozen=True)
class FaultyPhoto:
    """A photo of a product with a defect that its camera sees."""

    faulty: Faulty
    view: View
    mask: Bool[np.ndarray, "height width"]  # True where the defect is


def photograph_defect(
    kind: DefectKind,
    good: Assembly,
    good_maps: LightMaps,
    camera: Camera,
    supersample: int,
    rng: np.random.Generator,
    area_px: tuple[float, float] = DEFECT_PX,
) -> FaultyPhoto | None:
    """A photo of `good` with a random defect that is seen clearly by `camera`; None when no try gave one.

    Clearly: its mask has between the two areas `area_px` (px of a photo of 400 x 400), and enough of it differs from the
    good photo by `LEAST_CONTRAST`.
    """
    before = photograph(good, good_maps, camera, supersample)
    if not (before.hits.part >= 0).any():
        return None
    shrink = min(1.0, math.sqrt(area_px[1] / UNSHRUNK_PX))
    propose: dict[str, Callable[[], Faulty | None]] = {
        "Burrs": lambda: _burrs(good, before, rng, math.sqrt(shrink)),
        "Missing": lambda: _missing(good, before, rng, shrink),
        "Stains": lambda: _stains(good, before, rng, shrink),
    }
    scale = camera.width * camera.height / 400**2
    least = max(LEAST_PX, area_px[0] * scale)
    most = max(area_px[1] * scale, 2 * least)
    for _ in range(ATTEMPTS):
        faulty = propose[kind]()
        if faulty is None:
            continue
        hits = cast(faulty.assembly.parts, camera, supersample)
        after = surface(faulty.assembly, camera, supersample, hits)
        mask = defect_mask(before.hits, before.surface, hits, after, faulty.origin, supersample)
        if not least <= mask.sum() <= most:
            continue
        maps = good_maps if kind == "Stains" else light(faulty.assembly)
        view = photograph(faulty.assembly, maps, camera, supersample)
        differs = (np.abs(view.rgb - before.rgb).max(axis=2) > LEAST_CONTRAST) & mask
        if differs.sum() >= max(least, SEEN_SHARE * mask.sum()):
            return FaultyPhoto(faulty, view, mask)
    return None


def defect_mask(
    good_hits: Hits,
    good_surface: Surface,
    bad_hits: Hits,
    bad_surface: Surface,
    origin: Int[np.ndarray, " parts"],
    supersample: int,
) -> Bool[np.ndarray, "height width"]:
    """True at pixels where some sub-pixel ray meets another part, depth or surface colour than on the good product.

    `origin` maps the faulty product's part indices to the good one's (-1: added by the defect).
    """
    bad_part = np.where(bad_hits.part >= 0, origin[bad_hits.part], -2)
    good_part = np.where(good_hits.part >= 0, good_hits.part, -2)
    changed = bad_part != good_part
    both = (good_hits.part >= 0) & (bad_hits.part >= 0)
    changed[both] |= np.abs(bad_hits.depth[both] - good_hits.depth[both]) > DEPTH_STEP
    colour_gap = np.abs(_colour_image(good_hits, good_surface) - _colour_image(bad_hits, bad_surface)).max(
        axis=2
    )
    changed |= both & (colour_gap > COLOUR_STEP)
    rows, columns = changed.shape
    return changed.reshape(rows // supersample, supersample, columns // supersample, supersample).any(
        axis=(1, 3)
    )


def _colour_image(hits: Hits, here: Surface) -> Float[np.ndarray, "rows columns 3"]:
    """Surface colour as displayed, without any light; 0 where no part is."""
    image = np.zeros((*hits.part.shape, 3), np.float32)
    image[hits.part >= 0] = here.albedo ** np.float32(1 / GAMMA)
    return image


def _burrs(good: Assembly, view: View, rng: np.random.Generator, shrink: float) -> Faulty | None:
    """A few slivers, spikes and nubs of the surface's own colour, standing up around one visible place."""
    here = view.surface
    first = int(rng.integers(len(here.points)))
    reach = float(rng.uniform(0.03, 0.09))
    near = np.flatnonzero(np.linalg.norm(here.points - here.points[first], axis=1) < reach)
    owners = view.hits.part[view.hits.part >= 0]
    near = near[owners[near] == owners[first]]
    count = int(rng.integers(2, 6))
    added = []
    for index, place in enumerate(rng.choice(near, size=min(count, near.size), replace=False)):
        normal = here.normals[place].astype(np.float64)
        axis = normal + 0.45 * rng.standard_normal(3)
        axis /= np.linalg.norm(axis)
        if axis @ normal < 0.5:
            axis = normal
        size = shrink * float(rng.uniform(0.022, 0.05))
        shape: Shape
        style = int(rng.integers(3))
        if style == 0:
            shape = Frustum(0.5 * size, 0.08 * size, size)
        elif style == 1:
            shape = Box((0.22 * size, float(rng.uniform(0.6, 1.3)) * size, 0.8 * size))
        else:
            shape = Ellipsoid((0.7 * size, 0.55 * size, 0.8 * size))
        displayed = here.albedo[place].astype(np.float64) ** (1 / GAMMA)
        tint = np.clip(displayed * rng.uniform(0.85, 1.2) + rng.uniform(-0.02, 0.05), 0, 1)
        added.append(
            Part(
                name=f"burr{index}",
                group="",
                shape=shape,
                centre=here.points[place] + axis * 0.55 * size,
                rotation=_frame_about(axis, rng),
                colour=(float(tint[0]), float(tint[1]), float(tint[2])),
                gloss=0.25,
            )
        )
    origin = np.concatenate([np.arange(len(good.parts)), np.full(len(added), -1)])
    owner = good.parts[int(owners[first])].name
    return Faulty(replace(good, parts=(*good.parts, *added)), origin, f"{len(added)} burrs on {owner}")


def _missing(good: Assembly, view: View, rng: np.random.Generator, shrink: float) -> Faulty | None:
    """A group of parts left out, or a piece broken out of the body."""
    groups = list(good.groups().items())
    seen = np.bincount(view.hits.part[view.hits.part >= 0], minlength=len(good.parts))
    visible = [(name, members) for name, members in groups if seen[members].sum() > 0]
    if visible and rng.random() < 0.7:
        name, members = visible[int(rng.integers(len(visible)))]
        kept = [index for index in range(len(good.parts)) if index not in members]
        parts = tuple(good.parts[index] for index in kept)
        return Faulty(replace(good, parts=parts), np.asarray(kept), f"{name} missing")
    owners = view.hits.part[view.hits.part >= 0]
    place = int(rng.integers(len(view.surface.points)))
    owner = good.parts[int(owners[place])]
    if isinstance(owner.shape, Torus):
        return None
    radius = shrink * float(rng.uniform(0.06, 0.15))
    point = view.surface.points[place].astype(np.float64)
    centre = point + view.surface.normals[place] * radius * float(rng.uniform(-0.1, 0.4))
    ball = Ball((float(centre[0]), float(centre[1]), float(centre[2])), radius)
    bitten = tuple(replace(p, bite=ball) if _touches(p, ball) else p for p in good.parts)
    return Faulty(
        replace(good, parts=bitten), np.arange(len(good.parts)), f"piece broken out of {owner.name}"
    )


def _touches(part: Part, ball: Ball) -> bool:
    """Whether `ball` reaches the part's box (a torus is never bitten)."""
    if isinstance(part.shape, Torus):
        return False
    local = part.rotation.T @ (np.asarray(ball.centre) - part.centre)
    gap = np.maximum(np.abs(local) - np.asarray(part.shape.extent), 0)
    return bool(np.linalg.norm(gap) < ball.radius)


def _stains(good: Assembly, view: View, rng: np.random.Generator, shrink: float) -> Faulty | None:
    """A ragged blotch of a colour that stands out from the surface at one visible place."""
    here = view.surface
    place = int(rng.integers(len(here.points)))
    displayed = here.albedo[place] ** np.float32(1 / GAMMA)
    colours = [SPILLS[i] for i in rng.permutation(len(SPILLS))]
    colour = next((c for c in colours if np.abs(np.asarray(c) - displayed).max() > 0.35), None)
    if colour is None:
        return None
    point = here.points[place]
    phase = rng.uniform(0, 2 * np.pi, 3)
    stain = Stain(
        centre=(float(point[0]), float(point[1]), float(point[2])),
        radius=shrink * float(rng.uniform(0.04, 0.13)),
        colour=colour,
        strength=float(rng.uniform(0.75, 0.95)),
        phase=(float(phase[0]), float(phase[1]), float(phase[2])),
    )
    owner = good.parts[int(view.hits.part[view.hits.part >= 0][place])].name
    return Faulty(
        replace(good, stains=(*good.stains, stain)), np.arange(len(good.parts)), f"stain on {owner}"
    )


def _frame_about(axis: Float[np.ndarray, "xyz=3"], rng: np.random.Generator) -> Float[np.ndarray, "3 3"]:
    """A rotation that takes z to `axis`, turned about it at random."""
    side = np.cross(axis, rng.standard_normal(3))
    side /= np.linalg.norm(side)
    return np.stack([side, np.cross(axis, side), axis], axis=1)
