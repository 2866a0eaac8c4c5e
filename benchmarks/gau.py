"""Attention by squares of positive scores, and blocks of it: GAU and FLASH beside softmax attention with an MLP."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from carrel.attention import FLASH, GAU
from carrel.layers import RMSNorm
from carrel.ops import relu2_attention

from .case import Bar, Case, Problem, Side

_DIM, _HEADS, _KEY, _WIDTH = 256, 4, 128, 512
_OURS, _PLAIN, _SOFTMAX = "carrel relu2_attention", "torch, all pairs", "torch SDPA, 4 heads of 64"
_TWO_FLASH, _TWO_GAU, _BLOCK = "two carrel FLASH", "two carrel GAU", "torch SDPA and feed-forward"
_FLASH_PEER, _GAU_PEER = "two FLASH of FLASH-pytorch", "two GAU of FLASH-pytorch"


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As the paper's listing, with 1 / (n s)."""
    length = q.shape[2]
    seen = torch.arange(1, length + 1, dtype=q.dtype, device=q.device).unsqueeze(1)
    return (torch.relu(q @ k.mT * q.shape[-1] ** -0.5).square() / seen).tril() @ v


def _softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return scaled_dot_product_attention(q, k, v, is_causal=True)


def _timed(run: Callable[[], Tensor], leaves: list[Tensor], backward: bool) -> Side:
    def side() -> object:
        if backward:
            return torch.autograd.grad(run().sum(), leaves)
        with torch.no_grad():
            return run()

    return side


def _attention(length: int, backward: bool) -> Callable[[torch.device], Problem]:
    """The one head of a GAU of 256 channels, beside what attention of 256 channels does at that length."""

    def build(device: torch.device) -> Problem:
        torch.manual_seed(0)

        def noise(heads: int, size: int) -> Tensor:
            return torch.randn(1, heads, length, size, device=device, requires_grad=True)

        ours, softmax = [noise(1, _KEY), noise(1, _KEY), noise(1, _WIDTH)], [noise(_HEADS, 64) for _ in range(3)]

        def check() -> float:
            few = [x[:, :, :300].detach().double().requires_grad_() for x in ours]
            found = []
            for form in (relu2_attention, _plain):
                o = form(*few)
                found.append((o, *torch.autograd.grad(o.square().sum(), few)))
            return max(float((x - y).detach().abs().max()) for x, y in zip(*found, strict=True))

        sides = {_OURS: _timed(lambda: relu2_attention(*ours), ours, backward)}
        absent = {}
        if length <= 4096:
            sides[_PLAIN] = _timed(lambda: _plain(*ours), ours, backward)
        else:
            absent[_PLAIN] = "holds several times all pairs"
        sides[_SOFTMAX] = _timed(lambda: _softmax(*softmax), softmax, backward)
        return Problem(check, 1e-10, sides, absent=absent)

    return build


class _Residual(nn.Module):
    """x + f(norm(x)), where f may be a mixer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.norm, self.inner = RMSNorm(_DIM), inner

    def forward(self, x: Tensor) -> Tensor:
        found = self.inner(self.norm(x))
        y: Tensor = x + (found[0] if isinstance(found, tuple) else found)
        return y


class _Heads(nn.Module):
    """Causal softmax attention and no more: not even positions."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(_DIM, 3 * _DIM, bias=False), nn.Linear(_DIM, _DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, _HEADS, -1)).permute(2, 0, 3, 1, 4)
        y: Tensor = self.out(_softmax(q, k, v).transpose(1, 2).flatten(2))
        return y


def _feed_forward() -> nn.Module:
    return nn.Sequential(nn.Linear(_DIM, 4 * _DIM), nn.GELU(), nn.Linear(4 * _DIM, _DIM))


def _peer() -> ModuleType | str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module("flash_pytorch.flash_pytorch")
        except ImportError as error:
            return f"not installed ({error})"


def _blocks(length: int, backward: bool) -> Callable[[torch.device], Problem]:
    def build(device: torch.device) -> Problem:
        torch.manual_seed(0)
        blocks: dict[str, nn.Module] = {
            _TWO_FLASH: nn.Sequential(*(_Residual(FLASH(_DIM)) for _ in range(2))),
            _TWO_GAU: nn.Sequential(*(_Residual(GAU(_DIM)) for _ in range(2))),
            _BLOCK: nn.Sequential(_Residual(_Heads()), _Residual(_feed_forward())),
        }
        absent, peer = {}, _peer()
        if isinstance(peer, str):
            absent = dict.fromkeys((_FLASH_PEER, _GAU_PEER), peer)
        else:  # norm and residual are within; it turns nothing by positions
            blocks[_FLASH_PEER] = nn.Sequential(*(peer.FLASH(dim=_DIM, causal=True) for _ in range(2)))
            if length <= 4096:
                blocks[_GAU_PEER] = nn.Sequential(*(peer.GAU(dim=_DIM, causal=True) for _ in range(2)))
            else:
                absent[_GAU_PEER] = "holds several times all pairs"
        x = torch.randn(1, length, _DIM, device=device)
        for block in blocks.values():
            block.to(device)

        def check() -> float:
            """FLASH and GAU of one chunk agree."""
            gau, flash = GAU(_DIM, count=256).to(device), FLASH(_DIM).to(device)
            weights = dict(gau.state_dict())
            for name in ("gates.gamma", "gates.beta"):
                weights[name] = torch.cat((weights[name], torch.randn_like(weights[name])))
            flash.load_state_dict(weights)
            few = x[:, :256]
            with torch.no_grad():
                return float((gau(few)[0] - flash(few)[0]).abs().max())

        def side(block: nn.Module) -> Side:
            return _timed(lambda: block(x), list(block.parameters()), backward)

        return Problem(check, 1e-5, {name: side(block) for name, block in blocks.items()}, absent=absent)

    return build


def _about(backward: bool, rest: str) -> str:
    return f"{'forward and backward' if backward else 'forward'}, {rest}, float32"


CASES = (
    *(
        Case(
            f"relu2-attention-{length}{'' if backward else '-forward'}",
            _about(backward, f"1 head, {length} tokens, keys of {_KEY}, values of {_WIDTH}"),
            _attention(length, backward),
            rounds=3,
            warmup=1,
        )
        for length in (2048, 4096, 8192)
        for backward in (False, True)
    ),
    *(
        Case(
            f"gau-{length}{'' if backward else '-forward'}",
            _about(backward, f"one block of {_DIM} channels, {length} tokens"),
            _blocks(length, backward),
            bars=(Bar(_BLOCK, 1.2), Bar(_TWO_GAU, 3)) if length == 8192 else (),
            rounds=3,
            warmup=1,
        )
        for length in (2048, 4096, 8192)
        for backward in (False, True)
    ),
)
