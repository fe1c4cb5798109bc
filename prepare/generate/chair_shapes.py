"""Procedural chairs: a base, a seat, a back and arms of many kinds, each with its own random sizes.

Sizes are metres while a chair is put together; `make_chair` scales it to the unit sphere. Everything that is drawn comes
from the seed and the shape's number alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from prepare.generate.chair_parts import (
    Chair,
    Component,
    Label,
    Slab,
    Slot,
    Solid,
    bar,
    box,
    rod,
    rotation_about,
    tapered,
    tube,
)
from prepare.generate.shapes import Frustum, tapered_box

Point = tuple[float | int, float | int, float | int]
SIDES = (-1.0, 1.0)


@dataclass
class Frame:
    """What the pieces of one chair have in common. Metres; y = 0 is the floor."""

    rng: np.random.Generator
    half_width: float  # of the seat
    half_depth: float
    height: float  # of the seat's top
    thick: float  # seat
    tilt: float  # of the back, rad
    back_height: float
    back_half: float  # half width of the back
    leg: str = "square"
    components: list[Component] = field(default_factory=list)
    underside: float = 0.0  # y where legs end
    posts: bool = False  # the back's posts run down to the floor as rear legs

    def add(self, label: Label, kind: str, slot: Slot, *solids: Solid) -> None:
        self.components.append(Component(label, kind, tuple(solids), slot))

    def uniform(self, low: float | int, high: float | int) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def pick(self, *options: str) -> str:
        return options[int(self.rng.integers(len(options)))]

    def back(self, x: float | int, up: float, out: float = 0.0) -> Point:
        """World point `up` along the back from the seat's rear edge, `out` before its plane."""
        sine, cosine = math.sin(self.tilt), math.cos(self.tilt)
        return (
            x,
            self.height - 0.01 + cosine * up + sine * out,
            -self.half_depth + 0.02 - sine * up + cosine * out,
        )

    @property
    def back_turn(self) -> np.ndarray:
        """Local x across, y up the back, z to its front."""
        return rotation_about((1, 0, 0), -self.tilt)


def make_chair(seed: int, number: int) -> Chair:
    """The chair `number` of `seed`: the kind of base goes round, all else is drawn."""
    rng = np.random.default_rng([seed, number, 7])
    names = list(BASES)
    base = names[(number + int(np.random.default_rng([seed, 11]).integers(len(names)))) % len(names)]
    office, stool, block = base in ("swivel", "star"), base == "stool", base == "block"
    half_width = rng.uniform(0.19, 0.28) + (0.06 if block else 0.0)
    frame = Frame(
        rng,
        half_width=half_width,
        half_depth=rng.uniform(0.185, 0.26) + (0.05 if block else 0.0),
        height=rng.uniform(0.62, 0.76) if stool else rng.uniform(0.40, 0.50),
        thick=rng.uniform(0.05, 0.11) if block or office else rng.uniform(0.022, 0.06),
        tilt=math.radians(rng.uniform(2, 18)),
        back_height=rng.uniform(0.22, 0.42) if stool else rng.uniform(0.34, 0.68),
        back_half=half_width * rng.uniform(0.82, 1.0),
        leg=str(rng.choice(["square", "square", "round", "tapered", "turned", "cone"])),
    )
    seats = ["slab", "cushion", "round", "trapezoid", "slatted", "framed", "layered", "waterfall"]
    if office or block:
        seats = ["cushion", "layered", "waterfall", "slab"]
    if base in ("four", "stool", "rocking") and frame.chance(0.35):
        frame.posts = True
    if frame.posts:
        seats.remove("round")
    seat = frame.pick(*seats)
    backs = [name for name in BACKS if not (frame.posts and name in ROUND_BACKS)]
    if block:
        backs = ["panel", "cushion", "split", "curved", "wings"]
    back = frame.pick(*backs)
    arms = "none"
    if block or (seat != "round" and frame.chance(0.5)):
        arms = frame.pick(*(["panel", "panel", "pads"] if block else ARMS))
    frame.underside = frame.height - frame.thick
    SEATS[seat](frame)
    BASES[base](frame)
    BACKS[back](frame)
    if arms != "none":
        ARMS[arms](frame)
    return Chair(f"{base}/{seat}/{back}/{arms}", tuple(frame.components)).fitted()


# --- seats ---------------------------------------------------------------------------------------------------------------


def _slab(f: Frame) -> None:
    f.add(
        "SeatSurface",
        "seat",
        "seat",
        box((0, f.height - f.thick / 2, 0), (f.half_width, f.thick / 2, f.half_depth)),
    )


def _cushion(f: Frame) -> None:
    rim = f.uniform(0.02, 0.05)
    bulge = min(0.045, 0.45 * f.thick)
    f.add(
        "SeatSurface", "seat", "seat",
        box((0, f.height - f.thick / 2, 0), (f.half_width, f.thick / 2, f.half_depth), bevel=bulge),
    )  # fmt: skip
    _apron(f, f.height - f.thick - rim, rim, 0.015)
    f.underside = f.height - f.thick - 0.001


def _apron(f: Frame, low: float, height: float, inset: float) -> None:
    """Four rails under the seat."""
    w, d, y, half = f.half_width - inset, f.half_depth - inset, low + height / 2, 0.011
    for side in SIDES:
        f.add("SeatFrame", "rail", "frame", box((side * (w - half), y, 0), (half, height / 2, d)))
        f.add("SeatFrame", "rail", "frame", box((0, y, side * (d - half)), (w, height / 2, half)))


