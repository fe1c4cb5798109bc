"""Photo and shape features: published shapes, networks against independent forms, handcrafted ones against their meaning."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.spatial import cKDTree
from torch import Tensor, nn

from detect.cfm.features2d import (
    TRANSFORMERS,
    Handcrafted,
    OnDevice,
    load_photo_extractor,
    pyramid_grid,
)
from detect.cfm.features3d import load_point_mae, normals_picture, tokens_at_pixels
from detect.cfm.point_mae import PatchEncoder, PointMAE, farthest_points, group
from detect.cfm.transformer import Block, VisionTransformer, load_needed, randomised
from prepare.errors import InputError, MissingPartError, UsageError
from prepare.weights import REGISTRY, read_tensors

if TYPE_CHECKING:
    from pathlib import Path

    from prepare.registered import Registered


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPLATAD_OFFLINE", "1")
    monkeypatch.setenv("SPLATAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPLATAD_WEIGHTS", raising=False)


# ------------------------------------------------------------------------------------------------------- transformers


def _parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_the_networks_have_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        dino = VisionTransformer(patch_px=8, width=768, heads=12, blocks=12, positions=28, layer_scale=False)
        small = VisionTransformer(patch_px=14, width=384, heads=6, blocks=12, positions=37, layer_scale=True)
        assert _parameters(dino) == 85_807_872
        assert _parameters(small) == 22_056_576 - 384  # without the token of masked patches
        assert _parameters(PointMAE()) == 21_825_024


def test_a_block_is_torchs_own_transformer_layer() -> None:
    block = randomised(Block(48, 6, qkv_bias=True, eps=1e-6), 0)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    layer = nn.TransformerEncoderLayer(
        48, 6, 192, dropout=0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    own = block.state_dict()
    names = {
        "self_attn.in_proj": "attn.qkv", "self_attn.out_proj": "attn.proj", "linear1": "mlp.fc1", "linear2": "mlp.fc2",
        "norm1": "norm1", "norm2": "norm2",
    }  # fmt: skip
    layer.load_state_dict(
        {
            key: own[f"{names[key.removesuffix(kind)[:-1]]}.{kind}"]
            for key in layer.state_dict()
            for kind in ("weight", "bias")
            if key.endswith(kind)
        }
    )
    x = torch.randn(1, 9, 48)
    with torch.no_grad():
        torch.testing.assert_close(block(x), layer.eval()(x), rtol=1e-4, atol=1e-5)


def test_dino_gives_28_x_28_tokens_of_768_at_every_pixel() -> None:
    rgb = torch.rand(224, 224, 3)
    grid = load_photo_extractor("dino_vitb8", blocks=1, random_seed=0).grid(rgb)
    assert grid.shape == (28, 28, 768)
    torch.testing.assert_close(grid.mean(dim=2), torch.zeros(28, 28), rtol=0, atol=1e-5)  # the last LayerNorm
    torch.testing.assert_close(grid.square().mean(dim=2), torch.ones(28, 28), rtol=0, atol=1e-3)
    assert load_photo_extractor("dinov2", blocks=1, random_seed=0).grid(rgb).shape == (32, 32, 384)


def _tiny(blocks: int) -> VisionTransformer:
    made = VisionTransformer(patch_px=8, width=16, heads=2, blocks=blocks, positions=28, layer_scale=False)
    return randomised(made, 4)


def test_weights_in_timms_file_are_taken_and_cut_off_blocks_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = TRANSFORMERS["dino_vitb8"]
    tiny = type(made)(8, 8, 16, 2, 3, 28, False, "dino_vitb8", "tiny")
    monkeypatch.setitem(TRANSFORMERS, "tiny", tiny)
    whole = _tiny(3)
    save_file({**whole.state_dict(), "head.weight": torch.zeros(2, 2)}, tmp_path / "tiny.safetensors")
    monkeypatch.setenv("SPLATAD_WEIGHTS", str(tmp_path))
    rgb = torch.rand(224, 224, 3)
    with torch.no_grad():
        full = load_photo_extractor("tiny").grid(rgb)
        two = load_photo_extractor("tiny", blocks=2).grid(rgb)
        short = _tiny(3)
        short.blocks = short.blocks[:2]
        from detect.backbones import normalised

        assert torch.equal(full, whole(normalised(rgb))[0])
        assert torch.equal(two, short(normalised(rgb))[0])
    assert not torch.allclose(full, two)
    with pytest.raises(UsageError, match="has 3"):
        load_photo_extractor("tiny", blocks=4)


def test_weights_that_do_not_fit_are_refused() -> None:
    network = _tiny(1)
    tensors = network.state_dict()
    with pytest.raises(InputError, match=r"norm\.bias is not in the file"):
        load_needed(_tiny(1), {k: v for k, v in tensors.items() if k != "norm.bias"}, "dino_vitb8")
    with pytest.raises(InputError, match=r"norm.bias has shape \(3,\), \(16,\)"):
        load_needed(_tiny(1), tensors | {"norm.bias": torch.zeros(3)}, "dino_vitb8")


def test_without_weights_the_message_says_which_file_to_put_where() -> None:
    with pytest.raises(MissingPartError, match=r"dino_vitbase8_pretrain\.pth"):
        load_photo_extractor("dino_vitb8")
    with pytest.raises(MissingPartError, match=r"point_mae_pretrain\.pth"):
        load_point_mae()


@pytest.mark.parametrize("name", ["handcrafted", "mobilenet_v2"])
def test_what_has_no_blocks_is_not_cut(name: str) -> None:
    with pytest.raises(UsageError, match="blocks cut"):
        load_photo_extractor(name, blocks=4)


# ----------------------------------------------------------------------------------------------------------- pyramids


class _Pyramid:
    """A picture's own channels at several strides."""

    name = "wide_resnet50_2"
    strides = (2, 4, 8, 16, 32)
    channels = (3,) * 5

    def features(self, rgb: Tensor) -> list[Tensor]:
        picture = rgb.permute(2, 0, 1)[None]
        return [nn.functional.avg_pool2d(picture, s)[0] + s for s in self.strides]


