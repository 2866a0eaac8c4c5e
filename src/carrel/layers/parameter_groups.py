"""Which parameters an optimiser may shrink."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(module: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for a torch optimiser: parameters that weight decay may shrink, and those that it would harm.

    Left alone are vectors and scalars (gains, biases, decay rates) and every parameter that its module names in
    ``no_weight_decay``: pulling the log of a time scale to zero changes what a mixer remembers.

    Args:
        module: any module, with or without mixers inside.
        weight_decay: the decay of the first group (per step and unit of learning rate, as in AdamW).
    Returns two dictionaries with ``params`` and ``weight_decay``; frozen parameters are in neither, shared ones once.

    >>> optimiser = torch.optim.AdamW(parameter_groups(model, weight_decay=0.1), lr=1e-3)
    """
    harmed = {
        id(parameter)
        for owner in module.modules()
        for name, parameter in owner.named_parameters(recurse=False)
        if parameter.dim() < 2 or name in getattr(owner, "no_weight_decay", ())
    }
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if id(p) not in harmed], "weight_decay": weight_decay},
        {"params": [p for p in trained if id(p) in harmed], "weight_decay": 0.0},
    ]
