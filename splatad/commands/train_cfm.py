"""`splatad train cfm`: trains crossmodal feature mapping on a class's good photos with points, and says how it goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from detect.cfm.stored import FeatureConfig, FeatureStore
    from detect.cfm.train import Progress, TrainConfig
    from prepare.registered import RegisteredClass
    from splatad.terminal import Bar, Terminal

# Nothing here imports torch when read: the command line reads this class to print its help.


@dataclass(frozen=True)
class TrainCfm:
    """Train `detect --detector cfm` on one class: good photos, each with a measured 3D point at every pixel.

    Two small networks learn to predict a pixel's 3D features from its 2D features and back. Where both are wrong, something is
    wrong with the part. No defective photo is needed. The good photos of the validation split (else photos left out of
    further trainings) give the limit for a chosen false-alarm rate. Stopped (Ctrl-C, a crash), the same command goes on.

    Without a depth sensor: of a fitted reference (--class NAME of `splatad fit`), where its splats at each photo's camera take
    the place of the points. It learns from the reference's own photos, in a minute or two, into the reference's folder; of
    the flags --photo, --steps, --rate, --seed and --device apply.
    """

    class_: Annotated[str, tyro.conf.arg(name="class")]
    """Name of a class in the workspace, from `splatad prepare mvtec-3d` or `eyecandies`, or its folder (with class.json); or of
    a fitted reference, or its folder."""
    preset: Literal["small", "published"] = "small"
    """small: ours, minutes on two cores, needs no download. published: the paper's: DINO ViT-B/8 and Point-MAE, 250 epochs of
    all pixels; hours on a GPU, and weights."""
    photo: str | None = None
    """2D features: handcrafted (needs no weights), dino_vitb8 (published), dinov2, mobilenet_v2, wide_resnet50, or a network of
    timm; else the preset's."""
    shape: str | None = None
    """3D features: curvature, fpfh, fpfh_multi (need no weights), normals (a picture of them through the 2D network), point_mae
    (published); else the preset's."""
    blocks: int = 0
    """Keep so many blocks of each transformer, from the first: 8, 4 or 1 are the paper's M, S and T; 0: all."""
    deep: bool = False
    """Networks of seven layers instead of three, the authors' for Eyecandies."""
    shots: int = 0
    """Few-shot: train on the first so many photos in sorted order, with the full run's number of steps; 0: all."""
    drawn: bool = False
    """With --shots: photos drawn by the seed instead of the first."""
    steps: int | None = None
    """Steps of the optimiser; else the preset's."""
    epochs: int | None = None
    """Instead of --steps: so many times all training photos."""
    batch: int | None = None
    """Photos in a step; else the preset's."""
    pixels: int | None = None
    """Pixels drawn of each photo in a step, 0: all; else the preset's."""
    rate: float | None = None
    """Learning rate; else the preset's."""
    masked: bool = True
    """Train and score where points were measured alone; off: everywhere, to see what the mask is worth."""
    folds: int | None = None
    """Where the class has no validation split: as many further trainings, each without a part of the photos, give the limit;
    else the preset's; 0: none, and then no verdict is given."""
    false_alarm_rate: float | None = None
    """Share of good photos that may be called NG; 0.05, or the least that the good photos support, if not given."""
    seed: int = 0
    """Another seed gives other weights, order and pixels."""
    check_every: int | None = None
    """Steps between looks at the validation photos, when the state is saved too; else the preset's."""
    out: Path | None = None
    """Folder for the network and the state; WORKSPACE/networks/CLASS-cfm (and what differs from the usual) if not given."""
    features: Path | None = None
    """Folder in which features are kept, computed once; WORKSPACE/features if not given."""
    workspace: Path | None = None
    """Where classes and networks lie; else $SPLATAD_WORKSPACE, else ./splatad-work."""
    device: str = "auto"
    """auto, cpu or cuda."""


Command = TrainCfm


