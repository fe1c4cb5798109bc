"""A bowl seen by a camera, small enough for every test; and features made up so that shape follows from photo by a known
rule, which a planted anomaly breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prepare.errors import InputError
from prepare.registered import Registered, Sample

PX = 56
PHOTO_WIDTH, SHAPE_WIDTH = 6, 5


@dataclass(frozen=True)
class MadeFeatures:
    photo: Float[Tensor, "pixels photo_width"]
    shape: Float[Tensor, "pixels shape_width"]
    valid: Bool[Tensor, " pixels"]

    def rows(
        self, pixels: Int[Tensor, " rows"]
    ) -> tuple[Float[Tensor, "rows photo_width"], Float[Tensor, "rows shape_width"]]:
        return self.photo[pixels], self.shape[pixels]

    def to(self, device: torch.device) -> MadeFeatures:
        return replace(
            self, photo=self.photo.to(device), shape=self.shape.to(device), valid=self.valid.to(device)
        )


def made_features(seed: int, planted: bool = False) -> MadeFeatures:
    """A disc of pixels whose shape's features are a fixed smooth function of the photo's; `planted`: not so in a square."""
    rng = np.random.default_rng([7, seed])
    rows, columns = np.mgrid[:PX, :PX]
    phase = rng.uniform(0, 2 * np.pi, PHOTO_WIDTH)
    waves = np.stack(
        [
            np.sin((rows * (k + 1) + columns * (k % 3)) / 5 + phase[k]) + 0.02 * rng.normal(size=(PX, PX))
            for k in range(PHOTO_WIDTH)
        ],
        axis=-1,
    )
    rule = np.random.default_rng(3).normal(size=(PHOTO_WIDTH, SHAPE_WIDTH))
    shape = np.tanh(waves @ rule) + 3.0  # far from the origin: cosines say little before standardising
    valid = (rows - PX / 2) ** 2 + (columns - PX / 2) ** 2 < (PX / 2 - 2) ** 2
    if planted:
        shape[16:28, 18:30] = 6.0 - shape[16:28, 18:30]
    flat = torch.from_numpy(valid).flatten()
    return MadeFeatures(
        torch.from_numpy(waves).float().reshape(-1, PHOTO_WIDTH) * flat[:, None],
        torch.from_numpy(shape).float().reshape(-1, SHAPE_WIDTH) * flat[:, None],
        flat,
    )


class MadeClass:
    """A class and its store in one: samples, features by name, and truth."""

    def __init__(self, train: int = 8, validation: int = 6, good: int = 5, bad: int = 5) -> None:
        self.everything = [
            *(self._sample("train", "good", n) for n in range(train)),
            *(self._sample("validation", "good", n) for n in range(validation)),
            *(self._sample("test", "good", n) for n in range(good)),
            *(self._sample("test", "hole", n) for n in range(bad)),
        ]
        self.broken: set[str] = set()
        self.reads: list[str] = []

    @staticmethod
    def _sample(split: str, defect: str, number: int) -> Sample:
        here = Path("nowhere")
        return Sample(f"{split}/{defect}/{number:03d}", split, defect, here, here, None)

    def samples(self, split: str | None = None) -> list[Sample]:
        return [sample for sample in self.everything if split in (None, sample.split)]

    def get(self, sample: Sample) -> MadeFeatures:
        self.reads.append(sample.name)
        if sample.name in self.broken:
            raise InputError(f"{sample.name}: 12 points, at least 1024 are wanted; look at the file")
        seed = sum(ord(letter) * (place + 1) for place, letter in enumerate(sample.name))
        return made_features(seed, planted=bool(sample.label))

    def load(self, sample: Sample, px: int) -> Registered:
        mask = torch.zeros(px, px, dtype=torch.bool)
        if sample.label:
            mask[16:28, 18:30] = True
        valid = self.get(sample).valid.reshape(px, px)
        xyz = valid[..., None] * torch.ones(px, px, 3)
        truth = None if sample.name == "test/hole/001" else mask
        return Registered(torch.zeros(px, px, 3), xyz, valid, truth)


@pytest.fixture
def made_class() -> Callable[..., MadeClass]:
    return MadeClass


@pytest.fixture
def bowl() -> Registered:
    return made_bowl(px=64, radius=0.45)


@pytest.fixture
def rough_bowl() -> Registered:
    """With bumps of 0.3 of a pixel, so that histograms of angles have something to count."""
    return made_bowl(px=64, radius=0.45, roughness_m=1.5e-4)


def made_bowl(px: int, radius: float, roughness_m: float = 2e-5) -> Registered:
    """A paraboloid of 1 px = 0.5 mm, `radius` of the frame wide, 0.4 m off; its vertex is nearest to the camera."""
    generator = torch.Generator().manual_seed(3)
    axis = (torch.arange(px) + 0.5) / px - 0.5
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    valid = down**2 + right**2 < radius**2
    size = px * 5e-4
    depth = 0.4 + 0.6 * size * (down**2 + right**2) + roughness_m * torch.randn(px, px, generator=generator)
    xyz = torch.stack([size * right + 0.01, size * down + 0.02, depth], dim=2) * valid[..., None]
    rgb = torch.rand(px, px, 3, generator=generator)
    return Registered(rgb, xyz, valid, None)
