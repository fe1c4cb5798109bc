"""`splatad train cmt`: trains the correspondence matching transformer on shapes with photos, and says how it goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from detect.cmt.train import Progress, TrainConfig
    from prepare.shape_pairs import ShapePairs
    from splatad.terminal import Bar, Terminal

# Nothing here imports torch when read: the command line reads this class to print its help.

FEW_SHAPES = 30  # held out: with fewer the figures say little


@dataclass(frozen=True)
class TrainCmt:
    """Train the network of `detect --detector cmt`: is a photo's shape that of its reference views, whatever the side?

    Stopped (Ctrl-C, a crash), the same command goes on where it was. `torchrun --nproc-per-node N -m splatad train cmt ...`
    uses N processes or GPUs. The network that ranks photos of held-out shapes best is kept: OUT/cmt.safetensors.
    """

    data: Path
    """Shapes with views and photos: a set of `generate chairs`, a packed folder, or a scene of `prepare broken-chairs`."""
    preset: Literal["small", "paper"] = "small"
    """small: ours, with patches and pose, 1.5 M parameters, for CPUs too; paper: the published network and recipe."""
    ablation: Literal["query-only", "A", "B", "C", "D", "CMT"] = "CMT"
    """query-only: no reference; A: plain attention; B: only the best k; C: only alignment; D: both, without 3D positions;
    CMT: all."""
    k: int | None = None
    """Cells of the views that each cell of the photo may attend to; else the preset's (20; 100). 0: all."""
    views: int | None = None
    """Reference views a shape in a step; else the preset's (5; 10). All of the set's views serve in turn."""
    steps: int | None = None
    """Steps of the optimiser; else the preset's (6000; 86000)."""
    groups: int | None = None
    """Shapes in a step, over all processes; else the preset's (2; 32)."""
    photos: int | None = None
    """Photos of each shape in a step; else the preset's (6; 1)."""
    rate: float | None = None
    """Highest learning rate; else the preset's (1e-3; 2e-5)."""
    start: Path | None = None
    """Begin with the weights of this network (a .safetensors file of the same preset) instead of random ones."""
    found_masks: float | None = None
    """Share of the photos, 0 to 1, whose mask is found in the photo as at inspection, shadows and all; of the others it is the
    set's. Else the preset's (0.5; 0)."""
    imagenet: bool = False
    """Start the encoder from ImageNet's weights; preset paper."""
    check_every: int | None = None
    """Steps between looks at the held-out shapes, when the state is saved too; else the preset's (500; 4300)."""
    seed: int = 0
    """Another seed gives other weights and another order."""
    out: Path | None = None
    """Folder for the network and the state; WORKSPACE/networks/SET-PRESET if not given."""
    workspace: Path | None = None
    """Where scenes and networks lie; else $SPLATAD_WORKSPACE, else ./splatad-work."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 on a GPU, float32 else."""
    device: str = "auto"
    """auto, cpu or cuda."""


Command = TrainCmt


def run(config: TrainCmt) -> int:
    """0 once trained; of several processes the first alone speaks.

    Raises: UsageError for flags that make no sense; InputError for data that cannot serve or a folder with another run;
    KeyboardInterrupt once the state of a run that was interrupted is saved.
    """
    import os

    from prepare.errors import InputError
    from splatad.cli import INTERRUPTED

    first = os.environ.get("RANK", "0") == "0"
    try:
        return _train(config, first)
    except InputError as error:
        if first:
            raise
        return error.exit_status  # the first process says the same
    except KeyboardInterrupt:
        if first:
            raise
        return INTERRUPTED


def train_config(config: TrainCmt, pack: ShapePairs) -> TrainConfig:
    """The preset for this pack, with what the flags change.

    Raises: UsageError.
    """
    from dataclasses import replace

    from detect.cmt.model import ablation, without_reference
    from detect.cmt.train import TrainConfig, paper_config
    from prepare.errors import UsageError
    from splatad.cmt_inputs import find_network

    for flag, value in (
        ("--views", config.views), ("--steps", config.steps), ("--groups", config.groups), ("--photos", config.photos),
        ("--check-every", config.check_every), ("--rate", config.rate),
    ):  # fmt: skip
        if value is not None and not (value > 0 if flag == "--rate" else value >= 1):
            raise UsageError(f"{flag} {value}: must be {'above 0' if flag == '--rate' else '1 or more'}")
    if config.found_masks is not None and not 0 <= config.found_masks <= 1:
        raise UsageError(f"--found-masks {config.found_masks}: a share of the photos, from 0 to 1")
    if config.start is not None and config.imagenet:
        raise UsageError("--start, --imagenet: one of them")
    if config.k is not None and (config.k < 0 or config.ablation in ("A", "C", "query-only")):
        raise UsageError(
            f"--k {config.k}: 0 or more, and not with an ablation that has none (A, C, query-only)"
        )
    if config.imagenet and config.preset != "paper":
        raise UsageError("--imagenet: its weights fit the encoder of --preset paper alone")
    start = paper_config() if config.preset == "paper" else TrainConfig()
    model, align = replace(start.model, px=pack.px), start.align
    if config.k is not None:
        model = replace(model, k=config.k)
    if config.ablation == "query-only":
        model = without_reference(model)
    else:
        model, aligned = ablation(model, config.ablation)
        align = align if aligned else 0.0
    if not pack.has_aided:
        model = replace(model, aided=False)
    given: dict[str, Any] = {
        "steps": config.steps, "views": config.views, "groups": config.groups, "photos": config.photos,
        "rate": config.rate, "check_every": config.check_every, "found_masks": config.found_masks,
    }  # fmt: skip
    return replace(
        start,
        model=model,
        align=align,
        crop_px=start.crop_px * pack.px // 256,
        imagenet=config.imagenet,
        start="" if config.start is None else str(find_network(config.start).resolve()),
        seed=config.seed,
        precision=config.precision,
        **{name: value for name, value in given.items() if value is not None},
    )


