"""Is RWKV trained on all tokens at once, yet decoded at a constant price, and does it learn? Beside softmax attention.

Prices are those of one layer of width 256 on one thread: the state's bytes, the time of one more token at several
positions, and that of a training pass over up to half as many tokens. Times are the least of several, in CPU seconds.

For learning, all three sides are the same residual stack of two layers of token mixing, each followed by RWKV's channel
mixing, on selective copying.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import torch

from carrel.atlas.report import Report, Verdict, progress
from carrel.attention import MHA
from carrel.layers import Mixer
from carrel.recurrent import RWKV, RWKV4, RWKVChannelMix

from .selective_training import VOCAB, Side, Tuned

_SIDES: dict[str, Callable[[int, int], Mixer]] = {
    "RWKV-4": lambda dim, head: RWKV(dim),
    "RWKV-6": lambda dim, head: RWKV(dim, version=6, head_dim=head),
    "attention": lambda dim, head: MHA(dim, heads=dim // head),
}
_RWKV = ("RWKV-4", "RWKV-6")
_WIDE, _WIDE_HEAD, _NARROW_HEAD = 256, 64, 16
_LAYERS, _SYMBOLS = 2, 4
_DECODING_ROUNDS, _TRAINING_ROUNDS = 12, 3


def run(*, seed: int, context: int, length: int, heads: int, steps: int) -> Report:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _compare(seed, context, length, heads, steps)
    finally:
        torch.set_num_threads(threads)


def _compare(seed: int, context: int, length: int, heads: int, steps: int) -> Report:
    report = Report("rwkv")
    places = [context // part for part in (16, 8, 4, 2, 1)]
    prices = _prices(seed, places)
    _show_prices(report, places, prices)

    def builder(name: str) -> Callable[[int], _Side]:
        return lambda seed: _Side(name, seed, length, heads)

    tuned = Tuned({name: builder(name) for name in _SIDES}, seed, steps)
    sides = tuned.sides
    apart = max(side.streaming_error() for side in sides.values())
    report.check("Whole sequence against token by token, trained, float64", apart, high=1e-10)
    report.check("RWKV-4 against its sums written out, trained, float64", sides["RWKV-4"].sums_error(), high=1e-10)
    least = min(sides[name].final[0] for name in _RWKV)
    report.check("Right by the weaker version, as a multiple of guessing", least * VOCAB, low=1.5)
    tuned.tell(report)
    report.verdict(*_judge(prices, sides))
    return report


def _judge(prices: dict[str, _Price], sides: dict[str, _Side]) -> tuple[Verdict, str]:
    flat = all(prices[name].decoding[-1] < 1.5 * prices[name].decoding[0] for name in _RWKV)
    grows = prices["attention"].decoding[-1] > 2 * prices["attention"].decoding[0]
    trains = all(prices[name].training[-1] < 2 * prices["attention"].training[-1] for name in _RWKV)
    learn = all(sides[name].final[0] >= 0.8 for name in _RWKV)
    if not (flat and grows):
        return "not-shown", "At these lengths the time per decoded token did not set the sides clearly apart."
    cheap = "A decoded token takes the same time and memory at every position, where attention's grow"
    if not trains:
        return "caveat", f"{cheap}, but training takes clearly longer than attention's."
    if not learn:
        return "caveat", f"{cheap}, and training is as fast; but not both versions have learnt the task in these steps."
    return "holds", f"{cheap}; training takes no more than about attention's time, and both versions learn to copy."


class _Price:
    """What one wide layer costs at several positions."""

    def __init__(self, name: str, seed: int, places: list[int]) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layer = _SIDES[name](_WIDE, _WIDE_HEAD)
            self.x = torch.randn(1, places[-1], _WIDE)
        self.states: list[Any] = []
        state, at = None, 0
        with torch.no_grad():
            for place in places:
                _, state = self.layer(self.x[:, at:place], state)
                self.states.append(state)
                at = place
        self.state_bytes = [sum(t.numel() * t.element_size() for t in state) for state in self.states]
        self.decoding = [math.inf] * len(places)
        self.training = [math.inf] * (len(places) - 1)

    @torch.no_grad()
    def decode(self, which: int, tokens: int = 8) -> None:
        """CPU seconds of one more token after those before; a later round goes on where this one ends."""
        token, state = self.x[:, :1], self.states[which]
        start = time.process_time()
        for _ in range(tokens):
            _, state = self.layer(token, state)
        self.decoding[which] = min(self.decoding[which], (time.process_time() - start) / tokens)
        self.states[which] = state

    def train(self, which: int, length: int) -> None:
        """CPU seconds per token of a forward and backward pass over all of them."""
        start = time.process_time()
        torch.autograd.grad(self.layer(self.x[:, :length])[0].sum(), list(self.layer.parameters()))
        self.training[which] = min(self.training[which], (time.process_time() - start) / length)


def _prices(seed: int, places: list[int]) -> dict[str, _Price]:
    """Rounds in which every side has its turn, so that a busy moment of the machine meets them all."""
    prices = {name: _Price(name, seed, places) for name in _SIDES}
    progress(0.0, "decoding at several positions")
    for _ in range(_DECODING_ROUNDS):
        for which in range(len(places)):
            for price in prices.values():
                price.decode(which)
    progress(0.0, "training passes of several lengths")
    for _ in range(_TRAINING_ROUNDS):
        for which, length in enumerate(places[:-1]):
            for price in prices.values():
                price.train(which, length)
    return prices


def _show_prices(report: Report, places: list[int], prices: dict[str, _Price]) -> None:
    for name in _RWKV:
        held = prices[name].state_bytes
        report.check(f"{name}: bytes of state, most against least", max(held) / min(held), low=1, high=1)
    per_token = [held / place for held, place in zip(prices["attention"].state_bytes, places, strict=True)]
    report.check(
        "Attention: bytes of state per token, in keys and values", min(per_token) / (8 * _WIDE), low=1, high=1.1
    )
    report.curve(
        f"Decoding one token after others, one layer of width {_WIDE}",
        x=places,
        y={name: [1e6 * t for t in price.decoding] for name, price in prices.items()},
        x_label="tokens before it",
        y_label="CPU time (µs)",
        log="xy",
    )
    report.curve(
        f"Training on a whole sequence, one layer of width {_WIDE}",
        x=places[:-1],
        y={name: [1e6 * t for t in price.training] for name, price in prices.items()},
        x_label="tokens in the sequence",
        y_label="CPU time per token (µs)",
        log="xy",
    )
    report.table(
        f"State of one layer of width {_WIDE} (bytes)",
        ["tokens", *prices],
        [[place, *(price.state_bytes[i] for price in prices.values())] for i, place in enumerate(places)],
    )


class _Side(Side):
    """Token mixing and channel mixing in turn."""

    def __init__(self, name: str, seed: int, length: int, heads: int) -> None:
        halves = itertools.cycle([lambda dim: _SIDES[name](dim, _NARROW_HEAD), RWKVChannelMix])
        super().__init__(seed, lambda dim: next(halves)(dim), length, _SYMBOLS, heads * _NARROW_HEAD, 2 * _LAYERS)

    @torch.no_grad()
    def streaming_error(self) -> float:
        model, x = copy.deepcopy(self.model).double(), self.fresh[0][:8]
        state, tokens = None, []
        for token in torch.split(x, 1, 1):
            y, state = model(token, state)
            tokens.append(y)
        return float((torch.cat(tokens, 1) - model(x)[0]).abs().max())

    @torch.no_grad()
    def sums_error(self) -> float:
        """The first layer's output for noise against its equations, with the sums over all earlier tokens."""
        m = copy.deepcopy(next(m for m in self.model.modules() if isinstance(m, RWKV4))).double()
        x = torch.randn(4, self.length, m.dim, dtype=torch.float64, generator=self.generator)
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        r, k, v = (
            project(mix * x + (1 - mix) * before)
            for project, mix in ((m.receptance, m.mix_r), (m.key, m.mix_k), (m.value, m.mix_v))
        )
        rows = []
        for t in range(x.shape[1]):
            faded = k[:, :t] - torch.arange(t - 1, -1, -1)[:, None] * m.decay.exp()
            weights = torch.softmax(torch.cat([faded, (m.bonus + k[:, t])[:, None]], 1), 1)
            rows.append((weights * v[:, : t + 1]).sum(1))
        return float((m.output(torch.sigmoid(r) * torch.stack(rows, 1)) - m(x)[0]).abs().max())
