"""Growing and pruning splats together with Adam's state."""

from __future__ import annotations

import math

import pytest
import torch

from prepare.errors import MissingPartError
from recon.densify import Coverage, GradientTally, SplatOptimizer, grow, prunable
from recon.gaussians import Gaussians, gaussians_from_points
from recon.kernel.library import InstructionSet, choose_instruction_set

RATES = {"means": 1e-2, "quats": 1e-2, "log_scales": 1e-2, "logit_opacities": 1e-2, "sh": 1e-2}


def some_splats(count: int) -> Gaussians:
    generator = torch.Generator().manual_seed(3)
    positions = torch.rand(count, 3, generator=generator)
    return gaussians_from_points(positions, positions, torch.full((count,), 0.05), sh_degree=1)


def take_step(optimizer: SplatOptimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in optimizer.parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def test_the_constant_colour_moves_as_an_adam_of_its_own_rate_moves_it() -> None:
    optimizer = SplatOptimizer(some_splats(20), RATES | {"sh_constant": 5e-2})
    constant = torch.nn.Parameter(some_splats(20).sh[:, 0].clone())
    rest = torch.nn.Parameter(some_splats(20).sh[:, 1:].clone())
    groups = [{"params": [constant], "lr": 5e-2}, {"params": [rest], "lr": 1e-2}]
    oracle = torch.optim.Adam(groups, eps=1e-15)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        gradient = torch.randn(20, 4, 3, generator=generator)
        optimizer.parameters["sh"].grad = gradient
        optimizer.step()
        constant.grad, rest.grad = gradient[:, 0].clone(), gradient[:, 1:].clone()
        oracle.step()
    sh = optimizer.gaussians.sh
    assert torch.allclose(sh[:, 0], constant, atol=1e-5)
    assert torch.allclose(sh[:, 1:], rest, atol=1e-6)


@pytest.mark.parametrize("instruction_set", ["base", "v3", "v4"])
def test_a_step_in_the_kernel_is_adam_and_leaves_alone_what_has_no_gradient(
    instruction_set: InstructionSet,
) -> None:
    try:
        choose_instruction_set(instruction_set)
    except MissingPartError as error:
        pytest.skip(str(error))
    try:
        splats, rates = some_splats(5003), RATES | {"sh_constant": 5e-2, "means": 3e-3}
        ours, definition = SplatOptimizer(splats, rates), SplatOptimizer(splats, rates)
        seen_ever = torch.zeros(len(splats.means), dtype=torch.bool)
        for seed in range(4):
            generator = torch.Generator().manual_seed(seed)
            seen = torch.rand(len(splats.means), generator=generator) < 0.4
            seen_ever |= seen
            for name, parameter in ours.parameters.items():
                gradient = torch.randn(parameter.shape, generator=generator)
                gradient[~seen] = 0.0
                parameter.grad = gradient
                definition.parameters[name].grad = gradient.clone()
            definition.steps += 1
            definition._step_in_torch()
            ours.step()
        for name, parameter in ours.parameters.items():
            assert torch.allclose(parameter, definition.parameters[name], atol=5e-6, rtol=1e-5), name
            assert torch.allclose(ours.moments[name].square, definition.moments[name].square, atol=1e-7)
            assert torch.equal(parameter[~seen_ever], splats.tensors()[name][~seen_ever])
            assert not torch.equal(parameter[seen_ever], splats.tensors()[name][seen_ever])
    finally:
        choose_instruction_set("auto")


def test_with_all_splats_seen_a_step_is_torchs_own_adam() -> None:
    ours = SplatOptimizer(some_splats(50), RATES)
    leaves = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in some_splats(50).tensors().items()}
    oracle = torch.optim.Adam(leaves.values(), lr=1e-2, eps=1e-15)
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in ours.parameters.items():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            leaves[name].grad = parameter.grad.clone()
        ours.step()
        oracle.step()
    for name, leaf in leaves.items():
        assert torch.allclose(ours.parameters[name], leaf, atol=2e-6), name


