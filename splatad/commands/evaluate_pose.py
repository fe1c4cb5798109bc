"""`splatad evaluate pose`: errors of the cameras that are found, by two protocols, beside the published figures.

`retrieval`, the seeds' protocol: the camera is sought from the photo alone. `perturbed`, iNeRF's: it is refined from the
true one, turned about the part's centre and moved (`detect.pose_metrics.perturbed_start`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from detect.pose_metrics import PoseError, PoseResult, PoseSummary
    from prepare.camera import Camera
    from prepare.scene import Scene, ViewImage
    from recon.reference import Reference
    from splatad.inspector import Inspector
    from splatad.terminal import Terminal

# Nothing here imports torch when read: the command line reads this class to print its help.

Protocol = Literal["retrieval", "perturbed"]
Refine = Literal["levenberg", "adam", "splatpose"]
Photos = Literal["auto", "test", "held-out"]


@dataclass(frozen=True)
class EvaluatePose:
    """Find cameras of photos whose true ones are known, and measure the errors."""

    class_: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """Name of a fitted reference; the only one if not given."""
    scene: Path | None = None
    """The scene folder with the photos; the one the reference was fitted from if not given."""
    reference: Path | None = None
    """A reference folder instead of one of the workspace."""
    workspace: Path | None = None
    """Where scenes and references lie; else $SPLATAD_WORKSPACE, else ./splatad-work."""
    out: Path | None = None
    """Folder for the results; WORKSPACE/runs/evaluate-pose-NAME if not given."""
    photos: Photos = "auto"
    """test: the scene's test photos with known cameras; held-out: views kept from the fit; auto: test, else held-out."""
    every: int = 1
    """Take each Nth photo, to try."""
    protocol: tuple[Protocol, ...] = ("retrieval",)
    """retrieval: from the photo alone; perturbed: from the true camera, turned up to 40 degrees and moved 0.2 (iNeRF)."""
    starts: int = 5
    """Perturbed starts for each photo (iNeRF: 5)."""
    refine: tuple[Refine, ...] = ("levenberg",)
    """How cameras are refined, a row for each: ours, Adam through the rasteriser, SplatPose's recipe of it."""
    seed: int = 0
    """Draws the perturbed starts, with the photo's name."""
    device: str = "auto"
    """auto, cpu or cuda."""


Command = EvaluatePose


@dataclass(frozen=True)
class Photo:
    """A photo whose true camera is known."""

    name: str
    path: Path
    label: str  # good, the defect's type, or "" where unknown
    world_to_cam: Any  # Float[Tensor, "4 4"], the true camera


@dataclass(frozen=True)
class Tried:
    """One attempt to find a photo's camera."""

    photo: Photo
    start: int | None  # which perturbed start; None where the camera was sought from the photo alone
    start_error: PoseError | None
    result: PoseResult
    belief: float | None
    reason: str  # why not believed


