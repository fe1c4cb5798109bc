from __future__ import annotations

import pytest
import torch

from detect.cmt.attention import Attention, choose_best, gathered


def _case(seed: int = 0) -> tuple[Attention, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    attention = Attention(24, 20, heads=4, head_width=8)
    x = torch.randn(2, 1 + 30, 24, generator=generator)
    context = torch.randn(2, 50, 20, generator=generator)
    similarity = torch.randn(2, 30, 50, generator=generator)
    usable = torch.rand(2, 50, generator=generator) < 0.6
    usable[1, :] = False
    usable[1, :3] = True  # fewer than k: places stay empty
    return attention, x, context, similarity.masked_fill(~usable[:, None], -torch.inf), usable


@pytest.mark.parametrize(("form", "kept"), [("gathered", False), ("absorbed", False), ("absorbed", True)])
def test_sparse_forms_equal_the_dense_mask_in_values_and_gradients(
    form: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detect.cmt.attention._CHUNK_BYTES", 2 * 7 * 20 * 4 * 4)  # 4 of the 30 rows at a time
    attention, x, context, similarity, usable = _case()
    chosen = choose_best(similarity, 7)
    results = []
    for name in ("dense", form):
        a, c = x.clone().requires_grad_(), context.clone().requires_grad_()
        attention.zero_grad()
        out = attention(a, c, usable, chosen.gather(c) if kept and name == form else chosen, name)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        results.append(
            [
                out.detach(),
                a.grad,
                c.grad,
                *(p.grad.clone() for p in attention.parameters() if p.grad is not None),
            ]
        )
    for ours, truth in zip(results[1], results[0], strict=True):
        assert ours is not None
        assert truth is not None
        torch.testing.assert_close(ours, truth, atol=1e-5, rtol=1e-5)


def test_dense_mask_is_softmax_over_the_chosen_keys_by_hand() -> None:
    attention, x, context, similarity, usable = _case()
    chosen = choose_best(similarity, 7)
    out = attention(x, context, usable, chosen, "dense")
    row = 4  # row 0 is the token
    keys = chosen.index[0, row - 1]
    heads = []
    for head in range(4):
        own = slice(head * 8, head * 8 + 8)
        q = attention.to_q.weight[own] @ x[0, row]
        k, v = (
            context[0, keys] @ attention.to_k.weight[own].T,
            context[0, keys] @ attention.to_v.weight[own].T,
        )
        heads.append((k @ q / 8**0.5).softmax(dim=0) @ v)
    torch.testing.assert_close(out[0, row], attention.to_out(torch.cat(heads)), atol=1e-6, rtol=1e-5)


def test_every_key_chosen_is_plain_attention() -> None:
    attention, x, context, similarity, _ = _case()
    similarity = torch.randn_like(similarity)
    plain = attention(x, context)
    for form in ("dense", "gathered", "absorbed"):
        torch.testing.assert_close(attention(x, context, None, choose_best(similarity, 50), form), plain)


def test_equal_keys_are_chosen_by_their_order() -> None:
    similarity = torch.zeros(1, 3, 100)
    similarity[0, 1, 90] = 1.0
    similarity[0, 2, :] = -torch.inf
    similarity[0, 2, 5] = 0.0
    chosen = choose_best(similarity, 4)
    assert chosen.index[0, 0].tolist() == [0, 1, 2, 3]
    assert chosen.index[0, 1].tolist() == [90, 0, 1, 2]
    assert chosen.valid[0, 2].tolist() == [True, False, False, False]
    assert int(chosen.index[0, 2, 0]) == 5


def test_the_order_of_keys_does_not_change_what_is_attended_to() -> None:
    attention, x, context, similarity, usable = _case()
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    one = attention(x, context, usable, choose_best(similarity, 7))
    other = attention(x, context[:, order], usable[:, order], choose_best(similarity[:, :, order], 7))
    torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


def test_the_fast_form_makes_nothing_of_queries_times_keys() -> None:
    attention, x, _, _, _ = _case()
    context = torch.randn(2, 5000, 20)
    chosen = choose_best(torch.randn(2, 30, 5000), 7)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    with Watch():
        attention(x, context, None, chosen)
    assert largest < 2 * 30 * 5000  # a mask of one head; keys and values would be 2 x 5000 x 32 = 320,000
    assert largest <= context.numel()


def test_gathering_picks_rows() -> None:
    values = torch.arange(24.0).view(2, 4, 3)
    index = torch.tensor([[[3, 0]], [[1, 1]]])
    assert gathered(values, index).tolist() == [[[[9, 10, 11], [0, 1, 2]]], [[[15, 16, 17], [15, 16, 17]]]]
