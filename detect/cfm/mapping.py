"""The two networks of CFM: a photo's features to those of the shape at the same pixel, and back; one pixel at a time.

E2: a pixel's features from the photo, E3: from the points. D3 = |n(M23(E2)) - n(E3)|, D2 = |n(M32(E3)) - n(E2)| with n the
division by the length: sqrt(2 - 2 cos), 0 for the same direction and 2 for the opposite one.

Source: Costanzino, Zama Ramirez, Lisanti, Di Stefano, "Multimodal Industrial Anomaly Detection by Crossmodal Feature
Mapping", CVPR 2024. Ours: features may be standardised, each dimension by the training set's mean and spread, as the cosine
of features that are all positive (histograms) says little; and narrow features may have a wider middle.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

LOSS_EPSILON = 1e-6  # least length in the loss's cosine
DEEP_LAYERS = 5  # of the middle, in the variant used for Eyecandies; else 1
LEAST_SPREAD = 1e-6  # of a dimension; one that does not vary is only shifted


@dataclass(frozen=True)
class MappingConfig:
    """What the two networks look like."""

    photo_width: int  # dimensions of a pixel's features from the photo
    shape_width: int  # from the points
    deep: bool = False
    """Five layers in the middle instead of one: the authors' variant for Eyecandies."""
    least_hidden: int = 0
    """Width of the middle, at least; else the mean of both widths, as published."""

    @property
    def hidden(self) -> int:
        """Width of the middle layers."""
        return max((self.photo_width + self.shape_width) // 2, self.least_hidden)


@dataclass(frozen=True)
class Standard:
    """What is subtracted from each dimension and what it is then divided by."""

    mean: Float[Tensor, " width"]
    spread: Float[Tensor, " width"]

    @classmethod
    def none(cls, width: int) -> Standard:
        """Leaves features as they are."""
        return cls(torch.zeros(width), torch.ones(width))


class MappingPair(nn.Module):
    """Both networks, and what features are standardised by before either sees them."""

    photo_mean: Float[Tensor, " photo_width"]
    photo_spread: Float[Tensor, " photo_width"]
    shape_mean: Float[Tensor, " shape_width"]
    shape_spread: Float[Tensor, " shape_width"]

    def __init__(
        self, config: MappingConfig, photo: Standard | None = None, shape: Standard | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.to_shape = mapping(config.photo_width, config.shape_width, config)
        self.to_photo = mapping(config.shape_width, config.photo_width, config)
        for name, given, width in (
            ("photo", photo, config.photo_width),
            ("shape", shape, config.shape_width),
        ):
            standard = given or Standard.none(width)
            self.register_buffer(f"{name}_mean", standard.mean.float().clone())
            self.register_buffer(f"{name}_spread", standard.spread.float().clone())

    def standardised(
        self, photo: Float[Tensor, "rows photo_width"], shape: Float[Tensor, "rows shape_width"]
    ) -> tuple[Float[Tensor, "rows photo_width"], Float[Tensor, "rows shape_width"]]:
        """Both kinds of features as the networks take and predict them."""
        return (photo - self.photo_mean) / self.photo_spread, (shape - self.shape_mean) / self.shape_spread

    def forward(
        self, photo: Float[Tensor, "rows photo_width"], shape: Float[Tensor, "rows shape_width"]
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """The losses of M23 and of M32: 1 - the mean cosine over all rows, each in [0, 2]."""
        photo, shape = self.standardised(photo, shape)
        return cosine_loss(self.to_shape(photo), shape), cosine_loss(self.to_photo(shape), photo)

    def distances(
        self, photo: Float[Tensor, "rows photo_width"], shape: Float[Tensor, "rows shape_width"]
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
        """D2 and D3 of each row, in [0, 2]."""
        photo, shape = self.standardised(photo, shape)
        return direction_distance(self.to_photo(shape), photo), direction_distance(
            self.to_shape(photo), shape
        )


def mapping(width_in: int, width_out: int, config: MappingConfig) -> nn.Sequential:
    """Linear layers with GELU between them; no normalisation, no dropout, no way around."""
    layers: list[nn.Module] = [nn.Linear(width_in, config.hidden), nn.GELU()]
    for _ in range(DEEP_LAYERS if config.deep else 1):
        layers += [nn.Linear(config.hidden, config.hidden), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(config.hidden, width_out))


def cosine_loss(
    predicted: Float[Tensor, "rows width"], true: Float[Tensor, "rows width"]
) -> Float[Tensor, ""]:
    """1 - the mean cosine of the angle between rows, in [0, 2]."""
    return 1 - functional.cosine_similarity(predicted, true, dim=1, eps=LOSS_EPSILON).mean()


def direction_distance(
    predicted: Float[Tensor, "rows width"], true: Float[Tensor, "rows width"]
) -> Float[Tensor, " rows"]:
    """Distance in [0, 2] of the rows brought to length 1; a row of zeros stays at the origin and is 1 from any other."""
    return (functional.normalize(predicted, dim=1) - functional.normalize(true, dim=1)).norm(dim=1)


def standard_of(total: Float[Tensor, " width"], squares: Float[Tensor, " width"], rows: int) -> Standard:
    """Mean and spread of `rows` rows from their sum and sum of squares, in float64."""
    mean = total / rows
    spread = (squares / rows - mean.square()).clamp_min(0).sqrt()
    return Standard(mean, torch.where(spread > LEAST_SPREAD, spread, torch.ones_like(spread)))


def parameter_count(module: nn.Module) -> int:
    """Numbers that are trained."""
    return sum(parameter.numel() for parameter in module.parameters())
