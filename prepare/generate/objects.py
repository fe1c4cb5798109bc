"""Procedural products: four families of toys and machines, each drawn anew by its seed.

x is forward, y to the left, z up. Sizes below are in a workbench unit (a wheel is about 0.3); `make_object` scales the
result into the unit ball.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

from prepare.generate.parts import (
    Assembly,
    Colour,
    Lettering,
    Lines,
    Part,
    Pattern,
    Ring,
    Spokes,
    Stripes,
    Vector,
)
from prepare.generate.shapes import (
    Box,
    Capsule,
    Ellipsoid,
    Frustum,
    Shape,
    Torus,
    prism,
    regular_prism,
    tapered_box,
)

Place = Sequence[float | int] | Float[np.ndarray, "xyz=3"]
Family = Literal["truck", "locomotive", "robot", "pump"]

RED, ORANGE, YELLOW = (0.80, 0.10, 0.09), (0.93, 0.42, 0.07), (0.96, 0.74, 0.10)
GREEN, TEAL, BLUE = (0.13, 0.50, 0.23), (0.07, 0.52, 0.55), (0.10, 0.29, 0.68)
NAVY, PURPLE, CREAM = (0.10, 0.15, 0.33), (0.43, 0.24, 0.58), (0.93, 0.88, 0.76)
WHITE, LIGHT, GREY = (0.92, 0.92, 0.91), (0.74, 0.75, 0.77), (0.47, 0.49, 0.52)
DARK, BLACK, RUBBER = (0.24, 0.25, 0.28), (0.10, 0.10, 0.12), (0.13, 0.13, 0.14)
STEEL, BRASS, COPPER = (0.66, 0.68, 0.71), (0.80, 0.62, 0.25), (0.75, 0.42, 0.27)
GLASS, AMBER, LAMP = (0.55, 0.75, 0.88), (0.98, 0.58, 0.08), (0.99, 0.93, 0.66)

X, Y, Z, BELOW = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.0, -1.0)


class Kit:
    """The parts of a product under construction."""

    def __init__(self) -> None:
        self.parts: list[Part] = []

    def add(
        self,
        name: str,
        shape: Shape,
        at: Place,
        colour: Colour,
        group: str = "",
        gloss: float = 0.35,
        patterns: tuple[Pattern, ...] = (),
        axis: Vector = Z,
        tilt_deg: float = 0.0,
    ) -> None:
        """Place `shape`, its local z along `axis`, then turned by `tilt_deg` about the world's y axis."""
        rotation = _turn_y(tilt_deg) @ frame_along(axis)
        self.parts.append(
            Part(name, group, shape, np.asarray(at, np.float64), rotation, colour, gloss, patterns)
        )

    def box(self, name: str, half: Vector, at: Place, colour: Colour, **how: object) -> None:
        self.add(name, Box(half), at, colour, **how)  # type: ignore[arg-type]

    def rod(
        self,
        name: str,
        start: Place,
        end: Place,
        radius: float,
        colour: Colour,
        **how: object,
    ) -> None:
        """A cylinder from `start` to `end`."""
        self._between(name, start, end, lambda half: Frustum(radius, radius, half), colour, how)

    def cone(
        self,
        name: str,
        start: Place,
        end: Place,
        radii: tuple[float, float],
        colour: Colour,
        **how: object,
    ) -> None:
        """A frustum from `start` (first radius) to `end` (second radius)."""
        self._between(name, start, end, lambda half: Frustum(*radii, half), colour, how)

    def limb(
        self,
        name: str,
        start: Place,
        end: Place,
        radius: float,
        colour: Colour,
        **how: object,
    ) -> None:
        """A capsule whose ball centres are `start` and `end`."""
        self._between(name, start, end, lambda half: Capsule(radius, half), colour, how)

    def _between(
        self,
        name: str,
        start: Place,
        end: Place,
        shape: Callable[[float], Shape],
        colour: Colour,
        how: dict[str, object],
    ) -> None:
        first, last = np.asarray(start, np.float64), np.asarray(end, np.float64)
        length = float(np.linalg.norm(last - first))
        axis = (last - first) / length
        direction = (float(axis[0]), float(axis[1]), float(axis[2]))
        self.add(name, shape(0.5 * length), 0.5 * (first + last), colour, axis=direction, **how)  # type: ignore[arg-type]

    def bolt_circle(
        self,
        name: str,
        at: Place,
        axis: Vector,
        radius: float,
        count: int,
        size: float,
        group: str = "",
    ) -> None:
        """`count` hexagon heads about `axis`; each a group of its own unless `group` is given."""
        around = frame_along(axis)
        for index in range(count):
            angle = 2 * np.pi * (index + 0.5) / count
            place = np.asarray(at) + radius * (np.cos(angle) * around[:, 0] + np.sin(angle) * around[:, 1])
            self.add(
                f"{name}-{index}",
                regular_prism(6, size, 0.55 * size, 0.3 * size),
                place,
                STEEL,
                group=group or f"{name}-{index}",
                gloss=0.7,
                axis=axis,
            )


def make_object(family: Family, seed: int) -> Assembly:
    """The product number `seed` of `family`, within the unit ball; the same for the same arguments."""
    rng = np.random.default_rng([get_args(Family).index(family), seed])
    kit = Kit()
    {"truck": _truck, "locomotive": _locomotive, "robot": _robot, "pump": _pump}[family](kit, rng)
    return Assembly(f"{family}-{seed}", tuple(kit.parts)).fitted()


def frame_along(axis: Vector) -> Float[np.ndarray, "3 3"]:
    """Rotation that takes z to `axis`; the identity for z itself, otherwise local y stays as upright as it can."""
    direction = np.asarray(axis, np.float64) / np.linalg.norm(axis)
    if abs(direction[2]) > 0.999:
        return np.diag([1.0, np.sign(direction[2]), np.sign(direction[2])])
    right = np.cross((0.0, 0.0, 1.0), direction)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(direction, right), direction], axis=1)


def _turn_y(angle_deg: float) -> Float[np.ndarray, "3 3"]:
    """Turn about y that lifts the nose (+x) for positive angles."""
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    return np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])


def _pick(rng: np.random.Generator, *choices: Colour) -> Colour:
    return choices[int(rng.integers(len(choices)))]


def _number(rng: np.random.Generator) -> str:
    return f"{rng.integers(10, 100)}"


def _wheel(
    kit: Kit, name: str, at: Vector, radius: float, width: float, rim: Colour, side: float, twin: bool = False
) -> None:
    """A road wheel on an axle along y, its hub facing `side` (+1 left, -1 right)."""
    x, y, z = at
    for offset in (-0.55, 0.55) if twin else (0.0,):
        middle = y + offset * width
        kit.add(
            f"{name}-tyre{offset:+.0f}",
            Frustum(radius, radius, 0.42 * width, 0.1 * radius),
            (x, middle, z),
            RUBBER,
            group=name,
            gloss=0.08,
            axis=Y,
            patterns=(Spokes(30, 0.42, 0.9 * radius, 2 * radius, (0.045, 0.045, 0.05)),),
        )
        for end in (-1.0, 1.0):
            kit.cone(
                f"{name}-shoulder{offset:+.0f}{end:+.0f}",
                (x, middle + end * 0.419 * width, z),
                (x, middle + end * 0.56 * width, z),
                (0.985 * radius, 0.82 * radius),
                RUBBER,
                group=name,
                gloss=0.08,
            )
    face = y + side * width * (1.11 if twin else 0.56)
    facing = (0.0, side, 0.0)
    kit.rod(
        f"{name}-rim",
        (x, face - side * 0.05, z),
        (x, face + side * 0.012, z),
        0.6 * radius,
        rim,
        group=name,
        gloss=0.6,
        patterns=(
            Spokes(5, 0.45, 0.26 * radius, 0.5 * radius, _darker(rim, 0.35)),
            Ring(0.53 * radius, 0.56 * radius, _darker(rim, 0.6)),
        ),
    )
    kit.cone(
        f"{name}-hub",
        (x, face, z),
        (x, face + side * 0.06, z),
        (0.2 * radius, 0.13 * radius),
        LIGHT,
        group=name,
        gloss=0.7,
    )
    kit.bolt_circle(
        f"{name}-nut", (x, face + side * 0.018, z), facing, 0.4 * radius, 4, 0.05 * radius, group=name
    )


