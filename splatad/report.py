"""One self-contained HTML file per run for people to look at: verdicts, pictures with the defects circled, figures.

The file needs no network and no other file. Photos are taken one by one from `ReportRun.photos` (a generator will do)
and their cards go to the disk at once, so a run of hundreds of photos needs the memory of one.
"""

from __future__ import annotations

import base64
import functools
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import jinja2
import numpy as np
import torch
from jaxtyping import Float
from markupsafe import Markup
from torch import Tensor

from detect.metrics import roc_curve
from prepare.atomic_write import write_with
from prepare.camera import fit_within
from prepare.errors import InputError
from splatad.pictures import circle_defects, faded, map_colours, overlay_map, resized, to_bytes

Verdict = Literal["OK", "NG", "CANNOT TELL"]
VERDICTS: tuple[Verdict, ...] = ("NG", "CANNOT TELL", "OK")  # what needs a look first
GOOD_LABEL = "good"  # the label of a photo known to be without defect

_SLUGS = {"OK": "ok", "NG": "ng", "CANNOT TELL": "ct"}
_CLOSE_UPS = 8  # defects per photo that get a close-up; the table lists all
_CLOSE_UP_PX = 132
_THUMBNAIL_PX = 72
_COPY_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class ReportDefect:
    """One connected defect of one photo."""

    kind: str  # what it may be, in words: "missing part", "stain"
    area_px: int  # px of the photo
    box: tuple[int, int, int, int]  # x0, y0, x1, y1 in px of the photo, x1 and y1 exclusive
    centre_xyz: tuple[float, float, float] | None  # position on the part, world units; None where unknown
    peak: float  # highest value of the map inside, in the map's units


@dataclass(frozen=True)
class ReportPhoto:
    """One inspected photo with its verdict and what led to it."""

    name: str  # shown as it is; may hold anything a file name can
    verdict: Verdict
    reasons: tuple[str, ...]  # plain sentences
    score: float | None  # None where the photo could not be compared
    photo: Float[Tensor, "photo_height photo_width 3"]  # RGB in [0, 1]
    render: (
        Float[Tensor, "render_height render_width 3"] | None
    )  # the reference at the found camera, RGB in [0, 1]
    anomaly_map: Float[Tensor, "map_height map_width"] | None  # drawn over `ReportRun.map_range`
    defects: tuple[ReportDefect, ...]
    numbers: Mapping[str, str]  # more figures by name, ready to print: "pose belief" -> "0.98"
    label: str | None  # what is known to be true, for a test: "good" or the defect's name
    seconds: Mapping[str, float]  # s per stage, in the order they ran
    part: str | None = None  # the reference it shows, where the run is over several; None: none of them


@dataclass(frozen=True)
class ReportRun:
    """One run over photos of one reference, or of several.

    Of several, scores and maps are in multiples of the threshold of the photo's own part, or they would not compare.
    """

    title: str
    reference: str  # the reference's name, or of several their names
    threshold: float | None  # a photo is NG from this score on
    false_alarm_rate: float | None  # share of good photos expected at or above the threshold, in [0, 1]
    threshold_note: str  # where the threshold comes from, a plain sentence; may be empty
    good_scores: tuple[float, ...]  # scores of held-out good views of the reference
    photos: Iterable[ReportPhoto]  # gone through once
    metrics: (
        Mapping[str, Mapping[str, float | str]] | None
    )  # row -> column -> value; the first row is this run's
    footer: Mapping[str, str]  # versions, machine, resolved config; a value of several lines is folded away
    map_range: tuple[float, float]  # values of the map from which colour starts and at which it is full
    several: bool = False  # photos are of different references and each names its own


@dataclass(frozen=True)
class _Summary:
    """What stays in memory of a photo once its card is written."""

    number: int
    name: str
    verdict: Verdict
    slug: str
    reason: str
    score: float | None
    label: str | None
    defects: int
    seconds: float | None
    part: str | None
    thumbnail: str  # data URI


@dataclass(frozen=True)
class _Bar:
    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class _Dot:
    x: float
    y: float
    number: int
    slug: str
    title: str


