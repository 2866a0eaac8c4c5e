"""SequenceModel: h <- h + mixer(norm(h)), h <- h + MLP(norm(h)), y = W norm(h) + c, and it streams."""

import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carrel.attention import MHA
from carrel.layers import RMSNorm
from carrel.models import PositionState, SequenceModel
from carrel.recurrent import LRU
from carrel.testing import check_streaming


def model(**options):
    torch.manual_seed(0)
    options = {"in_dim": 3, "out_dim": 5, "mlp_ratio": 2.0} | options
    return SequenceModel(lambda dim: LRU(dim, r_min=0.5, r_max=0.99), 8, 2, **options)


def test_output_is_the_residual_stack_written_out():
    m, x = model().double(), torch.randn(2, 6, 3, dtype=torch.float64)
    h = x @ m.embed.weight.T + m.embed.bias

    def rms(norm, h):
        return norm.weight * h / (h.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    for block in m.blocks:
        h = h + block.mixer(rms(block.norm, h))[0]
        norm, mlp = block.mlp
        gate, value = (rms(norm, h) @ mlp.gate_and_value.weight.T).chunk(2, -1)
        h = h + (gate * gate.sigmoid() * value) @ mlp.out.weight.T
    wanted = rms(m.norm, h) @ m.head.weight.T + m.head.bias
    torch.testing.assert_close(m(x)[0], wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("mlp_ratio", [0, 2])
def test_streaming(mlp_ratio):
    check_streaming(model(mlp_ratio=mlp_ratio), 3)


def test_tokens_stream_too():
    m, x = model(in_dim=None, vocab=11).double(), torch.arange(20).reshape(2, 10) % 11
    whole, _ = m(x)
    state, pieces = None, []
    for piece in x.split([1, 4, 0, 5], dim=1):
        y, state = m(piece, state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-12, rtol=0)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, 20), max_size=8).map(sorted), learned=st.booleans())
def test_tokens_stream_in_every_split(cuts, learned):
    options = {"pos": "learned", "max_length": 20} if learned else {}
    m, x = model(in_dim=None, vocab=11, **options).double(), torch.arange(40).reshape(2, 20) % 11
    whole, _ = m(x)
    state, pieces = None, []
    for start, end in itertools.pairwise([0, *cuts, 20]):
        y, state = m(x[:, start:end], state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-10, rtol=0)


def ordered(**options):
    """A model of mixers without an order of their own, over positions that are learned."""
    torch.manual_seed(0)
    options = {"in_dim": 3, "out_dim": 5, "pos": "learned", "max_length": 20} | options
    return SequenceModel(lambda dim: MHA(dim, 2, rotary_base=None), 8, 2, **options)


def test_streaming_with_learned_positions():
    check_streaming(ordered(), 3)


def test_learned_positions_are_added_to_the_embedding():
    m, x = ordered(vocab=7, in_dim=None).double(), torch.tensor([[3, 1, 4, 1, 5], [2, 6, 5, 3, 5]])
    m.blocks = torch.nn.ModuleList()
    h = m.embed.weight[x] + m.positions.weight[:5]
    wanted = m.head(m.norm(h))
    torch.testing.assert_close(m(x)[0], wanted, atol=1e-12, rtol=0)
    # rows may stand at different places
    y, state = m(x, (PositionState(torch.tensor([2, 9])),))
    h = m.embed.weight[x] + torch.stack([m.positions.weight[2:7], m.positions.weight[9:14]])
    torch.testing.assert_close(y, m.head(m.norm(h)), atol=1e-12, rtol=0)
    assert state[0].pos.tolist() == [7, 14]


def test_positions_pool_and_blocks_have_a_part_of_the_state_each():
    m, x = ordered(pool="mean"), torch.randn(2, 5, 3)
    _, state = m(x)
    assert [type(part).__name__ for part in state] == ["KVCache", "KVCache", "PositionState", "PoolState"]
    whole, _ = m(torch.cat([x, x], 1))
    torch.testing.assert_close(m(x, state)[0], whole)


