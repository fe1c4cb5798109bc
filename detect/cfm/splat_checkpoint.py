"""`SplatForm` on disk: one .safetensors file beside the splats it was trained on, with its settings in the header."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from detect.cfm.mapping import MappingConfig, MappingPair
from detect.cfm.splat_form import GoodView, SplatForm, SplatFormConfig
from prepare.atomic_write import write_with
from prepare.errors import InputError
from recon.gaussians import Gaussians

FORMAT = "splatad-cfm-splats-1"


def splats_digest(gaussians: Gaussians) -> str:
    """What tells the splats of one fit from those of another."""
    return hashlib.sha256(gaussians.means.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def save_splat_form(path: Path, form: SplatForm, gaussians: Gaussians) -> None:
    """Write it atomically; the same content gives the same bytes. `gaussians` are the splats it was trained on."""
    values = {
        "format": FORMAT,
        "splats": splats_digest(gaussians),
        "config": asdict(form.config),
        "mapping": asdict(form.pairs[0].config),
        "networks": len(form.pairs),
        "level": form.level,
        "good": [asdict(view) for view in form.good],
        "held_out": form.held_out,
        "about": dict(form.about),
    }
    header = {"splatad": json.dumps(values, allow_nan=False)}
    tensors = {
        f"{number}.{name}": tensor.detach().cpu().contiguous()
        for number, pair in enumerate(form.pairs)
        for name, tensor in pair.state_dict().items()
    }
    write_with(path, lambda temporary: save_file(tensors, temporary, metadata=header))


def load_splat_form(path: Path, gaussians: Gaussians, command: str) -> SplatForm:
    """What `save_splat_form` wrote, for the splats `gaussians`; `command` trains it, for the message where it is not there.

    Raises: InputError where the file is missing, damaged, of another kind, or of other splats.
    """
    again = f"train it again with `{command}`"
    if not path.is_file():
        raise InputError(
            f"{path}: not there, CFM was not trained on this reference; train it with `{command}`"
        )
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("splatad", "{}")
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}: cannot be read as weights ({' '.join(str(error).split())[:120]}); {again}"
        ) from error
    try:
        header: dict[str, Any] = json.loads(text)
        found = header.get("format", "none")
        if found != FORMAT:
            raise InputError(f"{path}: not CFM's networks of splats (format {found!r}); {again}")
        splats = header["splats"]
        config = SplatFormConfig(**header["config"])
        pairs = tuple(MappingPair(MappingConfig(**header["mapping"])) for _ in range(header["networks"]))
        form = SplatForm(
            config, pairs, float(header["level"]), tuple(GoodView(**view) for view in header["good"]),
            bool(header["held_out"]), dict(header["about"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: its header cannot be read ({error}); {again}") from error
    if splats != splats_digest(gaussians):
        raise InputError(f"{path}: of other splats, the reference was fitted anew since; {again}")
    try:
        if not pairs:
            raise RuntimeError("no networks")
        for number, pair in enumerate(pairs):
            start = f"{number}."
            own = {
                name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)
            }
            pair.load_state_dict(own)
            pair.eval().requires_grad_(False)
    except RuntimeError as error:
        raise InputError(
            f"{path}: tensors that are not these networks' ({' '.join(str(error).split())[:160]}); {again}"
        ) from error
    return form
