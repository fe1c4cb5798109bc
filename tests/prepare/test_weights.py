"""Learned weights: where they are looked for, how they are fetched (from a server made up here) and what is refused."""

from __future__ import annotations

import hashlib
import io
import pickle
import urllib.error
import urllib.request
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save, save_file

import prepare.weights as weights
from prepare.errors import InputError, MissingPartError, UsageError
from prepare.weights import (
    REGISTRY,
    WeightsFile,
    find_entry,
    load_weights,
    locate,
    obtain,
    open_url,
    read_tensors,
    weights_folders,
)

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([1, 2])}


class _Response(io.BytesIO):
    """What a server sends, with its header."""

    def __init__(self, body: bytes, announced: int | None) -> None:
        super().__init__(body)
        self.headers = {} if announced is None else {"Content-Length": str(announced)}


class _Server:
    """Stands in for the network; counts what it is asked."""

    def __init__(self, body: bytes, announced: int | None = None, error: Exception | None = None) -> None:
        self.body, self.announced, self.error = body, announced, error
        self.asked: list[str] = []

    def open(self, url: str) -> _Response:
        self.asked.append(url)
        if self.error is not None:
            raise self.error
        return _Response(self.body, self.announced)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SPLATAD_WEIGHTS", raising=False)
    monkeypatch.delenv("SPLATAD_OFFLINE", raising=False)
    monkeypatch.setenv("SPLATAD_CACHE", str(tmp_path / "cache"))
    _serve(monkeypatch, _Server(b"", error=AssertionError("the network was asked")))


def _serve(monkeypatch: pytest.MonkeyPatch, server: _Server) -> _Server:
    monkeypatch.setattr(weights, "open_url", server.open)
    return server


def _entry(body: bytes, **changes: Any) -> WeightsFile:
    fields: dict[str, Any] = {
        "name": "toy",
        "file": "toy.safetensors",
        "licence": "CC0",
        "sha256": hashlib.sha256(body).hexdigest(),
        "url": "https://weights.example/toy.safetensors",
        "purpose": "tests",
    }
    return WeightsFile(**(fields | changes))


BODY = save(TENSORS)


def test_named_folders_are_searched_in_order_and_before_the_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entry = _entry(BODY)
    first, second, cache = tmp_path / "first", tmp_path / "second", tmp_path / "cache/weights"
    monkeypatch.setenv("SPLATAD_WEIGHTS", f"{first}{weights.os.pathsep}{second}")
    assert weights_folders() == [first, second, cache]
    assert locate(entry) is None
    for folder in (cache, second, first):  # from the last looked at to the first
        folder.mkdir(parents=True)
        (folder / entry.file).write_bytes(BODY)
        assert obtain(entry) == folder / entry.file
    assert load_weights(entry)["a.bias"].tolist() == [1, 2]


def test_the_cache_is_the_users_own_where_none_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SPLATAD_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    for platform, place in (
        ("linux", ".cache/splatad/weights"),
        ("darwin", "Library/Caches/splatad/weights"),
    ):
        monkeypatch.setattr(weights.sys, "platform", platform)
        assert weights_folders() == [tmp_path / place]
    monkeypatch.setattr(weights.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert weights_folders() == [tmp_path / "xdg/splatad/weights"]


def test_a_file_is_downloaded_once_whole_and_with_its_progress(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    body = BODY + bytes(3_000_000)
    entry = _entry(body)
    server = _serve(monkeypatch, _Server(body, announced=len(body)))
    steps: list[tuple[int, int | None]] = []
    path = obtain(entry, lambda done, total: steps.append((done, total)))
    assert path == tmp_path / "cache/weights/toy.safetensors"
    assert path.read_bytes() == body
    assert len(steps) >= 3
    assert steps[-1] == (len(body), len(body))
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    assert obtain(entry) == path
    assert server.asked == [entry.url]


@pytest.mark.parametrize(
    ("server", "error", "says"),
    [
        (_Server(BODY[:-1], announced=len(BODY)), MissingPartError, "broke off"),
        (_Server(BODY + b"?"), InputError, r"weights\.example/toy\.safetensors: sha256"),
        (_Server(b"", error=urllib.error.URLError("no route to host")), MissingPartError, "no route"),
        (_Server(b"", error=TimeoutError("timed out")), MissingPartError, "timed out"),
    ],
    ids=["broken off", "another file", "unreachable", "too slow"],
)
def test_a_download_that_fails_leaves_nothing_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: _Server, error: type[InputError], says: str
) -> None:
    _serve(monkeypatch, server)
    with pytest.raises(error, match=says) as raised:
        obtain(_entry(BODY))
    assert raised.value.exit_status == error.exit_status
    assert list((tmp_path / "cache/weights").iterdir()) == []
    if error is MissingPartError:
        assert f"put toy.safetensors into {tmp_path / 'cache/weights'}" in str(raised.value)


def test_a_full_disk_is_not_blamed_on_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: Any, chunk: bytes) -> None:
        raise weights._DiskError(OSError(28, "No space left on device"))

    _serve(monkeypatch, _Server(BODY))
    monkeypatch.setattr(weights, "_write", full)
    with pytest.raises(InputError, match="no space left"):
        obtain(_entry(BODY))


