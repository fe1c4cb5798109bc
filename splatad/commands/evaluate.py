"""`splatad evaluate`: metrics over the test photos of a class, beside a recipe's and the published figures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch
    from rich.table import Table

    from detect.backbones import Backbone
    from detect.evaluate import Metrics, Scored, Share, SizeMetrics, SmallMetrics, VerdictMetrics
    from detect.pose_metrics import PoseResult, PoseSummary
    from prepare.scene import Query
    from recon.reference import Reference
    from splatad.cfm_splats import DetectorName
    from splatad.inspector import Inspection, Inspector
    from splatad.report import ReportPhoto

# Nothing here imports torch when read: the command line reads this class to print its help.


@dataclass(frozen=True)
class Evaluate:
    """Inspect every test photo of a class and measure: detection, localisation, verdicts, pose, time."""

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
    detector: tuple[Literal["difference", "cfm", "difference+cfm"], ...] = ("difference",)
    """What judges, as `detect --detector`; of several each has its lines in the tables, at the same cameras, and the report,
    photos.csv and the line "splatad" are the first's."""
    refine: Literal["levenberg", "adam", "splatpose"] = "levenberg"
    """How cameras are refined: ours, or for comparison Adam through the rasteriser or SplatPose's recipe of it."""
    recipe: Literal["ours", "splatpose"] = "ours"
    """Which maps are measured: ours alone, or also SplatPose's map and scoring on the same photos, cameras and renders."""
    backbone: str = "auto"
    """Network of --recipe splatpose: efficientnet_b4 (the paper's), mobilenet_v2, wide_resnet50, dinov2 or any of timm's;
    auto: the first of the first two whose weights are on this machine."""
    device: str = "auto"
    """auto, cpu or cuda."""


Command = Evaluate
OURS, RECIPE = "splatad", "recipe splatpose"


@dataclass(frozen=True)
class Tested:
    """One test photo as it is kept until the report is written."""

    query: Query
    inspection: Inspection  # without photo and render, which are made anew from file and camera
    scored: dict[str, Scored]  # by method
    seconds: dict[str, float]  # by method, for the whole photo
    verdicts: dict[str, str]  # by detector, of those beside the first


@dataclass(frozen=True)
class Figures:
    """All that is measured of one method; each by "all" and by the types of defects."""

    metrics: dict[str, Metrics]
    small: dict[str, SmallMetrics]
    sizes: dict[str, list[SizeMetrics]]
    seconds_per_photo: float  # median


