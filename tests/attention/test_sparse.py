"""o_t = sum over the tokens that the pattern allows, a softmax among them alone; whole and in pieces."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carrel.attention import MHA, SparseAttention, SparsePattern, SparseState
from carrel.testing import check_streaming

REAL = torch.float64
DIM = 12
PATTERNS = {
    "window": {"pattern": "window", "width": 5},
    "sinks": {"pattern": "window", "width": 4, "sinks": 3},
    "many sinks": {"pattern": "window", "width": 2, "sinks": 9},
    "wide": {"pattern": "window", "width": 70},
    "one": {"pattern": "window", "width": 1},
    "dilated": {"pattern": "window", "width": 3, "dilation": 3},
    "far": {"pattern": "window", "width": 2, "dilation": 7},
    "strided": {"pattern": "strided", "width": 4},
    "fixed": {"pattern": "fixed", "width": 6, "summary": 2},
}
every_pattern = pytest.mark.parametrize("options", PATTERNS.values(), ids=PATTERNS)


def mixer_of(options):
    torch.manual_seed(0)
    return SparseAttention(DIM, 2, head_dim=6, **options).to(REAL)


def sequence(length, batch=2):
    return torch.randn(batch, length, DIM, dtype=REAL, generator=torch.Generator().manual_seed(1))


def dense(mixer, x):
    """The definition: multi-head attention's own weights and turns, every pair, a mask."""
    full = MHA(DIM, 2, head_dim=6).to(REAL)
    full.load_state_dict(mixer.state_dict())
    length = x.shape[1]
    _, state = full(x)
    q = full.qkv(x).unflatten(-1, (6, 6)).transpose(1, 2)[:, :2]
    turns = full.rope.turns(torch.arange(length), REAL)
    from carrel.layers import rotate

    q = rotate(q, turns)
    scores = (q @ state.k.mT / 6**0.5).masked_fill(~mixer.pattern.dense(length), -torch.inf)
    return full.out((torch.softmax(scores, -1) @ state.v).transpose(1, 2).flatten(2))


@every_pattern
@pytest.mark.parametrize("length", [1, 3, 6, 24, 131])
def test_outputs_and_gradients_are_those_of_masked_attention_over_all_pairs(options, length):
    mixer, x = mixer_of(options), sequence(length).requires_grad_()
    y, wanted = mixer(x)[0], dense(mixer, x)
    torch.testing.assert_close(y, wanted, atol=1e-13, rtol=0)
    g = torch.randn_like(y)
    found, right = (torch.autograd.grad(out, x, g)[0] for out in (y, wanted))
    torch.testing.assert_close(found, right, atol=1e-12, rtol=0)


def test_the_patterns_are_the_sets_of_their_definitions():
    for i in range(40):
        for j in range(40):
            at = torch.tensor(i), torch.tensor(j)
            causal = j <= i
            assert bool(SparsePattern("window", 5, 2)(0, 0, *at)) is (causal and (i - j < 5 or j < 2))
            apart = i - j < 15 and (i - j) % 3 == 0
            assert bool(SparsePattern("window", 5, dilation=3)(0, 0, *at)) is (causal and apart)
            assert bool(SparsePattern("strided", 6)(0, 0, *at)) is (causal and (i - j < 6 or (i - j) % 6 == 0))
            own = i // 6 == j // 6 or j % 6 in (4, 5)
            assert bool(SparsePattern("fixed", 6, summary=2)(0, 0, *at)) is (causal and own)


@pytest.mark.parametrize("pattern", [SparsePattern("strided", 16), SparsePattern("fixed", 16, summary=4)])
def test_two_layers_join_every_token_to_all_before_it(pattern):
    one = pattern.dense(256)
    two = (one.double() @ one.double()) > 0
    assert torch.equal(two, torch.ones(256, 256, dtype=torch.bool).tril())
    assert one.double().sum(1).mean() < 64 < 128.5  # edges per token, where all pairs have 128.5
    window = SparsePattern("window", 16).dense(256).double()
    assert not torch.equal(window @ window > 0, two)


def test_a_window_as_long_as_the_sequence_is_full_attention():
    mixer, x = mixer_of({"pattern": "window", "width": 40}), sequence(40)
    full = MHA(DIM, 2, head_dim=6).to(REAL)
    full.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(mixer(x)[0], full(x)[0], atol=1e-13, rtol=0)


@every_pattern
def test_it_streams(options):
    if "dilation" in options:  # whose second token sees no earlier one, as the whole check would want
        for cuts in ([1], [1, 2, 2, 5, 20], range(31)):
            check_streaming(mixer_of(options), DIM, cuts=list(cuts))
    elif 1 < options["width"] <= 8:  # a window of one token has no past to speak of
        check_streaming(mixer_of(options), DIM)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(list(PATTERNS)), st.lists(st.integers(0, 90), max_size=5).map(sorted))
def test_it_streams_in_random_splits(name, cuts):
    with torch.no_grad():
        mixer, x = mixer_of(PATTERNS[name]), sequence(90)
        state, pieces = None, []
        for start, end in zip([0, *cuts], [*cuts, 90], strict=True):
            y, state = mixer(x[:, start:end], state)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, 1), mixer(x)[0], atol=1e-13, rtol=0)


