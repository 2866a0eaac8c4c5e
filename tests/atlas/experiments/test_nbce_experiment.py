"""The experiment of nbce: its checks hold, and they notice a pooling that listens to the wrong context."""

from __future__ import annotations

import pytest
import torch

from carrel.atlas.catalogue import load_catalogue
from carrel.atlas.experiments import nbce as experiment
from carrel.atlas.experiments.recall_reader import DEFAULT, PAIRS, asked, notes

QUICK = load_catalogue()["nbce"].parse({}, quick=True)


def held(report) -> dict[str, bool]:
    return {check.name: check.passed for check in report.checks}


@pytest.mark.slow
def test_all_checks_hold_in_the_quick_form_and_the_claim_has_its_limit() -> None:
    report = experiment.run(seed=1, **QUICK)
    assert all(held(report).values())
    assert report.state == "caveat"


@pytest.mark.slow
def test_listening_to_the_least_sure_context_is_caught(monkeypatch) -> None:
    def reversed_choice(contexts, own, pooling, beta, top_p):
        if pooling != "min-entropy":
            return honest(contexts, own, pooling, beta, top_p)
        return honest(contexts, own, lambda each, h: each[torch.arange(len(h)), h.argmax(-1)], beta, top_p)

    honest = experiment.pool
    monkeypatch.setattr(experiment, "pool", reversed_choice)
    report = experiment.run(seed=0, **QUICK)
    assert [name for name, passed in held(report).items() if not passed] == [
        "Min-entropy, 8 contexts: probability of the right token",
        "Trained reader, min-entropy: right token likeliest",
        "Trained reader, min-entropy: its probability",
        "Trained reader, min-entropy: right context chosen",
    ]
    assert report.state == "not-shown"


def test_no_key_stands_twice_and_answers_are_what_the_notes_say() -> None:
    generator = torch.Generator().manual_seed(0)
    written = notes(50, 64, 8, generator)
    assert all(len(set(row.flatten().tolist())) == 8 * PAIRS for row in written.keys)
    seen = type(written)(*(part[:, 0] for part in written))
    question, answer = asked(seen, 64, generator)
    known = 0
    for row in range(50):
        pairs = dict(zip(seen.keys[row].tolist(), seen.values[row].tolist(), strict=True))
        there = {k for k, kept in zip(pairs, seen.there[row].tolist(), strict=True) if kept}
        if int(question[row]) in there:
            known += 1
            assert int(answer[row]) == pairs[int(question[row])]
    assert 20 < known < 45
    assert DEFAULT in answer


def test_the_committed_result_is_that_of_the_card() -> None:
    card, result = load_catalogue()["nbce"], load_catalogue().result("nbce")
    assert result.parameters == card.parse({})
