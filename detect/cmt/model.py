"""CMT: photo and views to the probability of a defect, its box, and the cells that it lies in.

Pictures are square, in [-1, 1] on white; cells are numbered row by row; boxes are (cx, cy, w, h) in [0, 1]. Views carry the
surface points that their cells show. Everything that depends on the views alone is in `Cells` and can be kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from detect.cmt.attention import Chosen, DecoderBlock, Form, choose_best
from detect.cmt.correspondence import (
    pack,
    place_prior,
    position_prior,
    take,
    view_disagreement,
)
from detect.cmt.encoder import CELL_PX, Encoder, MatchingHead, Norm, Smoothing
from detect.cmt.pose_aid import Explained, InPlace, PoseAid, match_in_place
from detect.cmt.positions import PicturePositions, SurfacePositions, cell_places
from prepare.errors import InputError, UsageError

Preset = Literal["small", "paper"]
Ablation = Literal["A", "B", "C", "D", "CMT"]
EMPTY_LOGIT = -12.0  # of cells that show the part neither in the photo nor in the aiding view
ABLATIONS = ("A", "B", "C", "D", "CMT")
_TOPS = (1, 4, 16)  # of how many of the highest patch logits the heads see the mean
_EVIDENCE = 6  # numbers of each cell of the photo
_EVIDENCE_OF_VIEW = 4  # of each cell of the near view
_SHARPNESS = 0.05  # similarities are divided by it where matches are averaged


@dataclass(frozen=True)
class ModelConfig:
    """What the network is made of."""

    px: int = 256
    """Side of pictures; a multiple of 32."""
    widths: tuple[int, int, int, int] = (24, 48, 96, 160)
    """Channels of the encoder's four stages."""
    depths: tuple[int, int, int, int] = (1, 2, 2, 1)
    """Residual blocks of the four stages."""
    norm: Norm = "group"
    """Group normalisation does not mix photos with views; batch normalisation as released."""
    smoothing: tuple[int, int, int] = (1, 1, 1)
    """Convolutions after the pyramid's levels."""
    level_convolutions: bool = False
    """Whether the pyramid has a convolution at each level as well."""
    width: int = 64
    """Features of a cell."""
    match_hidden: tuple[int, ...] = (128,)
    """Widths inside the matching head."""
    match_width: int = 64
    """Numbers in a cell's matching vector."""
    inner: int = 128
    """Width inside the decoder."""
    blocks: int = 2
    """Blocks of the decoder."""
    heads: int = 4
    """Attention heads."""
    head_width: int = 32
    """Channels of a head."""
    feed_forward: int = 256
    """Width inside the feed-forward layers."""
    head_hidden: int = 128
    """Width inside the class and box heads."""
    k: int = 20
    """Cells of the views that each cell of the photo may attend to; 0: all (no correspondence guided attention)."""
    reference: bool = True
    """Whether the views are looked at; without, the baseline that sees the photo alone."""
    positions: bool = True
    """Whether the views' cells carry their surface points (3DPE)."""
    position_bands: int = 6
    """Frequencies of the surface points."""
    position_base: float = math.pi
    """Lowest frequency, rad per world unit."""
    position_width: int = 32
    """Features of a surface point."""
    missing_as_point: bool = False
    """Whether cells without a surface point count as (-1, -1, -1), as released."""
    picture_bands: int = 4
    """Frequencies of the photo's cells' places; 0: cells do not know their place, as released."""
    foreground: Literal["alpha", "white"] = "alpha"
    """The part's cells by the alpha that is given, or as released by what is darker than white."""
    foreground_only: bool = True
    """Whether cells of the background are left out of all attention; as released they take part."""
    patches: bool = True
    """Whether there is a head for every cell."""
    aided: bool = True
    """Whether a view from the photo's own camera can be given."""
    explained: bool = True
    """Whether the cells of the aiding view (else of the best view) look for themselves in the photo."""
    evidence: bool = True
    """Whether the heads see, beside what the decoder made of it, the plain differences that need no learning (with
    `patches`): how the silhouettes differ in a cell and near it, how unlike and how far off the best matches are."""
    prior_sigma: float = 0.2
    """Of the geometric prior on matches when the pose is given, world units."""
    unused: bool = False
    """Whether the parameters that the released network holds and never reads are held too, for the count."""

    def __post_init__(self) -> None:
        if self.px < 32 or self.px % 32:
            raise UsageError(f"px {self.px}: pictures have sides of a multiple of 32 px")
        if not self.reference and (self.aided or self.explained):
            raise UsageError(
                "reference off: then `aided` and `explained`, which look at views, must be off too"
            )

    @property
    def columns(self) -> int:
        """Cells along a side."""
        return self.px // CELL_PX


