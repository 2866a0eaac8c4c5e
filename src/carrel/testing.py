"""Checks that a user's own mixer can be put through; every mixer of the catalogue is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

_BATCH = 5  # unlike most widths, so that a state with another axis first is noticed


def check_streaming(
    mixer: nn.Module, dim: int, *, atol: float = 1e-10, seed: int = 0, cuts: Sequence[int] | None = None
) -> None:
    r"""Whole, pieces and single steps agree: outputs, gradients and what the final states do next.

    .. math:: \text{mixer}(x_{1..L}) = [\,\text{mixer}(x_{1..k_1}),\ \text{mixer}(x_{k_1+1..k_2}, s_{k_1}),\ \dots\,]

    The sequence is at least twice the mixer's ``chunk`` plus three tokens long. Cuts fall at chunk - 1, chunk and
    chunk + 1, between all tokens, and at pieces of zero tokens; each split is run with gradients and without. States
    are compared by feeding both the same tail. Besides: an output depends on some earlier token and on no later one;
    rows of the batch do not meet, in states either; an old state stays valid when it is replayed and branched from.

    Args:
        mixer: ``y, state = mixer(x, state=None)``. It is copied to float64 and put in evaluation mode; the caller's
            module, its gradients and torch's random state are untouched. If a projection starts at zero, fill it first:
            nothing can be seen through it.
        dim: size of the last axis of x.
        atol: bound on every difference, as a multiple of max(1, largest magnitude of what is compared).
        seed: of the inputs.
        cuts: rising positions where the sequence is cut, repeats making pieces of zero tokens: then this one split is
            compared and nothing else, for driving random splits. The sequence grows to hold the last cut.
    Returns nothing.
    Raises AssertionError: one sentence saying which promise is broken and by how much. ValueError: cuts do not rise.
    Cost: about a dozen passes over 2 chunk + 3 tokens, two of them token by token.
    """
    chunk = getattr(mixer, "chunk", None)
    if not isinstance(chunk, int) or chunk < 1:
        raise AssertionError(f"a mixer says how many tokens it works on at once: chunk is {chunk!r}, not 1 or more")
    length = max(2 * chunk + 3, 11)
    if cuts is not None:
        if any(later < earlier for earlier, later in pairwise([0, *cuts])):
            raise ValueError(f"cuts must be positions that rise from 0, not {list(cuts)}")
        length = max([length, *cuts])
    generator = torch.Generator().manual_seed(seed)
    subject = _float64_copy(mixer)
    device = next((t.device for t in [*subject.parameters(), *subject.buffers()]), torch.device("cpu"))

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)

    with torch.random.fork_rng(devices=[]):
        trial = _Trial(subject, noise(_BATCH, length, dim), noise(_BATCH, chunk + 2, dim), atol, noise)
        splits = _splits(chunk, length) if cuts is None else {"the given cuts": list(cuts)}
        for name, at in splits.items():
            trial.outputs_agree(name, at)
        if cuts is None:
            trial.output_is_causal(_landmarks(chunk, length))
            trial.old_states_stay_valid(chunk)
            trial.rows_are_independent(chunk)
        trial.gradients_agree(splits)  # last: autograd complains in its own words of much that is found above


class _Trial:
    """One copied mixer, one input with its tail, and the promises that are asked of them."""

    def __init__(self, mixer: nn.Module, x: Tensor, tail: Tensor, atol: float, noise: Callable[..., Tensor]) -> None:
        self.mixer, self.x, self.tail, self.atol = mixer, x, tail, atol
        self.noise = noise
        self.batch, self.length = x.shape[:2]
        self.whole = self._outputs([])
        self.weight = noise(*self.whole.shape)

    # ---- the promises

    def outputs_agree(self, name: str, cuts: list[int]) -> None:
        self._same(self._outputs(cuts), self.whole, f"outputs differ from the whole's when fed in pieces ({name})")

    def gradients_agree(self, splits: Mapping[str, list[int]]) -> None:
        whole = self._gradients([])
        for name, cuts in splits.items():
            for (parameter, got), (_, wanted) in zip(self._gradients(cuts), whole, strict=True):
                self._same(got, wanted, f"the gradient of {parameter} differs from the whole's in pieces ({name})")

    def output_is_causal(self, landmarks: list[int]) -> None:
        with torch.no_grad():
            before, _ = self._call(self.x, None)
            restarts = getattr(self.mixer, "restarts", 0)
            for t in landmarks:
                later, earlier = self.x.clone(), self.x.clone()
                later[:, t + 1 :] = self.noise(*later[:, t + 1 :].shape)
                earlier[:, :t] = self.noise(*earlier[:, :t].shape)
                moved = (self._call(later, None)[0] - before)[:, : t + 1]
                if self._size(moved) > self._bound(before):
                    raise AssertionError(f"outputs up to token {t} depend on later tokens (by {self._size(moved):.1e})")
                moved = (self._call(earlier, None)[0] - before)[:, t]
                begins = t % restarts == 0 if restarts else t == 0
                if begins and self._size(moved) > self._bound(before):
                    raise AssertionError(f"a mixer that restarts every {restarts} tokens sees through it at token {t}")
                if not begins and self._size(moved) <= 100 * self._bound(before):
                    raise AssertionError(f"the output at token {t} depends on no earlier token")

    def rows_are_independent(self, cut: int) -> None:
        with torch.no_grad():
            y, state = self._call(self.x[:, :cut], None)
            alone, own = self._call(self.x[1:2, :cut], None)
            self._same(alone, y[1:2], "a row of the batch comes out differently when it is fed alone")
            rows = torch.tensor([2, 1, 1], device=self.x.device)
            wanted, _ = self._call(self.x[:, cut:], state)
            got, _ = self._call(self.x[rows, cut:], _map(state, lambda t: t[rows]))
            self._same(got, wanted[rows], "rows picked from a state do not continue as they would have")
            got, _ = self._call(self.x[1:2, cut:], own)
            self._same(got, wanted[1:2], "the state of a row fed alone does not continue as it does in the batch")

    def old_states_stay_valid(self, cut: int) -> None:
        ahead, other = self.x[:, cut:], self.noise(*self.x[:, cut:].shape)
        with torch.no_grad():
            _, old = self._call(self.x[:, :cut], None)
            first, after = self._call(ahead, old)
            next_one, _ = self._call(self.tail, after)
            self._call(other, old)
            again, _ = self._call(ahead, old)
            self._same(again, first, "an old state does not replay: something wrote to it after it was returned")
            step = old
            for t in range(other.shape[1]):
                _, step = self._call(other[:, t : t + 1], step)
            late, _ = self._call(self.tail, after)
            self._same(late, next_one, "a second branch from an old state changed the state of the first")

    # ---- how they are asked

    def _call(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        result = self.mixer(x, state)
        if not isinstance(result, tuple) or len(result) != 2:
            raise AssertionError("a mixer returns y and its state, nothing else")
        y, after = result
        if y.shape[:2] != x.shape[:2]:
            raise AssertionError(f"y has batch and length {tuple(y.shape[:2])}, not {tuple(x.shape[:2])} like x")
        for leaf in _leaves(after):
            if leaf.dim() == 0 or leaf.shape[0] != x.shape[0]:
                raise AssertionError(f"a tensor of the state has shape {tuple(leaf.shape)}: the batch must come first")
        return y, after

    def _run(self, x: Tensor, tail: Tensor, cuts: list[int]) -> Tensor:
        outputs, state = [], None
        for start, end in pairwise([0, *cuts, self.length]):
            y, state = self._call(x[:, start:end], state)
            outputs.append(y)
        outputs.append(self._call(tail, state)[0])
        return torch.cat(outputs, dim=1)

    def _outputs(self, cuts: list[int]) -> Tensor:
        with torch.no_grad():
            return self._run(self.x, self.tail, cuts)

    def _gradients(self, cuts: list[int]) -> list[tuple[str, Tensor]]:
        """The output's, too: a mixer may take another path when gradients are wanted."""
        x, tail = self.x.clone().requires_grad_(), self.tail.clone().requires_grad_()
        trained = {name: p for name, p in self.mixer.named_parameters() if p.requires_grad}
        y = self._run(x, tail, cuts)
        self._same(y.detach(), self.whole, "outputs differ when gradients are wanted")
        if not y.requires_grad:
            raise AssertionError("the output carries no gradient")
        wanted = {"the input": x, "the tail's input": tail, **trained}
        found = torch.autograd.grad((y * self.weight).sum(), list(wanted.values()), allow_unused=True)
        return [
            (name, torch.zeros_like(leaf) if gradient is None else gradient)
            for (name, leaf), gradient in zip(wanted.items(), found, strict=True)
        ]

    def _same(self, got: Tensor, wanted: Tensor, broken: str) -> None:
        apart = self._size(got - wanted)
        if not apart <= self._bound(wanted):  # "not <=" so that a NaN is a failure
            raise AssertionError(f"{broken}: {apart:.1e} apart, allowed {self._bound(wanted):.1e}")

    def _bound(self, wanted: Tensor) -> float:
        return self.atol * max(1.0, self._size(wanted))

    @staticmethod
    def _size(t: Tensor) -> float:
        return float(t.abs().max()) if t.numel() else 0.0