def _off(point: Place, x: float | int, y: float | int, z: float | int) -> Float[np.ndarray, "xyz=3"]:
    return np.add(np.asarray(point, np.float64), (x, y, z))


def _darker(colour: Colour, factor: float) -> Colour:
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


def _truck(kit: Kit, rng: np.random.Generator) -> None:
    """A toy tipper lorry."""
    body, bed = [
        (RED, YELLOW),
        (ORANGE, GREY),
        (BLUE, YELLOW),
        (GREEN, CREAM),
        (YELLOW, GREY),
        (TEAL, ORANGE),
    ][int(rng.integers(6))]
    rim = _pick(rng, LIGHT, WHITE, YELLOW)
    length, width = float(rng.uniform(1.45, 1.7)), float(rng.uniform(0.5, 0.58))
    radius = float(rng.uniform(0.26, 0.31))
    cab_height, number = float(rng.uniform(0.36, 0.44)), _number(rng)
    deck = 2 * radius + 0.12  # top of the frame
    nose = 0.5 * length + 0.55
    cab = nose - 0.66

    # Frame, axles, tank.
    kit.box("frame", (0.5 * length + 0.46, 0.2, 0.07), (0.03, 0, deck - 0.09), DARK)
    kit.add(
        "gearbox",
        tapered_box((0.16, 0.1), (0.22, 0.14), 0.1),
        (cab - 0.3, 0.03, deck - 0.24),
        GREY,
        gloss=0.5,
    )
    kit.rod(
        "driveshaft", (cab - 0.4, 0.03, deck - 0.26), (-0.28 * length, 0.0, radius), 0.035, LIGHT, gloss=0.7
    )
    for x in (cab + 0.14, -0.28 * length, -0.28 * length - 2.15 * radius):
        kit.rod(f"axle{x:.2f}", (x, -width + 0.1, radius), (x, width - 0.1, radius), 0.05, STEEL, gloss=0.6)
        kit.box(f"spring{x:.2f}", (0.1, 0.3, 0.09), (x, 0, radius + 0.12), BLACK)
    for side in (1.0, -1.0):
        tag = "left" if side > 0 else "right"
        _wheel(kit, f"wheel-front-{tag}", (cab + 0.14, side * (width - 0.1), radius), radius, 0.2, rim, side)
        for pair, x in enumerate((-0.28 * length, -0.28 * length - 2.15 * radius)):
            _wheel(kit, f"wheel-rear{pair}-{tag}", (x, side * (width - 0.12), radius), radius, 0.2, rim, side)
        tank = (0.5 * (cab - 0.28 * length) - 0.02, side * (width - 0.17), deck - 0.2)
        kit.rod(
            f"tank-{tag}",
            (tank[0] - 0.19, *tank[1:]),
            (tank[0] + 0.19, *tank[1:]),
            0.13,
            STEEL,
            group=f"tank-{tag}",
            gloss=0.8,
            patterns=(Lines(2, (-0.1, 0.1), 0.03, DARK),),
        )

    # Cab: lower body, sloped glass house, roof, bonnet.
    kit.box(
        "cab",
        (0.34, width, 0.2),
        (cab - 0.02, 0, deck + 0.2),
        body,
        gloss=0.5,
        patterns=(Lines(0, (-0.24, 0.2), 0.014, _darker(body, 0.35)), Lines(2, (-0.12,), 0.05, WHITE)),
    )
    kit.add(
        "windows",
        tapered_box((0.33, width - 0.02), (0.25, width - 0.06), 0.5 * cab_height, -0.06),
        (cab - 0.02, 0, deck + 0.4 + 0.5 * cab_height),
        GLASS,
        gloss=0.95,
        patterns=(Stripes(X, 9.0, 0.05, body, -0.06), Stripes(X, 9.0, 0.4, body, -0.72)),
    )
    roof = deck + 0.4 + cab_height
    kit.box("roof", (0.27, width - 0.03, 0.045), (cab - 0.09, 0, roof + 0.03), body, gloss=0.5)
    for side in (1.0, -1.0):
        tag = "left" if side > 0 else "right"
        for index, (x, tilt) in enumerate(((cab + 0.29, 0.1), (cab - 0.33, 0.0))):
            kit.rod(
                f"pillar-{tag}{index}",
                (x, side * (width - 0.035), deck + 0.38),
                (x - 1.3 * tilt, side * (width - 0.075), roof),
                0.032,
                body,
                gloss=0.5,
            )
        kit.limb(
            f"mirror-arm-{tag}",
            (cab + 0.26, side * width, deck + 0.46),
            (cab + 0.32, side * (width + 0.11), deck + 0.5),
            0.014,
            BLACK,
            group=f"mirror-{tag}",
        )
        kit.box(
            f"mirror-{tag}",
            (0.025, 0.05, 0.09),
            (cab + 0.32, side * (width + 0.12), deck + 0.57),
            BLACK,
            group=f"mirror-{tag}",
        )
        kit.box(
            f"handle-{tag}",
            (0.05, 0.014, 0.012),
            (cab - 0.16, side * (width + 0.012), deck + 0.3),
            STEEL,
            group=f"handle-{tag}",
            gloss=0.8,
        )
        kit.box(
            f"step-{tag}",
            (0.13, 0.06, 0.02),
            (cab - 0.2, side * (width - 0.04), deck - 0.12),
            GREY,
            group=f"step-{tag}",
        )
        kit.box(
            f"guard-{tag}",
            (0.32, 0.115, 0.03),
            (cab + 0.14, side * (width - 0.1), 2 * radius + 0.05),
            BLACK,
            group="",
            gloss=0.2,
        )
    kit.add(
        "bonnet",
        prism([(-0.17, -0.2), (0.17, -0.2), (0.17, 0.1), (0.09, 0.17), (-0.17, 0.2)], width - 0.07, 0.03),
        (nose - 0.19, 0, deck + 0.2),
        body,
        gloss=0.5,
        patterns=(Lines(1, (-0.2, 0.2), 0.012, _darker(body, 0.4)),),
    )
    kit.box(
        "grille",
        (0.02, 0.2, 0.11),
        (nose - 0.01, 0, deck + 0.15),
        STEEL,
        group="grille",
        gloss=0.7,
        patterns=(Stripes(Z, 0.05, 0.022, BLACK),),
    )
    kit.box("bumper", (0.05, width, 0.06), (nose + 0.01, 0, deck - 0.1), LIGHT, group="bumper", gloss=0.6)
    kit.box(
        "plate",
        (0.008, 0.15, 0.045),
        (nose + 0.066, 0, deck - 0.1),
        WHITE,
        group="bumper",
        patterns=(Lettering(f"SP {number}", X, Y, (0.0, 0.0, 0.0), 0.055, BLACK),),
    )
    for side in (1.0, -1.0):
        tag = "left" if side > 0 else "right"
        lamp = (nose - 0.02, side * (width - 0.18), deck + 0.14)
        kit.rod(
            f"lamp-ring-{tag}",
            lamp,
            (lamp[0] + 0.04, *lamp[1:]),
            0.085,
            STEEL,
            group=f"lamp-{tag}",
            gloss=0.8,
        )
        kit.add(
            f"lamp-{tag}",
            Ellipsoid((0.045, 0.07, 0.07)),
            (lamp[0] + 0.035, *lamp[1:]),
            LAMP,
            group=f"lamp-{tag}",
            gloss=0.9,
        )
        kit.box(
            f"blinker-{tag}",
            (0.02, 0.05, 0.022),
            (nose - 0.01, side * (width - 0.17), deck + 0.03),
            AMBER,
            group=f"blinker-{tag}",
            gloss=0.7,
        )
        kit.box(
            f"tail-{tag}",
            (0.02, 0.07, 0.03),
            (-0.5 * length - 0.45, side * 0.3, deck - 0.07),
            (0.75, 0.05, 0.05),
            group=f"tail-{tag}",
            gloss=0.7,
        )
        kit.rod(
            f"exhaust-{tag}",
            (cab - 0.42, side * (width - 0.1), deck),
            (cab - 0.42, side * (width - 0.1), roof + 0.12),
            0.04,
            STEEL,
            group=f"exhaust-{tag}",
            gloss=0.8,
            patterns=(Stripes(Z, 0.1, 0.05, DARK),),
        )
    kit.rod(
        "beacon-foot", (cab - 0.09, 0, roof + 0.07), (cab - 0.09, 0, roof + 0.1), 0.07, BLACK, group="beacon"
    )
    kit.add("beacon", Capsule(0.055, 0.03), (cab - 0.09, 0, roof + 0.15), AMBER, group="beacon", gloss=0.9)
    for side in (1.0, -1.0):
        kit.cone(
            f"horn{side:+.0f}",
            (cab - 0.2, side * 0.25, roof + 0.1),
            (cab + 0.1, side * 0.25, roof + 0.1),
            (0.018, 0.042),
            BRASS,
            group=f"horn{side:+.0f}",
            gloss=0.8,
        )

    # Tipper body: floor, walls, ribs, headboard.
    front, rear, wall = cab - 0.5, -0.5 * length - 0.45, float(rng.uniform(0.2, 0.27))
    middle, half, floor = 0.5 * (front + rear), 0.5 * (front - rear), deck + 0.08
    kit.box("bed-floor", (half, width, 0.035), (middle, 0, floor), bed)
    for side in (1.0, -1.0):
        kit.box(
            f"bed-wall{side:+.0f}",
            (half, 0.03, wall),
            (middle, side * (width - 0.03), floor + wall),
            bed,
            gloss=0.4,
            patterns=(
                Lettering(
                    number,
                    (0.0, side, 0.0),
                    (-side, 0.0, 0.0),
                    (0.02, side * 0.03, 0.02),
                    0.24,
                    _darker(bed, 0.3),
                ),
            ),
        )
        for index, x in enumerate(np.linspace(rear + 0.06, front - 0.06, 5)):
            if index == 2:
                continue
            kit.box(
                f"rib{index}{side:+.0f}",
                (0.03, 0.028, wall),
                (x, side * (width + 0.02), floor + wall),
                _darker(bed, 0.8),
                group=f"rib{index}{side:+.0f}",
            )
        kit.box(
            f"rail{side:+.0f}",
            (half, 0.05, 0.025),
            (middle, side * (width - 0.02), floor + 2 * wall),
            _darker(bed, 0.8),
        )
    kit.box("headboard", (0.035, width, wall + 0.08), (front - 0.02, 0, floor + wall + 0.08), bed)
    kit.add(
        "canopy",
        tapered_box((0.18, width), (0.2, width), 0.025, 0.0),
        (front + 0.12, 0, floor + 2 * wall + 0.15),
        bed,
    )
    kit.box(
        "tailgate",
        (0.03, width, wall - 0.02),
        (rear + 0.01, 0, floor + wall),
        _darker(bed, 0.9),
        group="tailgate",
        patterns=(Stripes((0.0, 0.7, 0.7), 0.2, 0.1, RED), Lines(2, (-0.5,), 0.1, WHITE)),
    )
    kit.limb(
        "hinge", (rear, -width, floor + 2 * wall), (rear, width, floor + 2 * wall), 0.03, STEEL, gloss=0.7
    )
    for index in range(int(rng.integers(2, 4))):
        load = (float(rng.uniform(rear + 0.25, front - 0.25)), float(rng.uniform(-0.25, 0.25)), floor + 0.13)
        size = float(rng.uniform(0.1, 0.16))
        kit.add(
            f"load{index}",
            Ellipsoid((size * 1.3, size, size * 0.9)),
            load,
            _pick(rng, (0.45, 0.36, 0.28), (0.55, 0.5, 0.45), (0.35, 0.33, 0.32)),
            group=f"load{index}",
            gloss=0.05,
        )