def preset(name: Preset) -> ModelConfig:
    """Our small network for a CPU, or the paper's.

    Raises: UsageError for another name.
    """
    if name == "small":
        return ModelConfig()
    if name == "paper":
        return ModelConfig(
            widths=(64, 128, 256, 512),
            depths=(2, 2, 2, 2),
            norm="batch",
            smoothing=(3, 1, 2),
            level_convolutions=True,
            width=128,
            match_hidden=(1024, 1024, 1024),
            match_width=256,
            inner=512,
            blocks=3,
            heads=8,
            head_width=64,
            feed_forward=2048,
            head_hidden=256,
            k=100,
            position_bands=10,
            position_base=1.0,
            position_width=128,
            missing_as_point=True,
            picture_bands=0,
            foreground="white",
            foreground_only=False,
            patches=False,
            evidence=False,
            aided=False,
            explained=False,
            unused=True,
        )
    raise UsageError(f"preset {name!r}: there are small and paper")


def ablation(config: ModelConfig, name: Ablation) -> tuple[ModelConfig, bool]:
    """The paper's ablation of `config`, and whether the alignment (VLFA) is trained.

    A: plain cross-attention; B: the best k only; C: alignment only; D: both, no 3DPE; CMT: all.

    Raises: UsageError for another name.
    """
    if name not in ABLATIONS:
        raise UsageError(f"ablation {name!r}: there are {', '.join(ABLATIONS)}")
    guided, aligned = name in ("B", "D", "CMT"), name in ("C", "D", "CMT")
    changed = replace(config, k=config.k if guided else 0, positions=name == "CMT")
    return changed, aligned


def without_reference(config: ModelConfig) -> ModelConfig:
    """The baseline that sees the photo alone."""
    return replace(config, reference=False, aided=False, explained=False)


def config_as_json(config: ModelConfig) -> dict[str, Any]:
    """Plain values, for a file."""
    return asdict(config)


def config_from_json(values: Mapping[str, Any]) -> ModelConfig:
    """What `config_as_json` gave.

    Raises: InputError where a field is missing or foreign.
    """
    names = {field.name for field in fields(ModelConfig)}
    if set(values) != names:
        odd = sorted(set(values) ^ names)
        raise InputError(f"configuration of the network: {', '.join(odd[:5])} missing or unknown")
    plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
    return ModelConfig(**plain)


@dataclass(frozen=True)
class Cells:
    """Pictures as the network keeps them."""

    features: Float[Tensor, "pictures cells width"]
    matching: Float[Tensor, "pictures cells matching"]  # unit vectors; as released times the part's share
    share: Float[Tensor, "pictures cells"]  # of the cell that the part covers, in [0, 1]
    xyz: Float[Tensor, "pictures cells xyz=3"] | None = None  # of views: the surface point, NaN where none

    def __getitem__(self, which: slice) -> Cells:
        xyz = None if self.xyz is None else self.xyz[which]
        return Cells(self.features[which], self.matching[which], self.share[which], xyz)

    def joined(self, other: Cells) -> Cells:
        """These pictures, then the other's."""
        assert self.xyz is not None
        assert other.xyz is not None
        return Cells(
            torch.cat([self.features, other.features]),
            torch.cat([self.matching, other.matching]),
            torch.cat([self.share, other.share]),
            torch.cat([self.xyz, other.xyz]),
        )


@dataclass(frozen=True)
class Matches:
    """Which cells of the photo were matched with which cells of the views, best first."""

    row_cell: Int[Tensor, "batch rows"]  # the photo's cell
    row_usable: Bool[Tensor, "batch rows"]  # false: padding
    view: Int[Tensor, "batch rows k"]  # place in `view_of`; the number of views for the aiding one
    cell: Int[Tensor, "batch rows k"]
    score: Float[Tensor, "batch rows k"]  # similarity (and prior, where a pose is given), -inf: none


