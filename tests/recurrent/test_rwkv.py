"""RWKV: what versions 4 and 6 and the channel mixing have in common."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carrel.layers import parameter_groups
from carrel.recurrent import RWKV, RWKV4, RWKV6, RWKV4State, RWKV6State, RWKVChannelMix, RWKVChannelMixState
from carrel.testing import check_streaming

KINDS = {
    "4": lambda dim: RWKV(dim),
    "6": lambda dim: RWKV(dim, version=6, head_dim=dim // 2),
    "channel mix": RWKVChannelMix,
}
kinds = pytest.mark.parametrize("kind", KINDS)


def small(kind, dim=4, seed=0):
    """A mixer of which no part is still at zero."""
    torch.manual_seed(seed)
    mixer = KINDS[kind](dim).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(torch.randn_like(p) / 2)
    return mixer


def test_the_version_names_the_mixer():
    assert type(RWKV(8)) is RWKV4
    assert type(RWKV(8, version=4)) is RWKV4
    mixer = RWKV(128, version=6)
    assert (type(mixer), mixer.heads, mixer.head_dim) == (RWKV6, 2, 64)
    assert RWKV(12, version=6, heads=3, head_dim=4).heads == 3


@kinds
def test_streaming(kind):
    check_streaming(small(kind, 6), 6)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(list(KINDS)), st.lists(st.integers(0, 140), max_size=6).map(sorted))
def test_every_split_gives_the_same(kind, cuts):
    check_streaming(small(kind), 4, cuts=cuts)


@kinds
def test_gradients_are_right_in_every_parameter_the_input_and_the_state(kind):
    mixer = small(kind, dim=2)
    names = [name for name, _ in mixer.named_parameters()]
    fresh = mixer(torch.randn(1, 2, 2, dtype=torch.float64))[1]
    state = [t.detach().requires_grad_() for t in fresh]

    def run(x, *values):
        before = type(fresh)(*values[: len(state)])
        y, after = torch.func.functional_call(mixer, dict(zip(names, values[len(state) :], strict=True)), (x, before))
        return y, *after

    x = torch.randn(1, 3, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(run, (x, *state, *mixer.parameters()))


@kinds
@pytest.mark.parametrize("state", [False, True])
def test_mixer_compiles_as_one_graph(kind, state):
    torch.compiler.reset()
    mixer = small(kind).float()
    x = torch.randn(2, 9, 4)
    before = type(mixer(x)[1])(*(t.detach() for t in mixer(x)[1])) if state else None
    compiled = torch.compile(mixer, backend="aot_eager", fullgraph=True)
    results = []
    for call in (mixer, compiled):
        mixer.zero_grad()
        y, after = call(x, before)
        (y.square().sum() + after[-1].square().sum()).backward()
        results.append([y, *after, *(p.grad.clone() for p in mixer.parameters())])
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)


@kinds
def test_autocast_keeps_the_recurrence_in_float32(kind):
    mixer = small(kind, dim=16).float()
    x = torch.randn(2, 100, 16) / 4
    exact = mixer(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = mixer(x)
    assert all(t.dtype == torch.float32 for t in state)
    assert 0 < (y - exact).abs().max() < 0.05 * exact.abs().max()


@kinds
def test_half_precision_mixer_keeps_a_float32_state(kind):
    mixer = small(kind).to(torch.bfloat16)
    y, state = mixer(torch.randn(2, 5, 4, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert state.shift.dtype == torch.bfloat16
    assert all(t.dtype == torch.float32 for t in state[1:])
    assert mixer(torch.randn(2, 1, 4, dtype=torch.bfloat16), state)[0].dtype == torch.bfloat16


@kinds
def test_the_state_has_the_same_size_after_any_number_of_tokens(kind):
    mixer = small(kind)
    sizes = {tuple(t.shape for t in mixer(torch.randn(2, n, 4).double())[1]) for n in (0, 1, 3, 130)}
    assert len(sizes) == 1
    assert sum(shape.numel() for shape in sizes.pop()) == {"4": 4 * 8, "6": 8 + 2 * 2 * 4, "channel mix": 8}[kind]


@kinds
def test_only_weights_of_the_projections_meet_weight_decay(kind):
    mixer = small(kind)
    decayed = {id(p) for p in parameter_groups(mixer, weight_decay=0.1)[0]["params"]}
    names = {name for name, p in mixer.named_parameters() if id(p) in decayed}
    shared = {"receptance.weight", "key.weight", "value.weight"}
    assert names == shared | {"4": {"output.weight"}, "6": {"output.weight", "gate.weight"}, "channel mix": set()}[kind]


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dim": 64, "version": 5}, "RWKV wants version 4 or 6, not 5"),
        ({"dim": 64, "version": "6"}, "RWKV wants version 4 or 6, not '6'"),
        ({"dim": 64, "heads": 4}, "RWKV of version 4 has no heads; it was given heads=4 and head_dim=64"),
        ({"dim": 64, "head_dim": 8}, "RWKV of version 4 has no heads; it was given heads=None and head_dim=8"),
        ({"dim": 64, "version": 6, "heads": 4}, "heads * head_dim to be dim, not 4 * 64 for dim=64"),
        ({"dim": 96, "version": 6}, "heads * head_dim to be dim, not 1 * 64 for dim=96"),
        ({"dim": 32, "version": 6}, "heads * head_dim to be dim, not 0 * 64 for dim=32"),
        ({"dim": 0, "version": 6}, "RWKV6 wants dim to be a whole number of at least 1, not 0"),
        ({"dim": 8, "version": 6, "heads": 0, "head_dim": 8}, "heads to be a whole number of at least 1, not 0"),
        ({"dim": 2.5}, "RWKV4 wants dim to be a whole number of at least 1, not 2.5"),
    ],
)
def test_bad_arguments_are_named(arguments, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        RWKV(**arguments)


def test_bad_sizes_of_the_channel_mixing_are_named():
    with pytest.raises(ValueError, match="RWKVChannelMix wants hidden to be a whole number of at least 1, not 0"):
        RWKVChannelMix(4, hidden=0)


FOUR = RWKV4State(*torch.zeros(4, 2, 4))
SIX = RWKV6State(torch.zeros(2, 4), torch.zeros(2, 2, 2, 2))
X = torch.zeros(2, 5, 4)


@pytest.mark.parametrize(
    ("kind", "x", "state", "sentence"),
    [
        ("4", torch.zeros(2, 4), None, "x of shape (batch, length, 4), not (2, 4)"),
        ("6", torch.zeros(2, 5, 3), None, "x of shape (batch, length, 4), not (2, 5, 3)"),
        ("4", X, tuple(FOUR), "RWKV4 wants RWKV4State or None as its state, not tuple"),
        ("4", X, FOUR._replace(b=torch.zeros(2, 3)), "a state with b of shape (2, 4), not (2, 3)"),
        ("6", X, FOUR, "RWKV6 wants RWKV6State or None as its state, not RWKV4State"),
        ("6", X, SIX._replace(S=torch.zeros(2, 1, 4, 4)), "a state with S of shape (2, 2, 2, 2), not (2, 1, 4, 4)"),
        ("6", X[:1], SIX, "a state with shift of shape (1, 4), not (2, 4)"),
        ("channel mix", X, RWKVChannelMixState(torch.zeros(4)), "a state with shift of shape (2, 4), not (4,)"),
    ],
)
def test_bad_input_is_named(kind, x, state, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        KINDS[kind](4)(x, state)
