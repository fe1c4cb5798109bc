"""A reference folder as the commands use it: splats, pose index, residual statistics and calibration together."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from detect.anomaly_map import Detector, DifferenceDetector
from detect.calibrate import (
    Calibration,
    Difficulty,
    ScoreSource,
    attainable_rate,
    calibrate,
    calibrate_belief,
    fit_difficulty,
    load_calibration,
    save_calibration,
)
from detect.comparer import load_comparers, save_comparers
from detect.detectors import RULE, detector_of, is_learned
from detect.expected import NOTHING_EXPECTED, load_expected, save_expected
from detect.good_photos import ASTRAY_DEG, look_at_good_photos, score_good_photos, train_on_good_photos
from detect.train_comparer import TrainConfig
from pose.index import PoseIndex, build_index, load_index, save_index
from pose.keypoints import extractor
from pose.landmarks import Landmarks, build_landmarks, load_landmarks, save_landmarks
from pose.pyramid import SplatLevels
from prepare.errors import InputError, UsageError
from recon.fit import Photo
from recon.gaussians import Gaussians
from recon.reference import Reference, load_reference, save_reference
from recon.surroundings import Surroundings, load_surroundings, save_surroundings
from splatad.workspace import Workspace

LANDMARKS = "landmarks.safetensors"
COMPARER = "comparer.safetensors"
SURROUNDINGS, SURROUNDINGS_INDEX = "surroundings.safetensors", "surroundings_index.safetensors"
SPLATS, INDEX, EXPECTED, CALIBRATION = (
    "splats.ply",
    "index.safetensors",
    "expected.safetensors",
    "calibration.json",
)


@dataclass(frozen=True)
class WholeScene:
    """The part in its surroundings: what finds the camera of a photo taken in the same place, and the part in it."""

    surroundings: Surroundings
    reference: Reference  # the part's, with the whole scene's splats over black
    levels: SplatLevels
    index: PoseIndex


@dataclass(frozen=True)
class LoadedReference:
    """Everything an inspection needs, in memory once."""

    reference: Reference
    levels: SplatLevels
    index: PoseIndex
    detector: Detector  # a DifferenceDetector, but where `splatad.cfm_splats.with_detector` put another
    calibration: Calibration
    landmarks: Landmarks | None = None  # where `splatad fit --keypoints` made them
    whole_scene: WholeScene | None = None  # of a reference whose photos were cluttered


def load_whole_reference(folder: Path, device: torch.device | None = None) -> LoadedReference:
    """The reference in `folder`, its splats on `device`.

    Raises: InputError where a part of it is missing or damaged.
    """
    reference = load_reference(folder)
    if device is not None and device.type != "cpu":
        reference = _on_device(reference, device)
    calibration = load_calibration(folder / CALIBRATION)
    comparers = load_comparers(folder / COMPARER) if is_learned(calibration.detector) else ()
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
        detector_of(calibration.detector, reference, expected, comparers),
        calibration,
        load_landmarks(folder / LANDMARKS) if (folder / LANDMARKS).exists() else None,
        _load_whole_scene(folder, reference),
    )


def _load_whole_scene(folder: Path, reference: Reference) -> WholeScene | None:
    if not (folder / SURROUNDINGS).exists():
        return None
    surroundings = load_surroundings(folder / SURROUNDINGS)
    return _whole_scene(surroundings, reference, load_index(folder / SURROUNDINGS_INDEX))


def _whole_scene(
    surroundings: Surroundings,
    reference: Reference,
    index: PoseIndex | None = None,
    on_view: Callable[[int, int], None] | None = None,
) -> WholeScene:
    """`surroundings` on the reference's device; its index is built where there is none yet."""
    gaussians = surroundings.gaussians.to(reference.gaussians.device)
    views = tuple(replace(view, background=torch.zeros(3)) for view in reference.views)
    whole = replace(reference, gaussians=gaussians, views=views)
    levels = SplatLevels(gaussians)
    index = index or build_index(whole, levels, on_view=on_view)
    return WholeScene(replace(surroundings, gaussians=gaussians), whole, levels, index)


