"""Trains CMT on a pack of shapes and photos; the network kept is the one that ranks the held-out shapes' photos best.

The same seed gives the same weights, from the start or resumed; several processes (torchrun) give those of one with the
same batch, but for rounding, where the network has no batch normalisation. With it, each process of a CPU run normalises
by its own part of the batch (their running statistics are averaged); on GPUs the statistics are shared.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from detect.cmt.alignment import (
    Pairs,
    alignment_loss,
    alignment_loss_of_points,
    average_into,
    farthest_points,
    pseudo_pairs,
)
from detect.cmt.batches import Batch, Drawing, GroupStream, load_batch
from detect.cmt.checkpoint import load_network, save_network
from detect.cmt.encoder import start_from_imagenet
from detect.cmt.evaluate import EvaluateConfig, evaluate
from detect.cmt.losses import box_loss, class_loss, patch_loss
from detect.cmt.model import (
    CMT,
    EMPTY_LOGIT,
    Cells,
    ModelConfig,
    Output,
    config_as_json,
    preset,
)
from detect.cmt.parallel import (
    mean_of_buffers,
    process_group,
    rank,
    sum_gradients,
    sum_over_processes,
    wait_for_all,
    world,
)
from prepare.atomic_write import write_json, write_with
from prepare.errors import InputError, UsageError
from prepare.shape_pairs import PACK, ShapePairs

STATE = "state.safetensors"  # to resume from; step, history and configuration are in its header, as JSON
NETWORK = "cmt.safetensors"  # the one chosen
CONFIG = "train.json"


@dataclass(frozen=True)
class TrainConfig:
    """How the network is trained."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    steps: int = 6000
    """Steps of the optimiser."""
    groups: int = 2
    """Groups a step, over all processes: photos of one shape that share its encoded views."""
    photos: int = 6
    """Photos of a group."""
    views: int = 5
    """Distinct views of a group's shape."""
    rate: float = 1e-3
    """Highest learning rate."""
    warmup: int = 100
    """Steps in which the rate rises from zero."""
    schedule: Literal["cosine", "steps"] = "cosine"
    """The rate falls to zero as a cosine over all steps, or to a tenth every `decay_epochs` epochs (the paper's)."""
    decay_epochs: int = 20
    """Epochs between the falls of the schedule `steps`."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Of Adam."""
    weight_decay: float = 0.01
    """Decoupled (AdamW), of weights with two or more axes."""
    clip: float = 1.0
    """Largest norm of the gradient; 0: not clipped."""
    align: float = 0.5
    """Weight of the alignment (VLFA); 0: off."""
    temperature: float = 0.1
    """Of the alignment."""
    near: float = 0.1
    """World units: cells nearer than this to the true surface point are no negatives."""
    view_pairs: int = 4
    """Pairs of views of each group that are aligned by ground truth."""
    photo_truth: bool = True
    """Align photos by ground truth, where their cameras are known; off as in the paper."""
    pseudo_after: int = -1
    """Step from which photos are aligned by pseudo labels too; negative: never."""
    confidence: float = 0.7
    """Least similarity of a pseudo label."""
    paper_alignment: bool = False
    """The paper's: half of the batch by pseudo labels from step 0, half by truth, 32 points, keys from the averaged network."""
    separate_steps: bool = False
    """The paper's: an own step of the optimiser for the alignment, before the others'."""
    patch_weight: float = 1.0
    """Weight of the cells' losses."""
    box_weight: float = 0.5
    """Weight of the boxes' loss; 1 in the paper."""
    average: float = 0.999
    """How much of the averaged network is kept at every step, once there were many."""
    use_average: bool = True
    """Whether the averaged network is evaluated and kept."""
    flip: bool = True
    """Photo, views and shape mirrored together, half of the time."""
    jitter: float = 0.3
    """Brightness and contrast of photos."""
    crop_px: int = 0
    """Random crops of photos, as in the paper (224); 0: none, as the aiding view must lie on the photo."""
    withheld: float = 0.5
    """Share of the photos whose pose is withheld."""
    found_masks: float = 0.5
    """Share of the photos whose mask is found in the photo, as at inspection; of the others it is the true one."""
    imagenet: bool = False
    """Start from ImageNet's weights (preset `paper` alone)."""
    start: str = ""
    """File of a network of the same configuration whose weights are the first; empty: random ones."""
    check_every: int = 500
    """Steps between looks at the held-out shapes and saves of the state."""
    check_photos: int = 400
    """Photos looked at then, at most; 0: all."""
    seed: int = 0
    """Seed of weights and of all that is drawn."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of products and convolutions: auto is bfloat16 on a GPU and float32 else."""

    def __post_init__(self) -> None:
        if min(self.steps, self.groups, self.photos, self.views, self.check_every) < 1:
            raise UsageError("training: steps, groups, photos, views and check_every are at least 1")
        if self.crop_px and self.model.aided:
            raise UsageError("training: crops move photos away from their aiding views; use --crop-px 0")


