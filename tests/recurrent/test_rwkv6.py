"""RWKV6: o_t = (S_{t-1} + (u k_t) v_tᵀ)ᵀ r_t with S_t = diag(w_t) S_{t-1} + k_t v_tᵀ, the rates chosen by the token."""

import pytest
import torch
from torch.nn import functional

from carrel.recurrent import RWKV6, RWKV6State

REAL = torch.float64


def small(dim=6, head_dim=3, seed=0):
    """With rates and blends that depend on the token."""
    torch.manual_seed(seed)
    mixer = RWKV6(dim, head_dim=head_dim).double()
    with torch.no_grad():
        for p in (mixer.mix_down, mixer.mix_up, mixer.decay_down, mixer.decay_up, mixer.norm_bias):
            p.normal_()
        mixer.decay.uniform_(-3, 1)
        mixer.bonus.normal_()
    return mixer


def parts(m, x):
    """r, k, v, w: (batch, length, heads, head_dim), and the gate, from the equations."""
    before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
    small = torch.tanh((x + (before - x) * m.mix_first) @ m.mix_down).unflatten(-1, (5, -1))
    blends = [x + (before - x) * (m.mix[i] + small[:, :, i] @ m.mix_up[i]) for i in range(5)]
    w = torch.exp(-torch.exp(m.decay + torch.tanh(blends[0] @ m.decay_down) @ m.decay_up))
    r, k, v = blends[3] @ m.receptance.weight.T, blends[1] @ m.key.weight.T, blends[2] @ m.value.weight.T
    return [t.unflatten(-1, (m.heads, -1)) for t in (r, k, v, w)], functional.silu(blends[4] @ m.gate.weight.T)


def finished(m, o, gate):
    """Norm of every head, gate and projection."""
    mean, variance = o.mean(-1, keepdim=True), o.var(-1, keepdim=True, unbiased=False)
    normed = ((o - mean) / torch.sqrt(variance + 64e-5)).flatten(2) * m.norm_weight + m.norm_bias
    return (gate * normed) @ m.output.weight.T


def test_output_is_the_product_form():
    """o_t = Σ_{i<t} (r_t · (w_{t-1} ⋯ w_{i+1}) k_i) v_i + (r_t · u k_t) v_t."""
    mixer, x = small(), torch.randn(2, 80, 6, dtype=REAL)
    (r, k, v, w), gate = parts(mixer, x)
    o = torch.zeros_like(v)
    for t in range(80):
        faded = torch.ones_like(w[:, 0])
        for i in range(t - 1, -1, -1):
            o[:, t] += (r[:, t] * faded * k[:, i]).sum(-1, keepdim=True) * v[:, i]
            faded = faded * w[:, i]
        o[:, t] += (r[:, t] * mixer.bonus * k[:, t]).sum(-1, keepdim=True) * v[:, t]
    torch.testing.assert_close(mixer(x)[0], finished(mixer, o, gate), atol=1e-12, rtol=0)


def test_the_state_is_the_matrix_recurrence():
    mixer, x = small(), torch.randn(2, 9, 6, dtype=REAL)
    (_, k, v, w), _ = parts(mixer, x)
    S = torch.zeros(2, 2, 3, 3, dtype=REAL)
    for t in range(9):
        S = w[:, t].unsqueeze(-1) * S + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
    torch.testing.assert_close(mixer(x)[1].S, S, atol=1e-12, rtol=0)


@pytest.mark.parametrize("rate", [9.0, 1000.0])
def test_an_endless_rate_leaves_the_token_before_and_the_bonus(rate):
    """S_{t-1} is then k_{t-1} v_{t-1}ᵀ: the last factor has met nothing but what came before it."""
    mixer, x = small(), torch.randn(2, 9, 6, dtype=REAL)
    with torch.no_grad():
        mixer.decay.fill_(rate)
        mixer.decay_up.zero_()
    (r, k, v, _), gate = parts(mixer, x)
    o = (r * mixer.bonus * k).sum(-1, keepdim=True) * v
    o[:, 1:] += (r[:, 1:] * k[:, :-1]).sum(-1, keepdim=True) * v[:, :-1]
    inputs = [x.requires_grad_(), *mixer.parameters()]
    y = mixer(x)[0]
    torch.testing.assert_close(y, finished(mixer, o, gate), atol=1e-12, rtol=0)
    assert all(torch.isfinite(t).all() for t in torch.autograd.grad(y.sum(), inputs))


def test_scaling_every_key_and_the_memory_scales_what_is_read_and_the_norm_takes_it_out():
    mixer, x = small(), torch.randn(2, 9, 6, dtype=REAL)
    state = RWKV6State(torch.randn(2, 6, dtype=REAL), torch.randn(2, 2, 3, 3, dtype=REAL))
    with torch.no_grad():
        mixer.norm_bias.zero_()
        mixer.value.weight.mul_(1e4)
        state = state._replace(S=state.S * 1e4)
        y, after = mixer(x, state)
        mixer.value.weight.mul_(100)
        scaled, after_scaled = mixer(x, state._replace(S=state.S * 100))
    torch.testing.assert_close(after_scaled.S, 100 * after.S, atol=0, rtol=1e-12)
    torch.testing.assert_close(scaled, y, atol=1e-6, rtol=0)


def test_the_token_chooses_the_rate():
    """The memory after a last token, as a function of the memory before, has a slope that depends on the token."""
    for chosen in (True, False):
        mixer = small()
        if not chosen:
            with torch.no_grad():
                mixer.decay_up.zero_()
        slopes = []
        for scale in (0.1, 3.0):
            token = torch.full((1, 1, 6), scale, dtype=REAL)
            shift = torch.zeros(1, 6, dtype=REAL)
            memories = [torch.full((1, 2, 3, 3), value, dtype=REAL) for value in (0.0, 1.0)]
            after = [mixer(token, RWKV6State(shift, S))[1].S for S in memories]
            slopes.append(after[1] - after[0])
        assert torch.allclose(*slopes, atol=1e-12) != chosen


def test_the_start_has_rates_that_no_token_changes():
    torch.manual_seed(0)
    mixer = RWKV6(64)
    assert (mixer.decay[0], mixer.decay[-1]) == (-6, -1)
    (_, _, _, w), _ = parts(mixer, torch.randn(2, 7, 64))
    torch.testing.assert_close(w.flatten(2), torch.exp(-mixer.decay.exp()).expand(2, 7, 64))
    assert mixer.mix_down.shape == (64, 160)
    assert RWKV6(16, head_dim=8).mix_down.shape == (16, 80)
    assert RWKV6(16, head_dim=8).decay_down.shape == (16, 16)