def _round_seat(f: Frame) -> None:
    radius = min(f.half_width, f.half_depth) + 0.01
    f.back_half = min(f.back_half, 0.62 * radius)
    f.half_width, f.half_depth = radius, math.sqrt(radius**2 - f.back_half**2)  # the back stands on the rim
    rim = f.uniform(0.85, 1.0)
    f.add(
        "SeatSurface", "seat", "seat",
        Solid(
            Frustum(radius * rim, radius, f.thick / 2, min(0.4 * f.thick, 0.02)),
            np.array([0.0, f.height - f.thick / 2, 0.0]),
            rotation_about((1, 0, 0), -math.pi / 2),
        ),
    )  # fmt: skip


def _trapezoid(f: Frame) -> None:
    front = f.half_width
    rear = front * f.uniform(0.7, 0.9)
    f.back_half = min(f.back_half, rear)
    # local x -> x, local z (height of the trapezoid, rear to front) -> z, local y -> -y
    shape = tapered_box((rear, f.thick / 2), (front, f.thick / 2), f.half_depth, bevel=0.008)
    f.add(
        "SeatSurface", "seat", "seat",
        Solid(shape, np.array([0.0, f.height - f.thick / 2, 0.0]), np.eye(3)),
    )  # fmt: skip
    if f.chance(0.5):
        _apron_trapezoid(f, rear)


def _apron_trapezoid(f: Frame, rear: float) -> None:
    height, w, r, d = f.uniform(0.03, 0.05), f.half_width - 0.03, rear - 0.03, f.half_depth - 0.02
    y = f.underside - height / 2
    for side in SIDES:
        f.add("SeatFrame", "rail", "frame", bar((side * r, y, -d), (side * w, y, d), 0.01, height / 2))
    f.add("SeatFrame", "rail", "frame", box((0, y, d), (w, height / 2, 0.01)))
    f.add("SeatFrame", "rail", "frame", box((0, y, -d), (r, height / 2, 0.01)))


def _slatted(f: Frame) -> None:
    count, slat = int(f.rng.integers(4, 9)), f.uniform(0.008, 0.014)
    rail = max(0.03, f.thick)
    along_x = f.chance(0.6)
    span = f.half_depth if along_x else f.half_width
    pitch = 2 * span / count
    for i in range(count):
        at = -span + (i + 0.5) * pitch
        half = pitch * 0.36
        if along_x:
            solid = box((0, f.height - slat, at), (f.half_width, slat, half))
        else:
            solid = box((at, f.height - slat, 0), (half, slat, f.half_depth))
        f.add("SeatSurface", "slat", "seat", solid)
    f.thick = 2 * slat
    _apron(f, f.height - 2 * slat - rail, rail, 0.012)
    f.underside = f.height - f.thick


def _framed(f: Frame) -> None:
    rail = f.uniform(0.025, 0.04)
    thick = max(f.thick, 0.03)
    w, d, y = f.half_width, f.half_depth, f.height - thick / 2
    for side in SIDES:
        f.add("SeatFrame", "rail", "frame", box((side * (w - rail / 2), y, 0), (rail / 2, thick / 2, d)))
        f.add(
            "SeatFrame", "rail", "frame", box((0, y, side * (d - rail / 2)), (w - rail, thick / 2, rail / 2))
        )
    f.add(
        "SeatSurface", "seat", "seat",
        box((0, f.height - 0.010, 0), (w - 0.9 * rail, 0.012 + f.uniform(0, 0.01), d - 0.9 * rail), bevel=0.012),
    )  # fmt: skip
    f.thick = thick
    f.underside = f.height - thick


def _layered(f: Frame) -> None:
    plate = f.uniform(0.01, 0.02)
    inset = f.uniform(0.0, 0.03)
    f.add(
        "SeatSurface", "seat", "seat",
        box((0, f.height - f.thick / 2, 0), (f.half_width, f.thick / 2, f.half_depth), bevel=min(0.03, f.thick * 0.4)),
    )  # fmt: skip
    f.add(
        "SeatSupport", "plate", "frame",
        box((0, f.height - f.thick - plate, 0), (f.half_width - inset, plate, f.half_depth - inset)),
    )  # fmt: skip
    f.thick += 2 * plate
    f.underside = f.height - f.thick


def _waterfall(f: Frame) -> None:
    r = f.thick / 2
    f.add(
        "SeatSurface", "seat", "seat",
        box((0, f.height - r, -r / 2), (f.half_width, r, f.half_depth - r / 2)),
        rod((-f.half_width, f.height - r, f.half_depth - r), (f.half_width, f.height - r, f.half_depth - r), r),
    )  # fmt: skip


SEATS: dict[str, Callable[[Frame], None]] = {
    "slab": _slab, "cushion": _cushion, "round": _round_seat, "trapezoid": _trapezoid, "slatted": _slatted,
    "framed": _framed, "layered": _layered, "waterfall": _waterfall,
}  # fmt: skip


# --- bases ---------------------------------------------------------------------------------------------------------------


def _leg(f: Frame, top: Point, foot: Point, size: float) -> tuple[Solid, ...]:
    """A leg of the chair's kind from under the seat to the floor."""
    if f.leg == "square":
        return (bar(foot, top, size, size),)
    if f.leg == "round":
        return (rod(foot, top, size),)
    if f.leg == "tapered":
        return (tapered(foot, top, 0.6 * size, 1.15 * size),)
    if f.leg == "cone":
        return (rod(foot, top, 0.55 * size, 1.2 * size),)
    a, b = np.asarray(foot), np.asarray(top)
    marks = (0.0, 0.12, 0.18, 0.55, 0.62, 1.0)
    radii = (0.7, 1.0, 0.6, 1.15, 0.7, 1.1)
    return tuple(
        rod(a + (b - a) * marks[i], a + (b - a) * marks[i + 1], size * radii[i], size * radii[i + 1])
        for i in range(5)
    )


