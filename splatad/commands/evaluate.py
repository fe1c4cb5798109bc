"""`splatad evaluate`: metrics over the test photos of a class, beside the published figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from collections.abc import Sequence

    from detect.evaluate import Metrics
    from prepare.scene import Query
    from splatad.inspector import Inspection

# Nothing here imports torch when read: the command line reads this class to print its help.


@dataclass(frozen=True)
class Evaluate:
    """Inspect every test photo of a class and measure: detection, localisation, pose, time."""

    class_: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """Name of a fitted reference whose scene has test photos; the only one if not given."""
    scene: Path | None = None
    """The scene folder with the test photos; the one the reference was fitted from if not given."""
    reference: Path | None = None
    """A reference folder instead of one of the workspace."""
    workspace: Path | None = None
    """Where scenes and references lie; else $SPLATAD_WORKSPACE, else ./splatad-work."""
    out: Path | None = None
    """Folder for the results; WORKSPACE/runs/evaluate-NAME if not given."""
    refine: Literal["levenberg", "adam", "splatpose"] = "levenberg"
    """How cameras are refined: ours, or for comparison Adam through the rasteriser or SplatPose's recipe of it."""
    device: str = "auto"
    """auto, cpu or cuda."""


Command = Evaluate


def run(config: Evaluate) -> int:
    """0 once the tables are printed and written.

    Raises: InputError where there are no test photos; UsageError for names that do not exist.
    """
    import dataclasses
    import statistics
    from dataclasses import replace

    import torch

    from detect.evaluate import GOOD, Scored, evaluate, mask_at_map_size
    from detect.metrics import object_shift_percent, rotation_error_deg
    from prepare.atomic_write import write_json
    from prepare.errors import InputError
    from prepare.image import read_mask
    from prepare.scene import load_scene
    from splatad.inspector import Inspector
    from splatad.reference_dir import choose_device, find_reference
    from splatad.report import ReportRun, write_report
    from splatad.run_output import footer, map_range, report_photo, verdict_row, write_table
    from splatad.run_record import machine, versions
    from splatad.terminal import Terminal
    from splatad.threads import leave_cores_to_the_kernel
    from splatad.workspace import open_workspace

    workspace = open_workspace(config.workspace)
    device = choose_device(config.device)
    leave_cores_to_the_kernel(device)
    inspector = Inspector.open(find_reference(workspace, config.class_, config.reference), device)
    inspector.config = replace(inspector.config, refine=config.refine)
    loaded = inspector.loaded
    name = loaded.reference.name
    scene = load_scene(config.scene or Path(loaded.reference.scene))
    if not scene.queries:
        raise InputError(
            f"{scene.folder}: no test photos (queries.json); prepare the scene from a dataset that has them"
        )
    suffix = "" if config.refine == "levenberg" else f"-{config.refine}"
    out = config.out or workspace.runs / f"evaluate-{name}{suffix}"
    terminal = Terminal()

    scored: list[Scored] = []
    rows: list[dict[str, object]] = []
    seconds: list[dict[str, float]] = []
    pose_errors: list[tuple[float, float]] = []
    verdicts: list[tuple[str, str]] = []
    kept: list[tuple[Query, Inspection]] = []
    with terminal.bar("inspecting test photos", len(scene.queries)) as bar:
        for query in scene.queries:
            inspection = dataclasses.replace(inspector.inspect(query.image_path), name=query.name)
            height, width = inspection.photo.shape[:2]
            values = (
                torch.zeros(height, width) if inspection.anomaly is None else inspection.anomaly.values.cpu()
            )
            mask = torch.zeros(height, width, dtype=torch.bool)
            if query.mask_path is not None:
                mask = mask_at_map_size(read_mask(query.mask_path), height, width)
            # A photo without any part has no map: it counts as standing right at the threshold.
            score = loaded.calibration.threshold if inspection.score is None else inspection.score
            scored.append(Scored(query.label or "unlabelled", score, values, mask))
            row = {"label": query.label} | verdict_row(inspection)
            if query.world_to_cam is not None and inspection.located is not None:
                found = inspection.located.camera.world_to_cam.cpu().double()
                truth = query.world_to_cam.double()
                turn = float(rotation_error_deg(found, truth))
                shift = float(object_shift_percent(found, truth, loaded.reference.volume.centre.double()))
                pose_errors.append((turn, shift))
                row |= {"rotation_error_deg": f"{turn:.5f}", "shift_percent": f"{shift:.5f}"}
            else:
                row |= {"rotation_error_deg": "", "shift_percent": ""}
            rows.append(row)
            seconds.append(dict(inspection.seconds))
            verdicts.append((query.label, inspection.verdict.name))
            # The report needs photo and render again: made anew from the camera, so that memory stays bounded.
            kept.append(
                (
                    query,
                    dataclasses.replace(inspection, photo=torch.zeros(1, 1, 3), render=None, anomaly=None),
                )
            )
            bar.advance()

    overall = evaluate(scored)
    labels = list(dict.fromkeys(s.label for s in scored if s.label != GOOD))
    by_type = {label: evaluate(scored, label) for label in labels}
    stages = list(dict.fromkeys(stage for entry in seconds for stage in entry))
    stage_medians = {stage: statistics.median(entry.get(stage, 0.0) for entry in seconds) for stage in stages}
    per_photo = statistics.median(sum(entry.values()) for entry in seconds)
    _print_tables(terminal, name, overall, by_type, per_photo)
    pose = _pose_summary(pose_errors)
    if pose:
        terminal.say(
            f"pose, {len(pose_errors)} photos with truth: rotation median {pose['rotation_deg_median']:.3f}, 95 % "
            f"{pose['rotation_deg_p95']:.3f}, most {pose['rotation_deg_max']:.3f} degrees; within 0.5 degrees "
            f"{pose['within_half_degree']}; shift median {pose['shift_percent_median']:.3f} % of the distance"
        )
    outcome = _outcome(verdicts)
    terminal.say(outcome["text"])
    terminal.say(
        "seconds a photo, median: "
        + ", ".join(f"{stage} {value:.2f}" for stage, value in stage_medians.items())
    )

    document = {
        "format": "splatad-evaluation",
        "version": 1,
        "reference": name,
        "refine": config.refine,
        "overall": dataclasses.asdict(overall),
        "by_type": {label: dataclasses.asdict(metrics) for label, metrics in by_type.items()},
        "pose": pose,
        "verdicts": outcome,
        "seconds": stage_medians,
        "threshold": loaded.calibration.threshold,
        "false_alarm_rate": loaded.calibration.false_alarm_rate,
        "machine": machine(device),
        "versions": versions(),
        "fit": dict(loaded.reference.settings),
    }
    write_table(out / "photos.csv", rows)
    metric_rows = {"all": overall} | by_type
    write_table(
        out / "metrics.csv", [{"defect": label} | dataclasses.asdict(m) for label, m in metric_rows.items()]
    )
    write_json(out / "metrics.json", document)

    def photos():
        for (query, inspection), result in zip(kept, scored, strict=True):
            yield report_photo(_shown_again(inspector, query, inspection, result.values), query.label or None)

    calibration = loaded.calibration
    report = ReportRun(
        title=f"Evaluation on {len(kept)} test photos",
        reference=name,
        threshold=calibration.threshold,
        false_alarm_rate=calibration.false_alarm_rate,
        threshold_note=calibration.note,
        good_scores=calibration.good_scores,
        photos=photos(),
        metrics=_report_metrics(name, overall, per_photo),
        footer=footer(loaded, device),
        map_range=map_range(loaded),
    )
    with terminal.bar("writing the report", len(kept)) as bar:
        write_report(report, out / "report.html", on_photo=lambda _: bar.advance())
    terminal.say(f"written to {out}: report.html, metrics.json, metrics.csv, photos.csv")
    return 0