def run(config: TrainCfm) -> int:
    """0 once trained.

    Raises: UsageError for flags that make no sense; InputError for a class that cannot serve or a folder with another run;
    MissingPartError for weights that are not there; KeyboardInterrupt once the state of an interrupted run is saved.
    """
    import time
    from dataclasses import asdict

    from detect.cfm.stored import FeatureConfig, FeatureStore
    from detect.cfm.train import NETWORK, steps_done, steps_of, train
    from splatad.cfm_inputs import find_class, network_name
    from splatad.cfm_splats import reference_meant, train_on_reference
    from splatad.cmt_inputs import network_device
    from splatad.run_output import write_table
    from splatad.run_record import versions
    from splatad.terminal import Terminal, interrupts
    from splatad.workspace import open_workspace

    workspace = open_workspace(config.workspace)
    if (reference := reference_meant(workspace, config.class_)) is not None:
        return train_on_reference(config, reference)
    wanted, features = train_config(config), feature_config(config)
    features.check()
    registered = find_class(workspace, config.class_)
    device = network_device(config.device)
    label = network_name(registered.name, features, FeatureConfig())
    out = config.out or workspace.network(label + (f"-{config.shots}-shots" if config.shots else ""))
    terminal = Terminal()
    counts = {split: registered.samples(split) for split in ("train", "validation", "test")}
    of_class = ", ".join(f"{len(samples)} {split}" for split, samples in counts.items())
    terminal.say(f"{registered.name}: {of_class}; features {features.photo} and {features.shape}")
    for line in notes(registered, wanted):
        terminal.say(line)
    store = FeatureStore(config.features or workspace.root / "features", features, registered, device)
    computed(terminal, store, [*counts["train"], *counts["validation"]])

    steps = steps_of(wanted, len([sample for sample in counts["train"] if not sample.label]))
    before = steps_done(out)
    terminal.say(f"{steps} steps of {wanted.batch} photos on {device.type}; in {out}")
    if before >= steps:
        terminal.say("trained already")
    elif before:
        terminal.say(f"going on after step {before}")
    about = {
        "class": {
            "name": registered.name, "source": registered.source, "variant": registered.variant,
            "settings": dict(registered.settings), "licence": registered.licence,
        },
        "preset": config.preset,
        "versions": versions(),
    }  # fmt: skip
    began = time.perf_counter()
    with interrupts() as interrupted, terminal.bar("training", steps) as bar:
        result = train(
            registered.samples(), store, out, wanted, asdict(features), device, _teller(terminal, bar),
            stop=interrupted, about=about, false_alarm_rate=config.false_alarm_rate, data=store.folder.name,
        )  # fmt: skip
    if result.checkpoint is None:
        raise KeyboardInterrupt
    if result.history:
        write_table(out / "history.csv", [dict(look) for look in result.history])
    for name, why in result.refused:
        terminal.say(f"left out: {name}: {why}")
    terminal.say(f"network: {out / NETWORK}, {time.perf_counter() - began:.0f} s")
    scale = result.checkpoint.scales.get("product")
    if scale is None:
        terminal.say(
            "no good photo was kept from the training, so there is no limit: detect will say CANNOT TELL"
        )
    else:
        terminal.say(f"limit {scale.limit:.2f} standard deviations: {scale.note}")
    terminal.say(f"next: splatad evaluate cfm --class {config.class_} --network {out / NETWORK}")
    return 0


