"""Does a trained attention layer read contexts four times as long once its rotary frequencies are stretched?

One layer learns to look something up in contexts of one length: by content, the value that stood with a key anywhere,
or by place, the value a few tokens back. The same weights are then asked in longer contexts, as they are and with
frequencies stretched by the three rules. Nothing is trained again.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from carrel.atlas.report import Report, progress
from carrel.attention import MHA
from carrel.layers import LinearScaling, NTKScaling, RoPE, YaRNScaling
from carrel.layers.rotary import RotaryScaling
from carrel.models import SequenceModel

from .fitting import fit

_KEY, _VALUES, _BATCH, _WIDTH, _HEADS, _BACK = 12, 4, 32, 32, 2, 3
_JUDGED, _FAST = 512, 8.0  # sequences; rounds within the trained context from which YaRN leaves a pair alone
_KINDS = {"by content": 0.01, "by place": 0.015}  # and the learning rate of each
_NAMES = ("as trained", "linear", "NTK", "YaRN")


def run(*, seed: int, length: int, factor: int, base: float, steps: int) -> Report:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small only wait for one another on two, the longer the busier the machine
    try:
        return _stretch(seed, length, factor, base, steps)
    finally:
        torch.set_num_threads(threads)


def _stretch(seed: int, length: int, factor: int, base: float, steps: int) -> Report:
    rules: dict[str, RotaryScaling | None] = {
        "as trained": None,
        "linear": LinearScaling(factor),
        "NTK": NTKScaling(factor),
        "YaRN": YaRNScaling(factor, length, fast=_FAST),
    }
    generator = torch.Generator().manual_seed(seed)
    lengths = [length * k for k in range(1, factor + 1)]
    right: dict[str, dict[str, list[float]]] = {}
    for part, kind in enumerate(_KINDS):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = _model(base, None)
        _train(model, kind, length, steps, generator, part)
        right[kind] = {name: [] for name in rules}
        for n in lengths:
            data = _sequences(kind, _JUDGED, n, generator)
            for name, scaling in rules.items():
                stretched = _model(base, scaling)
                stretched.load_state_dict(model.state_dict())
                right[kind][name].append(_right(stretched, *data))
    report = Report("rope")
    report.check("Scores of turned vectors against their distance, float64", _relative_error(rules), high=1e-10)
    learnt = {kind: right[kind]["as trained"][0] for kind in _KINDS}
    report.check("Right by content at the trained length, over guessing", learnt["by content"] * _VALUES, low=0.7)
    for kind in _KINDS:
        report.curve(
            f"Looking up {kind}, trained at {length} tokens",
            x=lengths,
            y=right[kind] | {"guessing": [1 / _VALUES] * len(lengths)},
            x_label="tokens of context",
            y_label="share of answers right",
        )
    report.table(
        f"Right at {lengths[-1]} tokens, trained at {length} (%)",
        ["lookup", *_NAMES],
        [[kind, *(100 * right[kind][name][-1] for name in _NAMES)] for kind in _KINDS],
    )
    last = {kind: {name: right[kind][name][-1] for name in _NAMES} for kind in _KINDS}
    report.verdict(*_judgement(last, learnt))
    return report


def _judgement(
    last: dict[str, dict[str, float]], learnt: dict[str, float]
) -> tuple[Literal["holds", "caveat", "not-shown"], str]:
    content, place = last["by content"], last["by place"]
    gain = {name: min(last[kind][name] - last[kind]["as trained"] for kind in _KINDS) for name in _NAMES[1:]}
    clear = 0.05
    if min(learnt.values()) < 1.5 / _VALUES:
        return "not-shown", "The layer did not learn both lookups at the trained length, so nothing can be stretched."
    if gain["NTK"] > clear and content["linear"] < content["as trained"]:
        return "holds", "A larger base lets the layer read on untrained; pressing positions together does not."
    by_content = content["as trained"] + clear < content["NTK"] < content["linear"]
    if by_content and place["linear"] < place["YaRN"] and gain["YaRN"] > clear:
        return (
            "caveat",
            "Pressing positions together serves lookups by content and loses those by place; the rule that decides by "
            "frequency helps both; a larger base helps those by content, by less.",
        )
    return "caveat", "Stretching frequencies helps some lookups in longer contexts and not others."


def _model(base: float, scaling: RotaryScaling | None) -> SequenceModel:
    """One layer of attention between a linear embedding and a linear head."""
    return SequenceModel(
        lambda dim: MHA(dim, _HEADS, rotary_base=base, rotary_scaling=scaling),
        _WIDTH,
        1,
        in_dim=_KEY + _VALUES + 1,
        out_dim=_VALUES,
        pool="last",
    )


def _sequences(kind: str, batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Keys with values; the last token asks by one of the keys, or for the value ``_BACK`` tokens before it."""
    keys = functional.normalize(torch.randn(batch, length, _KEY, generator=generator), dim=-1) * _KEY**0.5
    values = torch.randint(_VALUES, (batch, length), generator=generator)
    where = torch.randint(length - 1, (batch,), generator=generator)
    rows = torch.arange(batch)
    if kind == "by place":
        where = torch.full_like(where, length - 1 - _BACK)
    else:
        keys[rows, -1] = keys[rows, where]
    shown = 2 * functional.one_hot(values, _VALUES).float()
    asks = torch.zeros(batch, length, 1)
    shown[:, -1], asks[:, -1] = 0, 1
    return torch.cat([keys, shown, asks], -1), values[rows, where]


def _train(model: SequenceModel, kind: str, length: int, steps: int, generator: torch.Generator, part: int) -> None:
    def loss() -> Tensor:
        x, y = _sequences(kind, _BATCH, length, generator)
        return functional.cross_entropy(model(x)[0], y)

    for step, _ in fit(model, loss, steps, _KINDS[kind]):
        if step % 20 == 0:
            progress((part + step / steps) / len(_KINDS), f"learning to look up {kind}")


@torch.no_grad()
def _right(model: SequenceModel, x: Tensor, y: Tensor) -> float:
    parts = zip(torch.split(x, 64), torch.split(y, 64), strict=True)
    return float(torch.cat([model(a)[0].argmax(-1) == b for a, b in parts]).double().mean())


def _relative_error(rules: dict[str, RotaryScaling | None]) -> float:
    """How much products of turned vectors change when both move on by 100 tokens."""
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 9, 16, generator=generator, dtype=torch.float64)
    worst, pos = 0.0, torch.arange(9)
    for scaling in rules.values():
        rope = RoPE(16, scaling=scaling)
        here, there = (rope(q, pos + s) @ rope(k, pos + s).mT for s in (0, 100))
        worst = max(worst, float((here - there).abs().max()))
    return worst
