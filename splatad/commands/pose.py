"""`splatad pose`: the cameras of photos of a part, as JSON, with pictures to judge them by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

# Nothing here imports torch when read: the command line reads this class to print its help.


@dataclass(frozen=True)
class Pose:
    """Find the camera that took each photo of a fitted part, and say how far to believe it."""

    query: tuple[Path, ...]
    """Photos, or folders of photos."""
    class_: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """Name of the fitted reference in the workspace; the only one if not given."""
    reference: Path | None = None
    """A reference folder instead of one of the workspace."""
    workspace: Path | None = None
    """Where references lie; else $SPLATAD_WORKSPACE, else ./splatad-work."""
    out: Path | None = None
    """Folder for the results; WORKSPACE/runs/DATE-TIME-pose-NAME if not given."""
    refine: Literal["levenberg", "adam"] = "levenberg"
    """How the camera is refined: ours, or for comparison Adam through the rasteriser."""
    recipe: Literal["none", "splatpose"] = "none"
    """splatpose: Adam with SplatPose's own parameters, steps and rates, whatever --refine says."""
    lens: Literal["auto", "reference", "exif", "free"] = "auto"
    """The photos' lens: as the reference's photos; from EXIF; found with the camera; auto: the reference's where the
    photo's shape and EXIF do not say otherwise."""
    device: str = "auto"
    """auto, cpu or cuda."""
    exit_status: bool = False
    """End with status 20 if any camera is not believed, else 0."""


Command = Pose


def run(config: Pose) -> int:
    """0 once all photos are answered (see --exit-status); 3 where some could not be read.

    Raises: InputError where no photo can be read; UsageError for names that do not exist.
    """
    import datetime
    import sys

    import splatad
    from pose.locate import LocateConfig
    from prepare.atomic_write import write_bytes, write_json
    from prepare.errors import InputError, UsageError
    from prepare.image import image_size, list_images
    from splatad.inspector import Inspector
    from splatad.pictures import to_bytes
    from splatad.pose_output import PosedPhoto, camera_document, camera_picture, camera_row
    from splatad.reference_dir import choose_device, find_reference, load_whole_reference
    from splatad.run_output import each_readable, output_folders, photo_names, write_table
    from splatad.terminal import Terminal
    from splatad.threads import leave_cores_to_the_kernel
    from splatad.workspace import open_workspace

    if not config.query:
        raise UsageError("--query: name at least one photo or a folder of photos")
    workspace = open_workspace(config.workspace)
    folder = find_reference(workspace, config.class_, config.reference)
    paths = list(dict.fromkeys(path for given in config.query for path in list_images(given)))
    names = photo_names(paths)
    device = choose_device(config.device)
    leave_cores_to_the_kernel(device)
    refine = "splatpose" if config.recipe == "splatpose" else config.refine
    inspector = Inspector(load_whole_reference(folder, device), LocateConfig(refine=refine), config.lens)
    loaded = inspector.loaded
    now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    out = config.out or workspace.runs / f"{now}-pose-{loaded.reference.name}"
    terminal = Terminal()
    failures: list[str] = []
    rows: list[dict[str, object]] = []
    believed: dict[str, tuple[Path, PosedPhoto]] = {}

    places = output_folders(names)
    for number, posed in each_readable(
        terminal,
        "finding cameras",
        paths,
        lambda number: _posed(inspector, paths[number], names[number]),
        failures,
    ):
        path, place = paths[number], places[number]
        document = camera_document(posed, *image_size(path), loaded, splatad.__version__)
        write_bytes(out / place / "overlay.png", to_bytes(camera_picture(posed), "PNG"))
        write_json(out / place / "camera.json", document)
        rows.append(camera_row(posed))
        if posed.believed:
            believed[place] = path, posed

    write_table(out / "cameras.csv", rows)
    _write_scene(out / "scene", believed, loaded)
    if len(rows) <= 20:
        _print_table(terminal, rows)
    terminal.say(f"{len(believed)} of {len(rows)} cameras believed")
    written = f"written to {out}: cameras.csv; camera.json and overlay.png for each photo"
    terminal.say(written + ("; scene/transforms.json" if believed else ""))
    for failure in failures:
        print(f"splatad: {failure}", file=sys.stderr)
    if failures:
        return InputError.exit_status
    return 20 if config.exit_status and len(believed) < len(rows) else 0


def _posed(inspector, path: Path, name: str):
    """The photo at `path` with its camera and the render there."""
    import time

    import torch

    from detect.verdict import no_part_verdict
    from recon.rasterize import rasterize
    from splatad.finder import over_background
    from splatad.pose_output import PosedPhoto

    loaded = inspector.loaded
    reference = loaded.reference
    started = time.perf_counter()
    lens = inspector.lens(path)
    image = inspector.read(path, lens)
    photo = over_background(image, reference.background)
    seconds = {"read": time.perf_counter() - started}
    located = inspector.locate(image, lens)
    if located is None:
        reasons = no_part_verdict(loaded.calibration.belief.least_part_share).reasons
        return PosedPhoto(name, photo, None, None, reasons, seconds, lens)
    gaussians = reference.gaussians
    camera = located.camera.moved(located.camera.world_to_cam.to(gaussians.device))
    background = reference.background.to(gaussians.device)
    with torch.no_grad():
        render = rasterize(gaussians, camera, background, options=reference.options)
    return PosedPhoto(name, photo, located, render, located.reasons, seconds | dict(located.seconds), lens)


def _write_scene(folder: Path, believed, loaded) -> None:
    """The believed photos as a scene that `splatad prepare nerfstudio` reads: links to them, and transforms.json."""
    from pathlib import PurePosixPath

    from prepare.datasets.scene_folder import SceneWriter, share_intrinsics
    from prepare.image import image_size
    from splatad.pose_output import nerfstudio_frame

    if not believed:
        (folder / "transforms.json").unlink(missing_ok=True)  # of an earlier run into the same folder
        return
    writer = SceneWriter(folder, folder.parent.resolve(), "pose", copy=False, config={})
    for place, (path, posed) in believed.items():
        file_path = writer.place(path.resolve(), PurePosixPath("images") / (place + path.suffix))
        camera = posed.located.camera.resized(*image_size(path))
        writer.frames.append(
            nerfstudio_frame(camera, posed.lens.distortion if posed.lens else None, file_path)
        )
    lens = [key for key in writer.frames[0] if key not in ("file_path", "transform_matrix")]
    writer.finish(share_intrinsics(writer.frames, lens))


def _print_table(terminal, rows: list[dict[str, object]]) -> None:
    from rich.table import Table

    table = Table()
    table.add_column("photo", overflow="fold")
    table.add_column("believed")
    for title in ("belief", "agrees", "outline", "± deg", "s"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("reason")
    for row in rows:
        values = [row[key] for key in ("belief", "inliers", "overlap")]
        shares = ["" if value == "" else f"{float(str(value)):.0%}" for value in values]
        sigma = "" if row["sigma_deg"] == "" else f"{float(str(row['sigma_deg'])):.3f}"
        cells = [*shares, sigma, f"{float(str(row['seconds'])):.2f}"]
        reason = "" if row["believed"] else str(row["reason"])
        table.add_row(str(row["photo"]), "yes" if row["believed"] else "NO", *cells, reason)
    terminal.print(table)
