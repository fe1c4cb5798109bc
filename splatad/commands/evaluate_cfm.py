"""`splatad evaluate cfm`: the papers' metrics and the absolute scale's on a class's test photos, beside what was published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    import torch

    from detect.cfm.absolute import Absolute
    from detect.cfm.checkpoint import Checkpoint
    from detect.cfm.evaluate import Evaluation, Looked, Speed
    from detect.cfm.stored import FeatureConfig
    from prepare.registered import Registered, RegisteredClass, Sample
    from splatad.terminal import Terminal

# Nothing here imports torch when read: the command line reads this class to print its help.


@dataclass(frozen=True)
class EvaluateCfm:
    """Measure a network of `splatad train cfm`: I-AUROC, P-AUROC, AUPRO; by type of defect; speed and memory.

    Two kinds of scores are measured. The published ones are divided by each photo's own level: good for ranking, of no use as
    a limit. The absolute one is in standard deviations of good photos and has a limit: what a verdict is made of.
    AUPRO is given exactly and in the papers' form, which looks at 99 thresholds.
    """

    class_: Annotated[str, tyro.conf.arg(name="class")]
    """Name of a class in the workspace, from `splatad prepare mvtec-3d` or `eyecandies`, or its folder (with class.json)."""
    network: Path | None = None
    """The .safetensors file of `splatad train cfm`, or its folder; the class's in the workspace if not given."""
    fusion: tuple[Literal["product", "sum", "max", "zmean", "photo", "shape"], ...] = ("product",)
    """How the two directions' distances become one map: product (published), sum, max, zmean (the mean in their own standard
    deviations), photo or shape (one direction alone). Several may be named."""
    ablations: bool = False
    """All fusions."""
    smooth: bool = True
    """Smooth maps as published; off: to see what it is worth."""
    false_alarm_rate: float | None = None
    """Share of good photos that may be called NG; the network's own if not given."""
    split: Literal["test", "validation"] = "test"
    """Photos of this split."""
    speed_photos: int = 5
    """Photos whose inference is timed, features included and excluded; 0: none."""
    pictures: int = 4
    """Photos of each kind in the picture of the best and the worst; 0: none."""
    out: Path | None = None
    """Folder for the results; WORKSPACE/runs/evaluate-cfm-CLASS if not given."""
    features: Path | None = None
    """Folder in which features are kept, computed once; WORKSPACE/features if not given."""
    workspace: Path | None = None
    """Where classes, networks and runs lie; else $SPLATAD_WORKSPACE, else ./splatad-work."""
    device: str = "auto"
    """auto, cpu or cuda."""


Command = EvaluateCfm

COLUMNS = {
    "image_auroc": "I-AUROC",
    "pixel_auroc": "P-AUROC",
    "aupro99_30": "AUPRO@30",
    "aupro99_10": "@10",
    "aupro99_5": "@5",
    "aupro99_1": "@1",
    "aupro_30": "exact @30",
    "aupro_1": "@1",
}
ABSOLUTE_COLUMNS = {
    "z_image_auroc": "I-AUROC",
    "z_pixel_auroc": "P-AUROC",
    "z_aupro_30": "AUPRO@30",
    "z_aupro_10": "@10",
    "z_aupro_5": "@5",
    "z_aupro_1": "@1",
    "found": "found",
    "false_alarms": "false alarms",
    "cannot_tell": "cannot tell",
}
PUBLISHED_AS = {
    "aupro99_30": "aupro_30",
    "aupro99_1": "aupro_1",
    "image_auroc": "image_auroc",
    "pixel_auroc": "pixel_auroc",
}
SPEED_NOTE = "from tensors in memory to the smoothed map, after warming up; no reading, no preprocessing"


