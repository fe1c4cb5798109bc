"""`splatad fit`: photos of a good part become a reference (splats, pose index, calibration)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from collections.abc import Sequence

    import recon.fit
    from recon.fit import Fit as SplatFit
    from recon.gaussians import Gaussians

# Nothing here imports torch: the command line reads this class to print its help.


USUAL_FOLDS = 4


@dataclass(frozen=True)
class Fit:
    """Fit Gaussian splats to a prepared scene and calibrate verdicts on photos kept from the fit.

    A fit that was stopped goes on where it was when the same command is given again.
    """

    class_: Annotated[str | None, tyro.conf.arg(name="class")] = None
    """Name of a prepared scene in the workspace, for example 01Gorilla; the only one if not given."""
    scene: Path | None = None
    """A folder with a transforms.json instead of a scene of the workspace."""
    name: str | None = None
    """Name of the reference; the scene's if not given."""
    workspace: Path | None = None
    """Where references are written; else $SPLATAD_WORKSPACE, else ./splatad-work."""
    from_splats: Path | None = None
    """Take the splats of this .ply (3DGS's layout, in the scene's world) as they are instead of fitting any."""
    dataparser_transforms: Path | None = None
    """With --from-splats of a nerfstudio training: the dataparser_transforms.json beside its config.yml, which leads from the
    world of its model back to the scene's."""
    preset: Literal["fast", "default", "best", "mesh"] | None = None
    """How much time to spend: fast for a first look, best for the record, mesh for what `splatad prepare mesh` made, where
    it is the usual one; else default. The flags below override it."""
    steps: int | None = None
    """Optimisation steps."""
    splats: int | None = None
    """Most splats the reference may hold."""
    size_px: int | None = None
    """Longer side to which photos are scaled down, px; defects smaller than a pixel then are lost."""
    sh_degree: Literal[0, 1, 2, 3] | None = None
    """Degree of the view-dependent colour: 0 matt, 3 glossy."""
    appearance: Literal["auto", "colour", "shape"] = "auto"
    """Whether the reference's colours are the part's. shape: only its outline is compared, for references without colours of
    their own (a bare CAD file) and photos on a plain background. auto: as the prepared scene says, else colour."""
    whole: bool = False
    """Inspect all that cluttered photos show. Else the part is told from its surroundings, where photos have no masks and no
    plain background: by a fit of everything, the cameras' common focus and the surface that the part rests on."""
    keep_background: bool = True
    """Keep the splats of the surroundings, so that cluttered photos taken in the same place can be inspected."""
    folds: int | None = None
    """Cross-fitting: every photo serves to calibrate, scored by one of so many more fits that have not seen it, and the
    reference itself is fitted to all. 4, and 0 (none) with --preset fast or mesh, or where --held-out-every is given."""
    held_out_every: int | None = None
    """Without --folds, every so manieth photo is kept from the fit to calibrate the threshold (8); 0 keeps none."""
    exposure: bool | None = None
    """Fit each photo's gain and bias: for real photos with automatic exposure."""
    antialiased: bool | None = None
    """Render right from other distances than the photos'."""
    seed: int = 0
    """Seed of every random choice."""
    false_alarm_rate: float | None = None
    """Share of good photos that may be called NG: 0.05, or what the photos support if that is more: n of them, 1 / (n + 1).
    `splatad calibrate` changes it later."""
    map: Literal["comparer", "difference"] | None = None
    """What judges the differences: two small networks that learn this part's gloss and edges from the fits of --folds, or
    a fixed rule. The networks where there are folds."""
    features: str = "none"
    """ImageNet backbone whose view joins the map: none, mobilenet_v2, efficientnet_b4, or a timm name."""
    keypoints: str = "none"
    """Local features that find the camera's rough place beside small renders: none, sift (no weights, needs the photos
    extra to solve for cameras), alike_t, alike_n, alike_l, disk or xfeat. For large parts with much texture."""
    device: str = "auto"
    """auto, cpu or cuda."""
    again: bool = False
    """Fit anew though a finished reference with these settings is there."""


Command = Fit


