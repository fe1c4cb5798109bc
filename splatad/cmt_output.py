"""What `detect --detector cmt` shows: verdict.json, overlay.png, matches.png, and the photo's place in the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import splatad
from detect.cmt.encoder import CELL_PX
from detect.cmt.predict import PatchMatch, Prediction
from prepare.atomic_write import write_bytes, write_json
from splatad.cmt_inspector import ShapeInspection
from splatad.cmt_reference import ShapeReference
from splatad.pictures import (
    CIRCLE_COLOUR,
    Colour,
    draw_boxes,
    draw_lines,
    overlay_map,
    resized,
    side_by_side,
    to_bytes,
    verdict_banner,
)
from splatad.pose_output import pose_document
from splatad.report import ReportDefect, ReportPhoto

MAP_RANGE = (0.2, 0.8)  # probabilities of a changed cell: where colour begins, where it is full
SHOWN_MATCHES = 5  # cells of the photo, the most suspicious ones
LISTED_VIEWS = 3  # cells of the views that each was compared with, best first
_APART = 2  # cells between those shown, at least
_COLOURS: tuple[Colour, ...] = ((11, 87, 176), (196, 0, 104), (160, 80, 0), (22, 128, 74), (110, 60, 170))
_PHOTO_PX, _VIEW_PX, _GAP_PX = 512, 256, 40


@dataclass(frozen=True)
class Suspicious:
    """A cell of the photo that looks changed, and what it was compared with."""

    probability: float | None  # that it is changed; None: a network without a head for cells
    match: PatchMatch


def suspicious_cells(prediction: Prediction, most: int = SHOWN_MATCHES) -> list[Suspicious]:
    """The cells most likely changed (else least like their matches), strongest first, none beside another."""
    rows = [
        Suspicious(None if prediction.patches is None else float(prediction.patches[match.cell]), match)
        for match in prediction.matches
        if match.view
    ]
    rows.sort(
        key=lambda one: (
            -(one.probability if one.probability is not None else -one.match.score[0]),
            one.match.cell,
        )
    )
    chosen: list[Suspicious] = []
    for one in rows:
        near = any(
            max(abs(one.match.cell[0] - c.match.cell[0]), abs(one.match.cell[1] - c.match.cell[1])) <= _APART
            for c in chosen
        )
        if not near and len(chosen) < most:
            chosen.append(one)
    return chosen


def write_shape_photo(
    folder: Path, inspection: ShapeInspection, reference: ShapeReference, network: dict[str, Any]
) -> None:
    """overlay.png, matches.png where there are matches, then verdict.json, into `folder`."""
    write_bytes(folder / "overlay.png", to_bytes(overlay_picture(inspection, reference), "PNG"))
    matches = matches_picture(inspection, reference)
    if matches is not None:
        write_bytes(folder / "matches.png", to_bytes(matches, "PNG"))
    write_json(folder / "verdict.json", shape_document(inspection, reference, network))


def box_px(inspection: ShapeInspection) -> tuple[int, int, int, int] | None:
    """The defect's box on the photo, x0, y0, x1, y1 in px; None where there is none."""
    if inspection.prediction is None or inspection.prediction.box is None:
        return None
    x, y, width, height = inspection.prediction.box
    rows, columns = inspection.photo.shape[:2]
    x0, y0 = min(int(x), columns - 1), min(int(y), rows - 1)
    return (
        x0,
        y0,
        max(x0 + 1, min(columns, math.ceil(x + width))),
        max(y0 + 1, min(rows, math.ceil(y + height))),
    )


def nearest_side(
    inspection: ShapeInspection, reference: ShapeReference
) -> tuple[Float[Tensor, "height width rgb=3"], str] | None:
    """The reference from the photo's side, in the photo's frame, and what it is; None where the side is not known."""
    framed, prediction = inspection.framed, inspection.prediction
    if framed is None or prediction is None:
        return None
    if inspection.aiding is not None:
        whole = resized(inspection.aiding.pictures[0].float() / 255, framed.side, framed.side)
        room = (
            0, 0, -framed.left, framed.width + framed.left - framed.side, -framed.top,
            framed.height + framed.top - framed.side,
        )  # fmt: skip
        return torch.nn.functional.pad(whole, room, value=1.0), "reference at the found camera"
    if prediction.best_view is None:
        return None
    view = prediction.best_view
    height, width = inspection.photo.shape[:2]
    side = min(height, width)
    picture = resized(reference.encoded.views.pictures[view].float() / 255, side, side)
    left, top = (width - side) // 2, (height - side) // 2
    room = (0, 0, left, width - side - left, top, height - side - top)
    return (
        torch.nn.functional.pad(picture, room, value=1.0),
        f"nearest of {len(reference.encoded.views.pictures)} views, by matches",
    )


