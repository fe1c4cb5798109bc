"""Test photos under another light: what inspection makes of them with and without allowing for it.

    scripts/bench_light.py --reference splatad-work/references/mad_car

Each test photo of the reference's scene is inspected as it is, and with another brightness and tint and a light from one
side (exactly known, drawn from the seed), with and without `detect.illumination`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import tyro
from jaxtyping import Float
from torch import Tensor

from detect.illumination import is_other_light
from detect.metrics import auroc
from prepare.scene import ViewImage, load_scene
from splatad.inspector import Inspector

CONDITIONS = ("as it is", "other light, allowed for", "other light, not allowed for")


@dataclass(frozen=True)
class Config:
    reference: Path
    """Folder of a reference whose scene has labelled test photos."""
    every: int = 1
    """Every so manieth test photo."""
    seed: int = 0
    """Draws the lights."""


def main(config: Config) -> None:
    inspector = Inspector.open(config.reference)
    queries = load_scene(Path(inspector.loaded.reference.scene)).queries[:: config.every]
    rng = np.random.default_rng(config.seed)
    scores: dict[str, list[float]] = {condition: [] for condition in CONDITIONS}
    verdicts: dict[str, Counter[str]] = {condition: Counter() for condition in CONDITIONS}
    bad = [query.label != "good" for query in queries]
    for query in queries:
        image = inspector.read(query.image_path)
        changed = other_light(image, rng)
        for condition in CONDITIONS:
            allowed = condition != CONDITIONS[2]
            with mock.patch("splatad.inspector.is_other_light", is_other_light if allowed else _never):
                found = inspector.inspect_image(query.name, image if condition == CONDITIONS[0] else changed)
            scores[condition].append(float("inf") if found.score is None else found.score)
            kind = "good" if query.label == "good" else "defective"
            verdicts[condition][f"{kind} {found.verdict.name}"] += 1
    for condition in CONDITIONS:
        value = 100 * auroc(np.asarray(scores[condition]), np.asarray(bad))
        counts = ", ".join(f"{name} {count}" for name, count in sorted(verdicts[condition].items()))
        print(f"{condition}: image AUROC {value:.2f}; {counts}")


def _never(exposure: object) -> bool:
    return False


def other_light(image: ViewImage, rng: np.random.Generator) -> ViewImage:
    """`image` with the part's brightness times 0.7 to 1.2, each channel 8 % off, and up to 25 % brighter to one side."""
    gain = torch.tensor(rng.uniform(0.7, 1.2) * rng.uniform(0.92, 1.08, 3), dtype=torch.float32)
    turn, tilt = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.25)
    height, width = image.alpha.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    across = (columns - width / 2) * np.cos(turn) + (rows - height / 2) * np.sin(turn)
    shade = 1 + tilt * across / (0.5 * max(height, width))
    return replace(image, rgb=_lit(image, gain, shade.float()))


def _lit(image: ViewImage, gain: Float[Tensor, "3"], shade: Float[Tensor, "h w"]) -> Float[Tensor, "h w 3"]:
    share = image.alpha[..., None]
    background = torch.ones(3) if image.background is None else image.background
    part = image.rgb - (1 - share) * background
    return (part * gain * shade[..., None] + (1 - share) * background).clamp(0, 1)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
