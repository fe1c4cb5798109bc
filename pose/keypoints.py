"""Local features of an image, one shape for all extractors: SIFT without weights; ALIKE, DISK and XFeat with them.

Positions are in px with pixel centres at +0.5, whatever the library behind an extractor uses.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from prepare.errors import InputError, MissingPartError, UsageError
from prepare.weights import find_entry, load_weights

MOST = 1500  # keypoints of an image
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Keypoints:
    """Local features of one image, strongest first by the extractor's own measure."""

    positions: Float[Tensor, "n uv=2"]  # px, pixel centres at +0.5
    descriptors: Float[Tensor, "n d"]  # unit vectors
    scales: Float[Tensor, " n"]  # px: size of what was described; 1 where the extractor has a single size

    def __len__(self) -> int:
        return len(self.positions)

    def select(self, rows: Tensor) -> Keypoints:
        """The keypoints that `rows` (indices or booleans) names."""
        return Keypoints(self.positions[rows], self.descriptors[rows], self.scales[rows])


@runtime_checkable  # the tests check signatures
class KeypointExtractor(Protocol):
    """Finds and describes local features. Only descriptors of one and the same `name` can be compared."""

    @property
    def name(self) -> str: ...

    def extract(
        self, rgb: Float[Tensor, "height width rgb=3"], mask: Bool[Tensor, "height width"] | None = None
    ) -> Keypoints:
        """Features of `rgb` (in [0, 1]), of those pixels alone that `mask` names."""
        ...


def extractor(name: str) -> KeypointExtractor:
    """The extractor called `name`: one of EXTRACTORS.

    `sift` is COLMAP's where pycolmap is installed and kornia's elsewhere; its `name` says which of them it is.
    Raises: UsageError for another name; MissingPartError where its library or its weights are not there.
    """
    if name not in EXTRACTORS:
        raise UsageError(f"local features {name!r}: not known; there are {', '.join(EXTRACTORS)}")
    return EXTRACTORS[name]()


# ---------------------------------------------------------------------------------------------------------------- SIFT


class ColmapSift:
    """COLMAP's SIFT on the CPU, RootSIFT descriptors; the coarsest features count as the strongest.

    Source: Lowe 2004; Arandjelovic and Zisserman 2012 (RootSIFT).
    """

    name = "sift_colmap"

    def __init__(self, most: int = MOST) -> None:
        colmap = _colmap()
        if colmap is None:
            raise MissingPartError(
                "local features sift_colmap: need pycolmap 4 or newer; pip install 'splatad[photos]', or use "
                "sift_kornia, which needs nothing"
            )
        options = colmap.FeatureExtractionOptions()
        options.type = colmap.FeatureExtractorType.SIFT
        options.use_gpu = False
        options.num_threads = 1  # features must not depend on the machine
        options.sift.max_num_features = most
        level = colmap.logging.minloglevel
        colmap.logging.minloglevel = 1  # it announces itself otherwise
        try:
            self._sift = colmap.Sift(options, colmap.Device.cpu)
        finally:
            colmap.logging.minloglevel = level

    def extract(
        self, rgb: Float[Tensor, "height width rgb=3"], mask: Bool[Tensor, "height width"] | None = None
    ) -> Keypoints:
        """Features of `rgb`; see `KeypointExtractor`."""
        grey = np.ascontiguousarray(_grey(rgb).clamp(0, 1).numpy())
        frames, descriptors = self._sift.extract(grey)
        frames = torch.from_numpy(np.array(frames, dtype=np.float32)).reshape(-1, 4)
        described = torch.from_numpy(np.array(descriptors, dtype=np.float32)).reshape(-1, 128)
        order = frames[:, 2].argsort(descending=True, stable=True)
        return _on_mask(frames[order, :2], described[order], frames[order, 2], mask)


class KorniaSift:
    """kornia's scale-space SIFT in torch, RootSIFT descriptors; by the difference of Gaussians, strongest first."""

    name = "sift_kornia"

    def __init__(self, most: int = MOST) -> None:
        import kornia.feature as kornia_feature

        # Five times faster than one patch a keypoint; older versions have the patches alone.
        known = inspect.signature(kornia_feature.SIFTFeatureScaleSpace).parameters
        backend: dict[str, Any] = {"descriptor_backend": "pyramid"} if "descriptor_backend" in known else {}
        self._sift = kornia_feature.SIFTFeatureScaleSpace(most, **backend).eval()

    def extract(
        self, rgb: Float[Tensor, "height width rgb=3"], mask: Bool[Tensor, "height width"] | None = None
    ) -> Keypoints:
        """Features of `rgb`; see `KeypointExtractor`."""
        with torch.no_grad(), one_thread():
            frames, response, described = self._sift(_grey(rgb)[None, None].contiguous())
        order = response[0].argsort(descending=True, stable=True)
        order = order[response[0, order] > 0]  # where it finds fewer than asked for, empty rows follow
        frames = frames[0, order]
        # A frame's scale is six standard deviations of the blob; its centre counts from the first pixel's centre.
        scale = torch.linalg.det(frames[:, :, :2]).abs().sqrt() / 6.0
        return _on_mask(frames[:, :, 2] + 0.5, described[0, order], scale, mask)


