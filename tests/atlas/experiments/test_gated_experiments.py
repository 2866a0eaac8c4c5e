"""The experiments of relu2, gau and flash-mixer: their checks hold, and notice what is wrong."""

from __future__ import annotations

import pytest
import torch

from carrel.atlas.experiments import flash_mixer, gated_blocks, gau, relu2
from carrel.atlas.experiments.chain_training import VOCAB, chains, least_loss
from carrel.attention import FLASH

UNLEARNT = "Nats above the least after training"
TINY = {"steps": 3, "longest": 512, "rounds": 1}


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """The looks at trained stacks on few sequences."""
    monkeypatch.setattr("carrel.atlas.experiments.chain_training._FRESH", 24)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def failed(report):
    return {check.name for check in report.checks if not check.passed}


def test_the_checks_of_relu2_hold_and_notice_a_block_that_is_left_out(monkeypatch):
    assert not failed(relu2.run(seed=0, longest=256, rounds=1))
    from carrel.ops._relu2_attention import cpu

    made = cpu._blocks

    def gaps(*sizes):
        return [block for i, block in enumerate(made(*sizes)) if i % 5 != 3]

    monkeypatch.setattr(cpu, "_blocks", gaps)
    assert "Outputs and gradients against all pairs, float64" in failed(relu2.run(seed=0, longest=256, rounds=1))


def test_the_checks_of_gau_hold_but_for_what_three_steps_cannot_learn():
    report = gau.run(seed=0, **TINY)
    assert failed(report) <= {UNLEARNT}
    assert report.state in {"holds", "caveat", "not-shown"}


def test_the_checks_of_flash_mixer_notice_a_state_that_forgets(monkeypatch):
    report = flash_mixer.run(seed=0, **TINY)
    assert failed(report) <= {UNLEARNT}
    went_on = FLASH._further
    monkeypatch.setattr(
        FLASH, "_further", lambda self, parts, state: went_on(self, parts, state._replace(S=0 * state.S))
    )
    assert "Whole against pieces, trained, float64" in failed(flash_mixer.run(seed=0, **TINY))


def test_the_least_loss_is_that_of_the_law_itself_for_one_guess():
    """Of the first transition nothing is known: ln of the number of tokens. Of the second, the counts' shares."""
    assert least_loss(torch.tensor([[0, 2]])) == pytest.approx(torch.tensor(float(VOCAB)).log().item())
    again = torch.tensor([[1, 1, 1]])
    known = -torch.tensor(1.3 / (1 + 4 * 0.3)).log().item()
    assert least_loss(again) == pytest.approx((torch.tensor(4.0).log().item() + known) / 2)


def test_chains_follow_one_matrix_each():
    x = chains(200, 400, torch.Generator().manual_seed(0))
    assert least_loss(x) < least_loss(x[:, torch.randperm(400, generator=torch.Generator().manual_seed(1))]) - 0.2


def test_stacks_have_as_many_weights():
    sizes = [
        sum(p.numel() for p in gated_blocks.large(side).parameters())
        for side in (gated_blocks.BLOCK, gated_blocks.TWO_GAU, gated_blocks.TWO_FLASH)
    ]
    assert max(sizes) < 1.06 * min(sizes)
