"""Defects as files: `defects.json`, `defects.csv`, `coco.json`, `mask.png`, `labels.png` and, of one part, `part.json`.

Boxes are in pixels of the inspected photo and of the photo file (upright, as EXIF says), which is larger where the
photo was scaled down. Where the lens distorts, both are in the straightened picture: the file's own pixels lie beside
them by what the lens moves.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer
from PIL import Image

from detect.defect_kind import KINDS
from detect.defects import Defect
from detect.fuse import FusedDefect, FusedPart
from prepare.atomic_write import write_bytes, write_json, write_text
from splatad.inspector import Inspection
from splatad.report import ReportFused, ReportFusedDefect
from splatad.run_output import KIND_WORDS

COCO_CATEGORIES = [
    {"id": number, "name": kind, "supercategory": "defect"} for number, kind in enumerate(KINDS, start=1)
]
COLUMNS = (
    "photo", "reference", "defect", "kind", "peak", "mean", "x0_px", "y0_px", "x1_px", "y1_px", "area_px",
    "file_x0_px", "file_y0_px", "file_x1_px", "file_y1_px", "file_area_px", "centre_x", "centre_y", "centre_z",
    "centre_x_mm", "centre_y_mm", "centre_z_mm", "extent", "extent_mm", "area", "area_mm2", "normal_x", "normal_y",
    "normal_z", "splats",
)  # fmt: skip
UNITS = {
    "box_px": "pixels of the inspected photo: x0, y0, x1, y1 from its top left, x1 and y1 exclusive",
    "file_box_px": "the same in pixels of the photo file, upright",
    "area_px": "pixels of the inspected photo",
    "file_area_px": "pixels of the photo file",
    "peak": "of the anomaly map, as the threshold",
    "centre": "world units of the reference",
    "extent": "world units: greatest length on the part's surface",
    "area": "world units squared, as if the surface faced the camera; the true area is not smaller",
    "normal": "unit vector in the world, of the part's surface, towards the camera",
    "*_mm": "millimetres, null where the reference has no scale",
    "*_mm2": "square millimetres, null where the reference has no scale",
    "splats": "number of the reference's splats that lie mostly in the defect",
}


@dataclass(frozen=True)
class PhotoDefects:
    """The defects of one photo as plain values: what stays in memory of it for the run's files."""

    document: Mapping[str, Any]  # its entry in defects.json
    image: Mapping[str, Any]  # its entry in coco.json, without the id
    annotations: tuple[Mapping[str, Any], ...]  # those of coco.json, without ids


def file_size(inspection: Inspection) -> tuple[int, int]:
    """Width and height in px of the photo's file, upright; of the inspected photo where it came from memory."""
    height, width = inspection.photo.shape[:2]
    lens = inspection.lens
    return (width, height) if lens is None else (lens.camera.width, lens.camera.height)


def file_box(
    box: tuple[int, int, int, int], size: tuple[int, int], file: tuple[int, int]
) -> tuple[int, int, int, int]:
    """The file's pixels that `box` of the inspected photo touches; sizes are (width, height), ends exclusive."""
    x, y = file[0] / size[0], file[1] / size[1]
    x0, y0, x1, y1 = box
    return (
        math.floor(x0 * x + 1e-9),
        math.floor(y0 * y + 1e-9),
        min(file[0], math.ceil(x1 * x - 1e-9)),
        min(file[1], math.ceil(y1 * y - 1e-9)),
    )


def photo_defects(inspection: Inspection, reference: str | None, scale_to_mm: float | None) -> PhotoDefects:
    """The defects of an inspected photo; `reference` is the part's name, None where it is not known."""
    height, width = inspection.photo.shape[:2]
    file = file_size(inspection)
    distortion = None if inspection.lens is None else inspection.lens.distortion
    straightened = distortion is not None and not distortion.is_trivial
    entries, annotations = [], []
    for number, defect in enumerate(inspection.defects, start=1):
        mask = _enlarged(defect.mask.numpy(), file)
        entry = defect_document(defect, number, scale_to_mm)
        entry["file_box_px"] = list(file_box(defect.box, (width, height), file))
        entry["file_area_px"] = int(mask.sum())
        entries.append(entry)
        annotations.append(_annotation(defect, number, mask))
    document = {
        "photo": inspection.name,
        "reference": reference,
        "verdict": inspection.verdict.name,
        "inspected_size_px": [width, height],
        "file_size_px": list(file),
        "straightened": straightened,
        "defects": entries,
    }
    image = {
        "file_name": inspection.name,
        "width": file[0],
        "height": file[1],
        "straightened": straightened,
        "verdict": inspection.verdict.name,
    }
    return PhotoDefects(document, image, tuple(annotations))


