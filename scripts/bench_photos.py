"""Phone photos among clutter: photos kept out are to be located and OK, the same with a patch painted or erased NG there.

    scripts/bench_photos.py --scene splatad-work/scenes/plush

Keeps every eighth photo of the scene from the reference (its own copy of the scene, in --work), fits, and inspects each of
those as it is, with a painted blotch and with a patch erased (filled with the colours round it) on the part. The edited
photos, their masks and a table stay in --work.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image
from scipy import ndimage

from prepare.atomic_write import write_json
from prepare.image import read_image, write_image
from prepare.scene import load_scene
from splatad.inspector import Inspection, Inspector
from splatad.run_record import machine

PATCH_SHARE = 0.03  # radius of a patch, of the photo's longer side
PAINTS = ((0.75, 0.1, 0.1), (0.1, 0.5, 0.15), (0.95, 0.85, 0.1), (0.05, 0.05, 0.05))


@dataclass(frozen=True)
class Config:
    scene: Path
    """A prepared scene of cluttered photos."""
    work: Path = Path("splatad-work/bench-photos")
    """Where the copy of the scene, the reference and the edited photos go; a reference that is there is used again."""
    every: int = 8
    """Every so manieth photo is kept out."""
    fit: tuple[str, ...] = ()
    """More flags for `splatad fit`, for example --folds 0."""
    seed: int = 0
    """Draws the places and colours of the patches."""


@dataclass(frozen=True)
class Case:
    """One photo as it was inspected."""

    name: str
    kind: str  # good, painted or erased
    inspection: Inspection
    patch: np.ndarray | None  # where it was edited, at the inspected size

    @property
    def at_the_place(self) -> bool:
        """Whether a defect was found on the patch."""
        patch = self.patch
        return patch is not None and any(
            bool(d.mask.cpu().numpy()[patch].any()) for d in self.inspection.defects
        )


def main(config: Config) -> None:
    scene, kept = split(config)
    name = scene.name
    if not (config.work / "references" / name / "reference.json").exists():
        command = [
            sys.executable,
            "-m",
            "splatad",
            "fit",
            "--scene",
            str(scene),
            "--workspace",
            str(config.work),
        ]
        subprocess.run([*command, *config.fit], check=True)
    inspector = Inspector.open(config.work / "references" / name)
    rng = np.random.default_rng(config.seed)
    cases = [case for photo in kept for case in inspected(config, inspector, photo, rng)]
    rows = []
    for kind in ("good", "painted", "erased"):
        of_kind = [case for case in cases if case.kind == kind]
        verdicts = [case.inspection.verdict.name for case in of_kind]
        rows.append(
            {"photos": kind, "of": len(of_kind)}
            | {verdict: verdicts.count(verdict) for verdict in ("OK", "NG", "CANNOT TELL")}
            | {"NG at the place": sum(case.at_the_place for case in of_kind)}
        )
    for row in rows:
        print("  ".join(f"{key}: {value}" for key, value in row.items()))
    write_json(config.work / "photos.json", {"machine": machine(torch.device("cpu")), "rows": rows})


def split(config: Config) -> tuple[Path, list[Path]]:
    """The scene's copy without the photos kept out, and those."""
    source = config.scene
    views = load_scene(source).views
    kept = views[config.every // 2 :: config.every]
    names = {view.name for view in kept}
    target = config.work / "scenes" / source.name
    if not (target / "transforms.json").exists():
        target.mkdir(parents=True, exist_ok=True)
        document = json.loads((source / "transforms.json").read_text("utf-8"))
        document["frames"] = [f for f in document["frames"] if f["file_path"] not in names]
        for entry in source.iterdir():
            if entry.name not in ("transforms.json", "queries.json") and not (target / entry.name).exists():
                (target / entry.name).symlink_to(entry.resolve())
        write_json(target / "transforms.json", document)
    return target, [view.image_path for view in kept]


def inspected(config: Config, inspector: Inspector, photo: Path, rng: np.random.Generator) -> list[Case]:
    """The photo as it is, and, where the part was found in it, with a patch painted and with one erased."""
    good = inspector.inspect(photo)
    print(f"{photo.name} as it is: {good.verdict.name}, {good.verdict.reasons[0]}", flush=True)
    cases = [Case(photo.name, "good", good, None)]
    rgb = read_image(photo).rgb.numpy()
    height, width = rgb.shape[:2]
    alpha = good.alpha.numpy()
    if alpha.min() > 0.5:  # nothing was cut out
        return cases
    radius = PATCH_SHARE * max(height, width)
    scale = max(height, width) / max(alpha.shape)
    depth = ndimage.distance_transform_edt(alpha > 0.9)
    places = np.argwhere(depth * scale > 1.3 * radius)
    if len(places) == 0:
        return cases
    for kind in ("painted", "erased"):
        row, column = (places[rng.integers(len(places))] + 0.5) * scale
        patch = blotch(rng, height, width, row, column, radius)
        edited = erased(rgb, patch) if kind == "erased" else painted(rgb, patch, rng)
        path = config.work / "edited" / kind / f"{photo.stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, torch.from_numpy(edited))
        inspection = inspector.inspect(path)
        small = Image.fromarray(patch).resize(alpha.shape[::-1], Image.Resampling.BILINEAR)
        case = Case(photo.name, kind, inspection, np.asarray(small))
        where = "at the place" if case.at_the_place else "not at the place"
        print(f"  {kind}: {inspection.verdict.name}, {inspection.verdict.reasons[0]}; {where}", flush=True)
        cases.append(case)
    return cases


def blotch(
    rng: np.random.Generator, height: int, width: int, row: float, column: float, radius: float
) -> np.ndarray:
    """A ragged disc, True inside."""
    rows, columns = np.mgrid[:height, :width]
    angle = np.arctan2(rows - row, columns - column)
    phases = rng.uniform(0, 2 * np.pi, 3)
    reach = radius * (1 + sum(0.1 * np.sin((k + 2) * angle + phases[k]) for k in range(3)))
    return np.hypot(rows - row, columns - column) < reach


def painted(rgb: np.ndarray, patch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The patch in another colour, its light and shade kept."""
    colours = [np.asarray(c) for c in PAINTS]
    here = rgb[patch].mean(axis=0)
    far = [c for c in colours if np.abs(c - here).max() > 0.35]
    colour = far[rng.integers(len(far))]
    soft = ndimage.gaussian_filter(patch.astype(np.float64), 1.5)[..., None]
    shade = rgb.mean(axis=2, keepdims=True) / max(float(here.mean()), 1e-3)
    return np.clip(rgb * (1 - 0.85 * soft) + 0.85 * soft * colour * shade, 0, 1).astype(np.float32)


def erased(rgb: np.ndarray, patch: np.ndarray) -> np.ndarray:
    """The patch filled with the mean colour of what is round it: what was there is gone."""
    ring = ndimage.binary_dilation(patch, iterations=6) & ~patch
    soft = ndimage.gaussian_filter(patch.astype(np.float64), 1.5)[..., None]
    return np.clip(rgb * (1 - soft) + soft * rgb[ring].mean(axis=0), 0, 1).astype(np.float32)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