def test_of_a_residual_network_layers_2_and_3_are_joined_at_28_x_28() -> None:
    rgb = torch.rand(224, 224, 3)
    grid = OnDevice(pyramid_grid(_Pyramid()), torch.device("cpu")).grid(rgb)
    maps = _Pyramid().features(rgb)
    assert grid.shape == (28, 28, 6)
    assert torch.equal(grid[..., :3], maps[2].permute(1, 2, 0))
    torch.testing.assert_close(grid[0, 0, 3:], maps[3][:, 0, 0])
    torch.testing.assert_close(grid[1, 0, 3:], 0.75 * maps[3][:, 0, 0] + 0.25 * maps[3][:, 1, 0])


def test_mobilenet_gives_152_channels_at_28_x_28(monkeypatch: pytest.MonkeyPatch) -> None:
    from detect.backbones import MobileNetV2, TappedNetwork

    found = pyramid_grid(TappedNetwork("mobilenet_v2", MobileNetV2(), (1, 3, 6, 13)))
    assert found.grid(torch.rand(224, 224, 3)).shape == (28, 28, 24 + 32 + 96)


def test_a_network_without_layers_of_8_or_16_px_is_refused() -> None:
    coarse: Any = SimpleNamespace(name="odd", strides=(2, 32), channels=(1, 1), features=list)
    with pytest.raises(UsageError, match=r"strides \(2, 32\)"):
        pyramid_grid(coarse)


# -------------------------------------------------------------------------------------------------------- handcrafted


def test_handcrafted_of_one_colour_is_its_lab_and_nothing_else() -> None:
    grid = Handcrafted().grid(torch.tensor([1.0, 0.0, 0.0]).expand(64, 64, 3))
    assert grid.shape == (16, 16, 78)
    red = torch.tensor([0.5324, 0.8009, 0.6720])  # CIE Lab of sRGB red, over 100
    torch.testing.assert_close(grid[..., :12], red.repeat(4).expand(16, 16, 12), rtol=0, atol=2e-3)
    assert grid[..., 12:].abs().max() < 2e-3


def test_handcrafted_tells_the_direction_of_a_wave() -> None:
    x = torch.arange(64.0)
    waves = (0.5 + 0.3 * torch.sin(2 * torch.pi * x / 4)).expand(64, 64)  # along the columns, 4 px
    across, down = (
        Handcrafted().grid(w[..., None].expand(64, 64, 3))[4:12, 4:12].mean(dim=(0, 1))
        for w in (waves, waves.T)
    )
    energy = slice(60, 66)  # at 4 px, 6 directions from that of the columns
    assert across[energy].argmax() == 0
    assert down[energy].argmax() == 3
    assert across[60] > 3 * across[63]
    histogram = slice(36, 44)  # in 8 directions from that of the columns, in the least window
    assert set(across[histogram].topk(2).indices.tolist()) == {0, 4}
    assert set(down[histogram].topk(2).indices.tolist()) == {2, 6}


