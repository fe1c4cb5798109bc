"""The C++ library as a guest in a Python process: threads, instruction sets, forks, and its absence."""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import recon.kernel.library as kernel_library
from prepare.camera import Camera, look_at
from prepare.errors import MissingPartError
from recon.gaussians import Gaussians
from recon.kernel.library import ViewContext, choose_instruction_set, kernel_info, library, set_threads
from recon.rasterize import RasterOptions, rasterize

REPO = Path(__file__).resolve().parents[2]


def _scene(n: int = 3000, seed: int = 0) -> tuple[Gaussians, Camera]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    splats = Gaussians(
        normal(n, 3) * 0.5, normal(n, 4), normal(n, 3) * 0.4 - 3.0, normal(n), normal(n, 4, 3) * 0.3
    )
    pose = look_at(torch.tensor([1.0, -2.5, 0.8]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    return splats, Camera(pose, 90.0, 90.0, 55.0, 40.0, 110, 81)


def _everything(splats: Gaussians, camera: Camera) -> list[Tensor]:
    """Image, alpha, depth and every gradient of one view."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in splats.tensors().items()}
    pose = camera.world_to_cam.clone().requires_grad_()
    render = rasterize(
        Gaussians(**leaves), camera.moved(pose), options=RasterOptions(depth=True), backend="cpu"
    )
    assert render.depth is not None
    (render.rgb.square().sum() + render.alpha.sum() + render.depth.sum()).backward()
    gradients = [t.grad for t in (*leaves.values(), pose) if t.grad is not None]
    assert len(gradients) == 6
    return [t.detach() for t in (render.rgb, render.alpha, render.depth, *gradients)]


@pytest.fixture(autouse=True)
def _settings_restored() -> Iterator[None]:
    threads = kernel_info().threads
    yield
    set_threads(threads)
    choose_instruction_set("auto")


def test_one_two_and_three_threads_give_the_same_bits_forward_and_backward() -> None:
    splats, camera = _scene()
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        assert kernel_info().threads == threads
        results.append(_everything(splats, camera))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_calls_from_two_python_threads_at_once_give_the_bits_of_calls_in_turn() -> None:
    scenes = [_scene(seed=0), _scene(n=900, seed=1)]
    alone = [_everything(*scene) for scene in scenes]
    found: list[list[list[Tensor]]] = [[], []]
    start = threading.Barrier(2)

    def work(which: int) -> None:
        start.wait()
        for _ in range(12):
            found[which].append(_everything(*scenes[which]))

    threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for which in (0, 1):
        assert len(found[which]) == 12
        for result in found[which]:
            assert all(torch.equal(a, b) for a, b in zip(alone[which], result, strict=True))


def test_a_context_used_again_for_another_size_gives_the_same_bits() -> None:
    splats, camera = _scene()
    small = (splats.select(torch.arange(40)), camera.resized(9, 7))
    first = [_everything(splats, camera), _everything(*small)]
    for _ in range(3):  # contexts return to the pool and are handed out again, large and small
        again = [_everything(splats, camera), _everything(*small)]
        for a, b in zip(first, again, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_contexts_beyond_the_pool_are_given_back() -> None:
    contexts = [ViewContext() for _ in range(20)]
    assert len({context.handle for context in contexts}) == 20
    del contexts
    assert len(ViewContext._free) == 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_renders_the_same_bits() -> None:
    splats, camera = _scene(n=600)
    set_threads(2)
    before = rasterize(splats, camera, backend="cpu").rgb  # workers now exist in the parent
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # no pytest in here: leave by os._exit whatever happens
        status = 1
        try:
            same = torch.equal(rasterize(splats, camera, backend="cpu").rgb, before)
            threads = kernel_info().threads
            os.write(writer, b"same" if same and threads == 2 else b"differs")
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    for _ in range(2000):  # a child that waits for workers it does not have would hang
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.01)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert os.waitstatus_to_exitcode(status) == 0
    assert os.read(reader, 16) == b"same"
    os.close(reader)
    assert torch.equal(rasterize(splats, camera, backend="cpu").rgb, before)


def test_the_instruction_sets_differ_in_speed_not_in_the_picture() -> None:
    splats, camera = _scene(n=300)
    pictures = []
    for name in ("base", "v3", "v4"):
        try:
            choose_instruction_set(name)  # type: ignore[arg-type]
        except MissingPartError:
            continue
        assert kernel_info().instruction_set == name
        pictures.append(rasterize(splats, camera, backend="cpu").rgb)
    assert kernel_info().path.is_file()
    for picture in pictures[1:]:
        assert float((picture - pictures[0]).abs().max()) < 2e-5


def test_an_unknown_instruction_set_is_a_missing_part_and_changes_nothing() -> None:
    choose_instruction_set("base")
    with pytest.raises(MissingPartError, match="v9"):
        inspect.unwrap(choose_instruction_set)("v9")  # without the tests' own check of the argument
    assert kernel_info().instruction_set == "base"


def test_a_picture_wider_than_the_limit_is_refused() -> None:
    splats, camera = _scene(n=5)
    wide = replace(camera, width=131_073, height=1)
    with pytest.raises(ValueError, match="131072"):
        rasterize(splats, wide, backend="cpu")
    widest = rasterize(splats, replace(camera, width=131_072, height=1), backend="cpu")
    assert widest.rgb.shape == (1, 131_072, 3)


def test_a_library_that_was_not_built_is_a_missing_part_with_the_command_that_builds_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(kernel_library, "__file__", str(tmp_path / "library.py"))
    with pytest.raises(MissingPartError, match=r"not built.*scripts/setup"):
        library.__wrapped__()
    (tmp_path / "_raster.so").write_bytes(b"no shared library")
    with pytest.raises(MissingPartError, match="cannot be loaded"):
        library.__wrapped__()


def _run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPO,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_environment_variables_choose_threads_and_instruction_set() -> None:
    code = "from recon.kernel.library import kernel_info as i; print(i().instruction_set, i().threads)"
    done = _run_python(code, SPLATAD_ISA="base", SPLATAD_THREADS="3")
    assert done.stdout.split() == ["base", "3"], done.stderr
    refused = _run_python(code, SPLATAD_ISA="v9")
    assert refused.returncode != 0
    assert "SPLATAD_ISA=v9" in refused.stderr