def run(config: Fit) -> int:
    """0 once the reference is written whole.

    Raises: InputError, UsageError, MissingPartError.
    """
    import shutil
    import time

    from detect.backbones import load_backbone
    from detect.calibrate import load_calibration, recalibrated, save_calibration
    from detect.detectors import LEARNED, RULE, detector_name
    from pose.keypoints import extractor
    from pose.matching import pnp_solver
    from prepare.atomic_write import write_bytes
    from prepare.errors import InputError, UsageError
    from prepare.scene import load_scene
    from recon.appearance import flattened_photo
    from recon.fit import (
        FitProgress,
        fit_of_splats,
        fit_photos,
        held_out_indices,
        initial_cloud,
        resumable_step,
        unseen_of,
    )
    from recon.rasterize import RasterOptions
    from recon.reference import load_reference, reference_from_fit
    from recon.surroundings import is_cluttered
    from splatad.fit_shown import cut_photos, fit_folds, read_photos, tell_part, without_colour
    from splatad.pictures import contact_sheet, to_bytes
    from splatad.reference_dir import CALIBRATION, choose_device, find_scene, finish_reference
    from splatad.run_record import run_settings
    from splatad.terminal import Terminal
    from splatad.threads import leave_cores_to_the_kernel
    from splatad.workspace import open_workspace

    workspace = open_workspace(config.workspace)
    folder = find_scene(workspace, config.class_, config.scene)
    device = choose_device(config.device)
    scene = load_scene(folder)
    given = _given_splats(config, folder)
    name = config.name or scene.name
    if not name or name != Path(name).name or name.startswith("."):
        raise UsageError(f"--name {name!r}: give a plain name, it becomes a folder in the workspace")
    config = dataclasses.replace(config, preset=config.preset or _usual_preset(scene.folder))
    folds = _folds(config, len(scene.views))
    fit_config = _fit_config(config, folds)
    calibrating = (
        len(scene.views) if folds else len(held_out_indices(len(scene.views), fit_config.held_out_every))
    )
    _check_rate(config.false_alarm_rate, calibrating or len(scene.views))
    if config.map == LEARNED and not folds:
        raise UsageError(f"--map {LEARNED}: learns from the fits of --folds; give --folds {USUAL_FOLDS} too")
    detector = detector_name(config.map or (LEARNED if folds else RULE), config.features)
    if config.features != "none":
        load_backbone(config.features)  # says now, not after the fit, where weights are missing
    keypoints = None if config.keypoints == "none" else config.keypoints
    if keypoints is not None:  # likewise
        extractor(keypoints)
        pnp_solver()
    appearance = config.appearance if config.appearance != "auto" else scene.appearance
    settings = run_settings(fit_config, device) | {
        "detector": detector,
        "keypoints": config.keypoints,
        "folds": folds,
        "appearance": appearance,
        "whole": config.whole,
        "keep_background": config.keep_background,
        **({} if given is None else {"from_splats": given.source}),
    }
    target = workspace.reference(name)
    leave_cores_to_the_kernel(device)
    terminal = Terminal()
    if (target / "reference.json").exists() and not config.again:
        try:
            existing = load_reference(target)
        except InputError:
            existing = None
        # Another rate only takes another of the same scores.
        defaults = {
            "fit": None,
            "detector": None,
            "keypoints": "none",
            "folds": 0,
            "from_splats": None,
            "appearance": "colour",
            "whole": False,
            "keep_background": True,
        }
        if existing is not None and all(
            existing.settings.get(key, default) == settings.get(key, default)
            for key, default in defaults.items()
        ):
            held = load_calibration(target / CALIBRATION)
            calibration = held
            if config.false_alarm_rate is not None:
                calibration = recalibrated(held, config.false_alarm_rate)
            terminal.say(f"{target}: already fitted with these settings; --again fits it anew")
            if calibration != held:
                save_calibration(target / CALIBRATION, calibration)
                terminal.say(f"  threshold {calibration.threshold:.3g}: {calibration.note}")
            terminal.say(f"next: splatad detect --class {name} --query PHOTO_OR_FOLDER")
            return 0
    if scene.missing:
        terminal.say(
            f"{scene.name}: {len(scene.missing)} listed photos are not there and left out: {_few(scene.missing)}"
        )

    started = time.perf_counter()
    photos = read_photos(scene, fit_config.size_px, terminal)
    checkpoint = target / "checkpoint"
    step = resumable_step(checkpoint) if given is None else None
    if step is not None and not config.again:
        terminal.say(
            f"going on from step {step} of an earlier run (used only if its photos and settings are the same)"
        )
    elif config.again and checkpoint.exists():
        shutil.rmtree(checkpoint)
    options = RasterOptions(antialiased=fit_config.antialiased)
    surroundings = None
    cluttered = [photo for photo in photos if is_cluttered(photo)]
    if given is None and not config.whole and 2 * len(cluttered) > len(photos):
        surroundings = tell_part(cluttered, scene, fit_config, checkpoint, device, terminal)
        if surroundings is None:
            terminal.say(
                "  no part stands apart at the cameras' common focus: all that the photos show is inspected"
            )
        else:
            photos = cut_photos(photos, surroundings, options)
            target.mkdir(parents=True, exist_ok=True)
            write_bytes(target / "part.png", to_bytes(contact_sheet([photo.rgb for photo in photos]), "PNG"))
            covered = sum(float(photo.alpha.mean()) for photo in photos) / len(photos)
            terminal.say(
                f"  the part fills {covered:.0%} of the photos, see {target / 'part.png'}; if it is not that, give masks "
                "(mask_path in transforms.json) or --whole"
            )
    what = "fitting splats" if folds == 0 else "fitting splats to all photos"
    with terminal.bar(what if given is None else "measuring the splats", fit_config.steps) as bar:

        def show(progress: FitProgress) -> None:
            bar.to(progress.step, f"{progress.splats:,} splats  {progress.psnr:.1f} dB", progress.steps)

        if given is not None:
            fit = fit_of_splats(photos, fit_config, given.gaussians, device)
        else:
            fit = fit_photos(
                photos,
                fit_config,
                cloud=initial_cloud(scene),
                checkpoint=checkpoint,
                device=device,
                on_progress=show,
            )
    fold_fits: list[SplatFit] = []
    if folds:
        fold_fits = fit_folds(scene, photos, fit_config, folds, checkpoint, device, terminal)
    if appearance == "shape":
        fit, *fold_fits = without_colour([fit, *fold_fits], photos)
        photos = [flattened_photo(photo) for photo in photos]
    reference = reference_from_fit(
        name,
        fit,
        options,
        fit_config.size_px,
        folder if folder.is_dir() else folder.parent,
        settings,
        scale_to_mm=scene.scale_to_mm,
        distortion=scene.views[0].distortion,
    )
    with terminal.stages() as stage:
        loaded = finish_reference(
            target,
            reference,
            photos,
            config.false_alarm_rate,
            unseen=unseen_of(fold_fits, len(photos)) if folds else None,
            detector=detector,
            keypoints=keypoints,
            surroundings=surroundings if config.keep_background else None,
            on_step=stage.to,
        )
    if checkpoint.exists():
        shutil.rmtree(checkpoint)

    seconds = time.perf_counter() - started
    how = f"{fit.steps} steps ({fit.initial_source})" if given is None else f"splats of {config.from_splats}"
    terminal.say(f"{name}: {len(fit.gaussians):,} splats from {len(photos)} photos in {seconds:.0f} s, {how}")
    terminal.say(f"  {_quality(fold_fits or [fit])}")
    terminal.say(f"  threshold {loaded.calibration.threshold:.3g}: {loaded.calibration.note}")
    terminal.say(f"  written to {target}; {target / 'splats.ply'} opens in any splat viewer")
    terminal.say(f"next: splatad detect --class {name} --query PHOTO_OR_FOLDER")
    return 0