def _corner_legs(
    f: Frame, splay: float | None = None
) -> dict[tuple[float, float], tuple[np.ndarray, np.ndarray]]:
    """Four legs; returns top and foot by (side, front or rear)."""
    size = f.uniform(0.013, 0.024)
    lean = (f.uniform(0.0, 0.07) if f.chance(0.6) else 0.0) if splay is None else splay
    rear_lean = f.uniform(0.0, 0.09) if f.chance(0.5) else lean
    round_seat = any(isinstance(s.shape, Frustum) for s in f.components[0].solids)
    share = 0.8 if round_seat else 1.0
    found = {}
    rear_width = f.back_half if f.posts else min(f.half_width, f.back_half + 0.04) - 0.5 * size
    for side in SIDES:
        for end in SIDES:
            width = (f.half_width if end > 0 else rear_width) * share - size - 0.004
            depth = f.half_depth * share - size - 0.004
            x, z = side * width, end * depth
            if f.posts and end < 0:
                x, z = side * (f.back_half - size), -f.half_depth + 0.02
            top = np.array([x, f.underside + min(0.004, 0.3 * f.thick), z])
            foot = np.array([x + side * lean, 0.0, z + end * (lean if end > 0 else rear_lean)])
            if f.posts and end < 0:
                top = top + np.array([0, f.thick, 0])
                foot[0] = x
                f.add("Leg", "leg", "frame", bar(foot, top, size, size))
            else:
                f.add("Leg", "leg", "frame", *_leg(f, tuple(top), tuple(foot), size))
            found[side, end] = (top, foot)
    return found


def _on(leg: tuple[np.ndarray, np.ndarray], y: float) -> np.ndarray:
    """Where a leg's axis is at height y."""
    top, foot = leg
    return foot + (top - foot) * (y / top[1])


def _stretch(f: Frame, a: np.ndarray, b: np.ndarray, label: Label = "Leg", kind: str = "stretcher") -> None:
    size = f.uniform(0.007, 0.012)
    square = f.leg in ("square", "tapered")
    f.add(label, kind, "frame", bar(a, b, size, 1.4 * size) if square else rod(a, b, 1.2 * size))


def _stretchers(f: Frame, legs: dict, style: str) -> None:
    y = f.uniform(0.10, 0.22)
    if style in ("H", "sides", "box"):
        for side in SIDES:
            _stretch(f, _on(legs[side, 1.0], y), _on(legs[side, -1.0], y))
    if style == "H":
        ends = [0.5 * (_on(legs[side, 1.0], y) + _on(legs[side, -1.0], y)) for side in SIDES]
        _stretch(f, ends[0], ends[1])
    if style in ("box", "rear"):
        rise = f.uniform(0.0, 0.06)
        _stretch(f, _on(legs[-1.0, -1.0], y + rise), _on(legs[1.0, -1.0], y + rise))
    if style in ("box", "front"):
        rise = f.uniform(0.0, 0.06)
        _stretch(f, _on(legs[-1.0, 1.0], y + rise), _on(legs[1.0, 1.0], y + rise))
    if style == "X":
        _stretch(f, _on(legs[-1.0, 1.0], y), _on(legs[1.0, -1.0], y))
        _stretch(f, _on(legs[1.0, 1.0], y), _on(legs[-1.0, -1.0], y))


def _four(f: Frame) -> None:
    legs = _corner_legs(f)
    if f.chance(0.3):
        _stretchers(f, legs, f.pick("rear", "front"))


def _stretcher_base(f: Frame) -> None:
    _stretchers(f, _corner_legs(f), f.pick("H", "sides", "box", "X"))


def _stool(f: Frame) -> None:
    legs = _corner_legs(f, f.uniform(0.02, 0.09))
    y = f.uniform(0.2, 0.3)
    if f.chance(0.35) and not f.posts:
        radius = float(np.mean([np.hypot(*_on(leg, y)[[0, 2]]) for leg in legs.values()]))
        corners = [np.arctan2(_on(leg, y)[2], _on(leg, y)[0]) for leg in legs.values()]
        spread = float(np.ptp([np.hypot(*_on(leg, y)[[0, 2]]) for leg in legs.values()]))
        if spread < 0.012 and len(corners) == 4:
            angles = np.linspace(0, 2 * np.pi, 17)
            ring = [(radius * math.cos(a), y, radius * math.sin(a)) for a in angles]
            f.add("Footrest", "ring", "metal", *tube(ring, 0.009))
            return
    ends = [(-1.0, 1.0), (1.0, 1.0), (1.0, -1.0), (-1.0, -1.0)]
    for i in range(4):
        if i == 0 or f.chance(0.75):
            rise = 0.0 if i == 0 else f.uniform(0.0, 0.05)
            a, b = _on(legs[ends[i]], y + rise), _on(legs[ends[(i + 1) % 4]], y + rise)
            _stretch(f, a, b, "Footrest", "footrest bar")