@dataclass(frozen=True)
class Output:
    """What the network says of each photo."""

    logit: Float[Tensor, "batch"]  # of "defective"
    box: Float[Tensor, "batch 4"]  # of the defect, if there is one
    patch: Float[Tensor, "batch cells"] | None = None  # logits of "changed"
    unexplained: Float[Tensor, "batch cells"] | None = (
        None  # logits on the cells of `near`: no counterpart in the photo
    )
    near: Int[Tensor, "batch"] | None = None  # the view that `unexplained` is of, an index of views
    disagreement: Float[Tensor, "batch views"] | None = (
        None  # cells, of each view of `view_of`; the least is the viewpoint
    )
    matches: Matches | None = None  # None where k is 0


class CMT(nn.Module):
    """The network of a `ModelConfig`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = c = config
        self.encoder = Encoder(
            c.widths, c.depths, c.width, c.norm, Smoothing(*c.smoothing), c.level_convolutions, c.unused
        )
        self.matching = MatchingHead(c.width, c.match_hidden, c.match_width) if c.reference else None
        self.decoder = Decoder(config)

    def forward(
        self,
        photos: Float[Tensor, "batch rgb=3 px px"],
        photo_share: Float[Tensor, "batch cells"],
        views: Float[Tensor, "views rgb=3 px px"],
        view_share: Float[Tensor, "views cells"],
        view_xyz: Float[Tensor, "views cells xyz=3"],
        view_of: Int[Tensor, "batch n"],
        aided: Int[Tensor, "batch"] | None = None,
    ) -> Output:
        """Photos against the views that `view_of` names for each, and its aiding view (-1: none), in one pass."""
        cells = self.encode(torch.cat([views, photos]), torch.cat([view_share, photo_share]))
        number = len(views)
        return self.compare(cells[number:], replace(cells[:number], xyz=view_xyz), view_of, aided)

    def encode(
        self,
        pictures: Float[Tensor, "pictures rgb=3 px px"],
        share: Float[Tensor, "pictures cells"],
        xyz: Float[Tensor, "pictures cells xyz=3"] | None = None,
    ) -> Cells:
        """The cells of pictures; `share` is only read where the configuration takes the foreground from alpha."""
        if pictures.shape[-1] != self.config.px or pictures.shape[-2] != self.config.px:
            raise InputError(
                f"pictures of {tuple(pictures.shape[-2:])} px: this network takes {self.config.px} x {self.config.px}; "
                "resize them"
            )
        features = self.encoder(pictures).flatten(2).transpose(1, 2)
        if self.config.foreground == "white":
            share = white_share(pictures, self.config.columns)
        share = share.to(features.dtype)
        matching = features.new_zeros(*features.shape[:2], 0)
        if self.matching is not None:
            matching = self.matching(features)
            if self.config.foreground == "white":
                # As released. It leaves background cells without a preference among keys, that is all keys tied.
                matching = matching * share[..., None]
        return Cells(features, matching, share, xyz)

    def compare(
        self,
        photos: Cells,
        views: Cells | None,
        view_of: Int[Tensor, "batch n"] | None,
        aided: Int[Tensor, "batch"] | None = None,
        form: Form = "absorbed",
    ) -> Output:
        """What the photos' cells say against those of the views.

        Raises: InputError where a photo's views show nothing, or have no surface points though the network needs them.
        """
        if not self.config.reference:
            return self.decoder(photos, None, None, None, form)
        if views is None or view_of is None or view_of.shape[1] == 0:
            raise InputError("reference: no views; give at least one")
        if views.xyz is None:
            raise InputError(
                "reference: its views have no surface points; render them with depth, or use a network "
                "without 3D positions"
            )
        if aided is None or not self.config.aided:
            aided = torch.full((len(photos.features),), -1, device=view_of.device, dtype=view_of.dtype)
        return self.decoder(photos, views, view_of, aided, form)


class Decoder(nn.Module):
    """[tok] and the photo's cells through blocks that attend to the views, then the heads."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = c = config
        context = c.width + c.position_width if c.reference else None
        self.token = nn.Parameter(torch.zeros(1, 1, c.width))
        self.positions = (
            SurfacePositions(c.position_width, c.position_bands, c.position_base, c.missing_as_point)
            if c.reference and c.positions
            else None
        )
        self.places = PicturePositions(c.width, c.picture_bands) if c.picture_bands else None
        self.proj_in = nn.Linear(c.width, c.inner)
        self.blocks = nn.ModuleList(
            DecoderBlock(c.inner, context, c.heads, c.head_width, c.feed_forward) for _ in range(c.blocks)
        )
        self.proj_out = nn.Linear(c.inner, c.width)
        evidence = _EVIDENCE if c.evidence else 0
        self.patch_head = _mlp(c.width + evidence, (c.width,), 1) if c.patches else None
        self.aid = PoseAid(c.width, c.match_width) if c.aided else None
        self.explained = None
        if c.explained:
            assert context is not None
            numbers = _EVIDENCE_OF_VIEW if c.evidence else 0
            self.explained = Explained(c.width, c.width, c.heads, c.feed_forward, numbers)
            self.view_positions = nn.Linear(c.position_width, c.width)
        seen = c.width
        if c.patches:
            seen += len(_TOPS)
            if c.evidence:
                seen += 2 * len(_TOPS)
        if c.explained:
            seen += c.width + len(_TOPS)
        self.class_head = _mlp(seen, (c.head_hidden,), 1)
        self.box_head = _mlp(seen + (5 if c.patches else 0), (c.head_hidden, c.head_hidden), 4)
        self.unused = (
            nn.ParameterList(
                [
                    torch.zeros(1024, 128),
                    torch.zeros(1024, 128),
                    torch.zeros(128, 12),
                    torch.zeros(3, 128),
                ]
            )
            if c.unused
            else None
        )
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter)
        nn.init.normal_(self.token, std=0.02)

    def forward(
        self,
        photos: Cells,
        views: Cells | None,
        view_of: Int[Tensor, "batch n"] | None,
        aided: Int[Tensor, "batch"] | None,
        form: Form,
    ) -> Output:
        c = self.config
        batch = len(photos.features)
        cells = photos.features.shape[1]
        given, aiding = None, None
        if self.aid is not None and views is not None and aided is not None:
            given, aiding = aided >= 0, _of(views, aided.clamp_min(0))

        # Rows: the photo's cells that take part.
        kept = photos.share > 0
        if c.foreground_only:
            kept = widened(kept, c.columns)
            if given is not None and aiding is not None:
                kept = kept | (given[:, None] & (aiding.share > 0))
        else:
            kept = torch.ones_like(kept)
        row_cell, row_usable = pack(kept)

        tokens = photos.features
        if self.places is not None:
            tokens = tokens + self.places(c.columns, c.columns)
        rows = take(tokens, row_cell)

        # Keys: the cells of this photo's views, the aiding one last.
        context = keys_usable = chosen = evidence = None
        matches = disagreement = None
        order = None
        if views is not None and view_of is not None:
            assert views.xyz is not None
            n = view_of.shape[1]
            # Views in an order of their own, whatever order they came in: ties and rounding then depend on it no more.
            order = _signature(views)[view_of].argsort(dim=1, stable=True)
            view_of = view_of.gather(1, order)
            all_views = view_of
            usable = (views.share[view_of] > 0).flatten(1)
            if not c.foreground_only:
                usable = torch.ones_like(usable)
            if given is not None and aided is not None:
                all_views = torch.cat([view_of, aided.clamp_min(0)[:, None]], dim=1)
                usable = torch.cat([usable, given[:, None] & (views.share[aided.clamp_min(0)] > 0)], dim=1)
            if not bool(usable[:, : n * cells].any(dim=1).all()):
                raise InputError(
                    "reference: its views show nothing (an empty mask); render the part into them"
                )
            place, keys_usable = pack(usable)
            key_view, key_cell = place // cells, place % cells
            key = all_views.gather(1, key_view) * cells + key_cell  # of the table of all views' cells
            features = views.features.flatten(0, 1)
            xyz = views.xyz.flatten(0, 1)
            positions = (
                self.positions(xyz)
                if self.positions is not None
                else features.new_zeros(len(features), c.position_width)
            )
            table = torch.cat([features, positions.to(features.dtype)], dim=-1)
            context = F.embedding(key, table)

            with torch.no_grad(), torch.autocast(table.device.type, enabled=False):
                row_match = take(photos.matching.float(), row_cell)
                key_match = F.embedding(key, views.matching.flatten(0, 1).float())
                similarity = row_match @ key_match.transpose(1, 2)
                disagreement = view_disagreement(
                    similarity,
                    row_cell,
                    row_usable & (photos.share.gather(1, row_cell) > 0),
                    key_cell,
                    key_view,
                    keys_usable & (views.share.flatten()[key] > 0),
                    n,
                    c.columns,
                )
                nearness = similarity.masked_fill(~keys_usable[:, None], -1).amax(dim=2)
                guided = similarity
                if given is not None and aiding is not None:
                    assert aiding.xyz is not None
                    expected = take(aiding.xyz, row_cell).masked_fill(~given[:, None, None], math.nan)
                    guided = similarity + position_prior(expected.float(), xyz[key].float(), c.prior_sigma)
                guided = guided.masked_fill(~keys_usable[:, None], -math.inf)
                if c.k > 0:
                    chosen = choose_best(guided, c.k)
                    own = torch.cat(
                        [order, order.new_full((batch, 1), n)], dim=1
                    )  # the aiding view stays last
                    matches = Matches(
                        row_cell,
                        row_usable,
                        _at(own.gather(1, key_view), chosen.index),
                        _at(key_cell, chosen.index),
                        chosen.score,
                    )
            if chosen is not None and form == "absorbed":
                chosen = chosen.gather(context)

            aid_numbers = rows.new_zeros(*row_cell.shape, _EVIDENCE - 1)
            if given is not None and aiding is not None and self.aid is not None:
                assert aiding.xyz is not None
                in_place = match_in_place(photos.matching, aiding.matching, aiding.features, c.columns)
                in_place = InPlace(
                    take(in_place.features, row_cell),
                    take(in_place.agreement, row_cell),
                    take(in_place.offset, row_cell),
                    in_place.similarity.gather(1, row_cell),
                )
                found = choose_best(
                    guided.masked_fill((key_view == n)[:, None], -math.inf), max(1, min(c.k, 8))
                )
                matched = _mean_place(found, xyz[key]).to(rows.dtype)
                expected = take(aiding.xyz, row_cell).to(rows.dtype)
                rows = rows + self.aid(
                    take(photos.features, row_cell),
                    in_place,
                    photos.share.gather(1, row_cell),
                    aiding.share.gather(1, row_cell),
                    matched,
                    expected,
                    given,
                )
                aid_numbers = torch.stack(
                    [
                        *(
                            grid.gather(1, row_cell)
                            for grid in silhouette_changes(photos.share, aiding.share, c.columns)
                        ),
                        1 - in_place.similarity,
                        4 * (matched - expected).norm(dim=-1).nan_to_num(),
                    ],
                    dim=-1,
                )
                aid_numbers = aid_numbers * given[:, None, None]

            if c.evidence:
                unlike = 1 - nearness[..., None] if c.k > 0 else torch.zeros_like(aid_numbers[..., :1])
                evidence = torch.cat([aid_numbers, unlike.to(rows.dtype)], dim=-1).float()

        # Blocks.
        x = self.proj_in(torch.cat([self.token.expand(batch, -1, -1).to(rows.dtype), rows], dim=1))
        usable_rows = torch.cat([torch.ones_like(row_usable[:, :1]), row_usable], dim=1)
        for block in self.blocks:
            x = block(
                x,
                None if bool(usable_rows.all()) else usable_rows,
                context,
                None if keys_usable is None or bool(keys_usable.all()) else keys_usable,
                chosen,
                form,
            )
        x = self.proj_out(x)

        # Heads.
        seen = [x[:, 0]]
        patch = unexplained = near = None
        shape = []
        if self.patch_head is not None:
            of_cells = x[:, 1:]
            if c.evidence:
                if evidence is None:
                    evidence = of_cells.new_zeros(*row_cell.shape, _EVIDENCE)
                evidence = evidence.masked_fill(~row_usable[..., None], 0.0)
                of_cells = torch.cat([of_cells, evidence.to(of_cells.dtype)], dim=-1)
            logits = self.patch_head(of_cells)[..., 0].float().masked_fill(~row_usable, EMPTY_LOGIT)
            patch = logits.new_full((batch, cells), EMPTY_LOGIT).scatter(1, row_cell, logits)
            seen.append(_tops(logits))
            if evidence is not None:
                seen += [4 * _tops(evidence[..., number], 0.0) for number in (1, 2)]
            shape = [_extent(logits, cell_places(c.columns, c.columns, logits)[row_cell])]
        if self.explained is not None and views is not None and view_of is not None:
            assert disagreement is not None
            assert views.xyz is not None
            near = view_of.gather(1, disagreement.argmin(dim=1, keepdim=True))[:, 0]
            if given is not None and aided is not None:
                near = torch.where(given, aided, near)
            unexplained, together = self._explain(
                photos, x[:, 1:], row_cell, row_usable, _of(views, near), given
            )
            seen += [_tops(unexplained), together]
        summary = torch.cat([part.float() for part in seen], dim=-1)
        with torch.autocast(summary.device.type, enabled=False):
            logit = self.class_head(summary)[..., 0]
            raw = self.box_head(torch.cat([summary, *shape], dim=-1))
            if shape:
                raw = raw + torch.logit(shape[0][:, :4].clamp(0.01, 0.99))
            box = raw.sigmoid()
        if disagreement is not None and order is not None:
            disagreement = torch.zeros_like(disagreement).scatter(1, order, disagreement)
        return Output(logit, box, patch, unexplained, near, disagreement, matches)

    def _explain(
        self,
        photos: Cells,
        rows: Float[Tensor, "batch rows width"],
        row_cell: Int[Tensor, "batch rows"],
        row_usable: Bool[Tensor, "batch rows"],
        near: Cells,
        given: Bool[Tensor, "batch"] | None,
    ) -> tuple[Float[Tensor, "batch cells"], Float[Tensor, "batch width"]]:
        """Each cell of the near view against the photo's: logits on its grid, and their summary."""
        c = self.config
        assert self.explained is not None
        assert near.xyz is not None
        cell, usable = pack(near.share > 0)
        with torch.no_grad(), torch.autocast(rows.device.type, enabled=False):
            similarity = take(near.matching.float(), cell) @ take(
                photos.matching.float(), row_cell
            ).transpose(1, 2)
            if given is not None:
                prior = place_prior(cell, row_cell, c.columns, 2.0)
                similarity = torch.where(given[:, None, None], similarity + prior, similarity)
            numbers = None
            if c.evidence:
                changes = silhouette_changes(photos.share, near.share, c.columns)
                if given is None:
                    given = torch.zeros_like(usable[:, 0])
                unlike = 1 - similarity.masked_fill(~row_usable[:, None], -1).amax(dim=2)
                numbers = torch.stack(
                    [*(grid.gather(1, cell) * given[:, None] for grid in changes), unlike], dim=-1
                )
                numbers = numbers.masked_fill(~usable[..., None], 0.0)
            chosen = choose_best(similarity.masked_fill(~row_usable[:, None], -math.inf), 8)
        x = take(near.features, cell)
        if self.positions is not None:
            x = x + self.view_positions(self.positions(take(near.xyz, cell)).to(x.dtype))
        if self.places is not None:
            x = x + take(self.places(c.columns, c.columns).expand(len(x), -1, -1).to(x.dtype), cell)
        logits, together = self.explained(x, usable, rows, chosen, numbers)
        logits = logits.float().masked_fill(~usable, EMPTY_LOGIT)
        grid = logits.new_full((len(x), photos.features.shape[1]), EMPTY_LOGIT)
        return grid.scatter(1, cell, logits), together


