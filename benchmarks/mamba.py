"""Mamba: the block and its scan beside mambapy, transformers and the composition of torch operations.

    python -m benchmarks.mamba

prints the peak memory of one forward and backward pass of each block, each in a process of its own.
"""

from __future__ import annotations

import contextlib
import io
import logging
import resource
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from carrel.ops import linear_scan, selective_scan
from carrel.recurrent import Mamba

from .case import Bar, Case, Problem, Side

_BATCH, _LENGTH, _DIM = 2, 2048, 256
Block = Callable[[Tensor], Tensor]


def _mambapy(weights: Mapping[str, Tensor] | None, parallel: bool, device: torch.device) -> torch.nn.Module | None:
    try:
        from mambapy.mamba import MambaBlock, MambaConfig
    except ImportError:
        return None
    block: torch.nn.Module = MambaBlock(MambaConfig(d_model=_DIM, n_layers=1, pscan=parallel)).to(device)
    if weights is not None:
        block.load_state_dict(weights)
    return block


def _transformers(weights: Mapping[str, Tensor], device: torch.device) -> torch.nn.Module | None:
    try:
        from transformers import MambaConfig
        from transformers.models.mamba.modeling_mamba import MambaMixer
    except ImportError:
        return None
    logging.getLogger("transformers").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        config = MambaConfig(hidden_size=_DIM, state_size=16, expand=2, conv_kernel=4, num_hidden_layers=1)
        mixer = MambaMixer(config, layer_idx=0).to(device)
    mixer.load_state_dict(weights)
    return mixer


def _blocks(device: torch.device) -> tuple[dict[str, Block], dict[str, torch.nn.Module], dict[str, str]]:
    """Ours first; all have the same weights."""
    torch.manual_seed(0)
    ours = Mamba(_DIM).to(device)
    names = {"conv.weight": "conv1d.weight", "conv.bias": "conv1d.bias", "dt_bias": "dt_proj.bias"}
    weights = {names.get(name, name): t for name, t in ours.state_dict().items()}
    weights["conv1d.weight"] = weights["conv1d.weight"].unsqueeze(1)
    modules: dict[str, torch.nn.Module | None] = {
        "carrel Mamba": ours,
        "mambapy, parallel scan": _mambapy(weights, True, device),
        "mambapy, sequential": _mambapy(weights, False, device),
        "transformers MambaMixer": _transformers(weights, device),
    }
    there = {name: module for name, module in modules.items() if module is not None}
    calls: dict[str, Block] = dict(there)
    calls["carrel Mamba"] = lambda u: ours(u)[0]
    return calls, there, {name: "not installed" for name in modules if name not in there}


def _agreement(calls: dict[str, Block], u: Tensor) -> Callable[[], float]:
    """How far the others' outputs and input gradients are from ours, on the first tokens."""

    def check() -> float:
        u_ = u[:, :64].detach().requires_grad_()
        found = []
        for call in calls.values():
            y = call(u_)
            found.append((y.detach(), torch.autograd.grad(y.sum(), u_)[0]))
        return max(
            float((x - y).abs().max() / y.abs().max())
            for other in found[1:]
            for x, y in zip(found[0], other, strict=True)
        )

    return check


def _training(device: torch.device) -> Problem:
    calls, modules, absent = _blocks(device)
    u = torch.randn(_BATCH, _LENGTH, _DIM, device=device)
    arrived = torch.randn_like(u)
    check = _agreement(calls, u)
    slow = "mambapy, sequential"
    if calls.pop(slow, None) is not None:
        absent[slow] = "its backward writes a gradient of full size for each token: minutes at this length"

    def both(name: str) -> Side:
        weights = list(modules[name].parameters())

        def run() -> object:
            u_ = u.detach().requires_grad_()
            return torch.autograd.grad(calls[name](u_), (u_, *weights), arrived)

        return run

    calls.pop("transformers MambaMixer", None)
    return Problem(check, 1e-4, {name: both(name) for name in calls}, None, absent)