def test_handcrafted_sees_no_further_than_its_windows() -> None:
    rgb = torch.rand(128, 128, 3)
    changed = rgb.clone()
    changed[:8, :8] = 0
    difference = (Handcrafted().grid(rgb) - Handcrafted().grid(changed)).abs().amax(dim=2)
    assert difference[0, 0] > 0.05
    assert difference[10:, 10:].max() < 1e-5  # 40 px away: the widest windows reach 24 px


# ---------------------------------------------------------------------------------------------------------- Point-MAE


def test_farthest_points_are_those_of_the_definition() -> None:
    points = torch.randn(60, 3, generator=torch.Generator().manual_seed(2)) * 0.01
    chosen = farthest_points(points, 20).tolist()
    assert chosen[0] == 0
    for number in range(1, 20):
        distance = torch.cdist(points.double(), points[chosen[:number]].double()).min(dim=1).values
        assert distance[chosen[number]] == distance.max()


def test_groups_are_the_nearest_128_about_their_centre() -> None:
    points = torch.randn(1500, 3, generator=torch.Generator().manual_seed(2))
    centres, patches = group(points)
    assert patches.shape == (1024, 128, 3)
    assert patches[:, :, :].norm(dim=2).min(dim=1).values.max() == 0  # the centre is one of them
    expected = cKDTree(points.numpy()).query(centres.numpy(), k=128)[0]
    np.testing.assert_allclose(patches.norm(dim=2).sort(dim=1).values.numpy(), expected, atol=1e-5)


def _literal_encoder(encoder: PatchEncoder, patches: Tensor) -> Tensor:
    """The description in words, with torch's own layers."""
    first, second = encoder.first_conv.train(), encoder.second_conv.train()
    local = first(patches.transpose(1, 2))
    whole = local.amax(dim=2, keepdim=True).expand_as(local)
    return second(torch.cat([whole, local], dim=1)).amax(dim=2)


def test_the_patch_encoder_is_two_pointnets_on_the_clouds_own_statistics() -> None:
    torch.manual_seed(0)
    encoder = PatchEncoder(batch_statistics=True)
    for layer in (encoder.first_conv[1], encoder.second_conv[1]):
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.normal_(layer.bias, std=0.3)
    patches = torch.randn(32, 16, 3)
    with torch.no_grad():
        before = {k: v.clone() for k, v in encoder.state_dict().items()}
        found = encoder(patches)
        assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())  # nothing is learned
        torch.testing.assert_close(found, _literal_encoder(encoder, patches), rtol=1e-4, atol=1e-5)


def _patches(scale: float) -> Tensor:
    """Bent and tilted disks of differing sizes, about their centres."""
    generator = torch.Generator().manual_seed(1)
    at = torch.rand(64, 64, 2, generator=generator) * 2 - 1
    bend = torch.randn(64, 1, 5, generator=generator) * 0.5
    x, y = at.unbind(dim=2)
    z = (bend * torch.stack([x, y, x * x, x * y, y * y], dim=2)).sum(dim=2)
    return scale * torch.stack([x, y, z], dim=2)


def _mean_cosine(tokens: Tensor) -> float:
    unit = nn.functional.normalize(tokens, dim=1)
    return float((unit @ unit.T)[~torch.eye(len(unit), dtype=torch.bool)].mean())


@pytest.mark.parametrize("scale", [0.1, 0.01, 0.004])
def test_batch_statistics_keep_patches_apart_at_the_scale_of_metres(scale: float) -> None:
    torch.manual_seed(0)
    encoder = PatchEncoder(batch_statistics=True)
    with torch.no_grad():
        unit, metric = encoder(_patches(1.0)), encoder(_patches(scale))
        assert _mean_cosine(metric) < 0.9
        assert _mean_cosine(metric) == pytest.approx(_mean_cosine(unit), abs=0.01)
        encoder.batch_statistics = False
        assert _mean_cosine(encoder(_patches(scale))) > 0.995  # all alike


def test_without_eps_the_scale_of_patches_does_not_matter() -> None:
    torch.manual_seed(0)
    encoder = PatchEncoder(batch_statistics=True)
    encoder.first_conv[1].eps = encoder.second_conv[1].eps = 1e-30
    with torch.no_grad():
        small, large = encoder(_patches(0.1)), encoder(_patches(1.0))
    assert (small - large).norm() / large.norm() < 1e-3