def _locomotive(kit: Kit, rng: np.random.Generator) -> None:
    """A toy steam engine."""
    body, trim = [(GREEN, RED), (BLUE, RED), (RED, BLACK), (NAVY, YELLOW), (TEAL, CREAM), (PURPLE, YELLOW)][
        int(rng.integers(6))
    ]
    metal = _pick(rng, BRASS, COPPER)
    boiler, length = float(rng.uniform(0.29, 0.34)), float(rng.uniform(1.15, 1.35))
    drive, number = float(rng.uniform(0.25, 0.29)), _number(rng)
    deck = 2 * drive + 0.06
    front, rear = 0.95, 0.95 - length
    axis_height = deck + boiler + 0.1

    kit.box(
        "running-board",
        (1.12, 0.44, 0.035),
        (-0.08, 0, deck),
        BLACK,
        patterns=(Lines(2, (0.0,), 0.025, trim),),
    )
    kit.box(
        "frame",
        (1.05, 0.2, 0.12),
        (-0.06, 0, deck - 0.14),
        trim,
        patterns=(Lettering(f"TYPE {number}", BELOW, X, (0.13, 0.0, -0.12), 0.13, CREAM),),
    )
    kit.add(
        "ash-pan", tapered_box((0.13, 0.12), (0.2, 0.17), 0.06), (-0.47, 0, deck - 0.31), BLACK, gloss=0.2
    )
    kit.limb("brake", (-1.0, 0.1, deck - 0.3), (-0.88, 0.1, deck - 0.3), 0.06, DARK, group="brake", gloss=0.5)
    kit.rod(
        "boiler",
        (rear - 0.05, 0, axis_height),
        (front, 0, axis_height),
        boiler,
        body,
        gloss=0.6,
        patterns=(Stripes(Z, 0.3, 0.03, metal, 0.1),),
    )
    kit.rod(
        "smokebox",
        (front - 0.02, 0, axis_height),
        (front + 0.22, 0, axis_height),
        boiler + 0.015,
        BLACK,
        gloss=0.25,
    )
    kit.rod(
        "door",
        (front + 0.2, 0, axis_height),
        (front + 0.25, 0, axis_height),
        boiler - 0.05,
        DARK,
        group="door",
        gloss=0.3,
        patterns=(Ring(boiler - 0.1, boiler - 0.085, BLACK),),
    )
    kit.add(
        "door-hub",
        Ellipsoid((0.05, 0.08, 0.08)),
        (front + 0.25, 0, axis_height),
        metal,
        group="door",
        gloss=0.9,
    )
    kit.limb(
        "door-bar",
        (front + 0.28, -0.12, axis_height),
        (front + 0.28, 0.12, axis_height),
        0.014,
        metal,
        group="door",
        gloss=0.9,
    )
    kit.rod(
        "number-disc",
        (front + 0.2, 0, axis_height + boiler + 0.02),
        (front + 0.24, 0, axis_height + boiler + 0.02),
        0.085,
        trim,
        group="number-disc",
        patterns=(Lettering(number, Z, X, (0.0, 0.0, 0.0), 0.075, WHITE),),
    )
    kit.box("saddle", (0.17, 0.24, 0.1), (front + 0.08, 0, deck + 0.1), BLACK)

    # On top: chimney, dome, valve, bell, whistle, handrails.
    top = axis_height + boiler
    chimney = front + 0.1
    kit.cone(
        "chimney-base",
        (chimney, 0, top - 0.06),
        (chimney, 0, top + 0.06),
        (0.16, 0.09),
        BLACK,
        group="chimney",
    )
    kit.cone(
        "chimney", (chimney, 0, top + 0.04), (chimney, 0, top + 0.34), (0.085, 0.125), BLACK, group="chimney"
    )
    kit.rod(
        "chimney-cap",
        (chimney, 0, top + 0.32),
        (chimney, 0, top + 0.38),
        0.155,
        metal,
        group="chimney",
        gloss=0.9,
    )
    kit.rod(
        "chimney-throat",
        (chimney, 0, top + 0.33),
        (chimney, 0, top + 0.384),
        0.105,
        (0.03, 0.03, 0.03),
        group="chimney",
    )
    dome = rear + 0.62 * length
    kit.rod("dome-base", (dome, 0, top - 0.05), (dome, 0, top + 0.05), 0.13, metal, group="dome", gloss=0.9)
    kit.add("dome", Ellipsoid((0.125, 0.125, 0.14)), (dome, 0, top + 0.05), metal, group="dome", gloss=0.9)
    sand = rear + 0.33 * length
    kit.rod("sandbox", (sand, 0, top - 0.05), (sand, 0, top + 0.09), 0.11, body, group="sandbox", gloss=0.5)
    kit.cone(
        "sandbox-lid",
        (sand, 0, top + 0.09),
        (sand, 0, top + 0.13),
        (0.12, 0.05),
        metal,
        group="sandbox",
        gloss=0.8,
    )
    kit.cone(
        "bell",
        (rear + 0.13, 0, top + 0.03),
        (rear + 0.13, 0, top + 0.15),
        (0.085, 0.035),
        BRASS,
        group="bell",
        gloss=0.9,
    )
    kit.add(
        "bell-knob", Ellipsoid((0.025,) * 3), (rear + 0.13, 0, top + 0.165), BRASS, group="bell", gloss=0.9
    )
    kit.rod(
        "bell-post", (rear + 0.13, 0, top - 0.05), (rear + 0.13, 0, top + 0.04), 0.03, BLACK, group="bell"
    )

    # Cab.
    cab, roof = rear - 0.3, top + 0.28
    wall = 0.5 * (roof - deck)
    kit.box("cab-front", (0.03, 0.4, wall), (rear - 0.06, 0, deck + wall), body, gloss=0.5)
    for side in (1.0, -1.0):
        tag = "left" if side > 0 else "right"
        kit.box(
            f"cab-side-{tag}",
            (0.24, 0.025, 0.26),
            (cab + 0.02, side * 0.4, deck + 0.28),
            body,
            gloss=0.5,
            patterns=(
                Lines(0, (-0.19, 0.19), 0.014, metal),
                Lines(2, (-0.2, 0.2), 0.014, metal),
                Lettering(number, (0.0, side, 0.0), (-side, 0.0, 0.0), (0.0, side * 0.025, 0.0), 0.2, metal),
            ),
        )
        kit.box(
            f"cab-window-{tag}",
            (0.13, 0.012, wall - 0.33),
            (cab + 0.06, side * 0.395, deck + 0.2 + wall),
            GLASS,
            group=f"window-{tag}",
            gloss=0.95,
        )
        for x in (cab - 0.2, cab + 0.22):
            kit.box(f"post-{tag}{x:.2f}", (0.025, 0.025, wall), (x, side * 0.4, deck + wall), body, gloss=0.5)
        kit.box(
            f"cab-head-{tag}", (0.24, 0.025, 0.04), (cab + 0.02, side * 0.4, roof - 0.04), body, gloss=0.5
        )
        kit.limb(
            f"handrail-{tag}",
            (rear + 0.03, side * (boiler + 0.05), axis_height + 0.06),
            (front + 0.12, side * (boiler + 0.05), axis_height + 0.06),
            0.014,
            metal,
            group=f"handrail-{tag}",
            gloss=0.9,
        )
        for index, x in enumerate(np.linspace(rear + 0.12, front + 0.05, 4)):
            kit.rod(
                f"stanchion-{tag}{index}",
                (x, side * (boiler - 0.03), axis_height + 0.06),
                (x, side * (boiler + 0.05), axis_height + 0.06),
                0.012,
                metal,
                group=f"handrail-{tag}",
                gloss=0.9,
            )
        kit.add(
            f"tank-{tag}",
            Box((0.26, 0.09, 0.1), 0.04),
            (0.3, side * 0.33, deck + 0.12),
            body,
            group=f"tank-{tag}",
            gloss=0.5,
            patterns=(Lines(0, (-0.22, 0.22), 0.012, metal), Lines(2, (-0.07, 0.07), 0.012, metal)),
        )
    kit.box(
        "cab-glass", (0.012, 0.3, 0.1), (rear - 0.027, 0, roof - 0.14), GLASS, group="cab-glass", gloss=0.95
    )
    kit.box("cab-floor", (0.26, 0.42, 0.03), (cab, 0, deck + 0.04), BLACK)
    kit.box("firebox", (0.12, 0.26, 0.3), (rear - 0.15, 0, deck + 0.33), BLACK, gloss=0.2)
    kit.rod(
        "fire-door",
        (rear - 0.26, 0, deck + 0.3),
        (rear - 0.285, 0, deck + 0.3),
        0.09,
        metal,
        group="fire-door",
        gloss=0.8,
    )
    kit.add(
        "roof",
        prism(
            [
                (-0.46, -0.05),
                (0.46, -0.05),
                (0.46, 0.0),
                (0.27, 0.09),
                (0.0, 0.12),
                (-0.27, 0.09),
                (-0.46, 0.0),
            ],
            0.36,
            0.03,
        ),
        (cab, 0, roof + 0.04),
        trim,
        axis=Z,
        gloss=0.4,
    )
    # The prism's outline lies in x and z; a quarter turn about z lays its length along the engine.
    kit.parts[-1] = _turned_z(kit.parts[-1])
    kit.box(
        "bunker",
        (0.14, 0.36, 0.2),
        (cab - 0.34, 0, deck + 0.22),
        body,
        gloss=0.5,
        patterns=(Lines(2, (0.15,), 0.02, metal),),
    )
    for index in range(5):
        kit.add(
            f"coal{index}",
            Ellipsoid((0.075, 0.09, 0.06)),
            (cab - 0.34 + 0.04 * (-1) ** index, -0.25 + 0.125 * index, deck + 0.42),
            (0.07, 0.07, 0.08),
            gloss=0.5,
            group=f"coal{index}",
        )

    # Running gear.
    stations = (0.42, -0.17, -0.76)
    for x in stations:
        kit.rod(f"axle{x}", (x, -0.36, drive), (x, 0.36, drive), 0.045, STEEL, gloss=0.7)
    for side in (1.0, -1.0):
        tag = "left" if side > 0 else "right"
        for index, x in enumerate(stations):
            _rail_wheel(kit, f"driver{index}-{tag}", (x, side * 0.36, drive), drive, trim, side)
        _rail_wheel(kit, f"pilot-{tag}", (1.0, side * 0.36, 0.62 * drive), 0.62 * drive, trim, side)
        rod_y, rod_z = side * 0.455, drive - 0.09
        kit.add(
            f"side-rod-{tag}",
            Box((0.62, 0.016, 0.035)),
            (-0.17, rod_y, rod_z),
            STEEL,
            group=f"side-rod-{tag}",
            gloss=0.8,
        )
        for x in stations:
            kit.rod(
                f"crank-{tag}{x}",
                (x, rod_y - side * 0.06, rod_z),
                (x, rod_y + side * 0.035, rod_z),
                0.04,
                metal,
                group=f"side-rod-{tag}",
                gloss=0.8,
            )
        kit.rod(
            f"cylinder-{tag}",
            (0.72, side * 0.4, drive + 0.03),
            (1.12, side * 0.4, drive + 0.03),
            0.12,
            body,
            gloss=0.5,
            group=f"cylinder-{tag}",
            patterns=(Lines(2, (-0.15, 0.15), 0.03, metal),),
        )
        kit.limb(
            f"piston-{tag}",
            (0.4, side * 0.475, rod_z + 0.02),
            (0.78, side * 0.43, drive + 0.03),
            0.022,
            STEEL,
            group=f"cylinder-{tag}",
            gloss=0.8,
        )
        for end, x in (("front", 1.12), ("rear", -1.26)):
            sign = np.sign(x)
            kit.rod(
                f"buffer-stem-{end}-{tag}",
                (x, side * 0.27, deck - 0.1),
                (x + sign * 0.09, side * 0.27, deck - 0.1),
                0.035,
                STEEL,
                group=f"buffer-{end}-{tag}",
            )
            kit.rod(
                f"buffer-{end}-{tag}",
                (x + sign * 0.09, side * 0.27, deck - 0.1),
                (x + sign * 0.12, side * 0.27, deck - 0.1),
                0.09,
                DARK,
                group=f"buffer-{end}-{tag}",
                gloss=0.5,
            )
        kit.rod(
            f"lamp-body-{tag}",
            (1.0, side * 0.3, deck + 0.1),
            (1.12, side * 0.3, deck + 0.1),
            0.075,
            BLACK,
            group=f"lamp-{tag}",
        )
        kit.add(
            f"lamp-{tag}",
            Ellipsoid((0.03, 0.06, 0.06)),
            (1.12, side * 0.3, deck + 0.1),
            LAMP,
            group=f"lamp-{tag}",
            gloss=0.9,
        )
    kit.box("beam-front", (0.03, 0.44, 0.09), (1.1, 0, deck - 0.1), trim, gloss=0.5)
    kit.box("beam-rear", (0.03, 0.44, 0.09), (-1.22, 0, deck - 0.1), trim, gloss=0.5)
    for index in range(-3, 4):
        kit.limb(
            f"pilot-bar{index}",
            (1.12, 0.11 * index, deck - 0.18),
            (1.32 - 0.025 * abs(index), 0.06 * index, 0.08),
            0.022,
            trim,
            group=f"pilot-bar{index}",
        )
    kit.box("pilot-foot", (0.03, 0.24, 0.025), (1.3, 0, 0.07), trim)


