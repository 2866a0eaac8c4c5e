"""NBCE with models of plain torch: one answer, token by token, from contexts that are each read alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from carrel.decoding import NBCE, NBCELogitsProcessor, PromptTooLong, Recomputed

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


def lookup(text: Tensor) -> Tensor:
    """A model of plain torch: says the letter after the last '=' of its text, then ends; else it guesses."""
    logits = torch.zeros(*text.shape, VOCAB)
    sign = ord("=") % (VOCAB - 1)
    for row, tokens in enumerate(text.tolist()):
        for at in range(len(tokens)):
            known = [i for i in range(at) if tokens[i] == sign]
            if tokens[at] != ord("|") % (VOCAB - 1):
                logits[row, at, END] = 6.0
            elif known:
                logits[row, at, tokens[known[-1] + 1]] = 6.0
    return logits


def test_a_plain_function_of_torch_is_a_model_and_the_context_that_knows_speaks() -> None:
    for context_batch in (None, 1):
        nbce = NBCE(Recomputed(lookup), Letters(), context_batch=context_batch)
        got = nbce.generate(["nothing here", "key =K", "nor here"], "", "{context}{question}|", 5)
        assert got.tokens == (ord("K") % (VOCAB - 1), END)
        assert got.chosen_context[0] == 1
        assert got.text == chr(32 + ord("K") % (VOCAB - 1))


def test_no_gradient_is_kept_and_the_callers_gradients_are_left_alone() -> None:
    for _ in islice(NBCE(Recomputed(lookup), Letters()).stream(CONTEXTS, QUESTION, TEMPLATE), 2):
        assert torch.is_grad_enabled()


class Scripted:
    """A model that writes what it is told, whatever it reads."""

    def __init__(self, tokens: list[int], vocab: int = VOCAB) -> None:
        self.tokens, self.vocab = tokens, vocab

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, past_key_values: int | None = None, use_cache=True):
        at = past_key_values or 0
        logits = torch.full((len(input_ids), 1, self.vocab), -9.0)
        logits[..., self.tokens[at]] = 9.0
        return SimpleNamespace(logits=logits, past_key_values=at + 1)


def written(text: str, stop: Sequence[str], tokens: int = 99) -> list[str]:
    script = [ord(letter) - 32 for letter in text] + [END]
    return [s.text for s in NBCE(Scripted(script), Letters()).stream(["c"], "q", max_new_tokens=tokens, stop=stop)]


@pytest.mark.parametrize(
    ("text", "stop", "pieces"),
    [
        ("one", (), ["o", "n", "e", ""]),
        ("one. two", (". ",), ["o", "n", "e", "", ""]),
        ("a.b. c", (". ",), ["a", "", ".b", "", ""]),
        ("aab", ("aaa", "ac"), ["", "", "aab", ""]),
        ("a.", (". ",), ["a", "", "."]),
        ("xSTOPy", ("OP", "STOP"), ["x", "", "", "", ""]),
    ],
)
def test_text_is_handed_out_when_no_stop_can_take_it_back(text: str, stop: tuple[str, ...], pieces: list[str]) -> None:
    assert written(text, stop) == pieces


def test_what_was_held_back_comes_with_the_last_token() -> None:
    assert written("a.b", (". ",), tokens=2) == ["a", "."]


def test_half_a_character_is_held_back() -> None:
    class Bytes(Letters):
        def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
            return bytes(t for t in token_ids if t != 256).decode("utf-8", errors="replace")

        eos_token_id = 256

    nbce = NBCE(Scripted([*"aé→".encode(), 256], 257), Bytes())
    assert [s.text for s in nbce.stream(["c"], "q")] == ["a", "", "é", "", "", "→", ""]


def test_each_group_of_the_logits_processor_draws_one_token_for_all_its_rows() -> None:
    processor = NBCELogitsProcessor(2, temperature=1.0, top_p=1.0, generator=torch.Generator().manual_seed(0))
    only = processor(torch.zeros(6, 1), torch.zeros(6, 50))
    tokens = (only == 0).nonzero()[:, 1].view(2, 3)
    assert (only.isneginf().sum(-1) == 49).all()
    assert (tokens == tokens[:, :1]).all()
    with pytest.raises(ValueError, match="5 rows"):
        processor(torch.zeros(5, 1), torch.zeros(5, 50))


def test_a_model_without_a_cache_is_refused() -> None:
    with pytest.raises(ValueError, match="past_key_values"):
        NBCE(nn.Linear(2, 2), Letters())


def test_logits_that_are_not_finite_are_refused_naming_their_context() -> None:
    def broken(text: Tensor) -> Tensor:
        logits = torch.zeros(*text.shape, VOCAB)
        return logits + (float("nan") if text.shape[1] > 30 else 0.0)

    with pytest.raises(ValueError, match="of context 0 are not finite"):
        NBCE(Recomputed(broken), Letters()).generate(CONTEXTS[:2], QUESTION, TEMPLATE)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"contexts": []}, "at least one context, not none"),
        ({"contexts": ["", " "]}, "empty ones only"),
        ({"contexts": "one text"}, "list of texts"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"template": "{context}"}, r"\{question\}"),
        ({"stop": "\n"}, "list of texts"),
        ({"stop": [""]}, "none of them empty"),
        ({"contexts": ["a", "", "x" * 120]}, "context 2 makes a prompt of 125 tokens.* 128"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_the_model_reads_anything(change: dict, says: str) -> None:
    model = Recomputed(lambda text: pytest.fail("the model was asked"))
    arguments = {"contexts": CONTEXTS, "question": QUESTION, "template": TEMPLATE, "max_new_tokens": 8, **change}
    with pytest.raises(ValueError, match=says):
        NBCE(model, Letters(), limit=128).stream(**arguments)


def test_a_context_that_just_fits_is_read() -> None:
    fits = "x" * (128 - 1 - len(TEMPLATE.format(context="", question=QUESTION)))
    assert len(NBCE(Recomputed(lookup), Letters(), limit=128).generate([fits], QUESTION, TEMPLATE, 1).tokens) == 1
    with pytest.raises(PromptTooLong) as refused:
        NBCE(Recomputed(lookup), Letters(), limit=128).generate([fits + "x"], QUESTION, TEMPLATE, 1)
    assert (refused.value.name, refused.value.tokens, refused.value.limit) == ("context 0", 128, 128)


class Rows:
    """A model whose cache is the text so far; it counts rows, and in each context names one letter after another.

    A context is a list of letters: at step t the model is sure of the t-th one, unless that is a dot.
    """

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, past_key_values=None, use_cache=True):
        text = input_ids if past_key_values is None else torch.cat((past_key_values[0], input_ids), 1)
        self.rows.append(len(text))
        logits = torch.zeros(len(text), 1, VOCAB)
        bar, dot = ord("|") % (VOCAB - 1), ord(".") % (VOCAB - 1)
        for row, (tokens, seen) in enumerate(zip(text.tolist(), attention_mask.tolist(), strict=True)):
            own = [t for t, there in zip(tokens, seen, strict=True) if there]
            end = own.index(bar)
            step = len(own) - end - 1
            if step < end and own[step] != dot:
                logits[row, 0, own[step]] = 9.0
        return SimpleNamespace(logits=logits, past_key_values=(text,))


@pytest.mark.parametrize("context_batch", [None, 1, 2])
@pytest.mark.parametrize("pooling", ["min-entropy", "max"])
def test_a_context_that_fell_silent_is_given_up_and_the_others_keep_their_numbers(context_batch, pooling) -> None:
    contexts = ["........", "ab..efgh", "", "..cd", ".........."]
    for prune, rows in ((None, [5] * 8), (3, [5, 5, 5, 3, 3, 3, 3, 2])):
        model = Rows()
        reader = NBCE(model, Letters(), pooling, 0.0, context_batch=context_batch, prune=prune)
        steps = list(reader.stream(contexts, "", "{context}{question}|", 8))
        assert [step.context for step in steps] == [1, 1, 3, 3, 1, 1, 1, 1]
        assert [chr(step.token) for step in steps] == [chr(ord(c) % (VOCAB - 1)) for c in "abcdefgh"]
        slices = 1 if context_batch is None else -(-5 // context_batch)
        if context_batch is None:
            assert model.rows == rows
        else:
            assert sum(model.rows) == sum(rows)
            assert model.rows[:slices] == [context_batch] * (slices - 1) + [5 - context_batch * (slices - 1)]
        known = [[k for k, entropy in enumerate(step.entropies) if entropy == entropy] for step in steps]
        assert known[0] == [0, 1, 3, 4]
        assert known[-1] == ([0, 1, 3, 4] if prune is None else [1])


def test_a_context_that_speaks_too_late_is_lost() -> None:
    contexts = ["abcd..", "....ef"]
    for prune, speakers in ((5, [0, 0, 0, 0, 1, 1]), (4, [0, 0, 0, 0, 0, 0])):
        reader = NBCE(Rows(), Letters(), beta=0.0, prune=prune)
        assert [step.context for step in reader.stream(contexts, "", "{context}{question}|", 6)] == speakers


def test_without_a_speaker_nobody_is_given_up() -> None:
    model = Rows()
    list(NBCE(model, Letters(), beta=-1, prune=1).stream(["abc", "..."], "", "{context}{question}|", 3))
    assert model.rows == [3, 3, 3]


def test_a_cache_whose_rows_cannot_be_picked_is_refused() -> None:
    reader = NBCE(Scripted([3, 4, 5]), Letters(), prune=1)
    with pytest.raises(ValueError, match="a cache whose rows can be picked, which int is not"):
        list(reader.stream(["a", "b"], "q"))


@pytest.mark.parametrize(
    "change",
    [
        {"pooling": "best"},
        {"beta": -2.0},
        {"top_p": 0.0},
        {"context_batch": 0},
        {"prune": 0},
        {"prune": 3, "pooling": "mean"},
        {"prune": 3, "pooling": lambda each, _: each[:, 0]},
    ],
)
def test_options_that_mean_nothing_are_refused(change: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(change))):
        NBCE(Recomputed(lookup), Letters(), **change)
