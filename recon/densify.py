"""Splitting, cloning and pruning splats together with the optimiser's state (Kerbl et al. 2023, section 5).

Where 3DGS takes every splat over a gradient threshold, we take the strongest so many: the count follows a schedule
and never passes a budget, which is what a CPU needs.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recon.gaussians import FIELD_NAMES, Gaussians, rotation_matrices
from recon.kernel.library import AdamField, AdamRule, check, library

SPLIT_SHRINK = 1.6  # a split splat's halves are this much smaller


BETAS = (0.9, 0.999)
EPSILON = 1e-15


@dataclass
class _Moments:
    """Adam's running means of one field's gradient and of its square."""

    mean: Tensor
    square: Tensor

    @classmethod
    def zero(cls, like: Tensor) -> _Moments:
        return cls(torch.zeros_like(like), torch.zeros_like(like))


class SplatOptimizer:
    """Adam over the splats' parameters, and the edits that must change both together.

    A splat that a view did not show (no gradient by its opacity) keeps its parameters and moments in that step: it is
    as if it had one Adam of its own (Mallick et al. 2024, "Taming 3DGS"), and most of the memory is left alone.
    The first column of `sh` has a learning rate of its own, "sh_constant": what a view-dependent term learns in one
    photo is wrong in the others, so those terms must learn more slowly.
    Source: Kingma and Ba 2015, algorithm 1. On the CPU in the kernel, elsewhere in torch; both by the same definition.
    """

    def __init__(self, gaussians: Gaussians, learning_rates: dict[str, float]) -> None:
        self.parameters = {
            name: torch.nn.Parameter(tensor.clone().contiguous())
            for name, tensor in gaussians.tensors().items()
        }
        self.moments = {name: _Moments.zero(value.data) for name, value in self.parameters.items()}
        self.rates = dict(learning_rates)
        self.steps = 0

    @property
    def gaussians(self) -> Gaussians:
        """The splats as they stand; gradients flow to the parameters."""
        return Gaussians(**self.parameters)

    def __len__(self) -> int:
        return self.parameters["means"].shape[0]

    def set_learning_rate(self, name: str, value: float) -> None:
        self.rates[name] = value

    def step(self) -> None:
        """Move every splat that has a gradient against it, and forget the gradients."""
        self.steps += 1
        if self.parameters["means"].device.type == "cpu" and self.parameters["means"].dtype == torch.float32:
            self._step_in_kernel()
        else:
            self._step_in_torch()
        for parameter in self.parameters.values():
            parameter.grad = None

    def _rate_columns(self, name: str) -> tuple[int, float, float]:
        """How many columns of a row have the first rate, that rate, and the rate of the rest."""
        rate = self.rates[name]
        return (3, self.rates.get("sh_constant", rate), rate) if name == "sh" else (0, rate, rate)

    def _step_in_kernel(self) -> None:
        unbias = 1.0 / (1.0 - BETAS[0] ** self.steps)
        gradients = {
            name: parameter.grad.contiguous()
            for name, parameter in self.parameters.items()
            if parameter.grad is not None
        }
        fields = (AdamField * len(gradients))()
        for field, (name, gradient) in zip(fields, gradients.items(), strict=True):
            parameter, moments = self.parameters[name], self.moments[name]
            first_width, first_rate, rate = self._rate_columns(name)
            field.value, field.gradient = parameter.data_ptr(), gradient.data_ptr()
            field.mean, field.square = moments.mean.data_ptr(), moments.square.data_ptr()
            field.width = math.prod(parameter.shape[1:])
            field.first_width, field.first_rate, field.rest_rate = (
                first_width,
                first_rate * unbias,
                rate * unbias,
            )
        rule = AdamRule(*BETAS, EPSILON, (1.0 - BETAS[1] ** self.steps) ** -0.5)
        touched = gradients.get("logit_opacities")
        check(
            library().splatad_adam_step(
                ctypes.byref(fields),
                len(fields),
                len(self),
                None if touched is None else touched.data_ptr(),
                ctypes.byref(rule),
            )
        )

    @torch.no_grad()
    def _step_in_torch(self) -> None:
        touched = self.parameters["logit_opacities"].grad
        for name, parameter in self.parameters.items():
            if (gradient := parameter.grad) is None:
                continue
            moments = self.moments[name]
            mean = torch.lerp(moments.mean, gradient, 1.0 - BETAS[0])
            square = torch.lerp(moments.square, gradient * gradient, 1.0 - BETAS[1])
            first_width, first_rate, rate = self._rate_columns(name)
            rates = parameter.new_full(parameter.shape[1:], rate)
            if first_width:
                rates[0] = first_rate
            unbiased = (square / (1.0 - BETAS[1] ** self.steps)).sqrt()
            value = parameter - rates / (1.0 - BETAS[0] ** self.steps) * mean / (unbiased + EPSILON)
            if touched is not None:
                moves = (touched != 0).reshape((-1,) + (1,) * (parameter.dim() - 1))
                value = torch.where(moves, value, parameter)
                mean = torch.where(moves, mean, moments.mean)
                square = torch.where(moves, square, moments.square)
            parameter.copy_(value)
            self.moments[name] = _Moments(mean, square)

    def keep(self, kept: Bool[Tensor, " n"]) -> None:
        """Drop all other splats."""
        self._edit(kept.nonzero()[:, 0], {})

    def append(self, source: Int[Tensor, " m"], changed: dict[str, Tensor]) -> None:
        """Add copies of the splats `source`, with the fields in `changed` replaced; their Adam moments start at zero."""
        everyone = torch.arange(len(self))
        self._edit(
            everyone,
            {name: changed.get(name, self.parameters[name].detach()[source]) for name in FIELD_NAMES},
        )

    def assign(self, index: Int[Tensor, " m"], changed: dict[str, Tensor]) -> None:
        """Overwrite fields of the splats `index`; their Adam moments for those fields are forgotten."""
        for name, value in changed.items():
            self.parameters[name].data[index] = value
            self.moments[name].mean[index] = 0.0
            self.moments[name].square[index] = 0.0

    def state(self) -> dict[str, Tensor]:
        """Parameters and moments by name, enough to go on exactly."""
        tensors = {"steps": torch.tensor(self.steps)}
        for name, parameter in self.parameters.items():
            tensors[f"{name}.value"] = parameter.detach().clone()
            tensors[f"{name}.mean"] = self.moments[name].mean.clone()
            tensors[f"{name}.square"] = self.moments[name].square.clone()
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        self.steps = int(tensors["steps"])
        for name in FIELD_NAMES:
            self.parameters[name] = torch.nn.Parameter(tensors[f"{name}.value"].clone())
            self.moments[name] = _Moments(tensors[f"{name}.mean"].clone(), tensors[f"{name}.square"].clone())

    def _edit(self, kept: Int[Tensor, " k"], added: dict[str, Tensor]) -> None:
        for name in FIELD_NAMES:
            old, moments = self.parameters[name].detach(), self.moments[name]
            if added:
                zeros = torch.zeros_like(added[name])
                value = torch.cat([old[kept], added[name]])
                moments = _Moments(
                    torch.cat([moments.mean[kept], zeros]), torch.cat([moments.square[kept], zeros])
                )
            else:
                value = old[kept]
                moments = _Moments(moments.mean[kept], moments.square[kept])
            self.parameters[name] = torch.nn.Parameter(value.contiguous())
            self.moments[name] = moments


@dataclass
class GradientTally:
    """How hard the loss pulls at each splat's projected centre, summed over the views since the last reset."""

    pull: Float[Tensor, " n"]  # sum of |dL/d centre| with L summed over pixels, per px
    views: Float[Tensor, " n"]  # views in which the splat took part

    @classmethod
    def empty(cls, count: int) -> GradientTally:
        return cls(torch.zeros(count), torch.zeros(count))

    def add(self, means2d_gradient: Float[Tensor, "n uv=2"], scale: float) -> None:
        """Add one view's gradient, times `scale` to undo the loss's mean over pixels."""
        norm = means2d_gradient.norm(dim=1)
        self.pull += norm * scale
        self.views += norm > 0

    @property
    def mean(self) -> Float[Tensor, " n"]:
        return self.pull / self.views.clamp_min(1)


