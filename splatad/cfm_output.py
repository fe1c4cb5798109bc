"""What `detect --detector cfm` writes: marked.png, heatmap.png, overlay.png, verdict.json; the photo in the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

import splatad
from detect.cfm.absolute import Absolute
from prepare.atomic_write import write_bytes, write_json
from splatad.cfm_inspector import CfmInspection, Found
from splatad.pictures import circle_defects, overlay_map, side_by_side, to_bytes, verdict_banner
from splatad.report import ReportDefect, ReportPhoto

UNITS = {
    "score": "standard deviations of good photos' pixels, as the threshold and a defect's peak and mean",
    "published_score": "relative to the photo's own level, as published; comparable with no other photo",
    "box_px": "pixels of marked.png: x0, y0, x1, y1 from its top left, x1 and y1 exclusive",
    "file_box_px": "the same in pixels of the photo's file",
    "area_px": "pixels of the square that features are computed on",
    "centre_mm": "millimetres in the sensor's frame, null where nothing was measured",
    "extent_mm": "millimetres: diagonal of the box round the defect's points",
}


def map_range(inspection: CfmInspection, scale: Absolute | None) -> tuple[float, float]:
    """Values at which colour begins and is full: a third of the limit to twice it; without a limit up to the photo's own."""
    if scale is not None:
        return scale.limit / 3, 2 * scale.limit
    top = float(torch.nan_to_num(inspection.heat).max())
    return 0.0, max(top, 1e-9)


def marked_picture(inspection: CfmInspection) -> Float[Tensor, "height width rgb=3"]:
    """The photo with every defect circled and numbered."""
    boxes = [one.box for one in inspection.found]
    return circle_defects(inspection.photo, boxes, [str(number + 1) for number in range(len(boxes))])


def heat_picture(inspection: CfmInspection, scale: Absolute | None) -> Float[Tensor, "height width rgb=3"]:
    """The map over the photo, on the same scale for all photos."""
    return overlay_map(inspection.photo, inspection.heat, *map_range(inspection, scale))


def overlay_picture(
    inspection: CfmInspection,
    scale: Absolute | None,
    marked: Float[Tensor, "height width rgb=3"],
    heat: Float[Tensor, "height width rgb=3"],
) -> Float[Tensor, "rows columns rgb=3"]:
    """Marked photo and heat map side by side under the verdict."""
    low, high = map_range(inspection, scale)
    unit = "deviations" if scale is not None else "on the photo's own scale"
    sheet = side_by_side(
        [marked, heat],
        [inspection.name[-60:], f"disagreement, {low:.2g} to {high:.2g} {unit}"],
    )
    banner = verdict_banner(inspection.verdict.name, inspection.verdict.reasons[0], int(sheet.shape[1]))
    return torch.cat([banner, sheet], dim=0)


def write_cfm_photo(
    folder: Path, inspection: CfmInspection, scale: Absolute | None, document: Mapping[str, Any]
) -> None:
    """The three pictures, then verdict.json, into `folder`."""
    marked, heat = marked_picture(inspection), heat_picture(inspection, scale)
    write_bytes(folder / "marked.png", to_bytes(marked, "PNG"))
    write_bytes(folder / "heatmap.png", to_bytes(heat, "PNG"))
    write_bytes(folder / "overlay.png", to_bytes(overlay_picture(inspection, scale, marked, heat), "PNG"))
    write_json(folder / "verdict.json", document)