def run(config: EvaluatePose) -> int:
    """0 once the tables are printed and written.

    Raises: InputError where there are no photos with known cameras; UsageError for flags that make no sense.
    """
    import dataclasses

    from detect.pose_metrics import INERF_DISTANCE, PUBLISHED, WRONG_DEG, summarize
    from pose.locate import LocateConfig
    from prepare.atomic_write import write_json
    from prepare.errors import UsageError
    from prepare.scene import load_scene
    from splatad.inspector import Inspector
    from splatad.reference_dir import choose_device, find_reference
    from splatad.run_output import write_table
    from splatad.run_record import machine, versions
    from splatad.terminal import Terminal
    from splatad.threads import leave_cores_to_the_kernel
    from splatad.workspace import open_workspace

    for flag, value in (("--every", config.every), ("--starts", config.starts)):
        if value < 1:
            raise UsageError(f"{flag} {value}: must be 1 or more")
    for flag, given in (("--protocol", config.protocol), ("--refine", config.refine)):
        if not given:
            raise UsageError(f"{flag}: name at least one")
    workspace = open_workspace(config.workspace)
    device = choose_device(config.device)
    leave_cores_to_the_kernel(device)
    folder = find_reference(workspace, config.class_, config.reference)
    loaded = Inspector.open(folder, device).loaded
    reference = loaded.reference
    scene = load_scene(config.scene or Path(reference.scene))
    kind, photos = choose_photos(scene, reference, config.photos)
    photos = photos[:: config.every]
    protocols, methods = tuple(dict.fromkeys(config.protocol)), tuple(dict.fromkeys(config.refine))
    out = config.out or workspace.runs / f"evaluate-pose-{reference.name}"
    terminal = Terminal()
    summaries: dict[Protocol, dict[Refine, PoseSummary]] = {}
    rows: list[dict[str, object]] = []
    attempts = sum(config.starts if protocol == "perturbed" else 1 for protocol in protocols)
    with terminal.bar("finding cameras", len(photos) * len(methods) * attempts) as bar:
        for protocol in protocols:
            for refine in methods:
                inspector = Inspector(loaded, LocateConfig(refine=refine))
                tried = []
                for photo in photos:
                    image = inspector.read(photo.path)
                    if protocol == "retrieval":
                        tried.append(_from_the_photo_alone(inspector, photo, image))
                        bar.advance()
                        continue
                    for start in range(config.starts):
                        tried.append(_from_a_start(inspector, photo, image, start, config.seed))
                        bar.advance()
                summaries.setdefault(protocol, {})[refine] = summarize([t.result for t in tried])
                rows += [_row(protocol, refine, t) for t in tried]

    for protocol, by_refine in summaries.items():
        _print_tables(terminal, f"{reference.name}, {len(photos)} {kind} photos", protocol, by_refine)
    document = {
        "format": "splatad-pose-evaluation",
        "version": 1,
        "reference": reference.name,
        "photos": {"kind": kind, "count": len(photos), "every": config.every},
        "starts": config.starts,
        "seed": config.seed,
        "units": {
            "scaled_distance": f"world units times {INERF_DISTANCE} / camera_distance",
            "camera_distance": reference.distance,
            "unflagged_errors": f"believed and off by more than {WRONG_DEG:g} degrees",
        },
        "results": {
            protocol: {refine: plain(dataclasses.asdict(summary)) for refine, summary in by_refine.items()}
            for protocol, by_refine in summaries.items()
        },
        "published": [dataclasses.asdict(row) for row in PUBLISHED],
        "machine": machine(device),
        "versions": versions(),
        "fit": dict(reference.settings),
    }
    write_table(out / "poses.csv", rows)
    write_json(out / "pose_metrics.json", document)
    terminal.say(f"written to {out}: pose_metrics.json, poses.csv")
    return 0


def choose_photos(scene: Scene, reference: Reference, wanted: Photos) -> tuple[str, list[Photo]]:
    """Which photos (test or held-out) are meant, and those of them whose true cameras are known.

    Raises: InputError where there are none.
    """
    from prepare.errors import InputError

    test = [
        Photo(q.name, q.image_path, q.label, q.world_to_cam)
        for q in scene.queries
        if q.world_to_cam is not None
    ]
    paths = {view.name: view.image_path for view in scene.views}
    held_out = [
        Photo(view.name, paths[view.name], "good", view.camera.world_to_cam)
        for view in reference.views
        if view.held_out and view.name in paths
    ]
    if wanted != "held-out" and test:
        return "test", test
    if wanted != "test" and held_out:
        return "held-out", held_out
    if wanted == "test":
        raise InputError(
            f"{scene.folder}: no test photos with known cameras; try --photos held-out, or prepare the scene "
            "from a dataset that gives them"
        )
    none = "nor test photos with known cameras" if wanted == "auto" else "that are still there"
    raise InputError(f"{scene.folder}: no views held out of the fit {none}; name the scene with --scene")


def _from_the_photo_alone(inspector: Inspector, photo: Photo, image: ViewImage) -> Tried:
    from detect.pose_metrics import NO_CAMERA, PoseResult
    from detect.verdict import no_part_verdict

    loaded = inspector.loaded
    located = inspector.locate(image)
    if located is None:
        reason = no_part_verdict(loaded.calibration.belief.least_part_share).reasons[0]
        return Tried(photo, None, None, PoseResult(NO_CAMERA, False, 0.0), 0.0, reason)
    error = _error(loaded.reference, located.camera, photo)
    result = PoseResult(error, located.believed, sum(located.seconds.values()))
    return Tried(photo, None, None, result, located.belief, "; ".join(located.reasons))