def run(config: Evaluate) -> int:
    """0 once the tables are printed and written.

    Raises: InputError where there are no test photos; UsageError for names that do not exist; MissingPartError where
    the recipe's backbone lacks its weights.
    """
    import dataclasses
    import math
    import statistics
    from dataclasses import replace

    from detect.backbones import choose_backbone, load_backbone
    from detect.evaluate import GOOD, evaluate_verdicts
    from prepare.atomic_write import write_json
    from prepare.errors import InputError, UsageError
    from prepare.scene import load_scene
    from splatad.commands.evaluate_pose import plain
    from splatad.part_picture import PartPictures
    from splatad.reference_dir import choose_device, find_reference
    from splatad.report import ReportRun, write_report
    from splatad.run_output import footer, map_range, verdict_row, write_table
    from splatad.run_record import machine, versions
    from splatad.terminal import Terminal
    from splatad.threads import leave_cores_to_the_kernel
    from splatad.workspace import open_workspace

    if config.recipe == "ours" and config.backbone != "auto":
        raise UsageError(f"--backbone {config.backbone}: is of --recipe splatpose, which was not asked for")
    workspace = open_workspace(config.workspace)
    device = choose_device(config.device)
    leave_cores_to_the_kernel(device)
    folder = find_reference(workspace, config.class_, config.reference)
    inspector, *others = _inspectors(folder, device, config.detector)
    finder = inspector.finder
    inspector.finder = replace(finder, config=replace(finder.config, refine=config.refine))
    besides = dict(zip(config.detector[1:], others, strict=True))
    loaded = inspector.loaded
    name = loaded.reference.name
    scene = load_scene(config.scene or Path(loaded.reference.scene))
    if not scene.queries:
        raise InputError(
            f"{scene.folder}: no test photos (queries.json); prepare the scene from a dataset that has them"
        )
    backbone = load_backbone(choose_backbone(config.backbone)) if config.recipe == "splatpose" else None
    suffix = "" if config.detector == ("difference",) else "-" + "-".join(config.detector)
    suffix += "" if config.refine == "levenberg" else f"-{config.refine}"
    suffix += "" if backbone is None else f"-recipe-{config.recipe}"
    out = config.out or workspace.runs / f"evaluate-{name}{suffix}"
    terminal = Terminal()

    tested: list[Tested] = []
    rows: list[dict[str, object]] = []
    poses: list[PoseResult] = []
    with terminal.bar("inspecting test photos", len(scene.queries)) as bar:
        for query in scene.queries:
            one = _test(inspector, query, backbone, besides)
            tested.append(one)
            row = {"label": query.label} | verdict_row(one.inspection)
            if backbone is not None:
                row["recipe_score"] = f"{one.scored[RECIPE].score:.6g}"
            for other in besides:
                row[f"{other}_score"] = f"{one.scored[other].score:.6g}"
                row[f"{other}_verdict"] = one.verdicts[other]
            pose = _pose_result(query, one.inspection, loaded.reference)
            found = pose is not None and one.inspection.located is not None
            row["rotation_error_deg"] = f"{pose.error.rotation_deg:.5f}" if pose and found else ""
            row["shift_percent"] = f"{pose.error.shift_percent:.5f}" if pose and found else ""
            poses += [] if pose is None else [pose]
            rows.append(row)
            bar.advance()

    labelled = [one for one in tested if one.query.label]
    labels = list(dict.fromkeys(one.query.label for one in labelled if one.query.label != GOOD))
    methods = list(tested[0].scored)
    # Of some hundred photos, millions of pixels are sorted for each line of the table: minutes.
    with terminal.bar("measuring", len(methods) * (1 + len(labels))) as bar:
        figures = {method: _figures(labelled, labels, method, bar.advance) for method in methods}
    pairs = [(one.query.label, one.inspection.verdict.name) for one in labelled]
    rate = loaded.calibration.false_alarm_rate
    verdicts = {label or "all": evaluate_verdicts(pairs, rate, label) for label in (None, *labels)}
    told_besides: dict[str, dict[str, VerdictMetrics]] = {
        other: {
            label or "all": evaluate_verdicts(
                [(one.query.label, one.verdicts[other]) for one in labelled],
                judge.loaded.calibration.false_alarm_rate,
                label,
            )
            for label in (None, *labels)
        }
        for other, judge in besides.items()
    }
    pose_summary = _summary(poses)
    stages = list(dict.fromkeys(stage for one in tested for stage in one.inspection.seconds))
    stage_medians = {
        stage: statistics.median(one.inspection.seconds.get(stage, 0.0) for one in tested) for stage in stages
    }

    recipe_backbone = None if backbone is None else backbone.name
    table = main_table(name, figures, recipe_backbone, terminal.width)
    terminal.print(table)
    for line in _captions(recipe_backbone, figures, [str(column.header) for column in table.columns]):
        terminal.say(line)
    if len(labelled) < len(tested):
        terminal.say(f"{len(tested) - len(labelled)} photos without a label are left out of these figures")
    nowhere = sum(one.inspection.located is None for one in labelled)
    if nowhere:
        terminal.say(
            f"{nowhere} photos show no part: they have an empty map and score right at the threshold"
            + ("; the recipe compares them with the bare background" if backbone is not None else "")
        )
    if figures[OURS].sizes["all"]:
        terminal.print(size_table(figures))
        good = sum(one.query.label == GOOD for one in labelled)
        terminal.say(
            f"At 5 % false alarms {math.floor(0.05 * good + 1e-9)} of the {good} good photos may be marked. A photo is found "
            "if its score is above what all other good photos reach, a defect if its map, inside it or 2 px beside, is "
            "above what all other good photos reach anywhere."
        )
    if config.detector != ("difference",):
        terminal.say(f"splatad: --detector {config.detector[0]}, limit {loaded.calibration.threshold:.3g}")
    for line in _verdict_lines(verdicts["all"]):
        terminal.say(line)
    for other, judge in besides.items():
        terminal.say(f"{other}: limit {judge.loaded.calibration.threshold:.3g}")
        for line in _verdict_lines(told_besides[other]["all"]):
            terminal.say(f"{other}: {line}")
    kinds = _kinds(labelled)
    for label, counts in kinds.items():
        guesses = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        terminal.say(f"kind guessed of what was found on {label}: {guesses}")
    if pose_summary is not None:
        terminal.say(_pose_line(pose_summary))
    terminal.say(
        "seconds a photo, median: "
        + ", ".join(f"{stage} {value:.2f}" for stage, value in stage_medians.items())
    )

    document: dict[str, Any] = {
        "format": "splatad-evaluation",
        "version": 2,
        "reference": name,
        "refine": config.refine,
        "detector": loaded.calibration.detector,
        **_document(figures[OURS]),
        "recipe": None
        if backbone is None
        else {"name": config.recipe, "backbone": backbone.name, **_document(figures[RECIPE])},
        "verdicts": _verdict_document(verdicts),
        "besides": {
            other: _document(figures[other])
            | {
                "verdicts": _verdict_document(told_besides[other]),
                "threshold": judge.loaded.calibration.threshold,
            }
            for other, judge in besides.items()
        },
        "kinds": kinds,
        "pose": None if pose_summary is None else plain(dataclasses.asdict(pose_summary)),
        "seconds": stage_medians,
        "threshold": loaded.calibration.threshold,
        "false_alarm_rate": rate,
        "machine": machine(device),
        "versions": versions(),
        "fit": dict(loaded.reference.settings),
    }
    write_table(out / "photos.csv", rows)
    write_table(out / "metrics.csv", metric_rows(figures, {OURS: verdicts, **told_besides}))
    write_table(out / "sizes.csv", size_rows(figures))
    write_json(out / "metrics.json", document)

    calibration = loaded.calibration
    report = ReportRun(
        title=f"Evaluation on {len(tested)} test photos",
        reference=name,
        threshold=calibration.threshold,
        false_alarm_rate=calibration.false_alarm_rate,
        threshold_note=calibration.note,
        good_scores=calibration.good_scores,
        photos=_report_photos(inspector, tested),
        metrics=report_metrics(name, figures, recipe_backbone),
        footer=footer(loaded, device),
        map_range=map_range(loaded),
        part_views={name: PartPictures(loaded.reference).views},
        scale_to_mm=loaded.reference.scale_to_mm,
    )
    with terminal.bar("writing the report", len(tested)) as bar:
        write_report(report, out / "report.html", on_photo=lambda _: bar.advance())
    terminal.say(f"written to {out}: report.html, metrics.json, metrics.csv, sizes.csv, photos.csv")
    return 0


