"""The pieces of a comparison that train and measure: fair, repeatable, and right about what they report."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from carrel.atlas.compare import speed, trial
from carrel.models import SequenceModel
from carrel.recurrent import LRU
from carrel.tasks import make_task

LRU_SIDE = {"module": "carrel.recurrent.lru:LRU", "options": {"r_min": 0.9, "r_max": 0.999}, "mlp": 2.0}
ATTENTION = {"module": "carrel.attention.multihead:MHA", "options": {"heads": 2}, "mlp": 2.0}
SIZES = {"task": "copying", "length": 8, "dim": 16, "depth": 1, "batch": 8}


def trained(**changes: object) -> tuple[float, float, tuple[float, ...]]:
    given = {"seed": 0, "mixer": LRU_SIDE, "rate": 0.01, "steps": 12, "schedule": "cosine", "looks": 3}
    report = trial.run(**{**given, **SIZES, "held_out": True, **changes})  # type: ignore[arg-type]
    right, loss, _ = report.tables[0].rows[0]
    return right, loss, report.curves[0].series[0].seeds[0]  # type: ignore[return-value]


def test_the_rate_warms_up_over_a_tenth_then_falls_as_half_a_cosine_or_stays():
    rates = [trial.rate_at(step, 100, "cosine") for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10:] == pytest.approx([0.5 * (1 + math.cos(math.pi * k / 90)) for k in range(90)])
    assert [trial.rate_at(step, 100, "constant") for step in (0, 9, 10, 99)] == [0.1, 1.0, 1.0, 1.0]
    assert trial.rate_at(0, 1, "cosine") == 1.0


def test_a_trial_is_a_function_of_its_seed():
    assert trained() == trained()
    assert trained()[1] != trained(seed=1)[1]
    assert trained()[1] != trained(rate=0.003)[1]


def test_a_trial_learns_what_can_be_learnt():
    right, loss, way = trained(steps=120, length=4, looks=12)
    assert right > 0.9
    assert loss < 0.5
    assert way[0] < right


def test_training_leaves_the_global_generator_and_the_threads_as_they_were():
    torch.manual_seed(5)
    wanted = torch.rand(1)
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    trained()
    assert torch.equal(torch.rand(1), wanted)
    assert torch.get_num_threads() == threads


def test_a_judge_counts_asked_answers_alone_and_lets_nothing_but_numbers_be_right():
    task = make_task("copying", 8)
    batch = task.sample(100, torch.Generator().manual_seed(0))
    model = SequenceModel(lambda dim: LRU(dim), 8, 1, vocab=task.vocab, out_dim=task.out_dim)
    with torch.no_grad():
        guesses = model(batch.x)[0][batch.mask]
        right, loss = trial.judge(model, batch)
        assert right == pytest.approx(float((guesses.argmax(-1) == batch.y[batch.mask]).double().mean()))
        assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(guesses, batch.y[batch.mask])), rel=1e-5)
        model.head.bias.fill_(math.nan)
        right, loss = trial.judge(model, batch)
    assert right == 0.0
    assert math.isnan(loss)


def measured(mixer: dict[str, object], **changes: object) -> dict[str, float]:
    report = speed.run(**{"seed": 0, "mixer": mixer, **SIZES, **changes})  # type: ignore[arg-type]
    assert report.passed
    return dict(zip(report.tables[0].columns, report.tables[0].rows[0], strict=True))  # type: ignore[arg-type]


def test_the_state_is_that_after_the_whole_sequence_and_grows_for_attention_alone():
    short, long = measured(LRU_SIDE), measured(LRU_SIDE, length=40)
    assert short["state (bytes)"] == long["state (bytes)"] == 16 * 8
    short, long = measured(ATTENTION), measured(ATTENTION, length=40)
    tokens = {8: 12, 40: 44}  # what is read, and four that ask
    assert short["state (bytes)"] == 2 * 4 * 16 * tokens[8] + 8
    assert long["state (bytes)"] == 2 * 4 * 16 * tokens[40] + 8


def test_parameters_speeds_and_memory_are_those_of_the_model_that_is_trained():
    found = measured(LRU_SIDE)
    model = SequenceModel(lambda dim: LRU(dim, r_min=0.9, r_max=0.999), 16, 1, vocab=10, out_dim=8, mlp_ratio=2)
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["training (tokens/s)"] == pytest.approx(8 * 12 / found["training step (s)"])
    assert found["decoding (tokens/s)"] > 0


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process its peak anew")
def test_peak_memory_grows_with_the_batch_and_is_said_to_be_unknown_where_it_is(monkeypatch: pytest.MonkeyPatch):
    sizes = {"task": "copying", "length": 60, "dim": 32, "depth": 1}
    small, large = (measured(LRU_SIDE, **sizes, batch=batch)["peak memory (bytes)"] for batch in (16, 512))
    assert small is not None
    rows = 512 * 64 * 32 * 4
    assert large > 10 * rows, "a dozen activations of every token at the least"
    assert large > 4 * small
    monkeypatch.setattr(speed, "_RESET_PEAK", "no such word")
    assert measured(LRU_SIDE)["peak memory (bytes)"] is None
