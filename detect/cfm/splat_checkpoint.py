"""`SplatForm` on disk: one .safetensors file beside the splats it was trained on, with its settings in the header."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

from detect.cfm.mapping import MappingConfig, MappingPair
from detect.cfm.splat_form import GoodView, SplatForm, SplatFormConfig
from prepare.errors import InputError
from prepare.network_file import read_network, write_network
from recon.gaussians import Gaussians

FORMAT = "splatad-cfm-splats-1"


def splats_digest(gaussians: Gaussians) -> str:
    """What tells the splats of one fit from those of another."""
    return hashlib.sha256(gaussians.means.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


def save_splat_form(path: Path, form: SplatForm, gaussians: Gaussians) -> None:
    """Write it atomically; the same content gives the same bytes. `gaussians` are the splats it was trained on."""
    values = {
        "splats": splats_digest(gaussians),
        "config": asdict(form.config),
        "mapping": asdict(form.pairs[0].config),
        "networks": len(form.pairs),
        "level": form.level,
        "good": [asdict(view) for view in form.good],
        "held_out": form.held_out,
        "about": dict(form.about),
    }
    tensors = {
        f"{number}.{name}": tensor
        for number, pair in enumerate(form.pairs)
        for name, tensor in pair.state_dict().items()
    }
    write_network(path, FORMAT, values, tensors)


def load_splat_form(path: Path, gaussians: Gaussians, command: str) -> SplatForm:
    """What `save_splat_form` wrote, for the splats `gaussians`; `command` trains it, for the message where it is not there.

    Raises: InputError where the file is missing, damaged, of another kind, or of other splats.
    """
    again = f"train it again with `{command}`"
    if not path.is_file():
        raise InputError(
            f"{path}: not there, CFM was not trained on this reference; train it with `{command}`"
        )
    header, tensors = read_network(path, FORMAT, again)
    try:
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
