"""The gated attention unit: y = (u * A v) W_o, A_ij = relu(q_i.k_j / sqrt s)^2 / n for j <= i."""

from __future__ import annotations

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import silu

from carrel.attention import GAU, GAUEncoder
from carrel.layers import KVCache, parameter_groups, rotary_frequencies
from carrel.testing import check_streaming

KINDS = {
    "relu2": {},
    "n2": {"scaling": "n2"},
    "fixed count": {"count": 7},
    "no positions": {"rotary_base": None},
    "softmax": {"normalizer": "softmax"},
    "softmax, odd width": {"normalizer": "softmax", "expansion": 1.5},
}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made(kind=GAU, dim=8, length=19, batch=2, **options):
    torch.manual_seed(0)
    module = kind(dim, **({"key_dim": 6} | options)).double()
    with torch.no_grad():
        module.gates.gamma.normal_(1.0)
        module.gates.beta.normal_(std=0.2)
    return module, torch.randn(batch, length, dim, dtype=torch.float64)


def turned(x, base):
    """Each pair of channels times e^{i t θ}."""
    if base is None:
        return x
    left, right = x.chunk(2, -1)
    angle = torch.arange(x.shape[1], dtype=torch.float64)[:, None] * rotary_frequencies(x.shape[-1], base)
    z = torch.complex(left, right) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], -1)


def parts(module, x, base=10000.0):
    """u, v, q, k, written out."""
    g = module.gates
    u, v, z = (silu(x @ w.T) for w in g.uvz.weight.split([g.width, g.width, g.key_dim]))
    q, k = (turned(z * g.gamma[m] + g.beta[m], base) for m in range(2))
    return u, v, q, k


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_equation(kind):
    mixer, x = made(**KINDS[kind])
    u, v, q, k = parts(mixer, x, None if kind == "no positions" else 10000.0)
    n = torch.arange(1.0, 20.0, dtype=torch.float64)[:, None]
    past = torch.ones(19, 19, dtype=torch.bool).tril()
    scores = q @ k.mT
    if kind.startswith("softmax"):
        scores = scores * torch.log(n.clamp(min=2)) / math.log(512) / math.sqrt(6)
        A = torch.softmax(scores.masked_fill(~past, -math.inf), -1)
    elif kind == "n2":
        A = torch.relu(scores / n).square() * past
    else:
        A = torch.relu(scores / math.sqrt(6)).square() * past / (7 if kind == "fixed count" else n)
    torch.testing.assert_close(mixer(x)[0], (u * (A @ v)) @ mixer.gates.out.weight.T, atol=1e-12, rtol=0)


@pytest.mark.parametrize("scaling", ["ns", "n2"])
def test_the_encoder_is_the_equation_over_all_tokens_that_there_are(scaling):
    encoder, x = made(GAUEncoder, scaling=scaling)
    mask = torch.ones(2, 19, dtype=torch.bool)
    mask[1, 12:] = mask[0, 3] = False
    u, v, q, k = parts(encoder, x)
    n = mask.sum(1)[:, None, None]
    A = torch.relu(q @ k.mT / (math.sqrt(6) if scaling == "ns" else n)).square() / (n if scaling == "ns" else 1)
    wanted = (u * ((A * mask[:, None]) @ v)) @ encoder.gates.out.weight.T
    torch.testing.assert_close(encoder(x, mask), wanted, atol=1e-12, rtol=0)
    torch.testing.assert_close(encoder(x[1:, :12]), encoder(x, mask)[1:, :12], atol=1e-12, rtol=0)


def test_where_each_token_sees_itself_alone_with_weight_one_it_is_a_gated_linear_unit():
    mixer, x = made()
    with torch.no_grad():
        mixer.gates.gamma.zero_()
        mixer.gates.beta.fill_(6**-0.25)  # q.k is the root of s
    u, v = (silu(x @ w.T) for w in mixer.gates.uvz.weight.split([16, 16, 6])[:2])
    alone = torch.cat([mixer(token)[0] for token in x.split(1, 1)], 1)
    torch.testing.assert_close(alone, mixer.gates.out(u * v), atol=1e-12, rtol=0)


def test_two_layers_have_about_the_weights_of_attention_and_a_wide_mlp():
    assert 2 * sum(p.numel() for p in GAU(512).parameters()) == pytest.approx(12 * 512**2, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_streaming(kind):
    check_streaming(made(**KINDS[kind])[0], 8)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.lists(st.integers(0, 25), max_size=6).map(sorted))
def test_every_split_gives_the_same(kind, cuts):
    check_streaming(made(**KINDS[kind])[0], 8, cuts=cuts)


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_piece_goes_on_from_a_state(kind):
    mixer, x = made(length=60, **KINDS[kind])
    whole, _ = mixer(x)
    y, state = mixer(x[:, :20])
    torch.testing.assert_close(torch.cat([y, mixer(x[:, 20:], state)[0]], 1), whole, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["relu2", "n2", "softmax"])
