"""generate: x_{t+1} ~ softmax(model(x_{1..t})_t / T), each token fed once, from a state that need not grow."""

import itertools
import re

import pytest
import torch

from carrel.attention import MHA
from carrel.models import SequenceModel, stream
from carrel.recurrent import LRU, S4D, Mamba


@pytest.fixture(autouse=True)
def _one_thread():
    """Single tokens are too small to share out: on a busy machine threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


MIXERS = {
    "LRU": lambda dim: LRU(dim, r_min=0.5, r_max=0.99),
    "S4D": lambda dim: S4D(dim, 8),
    "Mamba": lambda dim: Mamba(dim, 4),
    "MHA": lambda dim: MHA(dim, 2),
}
RECURRENT = ("LRU", "S4D", "Mamba")


def model(mixer="LRU", **options):
    torch.manual_seed(0)
    return SequenceModel(MIXERS[mixer], 8, 2, **({"vocab": 11, "out_dim": 11, "mlp_ratio": 2} | options))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def prompt(batch=3, length=5, seed=0):
    return torch.randint(11, (batch, length), generator=seeded(seed))


@pytest.mark.parametrize("length", [1, 5, 70])
@pytest.mark.parametrize("mixer", MIXERS)
def test_the_likeliest_token_is_that_of_the_whole_sequence_fed_again(mixer, length):
    m, x = model(mixer).double(), prompt(length=length)
    tokens, state = m.generate(x, 30, temperature=0)
    whole, _ = m(torch.cat([x, tokens], 1))
    assert torch.equal(tokens, whole[:, length - 1 : -1].argmax(-1))
    last, _ = m(tokens[:, -1:], state)
    torch.testing.assert_close(last[:, 0], whole[:, -1], atol=1e-10, rtol=0)


@pytest.mark.parametrize("mixer", MIXERS)
def test_stopping_and_going_on_is_the_same_as_not_stopping(mixer):
    m, x, chance, again = model(mixer).double(), prompt(), seeded(), seeded()
    wanted, _ = m.generate(x, 20, generator=chance)
    first, state = m.generate(x[:, :3], 1, generator=seeded())
    first, state = m.generate(x[:, 3:], 7, generator=again, state=m(x[:, :3])[1])
    second, _ = m.generate(first[:, -1:], 13, generator=again, state=state)
    assert torch.equal(torch.cat([first, second], 1), wanted)


def test_tokens_come_one_by_one_with_the_state_before_them():
    m, x = model().double(), prompt()
    wanted, last = m.generate(x, 6, generator=seeded())
    pairs = list(itertools.islice(stream(m, x, generator=seeded()), 6))
    assert torch.equal(torch.stack([token for token, _ in pairs], 1), wanted)
    for got, state in zip(pairs[-1][1], last, strict=True):
        assert torch.equal(got.h, state.h)
    token, state = pairs[2]
    assert torch.equal(m.generate(token[:, None], 3, temperature=0, state=state)[0], greedy_after(m, x, wanted[:, :3]))


def greedy_after(m, x, tokens):
    return m.generate(torch.cat([x, tokens], 1), 3, temperature=0)[0]


def test_tokens_are_drawn_with_the_shares_of_the_softmax():
    m, draws = model(), 20_000
    x = prompt(1).expand(draws, -1)
    for temperature in (0.5, 1.0, 3.0):
        tokens, _ = m.generate(x, 1, temperature=temperature, generator=seeded())
        p = (m(x[:1])[0][0, -1].double() / temperature).softmax(0)
        shares = tokens.flatten().bincount(minlength=11) / draws
        assert ((shares - p).abs() < 4.5 * (p * (1 - p) / draws).sqrt() + 1e-9).all()


def test_a_tiny_temperature_is_greedy():
    m, x = model(), prompt()
    wanted, _ = m.generate(x, 10, temperature=0)
    assert torch.equal(m.generate(x, 10, temperature=1e-30, generator=seeded())[0], wanted)


def test_the_generator_is_the_only_source_of_chance():
    m, x = model(), prompt()
    kept = torch.random.get_rng_state()
    first = m.generate(x, 10, generator=seeded())[0]
    assert torch.equal(first, m.generate(x, 10, generator=seeded())[0])
    assert not torch.equal(first, m.generate(x, 10, generator=seeded(1))[0])
    assert torch.equal(kept, torch.random.get_rng_state())


def test_rows_are_written_on_independently():
    m, x = model("MHA").double(), prompt()
    tokens, _ = m.generate(x, 10, temperature=0)
    for row in range(3):
        assert torch.equal(m.generate(x[row : row + 1], 10, temperature=0)[0], tokens[row : row + 1])
    assert m.generate(x[:0], 10)[0].shape == (0, 10)


def test_no_gradient_is_kept_and_the_caller_keeps_theirs():
    m = model()
    for (token, state), _ in zip(stream(m, prompt()), range(3), strict=False):
        assert torch.is_grad_enabled()
        assert not any(part.h.requires_grad for part in state)
        assert not token.requires_grad


def state_bytes(state):
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    return sum(map(state_bytes, state))


@pytest.mark.parametrize("mixer", MIXERS)
def test_the_state_has_constant_size_unless_it_keeps_every_token(mixer):
    m, x = model(mixer), prompt(length=10)
    sizes = {n: state_bytes(m.generate(x, n, temperature=0)[1]) for n in (1, 21, 61)}
    if mixer in RECURRENT:
        assert sizes[1] == sizes[21] == sizes[61] > 0
    else:
        # keys and values of 8 channels in float32, 2 blocks, 3 rows: 384 bytes for each of the tokens read
        assert [sizes[n] - sizes[1] for n in (21, 61)] == [384 * 20, 384 * 60]


def peak(m, tokens):
    """Most bytes that torch held at once over those at the start, for writing so many tokens and keeping none."""
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in itertools.islice(stream(m, prompt(1, 4), temperature=0), tokens):
            pass
    changes = [(e.start_ns(), e.nbytes()) for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(nbytes for _, nbytes in sorted(changes, key=lambda change: change[0])))


@pytest.mark.parametrize("mixer", MIXERS)
def test_four_times_as_many_tokens_need_no_more_memory_unless_all_are_kept(mixer):
    m = model(mixer)
    peak(m, 2)  # what is made once only
    few, many = peak(m, 60), peak(m, 240)
    if mixer in RECURRENT:
        assert 0 < many <= few
    else:
        assert many > 3 * few


@pytest.mark.parametrize(
    ("options", "call", "sentence"),
    [
        ({"pool": "last"}, {}, "not vocab=11, pool='last' and out_dim=11"),
        ({"vocab": None, "in_dim": 3}, {}, "wants a model of tokens"),
        ({"out_dim": 12}, {}, "no more outputs than tokens, not vocab=11, pool='none' and out_dim=12"),
        ({}, {"length": 0}, "a length of at least 1, not 0"),
        ({}, {"prompt": torch.zeros(2, 0, dtype=torch.int64)}, "(batch, 1 or more tokens), not (2, 0)"),
        ({}, {"prompt": torch.zeros(2, dtype=torch.int64)}, "not (2,)"),
        ({}, {"prompt": torch.zeros(2, 3)}, "tokens of shape (batch, length), not torch.float32"),
        ({}, {"temperature": -1.0}, "a temperature of at least 0, not -1.0"),
        ({}, {"temperature": float("nan")}, "a temperature of at least 0, not nan"),
    ],
)
def test_what_cannot_be_written_on_is_named(options, call, sentence):
    m = model(**options)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        m.generate(**({"prompt": prompt(), "length": 3} | call))


def test_a_bad_temperature_is_named_before_the_first_token_is_asked_for():
    with pytest.raises(ValueError, match="temperature"):
        stream(model(), prompt(), temperature=-1.0)


def test_fewer_answers_than_tokens_can_be_written():
    tokens, _ = model(out_dim=4).generate(prompt(), 20)
    assert tokens.max() < 4
