"""Training of `detect.cfm.splat_form` on a reference's own good views, at their cameras."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from detect.anomaly_map import DifferenceDetector, image_score
from detect.cfm.features2d import PhotoExtractor, load_photo_extractor
from detect.cfm.mapping import MappingConfig, MappingPair, Standard, standard_of
from detect.cfm.score import Distances, ScoreConfig, fused
from detect.cfm.splat_cells import Cells, cells_of
from detect.cfm.splat_form import (
    GoodView,
    SplatForm,
    SplatFormConfig,
    SplatFormDetector,
    checked,
    departure,
    joined,
    level_of,
)
from prepare.errors import InputError
from recon.fit import Photo, folds_of
from recon.rasterize import RasterOptions, Render, rasterize
from recon.reference import Reference

HALVES = 2
LEAST_ROWS = 64  # cells that a network is trained on

OnStep = Callable[[str, int, int], object]


@dataclass(frozen=True)
class _Rows:
    """Valid cells of one view."""

    photo: Float[Tensor, "rows photo_width"]
    shape: Float[Tensor, "rows shape_width"]


def train_splat_form(
    difference: DifferenceDetector,
    photos: Sequence[Photo],
    config: SplatFormConfig,
    about: Mapping[str, Any] | None = None,
    on_step: OnStep | None = None,
) -> SplatForm:
    """The networks of the detector's reference, from `photos`, those of its views in their order.

    Where views were kept from the splats, one network learns from the others and these say what good photos score. Else two
    learn from half of the views each, and each judges the other half. The same on any number of threads. `on_step` is told
    (stage, done, all).

    Raises: InputError where the photos are too few or show too little; as `load_photo_extractor`.
    """
    reference = difference.reference
    held = {i for i, view in enumerate(reference.views) if view.held_out}
    kept = [held] if held and len(held) < len(photos) else folds_of(len(photos), HALVES)
    if len(photos) < 2 * HALVES:
        raise InputError(
            f"reference {reference.name}: {len(photos)} views are too few to learn from; fit it from more"
        )
    extractor = load_photo_extractor(config.photo)
    with _one_thread():
        rows = _rows_of(reference, extractor, photos, config, on_step)
        pairs, apart = [], []
        for number, unseen in enumerate(kept):

            def tell(done: int, number: int = number) -> None:
                if on_step is not None:
                    on_step("learning", number * config.steps + done, len(kept) * config.steps)

            seen = [some for i, some in enumerate(rows) if i not in unseen]
            pair = trained_pair(seen, config, config.seed + number, tell)
            pairs.append(pair)
            apart += [_fused_rows(pair, rows[i], config) for i in sorted(unseen)]
        form = SplatForm(config, tuple(pairs), level_of(torch.cat(apart)), (), bool(held), dict(about or {}))
        del rows
        good = _good_views(difference, extractor, photos, form, kept, on_step)
    return SplatForm(config, form.pairs, form.level, good, form.held_out, form.about)


def trained_pair(
    rows: Sequence[_Rows], config: SplatFormConfig, seed: int, on_step: Callable[[int], object] | None = None
) -> MappingPair:
    """Both networks, in eval mode, after the steps of `config`. Raises: InputError for too few rows."""
    photo, shape = torch.cat([some.photo for some in rows]), torch.cat([some.shape for some in rows])
    if len(photo) < LEAST_ROWS:
        raise InputError(
            f"CFM: the views show the part in {len(photo)} cells, {LEAST_ROWS} are needed; fit from larger photos"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pair = MappingPair(
            MappingConfig(photo.shape[1], shape.shape[1], least_hidden=config.least_hidden),
            _standard(photo),
            _standard(shape),
        )
    drawn = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(pair.parameters(), lr=config.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    for step in range(config.steps):
        batch = torch.randint(len(photo), (config.rows,), generator=drawn)
        to_shape, to_photo = pair(photo[batch], shape[batch])
        optimizer.zero_grad()
        (to_shape + to_photo).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step(step + 1)
    return pair.eval().requires_grad_(False)


def _standard(rows: Float[Tensor, "rows width"]) -> Standard:
    centre = rows.mean(dim=0)  # the variance as a difference of large numbers would be rounding's
    total, squares = torch.zeros(2, rows.shape[1], dtype=torch.float64)
    for some in rows.split(65536):
        away = (some - centre).double()
        total, squares = total + away.sum(dim=0), squares + away.square().sum(dim=0)
    made = standard_of(total, squares, len(rows))
    return Standard(centre + made.mean.float(), made.spread.float())


def _rows_of(
    reference: Reference,
    extractor: PhotoExtractor,
    photos: Sequence[Photo],
    config: SplatFormConfig,
    on_step: OnStep | None,
) -> list[_Rows]:
    most = max(1, config.most_rows // len(photos))
    rows = []
    for i, photo in enumerate(photos):
        cells, _ = _seen(reference, extractor, photo)
        chosen = cells.valid.flatten().nonzero()[:, 0]
        if len(chosen) > most:
            drawn = torch.Generator().manual_seed(config.seed * 1_000_003 + i)
            chosen = chosen[torch.randperm(len(chosen), generator=drawn)[:most].sort().values]
        rows.append(_Rows(cells.photo.flatten(0, 1)[chosen], cells.shape.flatten(0, 1)[chosen]))
        if on_step is not None:
            on_step("features of the views", i + 1, len(photos))
    return rows


def _seen(reference: Reference, extractor: PhotoExtractor, photo: Photo) -> tuple[Cells, Render]:
    """Cells of a reference photo, and the reference's render at its camera, over the photo's own background."""
    device = reference.gaussians.device
    options = RasterOptions(antialiased=reference.options.antialiased, depth=True)
    camera = photo.camera.moved(photo.camera.world_to_cam.to(device))
    with torch.no_grad():
        render = rasterize(reference.gaussians, camera, photo.background.to(device), options=options)
    return cells_of(reference, extractor, photo.rgb, photo.alpha, render, camera), render


@torch.no_grad()
def _fused_rows(pair: MappingPair, rows: _Rows, config: SplatFormConfig) -> Float[Tensor, " rows"]:
    to_photo, to_shape = pair.distances(rows.photo, rows.shape)
    every = torch.ones(1, len(to_photo), dtype=torch.bool)
    return fused(Distances(to_photo[None], to_shape[None], every), ScoreConfig(config.fusion))[0]


@torch.no_grad()
def _good_views(
    difference: DifferenceDetector,
    extractor: PhotoExtractor,
    photos: Sequence[Photo],
    form: SplatForm,
    kept: Sequence[set[int]],
    on_step: OnStep | None,
) -> tuple[GoodView, ...]:
    """Each view kept from a network, judged by that network."""
    reference = difference.reference
    device = reference.gaussians.device
    detector = SplatFormDetector(reference, difference.expected, form, extractor)
    chosen = sorted((i, number) for number, unseen in enumerate(kept) for i in unseen)
    good = []
    for done, (i, number) in enumerate(chosen):
        photo = photos[i]
        cells, render = _seen(reference, extractor, photo)
        camera = photo.camera.moved(photo.camera.world_to_cam.to(device))
        base = difference.anomaly_map(photo.rgb.to(device), photo.alpha.to(device), render, camera)
        apart = departure(form.pairs[number : number + 1], cells, form.config.fusion)
        relative = detector.relative_of(apart, *photo.rgb.shape[:2]).to(device)
        ratio = joined(base, relative).score / base.score if base.score > 0 else 1.0
        angle = reference.nearest_view_deg(camera)
        good.append(checked(GoodView(photo.name, image_score(relative * base.known), ratio, angle)))
        if on_step is not None:
            on_step("what good views leave", done + 1, len(chosen))
    return tuple(good)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums of several threads would differ in their last bits, and networks trained on them in more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