@dataclass(frozen=True)
class _Given:
    """Splats that were fitted elsewhere, in the scene's world."""

    gaussians: Gaussians
    source: str  # what they were read from, for the record and to know them again


def _given_splats(config: Fit, scene: Path) -> _Given | None:
    """The splats of --from-splats; None without.

    Raises: InputError for files that cannot be used, UsageError for flags that do not go with it.
    """
    import hashlib

    from prepare.errors import UsageError
    from prepare.similarity import read_dataparser_transforms
    from recon.move import moved
    from recon.ply import read_splats

    if config.from_splats is None:
        if config.dataparser_transforms is not None:
            raise UsageError("--dataparser-transforms: belongs to the splats of --from-splats; give both")
        return None
    idle = ("steps", "splats", "sh_degree", "held_out_every", "exposure", "folds")
    for field in idle:
        if getattr(config, field):
            raise UsageError(
                f"--{field.replace('_', '-')}: nothing is fitted with --from-splats; leave it out"
            )
    gaussians = read_splats(config.from_splats)
    files = [config.from_splats]
    if config.dataparser_transforms is not None:
        files.append(config.dataparser_transforms)
        gaussians = moved(gaussians, read_dataparser_transforms(config.dataparser_transforms, scene))
    source = ", ".join(
        f"{file.name} sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files
    )
    return _Given(gaussians, source)


