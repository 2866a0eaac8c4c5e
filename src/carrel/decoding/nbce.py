"""Naive-Bayes context extension: one answer from contexts that are each read alone."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .batch import PromptBatch
from .pooling import Pooled, Pooling, check_options, pool_all
from .protocol import CausalOutput, Tokenizer
from .text import TextSoFar

TEMPLATE = "{context}\n\nQuestion: {question}\nAnswer:"
Template = str | Callable[[str, str], str]


class Step(NamedTuple):
    """One token of an answer.

    token: its number. text: what it adds to the answer; may be empty, or more than the token where text was held back.
    context: the number of the context it comes from; None where it comes from all of them.
    logprob: the logarithm of the probability it was written with (greedy: at temperature 1).
    entropies: of every context's distribution, in nats; NaN for contexts that were left out because they are empty, or
        were given up.
    """

    token: int
    text: str
    context: int | None
    logprob: float
    entropies: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """An answer: its text, tokens, the context behind every token (None: all of them), and log-probabilities."""

    text: str
    tokens: tuple[int, ...]
    chosen_context: tuple[int | None, ...]
    logprobs: tuple[float, ...]

    @classmethod
    def of(cls, steps: Sequence[Step]) -> Result:
        return cls(
            "".join(step.text for step in steps),
            tuple(step.token for step in steps),
            tuple(step.context for step in steps),
            tuple(step.logprob for step in steps),
        )


class NBCE:
    r"""A causal language model that answers from many contexts, which need not fit into its window together.

    The question is asked once per context and once without any; the n + 1 distributions of the next token are pooled
    (:func:`carrel.decoding.pool`), one token is written, and the same token continues every row.

    Args:
        model: any causal language model of transformers, or anything that is called as
            ``model(input_ids=, attention_mask=, position_ids=, past_key_values=, use_cache=)`` and returns ``.logits``
            and ``.past_key_values``; :class:`Recomputed` makes one of a plain function. Put it into ``eval()`` first.
        tokenizer: has ``encode``, ``decode``, ``eos_token_id`` and ``pad_token_id``; padding is masked, so any token
            will do for it, and a tokenizer without one is fine.
        pooling, beta, top_p, renormalize: as for :func:`carrel.decoding.pool`.
        context_batch: rows that go through the model together, n + 1 if None; less needs less memory.
        prune: contexts that none of the last so many tokens came from are given up, with what the model keeps of them:
            faster, and right as long as what is to come is not in them. None keeps all.
        limit: tokens that fit into the model; None asks its configuration.
    Cost: the prompts are read once, each alone, so linear in n; then n + 1 rows per token, with keys and values of all
    contexts in the caches. Only the last logits of a prompt are asked for, where the model can.
    Raises ValueError: as :func:`carrel.decoding.pool`, and for a context_batch or prune below 1, or prune with a
    pooling in which no single context speaks.
    Source: Su 2023, https://kexue.fm/archives/9617.
    """

    def __init__(
        self,
        model: Callable[..., CausalOutput],
        tokenizer: Tokenizer,
        pooling: Pooling = "min-entropy",
        beta: float = 0.25,
        top_p: float = 0.95,
        context_batch: int | None = None,
        *,
        renormalize: bool = False,
        prune: int | None = None,
        limit: int | None = None,
    ) -> None:
        check_options(pooling, beta, top_p)
        if context_batch is not None and context_batch < 1:
            raise ValueError(f"context_batch should be at least 1, not {context_batch}")
        if prune is not None and (prune < 1 or pooling not in ("min-entropy", "max")):
            raise ValueError(
                f"prune should be at least 1 and the pooling min-entropy or max, not {prune} and {pooling!r}"
            )
        self.model, self.tokenizer = model, tokenizer
        self.pooling, self.beta, self.top_p, self.renormalize = pooling, beta, top_p, renormalize
        self.context_batch, self.prune = context_batch, prune
        self.limit = _window(model) if limit is None else limit
        self._ends = _end_tokens(model, tokenizer)
        self._takes = _arguments(model)

    def generate(
        self,
        contexts: Sequence[str],
        question: str,
        template: Template = TEMPLATE,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        stop: Sequence[str] = (),
    ) -> Result:
        """The answer as a whole; arguments and errors as for :meth:`stream`."""
        return Result.of(list(self.stream(contexts, question, template, max_new_tokens, temperature, generator, stop)))

    def stream(
        self,
        contexts: Sequence[str],
        question: str,
        template: Template = TEMPLATE,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
        stop: Sequence[str] = (),
    ) -> Iterator[Step]:
        """The answer token by token.

        Args:
            contexts: texts, at least one that is not empty. Empty ones say what the row without context says and are
                left out.
            question: what is asked of all of them.
            template: a text with ``{context}`` and ``{question}``, or a function of both that returns the prompt. The
                row without context has an empty one.
            max_new_tokens: at most so many tokens, at least 1; the model's end token ends the answer earlier.
            temperature: pooled logits are divided by it before one token is drawn; 0 takes the likeliest.
            generator: the source of chance, on the logits' device; torch's own if None.
            stop: texts that end the answer and are not part of it.
        Yields :class:`Step`. No gradient is kept.
        Raises ValueError: no context, a template without its two fields, other numbers than above, logits that are NaN
        or infinite, or a prompt that does not fit into the model with the answer, naming its context.
        """
        if isinstance(contexts, str):
            raise ValueError("contexts should be a list of texts, not one text")
        used = [k for k, context in enumerate(contexts) if context.strip()]
        if not used:
            raise ValueError(f"NBCE wants at least one context, not {'none' if not contexts else 'empty ones only'}")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens should be at least 1, not {max_new_tokens}")
        if not 0 <= temperature < float("inf"):
            raise ValueError(f"temperature should be at least 0, not {temperature}")
        if isinstance(stop, str) or not all(stop):
            raise ValueError("stop should be a list of texts, none of them empty")
        prompts = [self._prompt(template, context, question) for context in ("", *(contexts[k] for k in used))]
        for name, prompt in zip(
            ("the question without context", *(f"context {k}" for k in used)), prompts, strict=True
        ):
            self._check_prompt(name, prompt, max_new_tokens)
        return self._steps(
            prompts, used, len(contexts), max_new_tokens, temperature, generator, TextSoFar(self.tokenizer, stop)
        )

    def _steps(
        self,
        prompts: list[list[int]],
        used: list[int],
        contexts: int,
        max_new_tokens: int,
        temperature: float,
        generator: torch.Generator | None,
        text: TextSoFar,
    ) -> Iterator[Step]:
        rows = PromptBatch(self.model, self._takes, prompts, self._filler(), self.context_batch)
        token: Tensor | None = None
        idle = [0] * len(used)  # tokens since one came from the context
        for written in range(1, max_new_tokens + 1):
            with torch.no_grad():  # not around the yield: the caller's own code would run without gradients, too
                logits = rows.read() if token is None else rows.append(token)
                pooled = self._pool(logits)
                token, logprob = draw(pooled.logits, temperature, generator)
                number, speaker = int(token), int(pooled.chosen(token))
            ended = number in self._ends
            piece = text.add(number, last=ended or written == max_new_tokens)
            entropies = [float("nan")] * contexts
            for k, value in zip(used, pooled.entropies[0].tolist(), strict=True):
                entropies[k] = value
            yield Step(number, piece, None if speaker < 0 else used[speaker], float(logprob), tuple(entropies))
            if ended or text.stopped:
                return
            if self.prune is not None and speaker >= 0:
                idle = [0 if k == speaker else tokens + 1 for k, tokens in enumerate(idle)]
                kept = [k for k, tokens in enumerate(idle) if tokens < self.prune]
                if len(kept) < len(used):
                    rows.keep([0, *(1 + k for k in kept)])  # the first is the one without context
                    used, idle = [used[k] for k in kept], [idle[k] for k in kept]

    def _pool(self, logits: Tensor) -> Pooled:
        return pool_all(logits[None, 1:], logits[:1], self.pooling, self.beta, self.top_p, self.renormalize)

    def _prompt(self, template: Template, context: str, question: str) -> list[int]:
        if callable(template):
            text = template(context, question)
        else:
            if "{context}" not in template or "{question}" not in template:
                raise ValueError(f"a template should have {{context}} and {{question}}, not {template!r}")
            before, *others = template.split("{context}")  # the context itself is never looked into for fields
            text = context.join(part.replace("{question}", question) for part in (before, *others))
        return list(self.tokenizer.encode(text))

    def _check_prompt(self, name: str, prompt: list[int], max_new_tokens: int) -> None:
        if not prompt:
            raise ValueError(f"the prompt of {name} has no tokens")
        if self.limit is not None and len(prompt) + max_new_tokens > self.limit:
            raise PromptTooLong(name, len(prompt), max_new_tokens, self.limit)

    def _filler(self) -> int:
        for token in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if token is not None:
                return token
        return 0  # masked, so any will do


class PromptTooLong(ValueError):
    """A context does not fit into the model. name: which; tokens: of its prompt; limit: that fit."""

    def __init__(self, name: str, tokens: int, new: int, limit: int) -> None:
        super().__init__(
            f"{name} makes a prompt of {tokens} tokens, which with {new} new ones exceeds the model's {limit}: "
            "make it shorter, or several contexts of it, or ask for a shorter answer"
        )
        self.name, self.tokens, self.limit = name, tokens, limit


def draw(logits: Tensor, temperature: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """One token per row and its log-probability, both (batch,), from logits (batch, vocab)."""
    top = logits - logits.amax(-1, keepdim=True)  # a small temperature may carry what is not 0 beyond all numbers
    logp = (top / (temperature or 1.0)).log_softmax(-1)
    token = logp.argmax(-1) if not temperature else logp.exp().multinomial(1, generator=generator)[:, 0]
    return token, logp.gather(-1, token[:, None])[:, 0]


def _window(model: Any) -> int | None:
    """The most positions a model's configuration allows, if it says so."""
    config = getattr(model, "config", None)
    if config is not None and hasattr(config, "get_text_config"):
        config = config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def _end_tokens(model: Any, tokenizer: Tokenizer) -> frozenset[int]:
    ends = [tokenizer.eos_token_id, getattr(getattr(model, "generation_config", None), "eos_token_id", None)]
    return frozenset(t for end in ends for t in (end if isinstance(end, list | tuple) else [end]) if t is not None)


def _arguments(model: Any) -> frozenset[str]:
    """Which optional arguments the model takes: alibi models take no positions, older ones cannot keep few logits."""
    parameters = inspect.signature(getattr(model, "forward", model)).parameters
    if "past_key_values" in parameters:
        return frozenset(parameters) & {"position_ids", "logits_to_keep", "num_logits_to_keep"}
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):  # a wrapper, which says nothing of what is inside
        return frozenset({"position_ids"})
    raise ValueError(f"NBCE wants a model with past_key_values, which {type(model).__name__} does not take")
