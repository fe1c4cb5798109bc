"""Attention of a photo's cells to the k cells of the views that match each best, in three forms that are proven equal.

Row 0 of the queries is the [tok] token, which sees every key. `dense` adds a mask to plain attention: the definition.
`gathered` computes keys and values once and gathers them. `absorbed`, the one in use, never makes keys or values: with
bias-free projections q . (W_K c) = (W_K' q) . c, so the raw contexts are gathered once for all blocks (where they are many,
some rows at a time and again in the backward pass), and the weighted sum of contexts passes W_V. Neither of the two makes a
mask, or anything else of queries x keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

Form = Literal["dense", "gathered", "absorbed"]
KEPT_BYTES = 64 << 20  # of gathered contexts that are kept for the backward pass; more are gathered anew
_CHUNK_BYTES = 16 << 20  # of contexts that are gathered at a time then


@dataclass(frozen=True)
class Chosen:
    """The keys that each query may attend to."""

    index: Int[Tensor, "batch queries k"]  # of a key
    score: Float[
        Tensor, "batch queries k"
    ]  # its similarity, falling; -inf where there were fewer than k keys
    context: Float[Tensor, "batch queries k channels"] | None = None  # gathered once for all blocks

    @property
    def valid(self) -> Bool[Tensor, "batch queries k"]:
        return self.score.isfinite()

    def gather(self, context: Float[Tensor, "batch keys channels"]) -> Chosen:
        """With the contexts of the keys beside it, unless they are too large to be kept."""
        if self.index.numel() * context.shape[2] * context.element_size() > KEPT_BYTES:
            return self
        return Chosen(self.index, self.score, gathered(context, self.index))


def gathered(
    values: Float[Tensor, "batch keys channels"], index: Int[Tensor, "batch queries k"]
) -> Float[Tensor, "batch queries k channels"]:
    """`values[b, index[b, q, j]]`; the gradient sums in a fixed order on the CPU."""
    batch, keys, channels = values.shape
    first = torch.arange(batch, device=values.device)[:, None, None] * keys
    return F.embedding(index + first, values.reshape(batch * keys, channels))


def choose_best(similarity: Float[Tensor, "batch queries keys"], k: int) -> Chosen:
    """The `k` most similar keys of every query (all where there are fewer); of equal ones those that come first.

    A key of similarity -inf is none. No gradient passes.
    """
    similarity = similarity.detach()
    keys = similarity.shape[-1]
    k = min(k, keys)
    score, index = similarity.topk(min(k + 1, keys), dim=-1)
    if keys > k:
        # topk leaves open which of equal keys it takes: it matters only where the last one taken equals the next.
        tied = (score[..., k - 1] == score[..., k]) & score[..., k].isfinite()
        score, index = score[..., :k].contiguous(), index[..., :k].contiguous()
        if bool(tied.any()):
            order = similarity[tied].argsort(dim=-1, descending=True, stable=True)[:, :k]
            score[tied], index[tied] = similarity[tied].gather(-1, order), order
    return Chosen(index, score)


def _attended(
    q: Float[Tensor, "batch rows heads channels"],
    few: Float[Tensor, "batch rows k channels"],
    valid: Bool[Tensor, "batch rows k"],
) -> tuple[Float[Tensor, "batch rows heads channels"], Float[Tensor, "batch rows heads k"]]:
    """Weighted sums of each row's contexts, and the weights."""
    logits = q @ few.transpose(2, 3)
    weights = logits.masked_fill(~valid[:, :, None], -math.inf).softmax(dim=-1)
    return weights @ few, weights


