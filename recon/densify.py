"""Splitting, cloning and pruning splats together with the optimiser's state (Kerbl et al. 2023, section 5).

Where 3DGS takes every splat over a gradient threshold, we take the strongest so many: the count follows a schedule
and never passes a budget, which is what a CPU needs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from recon.gaussians import FIELD_NAMES, Gaussians, rotation_matrices

SPLIT_SHRINK = 1.6  # a split splat's halves are this much smaller


class SplatOptimizer:
    """Adam over the splats' parameters, and the edits that must change both together.

    The first column of `sh` has a learning rate of its own, "sh_constant": what a view-dependent term learns in one
    photo is wrong in the others, so those terms must learn more slowly.
    """

    def __init__(self, gaussians: Gaussians, learning_rates: dict[str, float]) -> None:
        self.parameters = {
            name: torch.nn.Parameter(tensor.clone()) for name, tensor in gaussians.tensors().items()
        }
        groups = [
            {"params": [self.parameters[name]], "lr": learning_rates[name], "name": name}
            for name in FIELD_NAMES
        ]
        self.constant_rate = learning_rates.get("sh_constant", learning_rates["sh"])
        self.adam = torch.optim.Adam(groups, eps=1e-15, betas=(0.9, 0.999), fused=True)

    @property
    def gaussians(self) -> Gaussians:
        """The splats as they stand; gradients flow to the parameters."""
        return Gaussians(**self.parameters)

    def __len__(self) -> int:
        return self.parameters["means"].shape[0]

    def set_learning_rate(self, name: str, value: float) -> None:
        if name == "sh_constant":
            self.constant_rate = value
        for group in self.adam.param_groups:
            if group["name"] == name:
                group["lr"] = value

    def step(self) -> None:
        constant = self.parameters["sh"].data[:, 0]  # a view: Adam changes it in place
        before = constant.clone()
        self.adam.step()
        # Adam's step is proportional to its rate, so the constant's own rate is reached by scaling its step.
        view_rate = next(group["lr"] for group in self.adam.param_groups if group["name"] == "sh")
        constant.copy_(torch.lerp(before, constant, self.constant_rate / view_rate))
        self.adam.zero_grad(set_to_none=True)

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
            parameter = self.parameters[name]
            parameter.data[index] = value
            for key in ("exp_avg", "exp_avg_sq"):
                if key in self.adam.state[parameter]:
                    self.adam.state[parameter][key][index] = 0.0

    def state(self) -> dict[str, Tensor]:
        """Parameters and moments by name, enough to go on exactly."""
        tensors = {}
        for name, parameter in self.parameters.items():
            tensors[f"{name}.value"] = parameter.detach().clone()
            for key, value in self.adam.state[parameter].items():
                tensors[f"{name}.{key}"] = value.clone()
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        for group in self.adam.param_groups:
            name = group["name"]
            parameter = torch.nn.Parameter(tensors[f"{name}.value"].clone())
            self.adam.state.pop(group["params"][0], None)
            group["params"] = [parameter]
            self.parameters[name] = parameter
            for key in ("step", "exp_avg", "exp_avg_sq"):
                if f"{name}.{key}" in tensors:
                    self.adam.state[parameter][key] = tensors[f"{name}.{key}"].clone()

    def _edit(self, kept: Int[Tensor, " k"], added: dict[str, Tensor]) -> None:
        for group in self.adam.param_groups:
            old = group["params"][0]
            name = group["name"]
            parts = [old.detach()[kept]] + ([added[name]] if added else [])
            new = torch.nn.Parameter(torch.cat(parts).contiguous())
            state = self.adam.state.pop(old, {})
            if state:
                for key in ("exp_avg", "exp_avg_sq"):
                    zeros = [torch.zeros_like(added[name])] if added else []
                    state[key] = torch.cat([state[key][kept], *zeros]).contiguous()
                self.adam.state[new] = state
            group["params"] = [new]
            self.parameters[name] = new


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