def defect_document(defect: Defect, number: int, scale_to_mm: float | None) -> dict[str, Any]:
    """One defect's plain values; see UNITS."""
    return {
        "number": number,
        "kind": defect.kind,
        "box_px": list(defect.box),
        "area_px": defect.area_px,
        "peak": defect.peak,
        "mean": defect.mean,
        **_in_space(defect.centre, defect.extent, defect.area, scale_to_mm),
        "normal": None if defect.normal is None else list(defect.normal),
        "splats": len(defect.splats),
        "evidence": asdict(defect.evidence),
    }


def write_photo_defects(folder: Path, inspection: Inspection, defects: PhotoDefects) -> None:
    """`defects.json`, with each defect's splats by index; of a photo that was judged also `mask.png` and `labels.png`.

    White in the mask is defective; the labels are the defects' numbers, 0 elsewhere. Both are of the inspected photo's
    size. A photo with CANNOT TELL has neither: an empty mask would say that it is good.
    """
    document = dict(defects.document)
    document["defects"] = [
        entry | {"splat_indices": defect.splats.tolist()}
        for entry, defect in zip(document["defects"], inspection.defects, strict=True)
    ]
    write_json(folder / "defects.json", _header("splatad-defects") | {"units": UNITS} | document)
    if inspection.verdict.name == "CANNOT TELL":
        return
    labels = label_image(inspection)
    write_bytes(folder / "mask.png", _png(np.where(labels > 0, 255, 0).astype(np.uint8)))
    write_bytes(folder / "labels.png", _png(labels))


def label_image(inspection: Inspection) -> Integer[np.ndarray, "height width"]:
    """The number of the defect at each pixel, from 1 as in defects.json, 0 where none; 8 bit, 16 from 256 defects on."""
    kind = np.uint8 if len(inspection.defects) < 256 else np.uint16
    labels = np.zeros(tuple(inspection.photo.shape[:2]), kind)
    for number, defect in enumerate(inspection.defects, start=1):
        labels[defect.mask.numpy()] = number
    return labels


def write_run_defects(folder: Path, photos: Sequence[PhotoDefects]) -> None:
    """`defects.json`, `defects.csv` (a row a defect) and `coco.json` of all photos of a run."""
    documents = [dict(photo.document) for photo in photos]
    write_json(folder / "defects.json", _header("splatad-defects") | {"units": UNITS, "photos": documents})
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=COLUMNS)
    writer.writeheader()
    writer.writerows(_row(document, entry) for document in documents for entry in document["defects"])
    write_text(folder / "defects.csv", text.getvalue())
    # One line: indented, each number of the run lengths would have its own.
    write_text(
        folder / "coco.json", json.dumps(coco_document(photos), ensure_ascii=False, allow_nan=False) + "\n"
    )


def coco_document(photos: Sequence[PhotoDefects]) -> dict[str, Any]:
    """The run as COCO instance segmentation in pixels of the photo files; ids count from 1.

    Masks are uncompressed run lengths down the columns, zeros first, with `iscrowd` 0: pycocotools reads them through
    `annToMask`. Source: the format on cocodataset.org, "Object Detection".
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, photo in enumerate(photos, start=1):
        images.append({"id": number} | dict(photo.image))
        annotations += [
            {"id": len(annotations) + i, "image_id": number} | dict(annotation)
            for i, annotation in enumerate(photo.annotations, start=1)
        ]
    return {
        "info": {
            "description": "defects found by splatad; `straightened` images are as without the lens's distortion"
        },
        "licenses": [],
        "categories": COCO_CATEGORIES,
        "images": images,
        "annotations": annotations,
    }


def run_lengths(mask: Bool[np.ndarray, "height width"]) -> list[int]:
    """Lengths of the runs of equal pixels down the columns, left to right; the first is of False and may be 0."""
    flat = mask.reshape(-1, order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    lengths = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return [0, *lengths] if flat[0] else lengths


def write_part(
    folder: Path, part: FusedPart, reference: str, scale_to_mm: float | None, version: str
) -> None:
    """`part.json`: the verdict on the part that all photos show, and its defects."""
    document = _header("splatad-part") | {
        "splatad": version,
        "reference": reference,
        "verdict": part.verdict.name,
        "reasons": list(part.verdict.reasons),
        "smallest_p_value": part.p_value,
        "p_value_limit": part.p_limit,
        "coverage": part.coverage,
        "photos_judged": list(part.believed),
        "photos_not_judged": list(part.doubted),
        "units": {
            name: UNITS[name] for name in ("peak", "centre", "extent", "area", "*_mm", "*_mm2", "splats")
        }
        | {"agreement": "share of the photos that show the place in which the defect was seen"},
        "defects": [fused_document(defect, scale_to_mm) for defect in part.defects],
    }
    write_json(folder / "part.json", document)


def fused_document(defect: FusedDefect, scale_to_mm: float | None) -> dict[str, Any]:
    """One fused defect's plain values."""
    return {
        "number": defect.number,
        "kind": defect.kind,
        "peak": defect.peak,
        **_in_space(defect.centre, defect.extent, defect.area, scale_to_mm),
        "seen_in": list(defect.seen_in),
        "not_seen_in": list(defect.not_seen_in),
        "agreement": defect.agreement,
        "splats": len(defect.splats),
        "splat_indices": defect.splats.tolist(),
        "members": [{"photo": photo, "number": index + 1} for photo, index in defect.members],
    }


