"""CMT as a user has it: photos of shapes that it never saw, with shadows, and a mesh; camera and mask found, or given.

    .venv/bin/python scripts/bench_cmt_photos.py [--network FILE] [--shapes 20] [--photos 10] [--out FOLDER]

The shapes are those of split `test` of `splatad generate chairs` with its defaults; their photos are drawn anew, larger. Of
each photo the score is asked with its true mask and with what the photo shows, with its true camera, with the one that
`detect --detector cmt --reference model.obj` finds, and without.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from bench_rasterize import machine
from rich.console import Console

from detect.cmt.predict import Predictor, frame_photo
from detect.cmt.reference import MeshViewer, part_frame
from detect.metrics import auroc
from pose.se3 import turn_deg
from prepare.atomic_write import write_json
from prepare.camera import Camera
from prepare.foreground import foreground_alpha, without_shadow
from prepare.generate.chair_anomalies import clouds_of
from prepare.generate.chair_mesh import chair_triangles
from prepare.generate.chair_shapes import make_chair
from prepare.generate.chairs import ChairSettings, make_pair, shape_splits, view_cameras
from prepare.mesh import mesh_of
from prepare.scene import ViewImage
from splatad.cmt_inputs import find_network
from splatad.cmt_inspector import VOTED, in_frame
from splatad.lens import QueryLens
from splatad.mesh_finder import finder_of_mesh

FAR_DEG = 5.0


@dataclass(frozen=True)
class Options:
    """What to measure."""

    network: Path | None = None
    """A .safetensors file; the one shipped if not given."""
    shapes: int = 20
    """Of split test, evenly spread."""
    photos: int = 10
    """Of each shape, half of them defective."""
    px: int = 384
    """Width and height of the photos."""
    lens: str = "known"
    """known, or guessed: a quarter too long, and found with the camera."""
    votes: bool = True
    """Whether the matches' votes say where the camera is sought too."""
    out: Path | None = None
    """Folder for results.json."""


def main(options: Options) -> None:
    console = Console()
    console.print(machine())
    predictor = Predictor.from_file(find_network(options.network))
    px, settings = predictor.network.config.px, ChairSettings(px=options.px)
    test = shape_splits(settings)["test"]
    chosen = [test[i] for i in np.linspace(0, len(test) - 1, options.shapes).round().astype(int)]
    cameras = [camera for _, _, camera in view_cameras(ChairSettings(views=20, px=px))]
    rows: list[dict[str, float]] = []
    for number in chosen:
        chair = make_chair(settings.seed, number)
        vertices, faces = chair_triangles(chair)
        mesh = mesh_of(vertices[faces])
        frame = part_frame(torch.from_numpy(mesh.vertices), "y")
        began = time.perf_counter()
        viewer = MeshViewer(mesh, frame)
        encoded = predictor.encode(viewer.views(cameras))
        finder = finder_of_mesh(str(number), viewer, cameras, "auto", torch.device("cpu"))
        made = time.perf_counter() - began
        for pair in range(options.photos // 2):
            drawn = make_pair(chair, clouds_of(chair), settings, number, pair, Counter())
            for label, query in zip((1, 0), drawn, strict=True):
                rgb = torch.from_numpy(query.pixels).float() / 255
                true = _single(query.camera)
                ground = foreground_alpha(rgb)
                exact = frame_photo(rgb, torch.from_numpy(query.alpha).float() / 255, px)
                found = frame_photo(rgb, ground.alpha, px, shadowed=True)
                began = time.perf_counter()
                sides = predictor.nearest_sides(found, encoded, VOTED) if options.votes else []
                guess = replace(true, world_to_cam=torch.eye(4))
                if options.lens == "guessed":
                    guess = replace(guess, fl_x=1.25 * guess.fl_x, fl_y=1.25 * guess.fl_y)
                image = ViewImage(
                    rgb,
                    without_shadow(rgb, ground.alpha),
                    ground.background,
                    torch.ones_like(ground.alpha).bool(),
                    guess,
                )
                located = finder.locate(image, QueryLens(guess, options.lens == "guessed", None, ""), sides)
                seconds = time.perf_counter() - began
                truth = frame.into_network(true)
                row = {"shape": number, "label": label, "made": made, "seconds": seconds}
                row["error"] = 180.0 if located is None else float(
                    turn_deg(located.camera.world_to_cam.double(), truth.world_to_cam.double())
                )  # fmt: skip
                row["believed"] = float(located is not None and located.believed)
                at = {"given": truth, "found": truth if located is None else located.camera, "none": None}
                for masks, photo in (("given", exact), ("found", found)):
                    for way, camera in at.items():
                        aiding = None if camera is None else viewer.views([in_frame(camera, photo, px)])
                        row[f"{masks}, {way}"] = predictor.predict([photo], encoded, [aiding])[0].score
                rows.append(row)
        console.print(_line(rows, len({row["shape"] for row in rows})))
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        write_json(options.out / "results.json", {"machine": machine(), "options": vars(options) | {
            "network": str(options.network), "out": str(options.out)}, "photos": rows})  # fmt: skip
    limits = predictor.thresholds
    label = np.array([row["label"] for row in rows])
    console.print(
        "\n| masks | camera | AUC | accuracy at the limit | good called NG | found |\n|---|---|---|---|---|---|"
    )
    for masks in ("given", "found"):
        for way in ("given", "found", "none"):
            score = np.array([row[f"{masks}, {way}"] for row in rows])
            called = score > (limits.plain if way == "none" else limits.aided)
            console.print(
                f"| {masks} | {way} | {auroc(score, label):.3f} | {(called == label).mean():.3f} | "
                f"{called[label == 0].mean():.3f} | {called[label == 1].mean():.3f} |"
            )


def _line(rows: list[dict[str, float]], shapes: int) -> str:
    error, label = np.array([row["error"] for row in rows]), np.array([row["label"] for row in rows])
    return (
        f"{shapes} shapes, {len(rows)} photos: camera {np.median(error):.2f} degrees off (median), within {FAR_DEG:g}: "
        f"{(error < FAR_DEG).mean():.3f} (good {(error[label == 0] < FAR_DEG).mean():.3f}), believed "
        f"{np.mean([row['believed'] for row in rows]):.3f}, {np.mean([row['seconds'] for row in rows]):.2f} s a photo, "
        f"{np.mean([row['made'] for row in rows]):.1f} s a mesh; AUC of what is found "
        f"{auroc(np.array([row['found, found'] for row in rows]), label):.3f}"
    )


def _single(camera: Camera) -> Camera:
    return Camera(
        camera.world_to_cam.float(), float(camera.fl_x), float(camera.fl_y), float(camera.cx), float(camera.cy),
        camera.width, camera.height,
    )  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
