"""What `fit` and `calibrate` both do before they calibrate, with progress bars: photos read, and the fits of the folds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from prepare.scene import Scene
from recon.appearance import one_colour
from recon.fit import Fit, FitConfig, FitProgress, Photo, cross_fit, fit_photos, initial_cloud, load_photo
from recon.part_region import find_part
from recon.rasterize import RasterOptions
from recon.surroundings import Surroundings, cut_out, is_cluttered
from splatad.terminal import Terminal


def read_photos(scene: Scene, size_px: int, terminal: Terminal) -> list[Photo]:
    """The scene's photos at the size they are fitted at.

    Raises: InputError for an image that cannot be read.
    """
    photos = []
    with terminal.bar("reading photos", len(scene.views)) as bar:
        for view in scene.views:
            photos.append(load_photo(view, size_px))
            bar.advance()
    return photos


def tell_part(
    photos: list[Photo],
    scene: Scene,
    config: FitConfig,
    checkpoint: Path,
    device: torch.device,
    terminal: Terminal,
) -> Surroundings | None:
    """Splats of all that cluttered photos show, and which of them are the part; None where no part stands out."""
    with terminal.bar("fitting splats to part and surroundings", config.steps) as bar:

        def show(progress: FitProgress) -> None:
            bar.to(progress.step, f"{progress.splats:,} splats  {progress.psnr:.1f} dB", progress.steps)

        fit = fit_photos(
            photos,
            config,
            cloud=initial_cloud(scene),
            checkpoint=checkpoint / "surroundings",
            device=device,
            held_out=(),
            on_progress=show,
        )
    options = RasterOptions(antialiased=config.antialiased)
    region = find_part(fit.gaussians, [photo.camera for photo in photos], fit.volume, options)
    return None if region is None else Surroundings(fit.gaussians, region.inside)


def cut_photos(photos: list[Photo], surroundings: Surroundings, options: RasterOptions) -> list[Photo]:
    """`photos` with the part alone, over white; those that have a mask of their own as they are."""
    return [
        cut_out(photo, surroundings.alpha(photo.camera, options)) if is_cluttered(photo) else photo
        for photo in photos
    ]


def without_colour(fits: list[Fit], photos: list[Photo]) -> list[Fit]:
    """`fits` with splats of the one colour that their photos' silhouettes are painted in."""
    background = torch.stack([photo.background for photo in photos]).median(dim=0).values
    return [replace(fit, gaussians=one_colour(fit.gaussians, background)) for fit in fits]


def fit_folds(
    scene: Scene,
    photos: list[Photo],
    config: FitConfig,
    folds: int,
    checkpoints: Path,
    device: torch.device,
    terminal: Terminal,
) -> list[Fit]:
    """`recon.fit.cross_fit` of the scene's photos."""
    with terminal.bar(f"{folds} fits, each without a part of the photos", folds * config.steps) as bar:

        def show(fold: int, progress: FitProgress) -> None:
            bar.to(fold * config.steps + progress.step, f"fit {fold + 1} of {folds}  {progress.psnr:.1f} dB")

        return cross_fit(
            photos,
            config,
            folds,
            cloud=initial_cloud(scene),
            checkpoints=checkpoints,
            device=device,
            on_progress=show,
        )
