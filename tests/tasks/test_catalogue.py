"""make_task(name) makes each problem at a size of its own; all of them speak of x, y and mask in one way."""

import pickle
import re

import pytest
import torch

from carrel.tasks import TASKS, make_task


def drawn(task, batch=64, seed=0, **options):
    return task.sample(batch, torch.Generator().manual_seed(seed), **options)


@pytest.fixture(params=TASKS)
def task(request):
    return make_task(request.param)


def test_shapes_and_types_are_those_that_were_promised(task):
    x, y, mask = drawn(task)
    assert y.shape == mask.shape == x.shape[:2]
    assert y.dtype == torch.int64
    assert mask.dtype == torch.bool
    assert (task.vocab is None) != (task.in_dim is None)
    if task.in_dim is None:
        assert x.dtype == torch.int64
        assert x.dim() == 2
        assert x.min() >= 0
        assert x.max() < task.vocab
    else:
        assert x.dtype == torch.float32
        assert x.shape[2] == task.in_dim
    assert task.length <= x.shape[1] <= task.length + 4
    assert 0 < task.chance < 0.3
    assert min(task.batch, task.steps) > 1
    assert task.about.endswith(".")


def test_answers_are_asked_of_every_sequence_and_nothing_is_said_elsewhere(task):
    _, y, mask = drawn(task)
    assert mask.any(1).all()
    assert (y[~mask] == 0).all()
    assert y.min() >= 0
    assert y.max() < task.out_dim


def test_data_are_a_function_of_the_task_and_the_seed(task):
    kept = torch.random.get_rng_state()
    first, again, other = drawn(task), drawn(make_task(task.name)), drawn(task, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.x, other.x)
    assert torch.equal(kept, torch.random.get_rng_state())


def test_chance_is_the_share_of_the_best_constant_answer_or_of_an_even_guess(task):
    _, y, mask = drawn(task, 2000)
    answers = y[mask]
    share = float(answers.bincount().max()) / len(answers)
    # most frequent of ~equal classes in a finite sample: a little above
    assert task.chance * 0.9 < share < task.chance * 1.25


def test_an_empty_batch_has_no_sequences(task):
    x, y, mask = drawn(task, 0)
    assert x.shape[0] == y.shape[0] == mask.shape[0] == 0


def test_only_finite_data_have_a_part_that_is_held_out(task):
    same = torch.equal(drawn(task).x, drawn(task, held_out=True).x)
    assert same == (task.name != "sequential-digits")


def test_tasks_travel_between_processes(task):
    copy = pickle.loads(pickle.dumps(task))
    assert torch.equal(drawn(copy).x, drawn(task).x)


@pytest.mark.parametrize(
    ("name", "length", "tokens"),
    [
        ("copying", 100, 104),
        ("selective-copying", 4, 8),
        ("induction-heads", 256, 256),
        ("mqar", 512, 512),
        ("mqar", 4, 4),
        ("listops", 500, 500),
        ("listops", 16, 16),
        ("sequential-digits", 8, 8),
        ("copy-first-symbol", 10, 11),
    ],
)
def test_a_length_can_be_asked_for(name, length, tokens):
    task = make_task(name, length)
    assert task.length == length
    x, y, mask = drawn(task, 4)
    assert x.shape[1] == tokens
    assert y[mask].max() < task.out_dim
    assert task.vocab is None or x.max() < task.vocab


@pytest.mark.parametrize(
    ("name", "length", "sentence"),
    [
        ("mqa", None, "no task is called 'mqa'; did you mean mqar?"),
        ("sorting-hat", None, "no task is called 'sorting-hat'; there are copying, selective-copying"),
        ("mqar", 63, "mqar wants an even length of at least 4, not 63"),
        ("copying", 3, "copying wants a length of at least 4, not 3"),
        ("selective-copying", 0, "selective-copying wants a length of at least 4, not 0"),
        ("induction-heads", 2, "induction-heads wants a length of at least 3, not 2"),
        ("listops", 15, "listops wants a length from 16 to 2000, not 15"),
        ("sequential-digits", 63, "sequential-digits wants 64 tokens, the pixels, or 8, the rows, not 63"),
        ("copy-first-symbol", 0, "copy-first-symbol wants a length of at least 1, not 0"),
    ],
)
def test_unknown_names_and_impossible_lengths_are_named(name, length, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make_task(name, length)