def _star(f: Frame, castors: bool) -> None:
    arms = int(f.rng.choice([4, 5, 5, 5])) if castors else int(f.rng.choice([3, 4, 5]))
    reach, lift = f.uniform(0.24, 0.31), 0.055 if castors else 0.0
    hub_y = lift + f.uniform(0.05, 0.09)
    radius = f.uniform(0.018, 0.03)
    f.add(
        "SurfaceBase",
        "hub",
        "metal",
        rod((0, hub_y - 0.03, 0), (0, hub_y + 0.035, 0), radius * 1.7, radius * 1.3),
    )
    turn = f.uniform(0, 2 * math.pi)
    flat = f.chance(0.5)
    for k in range(arms):
        a = turn + 2 * math.pi * k / arms
        c, s = math.cos(a), math.sin(a)
        end = (reach * c, lift + 0.015, reach * s)
        start = (0.6 * radius * c, hub_y, 0.6 * radius * s)
        solids = [bar(start, end, 0.016, 0.011) if flat else rod(start, end, 0.019, 0.011)]
        if castors:
            wheel = 0.027
            ahead = (0.97 * reach * c, 0.97 * reach * s)
            solids.append(rod((ahead[0], 0.03, ahead[1]), (ahead[0], lift + 0.02, ahead[1]), 0.007))
            for side in SIDES:
                mid = np.array([ahead[0] - side * 0.014 * s, wheel, ahead[1] + side * 0.014 * c])
                axis = np.array([-s, 0, c]) * 0.009
                solids.append(rod(mid - axis, mid + axis, wheel))
        else:
            solids.append(rod((end[0], 0.0, end[2]), (end[0], 0.02, end[2]), 0.013))
        f.add("Leg", "castor leg" if castors else "star leg", "metal", *solids)
    f.add(
        "SeatSupport", "column", "metal", rod((0, hub_y, 0), (0, f.underside - 0.02, 0), radius, 0.8 * radius)
    )
    size = f.uniform(0.06, 0.11)
    f.add(
        "SeatSupport", "mechanism", "metal",
        box((0, f.underside - 0.018, 0), (size, 0.02, size * f.uniform(0.8, 1.4))),
    )  # fmt: skip
    if castors and f.chance(0.5):
        y = f.underside - 0.02
        f.add(
            "Other",
            "lever",
            "accent",
            *tube(
                [(0.04, y, 0.02), (f.half_width * 0.75, y, 0.03), (f.half_width * 0.95, y - 0.012, 0.03)],
                0.008,
            ),
        )


def _pedestal(f: Frame) -> None:
    radius, plate = f.uniform(0.19, 0.26), f.uniform(0.008, 0.025)
    column = f.uniform(0.02, 0.05)
    if f.chance(0.6):
        solid = rod((0, 0, 0), (0, 2 * plate, 0), radius, radius * f.uniform(0.7, 1.0))
    else:
        solid = box((0, plate, 0), (radius, plate, radius))
    f.add("SurfaceBase", "base plate", "metal", solid)
    flare = f.uniform(0.6, 1.6)
    f.add(
        "SeatSupport",
        "column",
        "metal",
        rod((0, plate, 0), (0, f.underside - 0.01, 0), column * flare, column),
    )
    f.add("SeatSupport", "mechanism", "metal", box((0, f.underside - 0.01, 0), (0.11, 0.012, 0.11)))


def _cantilever(f: Frame) -> None:
    r = f.uniform(0.010, 0.016)
    w, d = f.half_width - r, f.half_depth
    front, rear = d * f.uniform(0.85, 1.0), -d * f.uniform(0.85, 1.05)
    top = f.underside - r + 0.003
    lean = f.uniform(-0.02, 0.04)
    for side in SIDES:
        x = side * w
        path = [
            (x, top, -d * 0.8), (x, top, front - 0.03), (x, top - 0.012, front - 0.009), (x, top - 0.04, front),
            (x, r + 0.045, front + lean), (x, r + 0.012, front + lean - 0.01), (x, r, front + lean - 0.04), (x, r, rear),
        ]  # fmt: skip
        f.add("Leg", "cantilever side", "metal", *tube(path, r))
    f.add("Leg", "cross bar", "metal", *tube([(-w, r, rear), (w, r, rear)], r))
    f.add("SeatFrame", "cross bar", "metal", *tube([(-w, top, -d * 0.8), (w, top, -d * 0.8)], r))
    if f.chance(0.5):
        f.add("SeatFrame", "cross bar", "metal", *tube([(-w, top, front * 0.6), (w, top, front * 0.6)], r))


def _sled(f: Frame) -> None:
    r = f.uniform(0.009, 0.016)
    w, d = f.half_width - 1.5 * r, f.half_depth
    lean = f.uniform(-0.01, 0.05)
    square = f.chance(0.4)
    top = f.underside + 0.003
    for side in SIDES:
        x = side * w
        points: list[Point] = [
            (x, top, d * 0.85), (x + side * lean * 0.4, r, d * 0.85 + lean), (x + side * lean * 0.4, r, -d * 0.9 - lean),
            (x, top, -d * 0.8),
        ]  # fmt: skip
        if square:
            solids = tuple(bar(a, b, r, r) for a, b in itertools.pairwise(points))
        else:
            solids = tube(points, r)
        f.add("Leg", "sled side", "metal", *solids)
    y, z = f.uniform(0.02, 0.3), -d * 0.85
    x = w + lean * 0.4 * (1 - y / top)
    rear = z - lean * (1 - y / top)
    f.add("Leg", "cross bar", "metal", *tube([(-x, y, rear), (x, y, rear)], 0.8 * r))
    under = f.underside - 0.7 * r
    f.add("SeatSupport", "cross bar", "metal", *tube([(-w, under, d * 0.8), (w, under, d * 0.8)], r))


def _trestle(f: Frame) -> None:
    half, w = f.uniform(0.009, 0.02), f.half_width - 0.03
    top = f.underside + 0.003
    depth = f.half_depth * f.uniform(0.6, 0.95)
    for side in SIDES:
        shape = tapered_box((depth, half), (depth * f.uniform(0.6, 1.0), half), top / 2, bevel=0.004)
        turn = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])  # local x -> z, y -> x, z -> y
        f.add("Leg", "side board", "frame", Solid(shape, np.array([side * w, top / 2, 0.0]), turn))
    y = f.uniform(0.1, 0.28)
    f.add("Leg", "stretcher", "frame", box((0, y, 0), (w, f.uniform(0.02, 0.05), 0.009)))


