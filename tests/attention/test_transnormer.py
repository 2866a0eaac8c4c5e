"""TransNormer: y = W_o norm(φ(q)' sum φ(k) v') without a denominator; and softmax attention inside blocks."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carrel.attention import (
    DiagAttention,
    DiagAttentionState,
    NormAttention,
    NormAttentionState,
    TransNormerLayers,
)
from carrel.layers import rotary_frequencies, rotary_turns, rotate
from carrel.models import SequenceModel
from carrel.testing import check_streaming

MAKE = {
    "head": lambda: NormAttention(8, 2),
    "all": lambda: NormAttention(8, 2, norm="all", feature="relu"),
    "diag": lambda: DiagAttention(8, 2, block=5),
    "no rotation": lambda: DiagAttention(8, 2, block=3, rotary_base=None, head_dim=3),
}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def made(kind):
    torch.manual_seed(0)
    mixer = MAKE[kind]().double()
    with torch.no_grad():
        if hasattr(mixer, "norm"):
            mixer.norm.weight.normal_()
    return mixer, torch.randn(2, 13, 8, dtype=torch.float64)


def heads(x, count):
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


@pytest.mark.parametrize("kind", ["head", "all"])
def test_norm_attention_is_masked_products_and_a_norm(kind):
    mixer, x = made(kind)
    q, k, v = (heads(t, 2) for t in mixer.qkv(x).chunk(3, -1))
    phi = (lambda t: torch.where(t > 0, t + 1, t.exp())) if kind == "head" else (lambda t: t.clamp(min=0))
    o = ((phi(q) @ phi(k).mT).tril() @ v).transpose(1, 2)
    o = o if kind == "head" else o.flatten(2)
    o = o / (o.square().mean(-1, keepdim=True) + 1e-6).sqrt() * mixer.norm.weight
    torch.testing.assert_close(mixer(x)[0], mixer.out(o.reshape(2, 13, 8)), atol=1e-12, rtol=0)


def test_without_eps_the_size_of_the_keys_makes_no_difference():
    torch.manual_seed(0)
    mixer = NormAttention(8, 2, feature="relu", eps=0.0).double()
    x = torch.randn(2, 13, 8, dtype=torch.float64) + 1
    with torch.no_grad():
        mixer.qkv.weight.abs_()  # so that no row of features is 0
        x = x.abs()
        before = mixer(x)[0]
        mixer.qkv.weight[8:16] *= 1000  # keys
        torch.testing.assert_close(mixer(x)[0], before, atol=1e-12, rtol=0)


def test_every_head_leaves_with_a_root_mean_square_of_one():
    mixer, x = made("head")
    with torch.no_grad():
        mixer.norm.weight.fill_(1)
        mixer.out.weight.copy_(torch.eye(8))
        size = mixer(x)[0].unflatten(-1, (2, 4)).square().mean(-1)
    torch.testing.assert_close(size, torch.ones_like(size), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", ["diag", "no rotation"])
def test_diag_attention_is_softmax_attention_inside_blocks(kind):
    mixer, x = made(kind)
    q, k, v = (heads(t, 2) for t in mixer.qkv(x).chunk(3, -1))
    if mixer.rotary_base is not None:
        turns = rotary_turns(torch.arange(13), rotary_frequencies(4), torch.float64)
        q, k = rotate(q, turns), rotate(k, turns)
    at = torch.arange(13)
    seen = (at[:, None] // mixer.block == at // mixer.block) & (at[:, None] >= at)
    scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~seen, -math.inf)
    wanted = mixer.out((torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x)[0], wanted, atol=1e-12, rtol=0)


def test_rows_may_stand_at_different_positions():
    mixer, x = made("diag")
    short, long = mixer(x[:1, :3])[1], mixer(x[1:, :7])[1]
    joined = DiagAttentionState(*(torch.cat(pair) for pair in zip(short, long, strict=True)))
    for pieces in ([9], [2, 7], [1, 8]):
        state, outputs = joined, []
        for piece in torch.randn(2, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).split(
            pieces, 1
        ):
            y, state = mixer(piece, state)
            outputs.append(y)
        ahead = torch.randn(2, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        wanted = torch.cat([mixer(ahead[:1], short)[0], mixer(ahead[1:], long)[0]])
        torch.testing.assert_close(torch.cat(outputs, 1), wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_short_pieces_go_over_the_border_of_a_block(size):
    mixer, x = made("diag")  # blocks of 5
    for first in range(6):
        state, outputs = mixer(x[:, :first])[1], []
        for piece in x[:, first:].split(size, 1):
            y, state = mixer(piece, state)
            outputs.append(y)
        torch.testing.assert_close(torch.cat(outputs, 1), mixer(x)[0][:, first:], atol=1e-12, rtol=0)
        assert not state.k[:, :, 13 % 5 :].any()  # nothing is left of the block before
        assert not state.v[:, :, 13 % 5 :].any()


@pytest.mark.parametrize("kind", MAKE)
def test_streaming(kind):
    check_streaming(made(kind)[0], 8)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(sorted(MAKE)), st.lists(st.integers(0, 23), max_size=6).map(sorted))
def test_every_split_gives_the_same(kind, cuts):
    check_streaming(made(kind)[0], 8, cuts=cuts)


def test_a_block_of_one_copies_the_value():
    torch.manual_seed(0)
    mixer, x = DiagAttention(8, 2, block=1).double(), torch.randn(2, 13, 8, dtype=torch.float64)
    torch.testing.assert_close(mixer(x)[0], mixer.out(mixer.qkv(x)[..., 16:]), atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["head", "diag"])
def test_gradients_are_right_in_the_input_and_every_parameter(kind):
    torch.manual_seed(0)
    mixer = (NormAttention(4, 2) if kind == "head" else DiagAttention(4, 2, block=3)).double()
    names = [name for name, _ in mixer.named_parameters()]
    _, before = mixer(torch.randn(1, 2, 4, dtype=torch.float64))
    before = type(before)(*(t.detach() for t in before))

    def run(x, *values):
        return torch.func.functional_call(mixer, dict(zip(names, values, strict=True)), (x, before))[0]

    x = torch.randn(1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, [x, *mixer.parameters()])


@pytest.mark.parametrize("kind", ["head", "diag"])
def test_it_compiles_as_one_graph(kind):
    torch.compiler.reset()
    mixer, x = made(kind)
    before = type(mixer(x)[1])(*(t.detach() for t in mixer(x)[1]))
    compiled = torch.compile(mixer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, before)[0], mixer(x, before)[0], atol=1e-10, rtol=0)


def test_the_layers_of_a_model_are_blocks_first_and_the_norm_after():
    layers = TransNormerLayers(5, heads=2, block=7)
    kinds = [type(layers(8)).__name__ for _ in range(10)]
    assert kinds == ["DiagAttention", "DiagAttention", "NormAttention", "NormAttention", "NormAttention"] * 2
    for diagonal in (0, 3):
        layers = TransNormerLayers(3, heads=2, diagonal=diagonal)
        assert sum(type(layers(8)) is DiagAttention for _ in range(3)) == diagonal
    model = SequenceModel(TransNormerLayers(2, heads=2, block=7), 8, 2, in_dim=3, out_dim=1)
    assert [type(m).__name__ for m in model.modules() if type(m).__name__.endswith("Attention")] == kinds[1:3]


@pytest.mark.parametrize(
    ("kind", "arguments", "sentence"),
    [
        (NormAttention, {"dim": 8, "heads": 0}, "heads to be a whole number of at least 1, not 0"),
        (NormAttention, {"dim": 8, "feature": "exp"}, "feature to be elu1, relu or identity, not 'exp'"),
        (NormAttention, {"dim": 8, "norm": "layer"}, """norm to be "head" or "all", not 'layer'"""),
        (DiagAttention, {"dim": 8, "block": 0}, "block to be a whole number of at least 1, not 0"),
        (DiagAttention, {"dim": 8, "heads": 3}, "heads that divide dim, or head_dim, not dim=8 and heads=3"),
        (DiagAttention, {"dim": 8, "heads": 8}, "even number of channels"),
        (TransNormerLayers, {"depth": 2, "diagonal": 3}, "depth >= 1 and diagonal in 0..depth, not 2 and 3"),
    ],
)
def test_bad_arguments_are_named(kind, arguments, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        kind(**arguments)


@pytest.mark.parametrize(
    ("kind", "state", "sentence"),
    [
        ("head", NormAttentionState(torch.zeros(2, 2, 3, 4)), "S of shape (2, 2, 4, 4), not (2, 2, 3, 4)"),
        ("diag", NormAttentionState(torch.zeros(2)), "DiagAttentionState or None as its state, not NormAttentionState"),
        (
            "diag",
            DiagAttentionState(*(torch.zeros(2, 2, 4, 4) for _ in "kv"), torch.zeros(2)),
            "k of shape (2, 2, 5, 4), not (2, 2, 4, 4)",
        ),
    ],
)
def test_a_wrong_state_is_named(kind, state, sentence):
    mixer, x = made(kind)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        mixer(x, state)
