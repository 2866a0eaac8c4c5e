"""sequential_digits: scikit-learn's 8 by 8 digits, pixel by pixel, with a fixed fifth for judging."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from carrel.tasks import digit_images, sequential_digits


def made(batch=200, seed=0, **options):
    return sequential_digits(batch, **options, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def known():
    """Every image as bytes, with its digit."""
    images, digits = load_digits(return_X_y=True)
    return dict(zip((image.astype(np.uint8).tobytes() for image in images), digits.tolist(), strict=True))


@pytest.mark.parametrize("held_out", [False, True])
def test_an_oracle_that_knows_the_images_is_always_right(known, held_out):
    x, y, mask = made(held_out=held_out)
    assert x.shape == (200, 64, 1)
    assert y.shape == mask.shape == (200, 64)
    for image, answer in zip((x[..., 0] * 16).byte().numpy(), y[:, -1].tolist(), strict=True):
        assert known[image.tobytes()] == answer
    assert mask[:, -1].all()
    assert mask.sum() == 200
    assert (y[~mask] == 0).all()


def test_grey_values_go_from_zero_to_one():
    x, _, _ = made(1000)
    assert (x.min(), x.max()) == (0, 1)
    assert torch.equal(x * 16, (x * 16).round())


def test_parts_are_a_fifth_of_every_class_and_share_no_image():
    (train, named), (judged, answers) = digit_images(held_out=False), digit_images(held_out=True)
    assert (len(train), len(judged)) == (1438, 359)
    both = named.bincount() + answers.bincount()
    assert ((answers.bincount() / both - 0.2).abs() < 0.5 / both).all()
    assert len(digit_images()[0]) == 1797
    rows = {image.numpy().tobytes() for image in train}
    assert not any(image.numpy().tobytes() in rows for image in judged)


def test_no_image_comes_again_before_all_have_come():
    x, _, _ = made(2 * 359 + 5, held_out=True)
    first, second, rest = x.split([359, 359, 5])
    every = digit_images(held_out=True)[0]
    for part in (first, second):
        assert torch.equal(part.squeeze(2).sort(0).values, every.sort(0).values)
    assert not torch.equal(first, second)
    assert len(rest) == 5


def test_rows_are_the_pixels_eight_by_eight():
    pixels, rows = made(), made(rows=True)
    assert rows[0].shape == (200, 8, 8)
    assert torch.equal(rows[0].flatten(1), pixels[0].squeeze(2))
    assert torch.equal(rows[1][:, -1], pixels[1][:, -1])
    assert rows[2].shape == (200, 8)


def test_a_permutation_is_the_same_for_all_images_and_seeds():
    plain, mixed = (made(1438, permute=permute)[0].squeeze(2) for permute in (False, True))
    order = [next(t for t in range(64) if torch.equal(plain[:, t], mixed[:, to])) for to in range(64)]
    moved = sum(to != t for to, t in enumerate(order))
    assert moved > 48
    for seed, held_out in ((1, False), (0, True)):
        options = {"seed": seed, "held_out": held_out}
        assert torch.equal(made(**options, permute=True)[0], made(**options)[0][:, order])


def test_data_are_a_function_of_the_arguments_and_the_seed():
    for a, b in zip(made(), made(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(made()[0], made(seed=1)[0])


def test_nothing_that_is_given_out_can_change_the_images():
    made()[0].fill_(7)
    digit_images()[0].fill_(7)
    digit_images(held_out=True)[0].fill_(7)
    assert digit_images()[0].max() == 1


def test_scikit_learn_is_not_loaded_until_a_digit_is_asked_for():
    code = "import sys, carrel.tasks; carrel.tasks.make_task('sequential-digits'); print('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="sequential_digits wants batch >= 0, not -1"):
        made(-1)