def _sift() -> KeypointExtractor:
    return KorniaSift() if _colmap() is None else ColmapSift()


def _colmap() -> Any | None:
    """pycolmap where it is installed and new enough, else None."""
    try:
        pycolmap = importlib.import_module("pycolmap")
    except ImportError:
        return None
    return pycolmap if hasattr(pycolmap, "FeatureExtractionOptions") else None


# --------------------------------------------------------------------------------------------------------------- ALIKE


@dataclass(frozen=True)
class AlikeSize:
    """Widths of one of the four published networks."""

    blocks: tuple[int, int, int, int]  # channels at full, 1/2, 1/8 and 1/32 size
    described: int  # length of a descriptor
    two_layer_head: bool = False


ALIKE_SIZES = {
    "t": AlikeSize((8, 16, 32, 64), 64),
    "s": AlikeSize((8, 16, 48, 96), 96),
    "n": AlikeSize((16, 32, 64, 128), 128),
    "l": AlikeSize((32, 64, 128, 128), 128, two_layer_head=True),
}
ALIKE_LEAST_SCORE = 0.1  # of a keypoint; published 0.2, for photos with more texture than a part has
_ALIKE_RADIUS = 2  # px: of the window in which a keypoint is the maximum and its place is refined
_ALIKE_TEMPERATURE = 0.1  # of the soft argmax


class _AlikeBlock(nn.Module):
    """Two 3x3 convolutions, batch-normalised; with a shortcut where `shortcut`."""

    def __init__(self, channels_in: int, channels_out: int, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample = nn.Conv2d(channels_in, channels_out, 1) if shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y if self.downsample is None else y + self.downsample(x))


class AlikeNetwork(nn.Module):
    """ALIKE's network; the names in its state dict are those of the published weights.

    Source: Zhao et al. 2022, "ALIKE: Accurate and Lightweight Keypoint Detection and Descriptor Extraction", 3.1.
    """

    def __init__(self, size: AlikeSize) -> None:
        super().__init__()
        c1, c2, c3, c4 = size.blocks
        quarter = size.described // 4
        self.block1 = _AlikeBlock(3, c1, shortcut=False)
        self.block2 = _AlikeBlock(c1, c2, shortcut=True)
        self.block3 = _AlikeBlock(c2, c3, shortcut=True)
        self.block4 = _AlikeBlock(c3, c4, shortcut=True)
        self.conv1 = nn.Conv2d(c1, quarter, 1, bias=False)
        self.conv2 = nn.Conv2d(c2, quarter, 1, bias=False)
        self.conv3 = nn.Conv2d(c3, quarter, 1, bias=False)
        self.conv4 = nn.Conv2d(c4, quarter, 1, bias=False)
        wide = size.described
        self.convhead1 = nn.Conv2d(wide, wide, 1, bias=False) if size.two_layer_head else None
        self.convhead2 = nn.Conv2d(wide, wide + 1, 1, bias=False)

    def forward(
        self, image: Float[Tensor, "1 rgb=3 height width"]
    ) -> tuple[tuple[Tensor, ...], Float[Tensor, "height width"]]:
        """Feature maps of the four levels and the score in [0, 1] of each pixel; height and width divide by 32.

        As published, but the last layer is linear and commutes with the bilinear upsampling: of the upsampled maps only
        the score's channel is ever made, and `describe` samples the rest where keypoints are.
        """
        one = self.block1(image)
        two = self.block2(F.max_pool2d(one, 2))
        three = self.block3(F.max_pool2d(two, 4))
        four = self.block4(F.max_pool2d(three, 4))
        convolved = ((self.conv1, one), (self.conv2, two), (self.conv3, three), (self.conv4, four))
        maps = tuple(torch.relu(conv(x)) for conv, x in convolved)
        whole = (image.shape[-2], image.shape[-1])
        of_score = self.convhead2.weight[-1:]
        if self.convhead1 is not None:
            joined = torch.cat([_upsampled(x, whole) for x in maps], dim=1)
            logit = F.conv2d(torch.relu(self.convhead1(joined)), of_score)
        else:
            shares = of_score.split([x.shape[1] for x in maps], dim=1)
            parts = [_upsampled(F.conv2d(x, w), whole) for x, w in zip(maps, shares, strict=True)]
            logit = torch.stack(parts).sum(dim=0)
        return maps, torch.sigmoid(logit[0, 0])

    def describe(
        self, maps: tuple[Tensor, ...], places: Float[Tensor, "n uv=2"], height: int, width: int
    ) -> Float[Tensor, "n d"]:
        """Unit descriptors at `places` (px from the first pixel's centre) of an image of that size."""
        grid = 2 * places / places.new_tensor([width - 1, height - 1]) - 1
        sampled = [F.grid_sample(x, grid[None, None], align_corners=True)[0, :, 0] for x in maps]
        joined = torch.cat(sampled).T
        if self.convhead1 is not None:
            joined = torch.relu(joined @ self.convhead1.weight[:, :, 0, 0].T)
        return F.normalize(joined @ self.convhead2.weight[:-1, :, 0, 0].T, dim=1)


