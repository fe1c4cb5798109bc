"""What all tests share: the same random numbers every time, the optional inputs, and who is skipped and why."""

from __future__ import annotations

import importlib.util
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

REPO = Path(__file__).resolve().parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--slow", action="store_true", help="also run the tests that take more than a few seconds"
    )


def pytest_configure(config: pytest.Config) -> None:
    # Small tensors gain nothing from many threads, and results stay those of the two cores the product is meant for.
    torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    no_gpu = _why_no_gpu()
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with scripts/test --slow"))
        if "gpu" in item.keywords and no_gpu:
            item.add_marker(pytest.mark.skip(reason=no_gpu))


def _why_no_gpu() -> str:
    """Why tests marked gpu cannot run here; empty where they can."""
    if not torch.cuda.is_available():
        return "gpu: no CUDA device that torch can use"
    if importlib.util.find_spec("gsplat") is None:
        return "gpu: gsplat is not installed (pip install 'splatad[cuda]')"
    return ""


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 -- libraries under test may draw from the global state
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def testdata() -> Path:
    """Folder of the real inputs (mad_car, nerf_lego, brush_reference, ...); skips where it is not on this machine."""
    named = os.environ.get("SPLATAD_TESTDATA")
    folder = Path(named) if named else REPO.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(
            f"real inputs are not at {folder}: set SPLATAD_TESTDATA to the folder that holds mad_car, nerf_lego"
        )
    return folder