@dataclass
class Coverage:
    """How many pixels each splat colours in the photos, on average; kept over rounds of growth."""

    pixels: Float[Tensor, " n"]  # compositing weight summed over pixels and steps
    steps: Float[Tensor, " n"]  # since the splat was made or last judged

    @classmethod
    def empty(cls, count: int) -> Coverage:
        return cls(torch.zeros(count), torch.zeros(count))

    def add(self, weights: Float[Tensor, " n"]) -> None:
        """Add one view's compositing weights, px."""
        self.pixels += weights
        self.steps += 1

    def keep(self, kept: Bool[Tensor, " n"]) -> None:
        """Drop all other splats."""
        self.pixels, self.steps = self.pixels[kept], self.steps[kept]

    def append(self, count: int) -> None:
        """Make room for `count` new splats."""
        self.pixels = torch.cat([self.pixels, torch.zeros(count)])
        self.steps = torch.cat([self.steps, torch.zeros(count)])

    def judge(self, least_px: float, views: int) -> Bool[Tensor, " n"]:
        """Which splats colour fewer than `least_px` on average; only those that stood through `views` steps are judged,
        since a part may show them in few photos, and their count begins anew."""
        judged = self.steps >= views
        idle = judged & (self.pixels < least_px * self.steps)
        self.pixels[judged] = 0.0
        self.steps[judged] = 0.0
        return idle


