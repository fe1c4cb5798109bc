"""CFM on prepared classes: features, seeds, few shots, ablations, and what keeping features saves.

    .venv/bin/python scripts/bench_cfm.py --classes CLASS [CLASS ...] --out FOLDER [--photo handcrafted] [--shape fpfh]

CLASS is what `splatad prepare mvtec-3d` or `eyecandies` wrote (a name of the workspace, or a folder). A stopped run goes on
where it was. Tables: mean over the classes, of each seed, then mean and standard deviation over the seeds; AUPRO in the
papers' 99-threshold form and exactly, all at 224 x 224 and of the published normalisations; `z` is our absolute scale.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import tyro
from bench_rasterize import machine
from rich.console import Console

from detect.cfm.checkpoint import load_checkpoint
from detect.cfm.evaluate import evaluate, look, speed
from detect.cfm.score import Fusion, ScoreConfig
from detect.cfm.stored import FeatureConfig, FeatureStore, extract
from detect.cfm.train import NETWORK, TrainConfig, train
from prepare.atomic_write import write_json
from prepare.registered import RegisteredClass
from prepare.scene import read_json_object
from splatad.cfm_inputs import find_class
from splatad.workspace import open_workspace

Figures = dict[str, float]
COLUMNS = {
    "I-AUROC": "image_auroc", "P-AUROC": "pixel_auroc", "AUPRO@30 (99)": "aupro99_30", "AUPRO@30": "aupro_30",
    "AUPRO@1 (99)": "aupro99_1", "AUPRO@1": "aupro_1", "I-AUROC z": "z_image_auroc", "found": "found",
    "false alarms": "false_alarms",
}  # fmt: skip
FUSIONS: tuple[Fusion, ...] = ("product", "sum", "max", "photo", "shape", "zmean")


@dataclass(frozen=True)
class Options:
    """What to measure."""

    classes: tuple[str, ...]
    """Prepared classes."""
    out: Path
    """Folder for the networks and `results.json`."""
    photo: tuple[str, ...] = ("handcrafted", "mobilenet_v2")
    """Features of the photo; each is tried with each of --shape."""
    shape: tuple[str, ...] = ("fpfh", "curvature", "normals")
    """Features of the points."""
    shots: tuple[int, ...] = (1, 5, 10, 50)
    """Few-shot trainings, with the first of the features alone; those that a class cannot support are left out."""
    seeds: int = 3
    """Trainings of each kind."""
    steps: int = 1500
    """Of the optimiser."""
    workspace: Path | None = None
    """Where classes lie and features are kept."""


@dataclass(frozen=True)
class Bench:
    """One kind of features on all classes."""

    options: Options
    features: FeatureConfig
    classes: tuple[RegisteredClass, ...]
    folder: Path  # of features

    def run(
        self, name: str, config: TrainConfig, fusions: Sequence[Fusion] = ("product",)
    ) -> dict[str, list[dict[str, Figures]]]:
        """Figures of each fusion, a list over the seeds of the classes' figures."""
        found: dict[str, list[dict[str, Figures]]] = {fusion: [] for fusion in fusions}
        for seed in range(self.options.seeds):
            rows = {c.name: self._one(name, replace(config, seed=seed), c, fusions) for c in self.classes}
            for fusion in fusions:
                found[fusion].append({c: row[fusion] for c, row in rows.items() if fusion in row})
        return found

    def _one(
        self, name: str, config: TrainConfig, registered: RegisteredClass, fusions: Sequence[Fusion]
    ) -> dict[str, Figures]:
        out = (
            self.options.out
            / f"{self.features.photo}-{self.features.shape}"
            / name
            / f"{registered.name}-{config.seed}"
        )
        done = out / "figures.json"
        if done.exists():
            return {fusion: dict(figures) for fusion, figures in read_json_object(done).items()}
        store = FeatureStore(self.folder, self.features, registered)
        trained = train(registered.samples(), store, out, config, asdict(self.features)).checkpoint
        assert trained is not None
        looked, _ = look(trained.pair, registered.samples("test"), store, registered, config.masked)
        figures: dict[str, Figures] = {}
        for fusion in fusions:
            one = evaluate(looked, fusion, trained.scales.get(fusion), ScoreConfig(masked=config.masked))
            figures[fusion] = {**one.figures} | {
                f"{defect}/image_auroc": by["z_image_auroc"]
                for defect, by in one.by_defect.items()
                if "z_image_auroc" in by
            }
        write_json(done, figures)
        return figures


