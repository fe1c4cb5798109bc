"""Geometry of the report's plots, in the plots' own units: scores with the limit, the ROC curve, seconds per stage."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detect.metrics import roc_curve

GOOD_LABEL = "good"  # the label of a photo known to be without defect

_LANES = ("known to be good", "known to be defective", "not known")
_BINS = 44


@dataclass(frozen=True)
class PlottedPhoto:
    """What the plots need of a photo."""

    number: int
    name: str
    verdict: str
    slug: str  # of the verdict
    score: float | None
    label: str | None  # what is known to be true
    seconds: Mapping[str, float]  # s per stage


@dataclass(frozen=True)
class Bar:
    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    number: int
    slug: str
    title: str


@dataclass(frozen=True)
class ScorePlot:
    """Good views as bars above the axis, photos as dots below, in lanes where the truth is known."""

    width: float
    height: float
    axis_y: float
    bars: list[Bar]
    dots: list[Dot]
    lanes: list[tuple[float, str]]  # y of a lane's title, and the title
    radius: float
    ticks: list[tuple[float, str]]  # x and its label
    threshold_x: float | None
    logarithmic: bool
    left_out: int  # photos without a score


@dataclass(frozen=True)
class RocPlot:
    """The curve as an SVG polyline in a square of 100 x 100, y down."""

    points: str
    area: float
    good: int
    defective: int
    left_out: int  # photos with a known label but no score
    at_limit: tuple[float, float] | None  # x, y of the threshold
    false_alarms: int  # good photos at or above the threshold
    found: int  # defective ones


@dataclass(frozen=True)
class StageTime:
    name: str
    median: float  # s
    share: float  # of the medians' sum, percent


@dataclass(frozen=True)
class StageTimes:
    """What a photo of the run takes."""

    stages: list[StageTime]
    median: float  # s, of whole photos
    slowest: float  # s
    slowest_name: str
    photos: int


def score_plot(
    good_scores: Sequence[float], photos: Sequence[PlottedPhoto], threshold: float | None
) -> ScorePlot | None:
    """Where the scores lie; None where there is none. The axis is logarithmic where a few scores dwarf the rest."""
    good = [score for score in good_scores if math.isfinite(score)]
    scored = [(photo, photo.score) for photo in photos if photo.score is not None]
    values = good + [score for _, score in scored] + ([] if threshold is None else [threshold])
    if not good and not scored:
        return None
    width, axis_y, room, margin, lane_title = 520.0, 118.0, 96.0, 14.0, 19.0
    logarithmic = min(values) > 0 and max(values) > 12 * float(np.median(values))
    low, high = min(values), max(values)
    if logarithmic:
        low, high = low / 1.15, high * 1.15
    else:
        padding = 0.04 * (high - low) or max(1e-6, 0.1 * abs(high))
        low, high = (0.0 if 0 <= low < 0.35 * high else low - padding), high + padding

    def share(value: float) -> float:
        if logarithmic:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    def x_of(value: float) -> float:
        return round(margin + share(value) * (width - 2 * margin), 2)

    def bin_of(value: float) -> int:
        return min(_BINS - 1, int(share(value) * _BINS))

    step = (width - 2 * margin) / _BINS
    counts = [0] * _BINS
    for score in good:
        counts[bin_of(score)] += 1
    tallest = max([1, *counts])
    bars = [
        Bar(
            x=round(margin + index * step + 0.5, 2),
            y=round(axis_y - count / tallest * (axis_y - 22), 2),
            width=round(step - 1, 2),
            height=round(count / tallest * (axis_y - 22), 2),
            title=f"{count} good view{'s' if count != 1 else ''}",
        )
        for index, count in enumerate(counts)
        if count
    ]
    # Photos of one bin hang below the axis one under the other, the highest score last.
    columns: dict[tuple[int, int], list[tuple[PlottedPhoto, float]]] = {}
    for photo, score in sorted(scored, key=lambda pair: pair[1]):
        columns.setdefault((_lane(photo.label), bin_of(score)), []).append((photo, score))
    depths = {lane: max(len(c) for (of, _), c in columns.items() if of == lane) for lane, _ in columns}
    titled = any(photo.label is not None for photo, _ in scored)
    pitch = min(step, room / max([1, *depths.values()]))
    tops, y = {}, axis_y + 24
    lanes = []
    for lane in sorted(depths):
        if titled:
            y += lane_title
            lanes.append((round(y - 4, 2), _LANES[lane]))
        tops[lane] = y
        y += depths[lane] * pitch + 4
    dots = [
        Dot(
            x=round(margin + (index + 0.5) * step, 2),
            y=round(tops[lane] + (place + 0.5) * pitch, 2),
            number=photo.number,
            slug=photo.slug,
            title=f"{photo.name}: {figure(score)}, {photo.verdict}"
            + (f" (known: {photo.label})" if photo.label else ""),
        )
        for (lane, index), column in columns.items()
        for place, (photo, score) in enumerate(column)
    ]
    ticks = _log_ticks(low, high) if logarithmic else _ticks(low, high)
    return ScorePlot(
        width=width,
        height=round(y + 6, 2),
        axis_y=axis_y,
        bars=bars,
        dots=dots,
        lanes=lanes,
        radius=round(0.43 * pitch, 2),
        ticks=[(x_of(tick), f"{tick:g}") for tick in ticks],
        threshold_x=None if threshold is None else x_of(threshold),
        logarithmic=logarithmic,
        left_out=len(photos) - len(scored),
    )


def roc_plot(photos: Sequence[PlottedPhoto], threshold: float | None) -> RocPlot | None:
    """The ROC curve over photos with a known label and a score; None where good or defective ones are missing."""
    known = [
        (photo.score, _lane(photo.label) == 1)
        for photo in photos
        if photo.label is not None and photo.score is not None
    ]
    defective = sum(1 for _, is_defective in known if is_defective)
    good = len(known) - defective
    if not good or not defective:
        return None
    curve = roc_curve(np.array([score for score, _ in known]), np.array([truth for _, truth in known]))
    called = [truth for score, truth in known if threshold is not None and score >= threshold]
    found, false_alarms = sum(called), len(called) - sum(called)
    return RocPlot(
        points=" ".join(
            f"{100 * x:.2f},{100 - 100 * y:.2f}" for x, y in zip(curve.fpr, curve.tpr, strict=True)
        ),
        area=curve.area,
        good=good,
        defective=defective,
        left_out=sum(1 for photo in photos if photo.label is not None and photo.score is None),
        at_limit=None
        if threshold is None
        else (round(100 * false_alarms / good, 2), round(100 - 100 * found / defective, 2)),
        false_alarms=false_alarms,
        found=found,
    )


def stage_times(photos: Sequence[PlottedPhoto]) -> StageTimes | None:
    """Median seconds of each stage over the photos that ran it, in the order they ran; None where nothing was timed."""
    timed = [photo for photo in photos if photo.seconds]
    names = list(dict.fromkeys(name for photo in timed for name in photo.seconds))
    medians = {
        name: statistics.median(photo.seconds[name] for photo in timed if name in photo.seconds)
        for name in names
    }
    whole = sum(medians.values())
    if not whole > 0:
        return None
    slowest = max(timed, key=lambda photo: sum(photo.seconds.values()))
    return StageTimes(
        stages=[StageTime(name, value, round(100 * value / whole, 2)) for name, value in medians.items()],
        median=statistics.median(sum(photo.seconds.values()) for photo in timed),
        slowest=sum(slowest.seconds.values()),
        slowest_name=slowest.name,
        photos=len(timed),
    )


def figure(value: float | str | None) -> str:
    """Three significant digits, no exponents where a plain number will do; text as it is; a dash for nothing."""
    if isinstance(value, str):
        return value
    if value is None or math.isnan(value):
        return "–"
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.2e}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    text = f"{value:,.{min(decimals, 5)}f}"
    return text.rstrip("0").rstrip(".") if "." in text and abs(value) < 1 else text


def _lane(label: str | None) -> int:
    return 2 if label is None else 0 if label.casefold() == GOOD_LABEL else 1


def _ticks(low: float, high: float) -> list[float]:
    """Five to ten round values from `low` to `high`."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = max(s for s in (1, 2, 5) if s * power <= rough) * power
    return [round(i * step, 12) for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """The values 1, 2, 5 times powers of ten from `low` to `high`, or only the powers where that is too many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if len(powers) <= 4 else (1,)
    return [s * 10.0**p for p in powers for s in steps if low <= s * 10.0**p <= high]
