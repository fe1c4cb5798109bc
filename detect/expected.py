"""What good photos leave: the residual that the reference's own photos show, kept on the splats.

Each splat holds the mean and the mean squared difference, by channel, of the pixels it coloured in the reference photos.
Rendered at a query's camera the latter is the variance to expect there: gloss, fine edges and badly reconstructed places excuse
themselves. The idea of measuring against the reference's own views: shared/calibration.md; the sums are the backward
pass of compositing by colour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from detect.difference import CHANNELS, Difference, difference_channels
from prepare.atomic_write import write_with
from prepare.camera import Camera
from prepare.errors import InputError
from recon.fit import Photo
from recon.gaussians import Gaussians
from recon.rasterize import ExtraChannels, RasterOptions, rasterize
from recon.reference import Reference

FITTED_WEIGHT = (
    0.3  # of a photo that was fitted: one that was not shows what a new photo will, and counts once
)
# Evidence counts no further than this. Else the thousandth of a pixel that shines through splats which no photo showed
# would pass, being well-known background, for knowledge of those splats.
ENOUGH_PIXELS = 2.0
PRIOR_PIXELS = 4.0  # pixels' worth of the average residual mixed into each splat


@dataclass(frozen=True)
class ExpectedResidual:
    """What is normal, by splat."""

    variance: Float[Tensor, "n channel"]  # mean squared difference of good photos where the splat shows
    seen: Float[Tensor, " n"]  # pixels' worth of evidence, summed over the photos
    background: Float[Tensor, " channel"]  # mean squared difference where no splat shows
    mean: Float[Tensor, "n channel"]  # mean difference of good photos where the splat shows

    @property
    def spread(self) -> Float[Tensor, "n channel"]:
        """Standard deviation of the difference about its mean."""
        return (self.variance - self.mean.square()).clamp_min(0).sqrt()


NOTHING_EXPECTED = ExpectedResidual(torch.zeros(0, 0), torch.zeros(0), torch.zeros(0), torch.zeros(0, 0))


@dataclass(frozen=True)
class ResidualSums:
    """Evidence that adds up over photos: leaving one out is a subtraction."""

    squared: Float[Tensor, "n channel"]  # sum over pixels of compositing weight times squared difference
    seen: Float[Tensor, " n"]  # sum over pixels of compositing weight
    off_squared: Float[Tensor, " channel"]  # the same for the pixels' uncovered share
    off_seen: float
    total: Float[Tensor, "n channel"]  # sum over pixels of compositing weight times difference

    def plus(self, other: ResidualSums, times: float = 1.0) -> ResidualSums:
        """These sums and `times` those of `other`; a negative number takes them out."""
        return ResidualSums(
            self.squared + times * other.squared,
            self.seen + times * other.seen,
            self.off_squared + times * other.off_squared,
            self.off_seen + times * other.off_seen,
            self.total + times * other.total,
        )

    def expected(self) -> ExpectedResidual:
        """Means, with a little of the overall mean mixed in where a splat was seen in few pixels."""
        seen = self.seen.clamp_min(0.0)

        def mean(sums: Tensor) -> Tensor:
            average = sums.sum(dim=0) / seen.sum().clamp_min(1.0)
            return (sums + PRIOR_PIXELS * average) / (seen + PRIOR_PIXELS)[:, None]

        background = self.off_squared.clamp_min(0.0) / max(self.off_seen, 1.0)
        return ExpectedResidual(mean(self.squared.clamp_min(0.0)), seen, background, mean(self.total))


@dataclass(frozen=True)
class Expectation:
    """What is normal at each pixel of one camera's picture."""

    deviation: Float[Tensor, "channel height width"]  # root mean square difference
    evidence: Float[
        Tensor, "height width"
    ]  # px of good photos it rests on, in [0, ENOUGH_PIXELS]; background: all
    light: Float[Tensor, "height width"]  # mean signed difference in lightness
    gloss: Float[Tensor, "height width"]  # standard deviation of the part's colour over viewing directions


