"""``carrel nbce``: a local checkpoint answers from files."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from .nbce import NBCE, PromptTooLong, Step


def load_checkpoint(folder: Path, device: str | None = None) -> tuple[Any, Any]:
    """Model and tokenizer of transformers from a folder; nothing is ever downloaded and no code of the folder runs.

    Raises ValueError: transformers is missing, or the folder holds no checkpoint of a causal language model.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"--model {folder}: wanted a folder with a checkpoint of transformers (config.json and weights)"
        )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is first imported
    try:
        import transformers
    except ImportError:
        raise ValueError("carrel nbce needs transformers: pip install 'carrel[llm]'") from None
    theirs: Any = transformers  # some of what follows has no types
    theirs.logging.set_verbosity_error()
    with suppress(AttributeError):  # absent in some versions
        theirs.logging.disable_progress_bar()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        tokenizer = theirs.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = theirs.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
        return model.to(device).eval(), tokenizer
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise ValueError(f"--model {folder} does not load: {' '.join(str(error).split())[:300]}") from None


def seeded(model: Any, seed: int) -> torch.Generator:
    """A source of chance on the model's device."""
    return torch.Generator(model.device).manual_seed(seed)


def read_contexts(files: Sequence[Path]) -> list[str]:
    """Their texts; ValueError names the first that is not text or empty."""
    texts = []
    for file in files:
        try:
            texts.append(file.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            raise ValueError(f"--context {file} is not text in UTF-8") from None
        if not texts[-1].strip():
            raise ValueError(f"--context {file} is empty")
    return texts


def answer(reader: NBCE, files: Sequence[Path], question: str, *, quiet: bool, **options: Any) -> list[Step]:
    """Ask, and print the answer as it is written unless ``quiet``; a context that is too long is named by its file."""
    texts, steps = read_contexts(files), []
    try:
        stream = reader.stream(texts, question, **options)
    except PromptTooLong as error:
        kind, _, number = error.name.partition(" ")
        name = f"--context {files[int(number)]}" if kind == "context" else error.name
        raise ValueError(f"{name}{str(error).removeprefix(error.name)}") from None
    for step in stream:
        steps.append(step)
        if not quiet:
            print(step.text, end="", flush=True)
    if not quiet:
        print()
        print(f"from: {_shares(steps, files)}", file=sys.stderr)
    return steps


def _shares(steps: Sequence[Step], files: Sequence[Path]) -> str:
    counts: dict[int | None, int] = {}
    for step in steps:
        counts[step.context] = counts.get(step.context, 0) + 1
    parts = sorted(counts.items(), key=lambda part: -part[1])
    return ", ".join(f"{'all files' if k is None else files[k]} {count}/{len(steps)} tokens" for k, count in parts)


def to_json(steps: Sequence[Step], files: Sequence[Path], question: str) -> dict[str, object]:
    """The answer and, for every token, the file it comes from (None: all of them) and each file's entropy."""
    return {
        "question": question,
        "contexts": [str(file) for file in files],
        "text": "".join(step.text for step in steps),
        "tokens": [
            {
                "token": step.token,
                "text": step.text,
                "context": None if step.context is None else str(files[step.context]),
                "logprob": step.logprob,
                "entropies": list(step.entropies),
            }
            for step in steps
        ],
    }