def overlay_picture(
    inspection: ShapeInspection, reference: ShapeReference
) -> Float[Tensor, "height width rgb=3"]:
    """Photo with the box, the reference from its side, and the map side by side under the verdict."""
    photo, box = inspection.photo.cpu(), box_px(inspection)
    boxed = photo if box is None else draw_boxes(photo, [box], [""], [CIRCLE_COLOUR])
    panels, captions = [boxed], [inspection.name[-60:]]
    side = nearest_side(inspection, reference)
    if side is not None:
        panels.append(side[0])
        captions.append(side[1])
    if inspection.prediction is not None and inspection.prediction.patch_map is not None:
        panels.append(overlay_map(photo, inspection.prediction.patch_map, *MAP_RANGE))
        captions.append(f"changed, probability from {MAP_RANGE[0]:g} to {MAP_RANGE[1]:g}")
    sheet = side_by_side(panels, captions)
    banner = verdict_banner(inspection.verdict.name, inspection.verdict.reasons[0], int(sheet.shape[1]))
    return torch.cat([banner, sheet], dim=0)


def matches_picture(
    inspection: ShapeInspection, reference: ShapeReference
) -> Float[Tensor, "height width rgb=3"] | None:
    """The photo with its most suspicious cells, the views that hold their best matches, and lines between them."""
    if inspection.framed is None or inspection.prediction is None:
        return None
    cells = suspicious_cells(inspection.prediction)
    if not cells:
        return None
    numbers = list(dict.fromkeys(one.match.view[0] for one in cells))
    views = reference.encoded.views
    px = views.px
    rows = max(1, math.ceil(len(numbers) / 2))
    height = max(_PHOTO_PX, rows * (_VIEW_PX + _GAP_PX) - _GAP_PX)
    columns = min(2, len(numbers))
    sheet = torch.ones(height, _PHOTO_PX + columns * (_VIEW_PX + _GAP_PX), 3)
    photo = (inspection.framed.picture.permute(1, 2, 0) + 1) / 2
    sheet[:_PHOTO_PX, :_PHOTO_PX] = resized(photo, _PHOTO_PX, _PHOTO_PX)
    corner: dict[int, tuple[int, int]] = {}  # of each view, x and y
    for place, number in enumerate(numbers):
        picture = _view_picture(inspection, reference, number)
        x = _PHOTO_PX + _GAP_PX + (place % columns) * (_VIEW_PX + _GAP_PX)
        y = (place // columns) * (_VIEW_PX + _GAP_PX)
        sheet[y : y + _VIEW_PX, x : x + _VIEW_PX] = resized(picture, _VIEW_PX, _VIEW_PX)
        corner[number] = (x, y)
    boxes, labels, colours, lines = [], [], [], []
    for index, one in enumerate(cells):
        colour = _COLOURS[index % len(_COLOURS)]
        x, y = corner[one.match.view[0]]
        here = _cell_box(one.match.cell, (0, 0), _PHOTO_PX / px)
        there = _cell_box(one.match.matched[0], (x, y), _VIEW_PX / px)
        boxes += [here, there]
        labels += [str(index + 1), ""]
        colours += [colour, colour]
        lines.append(
            ((float(here[2]), (here[1] + here[3]) / 2), (float(there[0]), (there[1] + there[3]) / 2))
        )
    sheet = draw_lines(sheet, lines, _COLOURS[: len(lines)])
    sheet = draw_boxes(sheet, boxes, labels, colours)
    return side_by_side([sheet], [f"best matches of suspicious cells: {_in_words(cells, reference)}"])


def shape_document(
    inspection: ShapeInspection, reference: ShapeReference, network: dict[str, Any]
) -> dict[str, Any]:
    """What goes into verdict.json: plain values only."""
    said, framed = inspection.prediction, inspection.framed
    document: dict[str, Any] = {
        "format": "splatad-verdict",
        "version": 1,
        "splatad": splatad.__version__,
        "detector": "cmt",
        "photo": inspection.name,
        "reference": reference.name,
        "verdict": inspection.verdict.name,
        "reasons": list(inspection.verdict.reasons),
        "score": None if said is None else said.score,
        "threshold": None if said is None else said.threshold,
        "threshold_note": inspection.verdict.reasons[-1] if said is not None else None,
        "camera_used": inspection.aiding is not None,
        "box_px": box_px(inspection),
        "network": network,
        "pose": None if inspection.located is None else pose_document(inspection.located),
        "best_view": None,
        "suspicious_cells": [],
        "seconds": {stage: round(value, 4) for stage, value in inspection.seconds.items()},
    }
    if said is None or framed is None:
        return document
    if said.best_view is not None:
        document["best_view"] = {
            "view": said.best_view,
            "azimuth_deg": reference.azimuths_deg[said.best_view],
            "elevation_deg": reference.elevations_deg[said.best_view],
            "disagreement_cells": said.view_scores[said.best_view],
        }
    document["suspicious_cells"] = [
        {
            "probability": one.probability,
            "centre_px": _centre_px(inspection, one.match.cell),
            "cell": list(one.match.cell),
            "matches": [
                {"view": view, "cell": list(cell), "similarity": round(score, 4)}
                for view, cell, score in zip(
                    one.match.view[:LISTED_VIEWS], one.match.matched, one.match.score, strict=False
                )
            ],
        }
        for one in suspicious_cells(said)
    ]
    return document


def shape_row(inspection: ShapeInspection) -> dict[str, object]:
    """One line of verdicts.csv."""
    said, box = inspection.prediction, box_px(inspection)
    return {
        "photo": inspection.name,
        "verdict": inspection.verdict.name,
        "score": "" if said is None else f"{said.score:.6g}",
        "threshold": "" if said is None else f"{said.threshold:.6g}",
        "camera_used": inspection.aiding is not None,
        **dict(zip(("x0", "y0", "x1", "y1"), box or ("",) * 4, strict=True)),
        "seconds": f"{sum(inspection.seconds.values()):.3f}",
        "reason": inspection.verdict.reasons[0],
    }


def shape_report_photo(inspection: ShapeInspection, reference: ShapeReference) -> ReportPhoto:
    """What the report shows of an inspection."""
    said, box = inspection.prediction, box_px(inspection)
    side = nearest_side(inspection, reference)
    numbers: dict[str, str] = {}
    defects: tuple[ReportDefect, ...] = ()
    if said is not None:
        numbers["limit"] = f"{said.threshold:.2f}, {inspection.way}"
    if side is not None:
        numbers["the reference's picture"] = side[1]
    if said is not None and box is not None:
        x0, y0, x1, y1 = box
        area, peak = (x1 - x0) * (y1 - y0), said.score
        if said.patch_map is not None:
            inside = said.patch_map[y0:y1, x0:x1]
            peak = float(inside.max())
            area = int((inside > 0.5).sum()) or area
        defects = (ReportDefect("looks different", area, box, None, peak),)
    return ReportPhoto(
        name=inspection.name,
        verdict=inspection.verdict.name,
        reasons=inspection.verdict.reasons,
        score=None if said is None else said.score,
        photo=inspection.photo.cpu(),
        render=None if side is None else side[0],
        anomaly_map=None if said is None else said.patch_map,
        defects=defects,
        numbers=numbers,
        label=None,
        seconds=inspection.seconds,
    )


def _view_picture(
    inspection: ShapeInspection, reference: ShapeReference, number: int
) -> Float[Tensor, "px px rgb=3"]:
    views = reference.encoded.views
    if number < len(views.pictures):
        return views.pictures[number].float() / 255
    assert inspection.aiding is not None
    return inspection.aiding.pictures[0].float() / 255


def _cell_box(cell: Sequence[int], corner: tuple[int, int], scale: float) -> tuple[int, int, int, int]:
    """The square of a cell (row, column) in a picture that lies at `corner` (x, y), `scale` times its size."""
    row, column = cell
    step = CELL_PX * scale
    x, y = corner
    return (
        x + round(column * step),
        y + round(row * step),
        x + round((column + 1) * step),
        y + round((row + 1) * step),
    )


def _centre_px(inspection: ShapeInspection, cell: Sequence[int]) -> list[float]:
    """Middle of a cell on the photo, (x, y) px."""
    framed = inspection.framed
    assert framed is not None
    step = CELL_PX * framed.scale
    return [round((cell[1] + 0.5) * step - framed.left, 1), round((cell[0] + 0.5) * step - framed.top, 1)]


def _in_words(cells: Sequence[Suspicious], reference: ShapeReference) -> str:
    """Numbers and probabilities of the cells, by the view that holds their best match."""
    by_view: dict[str, list[str]] = {}
    for number, one in enumerate(cells, start=1):
        view = one.match.view[0]
        if view < len(reference.azimuths_deg):
            where = f"view {reference.azimuths_deg[view]:.0f}°/{reference.elevations_deg[view]:.0f}°"
        else:
            where = "found camera"
        share = "" if one.probability is None else f" {one.probability:.0%}"
        by_view.setdefault(where, []).append(f"{number}{share}")
    return "; ".join(f"{where} {', '.join(numbers)}" for where, numbers in by_view.items())
