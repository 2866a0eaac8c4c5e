"""RWKVChannelMix: y_t = σ(r_t) W_v relu(k_t)²."""

import torch

from carrel.recurrent import RWKVChannelMix

REAL = torch.float64


def test_output_is_the_layer_written_out():
    torch.manual_seed(0)
    m, x = RWKVChannelMix(5, hidden=7).double(), torch.randn(2, 9, 5, dtype=REAL)
    before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
    r = (m.mix_r * x + (1 - m.mix_r) * before) @ m.receptance.weight.T
    k = (m.mix_k * x + (1 - m.mix_k) * before) @ m.key.weight.T
    wanted = torch.sigmoid(r) * (k.clamp(min=0) ** 2 @ m.value.weight.T)
    torch.testing.assert_close(m(x)[0], wanted, atol=1e-12, rtol=0)


def test_it_looks_one_token_back_and_no_further():
    torch.manual_seed(0)
    m, x = RWKVChannelMix(5).double(), torch.randn(2, 9, 5, dtype=REAL)
    for earliest, moved in ((4, False), (5, True)):
        other = torch.cat([torch.randn(2, earliest, 5, dtype=REAL), x[:, earliest:]], 1)
        assert torch.equal(m(other)[0][:, 5], m(x)[0][:, 5]) != moved


def test_scaling_the_input_of_the_rectifier_scales_its_square():
    torch.manual_seed(0)
    m, x = RWKVChannelMix(5).double(), torch.randn(2, 9, 5, dtype=REAL)
    y = m(x)[0]
    with torch.no_grad():
        m.key.weight.mul_(3)
    torch.testing.assert_close(m(x)[0], 9 * y, atol=1e-12, rtol=0)