def _inspectors(folder: Path, device: torch.device, names: Sequence[DetectorName]) -> list[Inspector]:
    """One for each detector, of the same reference. Raises: UsageError for none or one named twice."""
    from prepare.errors import UsageError
    from splatad.cfm_splats import with_detector
    from splatad.inspector import Inspector
    from splatad.reference_dir import load_whole_reference

    if not names or len(set(names)) < len(names):
        raise UsageError(f"--detector {' '.join(names)}: name each once, and at least one")
    loaded = load_whole_reference(folder, device)
    return [Inspector(with_detector(loaded, folder, name)) for name in names]


def _test(
    inspector: Inspector,
    query: Query,
    backbone: Backbone | None,
    besides: Mapping[DetectorName, Inspector] | None = None,
) -> Tested:
    """The photo inspected and, with a backbone, measured by the recipe at the same camera and render; and by other detectors
    at that camera."""
    import dataclasses
    import time

    import torch

    from detect.evaluate import Scored, mask_at_map_size
    from detect.recipe_splatpose import splatpose_recipe
    from prepare.image import read_mask

    inspection = dataclasses.replace(inspector.inspect(query.image_path), name=query.name)
    height, width = inspection.photo.shape[:2]
    anomaly = inspection.anomaly
    values = torch.zeros(height, width) if anomaly is None else anomaly.values.cpu()
    mask = true_mask = torch.zeros(height, width, dtype=torch.bool)
    if query.mask_path is not None:
        true_mask = read_mask(query.mask_path)
        mask = mask_at_map_size(true_mask, height, width)
    # A photo without any part has no map: it counts as standing right at the threshold.
    score = inspector.loaded.calibration.threshold if inspection.score is None else inspection.score
    scored = {OURS: Scored(query.label, score, values, mask, true_mask)}
    seconds = {OURS: sum(inspection.seconds.values())}
    if backbone is not None:
        started = time.perf_counter()
        bare = inspector.loaded.reference.background.cpu().expand(height, width, 3)
        render = bare if inspection.render is None else inspection.render.rgb.cpu()
        recipe = splatpose_recipe(inspection.photo.cpu(), render, backbone)
        scored[RECIPE] = Scored(query.label, recipe.score, recipe.values, mask, true_mask, recipe.small)
        shared = seconds[OURS] - inspection.seconds.get("compare", 0.0)
        seconds[RECIPE] = shared + time.perf_counter() - started
    verdicts: dict[str, str] = {}
    image = inspector.read(query.image_path) if besides else None
    for name, judge in (besides or {}).items():
        assert image is not None
        other = judge.judge(query.name, image, inspection.located)
        nothing = other.anomaly is None or other.score is None
        scored[name] = Scored(
            query.label,
            judge.loaded.calibration.threshold if nothing else other.score,  # type: ignore[arg-type]
            torch.zeros(height, width) if other.anomaly is None else other.anomaly.values.cpu(),
            mask,
            true_mask,
        )
        shared = seconds[OURS] - inspection.seconds.get("compare", 0.0)
        seconds[name] = shared + other.seconds.get("compare", 0.0)
        verdicts[name] = other.verdict.name
    if anomaly is not None:
        anomaly = dataclasses.replace(anomaly, values=values, known=anomaly.known.cpu())
    # The report needs photo and render again: made anew then, so that memory stays bounded.
    unread = torch.zeros(()).expand(height, width, 3)  # of the photo's shape and one number large
    light = dataclasses.replace(inspection, photo=unread, render=None, anomaly=anomaly)
    return Tested(query, light, scored, seconds, verdicts)


