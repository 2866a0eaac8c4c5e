"""NBCE: pooling beside the published steps, and whole answers beside one long prompt and separate ones."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from carrel.decoding import NBCE, Recomputed, pool

from .case import Case, Problem, Side

_CONTEXTS, _VOCAB = 8, 32000
_PROMPT, _WRITTEN = 256, 32


def _sorted_steps(contexts: Tensor, free: Tensor) -> Tensor:
    """The published order: all tokens are sorted for the filter."""
    rows = torch.cat((free, contexts[0])).log_softmax(-1)
    order = rows.sort(-1)
    removed = order.values.exp().cumsum(-1) <= 0.05
    removed[:, -1] = False
    rows = rows.masked_fill(removed.scatter(-1, order.indices, removed), float("-inf"))
    entropy = -(rows.exp() * rows.clip(-100, 0)).sum(-1)
    best = rows[1 + entropy[1:].argmin()]
    return torch.where(rows[0] > -100, 1.25 * best - 0.25 * rows[0], best)


def _pooling(size: float) -> Callable[[torch.device], Problem]:
    def build(device: torch.device) -> Problem:
        generator = torch.Generator().manual_seed(0)
        contexts = size * torch.randn(1, _CONTEXTS, _VOCAB, generator=generator)
        free = size * torch.randn(1, _VOCAB, generator=generator)
        contexts, free = contexts.to(device), free.to(device)

        def check() -> float:
            few = contexts.double()
            return float((pool(few, free.double())[0][0] - _sorted_steps(few, free.double())).nan_to_num(0).abs().max())

        sides: dict[str, Side] = {
            "carrel pool": partial(pool, contexts, free),
            "the published steps, sorting": partial(_sorted_steps, contexts, free),
            "log_softmax alone": lambda: torch.cat((free, contexts[0])).log_softmax(-1),
        }
        return Problem(check, 1e-10, sides)

    return build


class _Numbers:
    """A tokenizer of texts that are numbers already."""

    eos_token_id, pad_token_id = None, 0

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, token_ids))


def _answers(device: torch.device) -> Problem:
    if importlib.util.find_spec("transformers") is None:
        return Problem(lambda: 0.0, 1.0, {}, absent={"all sides": "transformers is not installed"})
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=_VOCAB, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=8,
        max_position_embeddings=4096, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(device).eval()
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(1, _VOCAB, (_CONTEXTS, _PROMPT), generator=generator).tolist()
    contexts = [" ".join(map(str, row)) for row in numbers]
    template = "{context} {question}"

    def ours(rows: int | None) -> Side:
        return partial(NBCE(model, _Numbers(), context_batch=rows).generate, contexts, "1 2 3", template, _WRITTEN)

    def theirs(prompts: list[list[int]]) -> Side:
        def run() -> object:
            return [
                model.generate(
                    torch.tensor([prompt], device=device), max_new_tokens=_WRITTEN, do_sample=False, pad_token_id=0
                )
                for prompt in prompts
            ]

        return run

    def check() -> float:
        plain = NBCE(Recomputed(lambda ids: model(ids.to(device)).logits), _Numbers())
        found = [reader.generate(contexts, "1 2 3", template, 4) for reader in (NBCE(model, _Numbers()), plain)]
        return max(abs(a - b) for a, b in zip(found[0].logprobs, found[1].logprobs, strict=True))

    question = [1, 2, 3]
    return Problem(
        check,
        1e-4,
        {
            "carrel NBCE": ours(None),
            "carrel NBCE, 3 rows at a time": ours(3),
            "transformers, one long prompt": theirs([[token for row in numbers for token in row] + question]),
            "transformers, a prompt per context": theirs([row + question for row in (*numbers, [])]),
        },
    )


CASES = (
    Case("nbce-pool", f"{_CONTEXTS} contexts, {_VOCAB} tokens, scores of size 3", _pooling(3.0), inner=5),
    Case("nbce-pool-flat", f"{_CONTEXTS} contexts, {_VOCAB} tokens, scores of size 0.5", _pooling(0.5), inner=5),
    Case(
        "nbce-answer",
        f"{_WRITTEN} tokens from {_CONTEXTS} contexts of {_PROMPT}, a Llama of 4 layers, 256 channels",
        _answers,
        rounds=3,
        warmup=1,
    ),
)
