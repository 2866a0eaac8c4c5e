"""FLASH: within a chunk relu(q.k / sqrt s)^2 / C, and the average of q'.k' v over the tokens of earlier chunks."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import silu

from carrel.attention import FLASH, GAU, FLASHEncoder, FLASHState
from carrel.layers import rotary_frequencies
from carrel.testing import check_streaming


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made(kind=FLASH, dim=8, length=19, batch=2, **options):
    torch.manual_seed(0)
    module = kind(dim, **({"key_dim": 6, "chunk": 5} | options)).double()
    with torch.no_grad():
        module.gates.gamma.normal_(1.0)
        module.gates.beta.normal_(std=0.2)
    return module, torch.randn(batch, length, dim, dtype=torch.float64)


def turned(x):
    """Each pair of channels times e^{i t θ}."""
    left, right = x.chunk(2, -1)
    angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * rotary_frequencies(x.shape[-1], 10000.0)
    z = torch.complex(left, right) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], -1)


def parts(module, x):
    """u, v, q, k, q', k', written out."""
    g = module.gates
    u, v, z = (silu(x @ w.T) for w in g.uvz.weight.split([g.width, g.width, g.key_dim]))
    return u, v, *(turned(z * g.gamma[m] + g.beta[m]) for m in range(4))


def near(q, k, scaling, chunk):
    """The weights within chunks, for all pairs of the sequence."""
    of = torch.arange(q.shape[1]) // chunk
    scores = q @ k.mT
    A = torch.relu(scores / chunk).square() if scaling == "n2" else torch.relu(scores).square() / (q.shape[-1] * chunk)
    return A * (of[:, None] == of)


@pytest.mark.parametrize("scaling", ["ns", "n2"])
@pytest.mark.parametrize("length", [1, 4, 5, 6, 10, 19])
def test_it_is_the_equation(length, scaling):
    mixer, x = made(length=length, scaling=scaling)
    u, v, q, k, ql, kl = parts(mixer, x)
    i = torch.arange(length)
    closed = i // 5 * 5  # tokens of the chunks before
    far = (ql @ kl.mT) * (i < closed[:, None]) / closed.clamp(min=1)[:, None]
    o = (near(q, k, scaling, 5).tril() + far) @ v
    torch.testing.assert_close(mixer(x)[0], (u * o) @ mixer.gates.out.weight.T, atol=1e-12, rtol=0)


@pytest.mark.parametrize("scaling", ["ns", "n2"])
def test_the_encoder_is_the_equation_over_all_tokens_that_there_are(scaling):
    encoder, x = made(FLASHEncoder, scaling=scaling)
    mask = torch.ones(2, 19, dtype=torch.bool)
    mask[1, 12:] = mask[0, 3] = False
    u, v, q, k, ql, kl = parts(encoder, x)
    weights = near(q, k, scaling, 5) + (ql @ kl.mT) / mask.sum(1)[:, None, None]
    wanted = (u * ((weights * mask[:, None]) @ v)) @ encoder.gates.out.weight.T
    torch.testing.assert_close(encoder(x, mask), wanted, atol=1e-12, rtol=0)
    torch.testing.assert_close(encoder(x[1:, :12]), encoder(x, mask)[1:, :12], atol=1e-12, rtol=0)


@pytest.mark.parametrize("scaling", ["ns", "n2"])
@pytest.mark.parametrize("length", [12, 20])
def test_a_chunk_as_long_as_the_sequence_is_the_gated_attention_unit_with_that_count(length, scaling):
    flash, x = made(length=length, chunk=20, scaling=scaling)
    gau = GAU(8, key_dim=6, count=20, scaling=scaling).double()
    weights = flash.state_dict()
    gau.load_state_dict(weights | {name: weights[name][:2] for name in ("gates.gamma", "gates.beta")})
    torch.testing.assert_close(flash(x)[0], gau(x)[0], atol=1e-12, rtol=0)


def test_where_each_token_sees_itself_alone_with_weight_one_it_is_a_gated_linear_unit():
    flash, x = made(chunk=1)
    with torch.no_grad():
        flash.gates.gamma.zero_()
        flash.gates.beta.zero_()
        flash.gates.beta[:2] = 6**-0.25  # q.k is the root of s
    u, v = (silu(x @ w.T) for w in flash.gates.uvz.weight.split([16, 16, 6])[:2])
    torch.testing.assert_close(flash(x)[0], flash.gates.out(u * v), atol=1e-12, rtol=0)


def test_the_state_is_the_sums_and_the_open_chunk():
    mixer, x = made(length=13)
    _, v, _, k, _, kl = parts(mixer, x)
    _, state = mixer(x)
    zeros = torch.zeros(2, 2, 1, dtype=torch.float64)
    for got, wanted in (
        (state.S, kl[:, :10].mT @ v[:, :10]),
        (state.open, kl[:, 10:].mT @ v[:, 10:]),
        (state.k, torch.cat([k[:, 10:], zeros.expand(2, 2, 6)], 1)),
        (state.v, torch.cat([v[:, 10:], zeros.expand(2, 2, 16)], 1)),
    ):
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)


def test_the_state_does_not_grow():
    mixer, x = made(length=40)
    sizes = [[part.shape for part in mixer(x[:, :n])[1]] for n in (0, 1, 5, 40)]
    assert all(size == sizes[0] for size in sizes)


@pytest.mark.parametrize("scaling", ["ns", "n2"])
@pytest.mark.parametrize("chunk", [1, 4, 7])
def test_streaming(chunk, scaling):
    check_streaming(made(chunk=chunk, scaling=scaling)[0], 8)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.lists(st.integers(0, 25), max_size=6).map(sorted))
def test_every_split_gives_the_same(chunk, cuts):
    check_streaming(made(chunk=chunk)[0], 8, cuts=cuts)


@pytest.mark.parametrize("more", [1, 3, 6, 14])
def test_rows_may_stand_at_different_positions(more):
    mixer, x = made(length=30)
    states = [mixer(x[row : row + 1, :n])[1] for row, n in ((0, 4), (1, 12))]
    joined = FLASHState(*(torch.cat(pair) for pair in zip(*states, strict=True)))
    y, after = mixer(torch.cat([x[:1, 4 : 4 + more], x[1:, 12 : 12 + more]]), joined)
    wanted = [mixer(x[:1])[0][:, 4 : 4 + more], mixer(x[1:])[0][:, 12 : 12 + more]]
    torch.testing.assert_close(y, torch.cat(wanted), atol=1e-12, rtol=0)
    for row, n in ((0, 4), (1, 12)):
        for got, want in zip(after, mixer(x[row : row + 1, : n + more])[1], strict=True):
            torch.testing.assert_close(got[row : row + 1], want, atol=1e-12, rtol=0)


@pytest.mark.parametrize("pieces", [[4], [2, 2], [1, 1, 1, 1]])
def test_gradients_are_right_in_every_parameter_and_the_input(pieces):
    mixer, x = made(dim=3, length=4, batch=1, key_dim=2, expansion=1, chunk=2)
    names = [name for name, _ in mixer.named_parameters()]

    def run(x, *values):
        outputs, state = [], None
        for piece in x.split(pieces, 1):
            y, state = torch.func.functional_call(mixer, dict(zip(names, values, strict=True)), (piece, state))
            outputs.append(y)
        return torch.cat(outputs, 1)

    assert torch.autograd.gradcheck(run, [t.detach().requires_grad_() for t in (x, *mixer.parameters())])


def test_what_is_held_grows_with_the_length_and_not_with_its_square():
    mixer = FLASH(16, key_dim=8, chunk=64)
    x = torch.randn(1, 30000, 16)  # whose pairs would take 3.6 GB
    y = mixer(x)[0]
    assert bool(y.isfinite().all())
    torch.testing.assert_close(y[:, :500], mixer(x[:, :500])[0], atol=1e-5, rtol=0)


def test_half_precision_keeps_float32_sums():
    mixer, x = made(length=100)
    exact = mixer(x)[0]
    y, state = mixer.to(torch.bfloat16)(x.bfloat16())
    assert (y.dtype, state.v.dtype, state.S.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert (y - exact).abs().mean() < 0.05 * exact.abs().mean()


@pytest.mark.parametrize("length", [2, 13])
def test_it_compiles_as_one_graph(length):
    torch.compiler.reset()
    mixer, x = made(length=length)
    state = FLASHState(*(t.detach() for t in mixer(x)[1]))
    compiled = torch.compile(mixer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, state)[0], mixer(x, state)[0], atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", [FLASH, FLASHEncoder])
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dim": 8, "chunk": 0}, "wants chunk to be a whole number of at least 1, not 0"),
        ({"dim": 8, "scaling": "n"}, "wants a scaling among ns, n2, not 'n'"),
        ({"dim": 8, "key_dim": 3}, "even number of channels"),
        ({"dim": 8, "expansion": math.nan}, "an expansion that leaves a width of at least 1, not nan"),
    ],
)
def test_bad_arguments_are_named(kind, arguments, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        kind(**arguments)


def test_a_state_of_another_chunk_size_is_refused():
    _, state = made(chunk=4)[0](torch.zeros(2, 3, 8, dtype=torch.float64))
    with pytest.raises(ValueError, match=re.escape("FLASH wants a state with k of shape (2, 5, 6), not (2, 4, 6)")):
        made()[0](torch.zeros(2, 1, 8, dtype=torch.float64), state)


def test_a_wrong_input_or_state_is_named():
    mixer, x = made()
    with pytest.raises(ValueError, match=re.escape("x of shape (batch, length, 8), not (2, 19, 7)")):
        mixer(x[..., :7])
    with pytest.raises(ValueError, match="wants FLASHState or None as its state, not list"):
        mixer(x, [])
    with pytest.raises(ValueError, match=re.escape("S of shape (2, 6, 16), not (1, 6, 16)")):
        mixer(x, mixer(x[:1])[1])
    with pytest.raises(ValueError, match="a mask of shape"):
        made(FLASHEncoder)[0](x, torch.ones(2, 19))
