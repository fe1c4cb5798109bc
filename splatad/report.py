"""One self-contained HTML file per run for people to look at: verdicts, pictures with the defects circled, figures.

The file needs no network and no other file. Photos are taken one by one from `ReportRun.photos` (a generator will do)
and their cards go to the disk at once, so a run of hundreds of photos needs the memory of one. Pictures are kept at the
photo's own pixels, for the lens that magnifies, up to `FULL_PX`; where a page grows beyond `PAGE_BUDGET` bytes, those of
its further photos are scaled down to `SMALL_PX`. Defects are drawn over the pictures, not into them.
"""

from __future__ import annotations

import base64
import functools
import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Literal

import jinja2
import torch
from jaxtyping import Bool, Float
from markupsafe import Markup
from torch import Tensor

from prepare.atomic_write import write_with
from prepare.camera import fit_within
from prepare.errors import InputError
from splatad.part_picture import PartDefect, PartView
from splatad.pictures import MARKS, faded, hatched, map_colours, mark_of, overlay_map, resized, to_bytes
from splatad.report_marks import DrawnMark, drawn_mark
from splatad.report_plots import PlottedPhoto, figure, roc_plot, score_plot, stage_times

Verdict = Literal["OK", "NG", "CANNOT TELL"]
VERDICTS: tuple[Verdict, ...] = ("NG", "CANNOT TELL", "OK")  # what needs a look first
FULL_PX = 800  # longest side of a picture in the page; a photo up to this size is there pixel for pixel
SMALL_PX = 480  # the same once the page is large
PAGE_BUDGET = 48_000_000  # bytes: some 450 photos of 400 px, or 120 of 800 px, at full size

_SLUGS = {"OK": "ok", "NG": "ng", "CANNOT TELL": "ct"}
_CLOSE_UPS = 8  # defects per photo that get a close-up; the table lists all
_CLOSE_UP_PX = 132
_THUMBNAIL_PX = 72
_COPY_CHARACTERS = 1 << 20
_MOST_MARKED = 40  # defects on the pictures of a part, the strongest
_MOST_NUMBERED = 16  # from more on, marks there are small and without numbers


@dataclass(frozen=True)
class ReportDefect:
    """One connected defect of one photo."""

    kind: str  # what it may be, in words: "missing part", "stain"
    area_px: int  # px of the photo
    box: tuple[int, int, int, int]  # x0, y0, x1, y1 in px of the photo, x1 and y1 exclusive
    centre_xyz: tuple[float, float, float] | None  # position on the part, world units; None where unknown
    peak: float  # highest value of the map inside, in the map's units
    extent: float | None = None  # diagonal of its 3D bounding box, world units; None where unknown
    fused: int | None = None  # the number of the defect of `ReportRun.fused` that this one is a sight of


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
    unknown: Bool[Tensor, "map_height map_width"] | None = None  # where nothing can be said; None: nowhere


@dataclass(frozen=True)
class ReportFusedDefect:
    """One defect of the part, put together from several photos of it."""

    number: int  # from 1
    kind: str  # what it may be, in words, as in `ReportDefect`
    centre_xyz: tuple[float, float, float]  # world units
    extent: float | None  # diagonal of its 3D bounding box, world units; None where unknown
    seen_in: tuple[str, ...]  # names of the photos that show it
    peak: float  # the highest of the photos' peaks, in the map's units


@dataclass(frozen=True)
class ReportFused:
    """What several photos of one and the same part say together."""

    verdict: Verdict
    reasons: tuple[str, ...]  # plain sentences
    photos: int  # that took part
    defects: tuple[ReportFusedDefect, ...]
    coverage: float | None = None  # share of the part's surface that the photos show, in [0, 1]


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
    # By the reference's name: the part from a few sides, such as `PartPictures(reference).views`; may be empty.
    part_views: Mapping[str, Callable[[Sequence[PartDefect]], Sequence[PartView]]] = field(
        default_factory=dict
    )
    scale_to_mm: float | None = None  # millimetres per world unit; None where unknown
    fused: ReportFused | None = None  # where all photos are of one and the same part


@dataclass(frozen=True)
class _Summary(PlottedPhoto):
    """What stays in memory of a photo once its card is written."""

    reason: str
    defects: int
    part: str | None
    thumbnail: str  # data URI

    @property
    def total_seconds(self) -> float | None:
        return sum(self.seconds.values()) if self.seconds else None