def finish_reference(
    folder: Path,
    reference: Reference,
    photos: Sequence[Photo],
    false_alarm_rate: float | None,
    *,
    unseen: Sequence[Gaussians | None] | None = None,
    detector: str = RULE,
    keypoints: str | None = None,
    surroundings: Surroundings | None = None,
    on_step: Callable[[str, int, int], None] | None = None,
) -> LoadedReference:
    """Index, residual statistics and calibration of a fitted reference, written with it into `folder`.

    Each good photo is located and scored as a query would be, by splats that have not seen it: `unseen[i]` of
    `recon.fit.cross_fit`, or those of the reference where it was held out. `detector` is a name of `detect.detectors`,
    `keypoints` an extractor of local features that give rough cameras beside the small renders, `surroundings` what the part
    was photographed among. `on_step` is told (stage, done, all).

    Raises: MissingPartError where weights or a package for these are not there; UsageError for a false-alarm rate that the
    photos cannot support.
    """

    def tell(stage: str) -> Callable[[int, int], None]:
        return lambda done, total: on_step(stage, done, total) if on_step is not None else None

    levels = SplatLevels(reference.gaussians)
    index = build_index(reference, levels, on_view=tell("pose index"))
    landmarks = None
    if keypoints is not None:
        landmarks = build_landmarks(reference, extractor(keypoints), on_view=tell("landmarks"))
    unseen = unseen or [None] * len(photos)
    judge, calibration = calibrate_reference(
        reference, index, photos, unseen, false_alarm_rate, detector, on_step
    )
    save_index(folder / INDEX, index)
    if landmarks is None:
        (folder / LANDMARKS).unlink(missing_ok=True)  # of an earlier fit
    else:
        save_landmarks(folder / LANDMARKS, landmarks)
    whole = None
    if surroundings is None:
        for file in (SURROUNDINGS, SURROUNDINGS_INDEX):
            (folder / file).unlink(missing_ok=True)  # likewise
    else:
        whole = _whole_scene(surroundings, reference, on_view=tell("index of the surroundings"))
        save_index(folder / SURROUNDINGS_INDEX, whole.index)
        save_surroundings(folder / SURROUNDINGS, surroundings)
    save_detector(folder, judge, calibration)
    save_reference(folder, reference)
    return LoadedReference(reference, levels, index, judge, calibration, landmarks, whole)


def calibrate_reference(
    reference: Reference,
    index: PoseIndex,
    photos: Sequence[Photo],
    unseen: Sequence[Gaussians | None],
    false_alarm_rate: float | None,
    detector: str,
    on_step: Callable[[str, int, int], None] | None = None,
) -> tuple[DifferenceDetector, Calibration]:
    """The detector, with what good photos leave and its networks, and its threshold. See `finish_reference`."""

    def tell(stage: str) -> Callable[[int, int], None]:
        return lambda done, total: on_step(stage, done, total) if on_step is not None else None

    judge = detector_of(detector, reference, NOTHING_EXPECTED)
    good = look_at_good_photos(judge, photos, unseen, tell("what good photos leave"))
    if is_learned(detector):
        networks = train_on_good_photos(
            judge, photos, unseen, good, TrainConfig(), tell("made-up defects"), tell("learning to compare")
        )
        judge = replace(judge, comparers=networks)
    scored = score_good_photos(judge, index, photos, unseen, good, tell("calibration"))
    if not scored.scores:
        raise InputError(
            f"reference {reference.name}: in none of its {len(scored.unfit)} photos was the camera found again within "
            f"{ASTRAY_DEG:g} degrees; the splats are too poor: more photos, or more --steps"
        )
    source: ScoreSource = "held-out"
    if any(one is not None for one in unseen):
        source = "cross-fitted"
    elif not any(good.new):
        source = "fitted"
    rate = false_alarm_rate
    if rate is not None and scored.unfit:
        # The caller has checked the rate against all photos; some were not found again, and it does not hang on these.
        rate = max(rate, attainable_rate(len(scored.scores)))
    belief = calibrate_belief(scored.located)
    difficulty = Difficulty()
    if source != "fitted":
        difficulty = fit_difficulty(scored.scores, scored.angles_deg, reference.usual_view_deg)
    scores = [s / difficulty.at(angle) for s, angle in zip(scored.scores, scored.angles_deg, strict=True)]
    calibration = calibrate(
        scores, scored.names, rate, belief,
        source=source, detector=detector, difficulty=difficulty, lost=len(scored.unfit),
    )  # fmt: skip
    return replace(judge, expected=good.expected), calibration


def save_detector(folder: Path, detector: DifferenceDetector, calibration: Calibration) -> None:
    """What good photos leave, the networks where there are any, and the threshold, which comes last."""
    save_expected(folder / EXPECTED, detector.expected)
    if detector.comparers:
        save_comparers(folder / COMPARER, detector.comparers)
    save_calibration(folder / CALIBRATION, calibration)
    if not detector.comparers:
        (folder / COMPARER).unlink(missing_ok=True)  # of an earlier fit


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