def _inference(device: torch.device) -> Problem:
    calls, _, absent = _blocks(device)
    u = torch.randn(_BATCH, _LENGTH, _DIM, device=device)

    def quiet(call: Block) -> Side:
        def run() -> object:
            with torch.no_grad():
                return call(u)

        return run

    return Problem(_agreement(calls, u), 1e-4, {name: quiet(call) for name, call in calls.items()}, None, absent)


def _composed(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> Tensor:
    step = functional.softplus(delta).unsqueeze(-1)
    h, _ = linear_scan(torch.exp(step * A), step * x.unsqueeze(-1) * B.unsqueeze(2))
    return (torch.einsum("blcn,bln->blc", h, C) + D * x) * functional.silu(z)


def _scan(batch: int, length: int, channels: int) -> Callable[[torch.device], Problem]:
    def build(device: torch.device) -> Problem:
        torch.manual_seed(0)
        shapes = ((batch, length, channels), (batch, length, 16), (channels, 16), (channels,))
        x, delta, z = (torch.randn(shapes[0], device=device).requires_grad_() for _ in range(3))
        B, C = (torch.randn(shapes[1], device=device).requires_grad_() for _ in range(2))
        A = (-torch.rand(shapes[2], device=device) - 0.1).requires_grad_()
        D = torch.randn(shapes[3], device=device).requires_grad_()
        inputs, arrived = (x, delta, A, B, C, D, z), torch.randn(shapes[0], device=device)

        def ours(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor) -> Tensor:
            return selective_scan(x, delta, A, B, C, D, z)[0]

        def both(scan: Callable[..., Tensor]) -> Side:
            return lambda: torch.autograd.grad(scan(*inputs), inputs, arrived)

        def check() -> float:
            short = [t[:, :300] if t.ndim == 3 else t for t in inputs]
            got, wanted = ours(*short), _composed(*(t.double() for t in short))
            pairs = [(got, wanted)]
            g = arrived[:, :300]
            gradients = (torch.autograd.grad(y, inputs, g.to(y.dtype)) for y in (got, wanted))
            pairs += zip(*gradients, strict=True)
            return max(float(((x - y).abs().max() / y.abs().max()).detach()) for x, y in pairs)

        sides = {"carrel selective_scan": both(ours), "the same with linear_scan": both(_composed)}
        return Problem(check, 1e-4, sides)

    return build


CASES = (
    Case(
        "mamba",
        f"forward and backward, {_BATCH} x {_LENGTH} x {_DIM}, expand 2, 16 states, float32",
        _training,
        bars=(Bar("mambapy, parallel scan", 8),),
        rounds=5,
        warmup=1,
    ),
    Case(
        "mamba-forward",
        f"no gradient, {_BATCH} x {_LENGTH} x {_DIM}, expand 2, 16 states, float32",
        _inference,
        bars=(Bar("transformers MambaMixer", 4),),
        rounds=5,
        warmup=1,
    ),
    Case(
        "selective-scan",
        "forward and backward, 4 x 2048 x 256, 16 states, float32",
        _scan(4, 2048, 256),
        bars=(Bar("the same with linear_scan", 3),),
        rounds=5,
        warmup=1,
    ),
    Case(
        "gpu-selective-scan",
        "forward and backward, 8 x 4096 x 1024, 16 states, float32",
        _scan(8, 4096, 1024),
        "cuda",
        rounds=5,
        warmup=1,
    ),
)


def _peak(name: str) -> float:
    """MiB that one pass adds to this process after a pass over a few tokens."""
    device = torch.device("cpu")
    torch.set_num_threads(1)
    calls, _, _ = _blocks(device)
    call = calls[name]

    def high() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    torch.autograd.backward(call(torch.randn(_BATCH, 8, _DIM)).sum())
    before = high()
    torch.autograd.backward(call(torch.randn(_BATCH, _LENGTH, _DIM)).sum())
    return high() - before


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(_peak(sys.argv[1]))
        sys.exit()
    peaks = {}
    for name in ("carrel Mamba", "mambapy, parallel scan"):
        command = [sys.executable, "-m", "benchmarks.mamba", name]
        peaks[name] = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        print(f"{name:<24} {peaks[name]:8.0f} MiB  {peaks[name] / peaks['carrel Mamba']:.1f} times ours")
