"""Photos with known cameras to splats: Adam on the photometric loss, densified under a budget, resumable.

A run depends on its inputs and its config alone: every random choice is drawn from (seed, step), so a run that was
killed and resumed ends in the same bits as one that was not.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from prepare.atomic_write import write_json, write_with
from prepare.camera import Camera
from prepare.errors import InputError
from prepare.points import read_points
from prepare.scene import Scene, View, ViewImage, load_view_image
from recon.densify import Coverage, GradientTally, SplatOptimizer, grow, prunable
from recon.gaussians import Gaussians, gaussians_from_points
from recon.initial_points import (
    InitialPoints,
    Volume,
    common_volume,
    hull_points,
    neighbour_spacing,
    random_points,
)
from recon.losses import Target, make_target, photometric_loss, psnr
from recon.lpips import Lpips, load_lpips
from recon.quality import ViewQuality, measure_quality
from recon.rasterize import RasterOptions, choose_backend, rasterize
from recon.rasterize_cpu import rasterize_cpu

CROP_MARGIN_PX = 14  # around the part; the SSIM window needs 5
FINAL_SHARE = 1 / 3  # of min_cover_px that a splat must cover at the end: nothing can take its place any more
CHECK_EVERY = 250  # steps between looks at the photos kept from the fit
HELD_OUT_CHECKED = 12  # photos looked at
FLAT_CHECKS = 4  # so many looks without a better one end the fit
FLAT_DB = 0.03  # what counts as better
PRUNING_VIEWS = 24  # photos asked in one round which splats are astray; at the end all are
OFF_ONE_OF = 12  # a centre off the silhouette in more than one photo of so many is astray
FRAMED_SHARE = 0.5  # of the frames that a median splat is in: with fewer one is astray
LEAST_SPLATS = 16
COOL_SHARE = 0.1  # of the steps, for the rest of the decay


@dataclass(frozen=True)
class FitConfig:
    """How a reference is fitted."""

    steps: int = 1500
    """Optimisation steps, one photo each."""
    size_px: int = 400
    """Photos are scaled down so that their longer side is at most this many pixels."""
    splats: int = 70_000
    """Most splats the reference may hold."""
    initial_splats: int = 24_000
    """Splats to start from."""
    sh_degree: Literal[0, 1, 2, 3] = 2
    """Degree of the view-dependent colour (spherical harmonics); 0 is matt."""
    held_out_every: int = 8
    """Every so manieth photo is not fitted but kept to measure quality and to calibrate scores; 0 keeps none."""
    ssim_share: float = 0.2
    """Weight of 1 - SSIM in the loss; the rest is L1."""
    antialiased: bool = True
    """Scale opacities with the screen-space blur, so that other distances render right and outlines stay sharp."""
    exposure: bool = False
    """Fit a gain and a bias per colour channel for each photo (real photos with automatic exposure)."""
    interior_share: float = 0.3
    """Share of the first splats that lie inside the visual hull, not on its surface: openings hide what is inside."""
    initial_scale: float = 0.6
    """Standard deviation of the first splats, as a multiple of the distance to their neighbours."""
    initial_degree: Literal[0, 1, 2, 3] = 0
    """Degree of the view-dependent colour that is fitted from the first step on; it grows to `sh_degree`."""
    initial_opacity: float = 0.3
    """Opacity of the first splats, in (0, 1)."""
    position_rate: float = 1.6e-3
    """Adam learning rate of positions per half side of the scene's cube; decays to a hundredth."""
    rotation_rate: float = 4e-3
    """Adam learning rate of quaternions; like the following, it decays to a tenth."""
    scale_rate: float = 8e-2
    """Adam learning rate of the logarithms of the standard deviations."""
    opacity_rate: float = 0.15
    """Adam learning rate of the logits of the opacities."""
    colour_rate: float = 2e-2
    """Adam learning rate of the colour that does not depend on the view."""
    view_colour_rate: float = 4e-3
    """Adam learning rate of the view-dependent terms of the colour."""
    min_cover_px: float = 0.15
    """A splat that colours fewer pixels than this, averaged over the photos, makes room for others: what hardly any photo
    shows costs time and floats into views that no photo is of. 0 keeps all."""
    stop_early: bool = True
    """Wind the learning rates down as soon as the photos kept from the fit stop getting better."""
    densify_every: int = 100
    """Steps between rounds of splitting and pruning."""
    densify_until: float = 0.5
    """Share of the steps after which the number of splats stays."""
    seed: int = 0
    """Seed of every random choice."""
    checkpoint_seconds: float = 20.0
    """Seconds between checkpoints that a killed fit resumes from; 0 writes none."""