@dataclass(frozen=True)
class Progress:
    """What a step reports."""

    step: int  # done
    steps: int
    losses: dict[str, float]  # means over the photos of the batch
    rate: float
    seconds: dict[str, float]  # of the step's parts
    held_out: dict[str, float] | None = None  # after a look at the held-out shapes


@dataclass(frozen=True)
class Trained:
    """What training leaves in its folder."""

    network: CMT  # the one chosen, in eval mode
    best: float  # its AUC on the held-out shapes
    history: list[dict[str, Any]]  # of the looks at them
    step: int  # done; fewer than asked for where it was stopped


def paper_config(photos: int = 32, steps: int = 86_000) -> TrainConfig:
    """The published recipe, as far as it is known: 20 epochs of 138,000 photos, 10 views, Adam at 2e-5.

    A batch is `photos` groups of one photo, as shapes are drawn freely there.
    """
    return TrainConfig(
        model=preset("paper"), steps=steps, groups=photos, photos=1, views=10, rate=2e-5, warmup=0, schedule="steps",
        betas=(0.0, 0.999), weight_decay=0.0, clip=0.0, align=1.0, photo_truth=False, pseudo_after=0, confidence=-1.0,
        paper_alignment=True, separate_steps=True, patch_weight=0.0, box_weight=1.0, use_average=False, jitter=0.2,
        crop_px=224, withheld=1.0, found_masks=0.0, check_every=4300,
    )  # fmt: skip


def train(
    pack: ShapePairs,
    out: Path,
    config: TrainConfig,
    device: torch.device | None = None,
    on_step: Callable[[Progress], None] | None = None,
    stop_after: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    about: Mapping[str, Any] | None = None,
) -> Trained:
    """Train on the shapes of split `train`, choose by those of `val`; go on where the run in `out` stopped.

    `stop_after` breaks off after that step, to be resumed; so does `stop`, asked after every step, where it is true in any
    process. `about` (plain values) is written into the network's file. Under torchrun every process calls this; the first
    writes.

    Raises: InputError where `out` holds a run of another configuration or of other data, or the pack does not fit the
    network, or has no shapes to train on.
    """
    device = device or torch.device("cpu")
    if pack.px != config.model.px:
        raise InputError(
            f"{pack.folder}: pictures of {pack.px} px, the network takes {config.model.px}; make the pack at that size"
        )
    if len(pack.queries_of("train")) == 0:
        raise InputError(f"{pack.folder}: no photos of shapes to train on (split train); choose another pack")
    with process_group(device):
        run = _Run(pack, out, config, device, about or {})
        run.go(on_step, stop_after, stop)
        return Trained(run.chosen(), run.best, run.history, run.step)


def steps_done(out: Path) -> int:
    """Steps of the run in `out` that can be gone on from; 0 where there is none."""
    path = out / STATE
    return int(_read_head(path)["step"]) if path.exists() else 0


