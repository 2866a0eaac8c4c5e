"""From a contender to a model, in the worker: the one file here besides ``trial`` and ``speed`` that loads torch."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from carrel.models import SequenceModel
from carrel.tasks import Task


def build(mixer: Mapping[str, Any], task: Task, dim: int, depth: int, seed: int) -> SequenceModel:
    """The residual stack around this mixer, its parameters drawn from ``seed``.

    Raises ValueError where the mixer's constructor does not take the options.
    """
    module, name = mixer["module"].split(":")
    kind, options = getattr(importlib.import_module(module), name), mixer["options"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SequenceModel(
            lambda width: kind(width, **options),
            dim,
            depth,
            vocab=task.vocab,
            in_dim=task.in_dim,
            out_dim=task.out_dim,
            mlp_ratio=mixer["mlp"],
        )


@contextmanager
def one_thread() -> Iterator[None]:
    """Tensors this small only wait for one another on several threads, the longer the busier the machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
