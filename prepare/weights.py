"""The registry of learned weights: what each file is, where it is looked for, and how it is read without running code.

Nothing in the main job needs one. A file is looked up in the folders of $SPLATAD_WEIGHTS (separated as in $PATH),
then in the cache ($SPLATAD_CACHE/weights, else ~/.cache/splatad/weights or the platform's own place), then downloaded
over https into the cache unless SPLATAD_OFFLINE=1.
"""

from __future__ import annotations

import difflib
import hashlib
import http.client
import os
import pickle
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from prepare.atomic_write import write_with
from prepare.errors import InputError, MissingPartError, UsageError

Progress = Callable[[int, int | None], None]  # bytes done, bytes in all where the server tells

_CHUNK = 1 << 20
_TIMEOUT_S = 30.0
_SAFE_TORCH = (2, 10)  # weights_only=True of older versions corrupts memory on crafted files (CVE-2026-24747)


@dataclass(frozen=True)
class WeightsFile:
    """One file of learned weights."""

    name: str  # what code and flags call it
    file: str  # file name, the same in every folder
    licence: str
    sha256: (
        str | None
    )  # hex digest, or the first digits of it where only those are published; None where unknown
    url: str | None  # https; None where no lasting address is known: then the user puts the file there
    purpose: str


REGISTRY: dict[str, WeightsFile] = {
    entry.name: entry
    for entry in (
        WeightsFile(
            name="efficientnet_b4",
            file="efficientnet-b4-6ed6700e.pth",
            licence="Apache-2.0",
            sha256="6ed6700e",  # in the file's name, as torch.hub checks it
            url="https://github.com/lukemelas/EfficientNet-PyTorch/releases/download/1.0/efficientnet-b4-6ed6700e.pth",
            purpose="the ImageNet backbone of SplatPose, PAD and PIAD",
        ),
        WeightsFile(
            name="mobilenet_v2",
            file="mobilenetv2_imagenet.safetensors",
            licence="Apache-2.0 / BSD-3-Clause",
            sha256="bab537a2b196bb4e1fcbe13af325a9e92a03316b052bebd84a89322750970283",
            url=None,  # dequantised from a TFLite model, not published anywhere
            purpose="a small ImageNet backbone (14 MB)",
        ),
        WeightsFile(
            name="mobilenet_v2_torchvision",
            file="mobilenet_v2-b0353104.pth",
            licence="BSD-3-Clause",
            sha256="b0353104",
            url="https://download.pytorch.org/models/mobilenet_v2-b0353104.pth",
            purpose="the same network as mobilenet_v2 with torchvision's own weights",
        ),
        WeightsFile(
            name="wide_resnet50_2",
            file="wide_resnet50_2-95faca4d.pth",
            licence="BSD-3-Clause",
            sha256="95faca4d",
            url="https://download.pytorch.org/models/wide_resnet50_2-95faca4d.pth",
            purpose="the ImageNet backbone of PatchCore and its kin",
        ),
        WeightsFile(
            name="resnet18",
            file="resnet18-f37072fd.pth",
            licence="BSD-3-Clause",
            sha256="f37072fd",
            url="https://download.pytorch.org/models/resnet18-f37072fd.pth",
            purpose="an optional start for the encoder of CMT",
        ),
        WeightsFile(
            name="dinov2_vits14",
            file="dinov2_vits14_pretrain.pth",
            licence="Apache-2.0",
            sha256=None,
            url="https://dl.fbaipublicfiles.com/dinov2/dinov2_vits14/dinov2_vits14_pretrain.pth",
            purpose="self-supervised features, for retrieval and for feature differences",
        ),
        WeightsFile(
            name="alexnet",
            file="alexnet-owt-7be5be79.pth",
            licence="BSD-3-Clause",
            sha256="7be5be79",
            url="https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            purpose="the features of LPIPS, a quality number of a fit",
        ),
        WeightsFile(
            name="lpips_alex",
            file="lpips_alex_v0.1.pth",  # alex.pth at its source; v0.0 has one of the same name and shapes
            licence="BSD-2-Clause",
            sha256="df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
            url="https://github.com/richzhang/PerceptualSimilarity/raw/master/lpips/weights/v0.1/alex.pth",
            purpose="how much each of AlexNet's channels counts in LPIPS (6 kB)",
        ),
        WeightsFile(
            name="alike_t",
            file="alike-t.pth",
            licence="BSD-3-Clause",
            sha256="c0840329a6b88518d914b03af2be956f5607055a389ba17441db02bb94f7d12e",
            url="https://github.com/Shiaoming/ALIKE/raw/4e61fc77e75fb1cb3e7447d0a21f854cc61a0d32/models/alike-t.pth",
            purpose="keypoints and descriptors for rough cameras (0.35 MB)",
        ),
        WeightsFile(
            name="alike_s",
            file="alike-s.pth",
            licence="BSD-3-Clause",
            sha256="a9c0789ff0a09f576cc24afe4924d3233471499d1ce3b0248d650c8794e99a94",
            url="https://github.com/Shiaoming/ALIKE/raw/4e61fc77e75fb1cb3e7447d0a21f854cc61a0d32/models/alike-s.pth",
            purpose="keypoints and descriptors for rough cameras (0.7 MB)",
        ),
        WeightsFile(
            name="alike_n",
            file="alike-n.pth",
            licence="BSD-3-Clause",
            sha256="8bd4789272eec779be280f8fc1007608ff604241440a0a3377c1559199412ee3",
            url="https://github.com/Shiaoming/ALIKE/raw/4e61fc77e75fb1cb3e7447d0a21f854cc61a0d32/models/alike-n.pth",
            purpose="keypoints and descriptors for rough cameras (1.3 MB)",
        ),
        WeightsFile(
            name="alike_l",
            file="alike-l.pth",
            licence="BSD-3-Clause",
            sha256="bed5fbbf352ab1c3e92e2241881f8b84edce949984fa23bc7f2517eab93938a0",
            url="https://github.com/Shiaoming/ALIKE/raw/4e61fc77e75fb1cb3e7447d0a21f854cc61a0d32/models/alike-l.pth",
            purpose="keypoints and descriptors for rough cameras (2.6 MB)",
        ),
        WeightsFile(
            name="disk",
            file="depth-save.pth",
            licence="Apache-2.0",
            sha256=None,
            url="https://raw.githubusercontent.com/cvlab-epfl/disk/master/depth-save.pth",
            purpose="DISK keypoints and descriptors for rough cameras, through kornia",
        ),
        WeightsFile(
            name="xfeat",
            file="xfeat.pth",  # xfeat.pt at its source
            licence="Apache-2.0",
            sha256=None,
            url="https://github.com/verlab/accelerated_features/raw/main/weights/xfeat.pt",
            purpose="XFeat keypoints and descriptors for rough cameras, through kornia",
        ),
        WeightsFile(
            name="disk_lightglue",
            file="disk_lightglue.pth",
            licence="Apache-2.0",
            sha256=None,
            url="https://github.com/cvg/LightGlue/releases/download/v0.1_arxiv/disk_lightglue.pth",
            purpose="LightGlue, a learned matcher, for DISK keypoints, through kornia",
        ),
    )
}