def run(config: EvaluateCfm) -> int:
    """0 once the tables are printed and written; 3 where some photos could not be read, which are named.

    Raises: UsageError for flags that make no sense; InputError for a class or a network that cannot serve; MissingPartError
    for weights that are not there.
    """
    import dataclasses
    import sys

    from detect.cfm.evaluate import as_plain, evaluate, look, without_truth
    from detect.cfm.published import FEW_SHOT, ROWS, SPEED
    from detect.cfm.score import FUSIONS, ScoreConfig
    from detect.cfm.stored import FeatureStore
    from prepare.atomic_write import write_json
    from prepare.errors import InputError, UsageError
    from splatad.cfm_inputs import find_class, find_network, open_checkpoint, trained_class
    from splatad.cmt_inputs import network_device
    from splatad.commands.train_cfm import computed
    from splatad.run_output import write_table
    from splatad.run_record import machine, versions
    from splatad.terminal import Terminal
    from splatad.workspace import open_workspace

    for flag, value in (("--speed-photos", config.speed_photos), ("--pictures", config.pictures)):
        if value < 0:
            raise UsageError(f"{flag} {value}: must be 0 (none) or more")
    workspace = open_workspace(config.workspace)
    registered = find_class(workspace, config.class_)
    file = find_network(workspace, config.network, registered.name)
    checkpoint, features = open_checkpoint(file)
    device = network_device(config.device)
    pair = checkpoint.pair.to(device)
    samples = registered.samples(config.split)
    if not samples:
        raise InputError(
            f"{registered.folder}: no photos of split {config.split}; choose another with --split"
        )
    terminal = Terminal()
    theirs = trained_class(checkpoint).get("name")
    if theirs and theirs != registered.name:
        terminal.say(f"note: a network trained on {theirs}, measured on {registered.name}")
    store = FeatureStore(config.features or workspace.root / "features", features, registered, device)
    computed(terminal, store, list(samples))
    masked = bool(checkpoint.about.get("train", {}).get("masked", True))
    with terminal.bar("comparing", len(samples)) as bar:
        looked, refused = look(
            pair, samples, store, registered, masked, lambda done, total: bar.to(done, total=total)
        )
    score = ScoreConfig(masked=masked, smooth=config.smooth)
    scales = _scales(config, checkpoint, registered, store, score)
    fusions = FUSIONS if config.ablations else tuple(dict.fromkeys(config.fusion))
    found: dict[str, Evaluation] = {}
    for fusion in fusions:
        if fusion == "zmean" and fusion not in scales:
            terminal.say("zmean: needs good photos kept from the training; left out")
            continue
        found[fusion] = evaluate(looked, fusion, scales.get(fusion), score)
    if not found:
        raise InputError(f"{file}: no limit, and zmean needs one; choose another --fusion")
    measured = (
        _speed(config, pair, features, registered, samples, score, device) if config.speed_photos else None
    )

    out = config.out or workspace.runs / f"evaluate-cfm-{registered.name}"
    lacking = without_truth(looked)
    document = {
        "format": "splatad-cfm-evaluation",
        "version": 1,
        "data": {
            "name": registered.name, "folder": str(registered.folder.resolve()), "source": registered.source,
            "variant": registered.variant, "split": config.split, "settings": dict(registered.settings),
        },
        "network": {
            "file": str(file.resolve()), "sha256": _digest(file), "mapping": dataclasses.asdict(pair.config),
            "features": dataclasses.asdict(features), "about": dict(checkpoint.about),
        },
        "units": "rates and areas in [0, 1]; scores in standard deviations of good photos; aupro exact, aupro99 as the papers",
        "results": {fusion: as_plain(one) for fusion, one in found.items()},
        "limits": {
            fusion: {"limit": scale.limit, "false_alarm_rate": scale.false_alarm_rate, "note": scale.note}
            for fusion, scale in scales.items() if fusion in found
        },
        "speed": _speed_document(measured),
        "refused": [{"name": name, "why": why} for name, why in (*registered.refused, *refused)],
        "without_truth": lacking,
        "published": [dataclasses.asdict(row) for row in ROWS],
        "published_speed": [dataclasses.asdict(row) for row in SPEED],
        "published_few_shot": [dataclasses.asdict(row) for row in FEW_SHOT],
        "config": {key: str(v) if isinstance(v, Path) else v for key, v in dataclasses.asdict(config).items()},
        "machine": machine(device),
        "versions": versions(),
    }  # fmt: skip
    _print_tables(terminal, config, registered, checkpoint, found, scales, measured)
    write_table(out / "metrics.csv", metric_rows(found))
    write_table(out / "photos.csv", photo_rows(found))
    if config.pictures:
        main = next(iter(found.values()))
        _write_pictures(
            out, config.pictures, main, scales.get(main.config.fusion), looked, registered, samples
        )
    write_json(out / "results.json", document)
    terminal.say(
        f"written to {out}: results.json, metrics.csv, photos.csv"
        + (", pictures.png" if config.pictures else "")
    )
    if lacking:
        terminal.say(f"without ground truth, so of the images' figures alone: {', '.join(lacking)}")
    for name, why in refused:
        print(f"splatad: left out: {name}: {why}", file=sys.stderr)
    return InputError.exit_status if refused else 0


def _scales(
    config: EvaluateCfm, checkpoint: Checkpoint, registered: RegisteredClass, store: Any, score: Any
) -> dict[str, Absolute]:
    """The network's scales, at another rate where one is asked for; without smoothing made anew of the validation photos."""
    from detect.cfm.absolute import at_rate
    from detect.cfm.score import distances
    from detect.cfm.train import scales_of
    from prepare.errors import InputError

    if score.smooth:
        if config.false_alarm_rate is None:
            return dict(checkpoint.scales)
        return {
            fusion: at_rate(scale, config.false_alarm_rate) for fusion, scale in checkpoint.scales.items()
        }
    found = []
    for sample in registered.samples("validation"):
        try:
            if not sample.label:
                found.append((sample.name, distances(checkpoint.pair, store.get(sample), score.masked)))
        except InputError:
            continue  # named by the training
    return scales_of(found, score, config.false_alarm_rate, "validation") if found else {}


