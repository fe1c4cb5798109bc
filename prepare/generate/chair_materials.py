"""Materials and light of photos of chairs.

A material's pattern is a function of the point in the solid's own frame, so it sits on the part and moves with it. Colours
are sRGB triples in [0, 1]; what `albedo` gives is linear light.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from prepare.generate.chair_parts import SLOTS, Slot

Kind = Literal["wood", "plastic", "leather", "fabric", "metal"]
Pattern = Literal["plain", "grain", "mottle", "weave", "stripes", "checks", "dots"]
GAMMA = 2.2
_LIGHT_SETUPS = 8


@dataclass(frozen=True)
class Material:
    kind: Kind
    colour: tuple[float, float, float]
    second: tuple[float, float, float]  # the pattern's other colour
    gloss: float  # 0 matt .. 1 polished
    pattern: Pattern
    scale: float  # world units of a period
    phase: tuple[float, float, float]

    def albedo(self, local: Float[np.ndarray, "n xyz=3"], long_axis: int) -> Float[np.ndarray, "n rgb=3"]:
        """Linear colour at points of a solid whose longest axis (the grain's) is `long_axis`."""
        first = np.asarray(self.colour, np.float32) ** np.float32(GAMMA)
        if self.pattern == "plain":
            return np.broadcast_to(first, (len(local), 3))
        second = np.asarray(self.second, np.float32) ** np.float32(GAMMA)
        share = self._share(local, long_axis)[:, None]
        return first + share * (second - first)

    def _share(self, local: np.ndarray, long_axis: int) -> np.ndarray:
        """How much of the second colour, in [0, 1]."""
        turn = np.float32(2 * math.pi / self.scale)
        a, b, c = (local[:, (long_axis + 1 + k) % 3] * turn + np.float32(self.phase[k]) for k in range(3))
        if self.pattern == "grain":
            rings = np.hypot(a + 1.7, 0.8 * b - 0.9) + 0.35 * np.sin(0.12 * c) + 0.2 * np.sin(0.31 * c + a)
            return (0.5 + 0.5 * np.sin(1.6 * rings)) ** 2
        if self.pattern == "mottle":
            return 0.5 + 0.25 * (
                np.sin(a + np.sin(1.7 * b)) * np.cos(1.3 * c) + np.sin(2.3 * b + c) * np.cos(1.9 * a)
            )
        if self.pattern == "weave":
            return 0.5 + 0.5 * np.sin(a) * np.sin(b) * np.cos(c)
        if self.pattern == "stripes":
            return (np.sin(a + b * 0.02) > 0.2).astype(np.float32)
        if self.pattern == "checks":
            return 0.5 * ((np.sin(a) > 0).astype(np.float32) + (np.sin(c) > 0))
        return (np.sin(a) * np.sin(c) > 0.55).astype(np.float32)  # dots


Texture = dict[Slot, Material]


def make_texture(rng: np.random.Generator) -> Texture:
    """Materials for a whole chair: one for each slot, some shared."""
    frame = _material(rng, _pick(rng, "wood", "wood", "wood", "metal", "plastic"))
    metal = _material(rng, "metal") if rng.random() < 0.75 else frame
    soft = _material(rng, _pick(rng, "fabric", "leather", "plastic", "wood", "fabric"))
    seat = frame if rng.random() < 0.25 else soft
    back = seat if rng.random() < 0.65 else _material(rng, _pick(rng, "fabric", "leather", "plastic", "wood"))
    accent = _material(rng, _pick(rng, "plastic", "leather", "wood"))
    return dict(zip(SLOTS, (frame, seat, back, metal, accent), strict=True))


def _pick(rng: np.random.Generator, *kinds: Kind) -> Kind:
    return kinds[int(rng.integers(len(kinds)))]


def _material(rng: np.random.Generator, kind: Kind) -> Material:
    def hsv(
        hue: tuple[float, float], saturation: tuple[float, float], value: tuple[float, float]
    ) -> tuple[float, float, float]:
        return colorsys.hsv_to_rgb(rng.uniform(*hue) % 1.0, rng.uniform(*saturation), rng.uniform(*value))

    phase = tuple(float(v) for v in rng.uniform(0, 2 * math.pi, 3))
    pattern: Pattern = "plain"
    scale, contrast = 0.1, 0.0
    if kind == "wood":
        colour = hsv((0.04, 0.11), (0.3, 0.75), (0.22, 0.82))
        if rng.random() < 0.2:  # painted
            colour = hsv((0.0, 1.0), (0.0, 0.5), (0.2, 0.92))
        else:
            pattern, scale, contrast = "grain", float(rng.uniform(0.05, 0.14)), float(rng.uniform(0.15, 0.4))
        gloss = float(rng.uniform(0.1, 0.6))
    elif kind == "metal":
        colour = (
            hsv((0.0, 1.0), (0.0, 0.08), (0.3, 0.85))
            if rng.random() < 0.7
            else hsv((0.0, 1.0), (0.1, 0.7), (0.1, 0.7))
        )
        gloss = float(rng.uniform(0.6, 1.0))
    elif kind == "leather":
        colour = hsv((-0.02, 0.12), (0.1, 0.8), (0.1, 0.75))
        pattern, scale, contrast = "mottle", float(rng.uniform(0.06, 0.16)), float(rng.uniform(0.05, 0.2))
        gloss = float(rng.uniform(0.3, 0.7))
    elif kind == "fabric":
        colour = hsv((0.0, 1.0), (0.0, 0.8), (0.15, 0.9))
        patterns: tuple[Pattern, ...] = ("plain", "weave", "mottle", "stripes", "checks", "dots")
        pattern = patterns[int(rng.choice(6, p=(0.25, 0.25, 0.15, 0.15, 0.1, 0.1)))]
        scale = float(rng.uniform(0.03, 0.06) if pattern == "weave" else rng.uniform(0.07, 0.22))
        contrast = float(rng.uniform(0.1, 0.3) if pattern in ("weave", "mottle") else rng.uniform(0.2, 0.7))
        gloss = 0.0
    else:
        colour = hsv((0.0, 1.0), (0.0, 0.9), (0.12, 0.93))
        gloss = float(rng.uniform(0.25, 0.8))
    other = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0, 0.7), rng.uniform(0.1, 0.9))
    dark = tuple(v * (1 - contrast) for v in colour)
    mixed = pattern in ("stripes", "checks", "dots") and rng.random() < 0.6
    second = (
        tuple((1 - contrast) * a + contrast * b for a, b in zip(colour, other, strict=True))
        if mixed
        else dark
    )
    return Material(kind, colour, second, gloss, pattern, scale, phase)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Lighting:
    """One set-up: a key light and the sky around it."""

    key: tuple[float, float, float]  # unit, towards the light; y up
    key_strength: float
    sky_strength: float
    warmth: float  # of the key light, -1 blue .. 1 orange
    softness: float  # of the key's shadows, world units
    ground: float  # how dark the shadow on the floor is, 0 none .. 1


def lighting(index: int) -> Lighting:
    """The set-up `index`, taken round: from the front, both sides, behind, above; hard and soft."""
    rng = np.random.default_rng([77, index % _LIGHT_SETUPS])
    azimuth = 2 * math.pi * (index % _LIGHT_SETUPS) / _LIGHT_SETUPS + rng.uniform(-0.3, 0.3)
    height = math.radians(rng.uniform(35, 75))
    flat = math.cos(height)
    key = float(rng.uniform(0.35, 0.95))
    return Lighting(
        (flat * math.sin(azimuth), math.sin(height), flat * math.cos(azimuth)),
        key,
        float(rng.uniform(0.95, 1.15) - 0.45 * key),
        float(rng.uniform(-0.5, 0.8)),
        float(rng.uniform(0.004, 0.05)),
        float(rng.uniform(0.0, 0.8)),
    )


LIGHT_SETUPS = _LIGHT_SETUPS