def _from_a_start(inspector: Inspector, photo: Photo, image: ViewImage, start: int, seed: int) -> Tried:
    """Refined from a perturbed camera: no start is searched for, and no belief is formed."""
    import hashlib
    import time

    import torch

    from detect.pose_metrics import PoseResult, perturbed_start
    from pose.pyramid import photo_pyramid
    from pose.refine_adam import SPLATPOSE, AdamConfig, refine_adam
    from pose.refine_gauss_newton import refine_levenberg
    from splatad.finder import over_background

    assert image.camera is not None
    loaded, config = inspector.loaded, inspector.finder.config
    reference = loaded.reference
    background, pivot = reference.background, reference.volume.centre
    drawn = hashlib.sha256(f"{seed}:{photo.name}:{start}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(drawn[:7], "big"))
    matrix = perturbed_start(photo.world_to_cam, pivot, reference.distance, generator)
    camera = image.camera.moved(matrix.to(torch.float32))
    began = time.perf_counter()
    rgb = over_background(image, background)
    pyramid = photo_pyramid(rgb)
    shared = (camera, background, pivot, reference.options)
    if config.refine == "levenberg":
        refined = refine_levenberg(loaded.levels, pyramid, *shared, config.levenberg)
    else:
        recipe = SPLATPOSE if config.refine == "splatpose" else AdamConfig()
        refined = refine_adam(loaded.levels, pyramid[-1], *shared, recipe)
    seconds = time.perf_counter() - began
    result = PoseResult(_error(reference, refined.camera, photo), None, seconds)
    return Tried(photo, start, _error(reference, camera, photo), result, None, "")


def _error(reference: Reference, camera: Camera, photo: Photo) -> PoseError:
    from detect.pose_metrics import NO_CAMERA, pose_error

    found = camera.world_to_cam.cpu().double()
    if not bool(found.isfinite().all()):  # Adam may run away
        return NO_CAMERA
    return pose_error(
        found, photo.world_to_cam.double(), reference.volume.centre.double(), reference.distance
    )


def _row(protocol: str, refine: str, tried: Tried) -> dict[str, object]:
    """One line of poses.csv."""
    error, start = tried.result.error, tried.start_error
    return {
        "protocol": protocol,
        "refine": refine,
        "photo": tried.photo.name,
        "label": tried.photo.label,
        "start": "" if tried.start is None else tried.start,
        "start_rotation_deg": "" if start is None else f"{start.rotation_deg:.4f}",
        "start_scaled_distance": "" if start is None else f"{start.scaled_distance:.4f}",
        "rotation_error_deg": f"{error.rotation_deg:.6g}",
        "centre_distance": f"{error.centre_distance:.6g}",
        "scaled_distance": f"{error.scaled_distance:.6g}",
        "shift_percent": f"{error.shift_percent:.6g}",
        "believed": "" if tried.result.believed is None else tried.result.believed,
        "belief": "" if tried.belief is None else f"{tried.belief:.4f}",
        "seconds": f"{tried.result.seconds:.3f}",
        "reason": tried.reason,
    }


def _print_tables(
    terminal: Terminal, title: str, protocol: str, by_refine: dict[Refine, PoseSummary]
) -> None:
    from rich.table import Table

    from detect.pose_metrics import INERF_DISTANCE, PUBLISHED, WRONG_DEG

    attempts = next(iter(by_refine.values())).attempts
    terminal.say(f"{title}, protocol {protocol}, {attempts} attempts: area under the recall curve, percent")
    areas = Table()
    areas.add_column("", no_wrap=True)
    for name in ("5°", "10°", "20°", "0.05", "0.1", "0.2"):
        areas.add_column(name, justify="right", no_wrap=True)
    for refine, summary in by_refine.items():
        values = [*summary.auc_deg.values(), *summary.auc_distance.values()]
        areas.add_row(f"splatad {refine}", *(f"{value:.2f}" for value in values), style="bold")
    if protocol == "retrieval":
        areas.add_section()
        for row in PUBLISHED:
            values = [*row.auc_deg, *row.auc_distance]
            areas.add_row(f"{row.method} ({row.setting})", *(f"{value:.2f}" for value in values))
    terminal.print(areas)
    terminal.say(
        f"Degrees: true angle of the turn. Distance of the camera centres, scaled to cameras {INERF_DISTANCE} from the part."
    )
    if protocol == "retrieval":
        terminal.say(
            "Published rows: PIAD's Table 6, quoted; other objects, and its angle leaves out the roll."
        )

    errors = Table()
    errors.add_column("", no_wrap=True)
    for name in ("deg median", "mean", "95 %", "max", "< 5°", "shift % median", "95 %", "< 0.05", "s"):
        errors.add_column(name, justify="right")
    for refine, summary in by_refine.items():
        turn, shift = summary.rotation_deg, summary.shift_percent
        errors.add_row(
            refine,
            *(f"{turn[key]:.3f}" for key in ("median", "mean", "p95", "max")),
            f"{summary.under_5_deg:.1f} %",
            *(f"{shift[key]:.3f}" for key in ("median", "p95")),
            f"{summary.under_005_distance:.1f} %",
            f"{summary.seconds_median:.2f}",
        )
    terminal.print(errors)
    for refine, summary in by_refine.items():
        if summary.believed is not None:
            terminal.say(
                f"{refine}: {summary.believed:.1f} % believed; unflagged errors (believed, off by more than "
                f"{WRONG_DEG:g}°): {summary.unflagged_errors} of {summary.attempts}; right but not believed: "
                f"{summary.flagged_right}"
            )
    terminal.say("")


def plain(value: Any) -> Any:
    """Nested plain values with None for infinity, which JSON does not have."""
    import math

    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