def find_entry(name: str) -> WeightsFile:
    """The registered file called `name`.

    Raises: UsageError for another name, with the nearest ones.
    """
    if name in REGISTRY:
        return REGISTRY[name]
    near = difflib.get_close_matches(name, REGISTRY, n=3) or sorted(REGISTRY)
    raise UsageError(f"weights {name!r}: not registered; there are {', '.join(near)}")


def weights_folders() -> list[Path]:
    """Where files are looked for, in this order: those of $SPLATAD_WEIGHTS, then the cache. None need exist."""
    named = [Path(part) for part in os.environ.get("SPLATAD_WEIGHTS", "").split(os.pathsep) if part]
    return [*named, cache_folder()]


def cache_folder() -> Path:
    """The folder downloads go to."""
    if named := os.environ.get("SPLATAD_CACHE"):
        return Path(named) / "weights"
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/splatad/weights"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "splatad/cache/weights"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "splatad/weights"


def locate(entry: WeightsFile) -> Path | None:
    """Where the file lies on this machine; None where it does not."""
    candidates = (folder / entry.file for folder in weights_folders())
    return next((path for path in candidates if path.is_file()), None)


def obtain(entry: WeightsFile, progress: Progress | None = None) -> Path:
    """The file on this machine, downloaded where it is not there yet.

    Raises: MissingPartError that says which file to put where, when offline or the server cannot be reached;
    InputError where the file is not the registered one.
    """
    path = locate(entry)
    if path is None:
        path = _download(entry, progress)
    else:
        _check_digest(entry, path, str(path))
    return path


