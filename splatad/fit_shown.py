"""What `fit` and `calibrate` both do before they calibrate, with progress bars: photos read, and the fits of the folds."""

from __future__ import annotations

from pathlib import Path

import torch

from prepare.scene import Scene
from recon.fit import Fit, FitConfig, FitProgress, Photo, cross_fit, initial_cloud, load_photo
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