@dataclass(frozen=True)
class _ScorePlot:
    """Geometry of the score picture in its own units: good views as bars above the axis, photos as dots below."""

    width: float
    height: float
    axis_y: float
    bars: list[_Bar]
    dots: list[_Dot]
    radius: float
    ticks: list[tuple[float, str]]  # x and its label
    threshold_x: float | None
    logarithmic: bool
    left_out: int  # photos without a score


@dataclass(frozen=True)
class _RocPlot:
    points: str  # an SVG polyline in a square of 100 x 100, y down
    area: float
    good: int
    defective: int
    left_out: int  # photos with a known label but no score


def write_report(
    run: ReportRun,
    path: Path,
    *,
    picture_px: int = 480,
    on_photo: Callable[[str], object] | None = None,
) -> None:
    """Write the run as one HTML file at `path`, whole or not at all; pictures are at most `picture_px` px long.

    `on_photo` is called with a photo's name once its card is done, for a progress bar.

    Raises: InputError where the file cannot be written or a photo not be read; ValueError where `map_range` does
    not rise.
    """
    if not run.map_range[0] < run.map_range[1]:
        raise ValueError(f"report: map_range must rise, got {run.map_range}")
    write_with(path, lambda temporary: _write(run, temporary, picture_px, on_photo))


def _write(run: ReportRun, path: Path, picture_px: int, on_photo: Callable[[str], object] | None) -> None:
    environment = _templates()
    card = environment.get_template("report_photo.html")
    # The head of the page counts and plots all photos, so their cards wait on the disk. A file name may hold bytes
    # that are no text; they are written out as escapes.
    with (
        tempfile.TemporaryFile("w+", dir=path.parent, encoding="utf-8", errors="backslashreplace") as cards,
        path.open("w", encoding="utf-8", errors="backslashreplace") as page,
    ):
        summaries = []
        for number, photo in enumerate(_taken(run.photos), start=1):
            cards.write(card.render(_card(photo, number, run, picture_px)))
            summaries.append(_summary(photo, number))
            if on_photo is not None:
                on_photo(photo.name)
        cards.seek(0)
        for piece in environment.get_template("report.html").generate(_page(run, summaries, _pieces(cards))):
            page.write(piece)


@functools.cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"figure": _figure, "seconds": _seconds, "xyz": _xyz}
    return environment


def _taken(photos: Iterable[ReportPhoto]) -> Iterator[ReportPhoto]:
    """The photos; a file that fails while one is loaded is named as such and not blamed on the report's folder."""
    try:
        yield from photos
    except OSError as error:
        raise InputError(f"report: a photo cannot be read ({error}); check it, then run again") from error


def _pieces(text: IO[str]) -> Iterator[Markup]:
    """The file's content, already HTML, in pieces of about a megabyte."""
    while piece := text.read(_COPY_CHARACTERS):
        yield Markup(piece)


def _page(run: ReportRun, summaries: Sequence[_Summary], cards: Iterator[Markup]) -> dict[str, object]:
    columns = list(dict.fromkeys(column for row in (run.metrics or {}).values() for column in row))
    low, high = run.map_range
    return {
        "run": run,
        "summaries": summaries,
        "cards": cards,
        "counts": [
            (verdict, _SLUGS[verdict], sum(1 for s in summaries if s.verdict == verdict))
            for verdict in VERDICTS
        ],
        "false_alarms": _false_alarms_in_words(run.false_alarm_rate),
        "labelled": any(s.label is not None for s in summaries),
        "timed": any(s.seconds is not None for s in summaries),
        "plot": _score_plot(run.good_scores, summaries, run.threshold),
        "roc": _roc_plot(summaries),
        "metric_columns": columns,
        "map_gradient": _css_gradient(),
        "map_ticks": [low, (low + high) / 2, high],
        "short_footer": {name: value for name, value in run.footer.items() if "\n" not in value},
        "long_footer": {name: value for name, value in run.footer.items() if "\n" in value},
    }