def white_share(
    pictures: Float[Tensor, "pictures rgb=3 px px"], columns: int
) -> Float[Tensor, "pictures cells"]:
    """What is darker than nine tenths of white, dilated twice and sampled bilinearly at the cells, as released.

    A near-white part vanishes, and a shadow counts as part: give alpha where there is one.
    """
    weights = pictures.new_tensor([0.299, 0.587, 0.114])[None, :, None, None]
    dark = ((pictures * weights).sum(dim=1, keepdim=True) < 0.8).to(pictures.dtype)
    for _ in range(2):
        dark = F.max_pool2d(dark, 3, 1, 1)
    return F.interpolate(dark, size=(columns, columns), mode="bilinear", align_corners=False).flatten(1)


def silhouette_changes(
    photo: Float[Tensor, "batch cells"], view: Float[Tensor, "batch cells"], columns: int
) -> list[Float[Tensor, "batch cells"]]:
    """Covered share of the photo's cells less the view's: as it is, its size, and the size of its mean over 3 x 3 cells.

    A silhouette that is a little off leaves pairs of opposite sign, which the mean takes away; a missing part stays.
    """
    difference = photo - view
    grid = difference.unflatten(1, (-1, columns))[:, None]
    mean = F.avg_pool2d(grid, 3, 1, 1, count_include_pad=False)[:, 0].flatten(1)
    return [difference, difference.abs(), mean.abs()]