def train_config(config: TrainCfm) -> TrainConfig:
    """The preset with what the flags change. Raises: UsageError."""
    from dataclasses import replace

    from detect.cfm.train import TrainConfig, published_config
    from prepare.errors import UsageError

    for flag, value in (("--steps", config.steps), ("--epochs", config.epochs), ("--batch", config.batch)):
        if value is not None and value < 1:
            raise UsageError(f"{flag} {value}: must be 1 or more")
    if config.steps is not None and config.epochs is not None:
        raise UsageError("--steps, --epochs: one of them, as the other follows from it")
    if config.drawn and not config.shots:
        raise UsageError("--drawn: with --shots alone, which says how many")
    if config.rate is not None and not config.rate > 0:
        raise UsageError(f"--rate {config.rate}: must be above 0")
    start = published_config() if config.preset == "published" else TrainConfig()
    given = {
        "steps": 0 if config.epochs is not None else config.steps, "epochs": config.epochs, "batch": config.batch,
        "pixels": config.pixels, "rate": config.rate, "folds": config.folds, "check_every": config.check_every,
    }  # fmt: skip
    return replace(
        start,
        deep=config.deep,
        shots=config.shots,
        drawn=config.drawn,
        masked=config.masked,
        seed=config.seed,
        **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
    )


def feature_config(config: TrainCfm) -> FeatureConfig:
    """The preset's features with what the flags change."""
    from detect.cfm.stored import FeatureConfig

    start = (
        FeatureConfig(photo="dino_vitb8", shape="point_mae")
        if config.preset == "published"
        else FeatureConfig()
    )
    return FeatureConfig(
        photo=config.photo or start.photo, shape=config.shape or start.shape, blocks=config.blocks
    )


def notes(registered: RegisteredClass, config: TrainConfig) -> list[str]:
    """What to know of the class before the training: how few photos set the limit."""
    good = [sample for sample in registered.samples("validation") if not sample.label]
    train = [sample for sample in registered.samples("train") if not sample.label]
    used = min(config.shots or len(train), len(train))
    if good:
        least = 1 / (len(good) + 1)
        return [
            f"limit: from {len(good)} good validation photos, which support false-alarm rates from {least:.1%} up"
        ]
    if config.folds and used >= 2:
        return [
            f"limit: no validation split; {min(config.folds, used)} further trainings score each of the {used} photos by "
            "networks that did not see it (--folds 0 leaves that out)"
        ]
    return ["limit: none, as no good photo is kept from the training; detect will say CANNOT TELL"]


def computed(terminal: Terminal, store: FeatureStore, samples: list) -> None:  # type: ignore[type-arg]
    """Computes the features that are not kept yet, and says how long that took."""
    import time

    missing = [sample for sample in samples if not _kept(store, sample)]
    if not missing:
        terminal.say(f"features: kept from before in {store.folder}")
        return
    began = time.perf_counter()
    with terminal.bar("features", len(missing)) as bar:
        refused = store.prepare(missing, lambda done, total: bar.to(done, total=total))
    terminal.say(
        f"features: {len(missing) - len(refused)} photos in {time.perf_counter() - began:.0f} s, kept in {store.folder}"
    )


def _kept(store: FeatureStore, sample: object) -> bool:
    from prepare.errors import InputError

    try:
        return store.has(sample)  # type: ignore[arg-type]
    except InputError:
        return False  # cannot be read: `prepare` says so


def _teller(terminal: Terminal, bar: Bar) -> Callable[[Progress], None]:
    """Shows a step, and a line for each look at the photos kept apart and for each further training."""
    stage = ""
    smooth: float | None = None

    def tell(progress: Progress) -> None:
        nonlocal stage, smooth
        loss = progress.losses["to_shape"] + progress.losses["to_photo"]
        if progress.stage != stage:
            if stage:
                terminal.say(progress.stage)
            stage, smooth = progress.stage, loss
        smooth = loss if smooth is None else 0.95 * smooth + 0.05 * loss
        bar.to(progress.step, f"{progress.stage}, loss {smooth:.3f}", total=progress.steps)
        if progress.held_out:
            of = progress.held_out
            terminal.say(
                f"step {progress.step}: loss {smooth:.3f}; validation {of['to_shape'] + of['to_photo']:.3f} "
                f"(2D to 3D {of['to_shape']:.3f}, back {of['to_photo']:.3f})"
            )

    return tell