def test_offline_nothing_is_asked_and_the_error_names_file_folder_and_address(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = _serve(monkeypatch, _Server(BODY))
    monkeypatch.setenv("SPLATAD_OFFLINE", "1")
    with pytest.raises(MissingPartError, match="SPLATAD_OFFLINE=1") as raised:
        obtain(_entry(BODY))
    for part in ("toy.safetensors", str(tmp_path / "cache/weights"), "https://weights.example"):
        assert part in str(raised.value)
    assert server.asked == []


def test_a_file_without_an_address_is_asked_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    server = _serve(monkeypatch, _Server(BODY))
    with pytest.raises(MissingPartError, match=r"no known address; put toy\.safetensors into"):
        obtain(_entry(BODY, url=None))
    assert server.asked == []


def test_a_file_on_this_machine_that_is_another_than_registered_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SPLATAD_WEIGHTS", str(tmp_path))
    (tmp_path / "toy.safetensors").write_bytes(save({"b": torch.ones(1)}))
    with pytest.raises(InputError, match="sha256"):
        obtain(_entry(BODY))
    assert obtain(_entry(BODY, sha256=None)) == tmp_path / "toy.safetensors"
    digits = hashlib.sha256((tmp_path / "toy.safetensors").read_bytes()).hexdigest()[:8]
    assert obtain(_entry(BODY, sha256=digits)).is_file()  # the first digits, as file names publish them


def test_only_https_is_fetched_also_after_a_redirect() -> None:
    with pytest.raises(OSError, match="not https"):
        open_url("http://weights.example/toy.safetensors")
    with pytest.raises(OSError, match="not https"):
        open_url("file:///etc/passwd")
    request = urllib.request.Request("https://weights.example/a")
    handler = weights._OnlyHttps()
    with pytest.raises(OSError, match="not https"):
        handler.redirect_request(request, None, 302, "Found", Message(), "http://weights.example/b")
    onward = handler.redirect_request(request, None, 302, "Found", Message(), "https://weights.example/b")
    assert onward.full_url == "https://weights.example/b"


def test_a_state_dict_is_read_from_both_kinds_of_file(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "a.safetensors")
    torch.save(TENSORS, tmp_path / "a.pth")
    torch.save({"state_dict": TENSORS, "epoch": 3}, tmp_path / "wrapped.pth")
    for name in ("a.safetensors", "a.pth", "wrapped.pth"):
        tensors = read_tensors(tmp_path / name)
        assert tensors.keys() == TENSORS.keys()
        assert all(torch.equal(tensors[key], value) for key, value in TENSORS.items()), name


class _Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(_Bomb.target),)

    target = ""


def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    _Bomb.target = str(tmp_path / "exploded")
    torch.save({"a": _Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(_Bomb(), protocol=2))
    for name in ("bomb.pth", "bare.pth"):
        with pytest.raises(InputError, match=name):
            read_tensors(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_an_old_torch_reads_no_pth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "a.pth")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(MissingPartError, match=r"needs torch 2\.10"):
        read_tensors(tmp_path / "a.pth")
    save_file(TENSORS, tmp_path / "a.safetensors")
    assert read_tensors(tmp_path / "a.safetensors").keys() == TENSORS.keys()


@pytest.mark.parametrize(
    "name", ["damaged.safetensors", "damaged.pth", "empty.pth", "list.pth", "model.ckpt"]
)
def test_a_file_that_holds_no_weights_is_one_clear_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    torch.save(TENSORS, tmp_path / "whole.pth")
    if name == "list.pth":
        torch.save([1, 2], path)
    else:
        content = BODY if name.endswith("safetensors") else (tmp_path / "whole.pth").read_bytes()
        path.write_bytes(b"" if name.startswith("empty") else content[: len(content) // 2])
    with pytest.raises(InputError, match=name) as raised:
        read_tensors(path)
    assert "\n" not in str(raised.value)


def test_the_registry_is_whole_and_an_unknown_name_offers_the_nearest() -> None:
    for name, entry in REGISTRY.items():
        assert entry.name == name
        assert Path(entry.file).name == entry.file
        assert Path(entry.file).suffix in (".pth", ".safetensors")
        assert entry.url is None or entry.url.startswith("https://")
        assert entry.sha256 is None or entry.sha256 in entry.file or len(entry.sha256) == 64
        assert entry.licence
        assert entry.purpose
    assert find_entry("efficientnet_b4").file == "efficientnet-b4-6ed6700e.pth"
    with pytest.raises(UsageError, match="efficientnet_b4"):
        find_entry("efficientnet_b5")