def widened(kept: Bool[Tensor, "batch cells"], columns: int) -> Bool[Tensor, "batch cells"]:
    """With the cells that touch a kept one."""
    grid = kept.unflatten(1, (-1, columns))[:, None].float()
    return (F.max_pool2d(grid, 3, 1, 1) > 0)[:, 0].flatten(1)


def _signature(views: Cells) -> Float[Tensor, "views"]:
    """A number of each view's own, from what it shows."""
    with torch.no_grad():
        places = torch.arange(views.features.shape[1], device=views.features.device, dtype=torch.float64)
        return (views.features.double().sum(dim=2) * (places + 1).sqrt()).sum(dim=1)


def _of(views: Cells, index: Int[Tensor, "batch"]) -> Cells:
    assert views.xyz is not None
    return Cells(views.features[index], views.matching[index], views.share[index], views.xyz[index])


def _at(values: Int[Tensor, "batch keys"], index: Int[Tensor, "batch rows k"]) -> Int[Tensor, "batch rows k"]:
    return values.gather(1, index.flatten(1)).view_as(index)


def _mean_place(found: Chosen, xyz: Float[Tensor, "batch keys xyz=3"]) -> Float[Tensor, "batch rows xyz=3"]:
    """Mean surface point of what was found, the most similar weighing most; NaN where none is known."""
    points = torch.stack([_at_float(xyz[..., axis], found.index) for axis in range(3)], dim=-1)
    known = points.isfinite().all(dim=-1) & found.valid
    weights = (found.score / _SHARPNESS).masked_fill(~known, -math.inf).softmax(dim=-1)
    return (weights[..., None] * points.nan_to_num()).sum(dim=2)


