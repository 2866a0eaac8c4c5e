"""parameter_groups: matrices decay, vectors and what a module names do not."""

import torch
from torch import nn

from carrel.layers import parameter_groups
from carrel.models import SequenceModel
from carrel.recurrent import LRU


def names(module, group):
    of = {id(p): name for name, p in module.named_parameters()}
    return {of[id(p)] for p in group["params"]}


def test_vectors_and_named_parameters_do_not_decay():
    class Named(nn.Linear):
        no_weight_decay = frozenset({"weight"})

    module = nn.Sequential(nn.Linear(2, 3), Named(3, 3))
    decayed, kept = parameter_groups(module, weight_decay=0.1)
    assert names(module, decayed) == {"0.weight"}
    assert names(module, kept) == {"0.bias", "1.weight", "1.bias"}
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)


def test_time_scales_of_a_model_survive_heavy_decay():
    torch.manual_seed(0)
    m = SequenceModel(LRU, 4, 1, in_dim=2, out_dim=2)
    before = {name: p.detach().clone() for name, p in m.named_parameters()}
    optimiser = torch.optim.AdamW(parameter_groups(m, weight_decay=1.0), lr=0.1)
    for p in m.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    for name, p in m.named_parameters():
        factor = 0.9 if p.dim() > 1 else 1.0  # AdamW: w <- (1 - lr decay) w
        torch.testing.assert_close(p.detach(), factor * before[name])
    assert torch.equal(m.blocks[0].mixer.nu_log, before["blocks.0.mixer.nu_log"])


def test_frozen_parameters_are_left_out_and_shared_ones_come_once():
    a, b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    b.weight = a.weight
    frozen = nn.Linear(2, 2)
    frozen.requires_grad_(False)
    groups = parameter_groups(nn.Sequential(a, b, frozen), weight_decay=0.1)
    assert [len(group["params"]) for group in groups] == [1, 0]
