"""Rotary positions: (R_m q) . (R_n k) = q . R_{n-m} k."""

import math
import re

import pytest
import torch

from carrel.layers import rotary_frequencies, rotary_turns, rotate


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