def _at_float(
    values: Float[Tensor, "batch keys"], index: Int[Tensor, "batch rows k"]
) -> Float[Tensor, "batch rows k"]:
    return values.gather(1, index.flatten(1)).view_as(index)


def _tops(logits: Float[Tensor, "batch rows"], least: float = EMPTY_LOGIT) -> Float[Tensor, "batch tops"]:
    """Means of the highest logits, about unit size; short rows are filled up with `least`."""
    most = max(_TOPS)
    high = F.pad(logits, (0, max(0, most - logits.shape[1])), value=least).topk(most, dim=1).values
    return torch.stack([high[:, :count].mean(dim=1) for count in _TOPS], dim=-1) / 4


def _extent(
    logits: Float[Tensor, "batch rows"], places: Float[Tensor, "batch rows 2"]
) -> Float[Tensor, "batch 5"]:
    """The box that has the moments of the map of probabilities, and how many cells it holds (log).

    A box filled evenly is sqrt(12) deviations wide.
    """
    weights = logits.sigmoid()
    total = weights.sum(dim=1, keepdim=True).clamp_min(1e-4)
    shares = (weights / total)[..., None]
    mean = (shares * places).sum(dim=1)
    spread = ((shares * (places - mean[:, None]).square()).sum(dim=1) + 1e-4).sqrt()
    return torch.cat([(mean + 1) / 2, spread * math.sqrt(12) / 2, total.log()], dim=-1)


def _mlp(width: int, hidden: tuple[int, ...], out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels, wide in zip((width, *hidden), hidden, strict=False):
        layers += [nn.Linear(channels, wide), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(hidden[-1], out))
