"""The Triton kernels of selective_scan equal the reference: on a GPU, or in Triton's interpreter on tiny shapes.

The interpreter must be chosen before Triton is imported, so the last test runs this file in a process of its own.
"""

from __future__ import annotations

import os

import pytest
import torch

from carrel.ops import selective_scan

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RUNS = DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
REAL = torch.float64
NAMES = ("x", "delta", "A", "B", "C", "D", "z", "h0", "delta_bias")

here = pytest.mark.skipif(
    not RUNS, reason="needs a CUDA device, or Triton's interpreter (TRITON_INTERPRET=1 in a process of its own)"
)


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    """Tiles of 4 tokens by 4 channels, so that tiny shapes cross their borders."""
    if RUNS and DEVICE == "cpu":
        import carrel.ops._selective_scan as package
        from carrel.ops._selective_scan import gpu

        monkeypatch.setattr(package, "_TILE", 4)
        monkeypatch.setattr(gpu, "_TILE", 4)
        monkeypatch.setattr(gpu, "_WIDTH", 4)


def problem(batch, length, channels, state, groups=None, dtype=REAL):
    torch.manual_seed(0)
    shared = (batch, length, state) if groups is None else (batch, length, groups, state)
    per_token, per_channel = (batch, length, channels), (channels,)
    shapes = (per_token, per_token, (channels, state), shared, shared, per_channel, per_token)
    shapes = (*shapes, (batch, channels, state), per_channel)
    tensors = {name: torch.randn(shape, dtype=REAL) for name, shape in zip(NAMES, shapes, strict=True)}
    tensors["A"] = -tensors["A"].exp()
    return {name: t.to(DEVICE, dtype) for name, t in tensors.items()}


def agree(given, atol=1e-10, **options):
    """y, the last state and all gradients, by both backends."""
    inputs = [t.requires_grad_() for t in given.values() if t is not None]
    got, wanted = (selective_scan(**given, **options, backend=name) for name in ("gpu", "reference"))
    arrived = [torch.randn_like(t) for t in wanted]
    pairs = [*zip(got, wanted, strict=True)]
    gradients = (torch.autograd.grad(outputs, inputs, arrived) for outputs in (got, wanted))
    pairs += zip(*gradients, strict=True)
    for x, y in pairs:
        assert x.dtype == y.dtype
        torch.testing.assert_close(x, y, atol=atol * max(1, float(y.detach().abs().max())), rtol=0)


@here
@pytest.mark.parametrize("shape", [(1, 11, 5, 2), (2, 4, 3, 1), (1, 1, 2, 3), (1, 5, 4, 1, 2)])
def test_the_kernels_equal_the_reference(shape):
    agree(problem(*shape))


@here
def test_the_step_may_come_as_it_is_and_the_gate_be_absent():
    given = problem(1, 6, 3, 1) | {"z": None}
    given["delta"], given["delta_bias"] = given["delta"].abs(), given["delta_bias"].abs()
    agree(given, delta_softplus=False)


@here
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrower_types_agree_to_their_precision(dtype):
    given = problem(1, 5, 3, 2)
    narrow = ("x", "delta", "B", "C", "z")
    given = {name: t.to(dtype if name in narrow else torch.float32) for name, t in given.items()}
    agree(given, atol=1e-5 if dtype == torch.float32 else 0.01)


@here
def test_without_gradient_pieces_are_the_whole():
    given = problem(1, 9, 3, 2)
    with torch.no_grad():
        whole = selective_scan(**given, backend="gpu")
        outputs, h = [], given["h0"]
        for a, b in ((0, 0), (0, 1), (1, 6), (6, 9)):
            piece = {name: t[:, a:b] if name in ("x", "delta", "B", "C", "z") else t for name, t in given.items()}
            y, h = selective_scan(**(piece | {"h0": h}), backend="gpu")
            outputs.append(y)
    torch.testing.assert_close((torch.cat(outputs, 1), h), whole, atol=1e-10, rtol=0)


@here
def test_small_steps_keep_their_digits_in_float32():
    """softplus(-12) is 6e-6, of which log(1 + e^-12) in float32 keeps two digits."""
    given = problem(1, 4, 2, 1, dtype=torch.float32) | {"delta_bias": None, "D": None, "z": None, "h0": None}
    given["delta"] = torch.full_like(given["x"], -12.0)
    y = selective_scan(**given, backend="gpu")[0]
    exact = selective_scan(**{n: t if t is None else t.double() for n, t in given.items()}, backend="reference")[0]
    torch.testing.assert_close(y.double(), exact, atol=0, rtol=1e-5)


@pytest.mark.skipif(RUNS, reason="the tests above run here as they are")
@pytest.mark.slow
def test_the_kernels_equal_the_reference_in_tritons_interpreter(passes_in_tritons_interpreter):
    passes_in_tritons_interpreter(__file__)