def _turned_z(part: Part) -> Part:
    quarter = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    return Part(
        part.name,
        part.group,
        part.shape,
        part.centre,
        quarter @ part.rotation,
        part.colour,
        part.gloss,
        part.patterns,
    )


def _rail_wheel(kit: Kit, name: str, at: Vector, radius: float, colour: Colour, side: float) -> None:
    x, y, z = at
    kit.rod(
        f"{name}-disc",
        (x, y - side * 0.035, z),
        (x, y + side * 0.035, z),
        0.93 * radius,
        colour,
        group=name,
        gloss=0.5,
        patterns=(
            Spokes(9, 0.5, 0.3 * radius, 0.72 * radius, (0.05, 0.05, 0.06)),
            Ring(0.78 * radius, 2 * radius, STEEL),
        ),
    )
    kit.rod(
        f"{name}-flange",
        (x, y - side * 0.06, z),
        (x, y - side * 0.03, z),
        radius,
        STEEL,
        group=name,
        gloss=0.7,
        patterns=(Ring(0.12 * radius, 0.8 * radius, _darker(colour, 0.7)),),
    )
    kit.cone(
        f"{name}-boss",
        (x, y + side * 0.03, z),
        (x, y + side * 0.06, z),
        (0.25 * radius, 0.18 * radius),
        DARK,
        group=name,
    )


