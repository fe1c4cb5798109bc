"""`splatad detect --detector cmt`: photos against the shape of a mesh or of a reference's splats, whatever their side."""

from __future__ import annotations

import datetime
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prepare.errors import InputError, UsageError
from prepare.image import list_images
from splatad.cmt_inputs import open_predictor
from splatad.cmt_inspector import ShapeInspector, limit_note
from splatad.cmt_output import MAP_RANGE, shape_report_photo, shape_row, write_shape_photo
from splatad.cmt_reference import ShapeReference, is_mesh, reference_of_mesh, reference_of_splats
from splatad.inspector import Inspector
from splatad.reference_dir import choose_device, find_reference
from splatad.report import ReportPhoto, ReportRun, write_report
from splatad.run_output import each_readable, output_folders, photo_names, write_table
from splatad.run_record import machine, versions
from splatad.terminal import Terminal
from splatad.threads import leave_cores_to_the_kernel
from splatad.workspace import Workspace, open_workspace

if TYPE_CHECKING:
    from detect.cmt.predict import Predictor
    from splatad.commands.detect import Detect


def detect_shapes(config: Detect) -> int:
    """0 once all photos have a verdict (see --exit-status); 3 where some could not be read.

    Raises: InputError where the reference, the network or all photos cannot serve; UsageError for flags that do not go
    with this detector; MissingPartError where no network is named and none is shipped.
    """
    names = list(dict.fromkeys(name for group in config.class_ for name in group))
    if config.same_part or config.least_coverage is not None:
        raise UsageError("--same-part, --least-coverage: for --detector difference alone")
    if len(names) > 1:
        raise UsageError(f"--class: one shape with --detector cmt, got {', '.join(names)}")
    workspace = open_workspace(config.workspace)
    paths = list(dict.fromkeys(path for given in config.query for path in list_images(given)))
    device = choose_device(config.device)
    leave_cores_to_the_kernel(device)  # it finds the camera
    file, predictor = open_predictor(config.network, device)
    if not predictor.network.config.reference:
        raise InputError(
            f"{file}: a network that sees the photo alone (query-only); give one that looks at references"
        )
    terminal = Terminal()
    reference = _reference(config, names, workspace, predictor, file, device)
    views = len(reference.encoded.views.pictures)
    came = "kept from before" if reference.kept else f"made and kept in {workspace.root / 'features'}"
    terminal.say(f"{reference.name}: features of {views} views, {came}")
    for note in reference.notes:
        terminal.say(f"{reference.name}: {note}")
    inspector = ShapeInspector(predictor, reference)
    if config.false_alarm_rate is not None and not config.good:
        raise UsageError("--false-alarm-rate: with --good, photos of good parts that the limit is set by")
    if config.good:
        good = list(dict.fromkeys(path for given in config.good for path in list_images(given)))
        with terminal.bar("scoring good photos", len(good)) as bar:
            inspector.calibrate(good, config.false_alarm_rate, bar.advance)
    out = (
        config.out or workspace.runs / f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{Path(reference.name).stem}"
    )
    network = {
        "file": str(file.resolve()),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "thresholds": {"plain": predictor.thresholds.plain, "aided": predictor.thresholds.aided},
    }
    rows: list[dict[str, object]] = []
    failures: list[str] = []
    places = output_folders(photo_names(paths))

    def photos() -> Iterator[ReportPhoto]:
        for number, result in each_readable(
            terminal, "comparing photos", paths, lambda number: inspector.inspect(paths[number]), failures
        ):
            write_shape_photo(out / places[number], result, reference, network)
            rows.append(shape_row(result))
            yield shape_report_photo(result, reference)

    was_there = out.exists()
    try:
        write_report(_report(len(paths), inspector, photos(), device, network), out / "report.html")
    except InputError:
        if not was_there and out.is_dir() and not any(out.iterdir()):
            out.rmdir()
        raise
    write_table(out / "verdicts.csv", rows)
    for row in rows if len(rows) <= 20 else []:
        terminal.say(f"{row['verdict']:<12}{row['photo']}: {row['reason']}")
    counts = Counter(str(row["verdict"]) for row in rows)
    terminal.say(", ".join(f"{counts[name]} {name}" for name in ("OK", "NG", "CANNOT TELL") if counts[name]))
    terminal.say(limit_note(inspector))
    terminal.say(f"report: {out / 'report.html'}")
    for failure in failures:
        print(f"splatad: {failure}", file=sys.stderr)
    if failures:
        return InputError.exit_status
    if config.exit_status:
        return 10 if counts["NG"] else 20 if counts["CANNOT TELL"] else 0
    return 0


def _reference(
    config: Detect,
    names: list[str],
    workspace: Workspace,
    predictor: Predictor,
    file: Path,
    device: torch.device,
) -> ShapeReference:
    features = workspace.root / "features"
    if config.reference is not None and is_mesh(config.reference):
        return reference_of_mesh(config.reference, config.up, predictor, file, features, config.lens)
    if config.reference is not None and not config.reference.is_dir():
        raise InputError(
            f"{config.reference}: no mesh file (.stl, .obj, .ply, .glb) and no reference folder; give one of them"
        )
    folder = find_reference(workspace, names[0] if names else None, config.reference)
    inspector = Inspector.open(folder, device, config.lens)
    return reference_of_splats(inspector, folder, config.up, predictor, file, features)


def _report(
    count: int,
    inspector: ShapeInspector,
    photos: Iterator[ReportPhoto],
    device: torch.device,
    network: dict[str, Any],
) -> ReportRun:
    reference, predictor, calibration = inspector.reference, inspector.predictor, inspector.calibration
    thresholds = predictor.thresholds
    note = f"The score is the probability of a defect; {limit_note(inspector)}."
    aided = inspector.usual_way == "aided"
    if calibration is not None:
        limit: float | None = calibration.threshold
    else:
        limit = None if aided else thresholds.plain
    if aided and calibration is None:
        note += f" The limit is {thresholds.aided:.2f} where the photo's camera was found, {thresholds.plain:.2f} where not."
    return ReportRun(
        title=f"Shapes of {count} photo{'s' if count != 1 else ''}",
        reference=reference.name,
        threshold=limit,
        false_alarm_rate=None if calibration is None else calibration.false_alarm_rate,
        threshold_note=note,
        good_scores=() if calibration is None else calibration.good_scores,
        photos=photos,
        metrics=None,
        footer={
            "machine": machine(device),
            "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
            "network": json.dumps(network, indent=1),
            "training": json.dumps(predictor.about, indent=1),
        },
        map_range=MAP_RANGE,
    )
