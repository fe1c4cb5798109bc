"""CFM on fitted references: `train cfm` into the reference's folder, and references that judge by it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from detect.anomaly_map import DifferenceDetector
from detect.cfm.splat_checkpoint import load_splat_form, save_splat_form
from detect.cfm.splat_form import JoinedDetector, SplatFormConfig, SplatFormDetector, calibration_of
from detect.cfm.splat_train import train_splat_form
from prepare.errors import InputError, UsageError
from prepare.registered import CLASS_FILE
from prepare.scene import load_scene
from recon.fit import Photo
from recon.surroundings import is_cluttered
from splatad.fit_shown import cut_photos, read_photos
from splatad.reference_dir import LoadedReference, choose_device, load_whole_reference
from splatad.run_record import versions
from splatad.terminal import Terminal
from splatad.threads import leave_cores_to_the_kernel
from splatad.workspace import Workspace

if TYPE_CHECKING:
    from splatad.commands.train_cfm import TrainCfm

NETWORKS = "cfm.safetensors"
REFERENCE_FILE = "reference.json"
DetectorName = Literal["difference", "cfm", "difference+cfm"]
OF_POINTS = (  # flags of `train cfm` that a reference without points has no use for
    "preset", "shape", "blocks", "deep", "shots", "drawn", "epochs", "batch", "pixels", "masked", "folds",
    "false_alarm_rate", "check_every", "out", "features",
)  # fmt: skip


def reference_meant(workspace: Workspace, given: str) -> Path | None:
    """The folder of the fitted reference that --class of `train cfm` means; None where it means photos with points."""
    for folder in (Path(given), workspace.scene(given)):
        if (folder / CLASS_FILE).is_file():
            return None
    for folder in (Path(given), workspace.reference(given)):
        if (folder / REFERENCE_FILE).is_file():
            return folder
    return None


def train_command(folder: Path) -> str:
    """What trains the networks of the reference in `folder`: by name where it lies in a workspace."""
    name = folder.name if folder.parent.name == "references" else str(folder)
    return f"splatad train cfm --class {name}"


def with_detector(loaded: LoadedReference, folder: Path, name: DetectorName) -> LoadedReference:
    """`loaded`, the reference in `folder`, judging by another detector and its limit.

    Raises: InputError where CFM was not trained on it, or on other splats; MissingPartError without its features' weights.
    """
    if name == "difference":
        return loaded
    reference, difference = loaded.reference, loaded.detector
    assert isinstance(difference, DifferenceDetector)
    form = load_splat_form(folder / NETWORKS, reference.gaussians, train_command(folder))
    networks = SplatFormDetector.open(reference, difference.expected, form)
    calibration = calibration_of(name, form, loaded.calibration, reference)
    detector = networks if name == "cfm" else JoinedDetector(difference, networks)
    return replace(loaded, detector=detector, calibration=calibration)


def reference_photos(loaded: LoadedReference, terminal: Terminal) -> list[Photo]:
    """The photos that the reference was fitted from, as it was.

    Raises: InputError where the scene is gone or another one; UsageError where surroundings were cut away and not kept.
    """
    reference = loaded.reference
    scene = load_scene(Path(reference.scene))
    if [view.name for view in scene.views] != [view.name for view in reference.views]:
        raise InputError(
            f"{scene.folder}: not the photos that {reference.name} was fitted from; fit it again"
        )
    photos = read_photos(scene, reference.size_px, terminal)
    if loaded.whole_scene is not None:
        return cut_photos(photos, loaded.whole_scene.surroundings, reference.options)
    if (
        any(is_cluttered(photo) for photo in photos)
        and not reference.settings.get("keep_background", True)
        and not reference.settings.get("whole", False)
    ):
        raise UsageError(
            f"{reference.name}: the part was told from its surroundings and those were not kept (--no-keep-background); "
            "fit it again"
        )
    return photos


def train_on_reference(command: TrainCfm, folder: Path) -> int:
    """0 once the networks lie in the reference's `folder`.

    Raises: UsageError for flags of photos with points; InputError for a reference without colours or whose scene is gone;
    MissingPartError for weights that are not there.
    """
    config = _config(command)
    device = choose_device(command.device)
    leave_cores_to_the_kernel(device)
    loaded = load_whole_reference(folder, device)
    reference = loaded.reference
    if reference.shape_only:
        raise InputError(f"{folder}: its colours mean nothing (--appearance shape), CFM learns from them")
    file = folder / NETWORKS
    terminal = Terminal()
    terminal.say(
        f"{reference.name}: a fitted reference, its splats take the place of measured points; features {config.photo}"
    )
    if file.is_file():
        try:
            before = load_splat_form(file, reference.gaussians, train_command(folder))
        except InputError as error:
            terminal.say(f"training anew: {error}")
        else:
            if before.config == config:
                terminal.say(f"trained already: {file}")
                return 0
    assert isinstance(loaded.detector, DifferenceDetector)
    began = time.perf_counter()
    photos = reference_photos(loaded, terminal)
    with terminal.stages() as stage:
        form = train_splat_form(
            loaded.detector, photos, config, {"reference": reference.name, "versions": versions()}, stage.to
        )
    save_splat_form(file, form, reference.gaussians)
    terminal.say(f"{len(photos)} views in {time.perf_counter() - began:.0f} s: {file}")
    for name in ("cfm", "difference+cfm"):
        calibration = with_detector(loaded, folder, name).calibration
        terminal.say(f"limit of {name}: {calibration.threshold:.3g}: {calibration.note}")
    terminal.say(
        f"next: splatad detect --detector difference+cfm --reference {folder} --query PHOTO_OR_FOLDER"
    )
    return 0


def _config(command: TrainCfm) -> SplatFormConfig:
    """Raises: UsageError for a flag that is of photos with points alone, or makes no sense."""
    usual = type(command)(class_=command.class_)
    for name in OF_POINTS:
        if getattr(command, name) != getattr(usual, name):
            flag = name.replace("_", "-")
            raise UsageError(
                f"--{flag}: for photos with points; {command.class_} is a fitted reference, which has none"
            )
    if command.steps is not None and command.steps < 1:
        raise UsageError(f"--steps {command.steps}: must be 1 or more")
    if command.rate is not None and not command.rate > 0:
        raise UsageError(f"--rate {command.rate}: must be above 0")
    given = {"photo": command.photo, "steps": command.steps, "rate": command.rate}
    return replace(
        SplatFormConfig(seed=command.seed),
        **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
    )


def judges_by_splats(
    workspace: Workspace, network: Path | None, names: tuple[str, ...], has_points: bool
) -> bool:
    """Whether `detect --detector cfm` means fitted references, not photos with points.

    Not where --network or --xyz are given, or a class has a network of points.
    """
    if network is not None or has_points:
        return False
    references = set(workspace.reference_names())
    if not names:
        return bool(references) and not any((workspace.root / "networks").glob(f"*-cfm*/{NETWORKS}"))
    return set(names) <= references and not any(
        any((workspace.root / "networks").glob(f"{name}-cfm*/{NETWORKS}")) for name in names
    )


def open_reference(folder: Path, device: torch.device, name: DetectorName) -> LoadedReference:
    """The reference in `folder` judging by the detector of that name. Raises: as `with_detector`."""
    return with_detector(load_whole_reference(folder, device), folder, name)