def _read_head(path: Path) -> dict[str, Any]:
    """Step, best, history, configuration and data of a saved state. Raises: InputError where it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            head = json.loads(file.metadata()["splatad"])
        return {name: head[name] for name in ("step", "best", "history", "config", "data")}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); start again in another folder") from error


class _Run:
    """The state of a run between steps."""

    def __init__(
        self, pack: ShapePairs, out: Path, config: TrainConfig, device: torch.device, about: Mapping[str, Any]
    ) -> None:
        self.pack, self.out, self.config, self.device, self.about = pack, out, config, device, dict(about)
        self.data = hashlib.sha256((pack.folder / PACK).read_bytes()).hexdigest()
        torch.manual_seed(config.seed)
        network = CMT(config.model)
        if config.start:
            network.load_state_dict(load_network(Path(config.start), config.model)[0].state_dict())
        if config.imagenet:
            start_from_imagenet(network.encoder)
        if config.model.norm == "batch" and device.type == "cuda" and world() > 1:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        self.network = network.to(device).train()
        # Channels last: the same convolutions in less time.
        self.network.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        weights = [p for p in network.parameters() if p.dim() >= 2]
        rest = [p for p in network.parameters() if p.dim() < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": weights, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}],
            lr=config.rate,
            betas=config.betas,
        )
        self.stream = GroupStream(pack, "train", config.photos, config.views, config.seed)
        self.step, self.best, self.history = 0, -math.inf, list[dict[str, Any]]()
        self.has_val = len(pack.splits.get("val", ())) > 0
        self._resume()

    def go(
        self, on_step: Callable[[Progress], None] | None, stop_after: int | None, stop: Callable[[], bool]
    ) -> None:
        last = self.config.steps if stop_after is None else min(stop_after, self.config.steps)
        if rank() == 0 and self.step == 0:
            write_json(self.out / CONFIG, {**_plain(self.config), **self.about})
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(self._load, self.step)
            while self.step < last:
                began = time.perf_counter()
                batch, photos = coming.result()
                coming = pool.submit(self._load, self.step + 1)
                seconds = {"wait": time.perf_counter() - began}
                losses = self._learn(batch.to(self.device), photos, seconds)
                self.step += 1
                held_out = None
                if self.step % self.config.check_every == 0 or self.step == self.config.steps:
                    began = time.perf_counter()
                    held_out = self._check()
                    self._save()
                    seconds["check"] = time.perf_counter() - began
                if on_step is not None and rank() == 0:
                    on_step(Progress(self.step, self.config.steps, losses, self._rate(), seconds, held_out))
                if self._anyone(stop()):
                    break
        if self.step < self.config.steps:
            self._save()

    def _anyone(self, wish: bool) -> bool:
        """Whether any process wishes so: all leave at the same step, or the others would wait for ever."""
        wishes = torch.tensor([float(wish)], device=self.device)
        sum_over_processes([wishes])
        return bool(wishes > 0)

    def _load(self, step: int) -> tuple[Batch, int]:
        """This process's part of the batch of a step, and the photos of the whole batch."""
        c = self.config
        groups = self.stream.groups(step * c.groups, c.groups)
        truth = c.align > 0 and c.model.reference
        drawing = Drawing(
            flip=c.flip,
            jitter=c.jitter,
            crop_px=c.crop_px,
            aided=c.model.aided,
            withheld=c.withheld,
            found_masks=c.found_masks,
            view_pairs=c.view_pairs if truth and not c.paper_alignment else 0,
            photo_pairs=2 if truth and c.photo_truth else 0,
        )
        if truth and c.paper_alignment:
            drawing = replace(drawing, view_pairs=1, points=2000)
        # A process without a group of its own still takes part: with the first one's, and a weight of zero.
        own = groups[rank() :: world()]
        return load_batch(self.pack, own or groups[:1], drawing, c.seed), sum(len(g.photos) for g in groups)

    def _learn(self, batch: Batch, photos: int, seconds: dict[str, float]) -> dict[str, float]:
        """One step; `photos` is the size of the whole batch. The losses are means over it."""
        c = self.config
        idle = rank() >= c.groups
        scale = 0.0 if idle else 1.0 / photos
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        losses: dict[str, Tensor] = {}
        aligned = c.align > 0 and c.model.reference
        if c.separate_steps and aligned:
            with self._autocast():
                cells = self._encode(batch, seconds)
            losses["align"] = c.align * scale * self._alignment(cells, batch, photos)
            self._descend(losses["align"], seconds)
            # The paper's keys come from an average that follows the alignment's steps alone.
            average_into(self.average, self.network, c.average)
        with self._autocast():
            cells = self._encode(batch, seconds)
            began = time.perf_counter()
            views = len(batch.views) if c.model.reference else 0
            output = self.network.compare(
                cells[views:],
                replace(cells[:views], xyz=batch.view_xyz) if c.model.reference else None,
                batch.view_of,
                batch.aided,
            )
        seconds["compare"] = time.perf_counter() - began
        began = time.perf_counter()
        losses |= {name: scale * value for name, value in self._losses(output, batch).items()}
        if aligned and not c.separate_steps:
            losses["align"] = c.align * scale * self._alignment(cells, batch, photos)
        total = sum(
            (v for name, v in losses.items() if not (c.separate_steps and name == "align")),
            0 * scale * output.logit.sum(),
        )
        seconds["losses"] = time.perf_counter() - began
        self._descend(total, seconds)
        if not c.separate_steps:
            # Many steps are averaged only once there were many.
            average_into(self.average, self.network, min(c.average, (1 + self.step) / (10 + self.step)))
        if c.model.norm == "batch" and self.device.type == "cpu":
            mean_of_buffers(self.network)
        values = torch.stack([losses[name].detach().float() for name in sorted(losses)])
        sum_over_processes([values])
        return dict(zip(sorted(losses), values.tolist(), strict=True))

    def _encode(self, batch: Batch, seconds: dict[str, float]) -> Cells:
        began = time.perf_counter()
        if self.config.model.reference:
            pictures = torch.cat([batch.views, batch.photos])
            share = torch.cat([batch.view_share, batch.photo_share])
        else:
            pictures, share = batch.photos, batch.photo_share
        cells = self.network.encode(pictures, share)
        seconds["encode"] = seconds.get("encode", 0.0) + time.perf_counter() - began
        return cells

    def _descend(self, loss: Tensor, seconds: dict[str, float]) -> None:
        began = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        seconds["backward"] = seconds.get("backward", 0.0) + time.perf_counter() - began
        began = time.perf_counter()
        sum_gradients(self.network)
        if self.config.clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)
        self.optimizer.step()
        seconds["descend"] = seconds.get("descend", 0.0) + time.perf_counter() - began

    def _losses(self, output: Output, batch: Batch) -> dict[str, Tensor]:
        """Sums over the photos."""
        c = self.config
        losses = {
            "class": class_loss(output.logit, batch.label),
            "box": c.box_weight * box_loss(output.box, batch.box, batch.has_box),
        }
        if output.patch is not None and c.patch_weight:
            counts = output.patch > EMPTY_LOGIT
            losses["patch"] = c.patch_weight * patch_loss(output.patch, batch.change, counts)
        if output.unexplained is not None and c.patch_weight:
            # Only the aiding view's cells lie where the photo's changes are known.
            given = batch.aided >= 0
            counts = (output.unexplained > EMPTY_LOGIT) & given[:, None]
            losses["unexplained"] = (
                c.patch_weight * 0.5 * patch_loss(output.unexplained, batch.change, counts, given)
            )
        return losses

    def _alignment(self, cells: Cells, batch: Batch, photos: int) -> Tensor:
        """A sum over photos like the others: the mean over the whole batch's pairs of pictures, times its photos."""
        c = self.config
        if c.paper_alignment:
            return self._paper_alignment(cells, batch)
        pairs = batch.pairs
        # By the number asked for, not found: every process knows it.
        wanted = c.groups * c.view_pairs + photos * (3 if c.photo_truth else 0)
        if 0 <= c.pseudo_after <= self.step:
            pairs = _with_pseudo(pairs, cells, batch, c.confidence, self.step)
            wanted += photos
        loss = alignment_loss(
            cells.matching, cells.matching, cells.share, batch.view_xyz, pairs, c.temperature, c.near
        )
        return loss * photos / max(1, wanted)

    def _paper_alignment(self, cells: Cells, batch: Batch) -> Tensor:
        """Half of the photos by pseudo labels, the views of the other half by truth; keys from the averaged network."""
        count = 32
        columns, views = self.config.model.columns, len(batch.views)
        groups = len(batch.view_of)
        with torch.no_grad(), self._autocast():
            keys = self.average.encode(batch.views, batch.view_share)
        anchor, key, ours, theirs = [], [], [], []
        for row in range(len(batch.pairs.anchor)):
            first, second = int(batch.pairs.anchor[row]), int(batch.pairs.key[row])
            valid = batch.pairs.valid[row]
            one, other = batch.pairs.anchor_cell[row][valid], batch.pairs.key_cell[row][valid]
            places = torch.stack([one // columns, one % columns], dim=-1).float()
            picked = farthest_points(places, min(count, len(one)))
            one, other = one[picked], other[picked]
            photo = int((batch.view_of == first).any(dim=1).nonzero()[0, 0])
            if photo < groups // 2:
                here, there, _ = pseudo_pairs(
                    cells.matching[views + photo][None],
                    torch.ones_like(cells.share[:1]),
                    cells.matching[first][None],
                    torch.ones_like(cells.share[:1]),
                    count,
                    mutual=False,
                    confidence=-math.inf,
                    at=one[None],
                )
                first, second, one, other = views + photo, first, here[0], there[0]
            anchor.append(first)
            key.append(second)
            ours.append(one)
            theirs.append(other)
        if not anchor:
            return cells.matching.sum() * 0.0
        wide = max(len(cell) for cell in ours)
        pairs = Pairs(
            torch.tensor(anchor, device=self.device),
            torch.tensor(key, device=self.device),
            torch.stack([nn.functional.pad(cell, (0, wide - len(cell))) for cell in ours]),
            torch.stack([nn.functional.pad(cell, (0, wide - len(cell))) for cell in theirs]),
            torch.stack([torch.arange(wide, device=self.device) < len(cell) for cell in ours]),
        )
        loss = alignment_loss_of_points(cells.matching, keys.matching, pairs, self.config.temperature)
        return loss * len(batch.label) / len(anchor)

    def _rate(self) -> float:
        """The learning rate of the step that comes."""
        c = self.config
        if self.step < c.warmup:
            return c.rate * (self.step + 1) / c.warmup
        if c.schedule == "steps":
            epoch = self.step * c.groups // self.stream.per_epoch
            return c.rate * 0.1 ** (epoch // c.decay_epochs)
        share = (self.step - c.warmup) / max(1, c.steps - c.warmup)
        return c.rate * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    def _autocast(self) -> AbstractContextManager[object]:
        wanted = self.config.precision
        if wanted == "bfloat16" or (wanted == "auto" and self.device.type == "cuda"):
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def _check(self) -> dict[str, float] | None:
        """Figures on the held-out shapes; the network is kept where it is the best so far."""
        network = self.average if self.config.use_average else self.network
        figures: dict[str, float] = {}
        thresholds: dict[str, float] = {}  # by the way of use: with the pose of the photo or without
        if self.has_val:
            modes = [False, True] if self.config.model.aided and self.pack.has_aided else [False]
            areas = []
            for aided in modes:
                result = evaluate(
                    network,
                    self.pack,
                    EvaluateConfig(
                        split="val",
                        aided=aided,
                        found_masks=self.config.found_masks,
                        most=self.config.check_photos,
                    ),
                    self.device,
                )
                name = "aided" if aided else "plain"
                figures |= {f"{name}_{key}": value for key, value in result.figures().items()}
                areas.append(result.auc)
                thresholds[name] = result.best_threshold
            score = sum(areas) / len(areas)
        else:
            score = float(self.step)  # nothing held out: the last is kept
        network.train(network is self.network)
        if score > self.best:
            self.best = score
            if rank() == 0:
                about = {
                    "step": self.step,
                    "thresholds": thresholds,
                    "held_out": figures,
                    "held_out_shapes": len(self.pack.splits["val"]),
                    "train": _plain(self.config),
                    **self.about,
                }
                save_network(self.out / NETWORK, network, about)
        self.history.append({"step": self.step, **figures})
        wait_for_all()
        return figures

    def chosen(self) -> CMT:
        """The network that was kept; the present one where none was yet."""
        if (self.out / NETWORK).exists():
            return load_network(self.out / NETWORK, self.config.model)[0].to(self.device)
        return copy.deepcopy(self.average if self.config.use_average else self.network).eval()

    def _save(self) -> None:
        """All that the next step depends on."""
        if rank() == 0:
            tensors = {f"network.{n}": t for n, t in self.network.state_dict().items()}
            tensors |= {f"average.{n}": t for n, t in self.average.state_dict().items()}
            for number, state in self.optimizer.state_dict()["state"].items():
                tensors |= {f"adam.{number}.{name}": value for name, value in state.items()}
            held = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
            # One file with all of it: a crash between two would mix a step with another's weights.
            best = self.best if math.isfinite(self.best) else None
            head = {
                "step": self.step, "best": best, "history": self.history, "config": _plain(self.config),
                "data": self.data,
            }  # fmt: skip
            write_with(
                self.out / STATE,
                lambda path: save_file(held, path, metadata={"splatad": json.dumps(head)}),
            )
        wait_for_all()

    def _resume(self) -> None:
        path = self.out / STATE
        if not path.exists():
            return
        head, tensors = _read_head(path), load_file(path)
        config = head["config"]
        ours = json.loads(json.dumps(_plain(self.config)))
        if config != ours:
            odd = [name for name in ours if ours[name] != config.get(name)]
            raise InputError(
                f"{path}: a run of another configuration ({', '.join(odd)}); use the same one, or another folder"
            )
        if head["data"] != self.data:
            raise InputError(
                f"{path}: a run on other data than {self.pack.folder}; use the same, or another folder"
            )

        def own(prefix: str) -> dict[str, Tensor]:
            return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

        self.network.load_state_dict(own("network."))
        self.average.load_state_dict(own("average."))
        state = self.optimizer.state_dict()
        for name, tensor in own("adam.").items():
            number, key = name.split(".")
            state["state"].setdefault(int(number), {})[key] = tensor
        self.optimizer.load_state_dict(state)
        self.step, self.history = int(head["step"]), head["history"]
        self.best = -math.inf if head["best"] is None else float(head["best"])


def _with_pseudo(pairs: Pairs, cells: Cells, batch: Batch, confidence: float, step: int) -> Pairs:
    """`pairs` and pseudo labels between each photo and one of its views (in turn), mutual and confident ones."""
    views, points = len(batch.views), batch.pairs.valid.shape[1]
    view = batch.view_of[:, step % batch.view_of.shape[1]]
    here, there, trusted = pseudo_pairs(
        cells.matching[views:],
        cells.share[views:],
        cells.matching[view],
        cells.share[view],
        points,
        confidence=confidence,
    )
    photo = torch.arange(len(view), device=view.device) + views
    fill = (0, points - here.shape[1])
    padded = [nn.functional.pad(t, fill) for t in (here, there, trusted)]
    return Pairs(
        torch.cat([pairs.anchor, photo]),
        torch.cat([pairs.key, view]),
        torch.cat([pairs.anchor_cell, padded[0]]),
        torch.cat([pairs.key_cell, padded[1]]),
        torch.cat([pairs.valid, padded[2]]),
    )


def _plain(config: TrainConfig) -> dict[str, Any]:
    return {**asdict(config), "model": config_as_json(config.model)}