def _card(photo: ReportPhoto, number: int, run: ReportRun, picture_px: int) -> dict[str, object]:
    height, width = photo.photo.shape[:2]
    shown_width, shown_height = fit_within(width, height, picture_px)
    small = resized(photo.photo, shown_width, shown_height)
    x_ratio, y_ratio = shown_width / width, shown_height / height
    boxes = [
        (
            math.floor(d.box[0] * x_ratio),
            math.floor(d.box[1] * y_ratio),
            math.ceil(d.box[2] * x_ratio),
            math.ceil(d.box[3] * y_ratio),
        )
        for d in photo.defects
    ]
    labels = [str(index) for index in range(1, len(boxes) + 1)]
    pictures: list[tuple[str, str, str | None]] = [  # name, what it is, data URI
        (
            "Photo",
            "with the defects circled" if boxes else "as it came",
            _jpeg(circle_defects(small, boxes, labels)),
        ),
        ("Reference", "the good part from the same side", None),
        ("Differences", "where they differ, coloured", None),
    ]
    if photo.render is not None:
        pictures[1] = (*pictures[1][:2], _jpeg(resized(photo.render, shown_width, shown_height)))
    if photo.anomaly_map is not None:
        values = torch.nan_to_num(photo.anomaly_map.detach().float(), nan=0.0, posinf=run.map_range[1])
        values = torch.nn.functional.interpolate(
            values[None, None],
            (shown_height, shown_width),
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )[0, 0]
        pictures[2] = (*pictures[2][:2], _jpeg(overlay_map(faded(small), values, *run.map_range)))
    return {
        "photo": photo,
        "number": number,
        "slug": _SLUGS[photo.verdict],
        "pictures": pictures,
        "width": shown_width,
        "height": shown_height,
        "close_ups": [_close_up(photo, d) for d in photo.defects[:_CLOSE_UPS]],
        "threshold": run.threshold,
        "several": run.several,
        "total_seconds": sum(photo.seconds.values()) if photo.seconds else None,
        "close_up_px": _CLOSE_UP_PX,
    }


def _close_up(photo: ReportPhoto, defect: ReportDefect) -> tuple[str, str | None]:
    """The defect from near, and the reference at the same place: data URIs of square cut-outs with some surrounding."""
    height, width = photo.photo.shape[:2]
    x0, y0, x1, y1 = defect.box
    side = min(max(1.8 * max(x1 - x0, y1 - y0), max(height, width) / 9), float(min(height, width)))

    def cut(image: Float[Tensor, "_height _width 3"]) -> str:
        # The render may have another size than the photo: cut the same share of it.
        y_ratio, x_ratio = image.shape[0] / height, image.shape[1] / width
        left = min(max(0.0, (x0 + x1 - side) / 2), width - side)
        top = min(max(0.0, (y0 + y1 - side) / 2), height - side)
        rows = slice(int(top * y_ratio), max(int(top * y_ratio) + 1, round((top + side) * y_ratio)))
        columns = slice(int(left * x_ratio), max(int(left * x_ratio) + 1, round((left + side) * x_ratio)))
        return _jpeg(resized(image[rows, columns].contiguous(), 2 * _CLOSE_UP_PX, 2 * _CLOSE_UP_PX))

    return cut(photo.photo), None if photo.render is None else cut(photo.render)


def _summary(photo: ReportPhoto, number: int) -> _Summary:
    height, width = photo.photo.shape[:2]
    thumbnail = resized(photo.photo, *fit_within(width, height, _THUMBNAIL_PX))
    return _Summary(
        number=number,
        name=photo.name,
        verdict=photo.verdict,
        slug=_SLUGS[photo.verdict],
        reason=photo.reasons[0] if photo.reasons else "",
        score=photo.score if photo.score is not None and math.isfinite(photo.score) else None,
        label=photo.label,
        defects=len(photo.defects),
        seconds=sum(photo.seconds.values()) if photo.seconds else None,
        part=photo.part,
        thumbnail=_jpeg(thumbnail),
    )


