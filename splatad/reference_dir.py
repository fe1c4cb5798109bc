"""A reference folder as the commands use it: splats, pose index, residual statistics and calibration together."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from detect.anomaly_map import DifferenceDetector
from detect.calibrate import Calibration, calibrate, calibrate_belief, load_calibration, save_calibration
from detect.expected import (
    HELD_OUT_WEIGHT,
    ResidualSums,
    load_expected,
    residual_sums,
    save_expected,
)
from detect.features import detector_name, difference_of
from pose.index import PoseIndex, build_index, load_index, save_index
from pose.keypoints import extractor
from pose.landmarks import Landmarks, build_landmarks, load_landmarks, save_landmarks
from pose.locate import BeliefLimits, Located, locate
from pose.pyramid import SplatLevels
from prepare.errors import InputError, UsageError
from recon.fit import Photo
from recon.rasterize import RasterOptions, rasterize
from recon.reference import Reference, load_reference, save_reference
from splatad.workspace import Workspace

LANDMARKS = "landmarks.safetensors"
SPLATS, INDEX, EXPECTED, CALIBRATION = (
    "splats.ply",
    "index.safetensors",
    "expected.safetensors",
    "calibration.json",
)


@dataclass(frozen=True)
class LoadedReference:
    """Everything an inspection needs, in memory once."""

    reference: Reference
    levels: SplatLevels
    index: PoseIndex
    detector: DifferenceDetector
    calibration: Calibration
    landmarks: Landmarks | None = None  # where `splatad fit --keypoints` made them


def load_whole_reference(folder: Path, device: torch.device | None = None) -> LoadedReference:
    """The reference in `folder`, its splats on `device`.

    Raises: InputError where a part of it is missing or damaged.
    """
    reference = load_reference(folder)
    if device is not None and device.type != "cpu":
        reference = _on_device(reference, device)
    calibration = load_calibration(folder / CALIBRATION)
    difference = difference_of(calibration.detector)
    expected = load_expected(folder / EXPECTED)
    if len(expected.seen) != len(reference.gaussians):  # the rasteriser would read beyond them
        raise InputError(
            f"{folder / EXPECTED}: of {len(expected.seen)} splats, but {SPLATS} holds {len(reference.gaussians)}: "
            "files of two fits are mixed; run `splatad fit` again"
        )
    return LoadedReference(
        reference,
        SplatLevels(reference.gaussians),
        load_index(folder / INDEX),
        DifferenceDetector(reference, expected, difference),
        calibration,
        load_landmarks(folder / LANDMARKS) if (folder / LANDMARKS).exists() else None,
    )


def finish_reference(
    folder: Path,
    reference: Reference,
    photos: Sequence[Photo],
    false_alarm_rate: float,
    *,
    features: str | None = None,
    keypoints: str | None = None,
    on_step: Callable[[str, int, int], None] | None = None,
) -> LoadedReference:
    """Index, residual statistics and calibration of a fitted reference, written with it into `folder`.

    Each held-out photo is located and scored as a query would be, with its own residuals taken out of the statistics.
    `features` names an ImageNet backbone whose channel joins the weights-free ones, `keypoints` an extractor of local
    features that give rough cameras beside the small renders. `on_step` is told (stage, done, all).

    Raises: MissingPartError where weights or a package for these are not there.
    """
    detector_id = detector_name(features)
    difference = difference_of(detector_id)

    def tell(stage: str) -> Callable[[int, int], None]:
        return lambda done, total: on_step(stage, done, total) if on_step is not None else None

    levels = SplatLevels(reference.gaussians)
    index = build_index(reference, levels, on_view=tell("pose index"))
    landmarks = None
    if keypoints is not None:
        landmarks = build_landmarks(reference, extractor(keypoints), on_view=tell("landmarks"))
    kept = [view.held_out for view in reference.views]
    total: ResidualSums | None = None
    own: dict[int, ResidualSums] = {}
    scored = [i for i, held_out in enumerate(kept) if held_out] or list(range(len(photos)))
    for i, photo in enumerate(photos):
        sums = residual_sums(reference, photo, difference)
        weight = HELD_OUT_WEIGHT if kept[i] else 1.0
        total = sums.plus(sums, weight - 1.0) if total is None else total.plus(sums, weight)
        if i in scored:
            own[i] = sums.plus(sums, weight - 1.0)
        tell("what good photos leave")(i + 1, len(photos))
    if total is None:
        raise InputError(f"reference {reference.name}: no photos; fit it again")

    located: list[Located] = []
    scores: list[float] = []
    names: list[str] = []
    open_limits = BeliefLimits(
        least_inliers=0.0, least_overlap=0.0, least_in_frame=0.0, most_sigma_deg=float("inf")
    )
    for done, i in enumerate(scored):
        photo = photos[i]
        found = locate(
            reference,
            index,
            levels,
            photo.rgb,
            photo.alpha,
            photo.camera,
            background=photo.background,
            limits=open_limits,
            landmarks=landmarks,
        )
        if found is not None:
            detector = DifferenceDetector(reference, total.plus(own[i], -1.0).expected(), difference)
            device = reference.gaussians.device
            camera = found.camera.moved(found.camera.world_to_cam.to(device))
            options = RasterOptions(antialiased=reference.options.antialiased, depth=True)
            with torch.no_grad():
                render = rasterize(reference.gaussians, camera, photo.background.to(device), options=options)
            located.append(found)
            scores.append(detector.anomaly_map(photo.rgb.to(device), render, camera).score)
            names.append(photo.name)
        tell("calibration")(done + 1, len(scored))
    calibration = calibrate(
        scores, names, false_alarm_rate, calibrate_belief(located), held_out=any(kept), detector=detector_id
    )
    expected = total.expected()
    save_index(folder / INDEX, index)
    if landmarks is None:
        (folder / LANDMARKS).unlink(missing_ok=True)  # of an earlier fit
    else:
        save_landmarks(folder / LANDMARKS, landmarks)
    save_expected(folder / EXPECTED, expected)
    save_calibration(folder / CALIBRATION, calibration)
    save_reference(folder, reference)
    return LoadedReference(
        reference, levels, index, DifferenceDetector(reference, expected, difference), calibration, landmarks
    )


def find_reference(workspace: Workspace, name: str | None, folder: Path | None) -> Path:
    """The folder of the reference meant by --class or --reference, or of the only one there is.

    Raises: UsageError for an unknown name (nearest ones offered) or when several are there and none was named.
    """
    if folder is not None:
        return folder
    known = workspace.reference_names()
    if name is None:
        if len(known) == 1:
            return workspace.reference(known[0])
        if not known:
            raise UsageError(f"{workspace.root}: no fitted reference; run `splatad fit --class NAME` first")
        raise UsageError(f"{workspace.root}: several references ({', '.join(known)}); name one with --class")
    if name not in known:
        raise UsageError(f"--class {name}: no such reference in {workspace.root}{_nearest(name, known)}")
    return workspace.reference(name)


def find_scene(workspace: Workspace, name: str | None, folder: Path | None) -> Path:
    """The folder of the scene meant by --class or --scene, or of the only prepared one.

    Raises: UsageError as `find_reference`; InputError for a folder that is not there.
    """
    if folder is not None:
        if not folder.exists():
            raise InputError(f"{folder}: no such folder; give one with a transforms.json")
        return folder
    known = workspace.scene_names()
    if name is None:
        if len(known) == 1:
            return workspace.scene(known[0])
        if not known:
            raise UsageError(
                f"{workspace.root}: no prepared scene; run `splatad prepare ...` first, or give --scene"
            )
        raise UsageError(f"{workspace.root}: several scenes ({', '.join(known)}); name one with --class")
    if name not in known:
        raise UsageError(f"--class {name}: no such scene in {workspace.root}{_nearest(name, known)}")
    return workspace.scene(name)


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; there are: {', '.join(known)}" if known else "; prepare and fit it first"


def _on_device(reference: Reference, device: torch.device) -> Reference:
    from dataclasses import replace

    return replace(reference, gaussians=reference.gaussians.to(device))


def choose_device(name: str) -> torch.device:
    """The device meant by --device: `auto` is CUDA where torch sees one and gsplat is there, else the CPU.

    Raises: UsageError, MissingPartError.
    """
    import importlib.util

    from prepare.errors import MissingPartError

    has_cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_cuda and importlib.util.find_spec("gsplat") else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    if name.split(":")[0] == "cuda":
        if not has_cuda:
            raise MissingPartError(
                "--device cuda: torch sees no CUDA GPU; use --device cpu, or install a CUDA build of torch"
            )
        return torch.device(name)
    raise UsageError(f"--device {name}: unknown; use auto, cpu or cuda")
