"""What the tests of CMT's commands share: a tiny packed set, and an untrained network for its size."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def pack_maker() -> Callable[..., Path]:
    """`make_pack` of tests/detect/cmt: boxes as chairs, every array of the format."""
    path = Path(__file__).resolve().parents[1] / "detect" / "cmt" / "conftest.py"
    spec = importlib.util.spec_from_file_location("cmt_conftest", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["cmt_conftest"] = module
    spec.loader.exec_module(module)
    return module.make_pack


@pytest.fixture(scope="session")
def pack_folder(pack_maker: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_maker(tmp_path_factory.mktemp("boxes") / "boxes")


@pytest.fixture(scope="session")
def save_tiny_network() -> Callable[..., Path]:
    """Writes an untrained network of 64 px to a path, with changes of its configuration."""

    def save(path: Path, about: dict[str, object] | None = None, **changes: object) -> Path:
        from detect.cmt.checkpoint import save_network
        from detect.cmt.model import CMT, ModelConfig

        values: dict[str, object] = {
            "px": 64, "widths": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "width": 16, "match_hidden": (16,),
            "match_width": 16, "inner": 32, "blocks": 1, "heads": 2, "head_width": 16, "feed_forward": 32,
            "head_hidden": 16, "k": 4, "position_width": 8,
        }  # fmt: skip
        torch.manual_seed(0)
        save_network(path, CMT(ModelConfig(**(values | changes))), about or {})  # type: ignore[arg-type]
        return path

    return save
