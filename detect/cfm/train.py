"""Trains the two networks of CFM on a class's good photos, and puts their maps on a scale by good photos kept apart.

The same seed gives the same weights, from the start or resumed, in whatever order photos are read. Features come from a
store that computed them once. Source: Costanzino et al., CVPR 2024; the preset `small` is ours.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, is_dataclass, replace
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from detect.cfm.absolute import Absolute, GoodSource, absolute
from detect.cfm.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from detect.cfm.mapping import MappingConfig, MappingPair, Standard, standard_of
from detect.cfm.score import FUSIONS, Distances, Features, ScoreConfig, distances
from prepare.atomic_write import write_json, write_with
from prepare.errors import InputError, UsageError
from prepare.registered import Sample

STATE = "state.safetensors"  # to resume from; step, history and configuration are in its header, as JSON
NETWORK = "cfm.safetensors"
CONFIG = "train.json"
STANDARD_PIXELS = 1024  # of each photo, for the mean and the spread of the features
CHECK_PIXELS, CHECK_PHOTOS = 512, 32  # for the loss of photos kept apart
KEPT_BYTES = 1 << 30  # of features stay in memory


@runtime_checkable
class Store(Protocol):
    """Where features come from: `detect.cfm.stored.FeatureStore`."""

    def get(self, sample: Sample) -> Features:
        """The features of a sample. Raises: InputError for one that cannot be read."""
        ...


@dataclass(frozen=True)
class TrainConfig:
    """How the networks are trained; the defaults are the preset `small`, for two cores."""

    steps: int = 1500
    """Steps of the optimiser; 0: as many as `epochs` over all of the class's training photos."""
    epochs: int = 0
    """Used where `steps` is 0. With few shots too the number follows from all photos."""
    batch: int = 8
    """Photos of a step."""
    pixels: int = 128
    """Pixels drawn of each photo at each step; 0: all valid ones."""
    rate: float = 1e-3
    """Learning rate of Adam."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """The rate falls to zero as a cosine over all steps, or stays."""
    standardise: bool = True
    """Each dimension by the training photos' mean and spread."""
    deep: bool = False
    """Five layers in the middle of each network, the authors' variant for Eyecandies."""
    least_hidden: int = 256
    """Width of the networks' middle, at least; else the mean of both widths of features."""
    masked: bool = True
    """Train on, and score, valid pixels alone; else all pixels (ablation)."""
    shots: int = 0
    """Train on so many photos, the first in sorted order; 0: on all."""
    drawn: bool = False
    """With shots: photos drawn by the seed instead of the first."""
    folds: int = 5
    """Where no validation split exists: each photo is scored by networks trained without its fold; 0: no scale then."""
    check_every: int = 250
    """Steps between looks at the photos kept apart and saves of the state."""
    seed: int = 0
    """Seed of weights, order and pixels."""

    def __post_init__(self) -> None:
        if min(self.batch, self.check_every) < 1 or min(self.steps, self.epochs, self.pixels, self.shots) < 0:
            raise UsageError(
                "training: batch and check_every are at least 1, steps, epochs, pixels and shots 0"
            )
        if self.steps == 0 and self.epochs == 0:
            raise UsageError("training: give steps or epochs")
        if not self.rate > 0:
            raise UsageError(f"training: the rate must lie above 0, got {self.rate}")
        if self.folds == 1 or self.folds < 0:
            raise UsageError(f"training: folds are 0 or at least 2, got {self.folds}")


def published_config() -> TrainConfig:
    """The published recipe for MVTec 3D-AD: 250 epochs of batches of 4, all valid pixels, Adam at 1e-3, nothing else.

    (The authors' training script says 50 epochs; what they evaluated and gave away is of 250.)
    """
    return TrainConfig(
        steps=0, epochs=250, batch=4, pixels=0, schedule="constant", standardise=False, least_hidden=0,
        check_every=500,
    )  # fmt: skip