def row(runs: Iterable[Mapping[str, Figures]], figure: str) -> str:
    """Mean over the classes; mean and standard deviation of that over the seeds, in hundredths."""
    per_seed = [
        100 * statistics.mean(figures[figure] for figures in classes.values() if figure in figures)
        for classes in runs
        if any(figure in figures for figures in classes.values())
    ]
    if not per_seed:
        return ""
    spread = statistics.stdev(per_seed) if len(per_seed) > 1 else 0.0
    return f"{statistics.mean(per_seed):.1f} ± {spread:.1f}"


def table(console: Console, title: str, rows: Mapping[str, list[dict[str, Figures]]]) -> None:
    """A table in Markdown."""
    console.print(f"\n| {title} | " + " | ".join(COLUMNS) + " |")
    console.print("|---" * (len(COLUMNS) + 1) + "|")
    for name, runs in rows.items():
        console.print(f"| {name} | " + " | ".join(row(runs, figure) for figure in COLUMNS.values()) + " |")


def cached_against_not(bench: Bench, seconds_at_most: float = 30.0) -> dict[str, float]:
    """Seconds of a training step's features when they are kept, and when they are computed anew as published."""
    registered = bench.classes[0]
    store = FeatureStore(bench.folder, bench.features, registered)
    samples = [sample for sample in registered.samples("train") if not sample.label][:8]
    store.prepare(samples)
    times: dict[str, list[float]] = {"kept": [], "anew": []}
    began = time.perf_counter()
    pixels = torch.arange(0, bench.features.px**2, 97)
    for turn, sample in enumerate(samples):
        photo = registered.load(sample, bench.features.px)
        for way in ("kept", "anew") if turn % 2 else ("anew", "kept"):
            start = time.perf_counter()
            features = store.get(sample) if way == "kept" else extract(bench.features, photo)
            features.rows(pixels)
            times[way].append(time.perf_counter() - start)
        if time.perf_counter() - began > seconds_at_most:
            break
    return {way: statistics.median(values) for way, values in times.items()}


def main(options: Options) -> None:
    console = Console(width=220)
    console.print(machine())
    workspace = open_workspace(options.workspace)
    classes = tuple(find_class(workspace, name) for name in options.classes)
    kinds = [
        Bench(options, FeatureConfig(photo=photo, shape=shape), classes, workspace.root / "features")
        for photo in options.photo
        for shape in options.shape
    ]
    config = TrainConfig(steps=options.steps)
    results: dict[str, object] = {
        "options": asdict(options) | {"out": str(options.out), "workspace": str(workspace.root)}
    }
    first = kinds[0]
    every = {
        f"{b.features.photo} + {b.features.shape}": b.run(
            "all", config, FUSIONS if b is first else ("product",)
        )
        for b in kinds
    }
    fused = next(iter(every.values()))
    table(console, "features, product", {name: runs["product"] for name, runs in every.items()})
    table(console, "fusion, " + next(iter(every)), fused)
    # Every pixel takes part: slow, so one seed.
    unmasked = replace(first, options=replace(options, seeds=1)).run(
        "unmasked", replace(config, masked=False)
    )
    table(
        console, "mask", {"masked": next(iter(every.values()))["product"], "not masked": unmasked["product"]}
    )
    few: dict[str, list[dict[str, Figures]]] = {}
    for shots in options.shots:
        own = replace(first, classes=tuple(c for c in classes if len(c.samples("train")) >= shots))
        if own.classes:
            few[f"{shots} shots"] = own.run(f"shots-{shots}", replace(config, shots=shots))["product"]
    few["all"] = next(iter(every.values()))["product"]
    table(console, "few-shot, " + next(iter(every)), few)
    for bench in kinds:
        registered = bench.classes[0]
        FeatureStore(bench.folder, bench.features, registered)
        trained = (
            bench.options.out
            / f"{bench.features.photo}-{bench.features.shape}"
            / "all"
            / f"{registered.name}-0"
        )
        pair = load_checkpoint(trained / NETWORK).pair
        photos = [registered.load(sample, 224) for sample in registered.samples("test")[:5]]
        took = speed(pair, photos, lambda photo, b=bench: extract(b.features, photo), ScoreConfig())
        kept = cached_against_not(bench)
        console.print(
            f"{bench.features.photo} + {bench.features.shape}: {took.with_features:.2f} s a photo with features, "
            f"{took.without_features:.3f} s without; a training photo's features kept {kept['kept']:.4f} s, computed anew "
            f"{kept['anew']:.3f} s ({kept['anew'] / kept['kept']:.0f} x)"
        )
        results[f"{bench.features.photo} + {bench.features.shape}, speed"] = asdict(took) | kept
    results |= {"features": every, "fusions": fused, "unmasked": unmasked, "few": few}
    write_json(options.out / "results.json", results)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
