"""Rotary positions: (R_m q) . (R_n k) = q . R_{n-m} k."""

import importlib.util
import math
import re

import pytest
import torch

from carrel.layers import (
    LinearScaling,
    NTKScaling,
    RoPE,
    YaRNScaling,
    rotary_frequencies,
    rotary_turns,
    rotate,
)


def at(pos, dim=8, base=10000.0):
    return rotary_turns(torch.as_tensor(pos), rotary_frequencies(dim, base), torch.float64)


def noise(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_frequencies_fall_from_one_by_a_fixed_factor():
    wanted = [100.0 ** (-2 * i / 6) for i in range(3)]
    torch.testing.assert_close(rotary_frequencies(6, 100.0).tolist(), wanted, atol=1e-15, rtol=0)


def test_pairs_of_channels_turn_by_the_angle():
    x = torch.zeros(1, 1, 1, 4, dtype=torch.float64)
    x[..., 1] = 2.0  # the second pair, its first member
    a = 7 * 100.0**-0.5
    wanted = [0.0, 2 * math.cos(a), 0.0, 2 * math.sin(a)]
    torch.testing.assert_close(rotate(x, at([7], 4, 100.0)).flatten().tolist(), wanted, atol=1e-14, rtol=0)


@pytest.mark.parametrize("shift", [1, 17, 100_000])
def test_products_depend_on_the_distance_only(shift):
    q, k, pos = noise(1, 2, 5, 8), noise(1, 2, 5, 8).flip(2), torch.tensor([0, 3, 4, 11, 60])
    here = rotate(q, at(pos)) @ rotate(k, at(pos)).mT
    there = rotate(q, at(pos + shift)) @ rotate(k, at(pos + shift)).mT
    torch.testing.assert_close(there, here, atol=1e-12 if shift < 1000 else 1e-9, rtol=0)


def test_sizes_stay_position_zero_stands_and_turning_back_undoes():
    x, pos = noise(1, 2, 5, 8), torch.tensor([0, 3, 4, 11, 60])
    turned = rotate(x, at(pos))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-12, rtol=0)
    assert torch.equal(turned[:, :, 0], x[:, :, 0])
    torch.testing.assert_close(rotate(turned, at(-pos)), x, atol=1e-12, rtol=0)


def test_rows_stand_where_pos_says():
    x, pos = noise(2, 3, 2, 8), torch.tensor([[5, 6], [0, 1]])
    both = rotate(x, at(pos))
    for row in range(2):
        assert torch.equal(both[row : row + 1], rotate(x[row : row + 1], at(pos[row])))


def test_far_positions_keep_their_angles_in_float32():
    turns = rotary_turns(torch.tensor([10**6]), rotary_frequencies(8), torch.float32)
    assert turns.cos.dtype == torch.float32
    assert abs(turns.cos[..., 0].item() - math.cos(1e6)) < 1e-7


def test_gradients_turn_back():
    x = noise(1, 2, 3, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rotate(x, at([4, 9, 2], 4)), x)


@pytest.mark.parametrize(("dim", "base"), [(3, 10000.0), (0, 10000.0), (4, 1.0), (4, float("nan"))])
def test_bad_sizes_are_named(dim, base):
    with pytest.raises(ValueError, match=re.escape(f"a base above 1, not {dim} and {base}")):
        rotary_frequencies(dim, base)


# ------------------------------------------------------------------------------------------------- longer contexts


