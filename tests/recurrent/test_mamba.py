"""Mamba: h_t = exp(Δ_t A) h_{t-1} + Δ_t x_t B_t, y_t = W_out((h_t C_t + D x_t) silu(z_t)); Δ, B, C from x_t."""

import importlib.util
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from carrel.layers import parameter_groups
from carrel.recurrent import Mamba, MambaState
from carrel.testing import check_streaming

KINDS = [True, False]


def small(dim=4, state_dim=3, seed=0, **options):
    torch.manual_seed(seed)
    block = Mamba(dim, state_dim, **options).double()
    with torch.no_grad():
        block.dt_bias += 2  # longer steps, so that little tests see the state move
        if not block.selective:
            block.B.normal_()
    return block


def written_out(block, u):
    """The block's equations, token by token."""
    e, width = block.channels, block.conv.width
    x, z = (u @ block.in_proj.weight.T).split(e, -1)
    padded = torch.cat([x.new_zeros(x.shape[0], width - 1, e), x], 1)
    taps = [padded[:, k : k + x.shape[1]] * block.conv.weight[:, k] for k in range(width)]
    x = functional.silu(sum(taps) + block.conv.bias)
    A, h, rows = -block.A_log.exp(), x.new_zeros(x.shape[0], e, block.state_dim), []
    for t in range(x.shape[1]):
        if block.selective:
            sizes = [block.dt_rank, block.state_dim, block.state_dim]
            delta, B, C = (x[:, t] @ block.x_proj.weight.T).split(sizes, -1)
            step = functional.softplus(delta @ block.dt_proj.weight.T + block.dt_bias)
            B, C = B.unsqueeze(1), C.unsqueeze(1)
        else:
            step, B, C = functional.softplus(block.dt_bias).expand(x.shape[0], e), block.B, block.C
        step = step.unsqueeze(-1)
        h = torch.exp(step * A) * h + step * B * x[:, t].unsqueeze(-1)
        rows.append(((C * h).sum(-1) + block.D * x[:, t]) * functional.silu(z[:, t]))
    return torch.stack(rows, 1) @ block.out_proj.weight.T, h


@pytest.mark.parametrize("selective", KINDS)
@pytest.mark.parametrize("options", [{}, {"expand": 1, "conv": 1}, {"expand": 3, "conv": 2, "dt_rank": 3}])
def test_output_is_the_block_written_out(selective, options):
    block = small(selective=selective, **options)
    u = torch.randn(2, 9, 4, dtype=torch.float64)
    y, state = block(u)
    wanted, h = written_out(block, u)
    torch.testing.assert_close(y, wanted, atol=1e-12, rtol=0)
    torch.testing.assert_close(state.h, h, atol=1e-12, rtol=0)


@pytest.mark.parametrize("selective", KINDS)
def test_streaming(selective):
    check_streaming(small(6, 5, selective=selective), 6)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(KINDS), st.lists(st.integers(0, 13), max_size=6).map(sorted))
def test_every_split_gives_the_same(selective, cuts):
    check_streaming(small(selective=selective), 4, cuts=cuts)


def test_only_selection_lets_a_token_decide_how_fast_the_state_is_forgotten():
    """The state after a fixed last token, as a function of the state before, has one slope without selection."""
    for selective in KINDS:
        block = small(selective=selective, conv=1)
        slopes = []
        for scale in (0.1, 3.0):
            token = scale * torch.ones(1, 1, 4, dtype=torch.float64)
            states = [MambaState(torch.zeros(1, 8, 0), torch.full((1, 8, 3), v).double()) for v in (0.0, 1.0)]
            after = [block(token, state)[1].h for state in states]
            slopes.append(after[1] - after[0])
        assert torch.allclose(*slopes, atol=1e-12) != selective


