"""KVCache: appending costs the new columns only, and never changes what an older cache means."""

import copy
import io

import pytest
import torch

from carrel.layers import KVCache, LatentCache


def columns(first, count, batch=2):
    values = torch.arange(first, first + count, dtype=torch.float64)
    return values.expand(batch, 3, count)[..., None].repeat(1, 1, 1, 4)


def cache(count=5, batch=2):
    return KVCache(columns(0, count, batch), -columns(0, count, batch), torch.full((batch,), count))


def read(c):
    assert torch.equal(c.k, -c.v)
    assert (c.k == c.k[:1, :1, :, :1]).all()
    assert c.pos.tolist() == [c.k.shape[2]] * c.k.shape[0]
    return c.k[0, 0, :, 0].tolist()


def append(c, first, count=1):
    new = columns(first, count, c.k.shape[0])
    return c.append(new, -new)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def test_columns_come_last():
    c = cache()
    for n, count in enumerate([1, 0, 3, 40]):
        c = append(c, 10 * n, count)
    assert read(c) == [0, 1, 2, 3, 4, 0, 20, 21, 22, *range(30, 70)]


def test_columns_are_copied_a_few_times_in_all():
    c, moves, memory = cache(), 0, None
    for n in range(1000):
        c = append(c, n)
        moves += memory != c.k.data_ptr()
        memory = c.k.data_ptr()
    assert moves <= 8
    assert c.k.untyped_storage().nbytes() <= 4 * c.k.numel() * 8


def test_a_second_branch_gets_memory_of_its_own():
    old = append(cache(), 5)
    first = append(old, 6)
    assert first.k.data_ptr() == old.k.data_ptr()
    second = append(old, 60)
    third = append(first, 7)
    assert read(old) == [0, 1, 2, 3, 4, 5]
    assert read(first) == [0, 1, 2, 3, 4, 5, 6]
    assert read(second) == [0, 1, 2, 3, 4, 5, 60]
    assert read(third) == [0, 1, 2, 3, 4, 5, 6, 7]


def test_a_branch_of_zero_columns_does_not_take_the_room():
    old = append(cache(), 5)
    same = append(old, 0, count=0)
    first, second = append(old, 6), append(same, 60)
    assert read(first)[-1] == 6
    assert read(second)[-1] == 60


@pytest.mark.parametrize("pick", [slice(0, 1), slice(1, 2), [1, 0], slice(None)], ids=str)
def test_picked_rows_go_on_by_themselves(pick):
    old = append(cache(), 5)
    rows = KVCache(*(part[pick] for part in old))
    one, two = append(rows, 6), append(old, 60)
    three = append(rows, 600)
    assert read(one)[-1] == 6
    assert read(two)[-1] == 60
    assert read(three)[-1] == 600
    assert read(old) == [0, 1, 2, 3, 4, 5]


def test_repeated_rows_do_not_share_their_future():
    old = append(cache(batch=1), 5)
    beams = KVCache(*(part.expand(2, *part.shape[1:]) for part in old))
    new = columns(6, 1)
    new[1] = 7
    after = beams.append(new, -new)
    assert after.k[:, 0, -1, 0].tolist() == [6, 7]


def test_repeated_heads_do_not_share_their_future():
    old = append(cache(), 5)
    one = KVCache(*(part[:, :1].clone() for part in old[:2]), old.pos).append(
        columns(6, 1)[:, :1], -columns(6, 1)[:, :1]
    )
    two = KVCache(*(part.expand(2, 2, 7, 4) for part in one[:2]), one.pos)
    new = columns(7, 1)[:, :2].clone()
    new[:, 1] = 8
    after = two.append(new, -new)
    assert after.k[0, :, :, 0].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 8]]


def test_a_shortened_cache_goes_on_from_there():
    old = append(cache(), 5)
    short = KVCache(old.k[:, :, :3], old.v[:, :, :3], old.pos - 3)
    assert read(append(short, 30)) == [0, 1, 2, 30]
    assert read(append(old, 6)) == [0, 1, 2, 3, 4, 5, 6]


def test_the_latest_columns_alone_go_on():
    old = append(append(cache(), 5), 6)
    late = KVCache(old.k[:, :, 2:], old.v[:, :, 2:], old.pos - 2)
    assert read(append(late, 7)) == [2, 3, 4, 5, 6, 7]
    assert read(append(old, 70)) == [0, 1, 2, 3, 4, 5, 6, 70]


