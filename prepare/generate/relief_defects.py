"""Faults of a part that lies on a support (`prepare.generate.reliefs`), and where on the part they are.

dent and hole change the shape, contamination shape and colour, colour the colour alone; combined is two of these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import distance_transform_edt, gaussian_filter

from prepare.generate.defects import SPILLS
from prepare.generate.reliefs import GAMMA, HALF, Relief, linear

Fault = Literal["dent", "hole", "contamination", "colour", "combined"]
FAULTS: tuple[Fault, ...] = get_args(Fault)
SIMPLE: tuple[Fault, ...] = FAULTS[:4]
RADIUS = (0.0022, 0.0085)  # m
LEAST_CONTRAST = 0.16  # mean difference of a displayed colour, in [0, 1]
LEAST_STEP = 3e-4  # m of height from which on a dent belongs to the mask
_FOREIGN = (*SPILLS, (0.75, 0.76, 0.78), (0.10, 0.35, 0.75))


@dataclass(frozen=True)
class FaultyRelief:
    relief: Relief
    masks: dict[Fault, Bool[np.ndarray, "n n"]]  # where each simple fault is, seen from above


def add_fault(good: Relief, fault: Fault, rng: np.random.Generator) -> FaultyRelief:
    """The part with a fault of some size in some place; `good` is not changed."""
    kinds: list[Fault] = [fault]
    if fault == "combined":
        kinds = [SIMPLE[k] for k in rng.choice(len(SIMPLE), 2, replace=False)]
    relief, masks = good, {}
    for kind in kinds:
        relief, masks[kind] = _ADD[kind](relief, rng)
    return FaultyRelief(relief, masks)


@dataclass(frozen=True)
class _Patch:
    """A blob with an uneven outline: `away` is 0 in its middle and 1 on its outline."""

    away: Float[np.ndarray, "n n"]
    radius: float  # m
    local: float  # m, height of the part in its middle


def _patch(relief: Relief, rng: np.random.Generator, smallest: float = 1.0) -> _Patch:
    """Somewhere on the part, mostly inside its outline."""
    low, high = RADIUS
    radius = math.exp(rng.uniform(math.log(low * smallest), math.log(high)))
    cell = relief.cell
    sunk = gaussian_filter(relief.height, 0.006 / cell, truncate=2.0) - relief.height > 0.003
    standing = (relief.height > 0.004) & ~sunk  # not at the bottom of a bore, where hardly a ray gets
    inner = distance_transform_edt(standing) * cell
    reach = min(0.9 * radius, 0.8 * float(inner.max()))
    # Flat enough to be seen from above: not a wall.
    slope = np.hypot(*np.gradient(gaussian_filter(relief.height, 1.5), cell))
    rows, columns = np.nonzero((inner >= reach) & (slope < 1.2))
    if not len(rows):
        rows, columns = np.nonzero(inner >= reach)
    k = int(rng.integers(len(rows)))
    n = len(relief.height)
    at = (np.arange(n) + 0.5) * cell - HALF
    dx, dy = at[None, :] - at[columns[k]], -(at[:, None] - at[rows[k]])
    turn, stretch = rng.uniform(0, math.pi), math.exp(rng.normal(0, 0.22))
    u = (math.cos(turn) * dx + math.sin(turn) * dy) * stretch
    v = (math.cos(turn) * dy - math.sin(turn) * dx) / stretch
    angle = np.arctan2(v, u)
    uneven = 1 + sum(rng.normal(0, 0.16 / w) * np.cos(w * angle + rng.uniform(0, 7)) for w in (2, 3, 4, 5, 6))
    return _Patch(
        np.hypot(u, v) / (radius * np.maximum(uneven, 0.4)), radius, float(relief.height[rows[k], columns[k]])
    )


def _dent(relief: Relief, rng: np.random.Generator) -> tuple[Relief, Bool[np.ndarray, "n n"]]:
    """Pressed in, a little material raised round it."""
    patch = _patch(relief, rng, 1.3)
    depth = min(patch.radius * rng.uniform(0.28, 0.6), 0.5 * patch.local)
    pressed = depth * np.clip(1 - patch.away**2, 0, 1) ** 1.5
    raised = 0.10 * depth * np.exp(-(((patch.away - 1.15) / 0.16) ** 2))
    standing = relief.height > 0.002
    height = np.where(standing, np.maximum(relief.height - pressed + raised, 0.002), relief.height)
    mask = (np.abs(height - relief.height) > min(LEAST_STEP, 0.25 * depth)) & standing & (patch.away < 1.1)
    return replace(relief, height=height.astype(np.float32)), mask


def _hole(relief: Relief, rng: np.random.Generator) -> tuple[Relief, Bool[np.ndarray, "n n"]]:
    """Bored or broken in with steep walls; the inside shows."""
    patch = _patch(relief, rng)
    depth = min(rng.uniform(0.5, 0.9) * patch.local, rng.uniform(1.2, 2.6) * patch.radius)
    wall = np.clip((1 - patch.away) * patch.radius / 0.0009, 0, 1)
    inside = wall * (relief.height > 0.001)
    rough = gaussian_filter(rng.normal(0, 1, relief.height.shape).astype(np.float32), 1.5)
    height = relief.height - inside * (depth + 0.0015 * rough)
    albedo = relief.albedo + (0.8 * inside)[..., None] * (linear(relief.flesh) * 0.8 - relief.albedo)
    mask = inside > 0.25
    return (
        replace(
            relief,
            height=np.where(mask, np.maximum(height, 0.001), relief.height).astype(np.float32),
            albedo=albedo.astype(np.float32),
            gloss=relief.gloss * (1 - inside),
        ),
        mask,
    )


def _contamination(relief: Relief, rng: np.random.Generator) -> tuple[Relief, Bool[np.ndarray, "n n"]]:
    """A clump of something else lies on the part."""
    patch = _patch(relief, rng)
    thick = patch.radius * rng.uniform(0.3, 0.75)
    covered = np.clip((1 - patch.away) * 5, 0, 1)
    dome = np.sqrt(np.clip(1 - patch.away**2, 0, 1))
    rough = gaussian_filter(rng.normal(0, 1, relief.height.shape).astype(np.float32), 3)
    added = thick * dome * (1 + 2.0 * rough)
    height = relief.height + np.maximum(added, 0) * (patch.away < 1)
    colour = linear(_foreign(relief, patch, rng)) * (1 + 1.2 * rough[..., None])
    albedo = np.clip(relief.albedo + covered[..., None] * (colour - relief.albedo), 0.002, 0.98)
    gloss = relief.gloss + covered * (rng.uniform(0, 0.5) - relief.gloss)
    return (
        replace(relief, height=height.astype(np.float32), albedo=albedo.astype(np.float32), gloss=gloss),
        patch.away < 1,
    )


def _colour(relief: Relief, rng: np.random.Generator) -> tuple[Relief, Bool[np.ndarray, "n n"]]:
    """A stain: the shape is as it was."""
    patch = _patch(relief, rng)
    cover = rng.uniform(0.7, 0.95) * np.clip((1 - patch.away) * 4, 0, 1) * (relief.height > 0.001)
    spill = linear(_foreign(relief, patch, rng))
    albedo = relief.albedo + cover[..., None] * (spill - relief.albedo)
    return replace(relief, albedo=albedo.astype(np.float32)), cover > 0.2


def _foreign(relief: Relief, patch: _Patch, rng: np.random.Generator) -> tuple[float, float, float]:
    """A colour that stands out from the part's there."""
    here = (
        relief.albedo[patch.away < 1].mean(axis=0) if (patch.away < 1).any() else relief.albedo.mean((0, 1))
    ) ** (1 / GAMMA)
    fitting = [c for c in _FOREIGN if np.abs(np.asarray(c) - here).mean() >= LEAST_CONTRAST]
    return fitting[int(rng.integers(len(fitting)))]


_ADD = {"dent": _dent, "hole": _hole, "contamination": _contamination, "colour": _colour}