def _kinds(tested: Sequence[Tested]) -> dict[str, dict[str, int]]:
    """By true type, how often each kind was guessed of the largest defect that meets the true mask of its photo."""
    counts: dict[str, dict[str, int]] = {}
    for one in tested:
        mask = one.scored[OURS].mask
        met = [d for d in one.inspection.defects if bool((d.mask.cpu() & mask).any())]
        if met:
            kind = max(met, key=lambda d: d.area_px).kind
            of_label = counts.setdefault(one.query.label, {})
            of_label[kind] = of_label.get(kind, 0) + 1
    return counts


def _pose_result(query: Query, inspection: Inspection, reference: Reference) -> PoseResult | None:
    """How far the found camera is from the true one; None where the truth is not known."""
    from detect.pose_metrics import NO_CAMERA, PoseResult, pose_error

    if query.world_to_cam is None:
        return None
    located = inspection.located
    if located is None:
        return PoseResult(NO_CAMERA, False, 0.0)
    error = NO_CAMERA
    found = located.camera.world_to_cam.cpu().double()
    if bool(found.isfinite().all()):  # Adam may run away
        centre = reference.volume.centre.double()
        error = pose_error(found, query.world_to_cam.double(), centre, reference.distance)
    return PoseResult(error, located.believed, sum(located.seconds.values()))


def _summary(poses: Sequence[PoseResult]) -> PoseSummary | None:
    from detect.pose_metrics import summarize

    return summarize(poses) if poses else None


def _figures(
    tested: Sequence[Tested], labels: Sequence[str], method: str, on_group: Callable[[], object]
) -> Figures:
    import statistics

    from detect.evaluate import evaluate, evaluate_at_224, evaluate_by_size

    scored = [one.scored[method] for one in tested]
    metrics, small, sizes = {}, {}, {}
    for label in (None, *labels):
        name = label or "all"
        metrics[name] = evaluate(scored, label)
        small[name] = evaluate_at_224(scored, label)
        sizes[name] = evaluate_by_size(scored, label)
        on_group()
    seconds = statistics.median(one.seconds[method] for one in tested) if tested else 0.0
    return Figures(metrics, small, sizes, seconds)


