"""Trains the comparison of `detect.comparer` on generated products: their held-out photos, good and made defective.

Each product is fitted with every third photo kept from the fit, so that the renders are as wrong as they are for a new
photo. Examples are those held-out photos, the same with defects made by `detect.synthetic_defects`, and the product's own
test photos, whose defects the ray caster made. `scripts/train_comparer.py` makes the products and runs this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from safetensors.torch import save_file
from torch import Tensor

from detect.comparer import Compared, Comparer, comparer_inputs, part_window
from detect.difference import difference_channels
from detect.expected import FITTED_WEIGHT, ResidualSums, expectation, residual_sums
from detect.synthetic_defects import with_defects
from prepare.atomic_write import write_with
from recon.fit import Photo
from recon.rasterize import RasterOptions, rasterize
from recon.reference import Reference

PATCH_PX = 96


@dataclass(frozen=True)
class TrainConfig:
    """How the network is trained."""

    steps: int = 4000
    """Steps of AdamW under a one-cycle schedule."""
    batch: int = 6
    """Patches of 96 x 96 px a step."""
    rate: float = 3e-3
    """Highest learning rate."""
    defective_share: float = 0.6
    """Share of the patches that are centred near a defect where their photo has one."""
    seed: int = 0
    """Seed of weights, patches and turns."""


@dataclass(frozen=True)
class Example:
    """One photo as the network sees it, cut to the part."""

    inputs: Float[Tensor, "channel height width"]  # half precision
    defect: Bool[Tensor, "height width"]


def examples_of(
    reference: Reference,
    photos: Sequence[Photo],
    tests: Iterable[tuple[Photo, Bool[Tensor, "_height _width"]]],
    synthetic: int,
    seed: int,
) -> list[Example]:
    """Examples from a product: of each held-out photo itself and `synthetic` defective versions; and its test photos.

    `tests` are photos at their true cameras with their defects. What good photos leave is taken without the photo in
    question, as at an inspection.
    """
    generator = torch.Generator().manual_seed(seed)
    own: list[tuple[ResidualSums, float]] = []
    total: ResidualSums | None = None
    for photo, view in zip(photos, reference.views, strict=True):
        sums, weight = residual_sums(reference, photo), 1.0 if view.held_out else FITTED_WEIGHT
        own.append((sums, weight))
        total = sums.plus(sums, weight - 1.0) if total is None else total.plus(sums, weight)
    assert total is not None
    options = RasterOptions(antialiased=reference.options.antialiased, depth=True)
    examples = []
    for photo, view, (sums, weight) in zip(photos, reference.views, own, strict=True):
        if not view.held_out:
            continue
        with torch.no_grad():
            render = rasterize(reference.gaussians, photo.camera, photo.background, options=options)
        expected = expectation(reference, total.plus(sums, -weight).expected(), photo.camera)
        clean = torch.zeros(photo.alpha.shape, dtype=torch.bool)
        versions = [(photo, clean)]
        versions += [
            with_defects(photo, reference.gaussians, render, options, generator) for _ in range(synthetic)
        ]
        examples += [_example(version, defect, render, expected) for version, defect in versions]
    expected_of_all = total.expected()
    for photo, defect in tests:
        with torch.no_grad():
            render = rasterize(reference.gaussians, photo.camera, photo.background, options=options)
        examples.append(
            _example(photo, defect, render, expectation(reference, expected_of_all, photo.camera))
        )
    return examples


def _example(photo: Photo, defect, render, expected) -> Example:
    compared = Compared(
        photo.rgb,
        photo.alpha,
        render.rgb,
        render.alpha,
        render.depth,
        difference_channels(photo.rgb, render.rgb),
        expected,
    )
    window = part_window(photo.alpha, render.alpha)
    assert window is not None
    return Example(comparer_inputs(compared)[:, window[0], window[1]].half(), defect[window])


def train(
    examples: Sequence[Example], config: TrainConfig, on_step: Callable[[int, float], None] | None = None
) -> Comparer:
    """A network trained on random patches, turned and mirrored; `on_step` is told (step, loss).

    The loss is a cross entropy that counts wrong pixels more (after Lin et al. 2017, focal loss) and soft Dice (Milletari
    et al. 2016): defects are a thousandth of the pixels.
    """
    torch.manual_seed(config.seed)
    generator = torch.Generator().manual_seed(config.seed)
    network = Comparer()
    optimizer = torch.optim.AdamW(network.parameters(), lr=config.rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.rate, config.steps)
    defects = [example.defect.nonzero() for example in examples]
    for step in range(config.steps):
        patches = [_patch(examples, defects, config.defective_share, generator) for _ in range(config.batch)]
        inputs = torch.stack([patch[0] for patch in patches])
        truth = torch.stack([patch[1] for patch in patches])
        logits = network(inputs)
        share = torch.sigmoid(logits)
        wrong = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        focal = 10 * (wrong * (0.25 + (share - truth).abs())).mean()
        dice = 1 - (2 * (share * truth).sum() + 1) / (share.sum() + truth.sum() + 1)
        loss = focal + dice
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step(step + 1, float(loss.detach()))
    return network.eval()


def save_comparer(path: Path, network: Comparer, note: str) -> None:
    """Write the weights, atomically; `note` says what they were trained on."""
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    write_with(path, lambda temporary: save_file(tensors, temporary, metadata={"trained on": note}))


def _patch(
    examples: Sequence[Example], defects: Sequence[Tensor], defective_share: float, generator: torch.Generator
) -> tuple[Float[Tensor, "channel patch patch"], Float[Tensor, "patch patch"]]:
    """A random patch of a random example, zero beyond the picture."""

    def number(below: int) -> int:
        return int(torch.randint(below, (1,), generator=generator))

    which = number(len(examples))
    inputs, defect = examples[which].inputs, examples[which].defect
    height, width = defect.shape
    if len(defects[which]) and float(torch.rand(1, generator=generator)) < defective_share:
        row, column = defects[which][number(len(defects[which]))].tolist()
        row += number(2 * PATCH_PX // 3) - PATCH_PX // 3
        column += number(2 * PATCH_PX // 3) - PATCH_PX // 3
    else:
        row, column = number(height), number(width)
    top = min(max(0, row - PATCH_PX // 2), max(0, height - PATCH_PX))
    left = min(max(0, column - PATCH_PX // 2), max(0, width - PATCH_PX))
    x = inputs[:, top : top + PATCH_PX, left : left + PATCH_PX].float()
    y = defect[top : top + PATCH_PX, left : left + PATCH_PX].float()
    room = (0, PATCH_PX - y.shape[1], 0, PATCH_PX - y.shape[0])
    x, y = F.pad(x, room), F.pad(y, room)
    if number(2):
        x, y = x.flip(2), y.flip(1)
    if number(2):
        x, y = x.flip(1), y.flip(0)
    if number(2):
        x, y = x.transpose(1, 2), y.transpose(0, 1)
    return x, y
