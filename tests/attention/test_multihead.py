"""MHA: o_t = sum over j <= t of softmax(q_t . k_j / sqrt(d)) v_j in heads, with turned queries and keys."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carrel.attention import MHA
from carrel.layers import KVCache
from carrel.testing import check_streaming


def mixer(dim=12, heads=3, seed=0, **options):
    torch.manual_seed(seed)
    return MHA(dim, heads, **options).double()


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def written_out(m, x, start=0):
    """The definition, one token, one head and one pair of channels at a time."""
    d, group = m.head_dim, m.heads // m.kv_heads
    w = m.qkv.weight.reshape(-1, d, m.dim)
    wq, wk, wv = w.split([m.heads, m.kv_heads, m.kv_heads])

    def turned(t, at):
        if m.rotary_base is None:
            return t
        parts = [None] * d
        for i in range(d // 2):
            a = (start + at) * m.rotary_base ** (-2 * i / d)
            parts[i] = t[i] * math.cos(a) - t[i + d // 2] * math.sin(a)
            parts[i + d // 2] = t[i] * math.sin(a) + t[i + d // 2] * math.cos(a)
        return torch.stack(parts)

    rows = []
    for row in x:
        for t in range(len(row)):
            o = []
            for s in range(m.heads):
                g = s // group
                q = turned(wq[s] @ row[t], t)
                scores = torch.stack([q @ turned(wk[g] @ row[j], j) / math.sqrt(d) for j in range(t + 1)])
                p = scores.exp() / scores.exp().sum()
                o.append(sum(p[j] * (wv[g] @ row[j]) for j in range(t + 1)))
            rows.append(m.out.weight @ torch.cat(o))
    return torch.stack(rows).reshape(x.shape)


LAYOUTS = [{}, {"rotary_base": None}, {"heads": 6, "kv_heads": 2}, {"heads": 6, "kv_heads": 1}, {"head_dim": 2}]


@pytest.mark.parametrize("options", LAYOUTS)
def test_output_is_the_definition_written_out(options):
    m, x = mixer(**options), noise(2, 7, 12)
    wanted = written_out(m, x)
    torch.testing.assert_close(m(x)[0], wanted, atol=1e-12, rtol=0)
    y, state = m(x[:, :3])
    after, _ = m(x[:, 3:], state)
    torch.testing.assert_close(torch.cat([y, after], 1), wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("options", LAYOUTS)
def test_streaming(options):
    check_streaming(mixer(**options), 12)


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(0, 40), max_size=8).map(sorted))
def test_every_split_gives_the_same(cuts):
    check_streaming(mixer(heads=6, kv_heads=2), 12, cuts=cuts)


def test_scores_depend_on_distances_only():
    m, x = mixer(), noise(2, 9, 12)
    for start in (1, 1000, 10**6):
        ahead = KVCache(torch.zeros(2, 3, 0, 4).double(), torch.zeros(2, 3, 0, 4).double(), torch.full((2,), start))
        # phases at 10^6 radians are exact to 1e-10
        torch.testing.assert_close(m(x, ahead)[0], m(x)[0], atol=1e-9 if start > 1000 else 1e-12, rtol=0)


def test_without_rotation_the_past_is_a_set():
    m, x = mixer(rotary_base=None), noise(2, 9, 12)
    mixed = x[:, [4, 2, 7, 0, 1, 6, 3, 5, 8]]
    torch.testing.assert_close(m(x)[0][:, -1], m(mixed)[0][:, -1], atol=1e-12, rtol=0)
    turned = mixer()
    assert (turned(x)[0][:, -1] - turned(mixed)[0][:, -1]).abs().max() > 1e-3


def test_equal_keys_make_a_running_mean():
    m, x = mixer(rotary_base=None), noise(1, 6, 12)
    with torch.no_grad():
        m.qkv.weight[12:24] = 0
    v = x @ m.qkv.weight[24:].T
    wanted = v.cumsum(1) / torch.arange(1, 7)[:, None] @ m.out.weight.T
    torch.testing.assert_close(m(x)[0], wanted, atol=1e-12, rtol=0)


def test_shared_heads_are_all_heads_with_keys_and_values_repeated():
    few, many, x = mixer(heads=6, kv_heads=2), mixer(heads=6), noise(2, 9, 12)
    with torch.no_grad():
        q, k, v = few.qkv.weight.split([12, 4, 4])
        repeated = [t.reshape(2, 2, 12).repeat_interleave(3, 0).reshape(12, 12) for t in (k, v)]
        many.qkv.weight.copy_(torch.cat([q, *repeated]))
        many.out.weight.copy_(few.out.weight)
    torch.testing.assert_close(few(x)[0], many(x)[0], atol=1e-12, rtol=0)


def test_gradients_are_those_of_the_definition():
    m = mixer(4, 2)
    x, old = noise(1, 3, 4).requires_grad_(), noise(1, 2, 4, seed=1).requires_grad_()

    def both(x, old):
        _, state = m(old)
        y, state = m(x, state)
        return y, state.k, state.v

    assert torch.autograd.gradcheck(both, (x, old))


def test_rows_of_different_lengths_go_on_together():
    """Their states are joined by filling the shorter one up in front; pos says how much of it counts."""
    m, x = mixer(heads=6, kv_heads=2), noise(2, 12, 12)
    with torch.no_grad():
        _, long = m(x[:1, :7])
        _, short = m(x[1:, :3])
        filler = torch.full((1, 2, 4, 2), 1e3, dtype=torch.float64)
        joined = KVCache(
            torch.cat([long.k, torch.cat([filler, short.k], 2)]),
            torch.cat([long.v, torch.cat([filler, short.v], 2)]),
            torch.cat([long.pos, short.pos]),
        )
        nexts = torch.stack([x[0, 7:10], x[1, 3:6]])
        y, after = m(nexts, joined)
        wanted = torch.cat([m(x[:1, :10])[0][:, 7:], m(x[1:, :6])[0][:, 3:]])
    torch.testing.assert_close(y, wanted, atol=1e-12, rtol=0)
    assert after.pos.tolist() == [10, 6]


def test_half_precision_is_near_and_keeps_its_type():
    m, x = mixer(32, 4).float(), noise(2, 300, 32).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = m(x)
        later, _ = m(x[:, :2], state)
    assert y.dtype == later.dtype == state.k.dtype == torch.bfloat16
    assert (y.float() - m(x)[0]).abs().max() < 0.03


def test_mixer_compiles_as_one_graph():
    torch.compiler.reset()
    m, x = mixer(heads=6, kv_heads=2), noise(2, 6, 12)
    compiled = torch.compile(m, backend="aot_eager", fullgraph=True)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            y, state = compiled(x)
            torch.testing.assert_close(y, m(x)[0])
            state = KVCache(*(part.detach() for part in state))
            torch.testing.assert_close(compiled(x, state)[0], m(x, state)[0])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"heads": 5}, "heads that divide dim, or head_dim, not dim=12 and heads=5"),
        ({"heads": 0}, "dim and heads of at least 1"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads that divide heads, not dim=12, heads=4 and kv_heads=3"),
        ({"heads": 4}, "an even number of channels and a base above 1, not 3 and 10000.0"),
        ({"rotary_base": 1.0}, "an even number of channels and a base above 1, not 4 and 1.0"),
        ({"head_dim": 0}, "head_dim of at least 1, not 0"),
    ],
)
def test_bad_arguments_are_named(options, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        mixer(**options)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: (s.k, s.v, s.pos), "a KVCache or None as its state, not tuple"),
        (lambda s: s._replace(k=s.k[:1]), "k of shape (2, 3, tokens, 4) and type torch.float64, not (1, 3, 5, 4)"),
        (lambda s: s._replace(v=s.v[:, :, :4]), "v of shape (2, 3, tokens, 4)"),
        (lambda s: s._replace(v=s.v.float()), "and torch.float32"),
        (lambda s: s._replace(k=s.k[..., :3]), "not (2, 3, 5, 3)"),
        (lambda s: s._replace(pos=s.pos[:1]), "pos of shape (2,), not (1,)"),
    ],
)
def test_a_state_that_does_not_fit_is_named(change, sentence):
    m, x = mixer(), noise(2, 5, 12)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        m(x, change(m(x)[1]))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=re.escape("MHA wants x of shape (batch, length, 12), not (2, 5, 11)")):
        mixer()(noise(2, 5, 11))