def _shown_again(inspector, query, inspection, values):
    import dataclasses

    import torch

    from detect.anomaly_map import AnomalyMap
    from recon.rasterize import rasterize
    from splatad.inspector import over_background

    reference = inspector.loaded.reference
    image = inspector.read(query.image_path)
    photo = over_background(image, reference.background)
    render = None
    if inspection.located is not None:
        camera = inspection.located.camera
        camera = camera.moved(camera.world_to_cam.to(reference.gaussians.device))
        background = reference.background.to(reference.gaussians.device)
        with torch.no_grad():
            render = rasterize(reference.gaussians, camera, background, options=reference.options)
    anomaly = None
    if inspection.located is not None:
        anomaly = AnomalyMap(values, torch.ones_like(values, dtype=torch.bool), _score_of(values))
    return dataclasses.replace(inspection, photo=photo, render=render, anomaly=anomaly)


def _score_of(values) -> float:
    from detect.anomaly_map import image_score

    return image_score(values)


COLUMNS = (
    ("I-AUROC", "image_auroc"),
    ("P-AUROC", "pixel_auroc"),
    ("AUPRO.3", "aupro_30"),
    ("AUPRO.05", "aupro_05"),
    ("I-AP", "image_ap"),
    ("I-F1", "image_f1"),
    ("P-AP", "pixel_ap"),
    ("P-F1", "pixel_f1"),
)