def _rocking(f: Frame) -> None:
    legs = _corner_legs(f, f.uniform(0.0, 0.03))
    radius = f.uniform(0.9, 1.3)
    half, rise = f.half_depth + f.uniform(0.1, 0.16), 0.0
    count = 9
    for side in SIDES:
        x = 0.5 * (legs[side, 1.0][1][0] + legs[side, -1.0][1][0])
        z = np.linspace(-half - 0.05, half, count + 1)
        low = radius - np.sqrt(radius**2 - f.half_depth**2)
        y = radius - np.sqrt(radius**2 - z**2) - low + rise
        points = [(x, float(v), float(u)) for u, v in zip(z, y, strict=True)]
        solids = tuple(bar(a, b, 0.013, 0.016) for a, b in itertools.pairwise(points))
        f.add("SurfaceBase", "rocker", "frame", *solids)
    if f.chance(0.6):
        _stretchers(f, legs, f.pick("H", "rear", "front", "sides"))


def _crossed(f: Frame) -> None:
    size, w, d = f.uniform(0.010, 0.016), f.half_width - 0.02, f.half_depth
    top = f.underside + 0.003
    for side in SIDES:
        for end in SIDES:
            x = side * (w - (2.2 * size if end > 0 else 0.0))
            f.add(
                "Leg", "crossed leg", "frame",
                bar((x, 0.0, end * d * 0.95), (x, top, -end * d * 0.8), size, 1.3 * size),
            )  # fmt: skip
    y, z = 0.08, d * 0.95 * (1 - 0.08 / top) - d * 0.8 * 0.08 / top
    f.add("Leg", "cross bar", "frame", *tube([(-w, y, -z), (w, y, -z)], 0.009))
    f.add("Leg", "cross bar", "frame", *tube([(-w, y, z), (w, y, z)], 0.009))


def _hairpin(f: Frame) -> None:
    r = f.uniform(0.006, 0.009)
    w, d, lean = f.half_width * 0.72, f.half_depth * 0.72, f.uniform(0.0, 0.07)
    top = f.underside + 0.003
    for side in SIDES:
        for end in SIDES:
            foot = (side * (w + lean), r, end * (d + lean))
            spread = 0.035
            solids = tube(
                [
                    (side * (w - spread), top, end * (d + spread)),
                    foot,
                    (side * (w + spread), top, end * (d - spread)),
                ],
                r,
            )
            f.add("Leg", "hairpin leg", "metal", *solids)


def _block(f: Frame) -> None:
    leg_height = f.uniform(0.05, 0.14)
    w, d = f.half_width, f.half_depth
    middle = 0.5 * (f.underside + leg_height)
    f.add(
        "SurfaceBase",
        "plinth",
        "back",
        box((0, middle, 0), (w, (f.underside - leg_height) / 2 + 0.002, d), bevel=0.012),
    )
    size = f.uniform(0.016, 0.028)
    for side in SIDES:
        for end in SIDES:
            top = (side * (w - 0.05), leg_height + 0.004, end * (d - 0.05))
            foot = (side * (w - 0.04), 0.0, end * (d - 0.04))
            f.add(
                "Leg",
                "foot",
                "frame",
                tapered(foot, top, 0.7 * size, size) if f.leg != "round" else rod(foot, top, size),
            )


def _tripod(f: Frame) -> None:
    size, lean = f.uniform(0.015, 0.024), f.uniform(0.03, 0.09)
    w, d = 0.62 * f.half_width, 0.62 * f.half_depth
    top = f.underside + 0.003
    for x, z in ((w, d), (-w, d), (0.0, -d)):
        foot = (x * (1 + lean / w), 0.0, z * (1 + lean / d))
        f.add("Leg", "leg", "frame", *_leg(f, (x, top, z), foot, size))


BASES: dict[str, Callable[[Frame], None]] = {
    "four": _four, "stretchers": _stretcher_base, "swivel": lambda f: _star(f, True), "cantilever": _cantilever,
    "sled": _sled, "pedestal": _pedestal, "stool": _stool, "rocking": _rocking, "trestle": _trestle,
    "crossed": _crossed, "hairpin": _hairpin, "block": _block, "tripod": _tripod, "star": lambda f: _star(f, False),
}  # fmt: skip


# --- backs ---------------------------------------------------------------------------------------------------------------


def _plate(
    f: Frame, x: float | int, up: float, half_x: float, half_up: float, half: float, bevel: float = 0.006
) -> Solid:
    return box(f.back(x, up), (half_x, half_up, half), f.back_turn, bevel)


def _post(f: Frame, x: float, low: float, high: float, size: float) -> Solid:
    a, b = f.back(x, low), f.back(x, high)
    return rod(a, b, size) if f.leg in ("round", "cone", "turned") else bar(a, b, size, size)


def _supports(f: Frame, gap: float, label: Label = "BackSupport") -> None:
    """Two connectors from the seat to a back that starts `gap` above it."""
    x, size = f.back_half * f.uniform(0.45, 0.8), f.uniform(0.008, 0.014)
    for side in SIDES:
        solid = _post(f, side * x, -0.015 - 0.3 * f.thick, gap + f.back_height * 0.35, size)
        f.add(
            label,
            "connector",
            "metal" if f.chance(0.3) else "frame",
            solid.moved(np.eye(3), (0, 0, 0), (0, 0, -0.006)),
        )


def _panel(f: Frame) -> None:
    gap, half = f.uniform(0.05, 0.14), f.uniform(0.008, 0.02)
    if f.posts or f.chance(0.3):
        _two_posts(f, f.back_height)
        f.add(
            "BackSurface",
            "panel",
            "back",
            _plate(f, 0, 0.5 * (gap + f.back_height), f.back_half - 0.01, 0.5 * (f.back_height - gap), half),
        )
        return
    solid = f.chance(0.3)
    low = 0.0 if solid else gap
    f.add(
        "BackSurface",
        "panel",
        "back",
        _plate(f, 0, 0.5 * (low + f.back_height), f.back_half, 0.5 * (f.back_height - low), half),
    )
    if not solid:
        _supports(f, gap)