@every_pattern
def test_rows_at_different_positions_go_on_together(options):
    mixer = mixer_of(options)
    x, tail = sequence(23), sequence(9)
    with torch.no_grad():
        _, long = mixer(x)
        _, short = mixer(x[:, :7])
        wanted = torch.cat((mixer(tail[:1], one(long, 0))[0], mixer(tail[1:], one(short, 1))[0]))
        columns = max(long.at.shape[1], short.at.shape[1])
        rows = filled(one(long, 0), columns), filled(one(short, 1), columns)
        joined = SparseState(*(torch.cat(pair) for pair in zip(*rows, strict=True)))
        torch.testing.assert_close(mixer(tail, joined)[0], wanted, atol=1e-13, rtol=0)


def one(state, row):
    return SparseState(*(t[row : row + 1] for t in state))


def filled(state, columns):
    """Empty columns in front."""
    more = columns - state.at.shape[1]
    k, v = (torch.nn.functional.pad(t, (0, 0, more, 0)) for t in (state.k, state.v))
    return SparseState(k, v, torch.nn.functional.pad(state.at, (more, 0), value=-1), state.pos)


def test_states_are_as_small_as_the_pattern_allows():
    with torch.no_grad():
        x = sequence(61)
        sizes = {name: mixer_of(PATTERNS[name])(x)[1].k.shape[2] for name in PATTERNS}
    assert sizes == {
        "window": 5,
        "sinks": 7,
        "wide": 70,
        "many sinks": 11,
        "one": 1,
        "dilated": 7,
        "far": 8,
        "strided": 61,
        "fixed": 10 * 2 + 1,
    }


def test_a_windows_state_is_a_ring():
    mixer = mixer_of(PATTERNS["sinks"])
    with torch.no_grad():
        _, state = mixer(sequence(13))
        _, later = mixer(sequence(1), state)
    assert state.at[0].tolist() == [0, 1, 2, 12, -1, 10, 11]
    assert later.at[0].tolist() == [0, 1, 2, 12, 13, -1, 11]
    unmoved = [0, 1, 2, 3, 6]
    torch.testing.assert_close(later.k[:, :, unmoved], state.k[:, :, unmoved], atol=0, rtol=0)


def test_a_long_window_holds_no_matrix_of_all_pairs():
    mixer = SparseAttention(16, 1, width=64)
    x = torch.randn(1, 20000, 16)  # whose pairs would take 1.6 GB
    y = mixer(x)[0]
    few = mixer(x[:, 20000 - 500 :])[0]  # turned otherwise, but only differences of positions matter
    torch.testing.assert_close(y[:, -400:], few[:, -400:], atol=1e-4, rtol=0)


def test_a_dilated_window_reaches_further_at_no_more_edges():
    plain, dilated = (SparsePattern("window", 8, dilation=r).dense(256).double() for r in (1, 8))
    assert dilated.sum(1).max() == plain.sum(1).max() == 8
    both = plain @ dilated > 0  # a layer of each: the last 64 tokens, of which either alone sees 8
    assert both[255].nonzero().flatten().tolist() == list(range(192, 256))
    x = sequence(200)
    mixer, changed = mixer_of(PATTERNS["far"]), x.clone()
    changed[:, 100] += 1
    moved = (mixer(changed)[0] - mixer(x)[0]).abs().amax((0, 2)).nonzero().flatten().tolist()
    assert moved == [100, 107]


def test_the_pattern_is_a_mask_for_flex_attention():
    from torch.nn.attention.flex_attention import create_block_mask

    block = create_block_mask(SparsePattern("window", 40), 1, 1, 512, 512, device="cpu", BLOCK_SIZE=64)
    assert block.kv_num_blocks.sum() + block.full_kv_num_blocks.sum() == 8 + 7


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: SparsePattern("dilated", 4), "one of window, strided, fixed, not 'dilated'"),
        (lambda: SparseAttention(8, 2, width=0), "a width and dilation of at least 1"),
        (lambda: SparseAttention(8, 2, pattern="fixed", width=4, summary=5), "summary of 1 to the width"),
        (lambda: SparseAttention(8, 2, pattern="strided", width=4, sinks=1), "sinks only where it is a window"),
        (lambda: SparseAttention(8, 2, width=4, dilation=0), "a width and dilation of at least 1"),
        (lambda: SparseAttention(8, 2, pattern="fixed", width=4, dilation=2), "a window without sinks, not fixed with"),
        (lambda: SparseAttention(8, 2, width=4, dilation=2, sinks=1), "without sinks, not window with sinks=1"),
        (lambda: SparseAttention(9, 2), "heads that divide dim"),
        (lambda: SparseAttention(6, 2), "even number of channels"),
        (lambda: SparseAttention(8, 2)(torch.ones(1, 2, 9)), "x of shape"),
        (lambda: SparseAttention(8, 2)(torch.ones(1, 2, 8), (1,)), "SparseState or None"),
        (
            lambda: SparseAttention(8, 2, width=3)(
                torch.ones(1, 2, 8), SparseAttention(8, 2, width=4)(torch.ones(1, 2, 8))[1]
            ),
            r"k of shape \(1, 2, 3, 4\), not \(1, 2, 4, 4\)",
        ),
    ],
)
def test_bad_input_is_said_in_one_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_half_precision_stays_half():
    mixer = copy.deepcopy(mixer_of(PATTERNS["strided"])).to(torch.bfloat16)
    y, state = mixer(sequence(20).to(torch.bfloat16))
    assert y.dtype == state.k.dtype == torch.bfloat16
