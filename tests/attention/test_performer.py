"""Performer: E φ(q)·φ(k) = exp(q·k / √d) for φ(x)_r = m^-1/2 exp(w_r·u - |u|²/2), u = x / d^1/4."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carrel.attention import Performer, PerformerState, gaussian_directions, random_features
from carrel.testing import check_streaming

KINDS = ["positive", "hyperbolic", "relu"]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("orthogonal", [True, False])
@pytest.mark.parametrize("kind", ["positive", "hyperbolic", "trig"])
def test_products_of_features_average_to_the_exponential(kind, orthogonal):
    draw, d, m, draws = generator(), 4, 6, 4000
    q, k = torch.randn(2, 1, d, generator=draw, dtype=torch.float64)
    products = torch.empty(draws, dtype=torch.float64)
    for i in range(draws):
        w = gaussian_directions(m, d, orthogonal=orthogonal, generator=draw)
        products[i] = (random_features(q, w, kind) * random_features(k, w, kind)).sum()
    wanted = math.exp(float((q * k).sum()) / math.sqrt(d))
    assert abs(float(products.mean()) - wanted) < 4 * float(products.std()) / math.sqrt(draws)


def test_features_are_their_formula():
    x, w = torch.randn(3, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    u = x / 4**0.25
    at, half = u @ w.T, u.square().sum(-1, keepdim=True) / 2
    wanted = {
        "positive": torch.exp(at - half) / 5**0.5,
        "hyperbolic": torch.exp(torch.cat([at, -at], -1) - half) / 10**0.5,
        "trig": torch.exp(half) * torch.cat([at.sin(), at.cos()], -1) / 5**0.5,
        "relu": (at.clamp(min=0) + 1e-3) / 5**0.5,
    }
    for kind, features in wanted.items():
        torch.testing.assert_close(random_features(x, w, kind), features, atol=1e-13, rtol=1e-13)
    for kind in KINDS:
        assert (random_features(x, w, kind) > 0).all()


def test_directions_are_orthogonal_within_a_block_and_as_long_as_normal_vectors():
    w = gaussian_directions(10, 4, generator=generator())
    for start in (0, 4, 8):
        block = w[start : start + 4]
        gram = block @ block.T
        assert (gram - gram.diagonal().diag()).abs().max() < 1e-12
    assert (w[:4] @ w[4:8].T).abs().max() > 0.1
    many = gaussian_directions(4000, 4, generator=generator())
    assert abs(float(many.square().sum(1).mean()) - 4) < 4 * math.sqrt(8 / 4000)
    assert (many.mean(0).abs() < 4 / math.sqrt(4000)).all()  # a QR without its signs has first entries of one sign


@pytest.mark.parametrize("kind", KINDS)
def test_the_mixer_is_the_ratio_of_its_features_whatever_is_subtracted(kind):
    torch.manual_seed(0)
    mixer, x = Performer(8, 2, features=5, kind=kind).double(), torch.randn(2, 70, 8, dtype=torch.float64)
    q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in mixer.qkv(x).chunk(3, -1))
    weights = (random_features(q, mixer.directions, kind) @ random_features(k, mixer.directions, kind).mT).tril()
    o = weights @ v / weights.sum(-1, keepdim=True)
    wanted = mixer.out(o.transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x)[0], wanted, atol=1e-12, rtol=0)


def test_the_error_against_softmax_attention_falls_with_the_root_of_the_features():
    torch.manual_seed(0)
    x, errors = torch.randn(4, 40, 8, dtype=torch.float64), {64: [], 4096: []}
    weight = torch.randn(24, 8, dtype=torch.float64) / 8
    for m, found in errors.items():
        for seed in range(5):
            mixer = Performer(8, 2, features=m, orthogonal=False, generator=generator(seed)).double()
            with torch.no_grad():
                mixer.qkv.weight.copy_(weight)
                mixer.out.weight.copy_(torch.eye(8))
                q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in mixer.qkv(x).chunk(3, -1))
                o = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
                o = o.transpose(1, 2).flatten(2)
                found.append(float((mixer(x)[0] - o).square().mean().sqrt() / o.std()))
    few, many = (sorted(found)[2] for found in errors.values())
    assert many < 0.03
    assert 4 < few / many < 16  # 8, by the law of large numbers


@pytest.mark.parametrize("kind", ["positive", "hyperbolic"])
def test_huge_inputs_give_no_nan(kind):
    torch.manual_seed(0)
    mixer = Performer(8, 2, kind=kind)
    x = 300 * torch.randn(2, 70, 8)
    y, state = mixer(x)
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(t).all() for t in state[:3])
    x = 10 * torch.randn(2, 1, 8)  # features of some e^-40, and a token that sees itself alone
    torch.testing.assert_close(mixer(x)[0], mixer.out(mixer.qkv(x)[..., 16:]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_streaming(kind):
    torch.manual_seed(0)
    check_streaming(Performer(8, 2, features=5, kind=kind), 8)


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(KINDS), st.lists(st.integers(0, 13), max_size=6).map(sorted))
def test_every_split_gives_the_same(kind, cuts):
    torch.manual_seed(0)
    check_streaming(Performer(8, 2, features=5, kind=kind), 8, cuts=cuts)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_right_in_the_input_and_every_parameter(kind):
    torch.manual_seed(0)
    mixer = Performer(4, 2, features=3, kind=kind).double()
    names = [name for name, _ in mixer.named_parameters()]
    _, before = mixer(torch.randn(1, 2, 4, dtype=torch.float64))
    before = PerformerState(*(t.detach() for t in before))

    def run(x, *values):
        return torch.func.functional_call(mixer, dict(zip(names, values, strict=True)), (x, before))[0]

    x = torch.randn(1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, [x, *mixer.parameters()])


def test_redrawing_changes_the_features_and_refuses_older_states():
    torch.manual_seed(0)
    mixer, x = Performer(8, 2), torch.randn(2, 5, 8)
    before, (y, state) = mixer.directions.clone(), mixer(x)
    mixer(x, state)
    mixer.redraw_(generator(3))
    assert (mixer.directions != before).any()
    assert (mixer(x)[0] != y).any()
    with pytest.raises(ValueError, match="drawn anew after this state was made"):
        mixer(x, state)
    mixer(x, mixer(x)[1])
    free = Performer(8, 2, orthogonal=False)
    free.redraw_(generator(3))
    w = free.directions[:4].double()
    assert (w @ w.T - (w @ w.T).diag().diag()).abs().max() > 0.1  # as far from right angles as the first draw was


def test_the_number_of_features_is_d_ln_d_and_they_travel_with_the_module():
    mixer = Performer(64, 2, generator=generator(5))
    assert mixer.directions.shape == (math.ceil(32 * math.log(32)), 32)
    again = Performer(64, 2, generator=generator(5))
    torch.testing.assert_close(again.directions, mixer.directions, atol=0, rtol=0)
    other = Performer(64, 2)
    other.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(other.directions, mixer.directions, atol=0, rtol=0)
    assert not mixer.directions.requires_grad


def test_half_precision_keeps_float32_sums():
    torch.manual_seed(0)
    mixer, x = Performer(16, 2), torch.randn(2, 70, 16)
    exact = mixer(x)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = mixer(x)
    assert state.S.dtype == torch.float32
    assert (y - exact).abs().max() < 0.05 * exact.abs().max()
    # exponents of half types would be wrong by whole factors: with queries and keys of float32 nothing may change
    q, k, v = (torch.randn(2, 2, 70, 8) for _ in range(3))
    mixer.qkv = torch.nn.Identity()
    given = torch.stack([8 * q, 8 * k, v], 0).permute(1, 3, 0, 2, 4).flatten(2)
    mixer.out, mixer.dim = torch.nn.Identity(), given.shape[-1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = mixer(given)[0]
    torch.testing.assert_close(half, mixer(given)[0], atol=1e-5, rtol=0)


def test_it_compiles_as_one_graph():
    torch.compiler.reset()
    mixer, x = Performer(8, 2), torch.randn(2, 9, 8)
    before = PerformerState(*(t.detach() for t in mixer(x)[1]))
    compiled = torch.compile(mixer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, before)[0], mixer(x, before)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dim": 8, "features": 0}, "features to be a whole number of at least 1, not 0"),
        ({"dim": 8, "kind": "trig"}, "kind to be positive, hyperbolic or relu, not 'trig'"),
        ({"dim": 8, "heads": 3}, "heads that divide dim, or head_dim, not dim=8 and heads=3"),
    ],
)
def test_bad_arguments_are_named(arguments, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Performer(**arguments)


def test_an_unknown_kind_and_a_wrong_state_are_named():
    with pytest.raises(ValueError, match="one of positive, hyperbolic, trig, relu, not 'cosine'"):
        random_features(torch.zeros(1, 4), torch.zeros(2, 4), "cosine")
    state = PerformerState(torch.zeros(2, 4, 3, 2), torch.zeros(2, 4, 3), torch.zeros(2, 4, 1), torch.zeros(2))
    with pytest.raises(ValueError, match=r"S of shape \(2, 4, 2, 2\), not \(2, 4, 3, 2\)"):
        Performer(8, 4, features=2)(torch.zeros(2, 1, 8), state)