@dataclass(frozen=True)
class Progress:
    """What a step reports."""

    stage: str  # "training", or of cross-fitting "fold 2 of 5"
    step: int  # done
    steps: int
    losses: dict[str, float]  # to_shape and to_photo, each in [0, 2]
    rate: float
    seconds: dict[str, float]  # wait (for features) and learn
    held_out: dict[str, float] | None = None  # the same losses of photos kept apart, after a look


@dataclass(frozen=True)
class Trained:
    """What training leaves in its folder."""

    checkpoint: Checkpoint | None  # None where it was stopped before the end
    step: int
    steps: int
    history: list[dict[str, float]]  # of the looks at photos kept apart
    refused: tuple[tuple[str, str], ...]  # (sample, why) of photos that could not serve


def few_shot(samples: Sequence[Sample], config: TrainConfig) -> list[Sample]:
    """The training photos of `config`: all, the first `shots` in sorted order, or as many drawn by the seed, sorted.

    Raises: UsageError for more shots than photos.
    """
    ordered = sorted(samples, key=lambda sample: sample.name)
    if config.shots == 0:
        return ordered
    if config.shots > len(ordered):
        raise UsageError(f"--shots {config.shots}: the class has {len(ordered)} training photos")
    if not config.drawn:
        return ordered[: config.shots]
    chosen = np.random.default_rng([config.seed, 5]).permutation(len(ordered))[: config.shots]
    return [ordered[place] for place in sorted(chosen.tolist())]


def steps_of(config: TrainConfig, photos: int) -> int:
    """Steps of the optimiser for a class of so many training photos, whatever the shots."""
    return config.steps or config.epochs * math.ceil(photos / config.batch)


def steps_done(out: Path) -> int:
    """Steps of the run in `out` that can be gone on from; 0 where there is none. Raises: InputError where damaged."""
    path = out / STATE
    return int(_read_head(path)["step"]) if path.exists() else 0


def train(
    samples: Sequence[Sample],
    store: Store,
    out: Path,
    config: TrainConfig,
    features: Mapping[str, Any],
    device: torch.device | None = None,
    on_step: Callable[[Progress], None] | None = None,
    stop_after: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    about: Mapping[str, Any] | None = None,
    false_alarm_rate: float | None = None,
    data: str = "",
) -> Trained:
    """Train on the good photos of split `train` among `samples`; go on where the run in `out` stopped.

    The scale comes from the good photos of split `validation`, else by cross-fitting, which trains `folds` times more.
    `features` are the settings of the store's features, as plain values; they and `about` go into the networks' file. `data`
    says which data they are of: a run goes on with the same alone.
    `stop_after` breaks off after that step of the first training, to be resumed; so does `stop`, asked after every step.

    Raises: InputError where `out` holds a run of another configuration or of other data, or no photo can be trained on;
    UsageError for more shots than photos or a false-alarm rate that the good photos cannot support.
    """
    device = device or torch.device("cpu")
    about = dict(about or {})
    everyone = [sample for sample in samples if sample.split == "train" and not sample.label]
    if not everyone:
        raise InputError("no good photos to train on (split train); prepare the class again")
    kept = _Kept(store, device)
    chosen, refused = kept.usable(few_shot(everyone, config))
    if not chosen:
        raise InputError(f"none of the training photos can be used: {refused[0][0]}: {refused[0][1]}")
    held_out, refused_too = kept.usable(
        sorted(
            (s for s in samples if s.split == "validation" and not s.label), key=lambda sample: sample.name
        )
    )
    refused += refused_too
    steps = steps_of(config, len(everyone))
    if not (out / STATE).exists():
        write_json(out / CONFIG, {**asdict(config), "features": dict(features), **about})
    identity = {**features, "data": data}
    run = _Run(chosen, held_out, kept, out, config, steps, identity, device)
    run.go("training", on_step, stop_after, stop)
    unfinished = Trained(None, run.step, steps, run.history, tuple(refused))
    if run.step < steps:
        return unfinished

    source: GoodSource = "validation"
    found = [(s.name, distances(run.pair, kept.get(s), config.masked)) for s in held_out]
    folds = min(config.folds, len(chosen))
    if not found and folds >= 2:
        source = "cross-fitted"
        for fold in range(folds):
            without = [s for place, s in enumerate(chosen) if place % folds != fold]
            part = _Run(without, [], kept, out / f"fold-{fold + 1}", config, steps, dict(features), device)
            part.go(f"fold {fold + 1} of {folds}", on_step, None, stop)
            if part.step < steps:
                return unfinished
            found += [(s.name, distances(part.pair, kept.get(s), config.masked)) for s in chosen[fold::folds]]
        found.sort(key=lambda entry: entry[0])
    scales: dict[str, Absolute] = {}
    if found:
        scales = scales_of(found, ScoreConfig(masked=config.masked), false_alarm_rate, source)
    checkpoint = Checkpoint(
        run.pair.eval().requires_grad_(False),
        dict(features),
        scales,
        {
            "train": asdict(config),
            "steps": steps,
            "photos": [sample.name for sample in chosen],
            "held_out": [name for name, _ in found],
            "history": run.history,
            "refused": [{"name": name, "why": why} for name, why in refused],
            **about,
        },
    )
    save_checkpoint(out / NETWORK, checkpoint)
    return Trained(load_checkpoint(out / NETWORK), run.step, steps, run.history, tuple(refused))