def test_a_cache_of_the_latest_columns_grows_without_copying_and_stays_small():
    c, moves, memory = cache(), 0, None
    for n in range(5, 1000):
        before = c
        c = append(c, n).latest(5)
        assert read_latest(c) == [*range(n - 4, n + 1)]
        if n > 5:
            assert read_latest(before) == [*range(n - 5, n)]
        moves += memory != c.k.untyped_storage().data_ptr()
        memory = c.k.untyped_storage().data_ptr()
        assert c.k.untyped_storage().nbytes() == 32 * 2 * 3 * 4 * 8
    assert moves <= 1000 / 20
    first, second = append(c, 1), append(c, 2)
    assert (read_latest(first)[-1], read_latest(second)[-1]) == (1, 2)


def read_latest(c):
    assert torch.equal(c.k, -c.v)
    return c.k[1, 2, :, 3].tolist()


def test_columns_can_be_taken_back():
    old = append(cache(), 5)
    assert read(old.truncate(3)) == [0, 1, 2]
    assert read(append(old.truncate(3), 30)) == [0, 1, 2, 30]
    assert read(append(old, 6)) == [0, 1, 2, 3, 4, 5, 6]
    assert old._replace(pos=torch.tensor([6, 2])).truncate(3).pos.tolist() == [3, 0]


def test_rows_go_on_from_other_rows_and_each_by_itself():
    first = columns(0, 5)
    first[1] += 100
    old = append(KVCache(first, -first, torch.tensor([5, 3])), 5)
    beams = old.reorder(torch.tensor([1, 1, 0, 1]))
    assert beams.k[:, 0, -2, 0].tolist() == [104, 104, 4, 104]
    assert beams.pos.tolist() == [4, 4, 6, 4]
    new = columns(6, 1, batch=4) + torch.arange(4.0)[:, None, None, None]
    after = beams.append(new, -new)
    assert after.k[:, 2, -1, 3].tolist() == [6, 7, 8, 9]
    assert read(append(old.reorder(torch.tensor([0])), 60))[-1] == 60
    assert append(old, 7).k[:, 0, :, 0].tolist() == [[0, 1, 2, 3, 4, 5, 7], [100, 101, 102, 103, 104, 5, 7]]


def test_a_latent_cache_grows_in_the_same_way():
    c, rope = columns(0, 5)[:, :1], columns(0, 5)[:, :1, :, :2]
    old = LatentCache(c, rope, torch.full((2,), 5)).append(c[:, :, 3:4], rope[:, :, 3:4])
    one = old.append(c[:, :, :2], rope[:, :, :2])
    two = old.append(c[:, :, 1:2], rope[:, :, 1:2])
    assert one.c.data_ptr() == old.c.data_ptr()
    assert one.c[0, 0, :, 3].tolist() == one.k_rope[0, 0, :, 1].tolist() == [0, 1, 2, 3, 4, 3, 0, 1]
    assert two.c[0, 0, :, 3].tolist() == two.k_rope[0, 0, :, 1].tolist() == [0, 1, 2, 3, 4, 3, 1]
    assert one.pos.tolist() == [8, 8]
    assert one.truncate(6).c.shape == (2, 1, 6, 4)
    assert one.truncate(6).pos.tolist() == [6, 6]
    rows = one._replace(c=one.c + torch.tensor([0.0, 100.0])[:, None, None, None]).reorder(torch.tensor([1, 1, 0]))
    assert rows.c[:, 0, 0, 0].tolist() == [100, 100, 0]
    assert rows.k_rope.shape[0] == len(rows.pos) == 3


def test_saved_and_copied_caches_go_on_by_themselves():
    old = append(cache(), 5)
    file = io.BytesIO()
    torch.save(tuple(old), file)
    file.seek(0)
    for other in (KVCache(*torch.load(file)), copy.deepcopy(old)):
        assert read(append(other, 60)) == [0, 1, 2, 3, 4, 5, 60]
    assert read(append(old, 6)) == [0, 1, 2, 3, 4, 5, 6]


def test_gradients_reach_all_columns():
    with torch.enable_grad():
        old = append(cache(), 5)
        old.k.requires_grad_()
        new = columns(6, 1).requires_grad_()
        after = old.append(new, -new)
        after.k.square().sum().backward()
    assert torch.equal(old.k.grad, 2 * old.k)
    assert torch.equal(new.grad, 2 * new)
    assert read(append(old, 60))[-1] == 60
    assert after.k[0, 0, -1, 0] == 6


def test_a_cache_of_inference_mode_goes_on_outside():
    with torch.inference_mode():
        old = append(append(cache(), 5), 6)
    assert read(append(old, 7)) == [0, 1, 2, 3, 4, 5, 6, 7]


def test_an_empty_batch_has_a_cache_too():
    c = append(append(cache(batch=0), 5), 6)
    assert c.k.shape == (0, 3, 7, 4)