@dataclass(frozen=True)
class _Placed:
    """A defect that has a place on the part, for the pictures of the part."""

    defect: PartDefect
    key: str  # names its row ("d" + key) and its mark on the part ("p" + key)
    peak: float
    name: str  # of the photo


@dataclass(frozen=True)
class _PartRow:
    """The pictures of one part."""

    name: str
    pictures: list[tuple[str, int, int, list[DrawnMark]]]  # data URI, width, height, marks
    out_of_sight: list[_Placed]  # seen from none of the sides
    shown: int
    all: int  # defects of the run, placed or not
    numbered: bool


def write_report(
    run: ReportRun,
    path: Path,
    *,
    picture_px: int = FULL_PX,
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
    # The head of the page counts and plots all photos, so their cards wait on the disk, those that need a look first
    # in front. A file name may hold bytes that are no text; they are written out as escapes.
    with ExitStack() as stack:
        cards = {
            verdict: stack.enter_context(
                tempfile.TemporaryFile("w+", dir=path.parent, encoding="utf-8", errors="backslashreplace")
            )
            for verdict in VERDICTS
        }
        page = stack.enter_context(path.open("w", encoding="utf-8", errors="backslashreplace"))
        summaries: list[_Summary] = []
        placed: dict[str, list[_Placed]] = {}
        found: dict[str, int] = {}
        written = 0
        for number, photo in enumerate(_taken(run.photos), start=1):
            limit_px = picture_px if written < PAGE_BUDGET else min(picture_px, SMALL_PX)
            text = card.render(_card(photo, number, run, limit_px))
            cards[photo.verdict].write(text)
            written += len(text)
            summaries.append(_summary(photo, number))
            part = photo.part if run.several else run.reference
            if part is not None:
                found[part] = found.get(part, 0) + len(photo.defects)
                placed.setdefault(part, []).extend(_placed(photo, number))
            if on_photo is not None:
                on_photo(photo.name)
        if run.fused is not None:
            found = {run.reference: len(run.fused.defects)}
            placed = {run.reference: _placed_of_fused(run.fused)}
        elif len(summaries) == 1:
            placed = {part: [_without_photo(p) for p in those] for part, those in placed.items()}
        parts = [
            _part_row(part, views, placed.get(part, []), found.get(part, 0))
            for part, views in run.part_views.items()
            if found.get(part)
        ]
        for part_of in cards.values():
            part_of.seek(0)
        pieces = (piece for verdict in VERDICTS for piece in _pieces(cards[verdict]))
        for piece in environment.get_template("report.html").generate(_page(run, summaries, parts, pieces)):
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
    environment.filters |= {
        "figure": figure,
        "seconds": _seconds,
        "xyz": _xyz,
        "size": _size,
        "sentence": _sentence,
        "mark": mark_of,
    }
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


def _page(
    run: ReportRun, summaries: Sequence[_Summary], parts: Sequence[_PartRow], cards: Iterator[Markup]
) -> dict[str, object]:
    columns = list(dict.fromkeys(column for row in (run.metrics or {}).values() for column in row))
    low, high = run.map_range
    at_limit = None if run.threshold is None else (run.threshold - low) / (high - low)
    return {
        "run": run,
        "summaries": sorted(summaries, key=_urgency),
        "cards": cards,
        "parts": parts,
        "numbers": {s.name: s.number for s in summaries},
        "counts": [
            (verdict, _SLUGS[verdict], sum(1 for s in summaries if s.verdict == verdict))
            for verdict in VERDICTS
        ],
        "slugs": _SLUGS,
        "false_alarms": _false_alarms_in_words(run.false_alarm_rate),
        "labelled": any(s.label is not None for s in summaries),
        "timed": any(s.seconds for s in summaries),
        "plot": score_plot(run.good_scores, summaries, run.threshold),
        "roc": roc_plot(summaries, run.threshold),
        "times": stage_times(summaries),
        "metric_columns": columns,
        "map_gradient": _css_gradient(),
        "map_ends": (low, high),
        "map_limit_percent": round(100 * at_limit, 2)
        if at_limit is not None and 0.1 < at_limit < 0.9
        else None,
        "marks": MARKS,
        "short_footer": {name: value for name, value in run.footer.items() if "\n" not in value},
        "long_footer": {name: value for name, value in run.footer.items() if "\n" in value},
    }


def _urgency(summary: _Summary) -> tuple[int, float]:
    """What needs a look first: by verdict, then the highest score."""
    score = summary.score if summary.score is not None else -math.inf
    return VERDICTS.index(summary.verdict), -score


def _card(photo: ReportPhoto, number: int, run: ReportRun, picture_px: int) -> dict[str, object]:
    height, width = photo.photo.shape[:2]
    shown_width, shown_height = fit_within(width, height, picture_px)
    small = resized(photo.photo, shown_width, shown_height)
    pictures: list[tuple[str, str, str | None]] = [  # name, what it is, data URI
        ("Photo", "with the defects circled" if photo.defects else "as it came", _jpeg(small)),
        ("Reference", "the good part from the same side", None),
        ("Differences", "where they differ, coloured", None),
    ]
    if photo.render is not None:
        pictures[1] = (*pictures[1][:2], _jpeg(resized(photo.render, shown_width, shown_height)))
    unknown = photo.unknown is not None and bool(photo.unknown.any())
    if photo.anomaly_map is not None:
        values = torch.nan_to_num(photo.anomaly_map.detach().float(), nan=0.0, posinf=run.map_range[1])
        values = _scaled(values, shown_width, shown_height)
        ground = faded(small)
        if photo.unknown is not None and unknown:
            ground = hatched(ground, _scaled(photo.unknown.float(), shown_width, shown_height) > 0.5)
        pictures[2] = (*pictures[2][:2], _jpeg(overlay_map(ground, values, *run.map_range)))
    part_is_drawn = (photo.part if run.several else run.reference) in run.part_views
    return {
        "photo": photo,
        "number": number,
        "slug": _SLUGS[photo.verdict],
        "pictures": pictures,
        "width": shown_width,
        "height": shown_height,
        "shown_percent": round(100 * shown_width / width),
        "unknown": unknown,
        "marks": _photo_marks(photo, number, shown_width, shown_height),
        "close_ups": [_close_up(photo, d) for d in photo.defects[:_CLOSE_UPS]],
        "threshold": run.threshold,
        "several": run.several,
        "fused": run.fused is not None,
        "on_part": part_is_drawn and run.fused is None,
        "scale_to_mm": run.scale_to_mm,
        "total_seconds": sum(photo.seconds.values()) if photo.seconds else None,
        "shares": _shares(photo.seconds),
        "close_up_px": _CLOSE_UP_PX,
    }


def _shares(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    """The stages with their share of the whole in percent."""
    whole = sum(seconds.values())
    return [(stage, round(100 * value / whole, 2)) for stage, value in seconds.items()] if whole > 0 else []


def _scaled(
    values: Float[Tensor, "_height _width"], width: int, height: int
) -> Float[Tensor, "height width"]:
    return torch.nn.functional.interpolate(
        values[None, None], (height, width), mode="bilinear", align_corners=False, antialias=True
    )[0, 0]


def _photo_marks(photo: ReportPhoto, number: int, width: int, height: int) -> list[DrawnMark]:
    """A ring round each defect's box, a margin away so that the defect itself stays uncovered, with its number."""
    x_ratio, y_ratio = width / photo.photo.shape[1], height / photo.photo.shape[0]
    longest = max(width, height)
    least, margin = 0.035 * longest, 0.012 * longest
    marks: list[DrawnMark] = []
    for index, defect in enumerate(photo.defects, start=1):
        x0, y0, x1, y1 = defect.box
        # An ellipse through the corners of the box is wider than it by the square root of two.
        rx = max(least, (x1 - x0) * x_ratio / 2**0.5 + margin)
        ry = max(least, (y1 - y0) * y_ratio / 2**0.5 + margin)
        marks.append(
            drawn_mark(
                key=f"{number}-{index}",
                label=str(index),
                kind=defect.kind,
                title=f"defect {index}: {defect.kind}",
                centre=((x0 + x1) / 2 * x_ratio, (y0 + y1) / 2 * y_ratio),
                radii=(rx, ry),
                size=(width, height),
                letter_px=0.042 * longest,
                taken=[mark.plate for mark in marks],
            )
        )
    return marks


def _placed(photo: ReportPhoto, number: int) -> list[_Placed]:
    return [
        _Placed(
            PartDefect(f"{number}.{index}", d.kind, d.centre_xyz, d.extent),
            f"{number}-{index}",
            d.peak,
            photo.name,
        )
        for index, d in enumerate(photo.defects, start=1)
        if d.centre_xyz is not None
    ]


def _placed_of_fused(fused: ReportFused) -> list[_Placed]:
    return [
        _Placed(
            PartDefect(str(d.number), d.kind, d.centre_xyz, d.extent),
            f"f{d.number}",
            d.peak,
            ", ".join(d.seen_in),
        )
        for d in fused.defects
    ]


def _without_photo(placed: _Placed) -> _Placed:
    """The same, numbered as in the only photo."""
    return replace(placed, defect=replace(placed.defect, label=placed.defect.label.split(".")[1]))


def _part_row(
    part: str,
    views_of: Callable[[Sequence[PartDefect]], Sequence[PartView]],
    placed: Sequence[_Placed],
    found: int,
) -> _PartRow:
    """The part from a few sides, its strongest defects marked; each has one mark that links lead to."""
    strongest = sorted(placed, key=lambda one: -one.peak)[:_MOST_MARKED]
    views = views_of([one.defect for one in strongest]) if strongest else ()
    numbered = len(strongest) <= _MOST_NUMBERED
    anchored: set[int] = set()
    shown = []
    for view in views:
        marks = _part_marks(view, strongest, numbered, anchored)
        shown.append((_jpeg(view.picture), view.camera.width, view.camera.height, marks))
    unseen = [one for index, one in enumerate(strongest) if index not in anchored]
    unseen += [one for one in placed if one not in strongest]
    return _PartRow(part, shown, unseen, len(anchored), found, numbered)


def _part_marks(
    view: PartView, placed: Sequence[_Placed], numbered: bool, anchored: set[int]
) -> list[DrawnMark]:
    """The view's marks, hidden ones first so that visible ones lie over them; adds to `anchored` those links lead to."""
    size = (view.camera.width, view.camera.height)
    marks: list[DrawnMark] = []
    for marker in sorted(view.markers, key=lambda m: m.visible):
        one = placed[marker.index]
        anchor = marker.visible and marker.index not in anchored
        if anchor:
            anchored.add(marker.index)
        least = 0.022 * max(size)
        radius = max(marker.radius_px, least) if marker.visible else least  # many hidden ones would clutter
        behind = "" if marker.visible else "; behind the part as seen from here"
        marks.append(
            drawn_mark(
                key=one.key,
                label=one.defect.label if numbered and marker.visible else "",
                kind=one.defect.kind,
                title=f"defect {one.defect.label}: {one.defect.kind}, {one.name}{behind}",
                centre=(marker.x_px, marker.y_px),
                radii=(radius, radius),
                size=size,
                letter_px=0.042 * max(size),
                taken=[mark.plate for mark in marks],
                dashed=not marker.visible,
                anchor=anchor,
            )
        )
    return marks


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
        seconds=photo.seconds,
        defects=len(photo.defects),
        part=photo.part,
        thumbnail=_jpeg(thumbnail),
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


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return (
        f"{value:.0f} s" if value >= 20 else f"{value:.2g} s" if value >= 0.0095 else f"{1000 * value:.1g} ms"
    )


def _xyz(centre: tuple[float, float, float] | None, scale_to_mm: float | None = None) -> str:
    """A place on the part, in millimetres where the scale is known, else in the scene's units."""
    if centre is None:
        return "–"
    if scale_to_mm is not None:
        return ", ".join(f"{value * scale_to_mm:.1f}" for value in centre)
    return ", ".join(f"{value:.3f}" for value in centre)


def _size(extent: float | None, scale_to_mm: float | None = None) -> str:
    if extent is None:
        return "–"
    return f"{extent:.3f}" if scale_to_mm is None else f"{extent * scale_to_mm:.1f} mm"


def _sentence(text: str) -> str:
    """The text with a capital in front and a stop at its end."""
    if not text:
        return ""
    return text[:1].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")