@torch.no_grad()
def residual_sums(
    reference: Reference,
    photo: Photo,
    difference: Difference = difference_channels,
    unseen: Gaussians | None = None,
) -> ResidualSums:
    """What one good photo, at its own camera, says of each splat.

    `unseen` are splats of the same part that were fitted without this photo: then it is compared with their render, as a
    new photo would be.
    """
    device = reference.gaussians.device
    camera = photo.camera.moved(photo.camera.world_to_cam.to(device))
    background = photo.background.to(device)
    render = rasterize(reference.gaussians, camera, background, options=reference.options)
    compared = render
    if unseen is not None:
        compared = rasterize(unseen.to(device), camera, background, options=reference.options)
    apart = difference(photo.rgb.to(device), compared.rgb)
    squared = apart.square()
    weight = torch.ones_like(squared[0]) if photo.valid is None else photo.valid.to(device)
    planes = torch.cat([squared * weight, weight[None], apart * weight])
    to_splats = carried_to_splats(reference.gaussians, camera, reference.options, planes)
    channels = len(squared)
    off = (1.0 - render.alpha) * weight
    return ResidualSums(
        to_splats[:, :channels].cpu(),
        to_splats[:, channels].cpu(),
        (squared * off).sum(dim=(1, 2)).cpu(),
        float(off.sum()),
        to_splats[:, channels + 1 :].cpu(),
    )


@torch.no_grad()
def expectation(reference: Reference, expected: ExpectedResidual, camera: Camera) -> Expectation:
    """What good photos would leave in a picture by `camera`."""
    gaussians = reference.gaussians
    channels = expected.variance.shape[1]
    gloss = (gaussians.sh[:, 1:].square().sum(dim=1).mean(dim=1) / (4.0 * math.pi)).sqrt().cpu()
    light = expected.mean[:, CHANNELS.index("light")]
    carried = [
        expected.variance,
        expected.seen.clamp_max(ENOUGH_PIXELS)[:, None],
        light[:, None],
        gloss[:, None],
    ]
    values = torch.cat(carried, dim=1).to(gaussians.device)
    background = torch.cat([expected.background, torch.tensor([ENOUGH_PIXELS, 0.0, 0.0])]).to(values)
    extra = ExtraChannels(values, background)
    shown = rasterize(gaussians, camera, options=reference.options, extra=extra).extra
    assert shown is not None
    return Expectation(
        shown[:channels].clamp_min(0).sqrt(), shown[channels], shown[channels + 1], shown[channels + 2]
    )


def save_expected(path: Path, expected: ExpectedResidual) -> None:
    """Write to a .safetensors file, atomically."""
    tensors = {field.name: getattr(expected, field.name).contiguous() for field in fields(expected)}
    write_with(
        path, lambda temporary: save_file(tensors, temporary, metadata={"format": "splatad-expected-3"})
    )


def load_expected(path: Path) -> ExpectedResidual:
    """What `save_expected` wrote.

    Raises: InputError where it is missing or damaged.
    """
    try:
        tensors = load_file(path)
        return ExpectedResidual(**{field.name: tensors[field.name] for field in fields(ExpectedResidual)})
    except (OSError, SafetensorError, KeyError) as error:
        raise InputError(
            f"{path}: the residual statistics cannot be read ({error}); run `splatad fit` again"
        ) from error


def carried_to_splats(
    gaussians: Gaussians,
    camera: Camera,
    options: RasterOptions,
    planes: Float[Tensor, "channel height width"],
) -> Float[Tensor, "n channel"]:
    """For each splat the sum over pixels of its compositing weight times `planes`, three planes a pass.

    The gradient of the picture, weighted by the planes, by the splats' colours.
    """
    parts = []
    for start in range(0, planes.shape[0], 3):
        part = planes[start : start + 3]
        missing = 3 - part.shape[0]
        if missing:
            part = torch.cat([part, part.new_zeros(missing, *part.shape[1:])])
        with torch.enable_grad():
            colours = torch.zeros(len(gaussians), 3, device=gaussians.device, requires_grad=True)
            shown = rasterize(gaussians, camera, colours=colours, options=options).rgb
            (gradient,) = torch.autograd.grad(shown, colours, part.permute(1, 2, 0))
        parts.append(gradient[:, : 3 - missing])
    return torch.cat(parts, dim=1)