def test_the_start_is_the_papers():
    torch.manual_seed(0)
    block = Mamba(64, 16, dt_min=1e-3, dt_max=0.1)
    assert block.dt_rank == 4
    assert Mamba(65).dt_rank == 5
    torch.testing.assert_close(block.A_log.exp()[7], torch.arange(1.0, 17))
    assert (block.D == 1).all()
    step = functional.softplus(block.dt_bias)
    assert 0.999e-3 < step.min() < 2e-3
    assert 0.05 < step.max() < 0.1001
    middle = step.log().mean()
    assert abs(middle - math.log(1e-2)) < 4 * math.log(100) / math.sqrt(12 * 128)
    assert block.dt_proj.weight.abs().max() <= 0.5
    assert functional.softplus(Mamba(64, dt_min=1e-6, dt_max=1e-5).dt_bias).min() > 0.99e-4


def test_gradients_are_right_in_every_parameter_the_input_and_the_state():
    for selective in KINDS:
        block = small(dim=2, state_dim=2, conv=2, selective=selective)
        names = [name for name, _ in block.named_parameters()]
        shared = {"in_proj.weight", "conv.weight", "conv.bias", "dt_bias", "A_log", "D", "out_proj.weight"}
        assert set(names) == shared | ({"x_proj.weight", "dt_proj.weight"} if selective else {"B", "C"})

        def run(u, conv, h, *values, block=block, names=names):
            state = MambaState(conv, h)
            y, state = torch.func.functional_call(block, dict(zip(names, values, strict=True)), (u, state))
            return y, *state

        u, conv, h = (torch.randn(s, dtype=torch.float64).requires_grad_() for s in ((1, 3, 2), (1, 4, 1), (1, 4, 2)))
        assert torch.autograd.gradcheck(run, (u, conv, h, *block.parameters()))


