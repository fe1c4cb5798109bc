"""`splatad evaluate cmt`: how well the network tells defective from good on shapes that it has not seen.

Nothing is drawn at random: the same network and photos give the same figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from detect.cmt.evaluate import Evaluation
    from prepare.shape_pairs import ShapePairs
    from splatad.terminal import Terminal

# Nothing here imports torch when read: the command line reads this class to print its help.


@dataclass(frozen=True)
class EvaluateCmt:
    """Measure a network of `splatad train cmt`: AUC, accuracy, boxes, viewpoints, patches; by type of defect and by part.

    The threshold is the one that goes with the network, chosen on held-out shapes. Networks that know the photo's pose are
    measured without it (plain) and with it (aided).
    """

    data: Path
    """Shapes with views and photos: a set of `generate chairs`, a packed folder, or a scene of `prepare broken-chairs`."""
    network: Path | None = None
    """The .safetensors file of a network, or the folder of its training; the one shipped with the package if not given."""
    split: Literal["train", "val", "test"] = "test"
    """Shapes of this split."""
    masks: Literal["given", "found"] = "given"
    """The part in the photos: the set's masks, or what each photo on white itself shows, shadows and all, as at inspection."""
    views: int = 0
    """Reference views of each shape, spread evenly; 0: all."""
    most: int = 0
    """Photos at most, spread evenly over the split, to try; 0: all."""
    out: Path | None = None
    """Folder for the results; WORKSPACE/runs/evaluate-cmt-SET if not given."""
    workspace: Path | None = None
    """Where scenes and runs lie; else $SPLATAD_WORKSPACE, else ./splatad-work."""
    device: str = "auto"
    """auto, cpu or cuda."""


Command = EvaluateCmt

COLUMNS = {
    "auc": "AUC",
    "accuracy": "acc 0.5",
    "accuracy_at_threshold": "acc at limit",
    "box_ap": "box AP",
    "iou_rate": "IoU > 0.5",
    "viewpoint_accuracy": "viewpoint",
    "patch_auroc": "patch AUROC",
}


def run(config: EvaluateCmt) -> int:
    """0 once the tables are printed and written.

    Raises: UsageError for flags that make no sense; InputError for data or a network that cannot serve;
    MissingPartError where no network is named and none is shipped.
    """
    import dataclasses

    from detect.cmt.evaluate import EvaluateConfig, evaluate, summary
    from detect.cmt.model import config_as_json
    from detect.cmt.published import PUBLISHED, VIEWPOINT_ACCURACY
    from prepare.atomic_write import write_json
    from prepare.errors import InputError, UsageError
    from splatad.cmt_inputs import find_pack, network_device, open_predictor
    from splatad.run_output import write_table
    from splatad.run_record import machine, versions
    from splatad.terminal import Terminal
    from splatad.workspace import open_workspace

    for flag, value in (("--views", config.views), ("--most", config.most)):
        if value < 0:
            raise UsageError(f"{flag} {value}: must be 0 (all) or more")
    workspace = open_workspace(config.workspace)
    name, pack = find_pack(workspace, config.data)
    device = network_device(config.device)
    file, predictor = open_predictor(config.network, device)
    network = predictor.network
    if network.config.px != pack.px:
        raise InputError(
            f"{file}: a network for pictures of {network.config.px} px, {pack.folder} has {pack.px}; "
            "give a set of its size"
        )
    out = config.out or workspace.runs / f"evaluate-cmt-{name}"
    terminal = Terminal()
    thresholds = dataclasses.asdict(predictor.thresholds)
    ways = ["plain", "aided"] if network.config.aided and pack.has_aided else ["plain"]
    found: dict[str, Evaluation] = {}
    photos = len(pack.queries_of(config.split))
    for way in ways:
        asked = EvaluateConfig(
            split=config.split,
            aided=way == "aided",
            found_masks=1.0 if config.masks == "found" else 0.0,
            views=config.views,
            most=config.most,
            threshold=thresholds[way],
        )
        with terminal.bar(f"comparing, {way}", min(photos, config.most or photos)) as bar:
            found[way] = evaluate(network, pack, asked, device, lambda done, total: bar.to(done, total=total))

    _print_tables(terminal, f"{name}, split {config.split}, masks {config.masks}", pack, found, thresholds)
    document = {
        "format": "splatad-cmt-evaluation",
        "version": 1,
        "data": {
            "name": name, "folder": str(pack.folder.resolve()), "split": config.split, "shapes": len(pack.splits[config.split]),
            "masks": config.masks, "views": min(config.views or pack.view_count, pack.view_count), "most": config.most,
            "source": {k: v for k, v in pack.source.items() if isinstance(v, str | int | float | bool)},
        },
        "network": {
            "file": str(file.resolve()), "sha256": _digest(file), "model": config_as_json(network.config),
            "thresholds": thresholds, "about": predictor.about,
        },
        "units": "rates and areas in [0, 1]; published ones in percent",
        "results": {way: _plain(summary(one)) for way, one in found.items()},
        "published": [dataclasses.asdict(row) for row in PUBLISHED],
        "published_viewpoint_accuracy": VIEWPOINT_ACCURACY,
        "published_on": "BrokenChairs-180K, test shapes: other photos than these unless this set is that one",
        "config": {key: str(v) if isinstance(v, Path) else v for key, v in dataclasses.asdict(config).items()},
        "machine": machine(device),
        "versions": versions(),
    }  # fmt: skip
    write_table(out / "metrics.csv", metric_rows(found))
    write_table(out / "photos.csv", photo_rows(pack, found))
    write_json(out / "metrics.json", document)
    terminal.say(f"written to {out}: metrics.json, metrics.csv, photos.csv")
    return 0


