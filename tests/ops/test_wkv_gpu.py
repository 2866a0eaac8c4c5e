"""The Triton kernels of wkv equal the reference: on a GPU, or in Triton's interpreter on tiny shapes.

The interpreter must be chosen before Triton is imported, so the last test runs this file in a process of its own.
"""

from __future__ import annotations

import os

import pytest
import torch

from carrel.ops import WKVState, wkv

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RUNS = DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
REAL = torch.float64

here = pytest.mark.skipif(
    not RUNS, reason="needs a CUDA device, or Triton's interpreter (TRITON_INTERPRET=1 in a process of its own)"
)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Tiles of 4 tokens by 4 channels, so that tiny shapes cross their borders."""
    if RUNS and DEVICE == "cpu":
        import carrel.ops._wkv as package
        from carrel.ops._wkv import gpu

        monkeypatch.setattr(package, "_TOKENS", 4)
        monkeypatch.setattr(gpu, "_TILE", 4)
        monkeypatch.setattr(gpu, "_WIDTH", 4)


def problem(batch, length, channels, dtype=REAL):
    torch.manual_seed(0)
    w, u = torch.rand(channels, dtype=REAL), torch.randn(channels, dtype=REAL)
    k, v = 2 * torch.randn(batch, length, channels, dtype=REAL), torch.randn(batch, length, channels, dtype=REAL)
    a, b, p = torch.randn(3, batch, channels, dtype=REAL)
    return [t.to(DEVICE, dtype) for t in (w, u, k, v, a, b.exp(), p)]


def run(w, u, k, v, a=None, b=None, p=None, **options):
    y, state = wkv(w, u, k, v, None if a is None else WKVState(a, b, p), **options)
    return y, *state


def agree(inputs, atol=1e-10):
    """y, the last state and all gradients, by both backends."""
    inputs = [t.requires_grad_() for t in inputs]
    got, wanted = (run(*inputs, backend=name) for name in ("gpu", "reference"))
    arrived = [torch.randn_like(t) for t in wanted]
    pairs = [*zip(got, wanted, strict=True)]
    gradients = (torch.autograd.grad(outputs, inputs, arrived) for outputs in (got, wanted))
    pairs += zip(*gradients, strict=True)
    for x, y in pairs:
        assert x.dtype == y.dtype
        torch.testing.assert_close(x, y, atol=atol * max(1, float(y.detach().abs().max())), rtol=0)


@here
@pytest.mark.parametrize("shape", [(1, 11, 5), (2, 4, 3), (1, 1, 2), (1, 8, 4)])
@pytest.mark.parametrize("given", [True, False])
def test_the_kernels_equal_the_reference(shape, given):
    agree(problem(*shape)[: 7 if given else 4])


@here
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrower_types_agree_to_their_precision(dtype):
    inputs = [t.to(dtype if i in (2, 3) else torch.float32) for i, t in enumerate(problem(1, 9, 3))]
    agree(inputs, atol=1e-5 if dtype == torch.float32 else 0.01)


@here
def test_an_endless_rate_and_keys_of_80_are_finite():
    w, u, k, v = (t.float() for t in problem(1, 9, 3)[:4])
    agree([torch.full_like(w, 1e6), u, k, v], atol=1e-5)
    agree([w, u, 80 * torch.sign(k), v], atol=1e-5)
    with torch.no_grad():
        got = run(torch.full_like(w, torch.inf), u, k, v, backend="gpu")
        torch.testing.assert_close(got, run(torch.full_like(w, torch.inf), u, k, v, backend="reference"))


@here
def test_without_gradient_pieces_are_the_whole():
    w, u, k, v, *state = problem(1, 9, 3)
    with torch.no_grad():
        whole = run(w, u, k, v, *state, backend="gpu")
        outputs = []
        for start, end in ((0, 0), (0, 1), (1, 6), (6, 9)):
            y, *state = run(w, u, k[:, start:end], v[:, start:end], *state, backend="gpu")
            outputs.append(y)
    torch.testing.assert_close((torch.cat(outputs, 1), *state), whole, atol=1e-10, rtol=0)


@pytest.mark.skipif(RUNS, reason="the tests above run here as they are")
@pytest.mark.slow
def test_the_kernels_equal_the_reference_in_tritons_interpreter(passes_in_tritons_interpreter):
    passes_in_tritons_interpreter(__file__)