def test_dropping_splats_leaves_the_others_steps_as_they_were() -> None:
    kept = torch.arange(20) % 3 != 0
    whole = SplatOptimizer(some_splats(20), RATES)
    cut = SplatOptimizer(some_splats(20), RATES)
    for optimizer in (whole, cut):
        take_step(optimizer, 0)
    cut.keep(kept)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in whole.parameters.items():
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = gradient
        cut.parameters[name].grad = gradient[kept].clone()
    whole.step()
    cut.step()
    for name, tensor in whole.gaussians.tensors().items():
        assert torch.equal(tensor[kept], cut.gaussians.tensors()[name]), name


def test_state_and_load_state_carry_a_run_on_to_the_same_bits() -> None:
    first = SplatOptimizer(some_splats(20), RATES)
    take_step(first, 0)
    second = SplatOptimizer(some_splats(20), RATES)
    second.load_state(first.state())
    for optimizer in (first, second):
        take_step(optimizer, 1)
    for name, tensor in first.gaussians.tensors().items():
        assert torch.equal(tensor, second.gaussians.tensors()[name]), name


def test_growth_takes_the_splats_pulled_hardest_and_stops_at_the_wanted_count() -> None:
    optimizer = SplatOptimizer(some_splats(20), RATES)
    take_step(optimizer, 0)
    tally = GradientTally.empty(20)
    pull = torch.zeros(20, 2)
    pull[[4, 11, 17], 0] = torch.tensor([3.0, 5.0, 4.0])
    pull[2, 0] = 1.0
    tally.add(pull, 1.0)
    before = optimizer.gaussians.means.detach().clone()
    assert grow(optimizer, tally, 23, 1.0, torch.Generator().manual_seed(0)) == 3
    assert len(optimizer) == 23
    added = optimizer.gaussians.means[20:]
    nearest = torch.cdist(added, before).argmin(dim=1)
    assert sorted(nearest.tolist()) == [4, 11, 17]
    assert grow(optimizer, GradientTally.empty(23), 23, 1.0, torch.Generator()) == 0


def test_a_clone_and_its_original_together_cover_as_the_one_did() -> None:
    optimizer = SplatOptimizer(some_splats(1), RATES)
    covered = float(torch.sigmoid(optimizer.gaussians.detached().logit_opacities))
    tally = GradientTally(torch.ones(1), torch.ones(1))
    grow(optimizer, tally, 2, 1.0, torch.Generator().manual_seed(0))
    let_through = 1 - torch.sigmoid(optimizer.gaussians.logit_opacities)
    assert float(let_through.prod()) == pytest.approx(1 - covered, abs=1e-5)


def test_splitting_shrinks_both_halves_and_keeps_their_middle() -> None:
    optimizer = SplatOptimizer(some_splats(1), RATES)
    before = optimizer.gaussians.detached()
    tally = GradientTally(torch.ones(1), torch.ones(1))
    grow(optimizer, tally, 2, 0.01, torch.Generator().manual_seed(0))
    after = optimizer.gaussians.detached()
    assert torch.allclose(after.means.mean(dim=0), before.means[0], atol=1e-6)
    assert torch.allclose(after.log_scales, (before.log_scales - math.log(1.6)).expand(2, 3))


def test_faint_huge_and_broken_splats_are_prunable() -> None:
    splats = some_splats(4)
    splats.logit_opacities[0] = -8.0
    splats.log_scales[1, 2] = 2.0
    splats.means[2, 0] = float("nan")
    assert prunable(splats, 0.005, 1.0).tolist() == [True, True, True, False]


def test_a_splat_is_judged_by_its_mean_cover_once_it_stood_through_every_view() -> None:
    coverage = Coverage.empty(3)
    for _ in range(4):
        coverage.add(torch.tensor([1.0, 0.1, 0.0]))
    coverage.append(1)
    assert coverage.judge(0.2, views=5).tolist() == [False] * 4  # none stood through five
    coverage.add(torch.tensor([0.0, 0.1, 0.0, 0.0]))
    assert coverage.judge(0.2, views=5).tolist() == [False, True, True, False]  # the last is one step old
    assert coverage.steps.tolist() == [0.0, 0.0, 0.0, 1.0]
    coverage.keep(torch.tensor([True, False, False, True]))
    assert coverage.pixels.tolist() == [0.0, 0.0]
