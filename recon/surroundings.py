"""A part photographed among other things: splats of the whole scene, and which of them are the part.

They tell the part from its surroundings in the reference photos, and in new photos taken in the same place.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from prepare.atomic_write import write_with
from prepare.camera import Camera
from prepare.errors import InputError
from recon.fit import Photo
from recon.gaussians import FIELD_NAMES, Gaussians
from recon.part_region import part_alpha
from recon.rasterize import RasterOptions

LEAST_ALPHA, MOST_ALPHA = (
    0.15,
    0.85,
)  # stretched to 0 and 1: splats fade out over a few pixels, a part does not
WHITE = 1.0


@dataclass(frozen=True)
class Surroundings:
    """Splats of a whole scene."""

    gaussians: Gaussians
    inside: Bool[Tensor, " n"]  # the part's

    def alpha(self, camera: Camera, options: RasterOptions) -> Float[Tensor, "height width"]:
        """The part's share of each pixel that `camera` sees, on the CPU."""
        share = part_alpha(self.gaussians, self.inside, camera, options)
        return ((share - LEAST_ALPHA) / (MOST_ALPHA - LEAST_ALPHA)).clamp(0, 1)


def is_cluttered(photo: Photo) -> bool:
    """Whether nothing tells the photo's part from what is round it."""
    return bool((photo.alpha > 0.999).all())


def cut_out(photo: Photo, alpha: Float[Tensor, "height width"]) -> Photo:
    """`photo` with all but the part white."""
    white = torch.full((3,), WHITE)
    return replace(
        photo, rgb=over(photo.rgb, alpha, white).contiguous(), alpha=alpha.contiguous(), background=white
    )


def over(
    rgb: Float[Tensor, "height width rgb=3"],
    alpha: Float[Tensor, "height width"],
    background: Float[Tensor, "rgb=3"],
) -> Float[Tensor, "height width rgb=3"]:
    """The part of a photo over a plain background. At the outline the photo's own background still shines through."""
    return rgb * alpha[..., None] + (1 - alpha[..., None]) * background


def save_surroundings(path: Path, surroundings: Surroundings) -> None:
    """Write `surroundings` to `path`."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in surroundings.gaussians.tensors().items()}
    tensors["inside"] = surroundings.inside.to(torch.uint8).cpu()
    write_with(path, lambda temporary: save_file(tensors, temporary))


def load_surroundings(path: Path) -> Surroundings:
    """What `save_surroundings` wrote.

    Raises: InputError where it is damaged.
    """
    try:
        tensors = load_file(path)
        inside = tensors.pop("inside").bool()
        gaussians = Gaussians(**{name: tensors[name] for name in FIELD_NAMES})
        if any(len(tensor) != len(inside) for tensor in tensors.values()):
            raise ValueError("its tensors differ in length")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged ({type(error).__name__}: {error}); fit the part again") from error
    return Surroundings(gaussians, inside)
