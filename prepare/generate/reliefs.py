"""Parts as they lie on a support, seen from above: a height and a colour over a square of the support, as a sensor sees them.

Frame: x right, y away, z up, the support is z = 0; metres. The square is 2 * HALF wide, n x n cells, row 0 at y = +HALF, as in an
image. Each family varies from sample to sample in size, outline, texture and colour as baked, grown or moulded parts do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter

HALF = 0.09  # m, half the width of the square
PartName = Literal["bagel", "cookie", "cable_gland", "dowel", "potato"]
PARTS: tuple[PartName, ...] = get_args(PartName)
GAMMA = 2.2


@dataclass(frozen=True)
class Relief:
    """A part on its support."""

    height: Float[np.ndarray, "n n"]  # m above the support, 0 where the support is
    albedo: Float[np.ndarray, "n n rgb=3"]  # linear, in [0, 1]
    gloss: Float[np.ndarray, "n n"]  # 0 matt .. 1 polished
    flesh: tuple[float, float, float]  # displayed colour of the inside

    @property
    def cell(self) -> float:
        """Width of a cell, m."""
        return 2 * HALF / len(self.height)


def make_relief(part: PartName, n: int, rng: np.random.Generator) -> Relief:
    """One sample of a family, n x n cells, somewhere near the middle and turned."""
    coordinate = (np.arange(n) + 0.5) * (2 * HALF / n) - HALF
    x, y = np.broadcast_arrays(coordinate[None, :], -coordinate[:, None])
    turn = rng.uniform(-math.pi, math.pi) if part in ("bagel", "cookie") else rng.normal(0, math.radians(6))
    shift = rng.uniform(-0.006, 0.006, 2)
    c, s = math.cos(turn), math.sin(turn)
    along, across = c * (x - shift[0]) + s * (y - shift[1]), c * (y - shift[1]) - s * (x - shift[0])
    relief = _MAKERS[part](along, across, _Noise(n, rng), rng)
    standing = np.clip(relief.height / 5e-4, 0, 1)[..., None]
    noise = _Noise(n, rng)
    weave = 0.5 + 0.5 * np.sin(x * 5200) * np.sin(y * 5200)
    level = 0.16 + 0.02 * noise.smooth(0.04) + 0.015 * weave + 0.012 * noise.grain(1.0)
    support = linear(np.stack([level, 1.04 * level, 1.12 * level], axis=-1))
    albedo = np.clip(support + standing * (relief.albedo - support), 0.002, 0.98)
    return Relief(
        relief.height.astype(np.float32),
        albedo.astype(np.float32),
        relief.gloss * standing[..., 0],
        relief.flesh,
    )


def linear(colour: object) -> Float[np.ndarray, "*cells rgb=3"]:
    """Linear light of displayed colours."""
    return np.asarray(np.clip(np.asarray(colour, np.float64), 0, 1) ** GAMMA)


@dataclass(frozen=True)
class _Noise:
    """Random fields over the square, drawn one after another from `rng`; mean about 0, standard deviation about 1."""

    n: int
    rng: np.random.Generator

    def smooth(self, wavelength: float) -> Float[np.ndarray, "n n"]:
        """Cubic B-splines over random knots `wavelength` metres apart."""
        knots = math.ceil(2 * HALF / wavelength) + 3
        values = self.rng.normal(0, 1.6, (knots, knots))
        at = np.linspace(1, knots - 2 - 1e-6, self.n)
        cell, t = np.floor(at).astype(int), at - np.floor(at)
        share = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
        rows = sum(share[k][:, None] * values[np.minimum(cell + k - 1, knots - 1)] for k in range(4))
        return np.asarray(
            sum(
                share[k][None, :] * np.asarray(rows)[:, np.minimum(cell + k - 1, knots - 1)] for k in range(4)
            )
        )

    def grain(self, cells: float) -> Float[np.ndarray, "n n"]:
        """White noise blurred over `cells` cells."""
        field = gaussian_filter(
            self.rng.normal(0, 1, (self.n, self.n)).astype(np.float32), cells, truncate=2.5
        )
        return np.asarray(field / field.std(), np.float64)


def _outline(angle: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """1 plus a few waves round the circle."""
    waves = [rng.normal(0, strength / k) * np.cos(k * angle + rng.uniform(0, 7)) for k in (2, 3, 4, 5, 7)]
    return np.asarray(1 + sum(waves))


def _mixed(first: object, second: object, share: np.ndarray) -> np.ndarray:
    a, b = linear(first), linear(second)
    return np.asarray(a + np.clip(share, 0, 1)[..., None] * (b - a))


def _bagel(x: np.ndarray, y: np.ndarray, noise: _Noise, rng: np.random.Generator) -> Relief:
    angle = np.arctan2(y, x)
    ring, tube = 0.030 * (1 + rng.normal(0, 0.03)), 0.0195 * (1 + rng.normal(0, 0.03))
    thick = tube * _outline(angle, rng, 0.035)
    away = (np.hypot(x, y) / _outline(angle, rng, 0.02) - ring) / thick
    dome = np.sqrt(np.clip(1 - away**2, 0, 1))
    height = 0.030 * (1 + rng.normal(0, 0.04)) * dome**0.9 * (1 + 0.03 * noise.smooth(0.03))
    height += np.where(height > 0.002, 0.00025 * noise.smooth(0.006), 0)
    brown = (
        0.45 + 0.5 * dome**2 + 0.18 * noise.smooth(0.02) + 0.10 * noise.smooth(0.005) + rng.normal(0, 0.06)
    )
    albedo = _mixed((0.86, 0.70, 0.44), (0.58, 0.33, 0.13), brown)
    seeds = np.clip((noise.grain(2.0) - 1.75) * 3, 0, 1) * (dome > 0.55)
    albedo += seeds[..., None] * (linear((0.93, 0.87, 0.70)) - albedo)
    height += 0.0005 * seeds
    return Relief(np.maximum(height, 0), albedo, np.full(x.shape, 0.18), (0.90, 0.82, 0.62))


def _cookie(x: np.ndarray, y: np.ndarray, noise: _Noise, rng: np.random.Generator) -> Relief:
    angle = np.arctan2(y, x)
    radius = 0.041 * (1 + rng.normal(0, 0.025)) * _outline(angle, rng, 0.018)
    away = np.hypot(x, y) / radius
    edge = np.clip((1 - away) / 0.16, 0, 1)
    height = (0.0135 + rng.normal(0, 0.0006)) * np.sqrt(1 - (1 - edge) ** 2)
    height += (edge > 0.1) * (0.00045 * noise.smooth(0.007) + 0.00018 * noise.grain(1.5))
    brown = 0.40 + 0.5 * np.clip(away - 0.7, 0, 1) * 2 + 0.12 * noise.smooth(0.012) + 0.10 * noise.grain(1.2)
    albedo = _mixed((0.83, 0.64, 0.38), (0.55, 0.34, 0.15), brown + rng.normal(0, 0.05))
    chips = np.zeros(x.shape)
    for _ in range(int(rng.integers(13, 19))):
        r, a = 0.034 * math.sqrt(rng.random()), rng.uniform(0, 7)
        size, squash = rng.uniform(0.0024, 0.0042), rng.uniform(0.75, 1.3)
        d = np.hypot((x - r * math.cos(a)) * squash, (y - r * math.sin(a)) / squash) / size
        chips = np.maximum(chips, np.clip((1 - d**2) * 2.5, 0, 1))
    albedo += chips[..., None] * (linear((0.20, 0.11, 0.06)) - albedo)
    height += 0.0012 * chips * (edge > 0.3)
    gloss = 0.05 + 0.3 * chips
    return Relief(np.maximum(height, 0), albedo, gloss, (0.76, 0.58, 0.35))


def _cable_gland(x: np.ndarray, y: np.ndarray, noise: _Noise, rng: np.random.Generator) -> Relief:
    """Standing on its nut: a flange with six flats, a dome with ribs, a bore with a seal."""
    angle, away = np.arctan2(y, x), np.hypot(x, y)
    flats = away * np.cos((angle + math.pi / 6) % (math.pi / 3) - math.pi / 6)
    nut = np.clip((0.0335 - flats) / 0.0012, 0, 1) * 0.014
    turn = rng.uniform(0, 7)  # the dome is screwed on by hand
    dome_radius = 0.0265
    ribs = 0.0005 * np.clip(np.cos(24 * (angle + turn)) * 2, -1, 1) * (away > 0.019)
    edge = np.clip((dome_radius + ribs - away) / 0.007, 0, 1)
    dome = np.where(edge > 0, 0.024 + 0.011 * np.sqrt(1 - (1 - edge) ** 2), 0)
    height = np.maximum(nut, dome * np.clip((dome_radius + ribs - away) / 0.0006, 0, 1))
    bore = 0.0125 + rng.normal(0, 0.0002)
    seal = np.clip((away - bore + 0.0035) / 0.0008, 0, 1)  # a rubber ring inside the bore
    deep = np.clip((bore - away) / 0.0007, 0, 1)
    height = height - deep * (height - np.where(seal > 0, 0.024 * seal + 0.006 * (1 - seal), 0.006))
    grey = 0.30 + rng.normal(0, 0.012) + 0.012 * noise.smooth(0.03) + 0.008 * noise.grain(1.0)
    albedo = linear(np.stack([grey, 1.01 * grey, 1.05 * grey], axis=-1))
    rubber = deep * (seal > 0)
    albedo += rubber[..., None] * (linear((0.10, 0.10, 0.11)) - albedo)
    mark = (np.abs(away - 0.0305) < 0.0011) & (np.sin(18 * angle + 3) > 0.2) & (angle > 0.3) & (angle < 1.4)
    albedo[mark] = linear((0.62, 0.62, 0.60))  # print on the nut
    return Relief(np.maximum(height, 0), albedo, np.where(rubber > 0, 0.1, 0.55), (0.55, 0.55, 0.57))


def _dowel(x: np.ndarray, y: np.ndarray, noise: _Noise, rng: np.random.Generator) -> Relief:
    """A wooden peg that lies along x, with grooves and bevelled ends."""
    radius, half = 0.0135 + rng.normal(0, 0.00015), 0.052 + rng.normal(0, 0.0008)
    bevel = np.clip((half - np.abs(x)) / 0.003, 0, 1)
    grooves = np.abs(x) < half - 0.009
    around = y / radius
    groove = 0.0007 * np.clip(
        np.cos(13 * np.arcsin(np.clip(around, -1, 1)) + rng.uniform(0, 7)) * 2 - 0.6, 0, 1
    )
    here = radius * (0.75 + 0.25 * bevel) - groove * grooves
    round_ = np.sqrt(np.clip(here**2 - y**2, 0, None))
    height = np.where((np.abs(x) < half) & (np.abs(y) < here), radius + round_, 0)
    grain = noise.smooth(0.02)
    wander = 0.004 * noise.smooth(0.05)
    rings = 0.5 + 0.5 * np.sin((y + wander) * 2200 + 3 * grain + 18 * x)
    fibres = gaussian_filter(rng.normal(0, 1, x.shape).astype(np.float32), (0.6, 9), truncate=2.0)
    share = 0.25 + 0.45 * rings**2 + 0.9 * fibres + rng.normal(0, 0.06)
    albedo = _mixed((0.86, 0.72, 0.52), (0.62, 0.44, 0.25), share)
    return Relief(np.maximum(height, 0), albedo, np.full(x.shape, 0.12), (0.80, 0.66, 0.46))


def _potato(x: np.ndarray, y: np.ndarray, noise: _Noise, rng: np.random.Generator) -> Relief:
    angle = np.arctan2(y, x)
    long, short = 0.050 * (1 + rng.normal(0, 0.05)), 0.034 * (1 + rng.normal(0, 0.05))
    away = np.hypot(x / long, y / short) / _outline(angle, rng, 0.03)
    dome = np.sqrt(np.clip(1 - away**2, 0, 1))
    height = (
        (0.023 + 0.021 * dome) * (dome > 0) * (1 + 0.04 * rng.normal()) * (1 + 0.025 * noise.smooth(0.03))
    )
    share = 0.45 + 0.16 * noise.smooth(0.015) + 0.10 * noise.smooth(0.004) + 0.06 * noise.grain(1.0)
    albedo = _mixed((0.80, 0.66, 0.42), (0.58, 0.42, 0.24), share + rng.normal(0, 0.05))
    for _ in range(int(rng.integers(6, 11))):  # eyes
        r, a = 0.85 * math.sqrt(rng.random()), rng.uniform(0, 7)
        d = np.hypot(x - r * long * math.cos(a), 1.8 * (y - r * short * math.sin(a))) / rng.uniform(
            0.0012, 0.0024
        )
        eye = np.exp(-(d**2))
        height -= 0.0007 * eye * (dome > 0)
        albedo += (0.6 * eye)[..., None] * (linear((0.42, 0.28, 0.14)) - albedo)
    return Relief(np.maximum(height, 0), albedo, np.full(x.shape, 0.10), (0.91, 0.84, 0.55))


_MAKERS: dict[PartName, Callable[[np.ndarray, np.ndarray, _Noise, np.random.Generator], Relief]] = {
    "bagel": _bagel,
    "cookie": _cookie,
    "cable_gland": _cable_gland,
    "dowel": _dowel,
    "potato": _potato,
}
