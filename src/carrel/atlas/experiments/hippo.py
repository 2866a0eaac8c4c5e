"""What a state of N numbers still knows of a signal's whole past, and what the discretisation does to it."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from carrel.atlas.report import Report, progress
from carrel.recurrent import HiPPO
from carrel.recurrent.hippo import legendre_basis

_METHODS = ("forward", "backward", "zoh", "bilinear")
_NAMES = {"forward": "forward Euler", "backward": "backward Euler", "zoh": "zero-order hold", "bilinear": "bilinear"}
_SIZES = (8, 16, 32, 64, 96)
_PLACES = 200  # drawn points of a curve


def run(*, seed: int, length: int, size: int, window: float) -> Report:
    N = size
    s = torch.arange(1, length + 1, dtype=torch.float64) / length
    known, drawn = torch.exp(-s) * torch.sin(12 * s) + s, _signal(seed, s)
    ends, centres = s, s - 0.5 / length  # where a sample is taken to stand
    rows, errors = [], {}
    for done, method in enumerate(_METHODS):
        progress(0.4 * done / len(_METHODS), _NAMES[method])
        memory = HiPPO(N, method=method)
        row: list[object] = [_NAMES[method]]
        for name, signal in (("known", known), ("drawn", drawn)):
            c, _ = memory(signal.unsqueeze(0), return_last=True)
            for reading, places in (("ends", ends), ("centres", centres)):
                errors[method, name, reading] = _rms(memory.reconstruct(c[0, 0], places) - signal)
                row.append(errors[method, name, reading])
        rows.append(row)

    progress(0.4, "sliding windows")
    windows = {"legs": HiPPO(N, method="zoh")}
    for kind in ("legt", "fout"):
        windows[kind] = HiPPO(N - (kind == "fout" and N % 2 == 0), kind, dt=1 / length, theta=window, method="zoh")
    remembered = {kind: _remembered(memory, drawn, centres, window) for kind, memory in windows.items()}
    first = centres < 0.25
    lost = {kind: _rms((seen - drawn)[first]) / _rms(drawn[first]) for kind, seen in remembered.items()}
    whole = {kind: _rms(seen - drawn) / _rms(drawn) for kind, seen in remembered.items()}

    progress(0.6, "sizes")
    sizes = {n: _rms(_remembered(HiPPO(n, method="zoh"), drawn, centres, 1.0) - drawn) for n in _SIZES}
    on_the_way = {
        method: [float(HiPPO(n, method=method)(known.unsqueeze(0))[0].abs().max()) for n in _SIZES]
        for method in ("forward", "bilinear")
    }
    report = Report("hippo")
    if (length, N) == (2000, 32):  # the sizes that these bounds were measured at
        report.check(
            "RMS error of bilinear LegS on exp(-s) sin 12s + s", errors["bilinear", "known", "ends"], high=1e-3
        )
        steps = [errors[method, "known", "ends"] for method in ("bilinear", "zoh", "backward", "forward")]
        ratio = min(later / earlier for earlier, later in pairwise(steps))
        report.check("Bilinear < zero-order hold < backward < forward there, least ratio", ratio, low=1.0)
    report.check("Zero-order hold against the projection of the staircase", _staircase_error(seed), high=1e-10)
    report.check("Whole against pieces", _streaming_error(drawn), high=1e-12)
    report.check("Whole past from LegS, relative RMS error of a drawn signal", whole["legs"], high=0.02)
    report.check("Largest coefficient on the way, bilinear", max(on_the_way["bilinear"]), high=10)

    shown = [round(i * (length - 1) / (_PLACES - 1)) for i in range(_PLACES)]
    lines, xs = {"signal": drawn[shown]}, {"signal": s[shown]}
    for share in (0.25, 0.5, 1.0):
        part = int(share * length)
        memory = HiPPO(N, method="zoh")
        c, _ = memory(drawn[:part].unsqueeze(0), return_last=True)
        keep = [i for i in shown if i < part]
        lines[f"remembered at {share:g}"] = memory.reconstruct(c[0, 0], (centres[:part] * length / part)[keep])
        xs[f"remembered at {share:g}"] = s[keep]
    report.curve(
        f"{N} numbers hold the past of the signal, at three times",
        x={name: x.tolist() for name, x in xs.items()},
        y={name: y.tolist() for name, y in lines.items()},
        x_label="time",
        y_label="signal",
    )
    report.curve(
        "More coefficients, less error",
        x=list(sizes),
        y=list(sizes.values()),
        x_label="coefficients N",
        y_label="RMS error over the whole past",
        log="xy",
    )
    report.curve(
        "Forward Euler explodes on the way, although it ends right",
        x=list(_SIZES),
        y={_NAMES[method]: values for method, values in on_the_way.items()},
        x_label="coefficients N",
        y_label="largest coefficient at any time (float64)",
        log="xy",
    )
    report.table(
        f"RMS error of the whole past, {length} samples, N = {N}",
        ["discretisation", "exp(-s) sin 12s + s", "read at centres", "drawn signal", "read at centres "],
        rows,
    )
    report.table(
        "Relative RMS error of what each memory gives back of the drawn signal",
        ["memory", "window", "first quarter", "all of it"],
        [
            ["LegS", "the whole past", lost["legs"], whole["legs"]],
            ["LegT", f"{window:g} of it", lost["legt"], whole["legt"]],
            ["FouT", f"{window:g} of it", lost["fout"], whole["fout"]],
        ],
    )
    best = all(
        errors["zoh", name, "centres"] <= errors[m, name, r]
        for name in ("known", "drawn")
        for m in _METHODS
        for r in ("ends", "centres")
    )
    if whole["legs"] <= 0.02 and best:
        report.verdict(
            "holds",
            "LegS gives back the whole past; which discretisation is best depends on where a sample is taken to stand "
            "and on how the signal starts, and zero-order hold read at the samples' centres is ahead of all.",
        )
    elif whole["legs"] <= 0.02:
        report.verdict("holds", "LegS gives back the whole past.")
    else:
        report.verdict("caveat", "LegS gives back the whole past only roughly at this size.")
    return report


def _signal(seed: int, s: Tensor) -> Tensor:
    """A decaying wave of drawn pitch and phase, a slower one and a slope: nothing special about its start."""
    a, b, c, d, e = torch.rand(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
    fast = torch.exp(-s) * torch.sin((8 + 8 * a) * s + 2 * math.pi * b)
    return fast + torch.cos((2 + 3 * c) * s + 2 * math.pi * d) + (2 * e - 1) * s


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _remembered(memory: HiPPO, signal: Tensor, places: Tensor, window: float) -> Tensor:
    """What the last state says of every place; nothing, where its window does not reach."""
    c, _ = memory(signal.unsqueeze(0), return_last=True)
    if memory.kind == "legs":
        return memory.reconstruct(c[0, 0], places)
    inside = (places - (1 - window)) / window
    return torch.where(inside >= 0, memory.reconstruct(c[0, 0], inside.clamp(0, 1)), torch.zeros_like(places))


def _staircase_error(seed: int, samples: int = 24, N: int = 8) -> float:
    """LegS by zero-order hold against the projection of the staircase, integrated step by step."""
    f = torch.randn(samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    c, _ = HiPPO(N, method="zoh")(f.unsqueeze(0), return_last=True)
    # four nodes of Gauss and Legendre on each step integrate polynomials of degree N - 1 = 7 exactly
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(4))
    nodes, weights = (nodes + 1) / 2, weights / 2
    places = (torch.arange(samples, dtype=torch.float64).unsqueeze(1) + nodes) / samples
    exact = (f[:, None, None] * weights[:, None] * legendre_basis(N, places)).sum((0, 1)) / samples
    return float((c[0, 0] - exact).abs().max())


def _streaming_error(signal: Tensor) -> float:
    memory = HiPPO(16)
    whole, _ = memory(signal.unsqueeze(0))
    state, parts = None, []
    for piece in torch.split(signal.unsqueeze(0), [1, 0, 7, len(signal) - 8], dim=1):
        part, state = memory(piece, state)
        parts.append(part)
    return float((torch.cat(parts, 1) - whole).abs().max())
