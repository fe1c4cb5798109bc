"""Features of a sample in the sparse form that they are kept in, and a folder where each sample's are computed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from detect.cfm.features2d import load_photo_extractor, prunable
from detect.cfm.features3d import (
    NORMALS,
    POINT_MAE,
    SHAPES,
    descriptors_at_pixels,
    load_point_mae,
    normals_picture,
    tokens_at_pixels,
)
from detect.cfm.pixels import PixelWeights, grid_weights
from prepare.atomic_write import write_json, write_with
from prepare.errors import InputError, UsageError
from prepare.registered import Registered, RegisteredClass, Sample

FORMAT = "splatad-cfm-features-1"  # another number where the same settings would give other features
_BLOCK = 1 << 20
OnDone = Callable[[int, int], None]  # samples done, of how many


@dataclass(frozen=True)
class FeatureConfig:
    """Which features stand for photo and shape."""

    photo: str = "handcrafted"
    """Of the photo: handcrafted, dino_vitb8 (published), dinov2, mobilenet_v2, wide_resnet50, or a network of timm."""
    shape: str = "curvature"
    """Of the points: curvature, fpfh, fpfh_multi, normals (a picture through the photo's network), point_mae (published)."""
    blocks: int = 0
    """Blocks kept of each transformer, from the first: 8, 4 or 1 for M, S and T; 0: all."""
    px: int = 224
    """Side of the square that photo and points are brought to, px."""
    batch_statistics: bool = True
    """Whether Point-MAE's BatchNorm uses the cloud's own statistics (as published) or those of its training."""
    random_seed: int | None = None
    """Random weights from this seed in place of learned ones, to try a run: its scores mean nothing."""

    def check(self) -> None:
        """Raises: UsageError for a name or a number that cannot be."""
        if self.shape not in SHAPES:
            raise UsageError(f"shape features {self.shape!r}: one of {', '.join(SHAPES)} is wanted")
        if self.blocks < 0:
            raise UsageError(f"blocks {self.blocks}: 0 for all, or how many to keep")
        if self.blocks and not prunable(self.photo) and self.shape != POINT_MAE:
            raise UsageError(f"blocks {self.blocks}: neither {self.photo} nor {self.shape} has any; give 0")
        if self.px < 32:
            raise UsageError(f"px {self.px}: 32 at least are wanted")


@dataclass(frozen=True)
class GridFeatures:
    """Vectors on a grid that covers the picture, interpolated bilinearly."""

    values: Float[Tensor, "rows columns width"]
    px: int

    @property
    def width(self) -> int:
        """Channels."""
        return self.values.shape[2]

    def rows(self, pixels: Int[Tensor, "rows"]) -> Float[Tensor, "rows width"]:
        """The features at pixels of these numbers."""
        weights = grid_weights(self.values.shape[0], self.values.shape[1], self.px).to(self.values.device)
        return weights.rows(self.values.flatten(0, 1), pixels)

    def tensors(self) -> dict[str, Tensor]:
        """What is kept."""
        return {"values": self.values}

    def to(self, device: torch.device) -> GridFeatures:
        """The same on another device."""
        return GridFeatures(self.values.to(device), self.px)


@dataclass(frozen=True)
class TokenFeatures:
    """Vectors of points, and which of them each pixel is made of."""

    values: Float[Tensor, "tokens width"]
    weights: PixelWeights

    @property
    def width(self) -> int:
        """Channels."""
        return self.values.shape[1]

    def rows(self, pixels: Int[Tensor, "rows"]) -> Float[Tensor, "rows width"]:
        """The features at pixels of these numbers; zero where the pixel has none."""
        return self.weights.rows(self.values, pixels)

    def tensors(self) -> dict[str, Tensor]:
        """What is kept."""
        return {
            "values": self.values,
            "offsets": self.weights.offsets,
            "tokens": self.weights.tokens,
            "weights": self.weights.weights,
        }

    def to(self, device: torch.device) -> TokenFeatures:
        """The same on another device."""
        return TokenFeatures(self.values.to(device), self.weights.to(device))


@dataclass(frozen=True)
class SampleFeatures:
    """Features of photo and shape at every pixel, as little as gives them back."""

    photo: GridFeatures
    shape: GridFeatures | TokenFeatures
    valid: Bool[Tensor, "pixels"]  # pixels that take part, row by row: those with shape features

    @property
    def photo_width(self) -> int:
        """Channels of the photo's features."""
        return self.photo.width

    @property
    def shape_width(self) -> int:
        """Channels of the shape's features."""
        return self.shape.width

    def rows(
        self, pixels: Int[Tensor, "rows"]
    ) -> tuple[Float[Tensor, "rows photo_width"], Float[Tensor, "rows shape_width"]]:
        """Features of photo and shape, float32, at pixels of these numbers (row times px plus column), and nowhere else."""
        return self.photo.rows(pixels), self.shape.rows(pixels)

    def to(self, device: torch.device) -> SampleFeatures:
        """The same on another device."""
        return SampleFeatures(self.photo.to(device), self.shape.to(device), self.valid.to(device))

    def save(self, path: Path, key: str = "") -> None:
        """Write one .safetensors file, atomically; `key` says of what, by which settings."""
        tensors = {"valid": self.valid}
        for name, part in (("photo", self.photo), ("shape", self.shape)):
            tensors |= {f"{name}.{key}": tensor for key, tensor in part.tensors().items()}
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        about = {"format": FORMAT, "key": key, "px": str(self.photo.px)}
        write_with(path, lambda temporary: save_file(held, temporary, metadata=about))

    @classmethod
    def load(cls, path: Path, key: str | None = None) -> SampleFeatures:
        """What `save` wrote, on the CPU.

        Raises: InputError for another file, a damaged one, or where `key` is given and the file has another.
        """
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                if about.get("format") != FORMAT or (key is not None and about.get("key") != key):
                    raise InputError(
                        f"{path}: holds no features of this sample and these settings; delete it"
                    )
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            px = int(about["px"])
            photo = GridFeatures(tensors["photo.values"], px)
            shape: GridFeatures | TokenFeatures = (
                GridFeatures(tensors["shape.values"], px)
                if ("shape.offsets" not in tensors)
                else TokenFeatures(
                    tensors["shape.values"],
                    PixelWeights(tensors["shape.offsets"], tensors["shape.tokens"], tensors["shape.weights"]),
                )
            )
            return cls(photo, shape, tensors["valid"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError(f"{path}: cannot be read as features ({error}); delete it") from error


def extract(
    config: FeatureConfig, registered: Registered, device: torch.device | None = None
) -> SampleFeatures:
    """Features of one photo with its points, on the CPU in half precision; networks run on `device` and are kept loaded.

    Pixels that take part: with point_mae those that the spread tokens reach (1 to 2 px beyond the points, as published), else the
    valid points that have a surface.

    Raises: UsageError as `FeatureConfig.check`, or for another size than the settings'; InputError for too few points;
    MissingPartError where weights are not there.
    """
    config.check()
    if len(registered.rgb) != config.px:
        raise UsageError(
            f"photo of {len(registered.rgb)} px: the settings say {config.px}; load it at that size"
        )
    photo_blocks = config.blocks if prunable(config.photo) else 0
    photo_seed = config.random_seed if prunable(config.photo) else None
    photo = load_photo_extractor(config.photo, photo_blocks, photo_seed, device)
    shape: GridFeatures | TokenFeatures
    if config.shape == NORMALS:
        picture, valid = normals_picture(registered.xyz, registered.valid)
        shape, valid = GridFeatures(photo.grid(picture).half(), config.px), valid.flatten()
    else:
        if config.shape == POINT_MAE:
            network = load_point_mae(config.blocks, config.batch_statistics, config.random_seed, device)
            values, weights = tokens_at_pixels(registered.xyz, registered.valid, network)
        else:
            values, weights = descriptors_at_pixels(registered.xyz, registered.valid, config.shape)
        shape, valid = TokenFeatures(values.half(), weights), weights.covered()
    return SampleFeatures(GridFeatures(photo.grid(registered.rgb).half(), config.px), shape, valid)


class FeatureStore:
    """Features of a class's samples, computed once for each setting and kept in a folder; a run that broke off goes on.

    A folder below it belongs to settings and class; each file in it names the contents of the photo and the points that it was
    computed of, and is computed anew where those have changed.
    """

    def __init__(
        self,
        folder: Path,
        config: FeatureConfig,
        registered_class: RegisteredClass,
        device: torch.device | None = None,
    ) -> None:
        config.check()
        self.config, self.registered_class, self.device = config, registered_class, device
        about = {
            "format": FORMAT,
            "features": asdict(config),
            "class": {
                "name": registered_class.name,
                "source": registered_class.source,
                "variant": registered_class.variant,
                "settings": dict(registered_class.settings),
            },
        }
        text = json.dumps(about, sort_keys=True, default=str)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        if not (self.folder / "features.json").is_file():
            write_json(self.folder / "features.json", json.loads(text))
        self._keys: dict[str, str] = {}

    def get(self, sample: Sample) -> SampleFeatures:
        """The sample's features, computed where they are not kept yet.

        Raises: as `RegisteredClass.load` and `extract`.
        """
        path, key = self.path(sample), self._key(sample)
        if path.is_file():
            try:
                return SampleFeatures.load(path, key)
            except InputError:
                pass  # damaged, or of data that has changed: it is replaced
        features = self._computed(sample)
        features.save(path, key)
        return features

    def has(self, sample: Sample) -> bool:
        """Whether the sample's features are kept and still of its files."""
        try:
            with safe_open(self.path(sample), framework="pt") as file:
                about = file.metadata() or {}
        except (OSError, SafetensorError):
            return False
        return about.get("format") == FORMAT and about.get("key") == self._key(sample)

    def prepare(self, samples: Sequence[Sample], on_done: OnDone | None = None) -> list[tuple[str, str]]:
        """Compute what is missing of the samples; names and reasons of those that cannot be used, the others go on.

        Raises: UsageError and MissingPartError, which concern all samples.
        """
        refused = []
        for number, sample in enumerate(samples, 1):
            try:
                if not self.has(sample):
                    self._computed(sample).save(self.path(sample), self._key(sample))
            except InputError as error:
                if error.exit_status != InputError.exit_status:
                    raise
                refused.append((sample.name, str(error)))
            if on_done is not None:
                on_done(number, len(samples))
        return refused

    def path(self, sample: Sample) -> Path:
        """Where the sample's features are kept."""
        return self.folder / f"{sample.name}.safetensors"

    def _computed(self, sample: Sample) -> SampleFeatures:
        registered = self.registered_class.load(sample, self.config.px)
        try:
            return extract(self.config, registered, self.device)
        except InputError as error:
            if error.exit_status != InputError.exit_status:
                raise
            raise InputError(f"{sample.name}: {error}") from error

    def _key(self, sample: Sample) -> str:
        """The contents of the sample's photo and points; read once for each store."""
        if sample.name not in self._keys:
            digest = hashlib.sha256()
            for path in (sample.rgb, sample.xyz):
                try:
                    with path.open("rb") as file:
                        digest.update(hashlib.file_digest(file, "sha256").digest())
                except OSError as error:
                    raise InputError(
                        f"{path}: cannot be read ({error.strerror}); prepare the class again"
                    ) from error
            self._keys[sample.name] = digest.hexdigest()
        return self._keys[sample.name]