def _upsampled(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


class Alike:
    """ALIKE keypoints in plain torch: not invariant to large turns of the image.

    Source: Zhao et al. 2022; a keypoint is a maximum of the score, refined by a soft argmax (their 3.2).
    """

    def __init__(self, size: str, most: int = MOST) -> None:
        self.name = f"alike_{size}"
        self._most = most
        self._network = AlikeNetwork(ALIKE_SIZES[size])
        load_network(self._network, self.name)

    def extract(
        self, rgb: Float[Tensor, "height width rgb=3"], mask: Bool[Tensor, "height width"] | None = None
    ) -> Keypoints:
        """Features of `rgb`; see `KeypointExtractor`."""
        height, width = rgb.shape[:2]
        image = _padded(rgb, 32, "constant")
        with torch.no_grad(), one_thread():
            maps, score = self._network(image)
            score = score[:height, :width]
            rows, columns = _maxima(score, ALIKE_LEAST_SCORE)
            if mask is not None:
                kept = mask[rows, columns]
                rows, columns = rows[kept], columns[kept]
            order = score[rows, columns].argsort(descending=True, stable=True)[: self._most]
            rows, columns = rows[order], columns[order]
            places = torch.stack([columns, rows], dim=1) + _soft_argmax(score, rows, columns)
            descriptors = self._network.describe(maps, places, image.shape[2], image.shape[3])
        return Keypoints(places + 0.5, descriptors, torch.ones(len(places)))


def _maxima(score: Float[Tensor, "height width"], least: float) -> tuple[Tensor, Tensor]:
    """Rows and columns of the pixels above `least` that nothing within the radius exceeds, away from the border."""
    window = 2 * _ALIKE_RADIUS + 1
    highest = F.max_pool2d(score[None], window, stride=1, padding=_ALIKE_RADIUS)[0]
    found = (score == highest) & (score > least)
    inside = torch.zeros_like(found)
    edge = _ALIKE_RADIUS + 1
    inside[edge:-edge, edge:-edge] = True
    rows, columns = torch.nonzero(found & inside, as_tuple=True)
    return rows, columns


def _soft_argmax(
    score: Float[Tensor, "height width"], rows: Tensor, columns: Tensor
) -> Float[Tensor, "n uv=2"]:
    """Offset in px of each maximum from its pixel: the mean place of its window, weighted by exp(score / T)."""
    reach = torch.arange(-_ALIKE_RADIUS, _ALIKE_RADIUS + 1)
    down, right = (grid.reshape(-1) for grid in torch.meshgrid(reach, reach, indexing="ij"))
    window = score[rows[:, None] + down, columns[:, None] + right]
    weight = torch.softmax(window / _ALIKE_TEMPERATURE, dim=1)
    return weight @ torch.stack([right, down], dim=1).to(score.dtype)


# -------------------------------------------------------------------------------------------------------- DISK, XFeat


class Disk:
    """DISK by kornia. Source: Tyszkiewicz et al. 2020."""

    name = "disk"

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._network = kornia_class("DISK", self.name)()
        load_network(self._network, self.name)

    def extract(
        self, rgb: Float[Tensor, "height width rgb=3"], mask: Bool[Tensor, "height width"] | None = None
    ) -> Keypoints:
        """Features of `rgb`; see `KeypointExtractor`."""
        image = rgb.permute(2, 0, 1)[None].contiguous()
        with torch.no_grad(), one_thread():
            found = self._network(image, n=self._most, pad_if_not_divisible=True)[0]
        order = found.detection_scores.argsort(descending=True, stable=True)
        places = found.keypoints[order].float() + 0.5
        return _on_mask(places, found.descriptors[order], torch.ones(len(places)), mask)


class XFeat:
    """XFeat by kornia. Source: Potje et al. 2024."""

    name = "xfeat"

    def __init__(self, most: int = MOST) -> None:
        self._xfeat = kornia_class("XFeat", self.name)(top_k=most).eval()
        load_network(self._xfeat.net, self.name)

    def extract(
        self, rgb: Float[Tensor, "height width rgb=3"], mask: Bool[Tensor, "height width"] | None = None
    ) -> Keypoints:
        """Features of `rgb`; see `KeypointExtractor`."""
        height, width = rgb.shape[:2]
        # To a multiple of 32, else kornia resizes the image and the keypoints' places become ambiguous.
        with one_thread():
            found = self._xfeat.detectAndCompute(_padded(rgb, 32, "replicate"))[0]
        places = found["keypoints"].clone() + 0.5  # a clone: inference tensors may not enter other operations
        inside = (places[:, 0] < width) & (places[:, 1] < height)
        described = F.normalize(found["descriptors"].clone(), dim=1)
        return _on_mask(places[inside], described[inside], torch.ones(int(inside.sum())), mask)


def kornia_class(wanted: str, name: str) -> Any:
    """kornia.feature's class `wanted`. Raises: MissingPartError where this kornia is too old to have it."""
    import kornia
    import kornia.feature as kornia_feature

    if not hasattr(kornia_feature, wanted):
        raise MissingPartError(
            f"local features {name}: kornia {kornia.__version__} has no {wanted}; pip install --upgrade kornia"
        )
    return getattr(kornia_feature, wanted)


# -------------------------------------------------------------------------------------------------------------- shared

EXTRACTORS: dict[str, Callable[[], KeypointExtractor]] = {
    "sift": _sift,
    "sift_colmap": ColmapSift,
    "sift_kornia": KorniaSift,
    "alike_t": lambda: Alike("t"),
    "alike_s": lambda: Alike("s"),
    "alike_n": lambda: Alike("n"),
    "alike_l": lambda: Alike("l"),
    "disk": Disk,
    "xfeat": XFeat,
}


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread: convolutions and matrix products round differently on two, and what is found would differ."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def load_network(
    network: nn.Module, name: str, adapt: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None
) -> None:
    """Fills `network` with the registered weights `name`, ready to be used; `adapt` renames what the file calls otherwise.

    Raises: MissingPartError where the file is not there, InputError where it is another network's.
    """
    entry = find_entry(name)
    tensors = load_weights(entry)
    try:
        network.load_state_dict(adapt(tensors) if adapt is not None else tensors)
    except RuntimeError as error:  # torch's word for names and shapes that do not fit
        raise InputError(
            f"weights {name}: {entry.file} holds another network ({str(error).splitlines()[-1].strip()}); "
            "replace the file"
        ) from error
    network.eval().requires_grad_(False)