def scales_of(
    found: Sequence[tuple[str, Distances]],
    config: ScoreConfig,
    false_alarm_rate: float | None,
    source: GoodSource,
) -> dict[str, Absolute]:
    """The scale of each fusion, by its name; `config` says what else of the score. Raises: as `absolute`."""
    return {
        fusion: absolute(found, replace(config, fusion=fusion), false_alarm_rate, source)
        for fusion in FUSIONS
    }


class _Kept:
    """Features of the store, as many of them in memory, on the device, as KEPT_BYTES hold."""

    def __init__(self, store: Store, device: torch.device) -> None:
        self.store, self.device, self.bytes = store, device, 0
        self.kept: dict[str, Features] = {}

    def get(self, sample: Sample) -> Features:
        found = self.kept.get(sample.name)
        if found is None:
            found = self.store.get(sample).to(self.device)
            size = held_bytes(found)
            if self.bytes + size <= KEPT_BYTES:
                self.kept[sample.name] = found
                self.bytes += size
        return found

    def usable(self, samples: Sequence[Sample]) -> tuple[list[Sample], list[tuple[str, str]]]:
        """Those whose features can be had and have a valid pixel; and of the others why not.

        Raises: UsageError and MissingPartError, which concern all samples.
        """
        good, refused = [], []
        for sample in samples:
            try:
                if bool(self.get(sample).valid.any()):
                    good.append(sample)
                else:
                    refused.append((sample.name, "no pixel has features"))
            except InputError as error:
                if error.exit_status != InputError.exit_status:
                    raise
                refused.append((sample.name, str(error)))
        return good, refused


def held_bytes(value: object) -> int:
    """Bytes of the tensors in a nest of dataclasses."""
    if isinstance(value, Tensor):
        return value.nbytes
    if is_dataclass(value):
        return sum(held_bytes(getattr(value, one.name)) for one in dataclass_fields(value))
    return 0


