"""The files of a run: per photo `verdict.json` and `overlay.png`, for all of it `verdicts.csv` and `report.html`.

Defects have files of their own: splatad/defect_output.py.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

import splatad
from detect.defect_kind import DefectKind
from detect.defects import Defect
from prepare.atomic_write import write_bytes, write_json, write_text
from prepare.errors import InputError
from splatad.inspector import Inspection, verdict_document
from splatad.pictures import circle_defects, overlay_map, side_by_side, to_bytes, verdict_banner
from splatad.reference_dir import LoadedReference
from splatad.report import ReportDefect, ReportPhoto
from splatad.run_record import machine, versions
from splatad.terminal import Terminal

Result = TypeVar("Result")

KIND_WORDS: dict[DefectKind, str] = {
    "missing": "something missing",
    "added": "something added",
    "discoloured": "another colour",
    "changed": "looks different",
}


def map_range(loaded: LoadedReference) -> tuple[float, float]:
    """Map values at which colour begins and is full: a third of the threshold to twice it, the same for all photos."""
    threshold = loaded.calibration.threshold
    return threshold / 3, threshold * 2


def write_photo(
    folder: Path, inspection: Inspection, loaded: LoadedReference, document: dict[str, Any] | None = None
) -> None:
    """`overlay.png`, then `verdict.json` (of `document`, if given), into `folder`."""
    write_bytes(folder / "overlay.png", to_bytes(overlay_picture(inspection, loaded), "PNG"))
    write_json(folder / "verdict.json", document or verdict_document(inspection, loaded, splatad.__version__))


def overlay_picture(inspection: Inspection, loaded: LoadedReference) -> Float[Tensor, "height width rgb=3"]:
    """Photo with the defects circled, render, and map side by side under the verdict."""
    photo = inspection.shown
    panels = [circle_defects(photo, [defect.box for defect in inspection.defects])]
    captions = [inspection.name[-60:]]
    if inspection.render is not None and inspection.anomaly is not None:
        low, high = map_range(loaded)
        panels += [
            inspection.render.rgb.cpu().clamp(0, 1),
            overlay_map(photo, inspection.anomaly.values.cpu(), low, high),
        ]
        captions += ["reference at the found camera", f"difference, colour from {low:.2g} to {high:.2g}"]
    sheet = side_by_side(panels, captions)
    banner = verdict_banner(inspection.verdict.name, inspection.verdict.reasons[0], int(sheet.shape[1]))
    return torch.cat([banner, sheet], dim=0)


def report_photo(inspection: Inspection, label: str | None = None) -> ReportPhoto:
    """What the report shows of an inspection."""
    located = inspection.located
    numbers = {}
    if located is not None:
        numbers = {
            "part that looks as it should": f"{located.inliers:.1%}",
            "outline overlap": f"{located.overlap:.1%}",
            "camera uncertainty": f"{located.sigma_deg:.3f}°",
            "nearest reference photo": f"{located.nearest_view_deg:.1f}° away",
        }
    return ReportPhoto(
        name=inspection.name,
        verdict=inspection.verdict.name,
        reasons=inspection.verdict.reasons,
        score=inspection.score,
        photo=inspection.shown,
        render=None if inspection.render is None else inspection.render.rgb.cpu().clamp(0, 1),
        anomaly_map=None if inspection.anomaly is None else inspection.anomaly.values.cpu(),
        defects=tuple(_report_defect(defect) for defect in inspection.defects),
        numbers=numbers,
        label=label,
        seconds=inspection.seconds,
        unknown=None if inspection.anomaly is None else ~inspection.anomaly.known.cpu(),
    )


def write_table(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """A CSV file of `rows`, columns in the order of the first row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [])
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def verdict_row(inspection: Inspection) -> dict[str, object]:
    """One line of `verdicts.csv`."""
    located = inspection.located
    largest = max(inspection.defects, key=lambda defect: defect.area_px, default=None)
    return {
        "photo": inspection.name,
        "verdict": inspection.verdict.name,
        "score": "" if inspection.score is None else f"{inspection.score:.6g}",
        "defects": len(inspection.defects),
        "largest_px": 0 if largest is None else largest.area_px,
        "largest_kind": "" if largest is None else largest.kind,
        "pose_believed": "" if located is None else located.believed,
        "seconds": f"{sum(inspection.seconds.values()):.3f}",
        "reason": inspection.verdict.reasons[0],
    }


def footer(loaded: LoadedReference, device: torch.device) -> dict[str, str]:
    """Versions, machine and config for the report."""
    return {
        "machine": machine(device),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "fit": json.dumps(dict(loaded.reference.settings), indent=1),
    }


def each_readable(
    terminal: Terminal, what: str, paths: Sequence[Path], look: Callable[[int], Result], failures: list[str]
) -> Iterator[tuple[int, Result]]:
    """The number of each of `paths` and what `look` gives for that number, under a progress bar called `what`.

    What is said of unreadable photos goes into `failures`. Raises: InputError where none is readable.
    """
    read = 0
    with terminal.bar(what, len(paths)) as bar:
        for number in range(len(paths)):
            try:
                result = look(number)
            except InputError as error:
                if len(paths) == 1:
                    raise
                failures.append(str(error))
                bar.advance()
                continue
            read += 1
            bar.advance()
            yield number, result
    if not read:
        raise InputError(f"none of the {len(paths)} photos could be read: {failures[0]}")


def photo_names(paths: Sequence[Path]) -> list[str]:
    """Short names that tell the photos apart: relative to their common folder, with as many parents as that needs."""
    if len(paths) == 1:
        return [paths[0].name]
    resolved = [path.resolve() for path in paths]
    common = Path(*_common_parts([path.parent.parts for path in resolved]))
    return [path.relative_to(common).as_posix() for path in resolved]


def output_folders(names: Sequence[str]) -> list[str]:
    """A folder name for each photo's outputs, no two alike: the second of a name gets "-2".

    Upper and lower case count as the same: a file system may take A and a for one.
    """
    taken: set[str] = set()
    places = []
    for name in names:
        place = base = folder_name(name)
        number = 2
        while place.casefold() in taken:
            place, number = f"{base}-{number}", number + 1
        taken.add(place.casefold())
        places.append(place)
    return places


def folder_name(name: str) -> str:
    """A file-system-safe folder name for a photo's outputs."""
    stem = name.rsplit(".", 1)[0] if "." in name else name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "photo"


def _common_parts(all_parts: Sequence[tuple[str, ...]]) -> list[str]:
    shared = []
    for parts in zip(*all_parts, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return shared


def _report_defect(defect: Defect) -> ReportDefect:
    return ReportDefect(
        KIND_WORDS[defect.kind], defect.area_px, defect.box, defect.centre, defect.peak, defect.extent
    )