def _train(config: TrainCmt, first: bool) -> int:
    import contextlib
    import os

    from detect.cmt.train import NETWORK, steps_done, train
    from prepare.shape_pairs import SPLITS
    from splatad.cmt_inputs import find_pack, network_device
    from splatad.run_output import write_table
    from splatad.run_record import versions
    from splatad.terminal import Terminal, interrupts
    from splatad.workspace import open_workspace

    workspace = open_workspace(config.workspace)
    name, pack = find_pack(workspace, config.data)
    wanted = train_config(config, pack)
    device = network_device(config.device)
    label = f"{name}-{config.preset}" + ("" if config.ablation == "CMT" else f"-{config.ablation}")
    out = config.out or workspace.network(label)
    before = steps_done(out)
    terminal = Terminal()
    if first:
        split = ", ".join(f"{len(pack.splits[s])} {s}" for s in SPLITS)
        terminal.say(
            f"{name}: {len(pack.shapes)} shapes ({split}), {pack.sizes.queries} photos of {pack.px} px"
        )
        for line in notes(pack, wanted):
            terminal.say(line)
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        where = f"{device.type}, {processes} processes" if processes > 1 else device.type
        terminal.say(f"{wanted.steps} steps of {wanted.groups * wanted.photos} photos on {where}; in {out}")
        if before >= wanted.steps:
            terminal.say("trained already")
        elif before:
            terminal.say(f"going on after step {before}")
    about = {
        "data": {"name": name, "shapes": len(pack.shapes), "source": _short(pack.source)},
        "versions": versions(),
    }
    show = terminal.bar("training", wanted.steps) if first else contextlib.nullcontext()
    with interrupts() as interrupted, show as bar:
        teller = None if bar is None else _teller(terminal, bar)
        result = train(pack, out, wanted, device, teller, stop=interrupted, about=about)
    if result.step < wanted.steps:
        raise KeyboardInterrupt
    if first:
        columns = list(dict.fromkeys(key for look in result.history for key in look))
        write_table(
            out / "history.csv", [{key: look.get(key, "") for key in columns} for look in result.history]
        )
        terminal.say(
            f"network: {out / NETWORK}" + (f", held-out AUC {result.best:.3f}" if pack.splits["val"] else "")
        )
        terminal.say(f"next: splatad evaluate cmt --data {config.data} --network {out / NETWORK}")
    return 0


def notes(pack: ShapePairs, config: TrainConfig) -> list[str]:
    """What to know of the data before the figures: a small held-out split, no renders from the photos' cameras."""
    from detect.metrics import auroc_error

    found = []
    held_out = pack.queries_of("val")
    bad = int(pack.query_label[held_out].sum())
    shapes = len(pack.splits["val"])
    if len(held_out) == 0:
        found.append("no held-out shapes (split val): the last network is kept, and its thresholds are 0.5")
    elif shapes < FEW_SHAPES:
        error = auroc_error(0.75, bad, len(held_out) - bad)
        found.append(
            f"held out: {len(held_out)} photos of {shapes} shape{'s' if shapes != 1 else ''} only, so that AUCs below are "
            f"uncertain by {error:.2f} or more, and thresholds with them"
        )
    if config.model.reference and not pack.has_aided and config.crop_px == 0:
        found.append("no renders from the photos' cameras (aided.npy): trained without the pose-aided mode")
    return found


def _teller(terminal: Terminal, bar: Bar) -> Callable[[Progress], None]:
    """Shows a step, and a line for each look at the held-out shapes."""
    smooth: float | None = None

    def tell(progress: Progress) -> None:
        nonlocal smooth
        loss = sum(progress.losses.values())
        smooth = loss if smooth is None else 0.95 * smooth + 0.05 * loss
        parts = " ".join(f"{name} {value:.3f}" for name, value in progress.losses.items())
        bar.to(progress.step, f"loss {smooth:.3f} ({parts})")
        if progress.held_out:
            terminal.say(f"step {progress.step}: {look(progress.held_out)}, loss {smooth:.3f}")

    return tell


def look(figures: Mapping[str, float]) -> str:
    """A look at the held-out shapes in words."""
    ways = [way for way in ("plain", "aided") if f"{way}_auc" in figures]
    return "held out " + "; ".join(
        f"{way}: AUC {figures[f'{way}_auc']:.3f}, accuracy {figures[f'{way}_accuracy']:.3f}, "
        f"box AP {figures[f'{way}_box_ap']:.3f}"
        for way in ways
    )


def _short(source: Mapping[str, object]) -> dict[str, object]:
    """What made the data, without the long lists."""
    return {key: value for key, value in source.items() if isinstance(value, str | int | float | bool)}