def _small_point_mae(blocks: int) -> PointMAE:
    return randomised(PointMAE(blocks, centres=128, patch_points=16), 0)


@pytest.mark.parametrize(("blocks", "width"), [(1, 384), (4, 1152)])
def test_point_mae_gives_384_for_each_tap(blocks: int, width: int, bowl: Registered) -> None:
    network = _small_point_mae(blocks)
    assert network.width == width
    points = bowl.xyz[bowl.valid]
    found = network(points)
    assert found.tokens.shape == (128, width)
    assert torch.equal(found.tokens, network(points).tokens)
    with pytest.raises(InputError, match="128 at least are wanted, got 100"):
        network(points[:100])


def test_taps_are_normalised_outputs_of_blocks_that_see_the_position_each_time() -> None:
    network = _small_point_mae(4)
    points = torch.randn(1024, 3, generator=torch.Generator().manual_seed(0)) * 0.02
    with torch.no_grad():
        centres, patches = group(points, 128, 16)
        x, position = network.encoder(patches), network.pos_embed(centres)
        outputs = []
        for block in network.blocks.blocks:
            x = block((x + position)[None])[0]
            outputs.append(network.norm(x))
    expected = torch.cat([outputs[tap] for tap in (1, 2, 3)], dim=1)
    torch.testing.assert_close(network(points).tokens, expected, rtol=1e-4, atol=1e-5)


def test_the_published_files_names_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = REGISTRY["point_mae"]
    trained = randomised(PointMAE(2), 9)
    state = {f"module.MAE_encoder.{k}": v for k, v in trained.state_dict().items()}
    content = {"base_model": {**state, "module.MAE_decoder.norm.weight": torch.zeros(4)}, "epoch": 300}
    torch.save(content, tmp_path / entry.file)
    assert set(state) < set(read_tensors(tmp_path / entry.file))
    monkeypatch.setenv("SPLATAD_WEIGHTS", str(tmp_path))
    monkeypatch.setitem(REGISTRY, "point_mae", type(entry)(entry.name, entry.file, "MIT", None, None, ""))
    found = load_point_mae(2)
    assert all(torch.equal(v, trained.state_dict()[k]) for k, v in found.state_dict().items())
    with pytest.raises(UsageError, match="has 12"):
        load_point_mae(13)


def test_shape_features_are_1152_at_each_of_50176_pixels() -> None:
    axis = (torch.arange(224) + 0.5) / 224 - 0.5
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    valid = down**2 + right**2 < 0.01  # some 1,570 points
    xyz = torch.stack([0.1 * right, 0.1 * down, 0.4 + down**2], dim=2) * valid[..., None]
    tokens, weights = tokens_at_pixels(xyz, valid, _small_point_mae(4))
    rows = weights.rows(tokens, torch.arange(50176))
    assert rows.shape == (50176, 1152)
    assert torch.equal(rows.abs().sum(dim=1) != 0, weights.covered())
    grown = nn.functional.max_pool2d(valid[None, None].float(), 7, 1, 3)[0, 0].bool().flatten()
    assert (weights.covered() >= valid.flatten()).all()
    assert (weights.covered() <= grown).all()


# ------------------------------------------------------------------------------------------------------------ normals


def test_the_picture_of_a_surface_seen_head_on_is_blue() -> None:
    axis = torch.arange(32) * 5e-4
    down, right = torch.meshgrid(axis, axis, indexing="ij")
    picture, defined = normals_picture(
        torch.stack([right + 0.01, down + 0.01, 0.4 - 0 * right], 2), torch.ones(32, 32).bool()
    )
    torch.testing.assert_close(picture, torch.tensor([0.5, 0.5, 1.0]).expand(32, 32, 3), rtol=0, atol=1e-3)
    assert defined.all()
    # turned to the right and up: redder and greener
    tilted, _ = normals_picture(
        torch.stack([right, down, 0.4 + 0.3 * right - 0.3 * down], 2), torch.ones(32, 32).bool()
    )
    assert (tilted[..., 0] > 0.6).all()
    assert (tilted[..., 1] > 0.6).all()


def test_too_few_points_make_no_surface() -> None:
    valid = torch.zeros(32, 32, dtype=torch.bool)
    valid[:4, :5] = True
    with pytest.raises(InputError, match="at least is wanted"):
        normals_picture(torch.rand(32, 32, 3), valid)
