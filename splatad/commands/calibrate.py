"""`splatad calibrate`: the threshold of a fitted reference for a chosen false-alarm rate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    import torch

    from detect.calibrate import Calibration
    from splatad.reference_dir import LoadedReference
    from splatad.terminal import Terminal

# Nothing here imports torch: the command line reads this class to print its help.


@dataclass(frozen=True)
class Calibrate:
    """Choose how many good photos may be called NG, and set the threshold by it.

    Takes the scores that `splatad fit` found, at once; with --folds scores every reference photo anew by fits that have
    not seen it; with --good scores photos of good parts from your own line, which say most. Detection uses the result from
    then on.
    """

    class_: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """Name of a fitted reference; the only one if not given."""
    reference: Path | None = None
    """A reference folder instead of one of the workspace."""
    workspace: Path | None = None
    """Where references lie; else $SPLATAD_WORKSPACE, else ./splatad-work."""
    false_alarm_rate: float | None = None
    """Share of good photos that may be called NG: 0.05, or what the photos support if that is more. Rates that the number
    of good photos cannot support are refused."""
    folds: int = 0
    """Cross-fit: so many more fits, each without a part of the reference's photos, which it then scores. Needs the scene."""
    map: Literal["comparer", "difference"] = "comparer"
    """With --folds, what judges the differences: networks that learn this part's gloss and edges from the fits, or the
    fixed rule."""
    good: tuple[Path, ...] = ()
    """Photos of good parts, or folders of them, that are not among the reference's."""
    dry_run: bool = False
    """Show what rates are attainable and the thresholds they give; change nothing."""
    device: str = "auto"
    """auto, cpu or cuda."""


Command = Calibrate
SHOWN_RATES = (0.01, 0.02, 0.05, 0.1, 0.2)


def run(config: Calibrate) -> int:
    """0 once the new threshold is written (or, with --dry-run, shown).

    Raises: UsageError for a rate that cannot be had; InputError for photos or a reference that cannot be read.
    """
    from detect.calibrate import recalibrated, save_calibration
    from prepare.errors import UsageError
    from splatad.reference_dir import (
        CALIBRATION,
        choose_device,
        find_reference,
        load_whole_reference,
        save_detector,
    )
    from splatad.terminal import Terminal
    from splatad.threads import leave_cores_to_the_kernel
    from splatad.workspace import open_workspace

    if config.folds and config.good:
        raise UsageError(
            "--folds and --good: give one; the scores come from the reference's photos or from yours"
        )
    rate = config.false_alarm_rate
    if rate is not None and not 0.0 < rate < 1.0:
        raise UsageError(f"--false-alarm-rate {rate}: must lie between 0 and 1, for example 0.05")
    folder = find_reference(open_workspace(config.workspace), config.class_, config.reference)
    device = choose_device(config.device)
    leave_cores_to_the_kernel(device)
    terminal = Terminal()
    detector = None
    if config.good:
        calibration = _from_good(config, folder, device, terminal)
    elif config.folds:
        detector, calibration = _cross_fitted(config, folder, device, terminal)
    else:
        calibration = recalibrated(load_whole_reference(folder, device).calibration, rate)
    _show(calibration, terminal)
    if config.dry_run:
        return 0
    if detector is not None:
        save_detector(folder, detector, calibration)
    else:
        save_calibration(folder / CALIBRATION, calibration)
    terminal.say(f"threshold {calibration.threshold:.3g}: {calibration.note}")
    terminal.say(f"written to {folder / CALIBRATION}")
    return 0


def _from_good(config: Calibrate, folder: Path, device: torch.device, terminal: Terminal) -> Calibration:
    """From the scores of the user's own good photos."""
    from detect.calibrate import calibrate
    from prepare.errors import InputError
    from prepare.image import list_images
    from splatad.inspector import Inspector

    inspector = Inspector.open(folder, device)
    paths = list(dict.fromkeys(path for given in config.good for path in list_images(given)))
    scores, names, lost = [], [], []
    with terminal.bar("scoring good photos", len(paths)) as bar:
        for path in paths:
            inspection = inspector.inspect(path)
            if inspection.located is None or not inspection.located.believed or inspection.score is None:
                lost.append(path.name)
            else:
                scores.append(inspection.score)
                names.append(path.name)
            bar.advance()
    if lost:
        terminal.say(
            f"{len(lost)} of {len(paths)} photos are CANNOT TELL and do not count: "
            + ", ".join(lost[:3]) + (", ..." if len(lost) > 3 else "")
        )  # fmt: skip
    if not scores:
        raise InputError(f"{config.good[0]}: in none of the {len(paths)} photos was the part found")
    held = inspector.loaded.calibration
    return calibrate(
        scores, names, config.false_alarm_rate, held.belief,
        source="given", detector=held.detector, difficulty=held.difficulty, lost=len(lost),
    )  # fmt: skip