def _speed(
    config: EvaluateCfm,
    pair: Any,
    features: FeatureConfig,
    registered: RegisteredClass,
    samples: Sequence[Sample],
    score: Any,
    device: torch.device,
) -> Speed | None:
    from detect.cfm.evaluate import speed
    from detect.cfm.stored import extract
    from prepare.errors import InputError

    photos: list[Registered] = []
    for sample in samples:
        if len(photos) == config.speed_photos:
            break
        try:
            photos.append(registered.load(sample, features.px))
        except InputError:
            continue  # named already
    if not photos:
        return None
    return speed(
        pair, photos, lambda photo: extract(features, photo, device), score, _networks(features, device)
    )


def _networks(features: FeatureConfig, device: torch.device) -> list[object]:
    """What holds the weights of the features' networks."""
    from detect.cfm.features2d import load_photo_extractor, prunable
    from detect.cfm.features3d import POINT_MAE, load_point_mae

    of_photo = prunable(features.photo)
    held: list[object] = [
        load_photo_extractor(
            features.photo,
            features.blocks if of_photo else 0,
            features.random_seed if of_photo else None,
            device,
        )
    ]
    if features.shape == POINT_MAE:
        held.append(load_point_mae(features.blocks, features.batch_statistics, features.random_seed, device))
    return held


def _speed_document(measured: Speed | None) -> dict[str, Any] | None:
    import resource

    if measured is None:
        return None
    return {
        "how": SPEED_NOTE,
        "photos": measured.photos,
        "seconds_with_features": measured.with_features,
        "seconds_without_features": measured.without_features,
        "frames_per_second_with_features": 1 / measured.with_features,
        "frames_per_second_without_features": 1 / measured.without_features,
        "parameter_megabytes": measured.parameter_bytes / 1e6,
        "gpu_peak_megabytes": None if measured.peak_bytes is None else measured.peak_bytes / 1e6,
        "process_peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6,
    }


def metric_rows(found: Mapping[str, Evaluation]) -> list[dict[str, object]]:
    """Lines of metrics.csv: of all photos and of each type of defect against the good ones, for each fusion."""
    rows: list[dict[str, object]] = []
    for fusion, one in found.items():
        for defect, figures in (("all", one.figures), *one.by_defect.items()):
            for metric, value in figures.items():
                rows.append({"fusion": fusion, "defect": defect, "metric": metric, "value": f"{value:.6g}"})
    return rows


def photo_rows(found: Mapping[str, Evaluation]) -> list[dict[str, object]]:
    """Lines of photos.csv: the truth of each photo, and its scores and verdict by each fusion."""
    rows = []
    for place, photo in enumerate(next(iter(found.values())).photos):
        row: dict[str, object] = {"photo": photo.name, "defect": photo.defect, "defective": photo.label}
        for fusion, one in found.items():
            own = one.photos[place]
            row[f"{fusion}_published"] = "" if own.published is None else f"{own.published:.6g}"
            row[f"{fusion}_score"] = "" if own.score is None else f"{own.score:.6g}"
            row[f"{fusion}_verdict"] = own.verdict.name
        rows.append(row)
    return rows


