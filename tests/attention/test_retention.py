"""Retention and gated linear attention: S_t = diag(a_t) S_{t-1} + k_t v_t', o_t = S_t' q_t."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from carrel.attention import GatedLinearAttention, GLAState, Retention, RetentionState
from carrel.layers import parameter_groups, rotary_frequencies
from carrel.testing import check_streaming

MAKE = {
    "retention": lambda **o: Retention(8, 2, **o),
    "gla": lambda **o: GatedLinearAttention(8, 2, rank=3, key_dim=3, **o),
}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made(kind, **options):
    torch.manual_seed(0)
    mixer = MAKE[kind](**options).double()
    with torch.no_grad():
        for p in mixer.parameters():
            if p.dim() == 1:
                p.normal_()
    return mixer, torch.randn(2, 9, 8, dtype=torch.float64)


def heads(x, count):
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def turned(x, base):
    """Each pair of channels times e^{i t θ}."""
    left, right = x.chunk(2, -1)
    angle = torch.arange(x.shape[2], dtype=torch.float64)[:, None] * rotary_frequencies(x.shape[-1], base)
    z = torch.complex(left, right) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag], -1)


@pytest.mark.parametrize(("decay", "base"), [(None, 100.0), ([0.5, 1.0], None), (0.25, 10000.0)])
def test_retention_is_masked_attention_with_powers_of_its_decay(decay, base):
    mixer, x = made("retention", decay=decay, rotary_base=base)
    q, k, v, gate = (heads(t, 2) for t in mixer.qkvg(x).chunk(4, -1))
    if base is not None:
        q, k = turned(q, base), turned(k, base)
    rates = [1 - 1 / 32, 1 - 1 / 64] if decay is None else decay if isinstance(decay, list) else [decay] * 2
    back = torch.arange(9)[:, None] - torch.arange(9)
    powers = torch.stack([torch.where(back >= 0, float(g) ** back.clamp(min=0), 0.0) for g in rates]).double()
    o = ((q @ k.mT) / math.sqrt(4) * powers) @ v
    o = (o - o.mean(-1, keepdim=True)) / (o.var(-1, unbiased=False, keepdim=True) + mixer.eps).sqrt()
    wanted = mixer.out((gate * torch.sigmoid(gate) * o).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x)[0], wanted, atol=1e-6 if decay is None else 1e-11, rtol=0)


def test_gated_linear_attention_is_the_recurrence():
    mixer, x = made("gla", temperature=4.0)
    q, k = (heads(t, 2) for t in mixer.qk(x).chunk(2, -1))
    v, gate = (heads(t, 2) for t in mixer.vg(x).chunk(2, -1))
    a = heads(torch.sigmoid(mixer.forget_up(mixer.forget_down(x)) + mixer.forget_bias) ** 0.25, 2)
    S, rows = torch.zeros(2, 2, 3, 4, dtype=torch.float64), []
    for t in range(9):
        S = a[:, :, t, :, None] * S + k[:, :, t, :, None] * v[:, :, t, None, :]
        rows.append((q[:, :, t, :, None] * S).sum(2) / math.sqrt(3))
    o = torch.stack(rows, 2)
    o = o / (o.square().mean(-1, keepdim=True) + mixer.norm.eps).sqrt() * mixer.norm.weight
    wanted = mixer.out((functional.silu(gate) * o).transpose(1, 2).flatten(2))
    y, state = mixer(x)
    torch.testing.assert_close(y, wanted, atol=1e-12, rtol=0)
    torch.testing.assert_close(state.S, S, atol=1e-12, rtol=0)


def test_an_infinite_temperature_forgets_nothing():
    mixer, x = made("gla", temperature=math.inf)
    k, v = heads(mixer.qk(x).chunk(2, -1)[1], 2), heads(mixer.vg(x).chunk(2, -1)[0], 2)
    torch.testing.assert_close(mixer(x)[1].S, k.mT @ v, atol=1e-12, rtol=0)


def test_a_gate_that_closes_leaves_the_token_alone():
    mixer, x = made("gla")
    with torch.no_grad():
        mixer.forget_bias.fill_(-1e6)
    whole, _ = mixer(x)
    alone = torch.cat([mixer(x[:, t : t + 1])[0] for t in range(9)], 1)
    torch.testing.assert_close(whole, alone, atol=1e-12, rtol=0)


def test_only_distances_matter_to_retention():
    mixer, x = made("retention")
    later = RetentionState(torch.zeros(2, 2, 4, 4, dtype=torch.float64), torch.tensor([7, 100_000]))
    torch.testing.assert_close(mixer(x, later)[0], mixer(x)[0], atol=1e-9, rtol=0)


def test_the_decays_are_the_papers():
    assert Retention(16, 8).decay == tuple(1 - 2.0 ** -(5 + h) for h in range(8))


@pytest.mark.parametrize("kind", MAKE)
def test_streaming(kind):
    check_streaming(made(kind)[0], 8)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(sorted(MAKE)), st.lists(st.integers(0, 13), max_size=6).map(sorted))
def test_every_split_gives_the_same(kind, cuts):
    check_streaming(made(kind)[0], 8, cuts=cuts)


@pytest.mark.parametrize("kind", MAKE)
def test_gradients_are_right_in_every_parameter_the_input_and_the_state(kind):
    torch.manual_seed(0)
    mixer = (Retention(4, 2) if kind == "retention" else GatedLinearAttention(4, 2, rank=1, key_dim=1)).double()
    x = torch.randn(1, 3, 4, dtype=torch.float64)
    _, before = mixer(torch.randn(1, 2, 4, dtype=torch.float64))
    names = [name for name, _ in mixer.named_parameters()]

    def run(x, S, *values):
        return torch.func.functional_call(mixer, dict(zip(names, values, strict=True)), (x, before._replace(S=S)))[0]

    assert torch.autograd.gradcheck(run, [t.detach().requires_grad_() for t in (x, before.S, *mixer.parameters())])


@pytest.mark.parametrize("kind", MAKE)
def test_half_precision_keeps_a_float32_state(kind):
    mixer, x = made(kind)
    mixer, x = mixer.float(), torch.randn(2, 100, 8)
    exact = mixer(x)[0]
    y, state = mixer.to(torch.bfloat16)(x.bfloat16())
    assert (y.dtype, state.S.dtype) == (torch.bfloat16, torch.float32)
    assert (y - exact).abs().mean() < 0.05 * exact.abs().mean()


@pytest.mark.parametrize("kind", MAKE)
def test_it_compiles_as_one_graph(kind):
    torch.compiler.reset()
    mixer, x = made(kind)
    before = type(mixer(x)[1])(*(t.detach() for t in mixer(x)[1]))
    compiled = torch.compile(mixer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, before)[0], mixer(x, before)[0], atol=1e-10, rtol=0)


def test_gates_begin_at_the_half_of_what_their_root_lets_through():
    """sigmoid(0)^(1 / 16) per token: half of a token is left after 16."""
    torch.manual_seed(0)
    mixer = GatedLinearAttention(8, 2).double()
    x = torch.zeros(1, 17, 8, dtype=torch.float64)
    x[:, 0] = torch.randn(8)
    _, state = mixer(x[:, :1])
    _, later = mixer(x[:, 1:], state)
    torch.testing.assert_close(later.S, state.S / 2, atol=1e-12, rtol=0)


def test_the_gates_bias_is_kept_from_weight_decay():
    mixer, _ = made("gla")
    kept = {id(p) for p in parameter_groups(mixer, weight_decay=0.1)[1]["params"]}
    assert {id(mixer.forget_bias), id(mixer.norm.weight)} == kept


@pytest.mark.parametrize(
    ("kind", "arguments", "sentence"),
    [
        (Retention, {"dim": 8, "heads": 3}, "heads that divide dim, or head_dim, not dim=8 and heads=3"),
        (Retention, {"dim": 8, "heads": 8}, "even number of channels"),
        (Retention, {"dim": 8, "decay": 0.0}, "decay in (0, 1], one or one for each of 4 heads, not 0.0"),
        (Retention, {"dim": 8, "decay": [0.5]}, "one or one for each of 4 heads, not [0.5]"),
        (GatedLinearAttention, {"dim": 8, "temperature": 0}, "a temperature above 0, not 0"),
        (GatedLinearAttention, {"dim": 8, "rank": 0}, "rank to be a whole number of at least 1, not 0"),
        (GatedLinearAttention, {"dim": 8, "key_dim": 1.5}, "key_dim to be a whole number of at least 1, not 1.5"),
    ],
)
def test_bad_arguments_are_named(kind, arguments, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        kind(**arguments)


@pytest.mark.parametrize(
    ("kind", "x", "state", "sentence"),
    [
        ("retention", torch.zeros(2, 8), None, "Retention wants x of shape (batch, length, 8), not (2, 8)"),
        (
            "retention",
            torch.zeros(2, 1, 8),
            GLAState(torch.zeros(1)),
            "RetentionState or None as its state, not GLAState",
        ),
        (
            "retention",
            torch.zeros(2, 1, 8),
            RetentionState(torch.zeros(2, 2, 4, 4), torch.zeros(1)),
            "a state with pos of shape (2,), not (1,)",
        ),
        ("gla", torch.zeros(2, 1, 8), GLAState(torch.zeros(2, 2, 4, 4)), "S of shape (2, 2, 3, 4), not (2, 2, 4, 4)"),
    ],
)
def test_a_wrong_input_or_state_is_named(kind, x, state, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        made(kind)[0].float()(x, state)
