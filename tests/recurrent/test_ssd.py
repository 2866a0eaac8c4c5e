"""SSD: h_t = exp(Δ_t A) h_{t-1} + B_t (Δ_t x_t)', y_t = W_out norm((h_t' C_t + D x_t) silu(z_t)); Δ, B, C from x_t."""

import importlib.util
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from carrel.layers import parameter_groups
from carrel.recurrent import SSD, SSDState
from carrel.testing import check_streaming

KINDS = [True, False]


def small(dim=4, state_dim=3, head_dim=2, seed=0, **options):
    torch.manual_seed(seed)
    block = SSD(dim, state_dim, head_dim, **options).double()
    with torch.no_grad():
        block.dt_bias += 2  # longer steps, so that little tests see the state move
        block.norm.normal_()
        block.D.normal_()
        if not block.selective:
            block.B.normal_()
    return block


def written_out(block, u):
    """The block's equations, token by token and head by head."""
    N, P, heads, width = block.state_dim, block.head_dim, block.heads, block.conv.width
    z, x, delta = block.in_proj(u).split(block.sizes, -1)
    padded = torch.cat([x.new_zeros(x.shape[0], width - 1, x.shape[2]), x], 1)
    taps = [padded[:, k : k + x.shape[1]] * block.conv.weight[:, k] for k in range(width)]
    x = functional.silu(sum(taps) + block.conv.bias)
    h, rows = x.new_zeros(x.shape[0], heads, N, P), []
    for t in range(x.shape[1]):
        out = []
        for i in range(heads):
            v = x[:, t, i * P : (i + 1) * P]
            if block.selective:
                g = i // (heads // block.groups)
                B = x[:, t, block.channels + g * N : block.channels + (g + 1) * N]
                at = block.channels + block.groups * N
                C = x[:, t, at + g * N : at + (g + 1) * N]
                step = functional.softplus(delta[:, t, i] + block.dt_bias[i])
            else:
                B, C = (w[i].expand(len(x), N) for w in (block.B, block.C))
                step = functional.softplus(block.dt_bias[i]).expand(len(x))
            decay = torch.exp(-step * block.A_log[i].exp())[:, None, None]
            after = decay * h[:, i].clone() + B[:, :, None] * (step[:, None] * v)[:, None]
            h = torch.cat([h[:, :i], after[:, None], h[:, i + 1 :]], 1)
            out.append((after * C[:, :, None]).sum(1) + block.D[i] * v)
        y = (torch.cat(out, -1) * functional.silu(z[:, t])).unflatten(-1, (block.groups, -1))
        y = y / (y.square().mean(-1, keepdim=True) + block.eps).sqrt()
        rows.append(y.flatten(-2) * block.norm)
    return block.out_proj(torch.stack(rows, 1)), h


OPTIONS = [{}, {"expand": 1, "conv": 1}, {"expand": 3, "conv": 2, "groups": 2, "bias": True}, {"head_dim": 8}]


@pytest.mark.parametrize("selective", KINDS)
@pytest.mark.parametrize("options", OPTIONS)
def test_output_is_the_block_written_out(selective, options):
    block = small(selective=selective, **options)
    u = torch.randn(2, 9, 4, dtype=torch.float64)
    y, state = block(u)
    wanted, h = written_out(block, u)
    torch.testing.assert_close(y, wanted, atol=1e-12, rtol=0)
    torch.testing.assert_close(state.h, h, atol=1e-12, rtol=0)


def test_streaming_without_selection():
    """With it, tests/test_every_mixer_streams.py asks."""
    check_streaming(small(6, 5, 4, selective=False), 6)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(KINDS), st.lists(st.integers(0, 13), max_size=6).map(sorted))
def test_every_split_gives_the_same(selective, cuts):
    check_streaming(small(selective=selective), 4, cuts=cuts)


def test_what_comes_after_the_padding_on_the_right_changes_nothing_before_it():
    block, u = small(), torch.randn(2, 9, 4, dtype=torch.float64)
    padded = torch.cat([u, torch.zeros(2, 5, 4, dtype=torch.float64)], 1)
    torch.testing.assert_close(block(padded)[0][:, :9], block(u)[0], atol=1e-12, rtol=0)


def test_the_start_is_the_papers():
    torch.manual_seed(0)
    block = SSD(1024, 16, 8, dt_min=1e-3, dt_max=0.1)
    assert (block.heads, block.in_proj.out_features) == (256, 2 * 2048 + 2 * 16 + 256)
    A = block.A_log.exp()
    assert 1 <= A.min() < 1.5
    assert 15.5 < A.max() <= 16
    assert (block.D == 1).all()
    step = functional.softplus(block.dt_bias)
    assert 0.999e-3 < step.min() < 2e-3
    assert 0.05 < step.max() < 0.1001
    assert abs(step.log().mean() - math.log(1e-2)) < 4 * math.log(100) / math.sqrt(12 * 256)


def test_gradients_are_right_in_every_parameter_the_input_and_the_state():
    for selective in KINDS:
        block = small(2, 2, 2, conv=2, selective=selective)
        names = [name for name, _ in block.named_parameters()]
        shared = {"in_proj.weight", "conv.weight", "conv.bias", "dt_bias", "A_log", "D", "norm", "out_proj.weight"}
        assert set(names) == shared | (set() if selective else {"B", "C"})

        def run(u, conv, h, *values, block=block, names=names):
            y, state = torch.func.functional_call(block, dict(zip(names, values, strict=True)), (u, SSDState(conv, h)))
            return y, *state

        _, state = block(torch.zeros(1, 0, 2, dtype=torch.float64))
        given = [torch.randn_like(x) for x in (torch.zeros(1, 3, 2, dtype=torch.float64), *state)]
        assert torch.autograd.gradcheck(run, [x.requires_grad_() for x in (*given, *block.parameters())])