def grow(
    optimizer: SplatOptimizer,
    tally: GradientTally,
    wanted: int,
    large: float,
    generator: torch.Generator,
) -> int:
    """Clone or split the splats pulled hardest until there are `wanted`; returns how many were added.

    Splats whose longest axis exceeds `large` (world units) are split in two, the others cloned.
    """
    room = wanted - len(optimizer)
    if room <= 0:
        return 0
    score = tally.mean
    count = min(room, int((score > 0).sum()))
    if count == 0:
        return 0
    chosen = torch.topk(score, count).indices.sort().values
    gaussians = optimizer.gaussians.detached()
    longest = gaussians.log_scales[chosen].max(dim=1).values.exp()
    split, clone = chosen[longest > large], chosen[longest <= large]
    changed: dict[str, Tensor] = {}
    if len(split):
        scales = gaussians.log_scales[split].exp()
        turn = rotation_matrices(gaussians.quats[split])
        offset = torch.randn(len(split), 3, generator=generator).to(scales) * scales
        offset = (turn @ offset[:, :, None])[:, :, 0]
        smaller = gaussians.log_scales[split] - math.log(SPLIT_SHRINK)
        optimizer.append(split, {"means": gaussians.means[split] - offset, "log_scales": smaller})
        changed = {"means": gaussians.means[split] + offset, "log_scales": smaller}
        optimizer.assign(split, changed)
    if len(clone):
        # A clone doubles the coverage; the pair's opacity is set so that together they cover as the one did.
        opacity = torch.sigmoid(gaussians.logit_opacities[clone])
        half = 1.0 - torch.sqrt((1.0 - opacity).clamp_min(1e-6))
        shared = torch.logit(half.clamp(1e-4, 1 - 1e-4))
        spread = gaussians.log_scales[clone].exp()
        offset = torch.randn(len(clone), 3, generator=generator).to(spread) * spread * 0.5
        offset = (rotation_matrices(gaussians.quats[clone]) @ offset[:, :, None])[:, :, 0]
        optimizer.append(clone, {"logit_opacities": shared, "means": gaussians.means[clone] + offset})
        optimizer.assign(clone, {"logit_opacities": shared})
    return len(chosen)


def prunable(gaussians: Gaussians, min_opacity: float, max_scale: float) -> Bool[Tensor, " n"]:
    """Splats that are all but transparent, larger than `max_scale` (world units), or not finite."""
    faint = torch.sigmoid(gaussians.logit_opacities) < min_opacity
    huge = gaussians.log_scales.max(dim=1).values > math.log(max_scale)
    broken = ~torch.isfinite(gaussians.means).all(dim=1) | ~torch.isfinite(gaussians.log_scales).all(dim=1)
    return faint | huge | broken