def test_rows_may_stand_at_different_positions(kind):
    mixer, x = made(**KINDS[kind])
    short, long = (mixer(x[row : row + 1, :n])[1] for row, n in ((0, 4), (1, 9)))
    filled = [torch.cat([t.new_full((1, 1, 5, t.shape[3]), 7.0), t], 2) for t in short[:2]]
    joined = KVCache(*(torch.cat(pair) for pair in zip((*filled, short.pos), long, strict=True)))
    y, _ = mixer(torch.cat([x[:1, 4:10], x[1:, 9:15]]), joined)
    wanted = [mixer(x[:1])[0][:, 4:10], mixer(x[1:])[0][:, 9:15]]
    torch.testing.assert_close(y, torch.cat(wanted), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["relu2", "softmax"])
def test_gradients_are_right_in_every_parameter_and_the_input(kind):
    mixer, x = made(dim=3, length=4, batch=1, key_dim=2, expansion=1, **KINDS[kind])
    names = [name for name, _ in mixer.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(mixer, dict(zip(names, values, strict=True)), (x,))[0]

    assert torch.autograd.gradcheck(run, [t.detach().requires_grad_() for t in (x, *mixer.parameters())])


def test_scale_and_shift_are_kept_from_weight_decay():
    mixer, _ = made()
    kept = {id(p) for p in parameter_groups(mixer, weight_decay=0.1)[1]["params"]}
    assert kept == {id(mixer.gates.gamma), id(mixer.gates.beta)}


def test_half_precision_stays_half_and_near():
    mixer, x = made(length=100)
    exact = mixer(x)[0]
    y, state = mixer.to(torch.bfloat16)(x.bfloat16())
    assert y.dtype == state.k.dtype == torch.bfloat16
    assert (y - exact).abs().mean() < 0.05 * exact.abs().mean()


@pytest.mark.parametrize("kind", ["relu2", "softmax"])
def test_it_compiles_as_one_graph(kind):
    torch.compiler.reset()
    mixer, x = made(**KINDS[kind])
    state = KVCache(*(t.detach() for t in mixer(x)[1]))
    compiled = torch.compile(mixer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, state)[0], mixer(x, state)[0], atol=1e-10, rtol=0)


@pytest.mark.parametrize("kind", [GAU, GAUEncoder])
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dim": 0}, "wants dim to be a whole number of at least 1, not 0"),
        ({"dim": 8, "key_dim": 2.0}, "wants key_dim to be a whole number of at least 1, not 2.0"),
        ({"dim": 8, "expansion": 0}, "wants an expansion that leaves a width of at least 1, not 0"),
        ({"dim": 8, "key_dim": 3}, "even number of channels"),
        ({"dim": 8, "scaling": "n"}, "wants a scaling among ns, n2, not 'n'"),
        ({"dim": 8, "count": 0}, "wants count to be a whole number of at least 1, with relu2 only, not 0"),
    ],
)
def test_bad_arguments_are_named(kind, arguments, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        kind(**arguments)


def test_a_bad_normalizer_is_named():
    with pytest.raises(ValueError, match="a normalizer among relu2, softmax, not 'relu'"):
        GAU(8, normalizer="relu")
    with pytest.raises(ValueError, match="with relu2 only, not 5"):
        GAU(8, normalizer="softmax", count=5)


@pytest.mark.parametrize(
    ("x", "state", "sentence"),
    [
        (torch.zeros(2, 8), None, "GAU wants x of shape (batch, length, 8), not (2, 8)"),
        (torch.zeros(2, 1, 8), (1,), "GAU wants a KVCache or None as its state, not tuple"),
        (
            torch.zeros(2, 1, 8),
            KVCache(torch.zeros(2, 1, 3, 6), torch.zeros(2, 1, 3, 6), torch.zeros(2)),
            "v of shape (2, 1, tokens, 16), not (2, 1, 3, 6)",
        ),
        (
            torch.zeros(2, 1, 8),
            KVCache(torch.zeros(2, 1, 3, 6), torch.zeros(2, 1, 3, 16), torch.zeros(1)),
            "a state with pos of shape (2,), not (1,)",
        ),
    ],
)
def test_a_wrong_input_or_state_is_named(x, state, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        made()[0].float()(x, state)


def test_a_wrong_mask_is_named():
    with pytest.raises(ValueError, match=re.escape("a mask of shape (2, 3) and type torch.bool, not (2, 4) and")):
        GAUEncoder(8, key_dim=6)(torch.zeros(2, 3, 8), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="wants x of shape"):
        GAUEncoder(8, key_dim=6)(torch.zeros(2, 3, 9))