@pytest.mark.parametrize("selective", KINDS)
@pytest.mark.parametrize("state", [False, True])
def test_block_compiles_as_one_graph(selective, state):
    torch.compiler.reset()
    block = small(selective=selective).float()
    u = torch.randn(2, 9, 4)
    before = MambaState(*(t.detach() for t in block(u)[1])) if state else None
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    results = []
    for call in (block, compiled):
        block.zero_grad()
        y, after = call(u, before)
        (y.square().sum() + after.h.square().sum()).backward()
        results.append([y, *after, *(p.grad.clone() for p in block.parameters())])
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("selective", KINDS)
def test_autocast_keeps_the_recurrence_in_float32(selective):
    block = small(dim=16, state_dim=4, selective=selective).float()
    u = torch.randn(2, 100, 16)
    exact = block(u)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = block(u)
    assert state.h.dtype == torch.float32
    assert (y - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("selective", KINDS)
def test_half_precision_block_keeps_a_float32_state(selective):
    block = small(selective=selective).to(torch.bfloat16)
    y, state = block(torch.randn(2, 5, 4, dtype=torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert state.h.dtype == torch.float32
    assert block(torch.randn(2, 1, 4, dtype=torch.bfloat16), state)[0].dtype == torch.bfloat16


def test_the_state_has_the_same_size_after_any_number_of_tokens():
    block = small()
    sizes = {tuple(t.shape for t in block(torch.randn(2, n, 4).double())[1]) for n in (0, 1, 3, 50)}
    assert sizes == {((2, 8, 3), (2, 8, 3))}


def test_the_rates_and_the_skip_are_kept_from_weight_decay():
    block = small()
    kept = {id(p) for p in parameter_groups(block, weight_decay=0.1)[1]["params"]}
    assert {id(block.A_log), id(block.D), id(block.dt_bias), id(block.conv.bias)} == kept


# ------------------------------------------------------------------------------------------- weights of transformers


def theirs(**options):
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("needs transformers, to compare with its MambaMixer")
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    torch.manual_seed(3)
    sizes = {"hidden_size": 24, "state_size": 5, "num_hidden_layers": 1, "time_step_rank": 3}
    mixer = MambaMixer(MambaConfig(**(sizes | options)), layer_idx=0).double()
    for p in mixer.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return mixer


@pytest.mark.filterwarnings("ignore")  # theirs says that it is slow here
@pytest.mark.parametrize("options", [{}, {"expand": 1, "conv_kernel": 2}, {"use_conv_bias": False}])
def test_weights_of_a_transformers_mixer_give_its_outputs(options, monkeypatch):
    mixer = theirs(**options)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # it would round to float32 inside
    u = torch.randn(2, 33, 24, dtype=torch.float64)
    with torch.no_grad():
        wanted = mixer(u)
    block = Mamba.from_transformers(mixer.state_dict())
    y, _ = block(u)
    assert y.requires_grad
    torch.testing.assert_close(y, wanted, atol=1e-8, rtol=0)
    whole = {f"backbone.layers.0.mixer.{name}": t for name, t in mixer.state_dict().items()} | {"other": u}
    again, _ = Mamba.from_transformers(whole, prefix="backbone.layers.0.mixer.")(u)
    torch.testing.assert_close(again, y, atol=0, rtol=0)


def test_loaded_weights_are_copies():
    block = small(8, 4)
    names = {"conv.weight": "conv1d.weight", "conv.bias": "conv1d.bias", "dt_bias": "dt_proj.bias"}
    weights = {names.get(name, name): t for name, t in block.state_dict().items()}
    weights["conv1d.weight"] = weights["conv1d.weight"].unsqueeze(1)
    loaded = Mamba.from_transformers(weights)
    with torch.no_grad():
        loaded.A_log.zero_()
    assert (block.A_log[:, 1] > 0).all()


def test_a_state_dict_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"this one lacks A_log, D, .*x_proj.weight"):
        Mamba.from_transformers({})
    names = {"conv.weight": "conv1d.weight", "conv.bias": "conv1d.bias", "dt_bias": "dt_proj.bias"}
    weights = {names.get(name, name): t for name, t in small(8, 4).state_dict().items()}
    weights["conv1d.weight"] = weights["conv1d.weight"].unsqueeze(1)
    with pytest.raises(ValueError, match=r"has in_proj.bias, which has no place here"):
        Mamba.from_transformers(weights | {"in_proj.bias": torch.zeros(32)})
    with pytest.raises(ValueError, match=r"Mamba wants D of shape \(16,\), not \(3,\)"):
        Mamba.from_transformers(weights | {"D": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"a multiple of dim, not 16 and 5"):
        Mamba.from_transformers(weights | {"out_proj.weight": torch.zeros(5, 16)})


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dim": 0}, "dim to be a whole number of at least 1, not 0"),
        ({"dim": 4, "state_dim": 0}, "state_dim to be a whole number of at least 1, not 0"),
        ({"dim": 4, "expand": 1.5}, "expand to be a whole number of at least 1, not 1.5"),
        ({"dim": 4, "conv": 0}, "conv to be a whole number of at least 1, not 0"),
        ({"dim": 4, "dt_rank": "all"}, "dt_rank to be a whole number of at least 1, not 'all'"),
        ({"dim": 4, "dt_min": 0.0}, "0 < dt_min <= dt_max, not dt_min=0.0"),
        ({"dim": 4, "dt_min": 0.2}, "0 < dt_min <= dt_max, not dt_min=0.2 and dt_max=0.1"),
    ],
)
def test_bad_arguments_are_named(arguments, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Mamba(**arguments)


GOOD = MambaState(torch.zeros(2, 8, 3), torch.zeros(2, 8, 3))


@pytest.mark.parametrize(
    ("x", "state", "sentence"),
    [
        (torch.zeros(2, 4), None, "x of shape (batch, length, 4), not (2, 4)"),
        (torch.zeros(2, 5, 4), tuple(GOOD), "a MambaState or None as its state, not tuple"),
        (torch.zeros(2, 5, 4), (GOOD.h,), "a MambaState or None as its state, not tuple"),
        (torch.zeros(2, 5, 4), GOOD._replace(h=torch.zeros(2, 8, 4)), "h of shape (2, 8, 3), not (2, 8, 4)"),
        (torch.zeros(2, 5, 4), GOOD._replace(conv=torch.zeros(2, 3, 8)), "conv of shape (2, 8, 3), not (2, 3, 8)"),
        (torch.zeros(1, 5, 4), GOOD, "conv of shape (1, 8, 3), not (2, 8, 3)"),
    ],
)
def test_bad_input_is_named(x, state, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Mamba(4, 3)(x, state)