def _document(figures: Figures) -> dict[str, Any]:
    import dataclasses

    by_type = {label: dataclasses.asdict(one) for label, one in figures.metrics.items()}
    overall = by_type.pop("all")
    return {
        "overall": overall,
        "by_type": by_type,
        "at_224": {label: dataclasses.asdict(one) for label, one in figures.small.items()},
        "sizes": {
            label: [{"size": row.name} | dataclasses.asdict(row) for row in sizes]
            for label, sizes in figures.sizes.items()
        },
        "seconds_per_photo": figures.seconds_per_photo,
    }


def _verdict_document(verdicts: Mapping[str, VerdictMetrics]) -> dict[str, Any]:
    import dataclasses

    return {
        label: dataclasses.asdict(one) | {"false_alarms_as_set": one.false_alarms_as_set}
        for label, one in verdicts.items()
    }


def metric_rows(
    figures: Mapping[str, Figures], verdicts: Mapping[str, Mapping[str, VerdictMetrics]]
) -> list[dict[str, object]]:
    """Lines of metrics.csv: a method and "all" or a type of defect; `verdicts` of the methods that have some."""
    import dataclasses

    rows: list[dict[str, object]] = []
    for method, of_method in figures.items():
        for label, metrics in of_method.metrics.items():
            row: dict[str, object] = {"method": method, "defect": label} | dataclasses.asdict(metrics)
            small = dataclasses.asdict(of_method.small[label])
            row |= {f"{field}_at_224": value for field, value in small.items()}
            for field in ("cannot_tell", "accurate", "found", "false_alarms"):
                one: Share | None = getattr(verdicts[method][label], field) if method in verdicts else None
                row |= {
                    field: "" if one is None else one.count,
                    f"{field}_of": "" if one is None else one.of,
                    f"{field}_percent": "" if one is None else one.percent,
                    f"{field}_low": "" if one is None else one.low,
                    f"{field}_high": "" if one is None else one.high,
                }
            rows.append(row)
    return rows


def size_rows(figures: Mapping[str, Figures]) -> list[dict[str, object]]:
    """Lines of sizes.csv: a method, "all" or a type of defect, and a size, with exact 95 % intervals."""
    from detect.evaluate import share

    rows: list[dict[str, object]] = []
    for method, of_method in figures.items():
        for label, sizes in of_method.sizes.items():
            for size in sizes:
                photos, regions = (
                    share(size.photos_found, size.photos),
                    share(size.regions_found, size.regions),
                )
                row: dict[str, object] = {"method": method, "defect": label, "size": size.name}
                for what, one in (("photos", photos), ("regions", regions)):
                    row |= {
                        what: one.of,
                        f"{what}_found": one.count,
                        f"{what}_recall": one.percent,
                        f"{what}_recall_low": one.low,
                        f"{what}_recall_high": one.high,
                    }
                rows.append(row)
    return rows


# In the order of their weight: as many as fit are shown, all are in metrics.csv.
COLUMNS = (
    ("I-AUROC", "image_auroc"),
    ("P-AUROC", "pixel_auroc"),
    ("AUPRO.3", "aupro_30"),
    ("AUPRO.05", "aupro_05"),
    ("I-R@5", "recall_05"),
    ("AUPIMO", "aupimo"),
    ("AUPRO.01", "aupro_01"),
    ("I-R@1", "recall_01"),
    ("I-AP", "image_ap"),
    ("I-F1", "image_f1"),
    ("P-AP", "pixel_ap"),
    ("P-F1", "pixel_f1"),
)
MEANINGS = {
    "AUROC": "how surely a defective one scores above a good one",
    "AUPRO": "how much of each defect is marked, mean over marking up to a share of 0.3 (0.05, 0.01) of the good pixels",
    "AUPIMO": "how much of each defect is marked at 1 to 10 in 100,000 pixels of good photos",
    "R@": "share of the defective photos found when 5 % (1 %) of the good ones raise a false alarm",
    "AP": "mean precision over all recalls",
    "F1": "at its best threshold",
}
PUBLISHED = {"I-AUROC": "image_auroc", "P-AUROC": "pixel_auroc", "AUPRO.3": "aupro"}