def _cushion_back(f: Frame) -> None:
    gap, half = f.uniform(0.02, 0.12), f.uniform(0.025, 0.045)
    high = f.back_height
    f.add(
        "BackSurface",
        "panel",
        "back",
        _plate(f, 0, 0.5 * (gap + high), f.back_half, 0.5 * (high - gap), half, bevel=0.8 * half),
    )
    if f.chance(0.5):
        f.add(
            "BackSupport",
            "spine",
            "metal",
            _plate(f, 0, 0.3 * high, 0.03, 0.3 * high + 0.02, 0.012).moved(
                np.eye(3), (0, 0, 0), (0, 0, -half)
            ),
        )
    else:
        _supports(f, gap)
    if high > 0.45 and f.chance(0.5):
        f.add(
            "Other",
            "headrest",
            "back",
            _plate(f, 0, high + 0.075, 0.55 * f.back_half, 0.05, 0.8 * half, bevel=0.6 * half),
        )
        for side in SIDES:
            f.add(
                "BackSupport",
                "pin",
                "metal",
                rod(
                    f.back(side * 0.3 * f.back_half, high - 0.02),
                    f.back(side * 0.3 * f.back_half, high + 0.05),
                    0.006,
                ),
            )


def _two_posts(f: Frame, high: float, size: float | None = None) -> float:
    """Posts at both sides; their half size."""
    size = f.uniform(0.010, 0.018) if size is None else size
    for side in SIDES:
        f.add(
            "BackFrame",
            "post",
            "frame",
            _post(f, side * (f.back_half - size), -0.012 - 0.4 * f.thick, high, size),
        )
    return size


def _rail(f: Frame, up: float, half_up: float, half: float, kind: str = "rail") -> None:
    label: Label = "BackFrame"
    f.add(label, kind, "frame", _plate(f, 0, up, f.back_half - 0.008, half_up, half))


def _frame_panel(f: Frame) -> None:
    size = _two_posts(f, f.back_height)
    low, rail = f.uniform(0.05, 0.15), f.uniform(0.016, 0.03)
    _rail(f, f.back_height - rail, rail, 0.9 * size)
    _rail(f, low, 0.8 * rail, 0.8 * size)
    middle, half = 0.5 * (low + f.back_height), 0.5 * (f.back_height - low)
    f.add(
        "BackSurface",
        "panel",
        "back",
        _plate(f, 0, middle, f.back_half - 1.5 * size, half - 0.6 * rail, 0.6 * size),
    )


def _slats(f: Frame) -> None:
    size = _two_posts(f, f.back_height)
    low, rail = f.uniform(0.03, 0.14), f.uniform(0.012, 0.03)
    _rail(f, f.back_height - rail, rail, 0.9 * size)
    _rail(f, low, 0.8 * rail, 0.8 * size)
    count = int(f.rng.integers(3, 9))
    span = f.back_half - 2 * size
    width = span / count * f.uniform(0.3, 0.62)
    for i in range(count):
        x = -span + (2 * i + 1) * span / count
        f.add(
            "BackSurface",
            "slat",
            "back",
            _plate(
                f,
                x,
                0.5 * (low + f.back_height - rail),
                width,
                0.5 * (f.back_height - low) - 0.3 * rail,
                0.006,
            ),
        )


def _ladder(f: Frame) -> None:
    size = _two_posts(f, f.back_height)
    count = int(f.rng.integers(2, 6))
    low = f.uniform(0.1, 0.18)
    pitch = (f.back_height - low) / count
    for i in range(count):
        f.add(
            "BackSurface",
            "rung",
            "back",
            _plate(f, 0, low + (i + 0.5) * pitch, f.back_half - size, pitch * 0.3, 0.007),
        )


def _spindles(f: Frame) -> None:
    rail = f.uniform(0.02, 0.035)
    count, fan = int(f.rng.integers(5, 10)), f.uniform(0.75, 1.0)
    f.add(
        "BackFrame", "top rail", "frame", _plate(f, 0, f.back_height - rail, f.back_half, rail, 0.012, 0.008)
    )
    for i in range(count):
        x = (2 * i + 1 - count) / count * (f.back_half - 0.01)
        edge = i in (0, count - 1)
        solid = rod(f.back(x * fan, -0.012), f.back(x, f.back_height - rail), 0.009 if edge else 0.006)
        f.add("BackFrame" if edge else "BackSurface", "spindle", "frame", solid)


def _split(f: Frame) -> None:
    half = f.uniform(0.008, 0.018)
    if f.chance(0.5):
        size = _two_posts(f, f.back_height)
        low, cut = f.uniform(0.08, 0.14), f.uniform(0.4, 0.62) * f.back_height
        for a, b in ((low, cut), (cut + f.uniform(0.03, 0.06), f.back_height)):
            f.add(
                "BackSurface",
                "panel",
                "back",
                _plate(f, 0, 0.5 * (a + b), f.back_half - size, 0.5 * (b - a), half),
            )
        return
    gap, slit = f.uniform(0.03, 0.1), f.uniform(0.012, 0.04)
    panel = 0.5 * (f.back_half - slit)
    for side in SIDES:
        x = side * (slit + panel)
        f.add(
            "BackSurface",
            "panel",
            "back",
            _plate(f, x, 0.5 * (gap + f.back_height), panel, 0.5 * (f.back_height - gap), half),
        )
        solid = _post(f, x, -0.015 - 0.3 * f.thick, 0.7 * f.back_height, 0.010)
        f.add("BackSupport", "connector", "frame", solid.moved(np.eye(3), (0, 0, 0), (0, 0, -half)))


