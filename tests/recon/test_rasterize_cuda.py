"""gsplat against the definition where there is a GPU, and one clear sentence where there is none."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
from torch import Tensor

from prepare.camera import Camera, look_at
from prepare.errors import MissingPartError
from recon.gaussians import Gaussians
from recon.rasterize import Backend, ExtraChannels, RasterOptions, rasterize


def _scene(degree: int) -> tuple[Gaussians, Camera]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    splats = Gaussians(
        normal(60, 3) * 0.5,
        normal(60, 4),
        normal(60, 3) * 0.4 - 2.0,
        normal(60) * 1.5,
        normal(60, (degree + 1) ** 2, 3) * 0.3,
    )
    pose = look_at(torch.tensor([1.0, -2.5, 0.8]), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    return splats, Camera(pose, 40.0, 42.0, 23.2, 18.1, 45, 37)


def _outputs_and_gradients(
    splats: Gaussians, camera: Camera, options: RasterOptions, backend: Backend
) -> dict[str, Tensor]:
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in splats.tensors().items()}
    pose = camera.world_to_cam.clone().requires_grad_()
    background = torch.tensor([0.2, 0.5, 0.9]).to(splats.means)
    values = torch.randn(len(splats.means), 5, generator=torch.Generator().manual_seed(2)).to(splats.means)
    extra = ExtraChannels(values, torch.arange(5.0).to(splats.means))
    render = rasterize(
        Gaussians(**leaves), camera.moved(pose), background, options=options, extra=extra, backend=backend
    )
    assert render.depth is not None
    assert render.extra is not None
    generator = torch.Generator().manual_seed(1)
    outputs = {"rgb": render.rgb, "alpha": render.alpha, "depth": render.depth}
    weights = [torch.randn(o.shape, generator=generator).to(o) for o in outputs.values()]
    torch.autograd.backward(list(outputs.values()), weights)
    gradients: dict[str, Any] = {f"gradient by {name}": leaf.grad for name, leaf in leaves.items()}
    gradients["gradient by world_to_cam"] = None if pose.grad is None else pose.grad[:3]
    assert all(gradient is not None for gradient in gradients.values())
    found = outputs | gradients | {"extra": render.extra}
    return {name: t.detach().double().cpu() for name, t in found.items()}


@pytest.mark.gpu
@pytest.mark.parametrize("antialiased", [False, True])
@pytest.mark.parametrize("degree", [0, 3])
def test_gsplats_image_and_gradients_are_those_of_the_definition(degree: int, antialiased: bool) -> None:
    splats, camera = _scene(degree)
    options = RasterOptions(antialiased=antialiased, depth=True)
    wide = Gaussians(**{name: tensor.double() for name, tensor in splats.tensors().items()})
    truth = _outputs_and_gradients(wide, camera.moved(camera.world_to_cam.double()), options, "reference")
    on_gpu = camera.moved(camera.world_to_cam.cuda())
    found = _outputs_and_gradients(splats.to("cuda"), on_gpu, options, "cuda")
    for name, expected in truth.items():
        # gsplat cuts a splat off at a bounding square of whole pixels, and its exponential is approximate.
        assert float((found[name] - expected).norm() / expected.norm()) < 1e-3, name


@pytest.mark.gpu
def test_auto_takes_gsplat_for_splats_on_a_gpu() -> None:
    splats, camera = _scene(0)
    on_gpu = splats.to("cuda")
    assert rasterize(on_gpu, camera).rgb.device.type == "cuda"
    assert torch.equal(rasterize(on_gpu, camera).rgb, rasterize(on_gpu, camera, backend="cuda").rgb)


def test_without_a_gpu_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    splats, camera = _scene(0)
    with pytest.raises(MissingPartError, match="no CUDA GPU; use --device cpu") as raised:
        rasterize(splats, camera, backend="cuda")
    assert raised.value.exit_status == 4


def test_without_gsplat_the_error_names_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    real_import = builtins.__import__

    def no_gsplat(name: str, *arguments: Any, **options: Any) -> Any:
        if name.split(".")[0] == "gsplat":
            raise ImportError("No module named 'gsplat'")
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", no_gsplat)
    splats, camera = _scene(0)
    with pytest.raises(MissingPartError, match=r"splatad\[cuda\]"):
        rasterize(splats, camera, backend="cuda")