def _cross_fitted(config: Calibrate, folder: Path, device: torch.device, terminal: Terminal):
    """From the reference's own photos, each scored by a fit that has not seen it; and the detector made with these."""
    import dataclasses
    import shutil

    from detect.calibrate import check_attainable
    from detect.detectors import LEARNED, RULE, detector_name
    from prepare.errors import InputError, UsageError
    from prepare.scene import load_scene
    from recon.appearance import flattened_photo
    from recon.fit import FitConfig, unseen_of
    from recon.surroundings import is_cluttered
    from splatad.fit_shown import cut_photos, fit_folds, read_photos, without_colour
    from splatad.reference_dir import calibrate_reference, load_whole_reference

    loaded: LoadedReference = load_whole_reference(folder, device)
    reference = loaded.reference
    scene = load_scene(Path(reference.scene))
    if [view.name for view in scene.views] != [view.name for view in reference.views]:
        raise InputError(f"{scene.folder}: not the photos that {folder} was fitted from; fit it again")
    if config.folds < 2 or len(scene.views) < 2 * config.folds:
        raise UsageError(
            f"--folds {config.folds}: with {len(scene.views)} photos from 2 to {len(scene.views) // 2}"
        )
    if config.false_alarm_rate is not None:
        check_attainable(len(scene.views), config.false_alarm_rate)
    settings = reference.settings.get("fit", {})
    fields = {field.name for field in dataclasses.fields(FitConfig)}
    fit_config = FitConfig(**{key: value for key, value in settings.items() if key in fields})
    photos = read_photos(scene, fit_config.size_px, terminal)
    if loaded.whole_scene is not None:
        photos = cut_photos(photos, loaded.whole_scene.surroundings, reference.options)
    elif (
        any(is_cluttered(photo) for photo in photos)
        and not reference.settings.get("keep_background", True)
        and not reference.settings.get("whole", False)
    ):
        raise UsageError(
            "--folds: the part was told from its surroundings and those were not kept (--no-keep-background); fit it again"
        )
    features = loaded.calibration.detector.partition("+")[2]
    checkpoints = folder / "cross-fit"
    fits = fit_folds(scene, photos, fit_config, config.folds, checkpoints, device, terminal)
    if reference.shape_only:
        fits = without_colour(fits, photos)
        photos = [flattened_photo(photo) for photo in photos]
    with terminal.stages() as stage:
        detector, calibration = calibrate_reference(
            reference,
            loaded.index,
            photos,
            unseen_of(fits, len(photos)),
            config.false_alarm_rate,
            detector_name(LEARNED if config.map == LEARNED else RULE, features or None),
            on_step=stage.to,
        )
    if not config.dry_run:
        shutil.rmtree(checkpoints, ignore_errors=True)
    return detector, calibration


def _show(calibration: Calibration, terminal: Terminal) -> None:
    """What rates the good photos support, and the threshold each gives."""
    from rich.table import Table

    from detect.calibrate import attainable_rate, rate_interval, recalibrated

    n = len(calibration.good_scores)
    table = Table(title=f"{n} good photos ({calibration.source}): rates from {attainable_rate(n):.2%} up")
    for title in ("false-alarm rate", "threshold", "95 % interval of its true rate"):
        table.add_column(title, justify="right")
    for rate in sorted({*SHOWN_RATES, calibration.false_alarm_rate}):
        if rate < attainable_rate(n):
            table.add_row(f"{rate:.1%}", "-", f"needs {round(1 / rate) - 1} good photos")
            continue
        low, high = rate_interval(n, rate)
        chosen = "bold" if rate == calibration.false_alarm_rate else ""
        threshold = recalibrated(calibration, rate).threshold
        table.add_row(f"{rate:.1%}", f"{threshold:.3g}", f"{low:.1%} to {high:.1%}", style=chosen)
    terminal.print(table)