def fused_line(defect: FusedDefect, scale_to_mm: float | None) -> str:
    """One fused defect for the terminal."""
    where = "place not known"
    if defect.centre is not None:
        unit, scale = ("mm", scale_to_mm) if scale_to_mm is not None else ("units", 1.0)
        place = ", ".join(f"{value * scale:.3g}" for value in defect.centre)
        where = f"at ({place}) {unit}"
        if defect.extent is not None:
            where += f", {defect.extent * scale:.2g} {unit} long"
    shown = len(defect.seen_in) + len(defect.not_seen_in)
    return f"{defect.kind} {where}; in {len(defect.seen_in)} of {shown} photos that show the place"


def _header(kind: str) -> dict[str, Any]:
    return {"format": kind, "version": 1}


def _in_space(
    centre: tuple[float, float, float] | None,
    extent: float | None,
    area: float | None,
    scale_to_mm: float | None,
) -> dict[str, Any]:
    def scaled(value: float | None, power: int = 1) -> float | None:
        return None if value is None or scale_to_mm is None else value * scale_to_mm**power

    return {
        "centre": None if centre is None else list(centre),
        "centre_mm": None
        if centre is None or scale_to_mm is None
        else [value * scale_to_mm for value in centre],
        "extent": extent,
        "extent_mm": scaled(extent),
        "area": area,
        "area_mm2": scaled(area, 2),
    }


def _row(document: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, object]:
    """One line of defects.csv; what is not known stays empty."""

    def three(name: str, suffix: str = "") -> dict[str, object]:
        values = entry[name + suffix] or ("", "", "")
        return {f"{name}_{axis}{suffix}": value for axis, value in zip("xyz", values, strict=True)}

    def four(name: str, prefix: str) -> dict[str, object]:
        return dict(
            zip((f"{prefix}{corner}_px" for corner in ("x0", "y0", "x1", "y1")), entry[name], strict=True)
        )

    row: dict[str, object] = {
        "photo": document["photo"],
        "reference": document["reference"] or "",
        "defect": entry["number"],
        **{name: entry[name] for name in ("kind", "peak", "mean", "area_px", "file_area_px", "splats")},
        **four("box_px", ""),
        **four("file_box_px", "file_"),
        **three("centre"),
        **three("centre", "_mm"),
        **three("normal"),
    }
    for name in ("extent", "extent_mm", "area", "area_mm2"):
        row[name] = "" if entry[name] is None else entry[name]
    return row


def _annotation(defect: Defect, number: int, mask: Bool[np.ndarray, "height width"]) -> dict[str, Any]:
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    x, y = int(columns[0]), int(rows[0])
    return {
        "category_id": KINDS.index(defect.kind) + 1,
        "segmentation": {"size": list(mask.shape), "counts": run_lengths(mask)},
        "area": int(mask.sum()),
        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        "iscrowd": 0,
        "score": defect.peak,
        "defect": number,
    }


def _enlarged(
    mask: Bool[np.ndarray, "height width"], file: tuple[int, int]
) -> Bool[np.ndarray, "file_height file_width"]:
    """The mask at the file's size: each pixel takes that of the inspected pixel that its centre lies in."""
    height, width = mask.shape
    if file == (width, height):
        return mask
    columns, rows = (
        np.minimum(((np.arange(to) + 0.5) * size / to).astype(int), size - 1)
        for size, to in ((width, file[0]), (height, file[1]))
    )
    return mask[np.ix_(rows, columns)]


def _png(levels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, format="PNG")
    return buffer.getvalue()


def report_part(part: FusedPart) -> ReportFused:
    """What the report shows of a part that several photos are of."""
    return ReportFused(
        verdict=part.verdict.name,
        reasons=part.verdict.reasons,
        photos=len(part.believed) + len(part.doubted),
        defects=tuple(
            ReportFusedDefect(d.number, KIND_WORDS[d.kind], d.centre, d.extent, d.seen_in, d.peak)
            for d in part.defects
            if d.centre is not None
        ),
        coverage=part.coverage,
    )
