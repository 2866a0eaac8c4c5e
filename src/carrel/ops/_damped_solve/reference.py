"""The damped step in torch, token by token, as a problem of optimal control.

What remains to be paid from token t on, as a function of δ_{t-1}, is a quadratic form; going back in time gives all of
them, going forward the δ that pays least. With w = J δ_{t-1} - r the prediction and S, s the form of what follows,

    M = (1 + λ) I + S,   δ_t = M^{-1} (w - s),   S' = J^T (I - M^{-1}) J,   s' = J^T (M^{-1} s - (I - M^{-1}) r).
"""

from __future__ import annotations

import torch
from torch import Tensor


def solve(J: Tensor, r: Tensor, damping: float, smoother: bool) -> Tensor:
    """δ (B, L, D) for J (B, L, D, D) or (B, L, D)."""
    if J.ndim == r.ndim:
        return (_smooth_diagonal if smoother else _filter_diagonal)(J, r, damping)
    return (_smooth if smoother else _filter)(J, r, damping)


def _stack(found: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(found, 1) if found else torch.zeros_like(like)


def _smooth(J: Tensor, r: Tensor, damping: float) -> Tensor:
    batch, length, size = r.shape
    eye = torch.eye(size, dtype=r.dtype, device=r.device)
    S, s = eye.new_zeros(batch, size, size), r.new_zeros(batch, size, 1)
    kept = []
    for t in range(length - 1, -1, -1):
        inverse = torch.linalg.inv((1 + damping) * eye + S)
        kept.append((inverse, s))
        rest = eye - inverse
        s = J[:, t].mT @ (inverse @ s - rest @ r[:, t].unsqueeze(-1))
        S = J[:, t].mT @ rest @ J[:, t]
    delta, found = r.new_zeros(batch, size, 1), []
    for t in range(length):
        inverse, s = kept[length - 1 - t]
        delta = inverse @ (J[:, t] @ delta - r[:, t].unsqueeze(-1) - s)
        found.append(delta.squeeze(-1))
    return _stack(found, r)


def _smooth_diagonal(J: Tensor, r: Tensor, damping: float) -> Tensor:
    S, s, kept = torch.zeros_like(r[:, :1].sum(1)), torch.zeros_like(r[:, :1].sum(1)), []
    for t in range(r.shape[1] - 1, -1, -1):
        inverse = 1 / (1 + damping + S)
        kept.append((inverse, s))
        s = J[:, t] * (inverse * s - (1 - inverse) * r[:, t])
        S = J[:, t] * (1 - inverse) * J[:, t]
    delta, found = torch.zeros_like(s), []
    for t in range(r.shape[1]):
        inverse, s = kept[r.shape[1] - 1 - t]
        delta = inverse * (J[:, t] * delta - r[:, t] - s)
        found.append(delta)
    return _stack(found, r)


def _filter(J: Tensor, r: Tensor, damping: float) -> Tensor:
    """With P the variance after a token: P- = J P J^T + I, P = (λ P- + I)^{-1} P-, and the mean shrinks alike."""
    batch, length, size = r.shape
    eye = torch.eye(size, dtype=r.dtype, device=r.device)
    P, delta, found = eye.new_zeros(batch, size, size), r.new_zeros(batch, size, 1), []
    for t in range(length):
        before = J[:, t] @ P @ J[:, t].mT + eye
        shrink = torch.linalg.inv(damping * before + eye)
        delta = shrink @ (J[:, t] @ delta - r[:, t].unsqueeze(-1))
        P = shrink @ before
        found.append(delta.squeeze(-1))
    return _stack(found, r)


def _filter_diagonal(J: Tensor, r: Tensor, damping: float) -> Tensor:
    P, delta, found = torch.zeros_like(r[:, :1].sum(1)), torch.zeros_like(r[:, :1].sum(1)), []
    for t in range(r.shape[1]):
        before = J[:, t] * P * J[:, t] + 1
        shrink = 1 / (damping * before + 1)
        delta = shrink * (J[:, t] * delta - r[:, t])
        P = shrink * before
        found.append(delta)
    return _stack(found, r)
