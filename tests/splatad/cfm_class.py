"""A small class of photos with points: bumpy, striped cookies on nothing, some with a hole or a stain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from prepare.organised_cloud import write_xyz
from prepare.registered import write_class

SIZE = 112  # px


def draw(seed: int, defect: str = "good") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Photo (8 bit), points (metres) and mask of one cookie: colour goes with height, but for stains."""
    rng = np.random.default_rng([11, seed])
    rows, columns = np.mgrid[:SIZE, :SIZE] - SIZE / 2.0
    radius = 40 + 2 * np.cos(3 * np.arctan2(rows, columns) + rng.uniform(0, 6))
    inside = np.hypot(rows, columns) < radius
    phase = rng.uniform(0, 6, 2)
    bumps = np.sin(rows / 4 + phase[0]) * np.sin(columns / 5 + phase[1])
    height = 0.004 + 0.0015 * bumps
    colour = 0.5 + 0.3 * bumps + 0.01 * rng.normal(size=bumps.shape)
    mask = np.zeros(inside.shape, bool)
    if defect != "good":
        at = rng.uniform(-18, 18, 2)
        mask = np.hypot(rows - at[0], columns - at[1]) < 8
        if defect == "hole":
            height = np.where(mask, 0.0005, height)
        else:
            colour = np.where(mask, 0.1, colour)
    rgb = np.stack([colour, 0.8 * colour, 0.5 * colour], axis=-1) * inside[..., None] + 0.05
    metre = 0.0004  # per px
    depth = 0.5 - height
    xyz = np.stack([columns * metre + 1e-6, rows * metre + 1e-6, depth], axis=-1) * inside[..., None]
    return (rgb.clip(0, 1) * 255).round().astype(np.uint8), xyz.astype(np.float32), mask


def make_class(
    folder: Path, train: int = 4, validation: int = 3, good: int = 2, bad: int = 1, name: str = "cookie"
) -> Path:
    """The class in `folder`: two kinds of defects, `bad` of each."""
    rows = []
    seed = 0
    for split, defect, count in (
        ("train", "good", train), ("validation", "good", validation), ("test", "good", good), ("test", "hole", bad),
        ("test", "stain", bad),
    ):  # fmt: skip
        for number in range(count):
            seed += 1
            rgb, xyz, mask = draw(seed, defect)
            stem = f"{split}/{defect}"
            row = {"name": f"{stem}/{number:03d}", "split": split, "defect": defect, "gt": None}
            for kind, suffix in (("rgb", "png"), ("xyz", "tiff"), ("gt", "png")):
                row[kind] = f"{stem}/{kind}/{number:03d}.{suffix}"
                (folder / stem / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(rgb).save(folder / row["rgb"])
            write_xyz(folder / row["xyz"], xyz)
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / row["gt"])
            rows.append(row)
    header = {
        "name": name, "source": "mvtec-3d", "variant": "rgb", "defects": ["hole", "stain"], "refused": [],
        "settings": {"cloud": {}}, "licence": "made up",
    }  # fmt: skip
    write_class(folder, header, rows)
    return folder