def _print_tables(
    terminal, name: str, overall: Metrics, by_type: dict[str, Metrics], per_photo: float
) -> None:
    from rich.table import Table

    from detect.published import published_for

    columns = COLUMNS if terminal.width >= 120 else COLUMNS[:4]  # the others are in metrics.csv
    table = Table(title=f"{name}: {overall.photos} test photos, rates in percent")
    table.add_column("", no_wrap=True)
    for title, _ in columns:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("s/photo", justify="right", no_wrap=True)

    def cells(metrics: Metrics) -> list[str]:
        return [_rate(getattr(metrics, field)) for _, field in columns]

    table.add_row("splatad", *cells(overall), f"{per_photo:.2f}", style="bold")
    for label, metrics in by_type.items():
        table.add_row(f"  {label}", *cells(metrics), "")
    table.add_section()
    for row in published_for(name):
        known = {"I-AUROC": row.image_auroc, "P-AUROC": row.pixel_auroc, "AUPRO.3": row.aupro}
        values = [_rate(known.get(title)) for title, _ in columns]
        time = "" if row.seconds_per_photo is None else f"{row.seconds_per_photo:.1f}"
        table.add_row(f"{row.method} ({row.scope})", *values, time)
    terminal.print(table)
    terminal.say(
        "I: photos, P: pixels; F1 at its best threshold; AUPRO to false-positive rates of 0.3 and 0.05. Published rows are "
        "quoted: other data, hardware and protocol than ours unless the class is the same."
    )


def _report_metrics(name: str, overall: Metrics, per_photo: float) -> dict[str, dict[str, float | str]]:
    from detect.published import published_for

    shown = COLUMNS[:6]
    ours: dict[str, float | str] = {title: _rate(getattr(overall, field)) for title, field in shown}
    rows = {"splatad (this run)": ours | {"seconds per photo": f"{per_photo:.2f}"}}
    for row in published_for(name):
        known = {"I-AUROC": row.image_auroc, "P-AUROC": row.pixel_auroc, "AUPRO.3": row.aupro}
        time = "" if row.seconds_per_photo is None else f"{row.seconds_per_photo:.1f}"
        key = f"{row.method} ({row.scope})"
        if key in rows:
            key += f", {row.source}"
        cells: dict[str, float | str] = {title: _rate(known.get(title)) for title, _ in shown}
        rows[key] = cells | {"seconds per photo": time}
    return rows


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _pose_summary(errors: Sequence[tuple[float, float]]) -> dict[str, float | str]:
    if not errors:
        return {}
    import numpy as np

    turn, shift = np.array([e[0] for e in errors]), np.array([e[1] for e in errors])
    return {
        "rotation_deg_median": float(np.median(turn)),
        "rotation_deg_p95": float(np.quantile(turn, 0.95)),
        "rotation_deg_max": float(turn.max()),
        "within_half_degree": f"{int((turn < 0.5).sum())} of {len(turn)}",
        "shift_percent_median": float(np.median(shift)),
        "shift_percent_p95": float(np.quantile(shift, 0.95)),
    }


def _outcome(verdicts: Sequence[tuple[str, str]]) -> dict[str, str]:
    good = [verdict for label, verdict in verdicts if label == "good"]
    bad = [verdict for label, verdict in verdicts if label not in ("good", "")]
    unsure = sum(verdict == "CANNOT TELL" for _, verdict in verdicts)
    false_alarms = f"{good.count('NG')} of {len(good)}"
    found = f"{bad.count('NG')} of {len(bad)}"
    return {
        "false_alarms": false_alarms,
        "found": found,
        "cannot_tell": f"{unsure} of {len(verdicts)}",
        "text": f"verdicts: {found} defective photos NG, {false_alarms} good photos NG, {unsure} of {len(verdicts)} CANNOT TELL",
    }
