"""Trains the comparison of `detect.comparer` for one part: its good photos, each also with defects made on it.

Every good photo is compared with splats that have not seen it, so the renders are as wrong as they are for a new photo: the
network learns what this part's gloss, edges and gaps leave, and, from the defects of `detect.synthetic_defects`, what they
do not. Two networks learn from half of the photos each. A good photo is scored by the one that has not learned from it, as
a new photo is by both: that keeps the calibration honest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from detect.comparer import Compared, Comparer, comparer_inputs, part_window
from detect.difference import Difference
from detect.expected import Expectation
from detect.synthetic_defects import with_defects
from recon.fit import Photo
from recon.gaussians import Gaussians
from recon.rasterize import RasterOptions, Render, rasterize

PATCH_PX = 96
HALVES = 2


@dataclass(frozen=True)
class TrainConfig:
    """How the networks are trained."""

    steps: int = 300
    """Steps of AdamW under a one-cycle schedule."""
    batch: int = 6
    """Patches of 96 x 96 px a step."""
    rate: float = 3e-3
    """Highest learning rate."""
    defective_share: float = 0.6
    """Share of the patches that are centred near a defect where their photo has one."""
    synthetic: int = 4
    """Defective versions of each good photo."""
    seed: int = 0
    """Seed of weights, defects, patches and turns."""


@dataclass(frozen=True)
class Example:
    """One photo as the network sees it, cut to the part."""

    inputs: Float[Tensor, "channel height width"]  # half precision
    defect: Bool[Tensor, "height width"]


def examples_of(
    photo: Photo,
    gaussians: Gaussians,
    options: RasterOptions,
    expected: Expectation,
    difference: Difference,
    synthetic: int,
    seed: int,
) -> list[Example]:
    """A good photo, and `synthetic` defective versions of it, against `gaussians` that have not seen it.

    None where neither photo nor render shows the part.
    """
    options = replace(options, depth=True)
    with torch.no_grad():
        render = rasterize(gaussians, photo.camera, photo.background, options=options)
    if part_window(photo.alpha, render.alpha) is None or float(render.alpha.max()) <= 0.9:
        return []
    generator = torch.Generator().manual_seed(seed)
    versions = [(photo, torch.zeros(photo.alpha.shape, dtype=torch.bool))]
    versions += [with_defects(photo, gaussians, render, options, generator) for _ in range(synthetic)]
    return [example_of(version, defect, render, expected, difference) for version, defect in versions]


def example_of(
    photo: Photo,
    defect: Bool[Tensor, "height width"],
    render: Render,
    expected: Expectation,
    difference: Difference,
) -> Example:
    """What the network is shown of `photo` against `render` (with depth), which show the part, and where it is defective."""
    assert render.depth is not None
    channels = difference(photo.rgb, render.rgb)
    compared = Compared(photo.rgb, photo.alpha, render.rgb, render.alpha, render.depth, channels, expected)
    window = part_window(photo.alpha, render.alpha)
    assert window is not None
    return Example(comparer_inputs(compared)[:, window[0], window[1]].half(), defect[window])


def train_halves(
    examples: Sequence[Sequence[Example]],
    half_of: Sequence[int],
    config: TrainConfig,
    start: Comparer,
    on_step: Callable[[int, int], object] | None = None,
) -> tuple[Comparer, ...]:
    """HALVES networks; network h learns from the `examples[i]` of the photos with `half_of[i]` h, from the weights of `start`.

    They run side by side, each runs in one thread of its own, so that the weights do not depend on the number of cores.
    """
    done = [0] * HALVES

    def learn(half: int) -> Comparer:
        torch.set_num_threads(1)
        own = [example for photo, h in zip(examples, half_of, strict=True) if h == half for example in photo]

        def step(count: int, loss: float) -> None:
            done[half] = count
            if on_step is not None:
                on_step(sum(done), HALVES * config.steps)

        return train(own, replace(config, seed=config.seed + half), start, step)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(HALVES) as pool:
            return tuple(pool.map(learn, range(HALVES)))
    finally:
        torch.set_num_threads(threads)


def train(
    examples: Sequence[Example],
    config: TrainConfig,
    start: Comparer,
    on_step: Callable[[int, float], None] | None = None,
) -> Comparer:
    """`start` trained further on random patches, turned and mirrored; `on_step` is told (step, loss).

    The loss is a cross entropy that counts wrong pixels more (after Lin et al. 2017, focal loss) and soft Dice (Milletari
    et al. 2016): defects are a thousandth of the pixels.
    """
    generator = torch.Generator().manual_seed(config.seed)
    network = Comparer()
    network.load_state_dict(start.state_dict())
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
    return network.eval().requires_grad_(False)


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
