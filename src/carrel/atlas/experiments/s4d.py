"""Where the rates of a diagonal state space start, and what it learns from there."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from carrel.atlas.experiments.digit_training import BATCH, RATES, SLOW, Digits, smooth
from carrel.atlas.report import Report, progress
from carrel.ops import s4d_kernel
from carrel.recurrent import S4D, legs_normal_part

_STARTS = {"S4D-Lin": "lin", "S4D-Inv": "inv", "S4D-Legs": "legs", "random": "random"}


def run(*, seed: int, width: int, state_dim: int, steps: int, sweep: int) -> Report:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tensors this small only wait for one another on two
    try:
        return _compare(seed, width, state_dim + state_dim % 2, steps, sweep)
    finally:
        torch.set_num_threads(threads)


def _compare(seed: int, width: int, state_dim: int, steps: int, sweep: int) -> Report:
    digits = Digits(seed)
    total, done = len(_STARTS) * (len(RATES) * len(SLOW) * sweep + steps), 0
    sides = {}
    for name, start in _STARTS.items():

        def on_run(count: int, name: str = name) -> None:
            nonlocal done
            done += count
            progress(0.97 * done / total, name)

        sides[name] = digits.tuned(
            lambda dim, start=start: _mixer(start, dim, state_dim),  # type: ignore[misc]
            width,
            steps=steps,
            sweep=sweep,
            on_run=on_run,
        )
    integrals = {N: _integral_error(N) for N in (16, 64, 256)}
    kernels = {N: _kernel_error(N) for N in (16, 64, 256)}

    report = Report("s4d")
    streaming = max(digits.streaming_error(side.model) for side in sides.values())
    report.check("Whole against pieces, trained, float64", streaming, high=1e-9)
    report.check("Kernel in float32 against float64 at 16384 steps, share of its peak", _float32_error(seed), high=1e-5)
    report.check("Diagonal against whole LegS at N = 256, response to a smooth input", integrals[256], high=0.02)
    report.check("Diagonal against whole LegS at N = 256, kernel itself", kernels[256], low=0.1)
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
        x=smooth(sides["random"].losses)[0],
        y={name: smooth(side.losses)[1] for name, side in sides.items()},
        x_label="training steps",
        y_label="cross-entropy (nats)",
        log="y",
    )
    report.curve(
        "The diagonal start meets LegS only in what smooth inputs do",
        x=list(integrals),
        y={"response to a smooth input": list(integrals.values()), "kernel itself": list(kernels.values())},
        x_label="state size N",
        y_label="relative error",
        log="xy",
    )
    random = sides["random"].right
    gaps = [side.right - random for name, side in sides.items() if name != "random"]
    if min(gaps) >= 0.02:
        report.verdict(
            "holds", "After equally short training each of the three starts is at least two points above random rates."
        )
    elif max(gaps) >= 0.02:
        report.verdict(
            "caveat", "After equally short training some starts, not all, are at least two points above random rates."
        )
    else:
        report.verdict(
            "not-shown", "After equally short training random rates are within two points of the best start."
        )
    return report


def _mixer(start: str, dim: int, state_dim: int) -> S4D:
    mixer = S4D(dim, state_dim, init="lin" if start == "random" else start)
    if start == "random":
        with torch.no_grad():
            mixer.A_log.copy_(torch.log(torch.rand_like(mixer.A_log).clamp_min(1e-4)))  # Re A = -U
            nn.init.normal_(mixer.A_imag)
    return mixer


def _float32_error(seed: int, length: int = 16384) -> float:
    generator = torch.Generator().manual_seed(seed)
    log_dt = torch.log(torch.tensor([1e-3, 1e-2, 1e-1]))
    A = torch.complex(torch.tensor(-0.5), math.pi * torch.arange(32)).expand(3, 32)
    C = torch.randn(3, 32, dtype=torch.complex64, generator=generator)
    wanted = s4d_kernel(log_dt.double(), A.to(torch.complex128), C.to(torch.complex128), length, backend="reference")
    return float((s4d_kernel(log_dt, A, C, length) - wanted).abs().max() / wanted.abs().max())


def _responses(N: int) -> tuple[Tensor, Tensor, Tensor]:
    """Impulse response of LegS's first coefficient, and what its normal part with half the input makes of it."""
    t = torch.linspace(0, 8, 2001, dtype=torch.float64)
    start = legs_normal_part(N)
    diagonal = (start.vectors[0] * start.input * torch.exp(start.rates * t.unsqueeze(1))).sum(1).real
    return t, diagonal, torch.exp(-t)


def _kernel_error(N: int) -> float:
    _, diagonal, exact = _responses(N)
    return float(((diagonal - exact).square().sum() / exact.square().sum()).sqrt())


def _integral_error(N: int) -> float:
    t, diagonal, exact = _responses(N)
    smooth, size = torch.exp(-4 * (t - 2) ** 2), 2 * len(t)
    through = torch.fft.rfft(smooth, size)
    one, other = (torch.fft.irfft(torch.fft.rfft(k, size) * through, size)[: len(t)] for k in (diagonal, exact))
    return float((one - other).abs().max() / other.abs().max())