PRESETS: dict[str, FitConfig] = {
    "fast": FitConfig(steps=800, size_px=320, splats=30_000, initial_splats=12_000),
    "default": FitConfig(),
    "best": FitConfig(steps=4000, splats=100_000, initial_splats=30_000),
    # Splats that start on the surface, in its colours and with its shading have no way to go: the usual rates would first
    # throw them about. None floats, so that also those stay which hardly a photo shows (in deep holes). Photos made at will
    # leave enough to calibrate.
    "mesh": FitConfig(
        steps=400,
        splats=50_000,
        initial_degree=2,
        initial_opacity=0.98,
        position_rate=5e-4,
        scale_rate=4e-2,
        opacity_rate=0.1,
        colour_rate=1e-2,
        view_colour_rate=3e-3,
        min_cover_px=0.0,
        densify_until=0.0,
        held_out_every=5,
        stop_early=False,
    ),
}


def preset(name: Literal["fast", "default", "best", "mesh"]) -> FitConfig:
    """A tried config: "fast" for a first look, "best" where minutes do not matter, "mesh" for photos made from a mesh."""
    return PRESETS[name]


@dataclass(frozen=True)
class FitProgress:
    """One line of progress."""

    step: int
    steps: int
    splats: int
    psnr: float  # dB, running mean over the fitted crops
    seconds: float  # since this process began to fit


@dataclass(frozen=True)
class FittedView:
    """A photo of the scene as the fit saw it."""

    name: str
    camera: Camera  # at the fitted size
    background: Float[Tensor, "rgb=3"]
    held_out: bool
    quality: ViewQuality  # LPIPS of held-out photos only: it takes longest
    gain: tuple[float, float, float]  # fitted exposure, 1 unless config.exposure
    bias: tuple[float, float, float]


@dataclass(frozen=True)
class Fit:
    """What a fit gives."""

    gaussians: Gaussians
    views: tuple[FittedView, ...]
    volume: Volume
    initial_source: str  # where the first splats came from
    steps: int  # taken; fewer than asked for where the fit stopped early
    seconds: float

    def mean_psnr(self, *, held_out: bool, part: bool = False) -> float | None:
        """Mean dB over held-out or fitted views, None where there are none."""
        return self.mean_quality("part_psnr" if part else "psnr", held_out=held_out)

    def mean_quality(
        self, field: Literal["psnr", "part_psnr", "ssim", "part_ssim", "lpips"], *, held_out: bool
    ) -> float | None:
        """Mean of one number of `ViewQuality` over held-out or fitted views; None where there are none."""
        values = [getattr(v.quality, field) for v in self.views if v.held_out == held_out]
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class Photo:
    """A photo in memory, on the background it is fitted over."""

    name: str
    camera: Camera
    rgb: Float[Tensor, "height width rgb=3"]
    alpha: Float[Tensor, "height width"]  # share of the part in the pixel
    background: Float[Tensor, "rgb=3"]
    valid: Float[Tensor, "height width"] | None  # weight in the loss, None: all


def load_photo(view: View, size_px: int) -> Photo:
    """`view` scaled to at most `size_px`, cut out over white where only a mask tells part from surroundings.

    Raises: InputError for an image that cannot be read.
    """
    return photo_of(view.name, load_view_image(view, longest_px=size_px))


def photo_of(name: str, image: ViewImage) -> Photo:
    """A photo on a background that splats can be composited over."""
    background = image.background
    rgb, alpha = image.rgb, image.alpha
    if background is None:
        cut_out = bool((alpha[image.valid] < 0.999).any())  # an undistorted photo's rim is no background
        alpha = alpha if cut_out else torch.ones_like(alpha)
        background = torch.full((3,), 1.0 if cut_out else 0.0)
        if cut_out:
            rgb = image.rgb * image.alpha[..., None] + (1 - image.alpha[..., None]) * background
    valid = None if bool(image.valid.all()) else image.valid.float()
    assert image.camera is not None
    return Photo(name, image.camera, rgb.contiguous(), alpha, background, valid)