def _curved(f: Frame) -> None:
    """A shell bent round the sitter: upright slabs along an arc."""
    gap = f.uniform(0.0, 0.12)
    sweep, half = math.radians(f.uniform(40, 110)), f.uniform(0.007, 0.02)
    radius = f.back_half / math.sin(sweep / 2)
    count = 8
    step = sweep / count
    solids = []
    for i in range(count):
        a = -sweep / 2 + (i + 0.5) * step
        x, out = radius * math.sin(a), radius * (1 - math.cos(a))
        turn = f.back_turn @ rotation_about((0, 1, 0), -a)
        shape = Slab(
            ((radius + half) * math.tan(step / 2), 0.5 * (f.back_height - gap), half), 5e-4, -step / 2
        )
        solids.append(Solid(shape, np.asarray(f.back(x, 0.5 * (gap + f.back_height), out)), turn))
    f.add("BackSurface", "shell", "back", *solids)
    if gap > 0.0:
        x, size = 0.35 * f.back_half, f.uniform(0.008, 0.014)
        out = radius - math.sqrt(radius**2 - x**2)
        for side in SIDES:
            low, high = (
                f.back(side * x, -0.015 - 0.3 * f.thick, 0.0),
                f.back(side * x, gap + 0.4 * f.back_height, out - half),
            )
            f.add("BackSupport", "connector", "metal", rod(low, high, size))


def _arch(f: Frame, high: float, half_width: float, square: float) -> list[Point]:
    """Corners of a hoop: upright sides and a rounded top."""
    shoulder = high - square * min(half_width, 0.6 * high)
    path = [f.back(-half_width, -0.014)]
    for a in np.linspace(math.pi, 0, 11):
        path.append(f.back(half_width * math.cos(a), shoulder + (high - shoulder) * math.sin(a)))
    path.append(f.back(half_width, -0.014))
    return path


def _tubular(f: Frame) -> None:
    r = f.uniform(0.009, 0.015)
    f.add(
        "BackFrame", "hoop", "metal", *tube(_arch(f, f.back_height, f.back_half - r, f.uniform(0.15, 0.4)), r)
    )
    low, high = f.uniform(0.1, 0.2), f.back_height * f.uniform(0.8, 0.93)
    f.add(
        "BackSurface",
        "panel",
        "back",
        _plate(f, 0, 0.5 * (low + high), f.back_half - 0.9 * r, 0.5 * (high - low), 0.8 * r, 0.8 * r),
    )


def _bentwood(f: Frame) -> None:
    r = f.uniform(0.009, 0.013)
    f.add(
        "BackFrame", "hoop", "frame", *tube(_arch(f, f.back_height, f.back_half - r, f.uniform(0.7, 1.0)), r)
    )
    if f.chance(0.5):
        f.add(
            "BackSurface",
            "inner hoop",
            "frame",
            *tube(_arch(f, 0.72 * f.back_height, 0.52 * f.back_half, 0.9), 0.8 * r),
        )
    else:
        for x in (-0.35, 0.0, 0.35):
            top = f.back_height - (1 - math.sqrt(1 - (x * 1.05) ** 2)) * 0.5 * f.back_height - 0.4 * r
            f.add(
                "BackSurface",
                "spindle",
                "frame",
                rod(f.back(x * f.back_half, -0.012), f.back(x * f.back_half, top), 0.007),
            )


def _crossed_back(f: Frame) -> None:
    size = _two_posts(f, f.back_height)
    low, rail, x = f.uniform(0.06, 0.16), f.uniform(0.014, 0.028), f.back_half - size
    _rail(f, f.back_height - rail, rail, 0.9 * size)
    _rail(f, low, 0.8 * rail, 0.8 * size)
    for k, side in enumerate(SIDES):
        out = 0.007 * (k - 0.5)
        f.add(
            "BackSurface",
            "brace",
            "frame",
            bar(f.back(-side * x, low, out), f.back(side * x, f.back_height - rail, out), 0.012, 0.006),
        )


def _splat(f: Frame) -> None:
    size = _two_posts(f, f.back_height - 0.02)
    rail = f.uniform(0.02, 0.035)
    f.add(
        "BackFrame", "top rail", "frame", _plate(f, 0, f.back_height - rail, f.back_half + 0.012, rail, size)
    )
    _rail(f, 0.07, 0.014, 0.8 * size)
    low, high = f.uniform(0.25, 0.5), f.uniform(0.25, 0.5)
    shape = tapered_box(
        (low * f.back_half, 0.006), (high * f.back_half, 0.006), 0.5 * (f.back_height - 0.07), bevel=0.004
    )
    turn = f.back_turn @ rotation_about((1, 0, 0), -math.pi / 2)  # local z up the back
    f.add(
        "BackSurface",
        "splat",
        "back",
        Solid(shape, np.asarray(f.back(0, 0.5 * (f.back_height + 0.07))), turn),
    )


def _wires(f: Frame) -> None:
    size = _two_posts(f, f.back_height, f.uniform(0.008, 0.012))
    count = int(f.rng.integers(5, 11))
    low = f.uniform(0.06, 0.14)
    for i in range(count):
        up = low + (f.back_height - low - 0.01) * i / (count - 1)
        kind: Label = "BackFrame" if i == count - 1 else "BackSurface"
        f.add(
            kind,
            "wire",
            "metal",
            rod(f.back(-f.back_half + size, up), f.back(f.back_half - size, up), 0.0055),
        )


def _wings(f: Frame) -> None:
    half = f.uniform(0.03, 0.05)
    f.add(
        "BackSurface",
        "panel",
        "back",
        _plate(f, 0, 0.5 * f.back_height, f.back_half, 0.5 * f.back_height + 0.01, half, 0.02),
    )
    reach = f.uniform(0.06, 0.12)
    for side in SIDES:
        up = f.back_height * 0.68
        f.add(
            "Other",
            "wing",
            "back",
            box(
                f.back(side * (f.back_half - 0.018), up, reach),
                (0.02, 0.3 * f.back_height, reach),
                f.back_turn,
                0.012,
            ),
        )


