"""Weights under other names: state dicts of Hugging Face's transformers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def renamed(theirs: str, state_dict: Mapping[str, Tensor], prefix: str, names: Mapping[str, str]) -> dict[str, Tensor]:
    """Copies of the weights under our names; every one of ``names`` (ours to theirs) must be there, and no other.

    Args:
        theirs: their module's name, for the sentence that says what is wrong.
        prefix: in front of the module's names in a whole model's state dict; others are passed over.
    """
    found = {name.removeprefix(prefix): t for name, t in state_dict.items() if name.startswith(prefix)}
    missing, extra = sorted(set(names.values()) - set(found)), sorted(set(found) - set(names.values()))
    if missing or extra:
        what = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(extra)}, which has no place here"
        raise ValueError(f"wanted the state dict of a transformers {theirs}, but this one {what}")
    return {ours: found[name].detach().clone() for ours, name in names.items()}


def fill(layer: nn.Module, weights: Mapping[str, Tensor], names: Mapping[str, str]) -> None:
    """Put the weights in place, in their own type; ValueError names the first whose shape does not fit."""
    for ours, wanted in layer.state_dict().items():
        got = tuple(weights[ours].shape)
        if got != tuple(wanted.shape):
            raise ValueError(f"{type(layer).__name__} wants {names[ours]} of shape {tuple(wanted.shape)}, not {got}")
    layer.load_state_dict(weights, assign=True)
    layer.requires_grad_()