def _print_tables(
    terminal: Terminal,
    config: EvaluateCfm,
    registered: RegisteredClass,
    checkpoint: Checkpoint,
    found: Mapping[str, Evaluation],
    scales: Mapping[str, Absolute],
    measured: Speed | None,
) -> None:
    from detect.cfm.published import FEW_SHOT, MARKS, SPEED, TRUST_NOTE, published_for

    first = next(iter(found.values()))
    bad = sum(photo.label for photo in first.photos)
    shots = int(checkpoint.about.get("train", {}).get("shots", 0))
    trained = f"{shots} shots" if shots else f"{len(checkpoint.about.get('photos', []))} training photos"
    terminal.say(
        f"{registered.name}, {config.split}: {len(first.photos)} photos ({bad} defective); {trained}; percent"
    )
    terminal.say(
        "scores relative to each photo's own level, as published; AUPRO over 99 thresholds, and exactly"
    )
    table = _table("", COLUMNS)
    for fusion, one in found.items():
        if fusion != "zmean":
            table.add_row(
                f"splatad, {fusion}", *(_percent(one.figures.get(key)) for key in COLUMNS), style="bold"
            )
    table.add_section()
    scope, methods = published_for(registered.source, registered.name)
    for method, values in methods:
        table.add_row(method, *(values.get(PUBLISHED_AS.get(key, ""), "") for key in COLUMNS))
    terminal.print(table)
    if methods:
        terminal.say(
            f"Published rows, {scope}: of other photos than these unless this class is the dataset's own. {TRUST_NOTE}."
        )
    if scales:
        terminal.say("absolute scores, in standard deviations of good photos; AUPRO exact")
        table = _table("", ABSOLUTE_COLUMNS)
        for fusion, one in found.items():
            table.add_row(f"splatad, {fusion}", *(_percent(one.figures.get(key)) for key in ABSOLUTE_COLUMNS))
        terminal.print(table)
        main = scales.get(first.config.fusion)
        if main is not None:
            terminal.say(f"Limit of {first.config.fusion}, {main.limit:.2f}: {main.note}.")
    columns = {
        "image_auroc": "I-AUROC", "z_image_auroc": "absolute", "pixel_auroc": "P-AUROC", "aupro99_30": "AUPRO@30",
        "aupro_30": "exact", "aupro_1": "exact @1", "found": "found",
    }  # fmt: skip
    table = _table("type of defect", {"photos": "photos"} | columns)
    for defect, figures in first.by_defect.items():
        table.add_row(defect, f"{figures['photos']:.0f}", *(_percent(figures.get(key)) for key in columns))
    if first.by_defect:
        terminal.print(table)
        terminal.say(f"Each against all good photos, {first.config.fusion}; found: share called NG.")
    if shots:
        table = _table(
            "few-shot, published",
            {"shots": "shots", "i": "I-AUROC", "p": "P-AUROC", "a": "AUPRO@30", "b": "@1"},
        )
        for row in FEW_SHOT:
            mark = MARKS[row.trust]
            rates = (row.image_auroc, row.pixel_auroc, row.aupro_30, row.aupro_1)
            table.add_row(
                row.method, str(row.shots), *(_percent(v) + (mark if v is not None else "") for v in rates)
            )
        terminal.print(table)
    if measured is not None:
        terminal.say(
            f"speed: {1 / measured.with_features:.2f} photos a second with features, {1 / measured.without_features:.2f} without "
            f"({SPEED_NOTE}); parameters {measured.parameter_bytes / 1e6:.1f} MB"
        )
        rows = [
            f"{row.method} {row.frames_per_second:g}{MARKS[row.trust]}/s"
            + ("" if row.megabytes is None else f" {row.megabytes:g}{MARKS[row.trust]} MB")
            for row in SPEED
        ]
        terminal.say(f"published, on GPUs: {'; '.join(rows)}")


def _table(first: str, columns: Mapping[str, str]) -> Any:
    from rich.table import Table

    table = Table()
    table.add_column(first, no_wrap=True)
    for column in columns.values():
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _write_pictures(
    out: Path,
    count: int,
    evaluation: Evaluation,
    scale: Absolute | None,
    looked: Sequence[Looked],
    registered: RegisteredClass,
    samples: Sequence[Sample],
) -> None:
    """pictures.png: photo with the truth's outline and heat map, of the good photos that score most and of the defective ones
    that score least and most."""
    import torch

    from detect.cfm.evaluate import extremes
    from detect.cfm.score import anomaly_map
    from prepare.atomic_write import write_bytes
    from splatad.pictures import CIRCLE_COLOUR, draw_contour, overlay_map, side_by_side, to_bytes

    by_name = {sample.name: sample for sample in samples}
    strips = []
    for group, places in extremes(evaluation, count).items():
        panels, captions = [], []
        for place in places:
            one, photo = looked[place], evaluation.photos[place]
            anomaly = anomaly_map(one.found, evaluation.config)
            low, high = 0.0, max(1e-9, float(anomaly.max()))
            if scale is not None:
                anomaly, low, high = scale.z_map(anomaly), scale.limit / 3, 2 * scale.limit
            rgb = registered.load(by_name[one.name], one.found.photo.shape[0]).rgb
            shown = (
                rgb
                if one.mask is None or not bool(one.mask.any())
                else draw_contour(rgb, one.mask, CIRCLE_COLOUR)
            )
            panels += [shown, overlay_map(rgb, anomaly, low, high)]
            value = photo.published if photo.score is None else photo.score
            captions += [one.name, f"{group}: {value or 0:.2f}"]
        if panels:
            strips.append(side_by_side(panels, captions))
    if not strips:
        return
    width = max(int(strip.shape[1]) for strip in strips)
    padded = [
        torch.nn.functional.pad(strip, (0, 0, 0, width - int(strip.shape[1])), value=1.0) for strip in strips
    ]
    write_bytes(out / "pictures.png", to_bytes(torch.cat(padded, dim=0), "PNG"))


def _percent(value: float | None) -> str:
    return "" if value is None or value != value else f"{100 * value:.1f}"


def _digest(file: Path) -> str:
    import hashlib

    return hashlib.sha256(file.read_bytes()).hexdigest()
