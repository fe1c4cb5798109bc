"""CMT's cost: one photo against kept views, and a step's attention in its three forms, time and memory.

    .venv/bin/python scripts/bench_cmt.py --data SET [--preset small paper] [--repeats 5]

SET is what `splatad generate chairs` or `splatad prepare broken-chairs` wrote. Networks have random weights: what they say
does not matter here. Repetitions are interleaved, so that a neighbour's load falls on all alike; memory is the growth of a
process of its own over its size once the cells are encoded (Linux).
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from bench_rasterize import WIDTH, load, machine, new_table
from rich.console import Console

from detect.cmt.attention import Form
from detect.cmt.model import CMT, Cells, Preset, preset
from detect.cmt.predict import Predictor, frame_photo
from detect.cmt.reference import views_of_pack
from prepare.shape_pairs import ShapePairs
from splatad.cmt_inputs import find_pack
from splatad.workspace import open_workspace

FORMS: tuple[Form, ...] = ("dense", "gathered", "absorbed")
STEP_PHOTOS, STEP_VIEWS = 4, 10


@dataclass(frozen=True)
class Options:
    """What to time."""

    data: Path
    """A packed set of shapes and photos."""
    preset: tuple[Preset, ...] = ("small", "paper")
    """Which networks."""
    repeats: int = 5
    """Times each is timed; the median is printed."""


def network(name: Preset) -> CMT:
    torch.manual_seed(0)
    return CMT(preset(name)).eval()


def query_seconds(name: Preset, pairs: ShapePairs) -> tuple[float, float]:
    """Seconds to encode a shape's views, and then for one photo."""
    predictor = Predictor(network(name))
    photo = frame_photo(torch.from_numpy(pairs.queries[0].copy()).float() / 255, None, pairs.px)
    views = views_of_pack(pairs, int(pairs.query_shape[0]))
    began = time.perf_counter()
    reference = predictor.encode(views)
    between = time.perf_counter()
    predictor.predict([photo], reference)
    return between - began, time.perf_counter() - between


def step(name: Preset, data: Path, form: Form) -> tuple[float, float]:
    """Seconds and MiB of the decoder's forward and backward for STEP_PHOTOS photos of one shape's STEP_VIEWS views."""
    pairs = ShapePairs.open(data)
    net = network(name)
    views = views_of_pack(pairs, int(pairs.query_shape[0]), range(STEP_VIEWS))
    photos = torch.from_numpy(pairs.queries[:STEP_PHOTOS].copy()).float() / 127.5 - 1
    share = torch.from_numpy(pairs.query_alpha[:STEP_PHOTOS].copy()).flatten(1).float() / 255
    with torch.no_grad():
        kept = net.encode(views.normalised(), views.share, views.xyz)
        own = net.encode(photos.permute(0, 3, 1, 2), share)
    own = Cells(own.features.requires_grad_(), own.matching, own.share)
    _forget_peak()
    before = _memory_mib("VmRSS")
    began = time.perf_counter()
    out = net.compare(own, kept, torch.arange(STEP_VIEWS).expand(STEP_PHOTOS, -1), form=form)
    out.logit.sum().backward()
    return time.perf_counter() - began, _memory_mib("VmHWM") - before


def _memory_mib(line: str) -> float:
    """A line of /proc/self/status: VmRSS, what the process holds, or VmHWM, the most since `_forget_peak`."""
    for entry in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if entry.startswith(line):
            return float(entry.split()[1]) / 1024
    raise SystemExit("bench_cmt: memory is measured on Linux alone")


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def main() -> None:
    options = tyro.cli(Options, description=__doc__)
    _, pairs = find_pack(open_workspace(None), options.data)
    console = Console(width=WIDTH)
    console.print(f"{machine()}; load {load()}; {torch.get_num_threads()} threads")
    once = {name: query_seconds(name, pairs) for name in options.preset}  # warm
    times: dict[Preset, list[float]] = {name: [] for name in options.preset}
    for _ in range(options.repeats):
        for name in options.preset:
            times[name].append(query_seconds(name, pairs)[1])
    table = new_table()
    for heading in ("preset", "parameters", "views", "views once, s", "a photo, s"):
        table.add_column(heading, justify="right")
    for name in options.preset:
        parameters = sum(p.numel() for p in network(name).parameters())
        table.add_row(
            name, f"{parameters:,}", str(pairs.view_count), f"{once[name][0]:.2f}",
            f"{statistics.median(times[name]):.2f}",
        )  # fmt: skip
    console.print(table)

    runs: dict[tuple[Preset, Form], list[tuple[float, float]]] = {}
    for _ in range(options.repeats):
        for name in options.preset:
            for form in FORMS:
                # A process each: the memory of one form would hide the next one's.
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    result = pool.apply(step, (name, pairs.folder, form))
                runs.setdefault((name, form), []).append(result)
    table = new_table()
    for heading in ("preset", "form", "decoder forward and backward, s", "of dense", "MiB", "of dense"):
        table.add_column(heading, justify="right")
    for (name, form), found in runs.items():
        seconds, mib = (statistics.median(values) for values in zip(*found, strict=True))
        plain_s, plain_mib = (statistics.median(values) for values in zip(*runs[name, "dense"], strict=True))
        table.add_row(
            name, form, f"{seconds:.2f}", f"{seconds / plain_s:.2f}", f"{mib:.0f}", f"{mib / plain_mib:.2f}"
        )
    console.print(table)
    console.print(f"{STEP_PHOTOS} photos, {STEP_VIEWS} views; load {load()}")


if __name__ == "__main__":
    main()