def main_table(name: str, figures: Mapping[str, Figures], backbone: str | None, width: int) -> Table:
    """The figures that fit into `width` columns, 80 at least: each method whole and by defect, then published ones."""
    from rich import box
    from rich.table import Table

    from detect.published import published_for

    published = published_for(name)
    indented = [*(row.method for row in published), *figures[OURS].metrics]
    scopes = list(dict.fromkeys(f"published, {row.scope}" for row in published))
    named = max(*(len(one) + 2 for one in indented), *(len(one) for one in (*figures, *scopes)))
    shown, left = [], width - named - len("12.34") - 2
    for title, field in COLUMNS:
        left -= max(len(title), 6) + 2
        if left < 0:
            break
        shown.append((title, field))
    photos = figures[OURS].metrics["all"].photos
    title = f"{name}: {photos} test photos, rates in percent"
    if backbone is not None:
        title += f"\nrecipe splatpose with {backbone}"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("", no_wrap=True)
    for title, _ in shown:
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("s", justify="right", no_wrap=True)
    for method, of_method in figures.items():
        for label, metrics in of_method.metrics.items():
            whole = label == "all"
            table.add_row(
                method if whole else f"  {label}",
                *(_rate(getattr(metrics, field)) for _, field in shown),
                f"{of_method.seconds_per_photo:.2f}" if whole else "",
                style="bold" if whole else None,
            )
        table.add_section()
    for scope, row in zip((None, *(row.scope for row in published)), published, strict=False):
        if row.scope != scope:
            table.add_row(f"published, {row.scope}")
        values = [_rate(getattr(row, PUBLISHED[t])) if t in PUBLISHED else "" for t, _ in shown]
        time = "" if row.seconds_per_photo is None else f"{row.seconds_per_photo:.1f}"
        table.add_row(f"  {row.method}", *values, time)
    return table


def _captions(backbone: str | None, figures: Mapping[str, Figures], shown: Sequence[str]) -> list[str]:
    """What the columns `shown` mean, whose the rows are, and the figures that are not in the table."""
    told = [f"{key}: {text}" for key, text in MEANINGS.items() if any(key in title for title in shown)]
    left_out = "" if len(shown) > len(COLUMNS) else "; more columns in metrics.csv"
    lines = [
        f"I: whole photos, P: single pixels. {'. '.join(told)}. s: seconds a photo, median{left_out}.",
        "Published rows are quoted: other data, hardware and protocol than ours unless the class is the same.",
    ]
    if backbone is not None:
        lines.insert(
            1,
            f"recipe splatpose: SplatPose's map and score of the same photos, at the cameras and renders that splatad "
            f"found, with features of {backbone}"
            + ("" if backbone == "efficientnet_b4" else " (the paper's are efficientnet_b4's)")
            + "; its seconds are ours with its map instead of ours.",
        )
    for method, of_method in figures.items():
        if missing := of_method.metrics["all"].aupimo_missing:
            lines.append(f"{method}: no AUPIMO ({missing})")
        small = of_method.small["all"]
        lines.append(
            f"{method} by SplatPose's protocol, maps and masks at 224 px: I-AUROC {_or_none(small.image_auroc)}, "
            f"P-AUROC {_or_none(small.pixel_auroc)}, AUPRO.3 {_or_none(small.aupro_30)}"
        )
    small = figures[OURS].small["all"]
    lines.append(
        f"at 224 px {small.lost_defects} of {small.defects} defects vanish from the masks, and {small.lost_photos} "
        "photos lose all of theirs"
    )
    return lines