def _robot(kit: Kit, rng: np.random.Generator) -> None:
    """A tin-toy robot."""
    body, second = [
        (TEAL, ORANGE),
        (RED, LIGHT),
        (YELLOW, DARK),
        (BLUE, YELLOW),
        (LIGHT, RED),
        (PURPLE, TEAL),
    ][int(rng.integers(6))]
    eye = _pick(rng, (0.2, 0.85, 0.95), AMBER, (0.3, 0.9, 0.35))
    wide, tall = float(rng.uniform(0.4, 0.48)), float(rng.uniform(0.42, 0.5))
    head = float(rng.uniform(0.26, 0.31))
    hip, number = 0.92, _number(rng)
    chest, shoulder = hip + tall + 0.06, hip + 2 * tall - 0.06

    kit.add(
        "torso",
        tapered_box((0.27, wide - 0.06), (0.31, wide), tall, 0.0, 0.05),
        (0, 0, chest),
        body,
        gloss=0.55,
        patterns=(Lines(2, (-0.8 * tall, 0.82 * tall), 0.014, _darker(body, 0.35)),),
    )
    kit.add(
        "waist",
        Frustum(0.22, 0.24, 0.08),
        (0, 0, hip + 0.01),
        DARK,
        patterns=(Stripes(Z, 0.05, 0.025, GREY),),
    )
    kit.box("pelvis", (0.2, 0.3, 0.09), (0, 0, hip - 0.14), second, gloss=0.5)
    # Chest panel with gauges, buttons, grille and name plate.
    face = 0.3
    kit.box("panel", (0.02, 0.72 * wide, 0.2), (face - 0.005, 0, chest + 0.14), WHITE, group="", gloss=0.4)
    for index, y in enumerate((-0.42 * wide, 0.42 * wide)):
        kit.rod(
            f"gauge-rim{index}",
            (face, y, chest + 0.2),
            (face + 0.05, y, chest + 0.2),
            0.095,
            STEEL,
            group=f"gauge{index}",
            gloss=0.8,
        )
        kit.rod(
            f"gauge{index}",
            (face + 0.04, y, chest + 0.2),
            (face + 0.056, y, chest + 0.2),
            0.078,
            CREAM,
            group=f"gauge{index}",
            gloss=0.7,
            patterns=(Spokes(12, 0.2, 0.052, 0.07, BLACK),),
        )
        kit.add(
            f"needle{index}",
            Box((0.006, 0.008, 0.035)),
            (face + 0.06, y + 0.012, chest + 0.215),
            RED,
            group=f"gauge{index}",
        )
    for index, colour in enumerate((RED, YELLOW, GREEN, BLUE, ORANGE)):
        y = (index - 2) * 0.26 * wide
        kit.rod(
            f"button{index}",
            (face, y, chest + 0.02),
            (face + 0.045, y, chest + 0.02),
            0.034,
            colour,
            group=f"button{index}",
            gloss=0.7,
        )
    kit.box(
        "vent",
        (0.02, 0.55 * wide, 0.09),
        (face - 0.022, 0, chest - 0.17),
        DARK,
        group="vent",
        patterns=(Stripes(Z, 0.045, 0.022, BLACK),),
    )
    kit.box(
        "badge",
        (0.012, 0.12, 0.05),
        (face - 0.035, 0, chest - 0.34),
        second,
        group="badge",
        patterns=(Lettering(f"R{number}", X, Y, (0.0, 0.0, 0.0), 0.065, WHITE),),
    )
    kit.bolt_circle("screw", (face + 0.015, 0, chest + 0.14), X, 0.0, 1, 0.02)

    # Backpack.
    kit.add(
        "pack",
        Box((0.11, 0.3, 0.27), 0.04),
        (-0.38, 0, chest + 0.06),
        second,
        group="pack",
        gloss=0.5,
        patterns=(Stripes(Z, 0.1, 0.02, _darker(second, 0.5), 0.03),),
    )
    for side in (1.0, -1.0):
        kit.limb(
            f"bottle{side:+.0f}",
            (-0.5, side * 0.16, chest - 0.13),
            (-0.5, side * 0.16, chest + 0.22),
            0.1,
            STEEL,
            group="pack",
            gloss=0.8,
            patterns=(Stripes(Z, 9.0, 0.08, RED, -0.04),),
        )
        kit.cone(
            f"nozzle{side:+.0f}",
            (-0.5, side * 0.16, chest - 0.22),
            (-0.5, side * 0.16, chest - 0.36),
            (0.05, 0.09),
            DARK,
            group="pack",
        )
    kit.add(
        "key-shaft",
        Frustum(0.025, 0.025, 0.09),
        (-0.53, 0, chest + 0.05),
        BRASS,
        group="key",
        axis=X,
        gloss=0.8,
    )
    kit.add("key", Torus(0.07, 0.022), (-0.66, 0, chest + 0.05), BRASS, group="key", axis=Y, gloss=0.8)

    # Head.
    neck = hip + 2 * tall + 0.1
    kit.rod(
        "neck",
        (0, 0, neck - 0.07),
        (0, 0, neck + 0.07),
        0.12,
        DARK,
        patterns=(Stripes(Z, 0.05, 0.025, GREY),),
    )
    middle = neck + 0.05 + 0.8 * head
    kit.add("head", Box((head, 1.15 * head, 0.8 * head), 0.06), (0, 0, middle), body, gloss=0.55)
    kit.add(
        "crown",
        tapered_box((0.8 * head, 0.9 * head), (0.4 * head, 0.5 * head), 0.06),
        (0, 0, middle + 0.8 * head + 0.055),
        second,
        gloss=0.5,
    )
    kit.box("visor", (0.02, 0.95 * head, 0.32 * head), (head, 0, middle + 0.2 * head), BLACK, gloss=0.8)
    for side in (1.0, -1.0):
        tag = "left" if side > 0 else "right"
        place = (head + 0.01, side * 0.46 * head, middle + 0.22 * head)
        kit.rod(
            f"eye-rim-{tag}",
            place,
            (place[0] + 0.04, *place[1:]),
            0.26 * head,
            STEEL,
            group=f"eye-{tag}",
            gloss=0.8,
        )
        kit.add(
            f"eye-{tag}",
            Ellipsoid((0.05, 0.21 * head, 0.21 * head)),
            (place[0] + 0.035, *place[1:]),
            eye,
            group=f"eye-{tag}",
            gloss=0.95,
        )
        kit.rod(
            f"ear-{tag}",
            (0, side * 1.1 * head, middle),
            (0, side * (1.15 * head + 0.07), middle),
            0.11,
            second,
            group=f"ear-{tag}",
            gloss=0.5,
        )
        kit.cone(
            f"ear-tip-{tag}",
            (0, side * (1.15 * head + 0.07), middle),
            (0, side * (1.15 * head + 0.17), middle),
            (0.06, 0.02),
            STEEL,
            group=f"ear-{tag}",
            gloss=0.8,
        )
    kit.box(
        "mouth",
        (0.018, 0.55 * head, 0.14 * head),
        (head + 0.005, 0, middle - 0.42 * head),
        STEEL,
        group="mouth",
        gloss=0.7,
        patterns=(Stripes(Y, 0.045, 0.02, BLACK),),
    )
    kit.limb(
        "antenna",
        (0, 0, middle + 0.8 * head),
        (0, 0, middle + 0.8 * head + 0.27),
        0.014,
        STEEL,
        group="antenna",
        gloss=0.8,
    )
    kit.add(
        "antenna-ball",
        Ellipsoid((0.05,) * 3),
        (0, 0, middle + 0.8 * head + 0.3),
        RED,
        group="antenna",
        gloss=0.8,
    )

    # Arms and legs.
    raise_left = float(rng.uniform(0.05, 0.3))
    for side in (1.0, -1.0):
        tag = "left" if side > 0 else "right"
        forward = 0.12 + (raise_left if side > 0 else 0.0)
        root = np.array([0.0, side * (wide + 0.1), shoulder])
        elbow = _off(root, 0.06 + 0.3 * forward, side * 0.05, -0.34)
        hand = _off(elbow, 0.12 + forward, 0.0, -0.26 + 0.5 * forward)
        kit.add(f"shoulder-{tag}", Ellipsoid((0.14, 0.13, 0.14)), root, second, gloss=0.6, group="")
        kit.limb(
            f"upper-arm-{tag}", root, elbow, 0.075, LIGHT, gloss=0.5, patterns=(Stripes(Z, 0.07, 0.03, GREY),)
        )
        kit.add(f"elbow-{tag}", Ellipsoid((0.1, 0.1, 0.1)), elbow, second, gloss=0.6)
        kit.cone(f"forearm-{tag}", elbow, hand, (0.085, 0.115), body, gloss=0.55)
        along = (hand - elbow) / np.linalg.norm(hand - elbow)
        wrist = hand + 0.05 * along
        kit.rod(f"cuff-{tag}", hand, wrist, 0.125, second, gloss=0.5, group="")
        for finger, spread in enumerate((-1.0, 1.0)):
            start = _off(wrist, 0, spread * 0.07, 0)
            middle_joint = _off(start + 0.1 * along, 0, spread * 0.06, 0)
            kit.limb(
                f"finger{finger}a-{tag}", start, middle_joint, 0.032, DARK, group=f"finger{finger}-{tag}"
            )
            kit.limb(
                f"finger{finger}b-{tag}",
                middle_joint,
                _off(middle_joint + 0.12 * along, 0, -spread * 0.05, 0),
                0.028,
                DARK,
                group=f"finger{finger}-{tag}",
            )
        leg = side * 0.2
        kit.rod(
            f"thigh-{tag}",
            (0, leg, hip - 0.2),
            (0, leg, 0.56),
            0.1,
            LIGHT,
            gloss=0.5,
            patterns=(Stripes(Z, 0.08, 0.035, GREY),),
        )
        kit.add(f"knee-{tag}", Ellipsoid((0.135, 0.125, 0.125)), (0.02, leg, 0.54), second, gloss=0.6)
        kit.add(
            f"knee-cap-{tag}",
            Frustum(0.07, 0.05, 0.03),
            (0.16, leg, 0.54),
            STEEL,
            axis=X,
            group=f"knee-cap-{tag}",
            gloss=0.8,
        )
        kit.add(
            f"shin-{tag}",
            tapered_box((0.16, 0.15), (0.11, 0.11), 0.19, 0.0, 0.03),
            (0, leg, 0.31),
            body,
            gloss=0.55,
        )
        kit.add(
            f"foot-{tag}",
            prism([(-0.24, -0.08), (0.3, -0.08), (0.3, -0.02), (0.1, 0.08), (-0.24, 0.08)], 0.17, 0.03),
            (0.03, leg, 0.08),
            second,
            gloss=0.5,
        )
        kit.box(
            f"sole-{tag}",
            (0.28, 0.18, 0.02),
            (0.05, leg, -0.01),
            RUBBER,
            gloss=0.1,
            patterns=(
                Stripes(X, 0.07, 0.02, GREY),
                Lettering("L" if side > 0 else "R", BELOW, X, (0.0, 0.0, 0.0), 0.18, ORANGE),
            ),
        )
        kit.bolt_circle(f"ankle-{tag}", (0, leg + side * 0.155, 0.2), (0.0, side, 0.0), 0.05, 3, 0.018)


