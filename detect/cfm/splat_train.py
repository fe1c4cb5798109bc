"""Training of `detect.cfm.splat_form` on a reference's own good views, at their cameras."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from detect.anomaly_map import DifferenceDetector, image_score
from detect.cfm.features2d import PhotoExtractor, load_photo_extractor
from detect.cfm.mapping import MappingConfig, MappingPair, Standard, cosine_loss, standard_of
from detect.cfm.splat_cells import cells_of
from detect.cfm.splat_form import (
    GoodView,
    SplatForm,
    SplatFormConfig,
    SplatFormDetector,
    SplatFusion,
    checked,
    departure_of,
    joined,
    level_of,
)
from prepare.camera import Camera
from prepare.errors import InputError
from recon.fit import Photo, folds_of
from recon.rasterize import RasterOptions, Render, rasterize
from recon.reference import Reference

HALVES = 2
LEAST_ROWS = 64  # cells that a network is trained on

OnStep = Callable[[str, int, int], object]


@dataclass(frozen=True)
class _View:
    """Cells of one view, the valid ones in half precision: all views stay in memory."""

    valid: Bool[Tensor, "side side"]
    photo: Float[Tensor, "rows photo_width"]
    shape: Float[Tensor, "rows shape_width"]

    def departure(self, pair: MappingPair, fusion: SplatFusion) -> Float[Tensor, "side side"]:
        """The map of one network."""
        return departure_of([pair], self.photo.float(), self.shape.float(), self.valid, fusion)


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
    held_out = 0 < len(held) < len(photos)
    kept = [held] if held_out else folds_of(len(photos), HALVES)
    if len(photos) < 2 * HALVES:
        raise InputError(
            f"reference {reference.name}: {len(photos)} views are too few to learn from; fit it from more"
        )
    extractor = load_photo_extractor(config.photo)
    with _one_thread():
        views = _views_of(reference, extractor, photos, on_step)
        pairs: list[MappingPair] = []
        for number, unseen in enumerate(kept):

            def tell(done: int, number: int = number) -> None:
                if on_step is not None:
                    on_step("learning", number * config.steps + done, len(kept) * config.steps)

            seen = [view for i, view in enumerate(views) if i not in unseen]
            pairs.append(
                trained_pair(
                    torch.cat([view.photo for view in seen]),
                    torch.cat([view.shape for view in seen]),
                    config,
                    config.seed + number,
                    tell,
                )
            )
        apart = {
            i: views[i].departure(pair, config.fusion)
            for pair, unseen in zip(pairs, kept, strict=True)
            for i in sorted(unseen)
        }
        level = level_of(torch.cat([one[views[i].valid] for i, one in apart.items()]))
        form = SplatForm(config, tuple(pairs), level, (), held_out, dict(about or {}))
        return replace(form, good=_good_views(difference, extractor, photos, form, apart, on_step))


def trained_pair(
    photo: Float[Tensor, "rows photo_width"],
    shape: Float[Tensor, "rows shape_width"],
    config: SplatFormConfig,
    seed: int,
    on_step: Callable[[int], object] | None = None,
) -> MappingPair:
    """Both networks, in eval mode, after the steps of `config`; one that its map does not ask stays as it was drawn.

    Raises: InputError for too few rows.
    """
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
        of_photo, of_shape = pair.standardised(photo[batch].float(), shape[batch].float())
        loss = torch.zeros(())
        if config.fusion != "shape":
            loss = loss + cosine_loss(pair.to_photo(of_shape), of_photo)
        if config.fusion != "photo":
            loss = loss + cosine_loss(pair.to_shape(of_photo), of_shape)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if on_step is not None:
            on_step(step + 1)
    return pair.eval().requires_grad_(False)


def _standard(rows: Float[Tensor, "rows width"]) -> Standard:
    total, squares = torch.zeros(2, rows.shape[1], dtype=torch.float64)
    for some in rows.split(65536):
        exact = some.double()
        total, squares = total + exact.sum(dim=0), squares + exact.square().sum(dim=0)
    return standard_of(total, squares, len(rows))


def _views_of(
    reference: Reference, extractor: PhotoExtractor, photos: Sequence[Photo], on_step: OnStep | None
) -> list[_View]:
    views = []
    for i, photo in enumerate(photos):
        cells = cells_of(reference, extractor, photo.rgb, photo.alpha, *_shown(reference, photo))
        views.append(_View(cells.valid, cells.photo[cells.valid].half(), cells.shape[cells.valid].half()))
        if on_step is not None:
            on_step("features of the views", i + 1, len(photos))
    return views


def _shown(reference: Reference, photo: Photo) -> tuple[Render, Camera]:
    """The reference at a photo's camera, over the photo's own background; and that camera on the reference's device."""
    device = reference.gaussians.device
    options = RasterOptions(antialiased=reference.options.antialiased, depth=True)
    camera = photo.camera.moved(photo.camera.world_to_cam.to(device))
    with torch.no_grad():
        return rasterize(reference.gaussians, camera, photo.background.to(device), options=options), camera


@torch.no_grad()
def _good_views(
    difference: DifferenceDetector,
    extractor: PhotoExtractor,
    photos: Sequence[Photo],
    form: SplatForm,
    apart: Mapping[int, Float[Tensor, "side side"]],
    on_step: OnStep | None,
) -> tuple[GoodView, ...]:
    """What each view says of the limits; `apart`: by view, the map of the network that was not trained on it."""
    reference = difference.reference
    device = reference.gaussians.device
    detector = SplatFormDetector(reference, difference.expected, form, extractor)
    good = []
    for done, i in enumerate(sorted(apart)):
        photo = photos[i]
        render, camera = _shown(reference, photo)
        base = difference.anomaly_map(photo.rgb.to(device), photo.alpha.to(device), render, camera)
        relative = detector.relative_of(apart[i], *photo.rgb.shape[:2]).to(device)
        ratio = joined(base, relative).score / base.score if base.score > 0 else 1.0
        angle = reference.nearest_view_deg(camera)
        good.append(checked(GoodView(photo.name, image_score(relative * base.known), ratio, angle)))
        if on_step is not None:
            on_step("what good views leave", done + 1, len(apart))
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