def size_table(figures: Mapping[str, Figures]) -> Table:
    """How many photos and defects of each size are found at 5 % false alarms."""
    from rich import box
    from rich.table import Table

    table = Table(
        title="found at 5 % false alarms, by area of the defect in px at 400 x 400",
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False,
    )  # fmt: skip
    table.add_column("", no_wrap=True)
    for method in figures:
        short = "recipe" if method == RECIPE else method
        between = " " if len(figures) <= 2 else "\n"
        table.add_column(f"{short}{between}photos", justify="right", no_wrap=True)
        table.add_column(f"{short}{between}defects", justify="right", no_wrap=True)
    for rows in zip(*(of_method.sizes["all"] for of_method in figures.values()), strict=True):
        cells = []
        for row in rows:
            cells += [f"{row.photos_found} of {row.photos}", f"{row.regions_found} of {row.regions}"]
        table.add_row(rows[0].name, *cells)
    return table


def _verdict_lines(verdicts: VerdictMetrics) -> list[str]:
    alarms, set_for = verdicts.false_alarms, f"the threshold was set for {verdicts.rate:.3g} %"
    judged = {None: "", True: ", which lies inside", False: ", which lies outside"}[
        verdicts.false_alarms_as_set
    ]
    return [
        f"verdicts: CANNOT TELL {_in_words(verdicts.cannot_tell)}; of the others right {_in_words(verdicts.accurate)}",
        f"defective photos NG: {_in_words(verdicts.found)}; good photos NG (false alarms): {_in_words(alarms)}; "
        f"{set_for}{judged}",
    ]


def _in_words(one: Share) -> str:
    if one.percent is None:
        return f"{one.count} of {one.of}"
    return f"{one.count} of {one.of} ({one.percent:.1f} %, 95 % interval {one.low:.1f} to {one.high:.1f})"


def _pose_line(pose: PoseSummary) -> str:
    turn, shift = pose.rotation_deg, pose.shift_percent
    return (
        f"pose, {pose.attempts} photos with truth, {pose.found} found: rotation median {turn['median']:.3f}, 95 % "
        f"{turn['p95']:.3f}, most {turn['max']:.3f} degrees; shift median {shift['median']:.3f} % of the distance; "
        f"believed and wrong: {pose.unflagged_errors}"
    )


def report_metrics(
    name: str, figures: Mapping[str, Figures], backbone: str | None
) -> dict[str, dict[str, float | str]]:
    """The main table for the report: row, column, value."""
    from detect.published import published_for

    shown = COLUMNS[:8]
    rows: dict[str, dict[str, float | str]] = {}
    for method, of_method in figures.items():
        key = f"{'splatad' if method == OURS else method} (this run)"
        if method == RECIPE:
            key = f"SplatPose's map with {backbone} (this run)"
        cells: dict[str, float | str] = {
            title: _rate(getattr(of_method.metrics["all"], field)) for title, field in shown
        }
        rows[key] = cells | {"seconds per photo": f"{of_method.seconds_per_photo:.2f}"}
    for row in published_for(name):
        time = "" if row.seconds_per_photo is None else f"{row.seconds_per_photo:.1f}"
        key = f"{row.method} ({row.scope})"
        if key in rows:
            key += f", {row.source}"
        quoted: dict[str, float | str] = {
            title: _rate(getattr(row, PUBLISHED[title])) if title in PUBLISHED else "" for title, _ in shown
        }
        rows[key] = quoted | {"seconds per photo": time}
    return rows


def _report_photos(inspector: Inspector, tested: Sequence[Tested]) -> Iterator[ReportPhoto]:
    """The photos for the report, each read and rendered anew."""
    import dataclasses

    import torch

    from recon.rasterize import rasterize
    from splatad.finder import over_background
    from splatad.run_output import report_photo

    reference = inspector.loaded.reference
    for one in tested:
        photo = over_background(inspector.read(one.query.image_path), reference.background)
        render = None
        if one.inspection.located is not None:
            camera = one.inspection.located.camera
            camera = camera.moved(camera.world_to_cam.to(reference.gaussians.device))
            background = reference.background.to(reference.gaussians.device)
            with torch.no_grad():
                render = rasterize(reference.gaussians, camera, background, options=reference.options)
        inspection = dataclasses.replace(one.inspection, photo=photo, render=render)
        yield report_photo(inspection, one.query.label or None)


def _rate(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _or_none(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