def _pump(kit: Kit, rng: np.random.Generator) -> None:
    """An electric pump set: motor, coupling, volute, flanged pipes, valve with handwheel, gauge."""
    motor, casing = [(BLUE, RED), (GREEN, GREY), (TEAL, BLUE), (ORANGE, DARK), (LIGHT, TEAL), (NAVY, GREEN)][
        int(rng.integers(6))
    ]
    wheel, number = _pick(rng, RED, YELLOW, BLUE), _number(rng)
    barrel, length = float(rng.uniform(0.32, 0.38)), float(rng.uniform(0.72, 0.9))
    volute, riser = float(rng.uniform(0.4, 0.46)), float(rng.uniform(0.3, 0.4))
    axis = 0.62

    # Bed plate.
    kit.box(
        "bed",
        (1.28, 0.5, 0.05),
        (0, 0, 0),
        DARK,
        gloss=0.25,
        patterns=(
            Lines(2, (0.0,), 0.02, YELLOW),
            Lettering(f"SN {number}", BELOW, X, (-0.1, 0.0, -0.05), 0.2, LIGHT),
        ),
    )
    kit.box("tie-rear", (0.05, 0.34, 0.04), (-0.9, 0, -0.09), GREY)
    kit.box("tie-front", (0.09, 0.34, 0.03), (0.6, 0, -0.08), GREY)
    kit.rod("drip-pipe", (1.0, 0.12, -0.12), (1.0, 0.12, -0.04), 0.06, BRASS, group="drip-pipe", gloss=0.8)
    kit.rod("conduit", (-0.55, -0.2, -0.09), (0.45, -0.2, -0.09), 0.03, ORANGE, group="conduit", gloss=0.4)
    for side in (1.0, -1.0):
        kit.box(f"runner{side:+.0f}", (1.28, 0.07, 0.05), (0, side * 0.4, -0.09), BLACK)
        for x in (-1.16, -0.1, 1.16):
            kit.add(
                f"anchor-washer{x:.1f}{side:+.0f}",
                Frustum(0.06, 0.06, 0.01),
                (x, side * 0.4, 0.06),
                STEEL,
                group=f"anchor{x:.1f}{side:+.0f}",
                gloss=0.7,
            )
            kit.add(
                f"anchor{x:.1f}{side:+.0f}",
                regular_prism(6, 0.045, 0.03),
                (x, side * 0.4, 0.09),
                STEEL,
                group=f"anchor{x:.1f}{side:+.0f}",
                gloss=0.7,
            )

    # Motor: finned barrel, end bells, fan cowl, terminal box, lifting eye, feet.
    rear, front = -1.12, -1.12 + length
    kit.rod("barrel", (rear, 0, axis), (front, 0, axis), barrel - 0.05, _darker(motor, 0.8), gloss=0.3)
    fins = 11
    for index, x in enumerate(np.linspace(rear + 0.06, front - 0.06, fins)):
        kit.rod(f"fin{index}", (x - 0.016, 0, axis), (x + 0.016, 0, axis), barrel, motor, gloss=0.4)
    kit.cone(
        "bell-front",
        (front - 0.01, 0, axis),
        (front + 0.08, 0, axis),
        (barrel + 0.01, 0.6 * barrel),
        motor,
        gloss=0.45,
    )
    kit.rod(
        "fan-cowl",
        (rear - 0.14, 0, axis),
        (rear + 0.02, 0, axis),
        barrel + 0.015,
        motor,
        gloss=0.45,
        group="",
        patterns=(
            Spokes(16, 0.5, 0.1, 0.8 * barrel, BLACK),
            Lines(2, (-0.06, -0.04, -0.02, 0.0, 0.02), 0.008, BLACK),
        ),
    )
    kit.add(
        "terminal-box",
        Box((0.17, 0.15, 0.09), 0.025),
        (0.5 * (rear + front) + 0.05, 0, axis + barrel + 0.06),
        DARK,
        group="terminal-box",
    )
    kit.box(
        "terminal-lid",
        (0.18, 0.16, 0.016),
        (0.5 * (rear + front) + 0.05, 0, axis + barrel + 0.165),
        GREY,
        group="terminal-box",
        patterns=(Lettering(f"M{number}", Z, X, (0.0, 0.0, 0.016), 0.12, WHITE),),
    )
    kit.rod(
        "gland",
        (0.5 * (rear + front) + 0.05, 0.14, axis + barrel + 0.06),
        (0.5 * (rear + front) + 0.05, 0.25, axis + barrel + 0.06),
        0.045,
        BLACK,
        group="terminal-box",
    )
    kit.add(
        "eye-bolt",
        Torus(0.06, 0.018),
        (rear + 0.14, 0, axis + barrel + 0.06),
        STEEL,
        axis=Y,
        group="eye-bolt",
        gloss=0.8,
    )
    kit.box(
        "name-plate",
        (0.15, 0.01, 0.075),
        (0.5 * (rear + front), barrel + 0.002, axis),
        STEEL,
        group="name-plate",
        gloss=0.7,
        patterns=(
            Lettering(f"P-{number}", Y, (-1.0, 0.0, 0.0), (0.0, 0.01, 0.02), 0.07, NAVY),
            Lines(2, (-0.045,), 0.012, NAVY),
        ),
    )
    for side in (1.0, -1.0):
        for x in (rear + 0.12, front - 0.12):
            kit.add(
                f"foot{x:.1f}{side:+.0f}",
                tapered_box((0.08, 0.1), (0.06, 0.05), 0.13),
                (x, side * 0.22, 0.18),
                motor,
                gloss=0.4,
            )
            kit.add(
                f"foot-bolt{x:.1f}{side:+.0f}",
                regular_prism(6, 0.03, 0.02),
                (x, side * 0.36, 0.07),
                STEEL,
                group=f"foot-bolt{x:.1f}{side:+.0f}",
                gloss=0.7,
            )

    # Coupling and guard.
    pump = 0.42
    kit.rod("shaft", (front, 0, axis), (pump, 0, axis), 0.055, STEEL, gloss=0.8)
    middle = 0.5 * (front + 0.08 + pump - 0.2)
    kit.rod(
        "coupling",
        (middle - 0.09, 0, axis),
        (middle + 0.09, 0, axis),
        0.14,
        BLACK,
        gloss=0.3,
        patterns=(Stripes(Z, 0.06, 0.025, ORANGE),),
    )
    kit.box(
        "guard-top",
        (0.13, 0.19, 0.015),
        (middle, 0, axis + 0.19),
        YELLOW,
        group="guard",
        gloss=0.5,
        patterns=(Stripes((0.7, 0.7, 0.0), 0.11, 0.055, BLACK),),
    )
    for side in (1.0, -1.0):
        kit.box(
            f"guard-side{side:+.0f}",
            (0.13, 0.015, 0.29),
            (middle, side * 0.185, axis - 0.11),
            YELLOW,
            group="guard",
            gloss=0.5,
        )

    # Pump: bearing housing, volute, cover, discharge upwards, suction forwards.
    kit.cone("bearing", (pump - 0.18, 0, axis), (pump + 0.02, 0, axis), (0.16, 0.24), casing, gloss=0.45)
    kit.rod("volute", (pump, 0, axis), (pump + 0.26, 0, axis), volute, casing, gloss=0.5)
    kit.rod("volute-rim", (pump + 0.09, 0, axis), (pump + 0.17, 0, axis), volute + 0.035, casing, gloss=0.5)
    kit.rod(
        "cover", (pump + 0.25, 0, axis), (pump + 0.3, 0, axis), volute - 0.06, _darker(casing, 0.8), gloss=0.5
    )
    kit.bolt_circle("cover-bolt", (pump + 0.31, 0, axis), X, volute - 0.12, 8, 0.034)
    kit.add("plinth", tapered_box((0.16, 0.3), (0.11, 0.2), 0.11), (pump + 0.13, 0, 0.16), casing, gloss=0.4)
    kit.cone("suction", (pump + 0.28, 0, axis), (pump + 0.5, 0, axis), (0.2, 0.15), casing, gloss=0.5)
    kit.rod("suction-flange", (pump + 0.48, 0, axis), (pump + 0.55, 0, axis), 0.27, casing, gloss=0.5)
    kit.rod("pipe-flange", (pump + 0.56, 0, axis), (pump + 0.62, 0, axis), 0.27, STEEL, gloss=0.6)
    kit.rod(
        "suction-pipe",
        (pump + 0.6, 0, axis),
        (pump + 0.82, 0, axis),
        0.14,
        STEEL,
        gloss=0.6,
        patterns=(Ring(0.0, 0.11, (0.04, 0.04, 0.05)),),
    )
    kit.bolt_circle("flange-bolt", (pump + 0.635, 0, axis), X, 0.21, 6, 0.036)
    kit.rod(
        "drain",
        (pump + 0.13, volute - 0.06, axis - 0.2),
        (pump + 0.13, volute + 0.06, axis - 0.2),
        0.035,
        BRASS,
        group="drain",
        gloss=0.8,
    )

    # Discharge with gate valve, handwheel and gauge.
    x, y = pump + 0.13, volute - 0.2
    top = axis + volute
    kit.rod("discharge", (x, y, axis + 0.1), (x, y, top + 0.06), 0.14, casing, gloss=0.5)
    kit.rod("discharge-flange", (x, y, top + 0.05), (x, y, top + 0.1), 0.23, casing, gloss=0.5)
    kit.rod("valve-flange", (x, y, top + 0.105), (x, y, top + 0.15), 0.23, BRASS, gloss=0.6, group="")
    kit.bolt_circle("valve-bolt", (x, y, top + 0.165), Z, 0.185, 6, 0.03)
    kit.add("valve-body", Ellipsoid((0.2, 0.2, 0.17)), (x, y, top + 0.14 + 0.5 * riser), BRASS, gloss=0.7)
    kit.rod("outlet", (x, y, top + 0.1 + 0.5 * riser), (x, y, top + 0.2 + riser), 0.13, BRASS, gloss=0.7)
    kit.rod(
        "outlet-flange",
        (x, y, top + 0.2 + riser),
        (x, y, top + 0.26 + riser),
        0.22,
        STEEL,
        gloss=0.6,
        patterns=(Ring(0.0, 0.1, (0.04, 0.04, 0.05)),),
    )
    kit.bolt_circle("outlet-bolt", (x, y, top + 0.275 + riser), Z, 0.17, 6, 0.03)
    stem = np.array([x, y, top + 0.14 + 0.5 * riser])
    kit.cone("bonnet", _off(stem, 0, 0.12, 0), _off(stem, 0, 0.27, 0), (0.12, 0.07), BRASS, gloss=0.7)
    kit.rod(
        "stem", _off(stem, 0, 0.25, 0), _off(stem, 0, 0.45, 0), 0.025, STEEL, gloss=0.8, group="handwheel"
    )
    hub = _off(stem, 0, 0.42, 0)
    kit.add("handwheel", Torus(0.19, 0.026), hub, wheel, axis=Y, group="handwheel", gloss=0.6)
    for index in range(4):
        angle = 0.5 * np.pi * index + 0.4
        kit.rod(
            f"spoke{index}",
            hub,
            hub + 0.19 * np.array([np.cos(angle), 0, np.sin(angle)]),
            0.017,
            wheel,
            group="handwheel",
            gloss=0.6,
        )
    kit.add("handwheel-hub", Frustum(0.05, 0.05, 0.03), hub, wheel, axis=Y, group="handwheel", gloss=0.6)
    gauge = np.array([x, y - 0.12, top + 0.16 + 0.5 * riser])
    kit.rod("gauge-stem", gauge, _off(gauge, 0, -0.18, 0.02), 0.025, BRASS, group="gauge", gloss=0.8)
    dial = _off(gauge, -0.02, -0.2, 0.1)
    kit.rod(
        "gauge-case", _off(dial, 0.04, 0, 0), _off(dial, -0.04, 0, 0), 0.14, BLACK, group="gauge", gloss=0.5
    )
    kit.rod(
        "gauge-dial",
        _off(dial, 0.03, 0, 0),
        _off(dial, 0.046, 0, 0),
        0.12,
        WHITE,
        group="gauge",
        gloss=0.6,
        patterns=(Spokes(20, 0.25, 0.085, 0.108, BLACK), Ring(0.0, 0.02, BLACK)),
    )
    kit.box("gauge-needle", (0.005, 0.01, 0.05), _off(dial, 0.05, 0.0, 0.035), RED, group="gauge")
