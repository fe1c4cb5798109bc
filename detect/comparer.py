"""A small learned comparison of photo and render: which differences are defects and which are what good photos leave.

A U-Net (Ronneberger et al. 2015) of 48,000 weights sees, for every pixel, how photo and render differ, what good photos
of this very reference leave there, and where the part's edges, silhouettes and gloss lie. It is trained for each part on
its own good photos (`detect.train_comparer`), from weights that come with the package: those were trained on generated
products alone (`scripts/train_comparer.py`) and know defects, but no part's gloss.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from detect.difference import UNSIGNED, lab_of
from detect.expected import Expectation
from prepare.atomic_write import write_with
from prepare.errors import InputError

START = Path(__file__).parent / "comparer.safetensors"  # what training for a part starts from
FLOORS = (0.02, 0.05)  # added to the expected deviation of colour and contrast: noise and rounding
INPUTS = 21
MARGIN_PX = 16  # round the part that is compared: the network's reach is about so far
EMPTY_LOGIT = -12.0  # where neither photo nor render shows the part
WIDTHS = (16, 24, 32)  # channels at full, half and quarter resolution


@dataclass(frozen=True)
class Compared:
    """Photo and render at one camera, and what is to be expected there."""

    photo: Float[Tensor, "height width rgb=3"]
    photo_alpha: Float[Tensor, "height width"]  # the part's share of each photo pixel, ones where unknown
    render: Float[Tensor, "height width rgb=3"]
    render_alpha: Float[Tensor, "height width"]
    depth: Float[Tensor, "height width"]  # as rasterised: weighted by alpha
    channels: Float[Tensor, "channel height width"]  # of `detect.difference`, perhaps more
    expected: Expectation


class Comparer(nn.Module):
    """Logits of "this pixel is a defect" from `comparer_inputs`."""

    def __init__(self, inputs: int = INPUTS, widths: tuple[int, int, int] = WIDTHS) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.fine = _double(inputs, fine)
        self.middle = _double(fine, middle)
        self.coarse = _double(middle, coarse)
        self.up_middle = nn.Conv2d(coarse + middle, middle, 3, padding=1)
        self.up_fine = nn.Conv2d(middle + fine, fine, 3, padding=1)
        self.out = nn.Conv2d(fine, 1, 1)

    def forward(
        self, inputs: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch height width"]:
        height, width = inputs.shape[-2:]
        padded = F.pad(inputs, (0, -width % 4, 0, -height % 4))
        fine = self.fine(padded)
        middle = self.middle(F.avg_pool2d(fine, 2))
        coarse = self.coarse(F.avg_pool2d(middle, 2))
        middle = F.relu(self.up_middle(torch.cat([_doubled(coarse), middle], dim=1)))
        fine = F.relu(self.up_fine(torch.cat([_doubled(middle), fine], dim=1)))
        return self.out(fine)[:, 0, :height, :width]


def comparer_inputs(compared: Compared) -> Float[Tensor, "channel height width"]:
    """What the network sees, INPUTS planes of about unit range.

    Colours do not enter as such, only differences, edges, lightness and chroma: no part is to be known by its colour.
    """
    seen, shown = lab_of(compared.photo), lab_of(compared.render)
    channels, expected = compared.channels, compared.expected
    floors = channels.new_tensor(FLOORS)[:, None, None]
    relative = (channels[:UNSIGNED] / (floors + expected.deviation[:UNSIGNED])).clamp_max(20) / 5
    alpha = compared.render_alpha
    on_part = alpha > 0.5
    depth = compared.depth / alpha.clamp_min(1e-3)
    if bool(on_part.any()):
        depth = torch.where(on_part, depth, depth[on_part].max())
    depth_edge = (_gradient(depth) / depth.mean().clamp_min(1e-6) * 10).clamp(0, 3)
    planes = [
        *(seen - shown),
        *channels[:UNSIGNED],
        expected.deviation[0] * 5,
        expected.deviation[1] * 3,
        *relative,
        _gradient(seen[0]),
        _gradient(shown[0]),
        alpha,
        compared.photo_alpha,
        compared.photo_alpha - alpha,
        depth_edge,
        shown[0] - 0.5,
        shown[1:].norm(dim=0),
        expected.evidence.clamp_max(2) / 2,
        expected.deviation[2] * 5,
        expected.light * 5,
        expected.gloss * 5,
    ]
    return torch.stack(planes)


@torch.no_grad()
def compare(networks: Sequence[Comparer], compared: Compared) -> Float[Tensor, "height width"]:
    """The networks' mean logits, EMPTY_LOGIT more than MARGIN_PX from the part in photo and render.

    Each network runs in one thread, side by side with the others: sums in a convolution are rounded otherwise for every
    other number of threads.
    """
    inputs = comparer_inputs(compared)
    window = part_window(compared.photo_alpha, compared.render_alpha)
    logits = torch.full_like(compared.render_alpha, EMPTY_LOGIT)
    if window is None:
        return logits
    # Channels last: the same convolutions in two thirds of the time on a CPU.
    cut = inputs[:, window[0], window[1]][None].contiguous(memory_format=torch.channels_last)
    for network in networks:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(network: Comparer) -> Tensor:
        torch.set_num_threads(1)
        with torch.no_grad():
            return network(cut)[0].clamp(EMPTY_LOGIT, -EMPTY_LOGIT)

    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(len(networks)) as pool:
            logits[window] = torch.stack(list(pool.map(run, networks))).mean(dim=0)
    finally:
        torch.set_num_threads(threads)
    return logits


def part_window(
    photo_alpha: Float[Tensor, "height width"], render_alpha: Float[Tensor, "height width"]
) -> tuple[slice, slice] | None:
    """Rows and columns of the pixels that show the part in either, and MARGIN_PX about them; None without any."""
    shown = (photo_alpha > 0.02) | (render_alpha > 0.02)
    rows, columns = shown.any(dim=1).nonzero()[:, 0], shown.any(dim=0).nonzero()[:, 0]
    if len(rows) == 0:
        return None

    def span(places: Tensor) -> slice:
        return slice(max(0, int(places[0]) - MARGIN_PX), int(places[-1]) + MARGIN_PX + 1)

    return span(rows), span(columns)


def new_comparer(seed: int) -> Comparer:
    """A network with random weights that depend on `seed` alone (He et al. 2015, normal, no bias)."""
    generator = torch.Generator().manual_seed(seed)
    network = Comparer()
    for name, weight in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(weight)
        else:
            nn.init.kaiming_normal_(weight, nonlinearity="relu", generator=generator)
    return network


def save_comparers(path: Path, networks: Sequence[Comparer]) -> None:
    """Write the weights of all to one .safetensors file, atomically."""
    tensors = {
        f"{number}.{name}": tensor.cpu().contiguous()
        for number, network in enumerate(networks)
        for name, tensor in network.state_dict().items()
    }
    write_with(
        path, lambda temporary: save_file(tensors, temporary, metadata={"format": "splatad-comparer-1"})
    )


def load_comparers(path: Path) -> tuple[Comparer, ...]:
    """What `save_comparers` wrote, frozen.

    Raises: InputError where it is missing or damaged.
    """
    try:
        tensors = load_file(path)
        networks = []
        for number in sorted({int(name.split(".")[0]) for name in tensors}):
            network = Comparer()
            own = {name.split(".", 1)[1]: t for name, t in tensors.items() if name.startswith(f"{number}.")}
            network.load_state_dict(own)
            networks.append(network.eval().requires_grad_(False))
        if not networks:
            raise ValueError("it holds no network")
        return tuple(networks)
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        raise InputError(
            f"{path}: the weights of the comparison cannot be read ({' '.join(str(error).split())[:160]}); "
            "run `splatad fit` again"
        ) from error


def _double(channels: int, width: int) -> nn.Sequential:
    first, second = nn.Conv2d(channels, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU())


def _doubled(images: Tensor) -> Tensor:
    return F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)


def _gradient(plane: Float[Tensor, "height width"]) -> Float[Tensor, "height width"]:
    """Length of the difference across two pixels, edges replicated."""
    padded = F.pad(plane[None, None], (1, 1, 1, 1), mode="replicate")[0, 0]
    across, down = padded[1:-1, 2:] - padded[1:-1, :-2], padded[2:, 1:-1] - padded[:-2, 1:-1]
    return (across.square() + down.square() + 1e-12).sqrt()