def load_weights(entry: WeightsFile, progress: Progress | None = None) -> dict[str, Tensor]:
    """The tensors of the file by name, on the CPU.

    Raises: as `obtain` and `read_tensors`.
    """
    return read_tensors(obtain(entry, progress))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a .pth file whose pickle may hold tensors and containers only.

    Raises: InputError for another kind of file, a damaged one or one with other objects; MissingPartError for a
    .pth file under a torch whose restricted unpickler is not safe.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(
                f"{path}: cannot be read as weights ({error}); copy or download it again"
            ) from error
    if path.suffix != ".pth":
        raise InputError(f"{path}: weights are .safetensors or .pth files; convert it to .safetensors")
    if _version(torch.__version__) < _SAFE_TORCH:
        raise MissingPartError(
            f"{path}: reading a .pth file safely needs torch 2.10, this is {torch.__version__}; "
            "upgrade torch or convert the file to .safetensors"
        )
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{path}: cannot be read as weights ({reason[0]}); download it again") from error
    for wrapper in ("state_dict", "model", "extractor"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path}: holds something else than named tensors; give a state dict")
    return {str(key): value for key, value in content.items()}


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split("+")[0].split(".")[:2]
    return int(major), int(minor)


def _check_digest(entry: WeightsFile, path: Path, where: str) -> None:
    if entry.sha256 is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(entry.sha256):
        raise InputError(
            f"{where}: sha256 {found[:16]}..., but {entry.name} has {entry.sha256[:16]}; "
            "delete the file and fetch it again"
        )


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    """Refuses to be sent on to an address that is not https."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.startswith("https://"):
            raise urllib.error.URLError(f"redirected to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_url(url: str) -> AbstractContextManager[Any]:
    """The response to a GET of `url`: `read(size)` and `headers`. Never leaves https.

    Raises: OSError, http.client.HTTPException.
    """
    if not url.startswith("https://"):
        raise urllib.error.URLError(f"{url} is not https")
    return urllib.request.build_opener(_OnlyHttps).open(url, timeout=_TIMEOUT_S)


def _download(entry: WeightsFile, progress: Progress | None) -> Path:
    target = cache_folder() / entry.file
    places = " or ".join(str(folder) for folder in weights_folders())
    put = f"put {entry.file} into {places}"
    if entry.url is None:
        raise MissingPartError(
            f"weights {entry.name}: {entry.file} is nowhere and has no known address; {put}"
        )
    if os.environ.get("SPLATAD_OFFLINE") == "1":
        raise MissingPartError(
            f"weights {entry.name}: not on this machine and SPLATAD_OFFLINE=1; {put} (from {entry.url})"
        )

    url = entry.url

    def fill(temporary: Path) -> None:
        done = 0
        with temporary.open("wb") as file:
            # Only the network's errors are caught here; a full disk is write_with's to tell.
            try:
                with open_url(url) as response:
                    length = response.headers.get("Content-Length")
                    total = int(length) if length is not None and length.isdigit() else None
                    while chunk := response.read(_CHUNK):
                        _write(file, chunk)
                        done += len(chunk)
                        if progress is not None:
                            progress(done, total)
            except _DiskError as error:
                raise error.cause from None
            except (OSError, http.client.HTTPException) as error:
                raise MissingPartError(
                    f"weights {entry.name}: {entry.url} cannot be fetched ({error}); try again, or {put}"
                ) from error
        if total is not None and done != total:
            raise MissingPartError(
                f"weights {entry.name}: the download broke off after {done} of {total} bytes; try again, or {put}"
            )
        _check_digest(entry, temporary, url)

    write_with(target, fill)
    return target


class _DiskError(Exception):
    """Keeps an OSError of the disk apart from those of the network."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(str(cause))
        self.cause = cause


def _write(file: Any, chunk: bytes) -> None:
    try:
        file.write(chunk)
    except OSError as error:
        raise _DiskError(error) from error