def test_there_is_no_going_on_beyond_the_last_position():
    m, x = ordered(), torch.randn(2, 20, 3)
    _, state = m(x)
    m(x[:, :0], state)
    for too_long, before, sentence in (
        (torch.randn(2, 21, 3), None, "has 20 positions, too few for 0 tokens and 21 after them"),
        (x[:, :1], state, "has 20 positions, too few for 20 tokens and 1 after them"),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            m(too_long, before)


def test_embeddings_start_at_size_one_and_small_beside_learned_positions():
    torch.manual_seed(0)
    free, placed = model(in_dim=None, vocab=3000), ordered(in_dim=None, vocab=3000, max_length=3000)
    assert abs(free.embed.weight.std() - 1) < 0.02
    assert abs(placed.embed.weight.std() - 0.02) < 0.0005
    assert abs(placed.positions.weight.std() - 0.02) < 0.0005
    assert free.positions is None


def test_a_model_with_learned_positions_compiles_as_one_graph():
    torch.compiler.reset()
    m, x = ordered(), torch.randn(2, 6, 3)
    compiled = torch.compile(m, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        y, state = compiled(x)
        torch.testing.assert_close(y, m(x)[0])
        torch.testing.assert_close(compiled(x, state)[0], m(x, state)[0])


@pytest.mark.parametrize("cuts", [[9, 1], [1] * 10, [10, 0], [3, 0, 7]])
@pytest.mark.parametrize("pool", ["last", "mean"])
def test_pooled_output_of_the_last_piece_is_the_wholes(pool, cuts):
    m, x = model(pool=pool).double(), torch.randn(2, 10, 3, dtype=torch.float64)
    whole, final = m(x)
    state = None
    for piece in x.split(cuts, dim=1):
        y, state = m(piece, state)
    torch.testing.assert_close(y, whole, atol=1e-10, rtol=0)
    assert state[-1].pos.tolist() == final[-1].pos.tolist() == [10, 10]


def test_pools_are_the_last_token_and_the_mean_before_norm_and_head():
    x = torch.randn(2, 10, 3)
    rows = model()
    rows.head = torch.nn.Identity()
    rows.norm = torch.nn.Identity()
    h = rows(x)[0]
    for pool, wanted in (("last", h[:, -1]), ("mean", h.mean(1))):
        m = model(pool=pool)
        torch.testing.assert_close(m(x)[0], m.head(m.norm(wanted)))


def test_a_long_mean_is_summed_in_float32():
    m, x = model(pool="mean"), torch.ones(1, 3000, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, state = m(x)
    assert state[-1].value.dtype == torch.float32


def test_model_works_on_as_many_tokens_at_once_as_its_mixers():
    m = model()
    m.blocks[1].mixer.chunk = 7
    assert m.chunk == 7


def test_every_parameter_gets_a_gradient():
    m = model()
    m(torch.randn(2, 6, 3))[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in m.parameters())


def test_model_compiles_as_one_graph():
    torch.compiler.reset()
    m, x = model(pool="mean"), torch.randn(2, 6, 3)
    compiled = torch.compile(m, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x)[0], m(x)[0])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"in_dim": None}, "either vocab or in_dim, not vocab=None and in_dim=None"),
        ({"vocab": 4}, "either vocab or in_dim, not vocab=4 and in_dim=3"),
        ({"pool": "max"}, "one of none, last, mean, not 'max'"),
        ({"mlp_ratio": -1}, "mlp_ratio >= 0, not 2 and -1"),
        ({"pos": "learned"}, "or neither, not pos='learned' and max_length=None"),
        ({"max_length": 4}, "or neither, not pos=None and max_length=4"),
        ({"pos": "rotary", "max_length": 4}, "or neither, not pos='rotary' and max_length=4"),
        ({"pos": "learned", "max_length": 0}, "max_length of at least 1, or neither"),
    ],
)
def test_bad_arguments_are_named(options, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        model(**options)


@pytest.mark.parametrize(
    ("options", "x", "state", "sentence"),
    [
        ({}, torch.zeros(2, 6, 4), None, "shape (batch, length, 3), not (2, 6, 4)"),
        ({"in_dim": None, "vocab": 4}, torch.zeros(2, 6), None, "tokens of shape (batch, length), not torch.float32"),
        ({}, torch.zeros(2, 6, 3), (None,), "a state of 2 parts, not 1"),
        (
            {"pos": "learned", "max_length": 9},
            torch.zeros(2, 6, 3),
            (None, None, PositionState(torch.zeros(3, dtype=torch.int64))),
            "a PositionState of 2 rows",
        ),
        ({"pool": "mean"}, torch.zeros(2, 0, 3), None, "at least one token, not none"),
    ],
)
def test_bad_input_is_named(options, x, state, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        model(**options)(x, state)


def test_rms_norm_has_one_eps_in_every_dtype():
    x = torch.full((1, 4), 1e-3)
    wanted = x / (1e-6 + 1e-6) ** 0.5
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        norm = RMSNorm(4)
        y = norm(x.to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), wanted.double(), atol=0, rtol=4e-3 if dtype == torch.bfloat16 else 1e-6)