class _SumsOfChosen(torch.autograd.Function):
    """`_attended` of gathered contexts that are never whole in memory: gathered some rows at a time, again going back."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, context: Tensor, index: Tensor, valid: Tensor) -> Tensor:
        ctx.save_for_backward(q, context, index, valid)
        parts = [
            _attended(q[:, rows], gathered(context, index[:, rows]).to(q.dtype), valid[:, rows])[0]
            for rows in _chunks(context, index)
        ]
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        q, context, index, valid = ctx.saved_tensors
        batch, keys, channels = context.shape
        first = torch.arange(batch, device=context.device)[:, None, None] * keys
        to_q = torch.empty_like(q)
        to_context = torch.zeros_like(context).view(batch * keys, channels)
        for rows in _chunks(context, index):
            few, out, some = gathered(context, index[:, rows]).to(q.dtype), grads[0][:, rows], q[:, rows]
            weights = _attended(some, few, valid[:, rows])[1]
            to_weights = out @ few.transpose(2, 3)
            to_logits = weights * (to_weights - (to_weights * weights).sum(dim=-1, keepdim=True))
            to_q[:, rows] = to_logits @ few
            to_few = weights.transpose(2, 3) @ out + to_logits.transpose(2, 3) @ some
            to_context.index_add_(
                0, (index[:, rows] + first).flatten(), to_few.flatten(0, 2).to(context.dtype)
            )
        return to_q, to_context.view_as(context), None, None


def _chunks(context: Tensor, index: Tensor) -> list[slice]:
    """Rows that are gathered at a time."""
    batch, rows, k = index.shape
    step = max(1, _CHUNK_BYTES // (batch * k * context.shape[2] * context.element_size()))
    return [slice(start, start + step) for start in range(0, rows, step)]


class Attention(nn.Module):
    """Multi-head attention with bias-free projections of queries, keys and values."""

    def __init__(self, width: int, context: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_k = nn.Linear(context, heads * head_width, bias=False)
        self.to_v = nn.Linear(context, heads * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width)

    def forward(
        self,
        x: Float[Tensor, "batch queries width"],
        context: Float[Tensor, "batch keys channels"],
        usable: Bool[Tensor, "batch keys"] | None = None,
        chosen: Chosen | None = None,
        form: Form = "absorbed",
    ) -> Float[Tensor, "batch queries width"]:
        """What `x` takes from the usable keys of `context`; with `chosen`, rows 1.. from their own few alone.

        Every row needs a usable key, and with `chosen` a valid one.
        """
        if chosen is None:
            mask = None if usable is None else usable[:, None, None, :]
            return self._full(x, context, mask)
        if form == "dense":
            return self._full(x, context, _mask(chosen, usable, context))
        if form == "gathered":
            return self._gathered(x, context, usable, chosen)
        return self._absorbed(x, context, usable, chosen)

    def _full(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self._split(self.to_q(x)), self._split(self.to_k(context)), self._split(self.to_v(context))
        return self.to_out(_joined(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)))

    def _gathered(self, x: Tensor, context: Tensor, usable: Tensor | None, chosen: Chosen) -> Tensor:
        keys, values = self.to_k(context), self.to_v(context)
        mask = None if usable is None else usable[:, None, None, :]
        q = self._split(self.to_q(x))
        token = F.scaled_dot_product_attention(q[:, :, :1], self._split(keys), self._split(values), mask)
        k, v = (gathered(t, chosen.index).unflatten(-1, (self.heads, -1)) for t in (keys, values))
        logits = torch.einsum("bhqd,bqkhd->bqhk", q[:, :, 1:], k) / math.sqrt(self.head_width)
        weights = logits.masked_fill(~chosen.valid[:, :, None], -math.inf).softmax(dim=-1)
        rows = torch.einsum("bqhk,bqkhd->bqhd", weights, v).flatten(2)
        return self.to_out(torch.cat([_joined(token), rows], dim=1))

    def _absorbed(self, x: Tensor, context: Tensor, usable: Tensor | None, chosen: Chosen) -> Tensor:
        w_k = self.to_k.weight.unflatten(0, (self.heads, -1))  # head, head width, channel
        w_v = self.to_v.weight.unflatten(0, (self.heads, -1))
        q = self.to_q(x).unflatten(-1, (self.heads, -1)) / math.sqrt(self.head_width)
        q = torch.einsum("bqhd,hdc->bqhc", q, w_k)
        logits = q[:, 0] @ context.transpose(1, 2)
        if usable is not None:
            logits = logits.masked_fill(~usable[:, None], -math.inf)
        token = (logits.softmax(dim=-1) @ context)[:, None]
        if chosen.context is None:
            rows: Tensor = _SumsOfChosen.apply(q[:, 1:], context, chosen.index, chosen.valid)  # type: ignore[no-untyped-call]
        else:
            rows = _attended(q[:, 1:], chosen.context, chosen.valid)[0]
        sums = torch.cat([token, rows], dim=1)
        return self.to_out(torch.einsum("bqhc,hdc->bqhd", sums, w_v).flatten(2))

    def _split(self, x: Float[Tensor, "batch rows channels"]) -> Tensor:
        return x.unflatten(-1, (self.heads, self.head_width)).transpose(1, 2)


def _joined(x: Float[Tensor, "batch heads rows channels"]) -> Float[Tensor, "batch rows wide"]:
    return x.transpose(1, 2).flatten(2)


def _mask(chosen: Chosen, usable: Tensor | None, context: Tensor) -> Bool[Tensor, "batch 1 rows keys"]:
    batch, queries, _ = chosen.index.shape
    keys = context.shape[1]
    # Invalid places point at keys that other places may have chosen: they are counted, not written.
    times = torch.zeros(batch, queries, keys, dtype=torch.int32, device=context.device)
    times.scatter_add_(2, chosen.index, chosen.valid.int())
    everything = torch.ones(batch, 1, keys, dtype=torch.bool, device=context.device)
    token = everything if usable is None else usable[:, None]
    return torch.cat([token, times > 0], dim=1)[:, None]


class GatedFeedForward(nn.Module):
    """Shazeer 2020, GEGLU: half of the first layer's outputs, times GELU of the other half."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.wide = nn.Linear(width, 2 * inner)
        self.out = nn.Linear(inner, width)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        value, gate = self.wide(x).chunk(2, dim=-1)
        return self.out(value * F.gelu(gate))


class DecoderBlock(nn.Module):
    """Self-attention, attention to the reference, feed-forward; each on normalised input, each added to its input."""

    def __init__(
        self, width: int, context: int | None, heads: int, head_width: int, feed_forward: int
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.own = Attention(width, width, heads, head_width)
        self.norm2 = nn.LayerNorm(width) if context else None
        self.cross = Attention(width, context, heads, head_width) if context else None
        self.norm3 = nn.LayerNorm(width)
        self.feed_forward = GatedFeedForward(width, feed_forward)

    def forward(
        self,
        x: Float[Tensor, "batch rows width"],
        rows_usable: Bool[Tensor, "batch rows"] | None,
        context: Float[Tensor, "batch keys channels"] | None,
        keys_usable: Bool[Tensor, "batch keys"] | None,
        chosen: Chosen | None,
        form: Form = "absorbed",
    ) -> Float[Tensor, "batch rows width"]:
        own = self.norm1(x)
        x = x + self.own(own, own, rows_usable)
        if self.cross is not None and self.norm2 is not None:
            assert context is not None
            x = x + self.cross(self.norm2(x), context, keys_usable, chosen, form)
        return x + self.feed_forward(self.norm3(x))