def cfm_document(
    inspection: CfmInspection, scale: Absolute | None, fusion: str, network: Mapping[str, Any]
) -> dict[str, Any]:
    """What goes into verdict.json: plain values only."""
    return {
        "format": "splatad-verdict",
        "version": 1,
        "splatad": splatad.__version__,
        "detector": "cfm",
        "photo": inspection.name,
        "points": inspection.points,
        "class": network.get("class"),
        "verdict": inspection.verdict.name,
        "reasons": list(inspection.verdict.reasons),
        "score": _finite(inspection.score),
        "threshold": None if scale is None else scale.limit,
        "false_alarm_rate": None if scale is None else scale.false_alarm_rate,
        "threshold_note": None if scale is None else scale.note,
        "published_score": _finite(inspection.published_score),
        "fusion": fusion,
        "valid_share": inspection.valid_share,
        "ground_removed": inspection.ground_removed,
        "units": UNITS,
        "defects": [defect_document(number, one) for number, one in enumerate(inspection.found, start=1)],
        "network": dict(network),
        "seconds": {stage: round(value, 4) for stage, value in inspection.seconds.items()},
    }


def defect_document(number: int, one: Found) -> dict[str, Any]:
    """One defect's plain values; see UNITS."""
    return {
        "number": number,
        "box_px": list(one.box),
        "file_box_px": list(one.file_box),
        "area_px": one.region.area_px,
        "peak": one.region.peak,
        "mean": one.region.mean,
        "centre_mm": None if one.centre is None else [round(1000 * value, 4) for value in one.centre],
        "extent_mm": None if one.extent is None else round(1000 * one.extent, 4),
    }


def cfm_row(inspection: CfmInspection, scale: Absolute | None) -> dict[str, object]:
    """One line of verdicts.csv."""
    score = _finite(inspection.score)
    return {
        "photo": inspection.name,
        "points": inspection.points,
        "verdict": inspection.verdict.name,
        "score": "" if score is None else f"{score:.6g}",
        "threshold": "" if scale is None else f"{scale.limit:.6g}",
        "defects": len(inspection.found),
        "seconds": f"{sum(inspection.seconds.values()):.3f}",
        "reason": inspection.verdict.reasons[0],
    }


def defect_rows(inspection: CfmInspection) -> list[dict[str, object]]:
    """Lines of defects.csv."""
    rows = []
    for number, one in enumerate(inspection.found, start=1):
        values = defect_document(number, one)
        row: dict[str, object] = {"photo": inspection.name, "defect": number}
        for key, axes in (
            ("box_px", ("x0", "y0", "x1", "y1")),
            ("file_box_px", ("x0", "y0", "x1", "y1")),
            ("centre_mm", "xyz"),
        ):
            for axis, value in zip(axes, values[key] or ("",) * len(axes), strict=True):
                row[
                    f"{key.removesuffix('_px').removesuffix('_mm')}_{axis}{'_mm' if key == 'centre_mm' else '_px'}"
                ] = value
        row |= {name: values[name] for name in ("area_px", "peak", "mean")}
        row["extent_mm"] = "" if values["extent_mm"] is None else values["extent_mm"]
        rows.append(row)
    return rows


def cfm_report_photo(inspection: CfmInspection, scale: Absolute | None) -> ReportPhoto:
    """What the report shows of an inspection; without a limit its map is a share of its own highest value."""
    heat = inspection.heat
    if scale is None:
        heat = heat / map_range(inspection, None)[1]
    numbers = {"pixels with points": f"{inspection.valid_share:.1%}"}
    for number, one in enumerate(inspection.found[:3], start=1):
        if one.centre is not None and one.extent is not None:
            place = ", ".join(f"{1000 * value:.1f}" for value in one.centre)
            numbers[f"defect {number}"] = f"at ({place}) mm, {1000 * one.extent:.1f} mm long"
    if inspection.ground_removed:
        numbers["ground"] = "taken away here"
    return ReportPhoto(
        name=inspection.name,
        verdict=inspection.verdict.name,
        reasons=inspection.verdict.reasons,
        score=_finite(inspection.score),
        photo=inspection.photo,
        render=None,
        anomaly_map=heat,
        defects=tuple(
            ReportDefect(
                "photo and shape disagree", (one.box[2] - one.box[0]) * (one.box[3] - one.box[1]), one.box, one.centre,
                one.region.peak, one.extent,
            )
            for one in inspection.found
        ),
        numbers=numbers,
        label=None,
        seconds=inspection.seconds,
    )  # fmt: skip


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