def _usual_preset(scene_folder: Path) -> Literal["default", "mesh"]:
    from prepare.datasets.scene_folder import prepared_kind

    return "mesh" if prepared_kind(scene_folder) == "mesh" else "default"


def _folds(config: Fit, photos: int) -> int:
    """How many folds to cross-fit, each of two photos at least; 0 for none. Raises: UsageError for a silly number."""
    from prepare.errors import UsageError

    if config.from_splats is not None:
        return 0
    if config.folds is None:
        wanted = 0 if config.preset in ("fast", "mesh") or config.held_out_every is not None else USUAL_FOLDS
        return wanted if photos >= 2 * wanted else 0
    if config.folds == 0:
        return 0
    if config.held_out_every:
        raise UsageError(
            "--folds and --held-out-every: give one; with folds every photo is kept from one of the fits"
        )
    if config.folds < 2 or photos < 2 * config.folds:
        raise UsageError(
            f"--folds {config.folds}: with {photos} photos from 2 to {photos // 2}, or 0 for none; more take longer"
        )
    return config.folds


def _check_rate(false_alarm_rate: float | None, photos: int) -> None:
    """Raises: UsageError for a false-alarm rate that so many good photos cannot support, before an hour is spent."""
    from detect.calibrate import check_attainable
    from prepare.errors import UsageError

    if false_alarm_rate is None:
        return
    if not 0.0 < false_alarm_rate < 1.0:
        raise UsageError(f"--false-alarm-rate {false_alarm_rate}: must lie between 0 and 1, for example 0.05")
    check_attainable(photos, false_alarm_rate)


def _fit_config(config: Fit, folds: int):
    from prepare.errors import UsageError
    from recon.fit import preset

    overrides = {
        field: value
        for field in ("steps", "splats", "size_px", "sh_degree", "held_out_every", "exposure", "antialiased")
        if (value := getattr(config, field)) is not None
    }
    for field, least in (("steps", 1), ("splats", 16), ("size_px", 16), ("held_out_every", 0)):
        if overrides.get(field, least) < least:
            raise UsageError(f"--{field.replace('_', '-')} {overrides[field]}: must be {least} at least")
    base = preset(config.preset or "default")
    if folds or config.from_splats is not None:
        overrides["held_out_every"] = 0
    if "splats" in overrides and overrides["splats"] < base.initial_splats:
        overrides["initial_splats"] = overrides["splats"]
    return dataclasses.replace(base, seed=config.seed, **overrides)


def _quality(fits: Sequence[recon.fit.Fit]) -> str:
    """How well the photos that were kept from the fit (from one of them each) are rendered, in one line."""
    views = [view for fit in fits for view in fit.views]
    held_out = any(view.held_out for view in views)

    def mean(field: Literal["psnr", "part_psnr", "ssim", "part_ssim", "lpips"]) -> float | None:
        values = [getattr(view.quality, field) for view in views if view.held_out == held_out]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    def number(field: Literal["psnr", "part_psnr", "ssim", "part_ssim", "lpips"], form: str) -> str:
        value = mean(field)
        return "unknown" if value is None else format(value, form)

    line = (
        f"{'held-out' if held_out else 'fitted'} photos {number('psnr', '.1f')} dB, SSIM {number('ssim', '.3f')}; "
        f"on the part {number('part_psnr', '.1f')} dB, SSIM {number('part_ssim', '.3f')}"
    )
    if mean("lpips") is not None:
        line += f"; LPIPS {number('lpips', '.3f')}"
    return line if held_out else line + "; none was held out"


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