class _Run:
    """One training: its state between steps."""

    def __init__(
        self,
        samples: Sequence[Sample],
        held_out: Sequence[Sample],
        kept: _Kept,
        out: Path,
        config: TrainConfig,
        steps: int,
        identity: Mapping[str, Any],
        device: torch.device,
    ) -> None:
        self.samples, self.held_out, self.kept = list(samples), list(held_out), kept
        self.out, self.config, self.steps, self.device = out, config, steps, device
        names = [sample.name for sample in self.samples]
        self.data = hashlib.sha256(json.dumps([names, dict(identity)], sort_keys=True).encode()).hexdigest()
        self.step, self.history = 0, list[dict[str, float]]()
        photo, shape = self._widths()
        torch.manual_seed(config.seed)
        mapping = MappingConfig(photo, shape, config.deep, config.least_hidden)
        self.pair = MappingPair(mapping)
        state = self._read_state()
        if state is None:
            if config.standardise:
                self._standardise()
        else:
            self.pair.load_state_dict(_own(state, "network."))
        self.pair.to(device).train()
        self.optimizer = torch.optim.Adam(self.pair.parameters(), lr=config.rate)
        if state is not None:
            adam = self.optimizer.state_dict()
            for name, tensor in _own(state, "adam.").items():
                number, key = name.split(".")
                adam["state"].setdefault(int(number), {})[key] = tensor
            self.optimizer.load_state_dict(adam)

    def go(
        self,
        stage: str,
        on_step: Callable[[Progress], None] | None,
        stop_after: int | None,
        stop: Callable[[], bool],
    ) -> None:
        last = self.steps if stop_after is None else min(stop_after, self.steps)
        if self.step >= last:
            return
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(self._batch, self.step)
            while self.step < last:
                began = time.perf_counter()
                rows = coming.result()
                if self.step + 1 < last:
                    coming = pool.submit(self._batch, self.step + 1)
                seconds = {"wait": time.perf_counter() - began}
                began = time.perf_counter()
                losses = self._learn(*rows)
                seconds["learn"] = time.perf_counter() - began
                self.step += 1
                looked = None
                if self.step % self.config.check_every == 0 or self.step == self.steps:
                    looked = self._look()
                    self._save()
                if on_step is not None:
                    on_step(
                        Progress(
                            stage, self.step, self.steps, losses, self._rate(self.step - 1), seconds, looked
                        )
                    )
                if stop():
                    break
        if self.step < self.steps:
            self._save()

    def photos(self, step: int) -> tuple[int, list[int]]:
        """The epoch and the photos of a step, in rising order: sums do not depend on the order they were drawn in."""
        per_epoch = math.ceil(len(self.samples) / self.config.batch)
        epoch, place = divmod(step, per_epoch)
        order = np.random.default_rng([self.config.seed, 1, epoch]).permutation(len(self.samples))
        return epoch, sorted(order[place * self.config.batch :][: self.config.batch].tolist())

    def _batch(
        self, step: int
    ) -> tuple[Float[Tensor, "rows photo_width"], Float[Tensor, "rows shape_width"]]:
        epoch, photos = self.photos(step)
        of_photo, of_shape = zip(
            *(
                self._rows(self.samples[number], self.config.pixels, [self.config.seed, 2, epoch, number])
                for number in photos
            ),
            strict=True,
        )
        return torch.cat(of_photo), torch.cat(of_shape)

    def _rows(
        self, sample: Sample, count: int, seed: list[int]
    ) -> tuple[Float[Tensor, "rows photo_width"], Float[Tensor, "rows shape_width"]]:
        """Features of a photo at `count` of its pixels (0: all), drawn by `seed` alone."""
        features = self.kept.get(sample)
        pixels = drawn_pixels(features, count, self.config.masked, seed)
        photo, shape = features.rows(pixels)
        return photo.float(), shape.float()

    def _widths(self) -> tuple[int, int]:
        photo, shape = self._rows(self.samples[0], 1, [self.config.seed, 3, 0])
        return photo.shape[1], shape.shape[1]

    def _standardise(self) -> None:
        """Sets mean and spread of both kinds of features from some pixels of every training photo."""
        sums: list[list[Tensor]] = [[], []]
        rows = 0
        for number, sample in enumerate(self.samples):
            found = self._rows(sample, STANDARD_PIXELS, [self.config.seed, 3, number])
            rows += len(found[0])
            for one, into in zip(found, sums, strict=True):
                wide = one.double()
                into.append(torch.stack([wide.sum(dim=0), wide.square().sum(dim=0)]))
        photo, shape = (
            standard_of(total, squares, rows)
            for total, squares in (torch.stack(one).sum(dim=0).unbind() for one in sums)
        )
        self.pair = _with_standard(self.pair, photo, shape)

    def _learn(
        self, photo: Float[Tensor, "rows photo_width"], shape: Float[Tensor, "rows shape_width"]
    ) -> dict[str, float]:
        """One step of the optimiser; both losses."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(self.step)
        to_shape, to_photo = self.pair(photo.to(self.device), shape.to(self.device))
        total = to_shape + to_photo
        if not bool(torch.isfinite(total)):
            raise InputError(
                f"step {self.step + 1}: the loss is {float(total)}: features that hold no numbers, or too high a rate; "
                "prepare the class again, or lower --rate"
            )
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        self.optimizer.step()
        return {"to_shape": to_shape.item(), "to_photo": to_photo.item()}

    def _rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        c = self.config
        return (
            c.rate if c.schedule == "constant" else c.rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        )

    @torch.no_grad()
    def _look(self) -> dict[str, float] | None:
        """The losses of photos kept apart, the mean over them; None without such."""
        if not self.held_out:
            return None
        spread = np.linspace(0, len(self.held_out) - 1, min(CHECK_PHOTOS, len(self.held_out))).round()
        losses = []
        for number in spread.astype(int).tolist():
            photo, shape = self._rows(self.held_out[number], CHECK_PIXELS, [self.config.seed, 4, number])
            losses.append(torch.stack(self.pair(photo.to(self.device), shape.to(self.device))))
        to_shape, to_photo = torch.stack(losses).mean(dim=0).tolist()
        looked = {"to_shape": to_shape, "to_photo": to_photo}
        self.history.append({"step": float(self.step), **looked})
        return looked

    def _save(self) -> None:
        """All that the next step depends on, in one file: a crash between two would mix a step with another's weights."""
        tensors = {f"network.{name}": t for name, t in self.pair.state_dict().items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": value for name, value in state.items()}
        held = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        head = {
            "step": self.step, "history": self.history, "config": asdict(self.config), "steps": self.steps,
            "data": self.data,
        }  # fmt: skip
        write_with(
            self.out / STATE, lambda path: save_file(held, path, metadata={"splatad": json.dumps(head)})
        )

    def _read_state(self) -> dict[str, Tensor] | None:
        """The tensors of the run in the folder, its step and history taken over; None where there is none."""
        path = self.out / STATE
        if not path.exists():
            return None
        head = _read_head(path)
        ours = {**asdict(self.config), "steps in all": self.steps}
        theirs = {**head["config"], "steps in all": head["steps"]}
        if odd := [name for name in ours if ours[name] != theirs.get(name)]:
            raise InputError(
                f"{path}: a run of another configuration ({', '.join(odd)}); use the same one, or another folder"
            )
        if head["data"] != self.data:
            raise InputError(f"{path}: a run on other photos or features; use the same, or another folder")
        self.step, self.history = int(head["step"]), list(head["history"])
        return load_file(path)


def drawn_pixels(features: Features, count: int, masked: bool, seed: Sequence[int]) -> Int[Tensor, " rows"]:
    """`count` pixels, in rising order, of the valid ones (of all where not `masked`), drawn by `seed`; all where fewer."""
    pixels = features.valid.nonzero()[:, 0].cpu() if masked else torch.arange(len(features.valid))
    if count == 0 or len(pixels) <= count:
        return pixels
    chosen = np.random.default_rng(list(seed)).choice(len(pixels), count, replace=False, shuffle=False)
    return pixels[torch.from_numpy(np.sort(chosen)).to(pixels.device)]


def _with_standard(pair: MappingPair, photo: Standard, shape: Standard) -> MappingPair:
    """The same weights, other standardisation."""
    other = MappingPair(pair.config, photo, shape)
    other.to_shape.load_state_dict(pair.to_shape.state_dict())
    other.to_photo.load_state_dict(pair.to_photo.state_dict())
    return other


def _own(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _read_head(path: Path) -> dict[str, Any]:
    """Step, history, configuration and data of a saved state. Raises: InputError where it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            head = json.loads(file.metadata()["splatad"])
        return {name: head[name] for name in ("step", "history", "config", "steps", "data")}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error}); start again in another folder") from error