def _splits(chunk: int, length: int) -> dict[str, list[int]]:
    borders = sorted({chunk - 1, chunk, chunk + 1} - {0})
    splits = {f"cut at {at}": [at] for at in borders}
    splits["all three cuts about the chunk's border"] = borders
    splits["pieces of one chunk"] = list(range(chunk, length, chunk))
    splits["single tokens"] = list(range(1, length))
    splits["pieces of zero tokens"] = [0, 0, chunk, chunk, chunk + 1, length, length]
    return splits


def _landmarks(chunk: int, length: int) -> list[int]:
    near = {at + shift for at in (0, chunk, 2 * chunk, length - 1) for shift in (-1, 0, 1)}
    return sorted(t for t in near if 0 <= t < length)


def _float64_copy(mixer: nn.Module) -> nn.Module:
    def widen(t: Tensor) -> Tensor:
        return t.to(torch.complex128) if t.is_complex() else t.double() if t.is_floating_point() else t

    subject = copy.deepcopy(mixer).eval()
    for module in subject.modules():
        for parameter in module.parameters(recurse=False):
            parameter.grad = None
            parameter.data = widen(parameter.data)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, widen(buffer))
    return subject


def _leaves(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    if not isinstance(state, tuple):
        raise AssertionError(f"a state is a NamedTuple of tensors, not a {type(state).__name__}")
    return [leaf for part in state for leaf in _leaves(part)]


def _map(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(state, Tensor):
        return change(state)
    parts = [_map(part, change) for part in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