@pytest.mark.parametrize("selective", KINDS)
def test_block_compiles_as_one_graph(selective):
    torch.compiler.reset()
    block = small(selective=selective).float()
    u = torch.randn(2, 9, 4)
    before = SSDState(*(t.detach() for t in block(u)[1]))
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    results = []
    for call in (block, compiled):
        block.zero_grad()
        y, after = call(u, before)
        (y.square().sum() + after.h.square().sum()).backward()
        results.append([y, *after, *(p.grad.clone() for p in block.parameters())])
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("selective", KINDS)
def test_half_precision_keeps_a_float32_state(selective):
    block = small(16, 4, 8, selective=selective).float()
    u = torch.randn(2, 100, 16)
    exact = block(u)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = block(u)
    assert state.h.dtype == torch.float32
    assert (y - exact).abs().max() < 0.05 * exact.abs().max()
    block = block.to(torch.bfloat16)
    y, state = block(u.bfloat16())
    assert (y.dtype, state.h.dtype) == (torch.bfloat16, torch.float32)
    assert block(u[:, :1].bfloat16(), state)[0].dtype == torch.bfloat16


def test_what_weight_decay_would_harm_is_kept_from_it():
    block = small()
    kept = {id(p) for p in parameter_groups(block, weight_decay=0.1)[1]["params"]}
    assert {id(block.A_log), id(block.D), id(block.dt_bias), id(block.norm), id(block.conv.bias)} == kept


# ------------------------------------------------------------------------------------------- weights of transformers


def theirs(**options):
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("needs transformers, to compare with its Mamba2Mixer")
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    torch.manual_seed(3)
    sizes = {"hidden_size": 24, "state_size": 5, "num_hidden_layers": 1, "num_heads": 6, "head_dim": 8, "n_groups": 1}
    mixer = Mamba2Mixer(Mamba2Config(**(sizes | {"chunk_size": 16} | options)), layer_idx=0).double().eval()
    for p in mixer.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return mixer


@pytest.mark.filterwarnings("ignore")  # theirs says that it is slow here
@pytest.mark.parametrize("options", [{}, {"n_groups": 3, "conv_kernel": 2}, {"use_conv_bias": False, "use_bias": True}])
def test_weights_of_a_transformers_mixer_give_its_outputs(options, monkeypatch):
    mixer = theirs(**options)
    u = torch.randn(2, 33, 24, dtype=torch.float64)
    with torch.no_grad(), monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "float", torch.Tensor.double)  # it would round to float32 inside
        patched.setattr(torch, "float32", torch.float64)
        wanted = mixer(u)
    groups = options.get("n_groups", 1)
    block = SSD.from_transformers(mixer.state_dict(), groups=groups)
    y, _ = block(u)
    assert y.requires_grad
    torch.testing.assert_close(y, wanted, atol=1e-8, rtol=0)
    whole = {f"backbone.layers.0.mixer.{name}": t for name, t in mixer.state_dict().items()} | {"other": u}
    again, _ = SSD.from_transformers(whole, prefix="backbone.layers.0.mixer.", groups=groups)(u)
    torch.testing.assert_close(again, y, atol=0, rtol=0)
    with torch.no_grad():
        block.A_log.add_(1)
    assert (block.A_log != mixer.A_log).all()


def test_a_state_dict_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"Mamba2Mixer, but this one lacks A_log, D"):
        SSD.from_transformers({})
    names = {"conv.weight": "conv1d.weight", "conv.bias": "conv1d.bias", "norm": "norm.weight"}
    weights = {names.get(name, name): t for name, t in small(8, 4, 4).state_dict().items()}
    weights["conv1d.weight"] = weights["conv1d.weight"].unsqueeze(1)
    SSD.from_transformers(weights)
    with pytest.raises(ValueError, match=r"has x_proj.weight, which has no place here"):
        SSD.from_transformers(weights | {"x_proj.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"SSD wants D of shape \(4,\), not \(3,\)"):
        SSD.from_transformers(weights | {"D": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"that 3 groups share out, not 16 channels"):
        SSD.from_transformers(weights, groups=3)


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dim": 0}, "dim to be a whole number of at least 1, not 0"),
        ({"dim": 4, "state_dim": 1.5}, "state_dim to be a whole number of at least 1, not 1.5"),
        ({"dim": 4, "conv": 0}, "conv to be a whole number of at least 1, not 0"),
        ({"dim": 4, "head_dim": 3}, "head_dim to divide the 8 channels, and groups their heads, not head_dim=3"),
        ({"dim": 4, "head_dim": 4, "groups": 3}, "not head_dim=4 and groups=3"),
        ({"dim": 4, "head_dim": 4, "dt_min": 0.2}, "0 < dt_min <= dt_max, not dt_min=0.2 and dt_max=0.1"),
    ],
)
def test_bad_arguments_are_named(arguments, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        SSD(**arguments)


GOOD = SSDState(torch.zeros(2, 14, 3), torch.zeros(2, 4, 3, 2))


@pytest.mark.parametrize(
    ("x", "state", "sentence"),
    [
        (torch.zeros(2, 4), None, "x of shape (batch, length, 4), not (2, 4)"),
        (torch.zeros(2, 5, 4), tuple(GOOD), "SSDState or None as its state, not tuple"),
        (torch.zeros(2, 5, 4), GOOD._replace(h=torch.zeros(2, 4, 2, 3)), "h of shape (2, 4, 3, 2), not (2, 4, 2, 3)"),
        (torch.zeros(1, 5, 4), GOOD, "conv of shape (1, 14, 3), not (2, 14, 3)"),
    ],
)
def test_a_wrong_input_or_state_is_named(x, state, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        small().float()(x, state)
