"""CMT's variants, each trained from nothing for as many steps: query-only, the paper's ablations A to D, CMT, with the pose.

    .venv/bin/python scripts/bench_cmt_variants.py --data SET --out FOLDER [--steps 1500] [--seeds 3]

SET is what `splatad generate chairs` wrote. A stopped run goes on where it was. Figures are of the shapes of split `test`,
the network's state after the last step (averaged weights; nothing is chosen on them): mean and standard deviation over the
seeds. `CMT, pose` is the network of `CMT` with the view from the photo's camera given.
"""

from __future__ import annotations

import dataclasses
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from bench_rasterize import machine
from rich.console import Console

from detect.cmt.evaluate import EvaluateConfig, evaluate, summary
from detect.cmt.train import TrainConfig, train
from prepare.atomic_write import write_json
from prepare.scene import read_json_object
from prepare.shape_pairs import ShapePairs
from splatad.cmt_inputs import find_pack
from splatad.commands.train_cmt import TrainCmt, train_config
from splatad.workspace import open_workspace

Variant = Literal["query-only", "A", "B", "C", "D", "CMT"]
FIGURES = ("auc", "accuracy_at_threshold", "box_ap", "patch_auroc", "viewpoint_accuracy")


@dataclass(frozen=True)
class Options:
    """What to train and compare."""

    data: Path
    """A packed set of shapes and photos."""
    out: Path
    """Folder for the networks and `results.json`."""
    variants: tuple[Variant, ...] = ("query-only", "A", "B", "C", "D", "CMT")
    """Which variants."""
    seeds: int = 3
    """Networks of each."""
    steps: int = 1500
    """Of the optimiser, for each network."""
    evaluate_views: int = 0
    """Reference views at evaluation; 0: all."""


def run(options: Options, pairs: ShapePairs, variant: Variant, seed: int) -> dict[str, dict[str, float]]:
    """Figures of one network: of the variant's name and, where it has one, of the same with the pose."""
    folder = options.out / f"{variant}-{seed}"
    done = folder / "figures.json"
    if done.exists():
        return read_json_object(done)
    config: TrainConfig = train_config(
        TrainCmt(data=options.data, ablation=variant, steps=options.steps, seed=seed), pairs
    )
    # Looks at held-out shapes cost time and are not needed: the last state is taken, and its threshold found at the end.
    config = dataclasses.replace(config, check_every=options.steps, check_photos=0)
    network = train(pairs, folder, config).network
    out = {}
    for aided in (False, True) if config.model.aided else (False,):
        own = EvaluateConfig(split="val", aided=aided, views=options.evaluate_views)
        threshold = evaluate(network, pairs, own).best_threshold
        result = evaluate(network, pairs, dataclasses.replace(own, split="test", threshold=threshold))
        figures = summary(result)["figures"]
        out[f"{variant}, pose" if aided else variant] = {
            name: figures[name] for name in FIGURES if name in figures
        }
    write_json(done, out)
    return out


def main(options: Options) -> None:
    console = Console()
    console.print(machine())
    _, pairs = find_pack(open_workspace(None), options.data)
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        for variant in options.variants:
            for name, figures in run(options, pairs, variant, seed).items():
                found.setdefault(name, []).append(figures)
                console.print(
                    f"{name}, seed {seed}: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items())
                )
    console.print(
        f"\n| variant ({options.steps} steps, {options.seeds} seeds) | " + " | ".join(FIGURES) + " |"
    )
    console.print("|---" * (len(FIGURES) + 1) + "|")
    for name, rows in found.items():
        cells = []
        for figure in FIGURES:
            values = [row[figure] for row in rows if figure in row]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3f} ± {spread:.3f}" if values else "")
        console.print(f"| {name} | " + " | ".join(cells) + " |")
    write_json(
        options.out / "results.json", {"steps": options.steps, "seeds": options.seeds, "networks": found}
    )


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
