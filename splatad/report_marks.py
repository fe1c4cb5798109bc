"""What the report draws over a picture: a ring round a defect and on it a plate with the defect's number, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from splatad.pictures import mark_of

Box = tuple[float, float, float, float]  # x, y, width, height


@dataclass(frozen=True)
class DrawnMark:
    """A ring with a numbered plate over a picture, in the picture's px."""

    key: str
    slug: str
    title: str
    label: str
    cx: float
    cy: float
    rx: float
    ry: float
    dashed: bool
    plate: Box  # x, y, width, height
    outline: str  # the plate as an SVG path
    anchor: bool  # the one that "#p..." leads to


def drawn_mark(
    *,
    key: str,
    label: str,
    kind: str,
    title: str,
    centre: tuple[float, float],
    radii: tuple[float, float],
    size: tuple[int, int],
    letter_px: float,
    taken: Sequence[Box],
    dashed: bool = False,
    anchor: bool = False,
) -> DrawnMark:
    """The ring, and on it the plate with `label`, inside a picture of `size` and off the plates already `taken`.

    Without a label the plate is small and stands in the middle.
    """
    mark = mark_of(kind)
    high = (1.4 if label else 0.9) * letter_px
    wide = max(high, (0.62 * len(label) + 0.7) * letter_px) if label else high

    def plate(right: float, down: float) -> Box:
        left = centre[0] + right * (0.7071 * radii[0] + 0.3 * wide) - wide / 2
        top = centre[1] + down * (0.7071 * radii[1] + 0.3 * high) - high / 2
        return (
            min(max(1.0, left), max(1.0, size[0] - wide - 1)),
            min(max(1.0, top), max(1.0, size[1] - high - 1)),
            wide,
            high,
        )

    corners = [(1.0, -1.0), (-1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)] if label else [(0.0, 0.0)]
    plates = [plate(right, down) for right, down in corners]
    best = min(plates, key=lambda one: sum(_overlap(one, other) for other in taken))
    left, top = best[:2]
    return DrawnMark(
        key=key,
        slug=mark.name,
        title=title,
        label=label,
        cx=round(centre[0], 2),
        cy=round(centre[1], 2),
        rx=round(radii[0], 2),
        ry=round(radii[1], 2),
        dashed=dashed,
        plate=best,
        outline=_outline(mark.shape, left, top, wide, high),
        anchor=anchor,
    )


def _overlap(one: Box, other: Box) -> float:
    """Area that two boxes share."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


def _outline(shape: str, x: float, y: float, width: float, height: float) -> str:
    """A box, a hexagon with points left and right, or a pill, as an SVG path."""
    half = height / 2
    if shape == "box":
        return f"M{x:.2f} {y:.2f}h{width:.2f}v{height:.2f}h{-width:.2f}z"
    if shape == "hexagon":
        x, width, point = x - height / 5, width + height / 2.5, height / 3
        flat = width - 2 * point
        return (
            f"M{x:.2f} {y + half:.2f}l{point:.2f} {-half:.2f}h{flat:.2f}l{point:.2f} {half:.2f}"
            f"l{-point:.2f} {half:.2f}h{-flat:.2f}z"
        )
    flat = width - height
    return (
        f"M{x + half:.2f} {y:.2f}h{flat:.2f}a{half:.2f} {half:.2f} 0 0 1 0 {height:.2f}h{-flat:.2f}"
        f"a{half:.2f} {half:.2f} 0 0 1 0 {-height:.2f}z"
    )
