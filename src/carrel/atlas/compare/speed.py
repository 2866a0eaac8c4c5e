"""What one mixer costs on this machine, on one thread: parameters, speeds, the size of its state, memory."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from carrel.atlas.compare.stack import build, one_thread
from carrel.atlas.compare.trial import loss_of
from carrel.atlas.report import Report, progress
from carrel.layers import parameter_groups
from carrel.models import SequenceModel
from carrel.tasks import Batch, Task, make_task

_WARM, _STEPS, _TOKENS, _SECONDS = 3, 30, 128, 4.0  # to warm up; then so many, or as long as it takes so many seconds
_RESET_PEAK = "5"  # what Linux takes as: begin anew to note the most that is resident


def run(*, seed: int, mixer: Mapping[str, Any], task: str, length: int, dim: int, depth: int, batch: int) -> Report:
    """Measure. The report's first table has one row of numbers, None where this system cannot say."""
    with one_thread():
        problem = make_task(task, length)
        generator = torch.Generator().manual_seed(seed)
        model = build(mixer, problem, dim, depth, seed)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        optimiser = torch.optim.AdamW(parameter_groups(model, weight_decay=0.01), lr=1e-3)
        seconds = _training(model, optimiser, problem.sample(batch, generator))
        progress(0.5, "training speed known")
        prompt = problem.sample(1, generator).x
        each, state, further, error = _decoding(model.eval(), prompt)
        progress(0.8, "decoding speed known")
        del optimiser
        model = None  # type: ignore[assignment]  # so that its memory counts anew below
        peak = _peak(mixer, problem, dim, depth, seed, batch)
    report = Report("compare-speed")
    tokens = batch * prompt.shape[1]
    report.table(
        "Costs",
        ["parameters", "training (tokens/s)", "decoding (tokens/s)", "state (bytes)", "peak memory (bytes)",
         "training step (s)", "state of a token (bytes)"],
        [[parameters, tokens / seconds, 1 / each, state, peak, seconds, further]],
    )  # fmt: skip
    report.check("One token at a time against the whole, relative", error, high=1e-3)
    report.verdict("holds", "One token at a time gives what the whole sequence gives.")
    return report


def _training(model: SequenceModel, optimiser: torch.optim.Optimizer, batch: Batch) -> float:
    """Seconds of a step, the median."""

    def step() -> None:
        optimiser.zero_grad()
        torch.autograd.backward(loss_of(model, batch))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    for _ in range(_WARM):
        step()
    return _median(step, _STEPS)


@torch.no_grad()
def _decoding(model: SequenceModel, prompt: Tensor) -> tuple[float, int, int, float]:
    """Seconds of a token after a prompt of this length, bytes of state then, those that a token adds to them, and how
    far streaming is from the whole.

    Timed tokens follow one another, as in generation: a cache that is grown in place is not copied for each.
    """
    y, state = model(prompt)
    half = prompt.shape[1] // 2
    first, streamed = model(prompt[:, :half])
    pieces = [first]
    for token in torch.split(prompt[:, half:], 1, 1):
        piece, streamed = model(token, streamed)
        pieces.append(piece)
    error = float((torch.cat(pieces, 1) - y).abs().max() / (1 + y.abs().max()))
    token = prompt[:, -1:]
    held = sum(_bytes(state))
    carried = state

    def step() -> None:
        nonlocal carried
        _, carried = model(token, carried)

    step()
    further = sum(_bytes(carried)) - held
    for _ in range(_WARM):
        step()
    return _median(step, _TOKENS), held, further, error


def _bytes(state: Any) -> Iterator[int]:
    """Sizes of the tensors of a state, however deep they lie; views of the same memory count once each."""
    if isinstance(state, Tensor):
        yield state.numel() * state.element_size()
    elif isinstance(state, (tuple, list)):
        for part in state:
            yield from _bytes(part)


def _peak(mixer: Mapping[str, Any], task: Task, dim: int, depth: int, seed: int, batch: int) -> int | None:
    """Bytes that model, optimiser and a training step add to the process at most; None where it is not known."""
    data = task.sample(batch, torch.Generator().manual_seed(seed))
    _give_back()
    before = _resident("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    except OSError:
        return None
    model = build(mixer, task, dim, depth, seed)
    optimiser = torch.optim.AdamW(parameter_groups(model, weight_decay=0.01), lr=1e-3)
    for _ in range(2):  # the optimiser's own memory comes with the first
        optimiser.zero_grad()
        torch.autograd.backward(loss_of(model, data))
        optimiser.step()
    peak = _resident("VmHWM")
    return None if before is None or peak is None else max(0, peak - before)


def _give_back() -> None:
    """Free what is no longer used and hand it to the system: memory kept for later would hide what a step needs."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library has no such call
        ctypes.CDLL(None).malloc_trim(0)


def _resident(field: str) -> int | None:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def _median(act: Any, times: int) -> float:
    """Median seconds of an act, over so many or what fits into ``_SECONDS``, at least five."""
    seconds: list[float] = []
    begin = time.perf_counter()
    while len(seconds) < times and (len(seconds) < 5 or time.perf_counter() - begin < _SECONDS):
        start = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)