def held_out_indices(count: int, every: int) -> set[int]:
    """Which of `count` photos are kept from the fit: the middle one of each run of `every`."""
    if every <= 1 or count < 2 * every:
        return set()
    return set(range(every // 2, count, every))


def folds_of(count: int, folds: int) -> list[set[int]]:
    """The indices of `count` photos dealt out to `folds` folds in turn, so that each fold sees the part from all round."""
    return [set(range(fold, count, folds)) for fold in range(folds)]


def fit_scene(
    scene: Scene,
    config: FitConfig,
    *,
    checkpoint: Path | None = None,
    device: torch.device | None = None,
    on_photo: Callable[[int, int], None] | None = None,
    on_progress: Callable[[FitProgress], None] | None = None,
) -> Fit:
    """Splats of `scene`. With `checkpoint` (a folder), the run resumes from there and leaves its state there.

    Raises: InputError for photos that cannot be read or a scene with fewer than two.
    """
    photos = []
    for index, view in enumerate(scene.views):
        photos.append(load_photo(view, config.size_px))
        if on_photo is not None:
            on_photo(index + 1, len(scene.views))
    return fit_photos(
        photos,
        config,
        cloud=initial_cloud(scene),
        checkpoint=checkpoint,
        device=device,
        on_progress=on_progress,
    )


def initial_cloud(scene: Scene) -> InitialPoints | None:
    """The scene's own coloured points, None where it brings fewer than a hundred.

    Raises: InputError for a point file that cannot be read.
    """
    points = None if scene.points_path is None else read_points(scene.points_path)
    if points is None or len(points.positions) < 100:
        return None
    colours = torch.full_like(points.positions, 0.5) if points.colours is None else points.colours
    source = "point cloud" if points.normals is None else "surface"
    return InitialPoints(
        points.positions,
        colours,
        neighbour_spacing(points.positions),
        source,
        points.normals,
        points.headlight,
    )


def fit_photos(
    photos: Sequence[Photo],
    config: FitConfig,
    *,
    cloud: InitialPoints | None = None,
    checkpoint: Path | None = None,
    device: torch.device | None = None,
    held_out: Collection[int] | None = None,
    on_progress: Callable[[FitProgress], None] | None = None,
) -> Fit:
    """Splats that render as `photos`. See `fit_scene`.

    `held_out` are the indices of the photos to keep from the fit; `config.held_out_every` says which where it is None.
    Torch works in one thread meanwhile: its pool spins, and takes the cores from the kernel's own.
    Raises: InputError for fewer than two photos to fit.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    kept = held_out_indices(len(photos), config.held_out_every) if held_out is None else set(held_out)
    try:
        return _fit(photos, config, kept, cloud, checkpoint, device or torch.device("cpu"), on_progress)
    finally:
        torch.set_num_threads(threads)


def fit_of_splats(
    photos: Sequence[Photo], config: FitConfig, gaussians: Gaussians, device: torch.device | None = None
) -> Fit:
    """Splats fitted elsewhere as a fit of `photos`, taken as they are and measured; all photos count as fitted ones.

    Raises: InputError for fewer than two photos, or where the splats explain the photos no better than one plain colour each.
    """
    if len(photos) < 2:
        raise InputError(
            f"{len(photos)} photo: a reference needs two at least, from different sides; add photos"
        )
    started = time.perf_counter()
    device = device or torch.device("cpu")
    options = RasterOptions(antialiased=config.antialiased)
    exposure = torch.zeros(2, 3)
    views = tuple(_measure(photo, gaussians.to(device), options, False, exposure, None) for photo in photos)
    found = sum(view.quality.part_psnr for view in views) / len(views)
    plain = sum(_plain_psnr(photo) for photo in photos) / len(photos)
    if found <= plain:
        raise InputError(
            f"the splats render the part at {found:.1f} dB, one plain colour a photo would at {plain:.1f}: they do not stand in "
            "the scene's world; for nerfstudio's splats give its --dataparser-transforms"
        )
    volume = common_volume([photo.camera for photo in photos])
    return Fit(gaussians, views, volume, "splats given", 0, time.perf_counter() - started)


def _plain_psnr(photo: Photo) -> float:
    """dB over the part of its own mean colour."""
    weight = photo.alpha if photo.valid is None else photo.alpha * photo.valid
    mean = (photo.rgb * weight[..., None]).sum((0, 1)) / weight.sum().clamp_min(1e-6)
    return psnr(mean.expand_as(photo.rgb), photo.rgb, weight)


def _fit(
    photos: Sequence[Photo],
    config: FitConfig,
    held_out: set[int],
    cloud: InitialPoints | None,
    checkpoint: Path | None,
    device: torch.device,
    on_progress: Callable[[FitProgress], None] | None,
) -> Fit:
    if len(photos) - len(held_out) < 2:
        raise InputError(
            f"{len(photos) - len(held_out)} photo(s): a fit needs two at least, from different sides; add photos"
        )
    started = time.perf_counter()
    perceptual = load_lpips()  # says now, not after the fit, where its files are damaged
    fitted = [i for i in range(len(photos)) if i not in held_out]
    volume = common_volume([photos[i].camera for i in fitted])
    identity = _identity(photos, config, held_out)
    stored = _load_checkpoint(checkpoint, identity)
    rates = learning_rates(config, volume)
    if stored is None:
        points = _initial_points([photos[i] for i in fitted], config, cloud)
        source = points.source
        gaussians = gaussians_from_points(
            points.positions,
            points.colours,
            config.initial_scale * points.spacing,
            opacity=config.initial_opacity,
            sh_degree=config.sh_degree,
            normals=points.normals,
            headlight=points.headlight,
        )
        optimizer = SplatOptimizer(gaussians.to(device), rates)
        tally = GradientTally.empty(len(optimizer))
        coverage = Coverage.empty(len(optimizer))
        schedule = Schedule(config.steps)
        first_step = 0
        exposure = torch.zeros(len(photos), 2, 3, device=device)
        exposure_moments = torch.zeros(2, len(photos), 2, 3, device=device)
    else:
        tensors, meta = stored
        source = str(meta["initial_source"])
        first_step = int(meta["step"])
        means = tensors["means.value"]
        like = gaussians_from_points(
            means, torch.zeros_like(means), means.new_ones(len(means)), sh_degree=config.sh_degree
        )
        optimizer = SplatOptimizer(like.to(device), rates)
        optimizer.load_state({name: tensor.to(device) for name, tensor in tensors.items()})
        tally = GradientTally(tensors["tally.pull"], tensors["tally.views"])
        coverage = Coverage(tensors["coverage.pixels"], tensors["coverage.steps"])
        schedule = Schedule.from_text(config.steps, str(meta["schedule"]))
        exposure = tensors["exposure"].to(device)
        exposure_moments = tensors["exposure_moments"].to(device)

    crops = {i: _Crop.of(photos[i], device) for i in fitted}
    outside = [_Outside.of(photos[i]) for i in fitted]
    options = [
        RasterOptions(sh_degree=d, antialiased=config.antialiased) for d in range(config.sh_degree + 1)
    ]
    on_cpu = choose_backend(device) == "cpu"
    large = 0.01 * volume.half_size
    last_save = time.perf_counter()
    running = 0.0
    end_of_growth = int(config.steps * config.densify_until)
    rounds = max(1, end_of_growth // config.densify_every)
    start_count = config.initial_splats if cloud is None else min(len(cloud.positions), config.splats)

    kept_from_fit = [photos[i] for i in sorted(held_out)][:HELD_OUT_CHECKED]
    step = first_step
    while step < schedule.end:
        share = schedule.share(step)
        for name, rate in rates.items():
            optimizer.set_learning_rate(name, rate * (0.01 if name == "means" else 0.1) ** share)
        index = fitted[_view_order(len(fitted), step, config.seed)]
        crop = crops[index]
        degree = min(config.sh_degree, max(config.initial_degree, int(share * 2.5 * (config.sh_degree + 1))))
        gaussians = optimizer.gaussians
        growing = step < end_of_growth
        pull, weights = (
            (torch.empty(len(optimizer), 2), torch.empty(len(optimizer))) if growing else (None, None)
        )
        if on_cpu:
            render = rasterize_cpu(
                gaussians, crop.camera, crop.background, None, options[degree], pull, weights
            )
        else:
            render = rasterize(gaussians, crop.camera, crop.background, options=options[degree])
        rgb = render.rgb
        if config.exposure:
            gain_bias = exposure[index].clone().requires_grad_()
            part = rgb - (1 - render.alpha[..., None]) * crop.background
            rgb = rgb + part * (gain_bias[0].exp() - 1) + gain_bias[1] * render.alpha[..., None]
        loss = photometric_loss(rgb, crop.target, config.ssim_share)
        loss.backward()
        if growing and not on_cpu:
            pull = projected_pull(
                gaussians.means.detach(), optimizer.parameters["means"].grad, crop.camera
            ).cpu()
            weights = compositing_weights(gaussians.detached(), crop.camera, options[0]).cpu()
        optimizer.step()
        if config.exposure:
            _exposure_step(exposure, exposure_moments, index, gain_bias.grad, step)
        if pull is not None and weights is not None:
            tally.add(pull, float(crop.camera.width * crop.camera.height))
            coverage.add(weights)

        done = step = step + 1
        if growing and done % config.densify_every == 0:
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + done)
            idle = coverage.judge(config.min_cover_px, len(fitted))
            _prune(optimizer, tally, coverage, idle, outside, volume, generator)
            progress = min(1.0, (done // config.densify_every) / rounds)
            wanted = round(start_count * (config.splats / start_count) ** progress)
            coverage.append(grow(optimizer, tally, wanted, large, generator))
            tally = GradientTally.empty(len(optimizer))
        if config.stop_early and kept_from_fit and done >= end_of_growth and done % CHECK_EVERY == 0:
            schedule.check(done, _mean_psnr(kept_from_fit, optimizer.gaussians.detached(), options[-1]))
        if on_progress is not None and (done % 10 == 0 or done == schedule.end):
            value = psnr(rgb.detach().cpu(), crop.target.planes.permute(1, 2, 0).cpu())
            running = value if running == 0.0 else 0.9 * running + 0.1 * value
            on_progress(
                FitProgress(done, schedule.end, len(optimizer), running, time.perf_counter() - started)
            )
        if (
            checkpoint is not None
            and config.checkpoint_seconds > 0
            and (done == schedule.end or time.perf_counter() - last_save > config.checkpoint_seconds)
        ):
            meta = {"step": str(done), "initial_source": source, "schedule": schedule.text()}
            tensors = {
                "tally.pull": tally.pull,
                "tally.views": tally.views,
                "coverage.pixels": coverage.pixels,
                "coverage.steps": coverage.steps,
                "exposure": exposure,
                "exposure_moments": exposure_moments,
            }
            _save_checkpoint(checkpoint, identity, optimizer.state() | tensors, meta)
            last_save = time.perf_counter()

    gaussians = optimizer.gaussians.detached()
    gaussians = gaussians.select(~prunable(gaussians, 0.005, 2 * volume.half_size))
    gaussians = _kept(gaussians, ~_astray(outside, gaussians.means.cpu()).to(gaussians.device))
    if config.min_cover_px > 0:
        cover = torch.zeros(len(gaussians.means), device=gaussians.device)
        for i in fitted:
            cover += compositing_weights(gaussians, crops[i].camera, options[-1])
        gaussians = _kept(gaussians, cover >= FINAL_SHARE * config.min_cover_px * len(fitted))
    gaussians = gaussians.to("cpu")
    views = tuple(
        _measure(photo, gaussians.to(device), options[-1], i in held_out, exposure[i].cpu(), perceptual)
        for i, photo in enumerate(photos)
    )
    return Fit(gaussians, views, volume, source, schedule.end, time.perf_counter() - started)


def cross_fit(
    photos: Sequence[Photo],
    config: FitConfig,
    folds: int,
    *,
    cloud: InitialPoints | None = None,
    checkpoints: Path | None = None,
    device: torch.device | None = None,
    on_progress: Callable[[int, FitProgress], None] | None = None,
) -> list[Fit]:
    """One fit for each of `folds_of(len(photos), folds)`, without that fold's photos; `on_progress` is told which.

    No fit is wound down early, for that looks at the photos kept from it. With `checkpoints` (a folder) finished fits are
    kept there and found again, and the one that was stopped goes on.

    Raises: InputError for fewer photos than two a fit.
    """
    fits = []
    for fold, held_out in enumerate(folds_of(len(photos), folds)):
        own = dataclasses.replace(config, stop_early=False, held_out_every=0, seed=config.seed + 1 + fold)
        fits.append(
            fit_photos(
                photos,
                own,
                cloud=cloud,
                checkpoint=None if checkpoints is None else checkpoints / f"fold-{fold + 1}",
                device=device,
                held_out=held_out,
                on_progress=None if on_progress is None else functools.partial(on_progress, fold),
            )
        )
    return fits


def unseen_of(fits: Sequence[Fit], photos: int) -> list[Gaussians]:
    """For each of so many photos the splats of the one of `cross_fit`'s fits that has not seen it."""
    folds = folds_of(photos, len(fits))
    return [
        next(fit.gaussians for fit, fold in zip(fits, folds, strict=True) if i in fold) for i in range(photos)
    ]


class Schedule:
    """How far the learning rates have decayed, and when the fit ends.

    The rates fall from the first step to the last. Where the photos kept from the fit have stopped getting better, going
    on at the same pace would only learn the fitted ones by heart: the rest of the decay then runs through a tenth of the
    steps, which still brings what lower rates bring.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.end = steps
        self.cool_from: int | None = None
        self.quality: list[float] = []  # dB, at each check

    def share(self, step: int) -> float:
        """0 at the first step, 1 at the last."""
        if self.cool_from is None:
            return step / max(1, self.steps - 1)
        before = self.cool_from / max(1, self.steps - 1)
        return before + (1.0 - before) * (step - self.cool_from) / max(1, self.end - 1 - self.cool_from)

    def check(self, done: int, quality: float) -> None:
        """Note the held-out quality (dB) after `done` steps, and begin to cool where it no longer rises."""
        self.quality.append(quality)
        best_before = max(self.quality[:-FLAT_CHECKS], default=-math.inf)
        if self.cool_from is None and max(self.quality[-FLAT_CHECKS:]) < best_before + FLAT_DB:
            cool = math.ceil(COOL_SHARE * self.steps)
            if done + cool < self.steps:
                self.cool_from, self.end = done, done + cool

    def text(self) -> str:
        """Everything about it that steps change, as JSON."""
        return json.dumps({"end": self.end, "cool_from": self.cool_from, "quality": self.quality})

    @classmethod
    def from_text(cls, steps: int, text: str) -> Schedule:
        """The inverse of `text`."""
        schedule = cls(steps)
        stored = json.loads(text)
        schedule.end, schedule.cool_from = stored["end"], stored["cool_from"]
        schedule.quality = stored["quality"]
        return schedule


def compositing_weights(gaussians: Gaussians, camera: Camera, options: RasterOptions) -> Float[Tensor, " n"]:
    """What each splat has to do with a view: its compositing weight summed over the pixels, px.

    The gradient of the picture's sum by the splats' colours.
    """
    colours = torch.zeros(len(gaussians.means), 3, device=gaussians.device, requires_grad=True)
    view = camera.moved(camera.world_to_cam.to(gaussians.device))
    background = torch.zeros(3, device=gaussians.device)
    rgb = rasterize(gaussians, view, background, colours=colours, options=options).rgb
    return torch.autograd.grad(rgb[..., 0].sum(), colours)[0][:, 0]


def projected_pull(
    means: Float[Tensor, "n xyz=3"], gradient: Float[Tensor, "n xyz=3"] | None, camera: Camera
) -> Float[Tensor, "n uv=2"]:
    """dL/d(projected centre) in 1/px from dL/d(centre), across the viewing direction: du = f dx / z.

    For gsplat, which does not expose the projected gradient alike in all versions; the kernel gives it directly.
    """
    if gradient is None:
        return torch.zeros_like(means[:, :2])
    in_cam = gradient @ camera.world_to_cam[:3, :3].T
    depth = (means @ camera.world_to_cam[2, :3] + camera.world_to_cam[2, 3]).clamp_min(1e-6)
    return in_cam[:, :2] * (depth / camera.fl_x)[:, None]


def learning_rates(config: FitConfig, volume: Volume) -> dict[str, float]:
    """Adam's rates at the first step, by field; "sh_constant" is that of the first column of `sh`."""
    return {
        "means": config.position_rate * volume.half_size,
        "quats": config.rotation_rate,
        "log_scales": config.scale_rate,
        "logit_opacities": config.opacity_rate,
        "sh_constant": config.colour_rate,
        "sh": config.view_colour_rate,
    }


def _kept(gaussians: Gaussians, wanted: Bool[Tensor, " n"]) -> Gaussians:
    """Those that are wanted; all of them where hardly any would be left."""
    return gaussians.select(wanted) if int(wanted.sum()) >= LEAST_SPLATS else gaussians


@dataclass(frozen=True)
class _Crop:
    """The window of a photo that holds the part: all that is rasterised and compared during the fit."""

    camera: Camera
    target: Target
    background: Float[Tensor, "rgb=3"]

    @classmethod
    def of(cls, photo: Photo, device: torch.device) -> _Crop:
        rows = (photo.alpha > 0.02).any(dim=1).nonzero()[:, 0]
        columns = (photo.alpha > 0.02).any(dim=0).nonzero()[:, 0]
        height, width = photo.alpha.shape
        if len(rows) == 0:
            top, bottom, left, right = 0, height, 0, width
        else:
            top, bottom = (
                max(0, int(rows[0]) - CROP_MARGIN_PX),
                min(height, int(rows[-1]) + 1 + CROP_MARGIN_PX),
            )
            left, right = (
                max(0, int(columns[0]) - CROP_MARGIN_PX),
                min(width, int(columns[-1]) + 1 + CROP_MARGIN_PX),
            )
        camera = dataclasses.replace(
            photo.camera,
            world_to_cam=photo.camera.world_to_cam.to(device),
            cx=photo.camera.cx - left,
            cy=photo.camera.cy - top,
            width=right - left,
            height=bottom - top,
        )
        weight = None if photo.valid is None else photo.valid[top:bottom, left:right].to(device)
        target = make_target(photo.rgb[top:bottom, left:right].to(device), weight)
        return cls(camera, target, photo.background.to(device))


def _initial_points(photos: Sequence[Photo], config: FitConfig, cloud: InitialPoints | None) -> InitialPoints:
    generator = torch.Generator().manual_seed(config.seed)
    if cloud is not None:
        if len(cloud.positions) <= config.splats:
            return cloud
        chosen = torch.randperm(len(cloud.positions), generator=generator)[: config.splats]
        positions = cloud.positions[chosen]
        normals = None if cloud.normals is None else cloud.normals[chosen]
        headlight = None if cloud.headlight is None else cloud.headlight[chosen]
        spacing = neighbour_spacing(positions)
        return InitialPoints(positions, cloud.colours[chosen], spacing, cloud.source, normals, headlight)
    cameras = [photo.camera for photo in photos]
    hull = hull_points(
        cameras,
        [p.rgb for p in photos],
        [p.alpha for p in photos],
        config.initial_splats,
        generator,
        interior_share=config.interior_share,
    )
    return hull or random_points(cameras, config.initial_splats, generator)


def _view_order(count: int, step: int, seed: int) -> int:
    """Which fitted photo step `step` takes: each once per round, in an order drawn from (seed, round)."""
    generator = torch.Generator().manual_seed(seed * 7919 + step // count + 1)
    return int(torch.randperm(count, generator=generator)[step % count])


@dataclass(frozen=True)
class _Outside:
    """Where in a photo no splat's centre can project to."""

    camera: Camera
    mask: (
        Bool[Tensor, "height width"] | None
    )  # a few px off the silhouette; None where there is no silhouette

    @classmethod
    def of(cls, photo: Photo, reach_px: int = 4) -> _Outside:
        if float(photo.alpha.min()) > 0.5:
            return cls(photo.camera, None)
        part = photo.alpha[None, None]
        near = F.max_pool2d(part, (1, 2 * reach_px + 1), stride=1, padding=(0, reach_px))
        near = F.max_pool2d(near, (2 * reach_px + 1, 1), stride=1, padding=(reach_px, 0))
        return cls(photo.camera, near[0, 0] < 0.05)

    def holds(self, means: Float[Tensor, "n xyz=3"]) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"]]:
        """Which points project into the mask, and which into the frame."""
        u, v, depth = self.camera.project(means).unbind(-1)
        seen = (depth > 0) & (u >= 0) & (u < self.camera.width) & (v >= 0) & (v < self.camera.height)
        if self.mask is None:
            return torch.zeros_like(seen), seen
        column, row = u.clamp(0, self.camera.width - 1).long(), v.clamp(0, self.camera.height - 1).long()
        return seen & self.mask[row, column], seen


def _astray(outside: Sequence[_Outside], means: Float[Tensor, "n xyz=3"]) -> Bool[Tensor, " n"]:
    """Centres that cannot be the part's: off the silhouette in one photo of twelve, or out of too many frames.

    What floats where hardly a frame reaches explains one photo and stands in the way of every new view there.
    """
    off = torch.zeros(len(means), dtype=torch.int32)
    framed = torch.zeros(len(means), dtype=torch.int32)
    for one in outside:
        hits, seen = one.holds(means)
        off += hits
        framed += seen
    told = any(one.mask is not None for one in outside)
    rare = framed < FRAMED_SHARE * float(framed.float().median())
    return (off > len(outside) // OFF_ONE_OF) | (rare & told)


def _prune(
    optimizer: SplatOptimizer,
    tally: GradientTally,
    coverage: Coverage,
    idle: Bool[Tensor, " n"],
    outside: Sequence[_Outside],
    volume: Volume,
    generator: torch.Generator,
) -> None:
    """Drop splats that are idle, faint, huge, not finite, or astray by a sample of the photos."""
    gaussians = optimizer.gaussians.detached()
    drop = prunable(gaussians, 0.005, 0.5 * volume.half_size)
    sample = torch.randperm(len(outside), generator=generator)[:PRUNING_VIEWS].tolist()
    drop |= (_astray([outside[i] for i in sample], gaussians.means.cpu().nan_to_num()) | idle).to(drop.device)
    if bool(drop.any()) and int((~drop).sum()) >= LEAST_SPLATS:
        optimizer.keep(~drop)
        kept = ~drop.cpu()
        tally.pull, tally.views = tally.pull[kept], tally.views[kept]
        coverage.keep(kept)


def _exposure_step(
    exposure: Tensor, moments: Tensor, index: int, gradient: Tensor | None, step: int, rate: float = 2e-3
) -> None:
    """Adam on one photo's log gain and bias; moments per photo, so photos not drawn stay as they are."""
    if gradient is None:
        return
    first, second = moments[0, index], moments[1, index]
    first.mul_(0.9).add_(gradient, alpha=0.1)
    second.mul_(0.99).addcmul_(gradient, gradient, value=0.01)
    exposure[index] -= rate * first / (second.sqrt() + 1e-12)


@torch.no_grad()
def _mean_psnr(photos: Sequence[Photo], gaussians: Gaussians, options: RasterOptions) -> float:
    """Of `photos` as the splats render them, dB."""
    total = 0.0
    for photo in photos:
        camera = photo.camera.moved(photo.camera.world_to_cam.to(gaussians.device))
        rgb = rasterize(gaussians, camera, photo.background.to(gaussians.device), options=options).rgb
        total += psnr(rgb.cpu(), photo.rgb, photo.valid)
    return total / len(photos)


@torch.no_grad()
def _measure(
    photo: Photo,
    gaussians: Gaussians,
    options: RasterOptions,
    held_out: bool,
    exposure: Tensor,
    perceptual: Lpips | None,
) -> FittedView:
    device = gaussians.device
    camera = photo.camera.moved(photo.camera.world_to_cam.to(device))
    render = rasterize(gaussians, camera, photo.background.to(device), options=options)
    part = render.rgb - (1 - render.alpha[..., None]) * photo.background.to(device)
    gain, bias = exposure[0].exp().to(device), exposure[1].to(device)
    rgb = (render.rgb + part * (gain - 1) + bias * render.alpha[..., None]).cpu()
    quality = measure_quality(rgb, photo.rgb, photo.alpha, photo.valid, perceptual if held_out else None)
    return FittedView(
        photo.name,
        photo.camera,
        photo.background,
        held_out,
        quality,
        tuple(gain.tolist()),
        tuple(bias.tolist()),
    )


def _identity(photos: Sequence[Photo], config: FitConfig, held_out: set[int]) -> dict[str, object]:
    """What a checkpoint must agree with to be resumed."""
    settings = {k: v for k, v in dataclasses.asdict(config).items() if k != "checkpoint_seconds"}
    digest = [
        [
            p.name,
            p.camera.width,
            p.camera.height,
            round(float(p.rgb.double().sum()), 3),
            p.camera.world_to_cam.tolist(),
        ]
        for p in photos
    ]
    return json.loads(
        json.dumps({"version": 4, "config": settings, "photos": digest, "held_out": sorted(held_out)})
    )


def _save_checkpoint(
    folder: Path, identity: dict[str, object], tensors: dict[str, Tensor], meta: dict[str, str]
) -> None:
    """Leave the state in `folder`: one file with the tensors, whose step is in the metadata, and one that identifies it."""
    write_json(folder / "identity.json", identity)
    held = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_with(folder / "state.safetensors", lambda path: save_file(held, path, metadata=meta))


def _load_checkpoint(
    folder: Path | None, identity: dict[str, object]
) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """The state in `folder`, None where there is none, it belongs to another fit, or it is damaged."""
    if folder is None or not (folder / "state.safetensors").exists():
        return None
    from safetensors import SafetensorError, safe_open

    try:
        if json.loads((folder / "identity.json").read_text("utf-8")) != identity:
            return None
        with safe_open(folder / "state.safetensors", framework="pt") as opened:
            meta = opened.metadata()
        return load_file(folder / "state.safetensors"), meta
    except (OSError, ValueError, SafetensorError):
        return None


def resumable_step(folder: Path) -> int | None:
    """The step a checkpoint folder stands at, None without one; for the log."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / "state.safetensors", framework="pt") as opened:
            return int(opened.metadata()["step"])
    except (OSError, SafetensorError, KeyError, TypeError):
        return None