def _score_plot(
    good_scores: Sequence[float], summaries: Sequence[_Summary], threshold: float | None
) -> _ScorePlot | None:
    """Where the scores lie; None where there is none. The axis is logarithmic where a few scores dwarf the rest."""
    good = [score for score in good_scores if math.isfinite(score)]
    scored = [(s, s.score) for s in summaries if s.score is not None]
    values = good + [score for _, score in scored] + ([] if threshold is None else [threshold])
    if not good and not scored:
        return None
    width, axis_y, room, margin, bins = 520.0, 118.0, 96.0, 14.0, 44
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

    step = (width - 2 * margin) / bins
    counts = [0] * bins
    for score in good:
        counts[min(bins - 1, int(share(score) * bins))] += 1
    tallest = max([1, *counts])
    bars = [
        _Bar(
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
    columns: dict[int, list[tuple[_Summary, float]]] = {}
    for summary, score in sorted(scored, key=lambda pair: pair[1]):
        columns.setdefault(min(bins - 1, int(share(score) * bins)), []).append((summary, score))
    deepest = max([1, *(len(column) for column in columns.values())])
    pitch = min(step, room / deepest)
    dots = [
        _Dot(
            x=round(margin + (index + 0.5) * step, 2),
            y=round(axis_y + 24 + (place + 0.5) * pitch, 2),
            number=summary.number,
            slug=summary.slug,
            title=f"{summary.name}: {_figure(score)}, {summary.verdict}"
            + (f" (known: {summary.label})" if summary.label else ""),
        )
        for index, column in columns.items()
        for place, (summary, score) in enumerate(column)
    ]
    ticks = _log_ticks(low, high) if logarithmic else _ticks(low, high)
    return _ScorePlot(
        width=width,
        height=round(axis_y + 32 + deepest * pitch, 2),
        axis_y=axis_y,
        bars=bars,
        dots=dots,
        radius=round(0.43 * pitch, 2),
        ticks=[(x_of(tick), f"{tick:g}") for tick in ticks],
        threshold_x=None if threshold is None else x_of(threshold),
        logarithmic=logarithmic,
        left_out=len(summaries) - len(scored),
    )


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


def _roc_plot(summaries: Sequence[_Summary]) -> _RocPlot | None:
    """The ROC curve over photos with a known label and a score; None where good or defective ones are missing."""
    known = [
        (s.score, s.label.casefold() != GOOD_LABEL)
        for s in summaries
        if s.label is not None and s.score is not None
    ]
    defective = sum(1 for _, is_defective in known if is_defective)
    if defective in (0, len(known)):
        return None
    curve = roc_curve(np.array([score for score, _ in known]), np.array([truth for _, truth in known]))
    points = " ".join(f"{100 * x:.2f},{100 - 100 * y:.2f}" for x, y in zip(curve.fpr, curve.tpr, strict=True))
    return _RocPlot(
        points=points,
        area=curve.area,
        good=len(known) - defective,
        defective=defective,
        left_out=sum(1 for s in summaries if s.label is not None and s.score is None),
    )


def _false_alarms_in_words(rate: float | None) -> str:
    if rate is None:
        return ""
    if rate <= 0:
        return "No good photo is expected to be called NG by mistake."
    if rate >= 0.5:
        return f"About {rate:.0%} of good photos are called NG by mistake."
    return f"About 1 in {round(1 / rate):,} good photos is called NG by mistake ({100 * rate:.3g} %)."


def _css_gradient() -> str:
    stops = (map_colours(9) * 255).round().int().tolist()
    return ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in stops)


def _jpeg(rgb: Float[Tensor, "height width 3"]) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(to_bytes(rgb, "JPEG")).decode("ascii")


def _figure(value: float | str | None) -> str:
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


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return (
        f"{value:.0f} s" if value >= 20 else f"{value:.2g} s" if value >= 0.0095 else f"{1000 * value:.1g} ms"
    )


def _xyz(centre: tuple[float, float, float] | None) -> str:
    return "–" if centre is None else ", ".join(f"{value:.3f}" for value in centre)
