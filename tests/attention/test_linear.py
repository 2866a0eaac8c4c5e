"""Linear attention: o_t = sum_j φ(q_t)·φ(k_j) v_j / sum_j φ(q_t)·φ(k_j), the past kept as two sums."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from carrel.attention import LINEAR_FEATURES, MHA, LinearAttention, LinearAttentionState, linear_attention
from carrel.testing import check_streaming

WAYS = [("elu1", True), ("elu1", False), ("relu", True), ("exp", True), ("exp", False), ("identity", False)]
WAYS += [("taylor", True), ("taylor", False)]
ALL = [*WAYS, ("efficient", True)]
PHI = {
    "elu1": lambda x: torch.where(x > 0, x + 1, torch.exp(x)),
    "relu": lambda x: x.clamp(min=0),
    "exp": torch.exp,
    "identity": lambda x: x,
    "taylor": lambda x: torch.cat([x[..., :1] ** 0, x, (x[..., None] * x[..., None, :]).flatten(-2) / 2**0.5], -1),
}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def problem(length=9, size=3, width=2, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, 2, length, size), (2, 2, length, size), (2, 2, length, width))
    return [torch.randn(s, generator=generator, dtype=dtype) for s in shapes]


def as_matrix(q, k, v, feature, normalize, causal=True):
    """The definition, with every weight written down."""
    seen = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool)
    seen = seen.tril() if causal else seen
    if feature == "efficient":
        rows = []
        for t in range(q.shape[2]):
            past = seen[t]
            weights = torch.softmax(k[:, :, past], 2) * torch.softmax(q[:, :, t : t + 1], -1)
            rows.append((weights.sum(-1, keepdim=True) * v[:, :, past]).sum(2))
        return torch.stack(rows, 2)
    weights = (PHI[feature](q) @ PHI[feature](k).mT) * seen
    if normalize:
        total = weights.sum(-1, keepdim=True)
        weights = torch.where(total > 0, weights / total, 0)
    return weights @ v


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("feature", "normalize"), ALL)
@pytest.mark.parametrize("length", [1, 9, 70])
def test_o_is_the_weighted_sum_of_values(feature, normalize, length, causal):
    q, k, v = problem(length)
    o, _ = linear_attention(q, k, v, feature=feature, normalize=normalize, causal=causal)
    wanted = as_matrix(q, k, v, feature, normalize, causal)
    torch.testing.assert_close(o, wanted, atol=1e-12 * max(1, float(wanted.abs().max())), rtol=0)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("feature", "normalize"), ALL)
def test_pieces_give_what_the_whole_gives(feature, normalize, causal):
    q, k, v = problem(70)
    whole, last = linear_attention(q, k, v, feature=feature, normalize=normalize)
    state, outputs = None, []
    for piece in zip(*(x.split([1, 0, 33, 36], 2) for x in (q, k, v)), strict=True):
        o, state = linear_attention(*piece, state, feature=feature, normalize=normalize)
        outputs.append(o)
    torch.testing.assert_close(torch.cat(outputs, 2), whole, atol=1e-12 * float(whole.abs().max()), rtol=0)
    for ours, theirs in zip(state, last, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-11, rtol=1e-12)
    if not causal:  # the last piece sees everything, and so does the whole
        asked = {"feature": feature, "normalize": normalize, "causal": False}
        _, before = linear_attention(q[:, :, :30], k[:, :, :30], v[:, :, :30], **asked)
        after, _ = linear_attention(q[:, :, 30:], k[:, :, 30:], v[:, :, 30:], before, **asked)
        everything, _ = linear_attention(q, k, v, **asked)
        torch.testing.assert_close(after, everything[:, :, 30:], atol=1e-11, rtol=1e-12)


@pytest.mark.parametrize("feature", [f for f in LINEAR_FEATURES if f != "identity"])
def test_weights_of_a_row_sum_to_one(feature):
    q, k, v = problem(70)
    o, _ = linear_attention(q, k, torch.ones_like(v), feature=feature)
    met = (PHI["relu"](q) @ PHI["relu"](k).mT).tril().sum(-1) > 0 if feature == "relu" else torch.ones_like(q[..., 0])
    torch.testing.assert_close(o, met.to(o.dtype).unsqueeze(-1).expand_as(o), atol=1e-13, rtol=0)


def test_a_query_that_meets_no_key_gets_zero_and_no_nan():
    q, k, v = problem()
    q, k = (x.abs().neg().requires_grad_() for x in (q, k))
    o, _ = linear_attention(q, k, v, feature="relu")
    assert not o.any()
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(o.sum(), (q, k)))


def test_the_order_of_the_keys_makes_no_difference_if_all_are_seen():
    q, k, v = problem(20)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    for feature, normalize in ALL:
        one = linear_attention(q, k, v, feature=feature, normalize=normalize, causal=False)[0]
        two = linear_attention(q, k[:, :, order], v[:, :, order], feature=feature, normalize=normalize, causal=False)[0]
        torch.testing.assert_close(two, one, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("feature", ["exp", "efficient"])
def test_huge_exponents_overflow_nothing_and_shift_nothing(feature):
    q, k, v = problem(70, dtype=torch.float32)
    plain, _ = linear_attention(q, k, v, feature=feature)
    for shift in (-1e4, 1e4):
        moved, state = linear_attention(q + shift, k + shift, v, feature=feature)
        torch.testing.assert_close(moved, plain, atol=2e-3, rtol=0)  # shifted keys keep three digits
        assert all(torch.isfinite(part).all() for part in state)
    rising = k + torch.arange(70.0)[:, None] * 50
    o, _ = linear_attention(q, rising, v, feature=feature)
    torch.testing.assert_close(o, v, atol=1e-3, rtol=0)  # every key dwarfs all before it


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("feature", "normalize"), ALL)
def test_gradients_are_right_in_q_k_v_and_the_state(feature, normalize, causal):
    q, k, v = (x[:1, :1].abs() + 0.1 for x in problem(4))
    _, before = linear_attention(q, k, v, feature=feature, normalize=normalize)

    def run(q, k, v, S, z):
        state = LinearAttentionState(S, z, before.top)
        return linear_attention(q, k, v, state, feature=feature, normalize=normalize, causal=causal)[0]

    assert torch.autograd.gradcheck(run, [x.detach().requires_grad_() for x in (q, k, v, before.S, before.z)])


def test_half_types_keep_float32_sums():
    q, k, v = problem(70, 8, 8, dtype=torch.float32)
    for feature, normalize in ALL:
        exact, _ = linear_attention(q, k, v, feature=feature, normalize=normalize)
        half, state = linear_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), feature=feature, normalize=normalize)
        assert half.dtype == torch.bfloat16
        assert state.S.dtype == torch.float32
        assert (half - exact).abs().max() < 0.05 * exact.abs().max()
        # features are not rounded: the same as in float32 from what the halves say
        same = [t.bfloat16().float() for t in (q, k, v)]
        _, wanted = linear_attention(*same, feature=feature, normalize=normalize)
        torch.testing.assert_close(state.S, wanted.S, atol=1e-5 * float(wanted.S.abs().max()), rtol=0)


@pytest.mark.parametrize("feature", ["elu1", "exp", "efficient"])
def test_a_state_of_float64_stays_one(feature):
    q, k, v = problem(9, dtype=torch.float32)
    _, state = linear_attention(q, k, v, feature=feature)
    wide = LinearAttentionState(*(t.double() for t in state))
    for causal in (True, False):
        _, after = linear_attention(q, k, v, wide, feature=feature, causal=causal)
        assert after.S.dtype == torch.float64


@pytest.mark.parametrize("feature", ["exp", "efficient"])
def test_a_call_without_tokens_leaves_the_state_alone(feature):
    q, k, v = problem(9)
    none = [t[:, :, :0] for t in (q, k, v)]
    for causal in (True, False):
        _, first = linear_attention(*none, feature=feature, causal=causal)
        _, first = linear_attention(*none, first, feature=feature, causal=causal)
        o, _ = linear_attention(q, k, v, first, feature=feature)
        torch.testing.assert_close(o, linear_attention(q, k, v, feature=feature)[0], atol=1e-13, rtol=0)


@pytest.mark.parametrize(("feature", "normalize"), ALL)
def test_streaming(feature, normalize):
    torch.manual_seed(0)
    check_streaming(LinearAttention(6, 2, feature=feature, normalize=normalize), 6)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(ALL), st.lists(st.integers(0, 13), max_size=6).map(sorted))
def test_every_split_gives_the_same(way, cuts):
    torch.manual_seed(0)
    check_streaming(LinearAttention(4, 2, feature=way[0], normalize=way[1]), 4, cuts=cuts)


def test_the_mixer_is_its_heads_projected():
    torch.manual_seed(0)
    mixer, x = LinearAttention(6, 2, head_dim=5).double(), torch.randn(2, 9, 6, dtype=torch.float64)
    q, k, v = (t.unflatten(-1, (2, 5)).transpose(1, 2) for t in mixer.qkv(x).chunk(3, -1))
    wanted = functional.linear(as_matrix(q, k, v, "elu1", True).transpose(1, 2).flatten(2), mixer.out.weight)
    torch.testing.assert_close(mixer(x)[0], wanted, atol=1e-12, rtol=0)


def test_keys_may_be_narrower_than_values():
    torch.manual_seed(0)
    mixer, x = LinearAttention(6, 2, key_dim=2).double(), torch.randn(2, 9, 6, dtype=torch.float64)
    q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in mixer.qkv(x).split([4, 4, 6], -1))
    wanted = functional.linear(as_matrix(q, k, v, "elu1", True).transpose(1, 2).flatten(2), mixer.out.weight)
    torch.testing.assert_close(mixer(x)[0], wanted, atol=1e-12, rtol=0)
    assert mixer(x)[1].S.shape == (2, 2, 2, 3)
    check_streaming(mixer, 6)


def test_taylor_attention_is_softmax_attention_with_the_polynomial_in_place_of_the_exponential():
    torch.manual_seed(0)
    linear = LinearAttention(12, 3, feature="taylor").double()
    softmax = MHA(12, 3, normalizer="taylor-softmax", rotary_base=None).double()
    softmax.load_state_dict(linear.state_dict())
    x = 3 * torch.randn(2, 150, 12, dtype=torch.float64)
    y, state = linear(x)
    torch.testing.assert_close(y, softmax(x)[0], atol=1e-12, rtol=0)
    assert state.S.shape == (2, 3, 1 + 4 + 10, 4)  # whatever came before


def test_the_mixer_compiles_as_one_graph():
    torch.compiler.reset()
    for feature in ("elu1", "exp"):
        mixer, x = LinearAttention(8, 2, feature=feature), torch.randn(2, 9, 8)
        before = LinearAttentionState(*(t.detach() for t in mixer(x)[1]))
        compiled = torch.compile(mixer, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, before)[0], mixer(x, before)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"feature": "cosine"}, "feature must be one of elu1, relu, exp, identity, efficient, taylor, got 'cosine'"),
        ({"feature": "identity"}, "can be negative and needs normalize=False"),
        ({"feature": "efficient", "normalize": False}, "normalised by itself and needs normalize=True"),
        ({"k": torch.zeros(2, 2, 8, 3)}, "k must be (2, 2, 9, 3) like q and v (2, 2, 9, 'P'), got (2, 2, 8, 3)"),
        ({"q": torch.zeros(2, 9, 3)}, "q must be real (batch, heads, length, N), N >= 1, got (2, 9, 3)"),
        ({"state": (1, 2, 3)}, "state must be a LinearAttentionState, got tuple"),
        (
            {"state": LinearAttentionState(torch.zeros(2, 2, 3, 2), torch.zeros(2, 2, 0), torch.zeros(2, 2, 0))},
            "state must have z of shape (2, 2, 3), got (2, 2, 0)",
        ),
        (
            {"state": LinearAttentionState(torch.zeros(2, 2, 2, 2), torch.zeros(2, 2, 3), torch.zeros(2, 2, 0))},
            "state must have S of shape (2, 2, 3, 2), got (2, 2, 2, 2)",
        ),
        (
            {"state": LinearAttentionState(torch.zeros(1, 2, 3, 2), torch.zeros(1, 2, 3), torch.zeros(1, 2, 0))},
            "state must have S of shape (2, 2, 3, 2), got (1, 2, 3, 2)",
        ),
        ({"chunk": 0}, "chunk must be a whole number of at least 1, got 0"),
    ],
)
def test_bad_input_is_named(arguments, sentence):
    q, k, v = problem(dtype=torch.float32)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        linear_attention(**({"q": q, "k": k, "v": v} | arguments))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dim": 0}, "dim to be a whole number of at least 1, not 0"),
        ({"dim": 6, "heads": 4}, "heads that divide dim, or head_dim, not dim=6 and heads=4"),
        ({"dim": 6, "heads": 2, "feature": "identity"}, "needs normalize=False"),
        ({"dim": 6, "heads": 2, "key_dim": 0}, "key_dim to be a whole number of at least 1, not 0"),
    ],
)
def test_bad_arguments_of_the_mixer_are_named(arguments, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        LinearAttention(**arguments)


def test_a_wrong_x_is_named():
    with pytest.raises(ValueError, match=r"LinearAttention wants x of shape \(batch, length, 6\), not \(2, 5\)"):
        LinearAttention(6, 2)(torch.zeros(2, 5))
