"""Attention that decays: decay_attention beside the same chunked algebra in plain torch, at its best chunk sizes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from carrel.ops import decay_attention

from .case import Bar, Case, Problem, Side

_BATCH, _HEADS, _LENGTH, _SIZE = 2, 8, 2048, 64
_PER_HEAD = (32, 64, 128)  # chunks
_PER_CHANNEL = ((16, 8), (32, 8), (64, 8), (32, 16))  # chunks and the parts they are cut into
Form = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def _carried(added: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The memory before every chunk, and the last, from what each chunk adds and what it keeps."""
    S, before = torch.zeros_like(added[:, 0]), []
    for new, decay in zip(added.unbind(1), kept.unbind(1), strict=True):
        before.append(S)
        S = torch.addcmul(new, decay, S)
    return torch.stack(before, 1), S


def _future(size: int, like: Tensor) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool, device=like.device).triu(1)


def per_head(chunk: int) -> Form:
    """One decay per head: all chunks in one batched product each, differences masked before the exponential."""

    def run(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor]:
        batch, heads, length, size = q.shape
        q, k, v = (x.reshape(batch * heads, length // chunk, chunk, -1) for x in (q, k, v))
        b = log_decay.reshape(batch * heads, length // chunk, chunk).cumsum(-1)
        reach = (b.unsqueeze(-1) - b.unsqueeze(-2)).masked_fill(_future(chunk, b), -torch.inf).exp()
        end = b[..., -1:]
        added = (k * (end - b).exp().unsqueeze(-1)).mT @ v
        before, last = _carried(added, end.exp().unsqueeze(-1))
        o = ((q @ k.mT) * reach) @ v + (q * b.exp().unsqueeze(-1)) @ before
        return o.view(batch, heads, length, -1), last.view(batch, heads, size, -1)

    return run


def per_channel(chunk: int, part: int) -> Form:
    """One decay per channel, exactly: products anchored at the start of a part, and within a part every difference."""

    def run(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> tuple[Tensor, Tensor]:
        batch, heads, length, size = q.shape
        q, k, v, b = (x.reshape(batch * heads, length // chunk, chunk, -1) for x in (q, k, v, log_decay))
        b = b.cumsum(2)
        end = b[:, :, -1:]
        before, last = _carried((k * (end - b).exp()).mT @ v, end.exp().mT)
        fine_q, fine_k, fine_v, fine_b = (x.unflatten(2, (chunk // part, part)) for x in (q, k, v, b))
        reach = (fine_b.unsqueeze(4) - fine_b.unsqueeze(3)).masked_fill(_future(part, b).unsqueeze(-1), -torch.inf)
        inside = (fine_q.unsqueeze(4) * fine_k.unsqueeze(3) * reach.exp()).sum(-1) @ fine_v
        parts = [inside[:, :, 0]]
        for i in range(1, chunk // part):
            anchor, start = b[:, :, i * part - 1 : i * part], i * part
            asked = fine_q[:, :, i] * (fine_b[:, :, i] - anchor).exp()
            known = k[:, :, :start] * (anchor - b[:, :, :start]).exp()
            parts.append(inside[:, :, i] + (asked @ known.mT) @ v[:, :, :start])
        o = (q * b.exp()) @ before + torch.cat(parts, 2)
        return o.view(batch, heads, length, -1), last.view(batch, heads, size, -1)

    return run


def _peers(channels: bool) -> dict[str, Form]:
    if channels:
        return {f"torch, chunks of {c} in parts of {p}": per_channel(c, p) for c, p in _PER_CHANNEL}
    return {f"torch, chunks of {c}": per_head(c) for c in _PER_HEAD}


def _case(channels: bool, backward: bool, dtype: torch.dtype = torch.float32) -> Callable[[torch.device], Problem]:
    def build(device: torch.device) -> Problem:
        torch.manual_seed(0)
        row = (_BATCH, _HEADS, _LENGTH)
        q, k, v = (torch.randn(*row, _SIZE, device=device) for _ in range(3))
        log_decay = -torch.rand((*row, _SIZE) if channels else row, device=device)
        given = [*(x.to(dtype) for x in (q / 8, k, v)), log_decay]
        leaves = [x.requires_grad_() for x in given]
        arrived = torch.randn(*row, _SIZE, device=device).to(dtype)
        forms: dict[str, Form] = {"carrel decay_attention": decay_attention, **_peers(channels)}

        def side(form: Form) -> Side:
            def run() -> object:
                if backward:
                    return torch.autograd.grad(form(*leaves)[0], leaves, arrived)
                with torch.no_grad():
                    return form(*leaves)

            return run

        def check() -> float:
            """Outputs and gradients of all sides on the first tokens, in units of each one's largest entry."""
            few = [x[:, :, :128].detach().double().requires_grad_() for x in leaves]
            g = arrived[:, :, :128].double()
            wanted = decay_attention(*few, backend="reference")
            exact = [*wanted, *torch.autograd.grad(wanted[0], few, g)]
            worst = 0.0
            for form in forms.values():
                short = [x[:, :, :128].detach().requires_grad_() for x in leaves]
                got = form(*short)
                found = [*got, *torch.autograd.grad(got[0], short, g.to(dtype))]
                errors = ((x - y).abs().max() / y.abs().max() for x, y in zip(found, exact, strict=True))
                worst = max(worst, *(float(error.detach()) for error in errors))
            return worst

        return Problem(check, 1e-4 if dtype == torch.float32 else 2e-2, {n: side(f) for n, f in forms.items()})

    return build


_SHAPE = f"{_BATCH} x {_HEADS} heads x {_LENGTH} x {_SIZE}"
_ROWS = (
    ("decay-attention-forward", "forward, one decay per head", False, False),
    ("decay-attention", "forward and backward, one decay per head", False, True),
    ("decay-attention-channels-forward", "forward, one decay per channel", True, False),
    ("decay-attention-channels", "forward and backward, one decay per channel", True, True),
)

CASES = tuple(
    Case(
        name,
        f"{about}, {_SHAPE} float32",
        _case(channels, backward),
        bars=tuple(Bar(peer, 2) for peer in _peers(channels)),
        rounds=5,
        warmup=1,
    )
    for name, about, channels, backward in _ROWS
) + tuple(
    Case(f"gpu-{name}", f"{about}, {_SHAPE} float32", _case(channels, backward), "cuda", inner=5)
    for name, about, channels, backward in _ROWS
)
