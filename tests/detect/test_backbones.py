"""Feature pyramids: their published shapes and sizes, real weights where they are, timm's by name."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from detect.backbones import (
    EfficientNetB4,
    MobileNetV2,
    SamePadConv,
    StagedNetwork,
    TappedNetwork,
    TimmBackbone,
    choose_backbone,
    load_backbone,
    load_into,
    normalised,
)
from prepare.errors import InputError, MissingPartError
from prepare.weights import WeightsFile


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPLATAD_OFFLINE", "1")
    monkeypatch.setenv("SPLATAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPLATAD_WEIGHTS", raising=False)


Network = TypeVar("Network", bound=StagedNetwork)


def _lively(network: Network) -> Network:
    """With batch statistics that matter, as trained ones do."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


@pytest.mark.parametrize(("network", "parameters"), [(MobileNetV2, 3_504_872), (EfficientNetB4, 19_341_616)])
def test_a_network_has_the_published_number_of_parameters(network: type[nn.Module], parameters: int) -> None:
    assert sum(p.numel() for p in network().parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "network", "taps", "channels"),
    [
        ("mobilenet_v2", MobileNetV2, (1, 3, 6, 13), (16, 24, 32, 96)),
        ("efficientnet_b4", EfficientNetB4, (1, 5, 9, 21), (24, 32, 56, 160)),
    ],
)
def test_the_pyramid_has_the_channels_and_strides_it_says(
    name: str, network: Any, taps: tuple[int, ...], channels: tuple[int, ...]
) -> None:
    backbone = TappedNetwork(name, _lively(network()), taps)
    assert backbone.channels == channels
    assert backbone.strides == (2, 4, 8, 16)
    rgb = torch.rand(64, 96, 3)
    maps = backbone.features(rgb)
    assert [tuple(m.shape) for m in maps] == [
        (c, 64 // s, 96 // s) for c, s in zip(channels, backbone.strides, strict=True)
    ]
    assert all(not m.requires_grad and m.std() > 0 for m in maps)
    assert not any(p.requires_grad for p in backbone.network.parameters())


@pytest.mark.parametrize("network", [MobileNetV2, EfficientNetB4])
def test_one_pictures_features_do_not_depend_on_its_neighbours_in_the_batch(network: Any) -> None:
    frozen = _lively(network())
    batch = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        together = frozen.run_blocks(batch, 9)[-1]
        alone = torch.cat([frozen.run_blocks(picture[None], 9)[-1] for picture in batch])
        assert frozen(batch).shape == (3, 1000)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_the_last_tap_sees_only_as_far_as_its_convolutions_reach() -> None:
    # A change in one corner reaches the first layers' maps in that corner and nowhere else.
    backbone = TappedNetwork("mobilenet_v2", _lively(MobileNetV2()), (1, 3))
    rgb = torch.rand(96, 96, 3)
    changed = rgb.clone()
    changed[:4, :4] = 1 - changed[:4, :4]
    for stride, before, after in zip(
        backbone.strides, backbone.features(rgb), backbone.features(changed), strict=True
    ):
        moved = (before - after).abs().amax(dim=0) > 0
        assert moved[0, 0]
        far = 40 // stride
        assert not moved[far:, :].any()
        assert not moved[:, far:].any()


@pytest.mark.parametrize(
    ("kernel", "stride", "side"), [(3, 2, 380), (5, 2, 95), (5, 1, 24), (3, 1, 190), (1, 1, 7)]
)
def test_same_padding_gives_the_side_over_the_stride_rounded_up(kernel: int, stride: int, side: int) -> None:
    conv = SamePadConv(1, 1, kernel, stride, side)
    out = conv(torch.rand(1, 1, side, side))
    assert out.shape[-1] == -(-side // stride)
    left, right = conv.around[:2]
    assert 0 <= right - left <= 1  # TensorFlow puts the odd pixel last


# ---------------------------------------------------------------------------------------------------- real weights


def test_the_real_mobilenet_loads_strictly_and_tells_pictures_apart(
    testdata: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (testdata / "weights/mobilenetv2_imagenet.safetensors").is_file():
        pytest.skip("mobilenetv2_imagenet.safetensors is not among the real inputs")
    monkeypatch.setenv("SPLATAD_WEIGHTS", str(testdata / "weights"))
    backbone = load_backbone("mobilenet_v2")
    assert backbone.name == "mobilenet_v2"
    ramp = torch.linspace(0, 1, 64)[:, None, None].expand(64, 64, 3).contiguous()
    stripes = (torch.arange(64) % 8 < 4).float()[:, None, None].expand(64, 64, 3).contiguous()
    for smooth, striped, across in zip(
        backbone.features(ramp),
        backbone.features(stripes),
        backbone.features(stripes.transpose(0, 1).contiguous()),
        strict=True,
    ):
        assert torch.isfinite(smooth).all()
        energy = striped.square().mean()
        assert (smooth - striped).square().mean() > 0.1 * energy
        assert (across - striped).square().mean() > 0.1 * energy  # trained filters know orientation


def test_the_real_mobilenet_takes_a_fox_for_a_dog_or_a_cat(
    testdata: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = testdata / "fox/images/0001.jpg"
    if not photo.is_file() or not (testdata / "weights/mobilenetv2_imagenet.safetensors").is_file():
        pytest.skip("the fox or the MobileNetV2 weights are not among the real inputs")
    monkeypatch.setenv("SPLATAD_WEIGHTS", str(testdata / "weights"))
    backbone = load_backbone("mobilenet_v2")
    assert isinstance(backbone, TappedNetwork)
    assert isinstance(backbone.network, MobileNetV2)
    with Image.open(photo) as opened:
        picture = opened.convert("RGB").resize((256, 256 * opened.height // opened.width))
    top = (picture.height - 224) // 2
    rgb = torch.from_numpy(np.asarray(picture.crop((16, top, 240, top + 224))).copy()).float() / 255
    with torch.no_grad():
        best = int(backbone.network(normalised(rgb)).argmax())
    assert 151 <= best <= 293  # ImageNet's dogs, wolves, foxes and cats: 143 classes of 1000


def test_weights_of_another_network_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPLATAD_WEIGHTS", str(tmp_path))
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "efficientnet-b4-6ed6700e.pth")
    with pytest.raises(InputError, match="sha256"):  # the file is not the published one
        load_backbone("efficientnet_b4")
    entry = WeightsFile("mine", "efficientnet-b4-6ed6700e.pth", "", None, None, "")
    with pytest.raises(InputError, match="does not fit the network") as raised:
        load_into(EfficientNetB4(), entry)
    assert "\n" not in str(raised.value)


def test_efficientnets_own_names_load_strictly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The names of the published file, listed by the rule of its own library: 5 for the stem, 6 and 9 tensors of
    # convolution and statistics per block by whether it expands, and the head.
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    names = ["_conv_stem.weight", *(f"_bn0.{n}" for n in norm)]
    for block in range(32):
        parts = ["_depthwise_conv.weight", *(f"_bn1.{n}" for n in norm)]
        if block >= 2:
            parts += ["_expand_conv.weight", *(f"_bn0.{n}" for n in norm)]
        parts += [f"_se_{which}.{n}" for which in ("reduce", "expand") for n in ("weight", "bias")]
        parts += ["_project_conv.weight", *(f"_bn2.{n}" for n in norm)]
        names += [f"_blocks.{block}.{part}" for part in parts]
    names += ["_conv_head.weight", *(f"_bn1.{n}" for n in norm), "_fc.weight", "_fc.bias"]
    source = EfficientNetB4().state_dict()
    assert set(names) == set(source)
    assert len(names) == 706
    monkeypatch.setenv("SPLATAD_WEIGHTS", str(tmp_path))
    save_file({name: tensor.contiguous() for name, tensor in source.items()}, tmp_path / "b4.safetensors")
    loaded = load_into(EfficientNetB4(), WeightsFile("b4", "b4.safetensors", "", None, None, ""))
    assert torch.equal(
        loaded.state_dict()["_blocks.21._project_conv.weight"], source["_blocks.21._project_conv.weight"]
    )


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_b4"])
def test_without_weights_the_error_says_which_file_to_put_where(name: str, tmp_path: Path) -> None:
    with pytest.raises(MissingPartError, match=r"put .*\.pth into") as raised:
        load_backbone(name)
    assert str(tmp_path / "cache/weights") in str(raised.value)


# -------------------------------------------------------------------------------------------------------------- timm


class _FakePyramid(nn.Module):
    """What timm.create_model(features_only=True) gives back, as far as it is used."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 5, 3, 2, 1)
        self.feature_info = SimpleNamespace(channels=lambda: [4, 5], reduction=lambda: [2, 4])
        self.pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}

    def forward(self, batch: Tensor) -> list[Tensor]:
        first = self.one(batch)
        return [first, self.two(first)]


def test_without_timm_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # import fails, installed or not
    with pytest.raises(MissingPartError, match=r"splatad\[features\]"):
        load_backbone("resnet18")


def test_any_timm_pyramid_is_a_backbone_with_its_own_normalisation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def create_model(name: str, **options: Any) -> nn.Module:
        asked.append((name, options))
        if name == "nonsense":
            raise RuntimeError("Unknown model (nonsense)")
        return _FakePyramid()

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    monkeypatch.setenv("SPLATAD_WEIGHTS", str(tmp_path))
    trained = _FakePyramid()
    tensors = trained.state_dict()
    save_file(tensors | {"head.weight": torch.ones(2)}, tmp_path / "toynet.safetensors")
    backbone = TimmBackbone("toynet")
    assert asked == [("toynet", {"pretrained": False, "features_only": True})]
    assert (backbone.channels, backbone.strides) == ((4, 5), (2, 4))
    rgb = torch.rand(16, 24, 3)
    maps = backbone.features(rgb)
    with torch.no_grad():
        expected = trained(((rgb - 0.5) / 0.25).permute(2, 0, 1)[None])
    for found, layer in zip(maps, expected, strict=True):
        torch.testing.assert_close(found, layer[0])

    save_file({name: t for name, t in tensors.items() if name != "two.bias"}, tmp_path / "toynet.safetensors")
    with pytest.raises(InputError, match=r"lacks two\.bias"):
        TimmBackbone("toynet")
    with pytest.raises(InputError, match="Unknown model"):
        TimmBackbone("nonsense")
    with pytest.raises(MissingPartError, match=r"put absent\.safetensors into"):
        TimmBackbone("absent")


def test_auto_is_the_first_network_whose_weights_are_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPLATAD_WEIGHTS", str(tmp_path))
    with pytest.raises(MissingPartError, match=r"put efficientnet-b4-6ed6700e\.pth .* into") as raised:
        choose_backbone("auto")
    assert "mobilenetv2_imagenet.safetensors" in str(raised.value)
    assert str(tmp_path) in str(raised.value)
    (tmp_path / "mobilenet_v2-b0353104.pth").touch()
    assert choose_backbone("auto") == "mobilenet_v2"
    (tmp_path / "efficientnet-b4-6ed6700e.pth").touch()
    assert choose_backbone("auto") == "efficientnet_b4"
    assert choose_backbone("mobilenet_v2") == "mobilenet_v2"
    assert choose_backbone("wide_resnet50") == "wide_resnet50_2"
    assert choose_backbone("dinov2") == "vit_small_patch14_dinov2"


class _FakeTransformer(nn.Module):
    """As timm wraps a vision transformer: tensors under `model.`, layers at the stride of the patches of 14 px."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Conv2d(3, 6, 14, 14)
        self.feature_info = SimpleNamespace(channels=lambda: [6], reduction=lambda: [14])
        self.pretrained_cfg = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

    def forward(self, batch: Tensor) -> list[Tensor]:
        assert batch.shape[2] % 14 == batch.shape[3] % 14 == 0  # as timm's own assertion
        return [self.model(batch)]


def test_dinov2_takes_its_published_names_and_pictures_of_any_size(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def create_model(name: str, **options: Any) -> nn.Module:
        asked.append((name, options))
        return _FakeTransformer()

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    monkeypatch.setenv("SPLATAD_WEIGHTS", str(tmp_path))
    trained = _FakeTransformer()
    published = {name.removeprefix("model."): tensor for name, tensor in trained.state_dict().items()}
    # timm leaves the masked patches' token out, which the published file has
    torch.save(published | {"mask_token": torch.zeros(1, 6)}, tmp_path / "dinov2_vits14_pretrain.pth")
    backbone = load_backbone("dinov2")
    size = {"dynamic_img_size": True}
    assert asked == [("vit_small_patch14_dinov2", {"pretrained": False, "features_only": True} | size)]
    assert (backbone.name, backbone.strides) == ("vit_small_patch14_dinov2", (14,))

    whole = torch.rand(28, 42, 3)
    with torch.no_grad():
        expected = trained(whole.permute(2, 0, 1)[None])[0][0]
    torch.testing.assert_close(backbone.features(whole)[0], expected)
    assert backbone.features(torch.rand(400, 300, 3))[0].shape == (
        6,
        29,
        21,
    )  # 400 / 14 and 300 / 14, rounded
    assert backbone.features(torch.rand(5, 20, 3))[0].shape == (6, 1, 1)

    # Cells lie on the picture without a rest: the cell of a bright spot is where the spot is.
    spot = torch.zeros(100, 100, 3)
    spot[90:, 90:] = 1
    moved = (backbone.features(spot)[0] - backbone.features(torch.zeros(100, 100, 3))[0]).abs().sum(dim=0)
    assert int(moved.argmax()) == 7 * 7 - 1

    torch.save({"weight": torch.zeros(2), "bias": torch.zeros(6)}, tmp_path / "dinov2_vits14_pretrain.pth")
    with pytest.raises(InputError, match="does not fit the network"):
        load_backbone("dinov2")