def metric_rows(found: Mapping[str, Evaluation]) -> list[dict[str, object]]:
    """Lines of metrics.csv: of all photos, of each type of defect and of each part, for each way of use."""
    rows: list[dict[str, object]] = []
    for way, one in found.items():
        groups = [("all", "", one.figures())]
        groups += [("type", name, figures) for name, figures in one.by_type().items()]
        groups += [("part", name, figures) for name, figures in one.by_part().items()]
        for kind, name, figures in groups:
            for metric, value in figures.items():
                rows.append({"way": way, "of": kind, "name": name, "metric": metric, "value": f"{value:.6g}"})
    return rows


def photo_rows(pack: ShapePairs, found: Mapping[str, Evaluation]) -> list[dict[str, object]]:
    """Lines of photos.csv: the truth of each photo and what was said of it in each way of use."""
    first = next(iter(found.values()))
    rows = []
    for place, photo in enumerate(first.photo.tolist()):
        part = int(first.part[place])
        row: dict[str, object] = {
            "photo": photo,
            "shape": pack.shapes[int(pack.query_shape[photo])],
            "defective": int(first.label[place]),
            "type": pack.types[int(first.kind[place])],
            "part": pack.parts[part] if part >= 0 else "",
        }
        for way, one in found.items():
            row[f"{way}_score"] = f"{one.score[place]:.6f}"
            row[f"{way}_iou"] = _or_empty(float(one.overlap[place]), 4)
            row[f"{way}_viewpoint_right"] = _or_empty(float(one.view_right[place]), 0)
        rows.append(row)
    return rows


def _or_empty(value: float, digits: int) -> str:
    return "" if value != value else f"{value:.{digits}f}"


def _print_tables(
    terminal: Terminal,
    title: str,
    pack: ShapePairs,
    found: Mapping[str, Evaluation],
    thresholds: Mapping[str, float],
) -> None:
    from rich.table import Table

    from detect.cmt.published import PUBLISHED, VIEWPOINT_ACCURACY

    first = next(iter(found.values()))
    shapes = len({int(pack.query_shape[photo]) for photo in first.photo})
    bad = int(first.label.sum())
    terminal.say(
        f"{title}: {len(first.label)} photos ({bad} defective) of {shapes} shape{'s' if shapes != 1 else ''}, percent"
    )
    table = Table()
    table.add_column("", no_wrap=True)
    for column in COLUMNS.values():
        table.add_column(column, justify="right", no_wrap=True)
    for way, one in found.items():
        figures = one.figures()
        table.add_row(f"splatad, {way}", *(_percent(figures.get(key)) for key in COLUMNS), style="bold")
    table.add_section()
    for row in PUBLISHED:
        given: dict[str, float | None] = {"auc": row.auc, "accuracy": row.accuracy, "box_ap": row.box_ap}
        if row.method == "CMT":
            given["viewpoint_accuracy"] = VIEWPOINT_ACCURACY
        values = [given.get(key) for key in COLUMNS]
        name = row.method + ("" if row.reference else " (no reference)")
        table.add_row(name, *("" if v is None else f"{v:.1f}" for v in values))
    terminal.print(table)
    limits = ", ".join(f"{way} {thresholds[way]:.3f}" for way in found)
    terminal.say(f"Limits, chosen with the network on held-out shapes: {limits}.")
    terminal.say(
        "Published rows: Bhunia et al. 2024, quoted; BrokenChairs-180K's test shapes, other photos than these unless this "
        "set is that one."
    )
    for heading, by in (("type of defect", "by_type"), ("part", "by_part")):
        groups: dict[str, dict[str, dict[str, float]]] = {
            way: getattr(one, by)() for way, one in found.items()
        }
        table = Table()
        table.add_column(heading, no_wrap=True)
        table.add_column("photos", justify="right")
        for way in found:
            for column in ("AUC", "found", "IoU"):
                table.add_column(f"{column} {way}", justify="right", no_wrap=True)
        for name, figures in next(iter(groups.values())).items():
            cells = [
                _percent(groups[way][name][key]) for way in found for key in ("auc", "recall", "mean_iou")
            ]
            table.add_row(name, f"{figures['photos']:.0f}", *cells)
        terminal.print(table)
    terminal.say("AUC: against all good photos; found: share above the limit; IoU: mean of the boxes.")


def _percent(value: float | None) -> str:
    return "" if value is None or value != value else f"{100 * value:.1f}"


def _digest(file: Path) -> str:
    import hashlib

    return hashlib.sha256(file.read_bytes()).hexdigest()


def _plain(value: Any) -> Any:
    """Nested values with None for what is no number, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and value != value else value
