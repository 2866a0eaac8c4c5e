"""NBCE with models of transformers, randomly initialised: GPT-2 (learned positions), Llama (rotary), Bloom (none)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from carrel.decoding import NBCE, NBCELogitsProcessor, pool

transformers = pytest.importorskip("transformers")

VOCAB, END = 97, 96
TEMPLATE = "{context}|{question}"
CONTEXTS = ["a long text about birds and bees", "short", "of middling length", "x" * 40]
QUESTION = "who?"


class Letters:
    """A tokenizer of single characters; the last number ends a text."""

    eos_token_id, pad_token_id = END, None

    def encode(self, text: str) -> list[int]:
        return [ord(letter) % (VOCAB - 1) for letter in text]

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return "".join(chr(32 + t) for t in token_ids if t != END)


def gpt2(**options) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}
    config = transformers.GPT2Config(**{**sizes, "bos_token_id": END, "eos_token_id": END, **options})
    return transformers.GPT2LMHeadModel(config).eval()


def llama() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3, bos_token_id=END, eos_token_id=END,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def bloom() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.BloomConfig(
        vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3, bos_token_id=END, eos_token_id=END
    )
    return transformers.BloomForCausalLM(config).eval()


MODELS = {"gpt2": gpt2, "llama": llama, "bloom": bloom}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return MODELS[request.param]()


def without_caches(
    model: nn.Module, contexts: list[str], steps: int, **options
) -> tuple[list[int], list[int], list[Tensor]]:
    """The definition: every prompt alone, unpadded, read again for every token."""
    prompts = [Letters().encode(TEMPLATE.format(context=c, question=QUESTION)) for c in ("", *contexts)]
    tokens, chosen, logits = [], [], []
    for _ in range(steps):
        with torch.no_grad():
            rows = torch.stack([model(torch.tensor([p + tokens])).logits[0, -1] for p in prompts])
        z, info = pool(rows[None, 1:], rows[None, 0], **options)
        tokens.append(int(z.argmax()))
        chosen.append(int(info.chosen))
        logits.append(z[0])
    return tokens, chosen, logits


@pytest.mark.parametrize("context_batch", [None, 2, 1])
def test_padding_slices_and_caches_change_nothing(model: nn.Module, context_batch: int | None) -> None:
    tokens, chosen, logits = without_caches(model, CONTEXTS, 8)
    nbce = NBCE(model, Letters(), context_batch=context_batch)
    steps = list(nbce.stream(CONTEXTS, QUESTION, TEMPLATE, max_new_tokens=8))
    assert [step.token for step in steps] == tokens[: len(steps)]
    assert [step.context for step in steps] == chosen[: len(steps)]
    assert len(steps) == 8 or steps[-1].token == END
    for step, z in zip(steps, logits, strict=False):
        assert step.logprob == pytest.approx(float(z.log_softmax(-1)[step.token]), abs=1e-5)


def test_a_padding_token_that_means_something_changes_nothing(model: nn.Module) -> None:
    class Padded(Letters):
        pad_token_id = 7

    plain, padded = (NBCE(model, t).generate(CONTEXTS, QUESTION, TEMPLATE, 8) for t in (Letters(), Padded()))
    assert plain.tokens == padded.tokens
    assert plain.logprobs == pytest.approx(padded.logprobs, abs=1e-5)


def test_one_context_with_beta_0_writes_what_the_model_writes_with_it(model: nn.Module) -> None:
    prompt = torch.tensor([Letters().encode(TEMPLATE.format(context=CONTEXTS[0], question=QUESTION))])
    wanted = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=10, do_sample=False, pad_token_id=0
    )[0, prompt.shape[1] :]
    got = NBCE(model, Letters(), beta=0.0).generate(CONTEXTS[:1], QUESTION, TEMPLATE, max_new_tokens=10)
    assert list(got.tokens) == wanted.tolist()
    assert set(got.chosen_context) == {0}


@pytest.mark.parametrize("pooling", ["min-entropy", "max", "mean"])
def test_the_order_of_contexts_changes_nothing_but_their_numbers(model: nn.Module, pooling: str) -> None:
    nbce = NBCE(model, Letters(), pooling, context_batch=2)
    order = [2, 0, 3, 1]
    first = nbce.generate(CONTEXTS, QUESTION, TEMPLATE, 6)
    second = nbce.generate([CONTEXTS[k] for k in order], QUESTION, TEMPLATE, 6)
    assert first.tokens == second.tokens
    assert first.chosen_context == tuple(None if k is None else order[k] for k in second.chosen_context)
    assert (None in first.chosen_context) == (pooling == "mean")


def test_empty_contexts_are_left_out_and_the_others_keep_their_numbers(model: nn.Module) -> None:
    nbce = NBCE(model, Letters(), "mean", beta=1.0)
    padded = ["", CONTEXTS[0], "  \n", CONTEXTS[1], ""]
    steps = list(nbce.stream(padded, QUESTION, TEMPLATE, 4))
    assert [s.token for s in steps] == list(nbce.generate(CONTEXTS[:2], QUESTION, TEMPLATE, 4).tokens)
    assert [math.isnan(h) for h in steps[0].entropies] == [True, False, True, False, True]
    chosen = NBCE(model, Letters()).generate(padded, QUESTION, TEMPLATE, 4).chosen_context
    assert set(chosen) <= {1, 3}


def test_the_context_behind_a_token_of_max_pooling_is_the_one_that_finds_it_likeliest(model: nn.Module) -> None:
    nbce = NBCE(model, Letters(), "max", top_p=1.0)
    for step in nbce.stream(CONTEXTS[:1] + CONTEXTS[1:2], QUESTION, TEMPLATE, 1, 3.0, torch.Generator().manual_seed(1)):
        rows = []
        for context in CONTEXTS[:2]:
            ids = torch.tensor([Letters().encode(TEMPLATE.format(context=context, question=QUESTION))])
            rows.append(model(ids).logits[0, -1].log_softmax(-1)[step.token].item())
        assert step.context == rows.index(max(rows))


def test_sampling_follows_its_seed(model: nn.Module) -> None:
    def answer(seed: int) -> tuple[int, ...]:
        nbce = NBCE(model, Letters(), top_p=1.0)
        generator = torch.Generator().manual_seed(seed)
        return nbce.generate(CONTEXTS, QUESTION, TEMPLATE, 8, temperature=2.0, generator=generator).tokens

    assert answer(3) == answer(3)
    assert len({answer(seed) for seed in range(4)}) > 1


def test_only_the_last_logits_are_asked_for() -> None:
    model, widths = llama(), []
    model.lm_head.register_forward_hook(lambda module, given, made: widths.append(made.shape[1]))
    NBCE(model, Letters()).generate(CONTEXTS, QUESTION, TEMPLATE, 3)
    assert set(widths) == {1}


def test_prompts_are_read_once_and_then_one_token_at_a_time() -> None:
    model, shapes = gpt2(), []
    model.transformer.wte.register_forward_hook(lambda module, given, made: shapes.append(tuple(given[0].shape)))
    written = len(NBCE(model, Letters(), context_batch=3).generate(CONTEXTS, QUESTION, TEMPLATE, 4).tokens)
    lengths = sorted(len(TEMPLATE.format(context=c, question=QUESTION)) for c in ("", *CONTEXTS))
    assert shapes == [(3, lengths[2]), (2, lengths[4]), *[(3, 1), (2, 1)] * (written - 1)]


def test_a_function_may_make_the_prompt_and_contexts_may_hold_braces(model: nn.Module) -> None:
    contexts = ["{question} {0} {", "}} {context}"]
    nbce = NBCE(model, Letters())
    text = nbce.generate(contexts, "{context}?", TEMPLATE, 4)
    assert text == nbce.generate(contexts, "{context}?", lambda c, q: c + "|" + q, 4)


def test_logits_processor_makes_generate_of_transformers_write_the_same(model: nn.Module) -> None:
    nbce = NBCE(model, Letters())
    contexts = CONTEXTS[:3]
    wanted = nbce.generate(contexts, QUESTION, TEMPLATE, 6)
    prompts = [Letters().encode(TEMPLATE.format(context=c, question=QUESTION)) for c in ("", *contexts)]
    longest = max(map(len, prompts))
    both = 2 * prompts  # two questions that happen to be the same
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in both])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in both])
    for sampled in (False, True):
        processor = NBCELogitsProcessor(groups=2)
        got = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=6,
            do_sample=sampled,
            logits_processor=[processor],
            pad_token_id=END,
        )[:, longest:]
        assert (got == got[0]).all()
        assert got[0].tolist()[: len(wanted.tokens)] == list(wanted.tokens)
        assert [int(c[1]) for c in processor.chosen] == list(wanted.chosen_context)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("context_batch", [None, 2])
def test_contexts_given_up_leave_the_others_as_if_they_had_been_alone(name: str, context_batch: int | None) -> None:
    model = MODELS[name]()
    asked = (QUESTION, TEMPLATE, 12)
    steps = list(NBCE(model, Letters(), beta=0.0, context_batch=context_batch, prune=1).stream(CONTEXTS, *asked))
    first = steps[0].context
    assert first is not None
    alone = list(NBCE(model, Letters(), beta=0.0).stream([CONTEXTS[first]], *asked))  # after one token only one is left
    assert [step.token for step in steps] == [step.token for step in alone]
    assert {step.context for step in steps} == {first}
    for ours, theirs in zip(steps[1:], alone[1:], strict=True):
        assert math.isclose(ours.entropies[first], theirs.entropies[0], abs_tol=1e-4)
        assert sum(math.isnan(entropy) for entropy in ours.entropies) == 3