def _grey(rgb: Float[Tensor, "height width rgb=3"]) -> Float[Tensor, "height width"]:
    return rgb.float() @ rgb.new_tensor(_LUMA).float()


def _padded(
    rgb: Float[Tensor, "height width rgb=3"], multiple: int, mode: str
) -> Float[Tensor, "1 rgb=3 rows columns"]:
    """The image as a batch of one, grown at its right and lower edges to a multiple of `multiple` px."""
    height, width = rgb.shape[:2]
    planes = rgb.float().permute(2, 0, 1)[None].contiguous()
    return F.pad(planes, (0, -width % multiple, 0, -height % multiple), mode=mode)


def _on_mask(
    positions: Float[Tensor, "n uv=2"],
    descriptors: Float[Tensor, "n d"],
    scales: Float[Tensor, " n"],
    mask: Bool[Tensor, "height width"] | None,
) -> Keypoints:
    """The keypoints whose pixel `mask` names, their descriptors made unit vectors."""
    found = Keypoints(positions, F.normalize(descriptors.float(), dim=1), scales)
    if mask is None:
        return found
    height, width = mask.shape
    columns, rows = positions.floor().long().unbind(dim=1)
    return found.select(mask[rows.clamp(0, height - 1), columns.clamp(0, width - 1)])
