"""The benchmarks in their smallest form: every figure is there and makes sense. What takes how long is not asked."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prepare.camera import focal_from_fov, look_at, to_opengl_cam_to_world
from recon.kernel.library import STAGES, kernel_info, library

SCRIPTS = Path(__file__).parents[2] / "scripts"
SIDE = 40


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module(name)


def figures_in(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    assert {"processor", "cores", "torch", "kernel"} <= found["machine"].keys()
    return found


@pytest.fixture
def ball(tmp_path: Path) -> Path:
    """A scene of 20 photos of a ball, brighter towards the top of each photo, with its silhouette."""
    folder = tmp_path / "ball"
    (folder / "images").mkdir(parents=True)
    focal = focal_from_fov(SIDE, math.radians(30))
    middle = np.arange(SIDE) + 0.5 - SIDE / 2
    radius = focal * math.tan(math.asin(0.5 / 3))
    alpha = np.where(middle[:, None] ** 2 + middle**2 < radius**2, 255, 0)
    shade = np.broadcast_to((140 - 6 * middle[:, None]), (SIDE, SIDE))
    photo = np.stack([shade, shade, 0.5 * shade, alpha], axis=-1).astype(np.uint8)
    frames = []
    for index in range(20):
        turn = 2.4 * index
        direction = torch.tensor([math.cos(turn), math.sin(turn), 0.8 * math.sin(1.7 * index)])
        pose = look_at(3 * direction / direction.norm(), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
        Image.fromarray(photo).save(folder / "images" / f"{index}.png")
        matrix = to_opengl_cam_to_world(pose.double()).tolist()
        frames.append({"file_path": f"images/{index}.png", "transform_matrix": matrix})
    lens = {"fl_x": focal, "fl_y": focal, "cx": SIDE / 2, "cy": SIDE / 2, "w": SIDE, "h": SIDE}
    (folder / "transforms.json").write_text(json.dumps(lens | {"frames": frames}))
    return folder


def test_the_rasteriser_s_benchmark_gives_every_figure_for_every_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = script("bench_rasterize", monkeypatch)
    threads = torch.get_num_threads(), kernel_info().threads
    out = tmp_path / "out.json"
    bench.main(bench.Options(json=out, workloads=("W0",), repetitions=2, torch_repetitions=1))
    assert (torch.get_num_threads(), kernel_info().threads) == threads
    (row,) = figures_in(out)["results"]
    assert 0 < row["lanes_used"] < 1
    ways = {(way["instruction_set"], way["threads"]): way for way in row["ways"]}
    assert {("base", 1), ("base", 2), ("torch_pairs", 1), ("torch_pairs", 2)} <= ways.keys()
    for (name, _), way in ways.items():
        timed = [way[key] for key in ("forward", "backward", "forward_backward")]
        kernel = name != bench.TORCH
        if kernel:
            timed.append(way["iteration"])
        assert all(0 < figure["min_ms"] <= figure["median_ms"] for figure in timed)
        assert all(figure["repetitions"] == (2 if kernel else 1) for figure in timed)
        rates = way["pairs_per_s_per_core"]
        assert rates["forward"] == pytest.approx(
            row["contributing_pairs"] / (1e-3 * way["forward"]["median_ms"] * way["threads"])
        )
        assert way["faster_than_torch"] > 0
        assert way["faster_than_one_thread"] > 0
        if kernel:
            assert way["stages_median_ms"].keys() == {*STAGES, "loss", "optimiser", "python"}
            assert min(way["stages_median_ms"].values()) > 0
            assert way["peak_multiply_adds_per_s_per_core"] > 1e7
            shares = way["share_of_roofline"]
            assert shares.keys() == {"composite", "backward_composite"}
            assert all(0 < share < 1.2 for share in shares.values())
    printed = capsys.readouterr().out
    assert "torch_pairs" in printed
    assert max(map(len, printed.splitlines())) <= 160  # the tables themselves: 120
    assert all(len(line.rstrip()) <= bench.WIDTH for line in printed.splitlines() if " v4 " in line)


def test_an_iteration_s_stages_add_up_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = script("bench_rasterize", monkeypatch)
    workload = bench.Bench(bench.WORKLOADS["W0"])
    before = {name: tensor.detach().clone() for name, tensor in workload.splats.tensors().items()}
    functions = library().splatad_l1_ssim, library().splatad_adam_step
    times = bench.Times()
    workload.iterate(bench.Way(kernel_info().instruction_set, 1), times)
    assert sum(values[0] for values in times.stages.values()) == pytest.approx(times.iteration[0])
    assert (library().splatad_l1_ssim, library().splatad_adam_step) == functions
    assert all(torch.equal(workload.splats.tensors()[name], tensor) for name, tensor in before.items())


def test_a_profile_charges_the_outer_of_two_wrapped_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = script("bench_rasterize", monkeypatch)

    class Work:
        def outer(self) -> str:
            return self.inner() + "!"

        def inner(self) -> str:
            return "done"

    original = Work.outer
    with bench.Profile() as profile:
        profile.wrap(Work, "outer", "outside")
        profile.wrap(Work, "inner", "inside")
        assert Work().outer() == "done!"
        assert profile.calls == {"outside": 1}
        assert Work().inner() == "done"
        assert profile.calls == {"outside": 1, "inside": 1}
    assert Work.outer is original


def test_the_busy_neighbour_spins_while_wanted_and_is_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = script("bench_rasterize", monkeypatch)
    monkeypatch.setattr(bench, "BUSY_ALLOWANCE", 1.0)  # what is slower than what is not this test's business
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def noted(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(bench.subprocess, "Popen", noted)
    with bench.busy_neighbour():
        assert started[0].poll() is None
        time.sleep(0.05)
        assert started[0].poll() is None
    assert started[0].returncode is not None
    out = tmp_path / "out.json"
    bench.main(bench.Options(json=out, workloads=("W0",), repetitions=2, busy=True))
    (row,) = figures_in(out)["busy"]
    assert row["ratio"] == pytest.approx(row["one_thread_median_ms"] / row["two_threads_median_ms"])
    assert all(process.returncode is not None for process in started)


def test_the_fit_s_benchmark_gives_quality_cost_and_a_profile_that_adds_up(
    ball: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = script("bench_fit", monkeypatch)
    out = tmp_path / "out.json"
    bench.main(bench.Options(scene=(str(ball),), presets=("fast",), steps=20, splats=300, json=out))
    (row,) = figures_in(out)["results"]
    figures = row["figures"]
    assert (row["scene"], row["preset"], row["budget_s"]) == ("ball", "fast", None)
    assert row["config"]["held_out_every"] == 10
    assert figures["steps"] == 20
    assert 0 < figures["splats"] <= 300
    for kind in ("held_out", "fitted"):
        assert figures[kind].keys() == set(bench.QUALITIES)
        assert all(figures[kind][name] > 5 for name in ("psnr", "part_psnr"))
        assert all(0 < figures[kind][name] < 1 for name in ("ssim", "part_ssim"))
    assert all(figures[name] > 0 for name in ("wall_s", "cpu_s"))
    assert 0.05 < figures["peak_gb"] < 8
    profile = figures["profile_s"]
    assert profile.keys() == set(bench.STAGES)
    assert all(seconds >= 0 for seconds in profile.values())
    assert all(profile[stage] > 0 for stage in set(bench.STAGES) - {bench.GROWTH})
    assert sum(profile.values()) == pytest.approx(figures["wall_s"])


def test_a_budget_buys_the_steps_that_fill_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = script("bench_fit", monkeypatch)
    outside = dict.fromkeys(bench.OUTSIDE_THE_LOOP, 2.0)
    seen = bench.Figures(
        wall_s=8.0 + 100 * 0.05, cpu_s=1.0, steps=100, splats=1, held_out={}, fitted={}, peak_gb=1.0, initial_source="",
        profile_s=dict.fromkeys(bench.STAGES, 0.5) | outside,
    )  # fmt: skip
    assert bench.steps_within(18.0, seen) == 200
    assert bench.steps_within(3.0, seen) == 1


@pytest.mark.parametrize("change", ["roll", "zoom", "shifted"])
def test_a_photo_warped_for_the_pose_benchmark_is_the_photo_its_camera_takes(
    change: str, toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = script("bench_pose", monkeypatch)
    camera = toy.cameras(3, seed=81)[0]
    warped, moved = getattr(bench, change)(toy.photo(camera).rgb, camera, np.random.default_rng(3))
    taken = toy.photo(moved).rgb
    assert torch.allclose(moved.centre, camera.centre, atol=1e-5)  # it turned or zoomed on the spot
    inside = torch.ones(camera.height, camera.width, dtype=torch.bool)
    if change != "zoom":  # what the photo did not show is white in the warped one
        shown = bench.warped(torch.zeros_like(taken), camera, moved)[..., 0]
        inside = shown < 0.01
    error = (warped - taken).norm(dim=-1)[inside]
    assert error.median() < 0.01
    assert (error > 0.3).double().mean() < 0.03  # edges, blurred by one more sampling
    assert ((toy.photo(camera).rgb - taken).norm(dim=-1)[inside] > 0.3).double().mean() > 0.08


def test_the_pose_benchmark_s_cover_and_cut_take_the_share_they_say(
    toy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = script("bench_pose", monkeypatch)
    camera = toy.cameras(3, seed=82)[1]
    photo = toy.photo(camera).rgb
    part = (photo - 1.0).abs().amax(dim=-1) > 0.02
    for seed in range(4):
        covered, same = bench.cover(photo, camera, np.random.default_rng(seed))
        assert same is camera
        changed = ((covered - photo).abs().amax(dim=-1) > 0)[part].double().mean()
        assert 0.02 < changed < 0.21
        half, moved = bench.cut(photo, camera, np.random.default_rng(seed))
        left = ((half - 1.0).abs().amax(dim=-1) > 0.02).sum() / part.sum()
        assert 0.45 < left < 0.55
        assert not torch.equal(moved.world_to_cam, camera.world_to_cam)


def test_the_pose_benchmark_counts_a_believed_camera_two_degrees_off_as_unflagged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = script("bench_pose", monkeypatch)

    def outcome(believed: bool, turn: float | None) -> Any:
        return bench.Outcome(
            "row", "part", "photo", "OK" if believed else "CANNOT TELL", believed, 1.0, 1.0, 1.0, 1.0, 0.0, 0.5, turn, 0.1, ""
        )  # fmt: skip

    outcomes = [
        outcome(True, 0.1),
        outcome(True, 1.0),
        outcome(True, 2.5),
        outcome(False, 90.0),
        outcome(True, None),
    ]
    assert [o.located for o in outcomes] == [True, False, False, False, False]
    assert [o.unflagged for o in outcomes] == [False, False, True, False, True]
    row = dict(zip(bench.HEADINGS[2:], bench.summary(outcomes), strict=True))
    assert (row["photos"], row["< 0.5 deg"], row["located"]) == ("5", "1", "1")
    assert (row["unflagged"], row["cannot tell"], row["most"]) == ("2", "1", "90.000")