BACKS: dict[str, Callable[[Frame], None]] = {
    "panel": _panel, "cushion": _cushion_back, "frame-panel": _frame_panel, "slats": _slats, "ladder": _ladder,
    "spindles": _spindles, "split": _split, "curved": _curved, "tubular": _tubular, "bentwood": _bentwood,
    "crossed": _crossed_back, "splat": _splat, "wires": _wires, "wings": _wings,
}  # fmt: skip
ROUND_BACKS = ("curved", "tubular", "bentwood", "spindles", "wings", "cushion")


# --- arms ----------------------------------------------------------------------------------------------------------------


def _arm_height(f: Frame) -> float:
    return min(f.uniform(0.16, 0.25), 0.8 * f.back_height)


def _rear_of_arm(f: Frame, rise: float) -> float:
    """z of the back's plane at the arm's height."""
    return f.back(0, rise / math.cos(f.tilt))[2]


def _rest_arms(f: Frame) -> None:
    rise, size = _arm_height(f), f.uniform(0.010, 0.018)
    front = f.half_depth * f.uniform(0.45, 0.85)
    x = f.half_width + 0.3 * size
    y, z = f.height + rise, _rear_of_arm(f, rise)
    round_rest = f.chance(0.4)
    for side in SIDES:
        a, b = (side * (min(f.back_half, x)), y, z - 0.008), (side * x, y, front + f.uniform(0.0, 0.05))
        f.add(
            "Arm",
            "armrest",
            "frame",
            rod(a, b, 1.2 * size) if round_rest else bar(a, b, 1.6 * size, 0.8 * size),
        )
        f.add("Arm", "arm post", "frame", _post_arm(f, side * x, f.height - f.thick, y, front, size))


def _post_arm(f: Frame, x: float, low: float, high: float, z: float, size: float) -> Solid:
    if f.leg in ("round", "cone", "turned"):
        return rod((x, low, z), (x, high, z), 0.8 * size, size)
    return bar((x, low, z), (x, high, z), size, size)


def _panel_arms(f: Frame) -> None:
    rise, half = _arm_height(f), f.uniform(0.03, 0.06)
    block = any(c.kind == "plinth" for c in f.components)
    low = f.uniform(0.05, 0.14) if block else f.height - f.thick
    z = -f.half_depth + 0.005
    for side in SIDES:
        high = f.height + rise
        f.add(
            "Arm", "arm panel", "back",
            box(
                (side * (f.half_width + half - 0.004), 0.5 * (low + high), 0.5 * (z + f.half_depth)),
                (half, 0.5 * (high - low), 0.5 * (f.half_depth - z)),
                bevel=0.4 * half,
            ),
        )  # fmt: skip


def _loop_arms(f: Frame) -> None:
    rise, r = _arm_height(f), f.uniform(0.009, 0.014)
    x, front = f.half_width + 0.6 * r, f.half_depth * f.uniform(0.4, 0.8)
    y, z = f.height + rise, _rear_of_arm(f, rise)
    low = f.height - 0.5 * f.thick
    pad = f.chance(0.5)
    for side in SIDES:
        s = side * x
        path = [
            (side * min(f.back_half, x), y, z - 0.004),
            (s, y, front - 0.05),
            (s, y - 0.012, front - 0.015),
            (s, y - 0.045, front),
            (s, low, front),
        ]
        f.add("Arm", "arm loop", "metal", *tube(path, r))
        if pad:
            f.add(
                "Arm",
                "arm pad",
                "accent",
                box(
                    (s, y + 0.9 * r + 0.004, 0.5 * (z + front) - 0.02),
                    (0.022, 0.009, 0.3 * (front - z)),
                    bevel=0.006,
                ),
            )


def _t_arms(f: Frame) -> None:
    rise = _arm_height(f)
    x = f.half_width + 0.03
    under = f.underside
    for side in SIDES:
        f.add(
            "Arm",
            "arm post",
            "metal",
            box(
                (side * x, 0.5 * (under + f.height + rise), 0.0),
                (0.009, 0.5 * (f.height + rise - under) + 0.012, 0.024),
            ),
            box((side * (x - 0.03), under - 0.004, 0.0), (0.039, 0.008, 0.022)),
        )
        f.add(
            "Arm",
            "armrest",
            "accent",
            box((side * x, f.height + rise + 0.012, 0.01), (0.034, 0.013, f.half_depth * 0.55), bevel=0.009),
        )


def _sloped_arms(f: Frame) -> None:
    rise, size = _arm_height(f), f.uniform(0.010, 0.016)
    z = _rear_of_arm(f, rise)
    for side in SIDES:
        a = (side * f.back_half * 0.98, f.height + rise, z - 0.006)
        b = (side * (f.half_width - 0.6 * size), f.height - 0.5 * f.thick, f.half_depth * 0.75)
        f.add("Arm", "sloped arm", "frame", bar(a, b, size, 1.3 * size))


def _pad_arms(f: Frame) -> None:
    """Thick upholstered rests on two posts each."""
    rise, half = _arm_height(f), f.uniform(0.025, 0.04)
    x = f.half_width - 0.4 * half
    y, z = f.height + rise, _rear_of_arm(f, rise) - 0.01
    front = f.half_depth * 0.8
    low = f.height - 0.5 * f.thick
    for side in SIDES:
        f.add(
            "Arm",
            "armrest",
            "back",
            box(
                (side * x, y, 0.5 * (z + front)),
                (half, 0.6 * half, 0.5 * (front - z) + 0.02),
                bevel=0.4 * half,
            ),
        )
        f.add("Arm", "arm post", "frame", _post_arm(f, side * x, low, y, front - 0.04, 0.012))


ARMS: dict[str, Callable[[Frame], None]] = {
    "rest": _rest_arms, "panel": _panel_arms, "loop": _loop_arms, "T": _t_arms, "sloped": _sloped_arms, "pads": _pad_arms,
}  # fmt: skip