def test_linear_scaling_presses_positions_together():
    x, pos = noise(1, 2, 5, 8), torch.tensor([0, 3, 6, 12, 60])
    torch.testing.assert_close(RoPE(8, scaling=LinearScaling(3))(x, pos), RoPE(8)(x, pos // 3), atol=1e-12, rtol=0)


@pytest.mark.parametrize("factor", [1.0, 4.0, 32.0])
def test_ntk_scaling_keeps_the_fastest_and_slows_the_slowest_fully(factor):
    plain, scaled = rotary_frequencies(64), rotary_frequencies(64, scaling=NTKScaling(factor))
    assert scaled[0] == plain[0] == 1
    torch.testing.assert_close(scaled[-1], plain[-1] / factor, rtol=1e-13, atol=0)
    ratio = plain / scaled
    torch.testing.assert_close(ratio, ratio[1] ** torch.arange(32), rtol=1e-12, atol=0)


def test_yarn_leaves_fast_pairs_and_slows_slow_ones():
    factor, length = 8.0, 4096
    plain, scaled = rotary_frequencies(128), rotary_frequencies(128, scaling=YaRNScaling(factor, length))
    turns = length * plain / (2 * math.pi)
    kept = torch.tensor([min(max((r - 1) / 31, 0), 1) for r in turns.tolist()], dtype=torch.float64)
    torch.testing.assert_close(scaled, plain / factor * (1 - kept) + plain * kept, rtol=1e-13, atol=0)
    assert torch.equal(scaled[turns > 32], plain[turns > 32])
    assert torch.equal(scaled[turns < 1], plain[turns < 1] / factor)


@pytest.mark.parametrize("ramp", ["turns", "index"])
def test_yarn_sharpens_scores(ramp):
    q, pos = noise(1, 2, 5, 8), torch.tensor([0, 3, 4, 11, 60])
    rope = RoPE(8, scaling=YaRNScaling(4, 64, ramp=ramp))
    size = 0.1 * math.log(4) + 1
    turned = rope(q, pos)
    torch.testing.assert_close(turned.norm(dim=-1), size * q.norm(dim=-1), atol=1e-12, rtol=0)
    torch.testing.assert_close(turned[:, :, 0], size * q[:, :, 0], atol=1e-12, rtol=0)
    assert RoPE(8, scaling=YaRNScaling(4, 64, temperature=1.0)).size == 1


@pytest.mark.parametrize(
    "scaling", [LinearScaling(1), NTKScaling(1), YaRNScaling(1, 64), YaRNScaling(1, 64, ramp="index")]
)
def test_a_factor_of_one_changes_nothing(scaling):
    torch.testing.assert_close(rotary_frequencies(16, scaling=scaling), rotary_frequencies(16), rtol=1e-14, atol=0)
    assert scaling.size == 1


@pytest.mark.parametrize("dim", [32, 64, 128])
@pytest.mark.parametrize(("base", "length"), [(10000.0, 64), (10000.0, 4096), (500000.0, 8192)])
def test_scalings_are_those_of_transformers(dim, base, length):
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("needs transformers, to compare frequencies with")
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for kind, ours in (
        ("linear", LinearScaling(8.0)),
        ("yarn", YaRNScaling(8.0, length, ramp="index")),
        ("yarn", YaRNScaling(8.0, length, fast=16.0, slow=2.0, ramp="index")),
    ):
        given = {"rope_type": kind, "factor": 8.0, "rope_theta": base}
        if kind == "yarn":
            given |= {"original_max_position_embeddings": length, "beta_fast": ours.fast, "beta_slow": ours.slow}
        config = LlamaConfig(
            hidden_size=2 * dim, num_attention_heads=2, max_position_embeddings=8 * length, rope_parameters=given
        )
        wanted, size = ROPE_INIT_FUNCTIONS[kind](config)
        torch.testing.assert_close(
            rotary_frequencies(dim, base, ours), wanted.double(), rtol=1e-6, atol=0, msg=f"{kind} {ours}"
        )
        assert abs(ours.size - size) < 1e-12


@pytest.mark.parametrize("scaling", [None, LinearScaling(4), NTKScaling(4), YaRNScaling(4, 64)])
def test_scaled_products_depend_on_the_distance_only(scaling):
    q, k, pos = noise(1, 2, 5, 8), noise(1, 2, 5, 8).flip(2), torch.tensor([0, 3, 4, 11, 60])
    rope = RoPE(8, scaling=scaling)
    here, there = rope(q, pos) @ rope(k, pos).mT, rope(q, pos + 17) @ rope(k, pos + 17).mT
    torch.testing.assert_close(there, here, atol=1e-12, rtol=0)


def test_layouts_are_the_same_but_for_the_order_of_channels():
    x, pos = noise(2, 3, 5, 8), torch.tensor([0, 3, 4, 11, 60])
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    interleaved = RoPE(8, layout="interleaved")(x, pos)
    torch.testing.assert_close(interleaved[..., order], RoPE(8)(x[..., order], pos), atol=0, rtol=0)
    a, y = 3.0, interleaved[0, 0, 1]
    pair = x[0, 0, 1, :2]
    assert abs(y[0] - (pair[0] * math.cos(a) - pair[1] * math.sin(a))) < 1e-14


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_channels_beyond_rotary_dim_stand(layout):
    x, pos = noise(2, 3, 5, 10), torch.tensor([0, 3, 4, 11, 60])
    turned = RoPE(10, rotary_dim=4, layout=layout)(x, pos)
    assert torch.equal(turned[..., 4:], x[..., 4:])
    assert torch.equal(turned[..., :4], RoPE(4, layout=layout)(x[..., :4], pos))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: LinearScaling(0.5), "a finite factor of at least 1, not 0.5"),
        (lambda: NTKScaling(math.nan), "a finite factor of at least 1, not nan"),
        (lambda: rotary_frequencies(2, scaling=NTKScaling(2)), "NTKScaling wants at least 4 channels, not 2"),
        (lambda: YaRNScaling(0.9, 64), "a finite factor of at least 1, not 0.9"),
        (lambda: YaRNScaling(2, 0), "not length=0, slow=1.0 and fast=32.0"),
        (lambda: YaRNScaling(2, 64, fast=1.0), "not length=64, slow=1.0 and fast=1.0"),
        (lambda: YaRNScaling(2, 64, ramp="steps"), "a ramp of turns or index, not 'steps'"),
        (lambda: YaRNScaling(2, 64, temperature=0.0), "a finite temperature above 0, not 0.0"),
        (lambda: RoPE(8, rotary_dim=10), "rotary_dim of at most 8, the channels there are, not 10"),
        (lambda: rotate(noise(1, 1, 1, 4), at([0], 6)), "at most 2 pairs to turn 4 channels, not 3"),
        (lambda: rotate(noise(1, 1, 1, 4), at([0], 4), "other"), "a layout of half or interleaved, not 'other'"),
    ],
)
def test_bad_scalings_are_named(call, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        call()
