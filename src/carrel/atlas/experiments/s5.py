"""Where the rates of one state space for all channels start, and what it learns from there."""

from __future__ import annotations

import torch
from torch import nn

from carrel.atlas.experiments.digit_training import BATCH, RATES, SLOW, Digits, smooth
from carrel.atlas.report import Report, progress
from carrel.ops import discretize_diagonal
from carrel.recurrent import S5

_RANDOM = "random rates"
_STARTS = {"one block of LegS": 1, "four blocks of LegS": 4, _RANDOM: 4}


def run(*, seed: int, width: int, state_dim: int, steps: int, sweep: int) -> Report:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small only wait for one another on two
    try:
        return _compare(seed, width, -(-state_dim // 8) * 8, steps, sweep)
    finally:
        torch.set_num_threads(threads)


def _compare(seed: int, width: int, state_dim: int, steps: int, sweep: int) -> Report:
    digits = Digits(seed)
    total, done = len(_STARTS) * (len(RATES) * len(SLOW) * sweep + steps), 0
    sides = {}
    for name, blocks in _STARTS.items():

        def on_run(count: int, name: str = name) -> None:
            nonlocal done
            done += count
            progress(0.97 * done / total, name)

        sides[name] = digits.tuned(
            lambda dim, name=name, blocks=blocks: _mixer(name, dim, state_dim, blocks),  # type: ignore[misc]
            width,
            steps=steps,
            sweep=sweep,
            on_run=on_run,
        )
    report = Report("s5")
    streaming = max(digits.streaming_error(side.model) for side in sides.values())
    report.check("Whole against pieces, trained, float64", streaming, high=1e-9)
    report.check("Scan against powers of the factors, float64", _convolution_error(seed), high=1e-10)
    report.table(
        f"Digits of 64 pixels after {steps} steps of {BATCH}",
        ["start", "right on unseen digits (%)", "learning rate", "of rates and steps", "right after the sweep (%)"],
        [
            [name, 100 * side.right, f"{side.rate:g}", f"{side.slow:g}", 100 * side.swept]
            for name, side in sides.items()
        ],
    )
    report.curve(
        "Loss while training",
        x=smooth(sides[_RANDOM].losses)[0],
        y={name: smooth(side.losses)[1] for name, side in sides.items()},
        x_label="training steps",
        y_label="cross-entropy (nats)",
        log="y",
    )
    gaps = [side.right - sides[_RANDOM].right for name, side in sides.items() if name != _RANDOM]
    if min(gaps) >= 0.02:
        report.verdict(
            "holds", "After equally short training both starts from LegS are at least two points above random rates."
        )
    elif max(gaps) >= 0.02:
        report.verdict(
            "caveat", "After equally short training one start from LegS, not both, is at least two points above random."
        )
    else:
        report.verdict(
            "not-shown", "After equally short training random rates are within two points of the starts from LegS."
        )
    return report


def _mixer(name: str, dim: int, state_dim: int, blocks: int) -> S5:
    mixer = S5(dim, state_dim, blocks)
    if name == _RANDOM:
        with torch.no_grad():
            mixer.A_log.copy_(torch.log(torch.rand_like(mixer.A_log).clamp_min(1e-4)))  # Re A = -U
            nn.init.normal_(mixer.A_imag)
    return mixer


@torch.no_grad()
def _convolution_error(seed: int) -> float:
    """The layer against y_t = 2 Re sum_i C a^i B x_(t - i), with every power written out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer, x = S5(3, 8, 2).double(), torch.randn(2, 50, 3, dtype=torch.float64)
    a, b = discretize_diagonal(layer.log_dt, layer.rates())
    B = b.unsqueeze(1) * torch.complex(layer.B[:, 0], layer.B[:, 1])
    C = torch.complex(layer.C[..., 0], -layer.C[..., 1])
    powers = torch.exp(a * torch.arange(50).unsqueeze(1))
    taps = 2 * torch.einsum("on,tn,ni->toi", C, powers, B).real
    y = x * layer.D
    for t in range(50):
        y[:, t] += torch.einsum("toi,bti->bo", taps[: t + 1], x[:, : t + 1].flip(1))
    return float((layer(x)[0] - y).abs().max())
