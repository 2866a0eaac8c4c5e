"""check_streaming passes honest mixers and names the broken promise of every other kind."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from carrel.layers import Mixer
from carrel.testing import check_streaming


class Sum(NamedTuple):
    total: Tensor
    pos: Tensor


class RunningSum(nn.Module):
    """Honest: y_t = W (0.9 y-sum so far + x_t). Its ways to fail are set by name."""

    def __init__(self, dim=3, chunk=4, fault=""):
        super().__init__()
        self.chunk, self.fault = chunk, fault
        self.weight = nn.Parameter(torch.randn(dim, dim))
        self.register_buffer("decay", torch.tensor(0.9))

    def forward(self, x, state=None):
        fault, chunk = self.fault, self.chunk
        if fault == "pointwise":
            return x @ self.weight, Sum(x.new_zeros(x.shape[0], x.shape[2]), self._start(x))
        if state is None:
            state = Sum(x.new_zeros(x.shape[0], x.shape[2]), self._start(x))
        total, pos, rows = state.total, state.pos, []
        if fault == "detaches the state":
            total = total.detach()
        if fault == "writes to the state":
            kept = total
        for t in range(x.shape[1]):
            if fault == "forgets inside a piece" and t % chunk == 0 and t > 0:
                total = torch.zeros_like(total)
            if fault == "forgets by position" and int(pos[0]) % chunk == 0:
                total = torch.zeros_like(total)
            seen = x[:, min(t + 1, x.shape[1] - 1)] if fault == "peeks inside a piece" else x[:, t]
            if fault == "peeks over the whole":
                seen = seen + 0.1 * x.sum(1)
            total = self.decay * total + seen
            if fault == "mixes rows":
                total = total + 0.1 * total.mean(0)
            rows.append(total @ self.weight)
            pos = pos + 1
        y = torch.stack(rows, 1) if rows else x @ self.weight
        if fault == "drops the last token of a piece" and rows:
            total = (total - x[:, -1]) / self.decay
        if fault == "writes to the state":
            with torch.no_grad():
                kept.copy_(total)
            total = kept
        if fault == "fails on empty pieces" and not rows:
            total = total + 1
        if fault == "batch last":
            total = total.T
        return y, Sum(total, pos)

    def _start(self, x):
        return torch.zeros(x.shape[0], dtype=torch.int64)


class CacheState(NamedTuple):
    cache: Tensor
    pos: Tensor


class Cached(nn.Module):
    """Means over a buffer with room ahead, as a key cache has; ``copies`` says whether a second branch copies."""

    chunk = 1

    def __init__(self, copies):
        super().__init__()
        self.copies = copies
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x, state=None):
        if state is None:
            state = CacheState(x.new_zeros(x.shape[0], 100, 3), torch.zeros(x.shape[0], dtype=torch.int64))
        cache, pos = state
        n = int(pos[0]) if len(pos) else 0
        cache = cache.clone() if self.copies or torch.is_grad_enabled() else cache
        cache[:, n : n + x.shape[1]] = x
        counts = torch.arange(1, 101, dtype=x.dtype)[:, None]
        y = ((cache.cumsum(1) / counts) @ self.weight)[:, n : n + x.shape[1]]
        return y, CacheState(cache, pos + x.shape[1])


class WrongBackward(torch.autograd.Function):
    """Right outputs; the gradient of what the state contributes is lost, as in a kernel that forgets h_last."""

    @staticmethod
    def forward(ctx, total, x):
        return total + x

    @staticmethod
    def backward(ctx, gradient):
        return torch.zeros_like(gradient), gradient


class WrongGradientOfTheState(nn.Module):
    chunk = 1

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x, state=None):
        h = x.cumsum(1)
        total = x.new_zeros(x.shape[0], 3) if state is None else state.total
        h = WrongBackward.apply(total[:, None].expand_as(h), h)
        last = total + x.sum(1)
        return h @ self.weight, Sum(last, torch.zeros(x.shape[0], dtype=torch.int64))


@pytest.mark.parametrize("chunk", [1, 2, 4, 16])
def test_an_honest_mixer_passes(chunk):
    check_streaming(RunningSum(chunk=chunk), 3)


def test_a_cache_with_room_ahead_passes_if_a_second_branch_copies():
    check_streaming(Cached(copies=True), 3)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("pointwise", "depends on no earlier token"),
        ("forgets inside a piece", "outputs differ from the whole's when fed in pieces"),
        ("forgets by position", "the output at token 4 depends on no earlier token"),
        ("drops the last token of a piece", "outputs differ from the whole's when fed in pieces"),
        ("peeks inside a piece", "outputs differ from the whole's when fed in pieces"),
        ("peeks over the whole", "outputs differ from the whole's when fed in pieces"),
        ("detaches the state", "the gradient of the input differs from the whole's in pieces"),
        ("writes to the state", "an old state does not replay"),
        ("mixes rows", "a row of the batch comes out differently when it is fed alone"),
        ("fails on empty pieces", "outputs differ from the whole's when fed in pieces (pieces of zero tokens)"),
        ("batch last", "the batch must come first"),
    ],
)
def test_a_broken_mixer_is_named(fault, sentence):
    with pytest.raises(AssertionError) as error:
        check_streaming(RunningSum(fault=fault), 3)
    assert sentence in str(error.value)


def test_a_mixer_that_begins_anew_must_say_so_and_mean_it():
    forgetful = RunningSum(fault="forgets by position")
    forgetful.restarts = 4
    check_streaming(forgetful, 3)
    honest = RunningSum()
    honest.restarts = 4
    with pytest.raises(AssertionError, match="restarts every 4 tokens sees through it at token 4"):
        check_streaming(honest, 3)


class PeeksAhead(nn.Module):
    """Adds the next token of the longest sequence it ever saw, and so is consistent in whole, pieces and steps."""

    chunk = 1

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("sequence", torch.zeros(0, 0, 3))

    def forward(self, x, state=None):
        pos = 0 if state is None else int(state.pos[0])
        if state is None and x.shape[1] >= self.sequence.shape[-2:][0]:
            self.sequence = x.detach()
        total = x.new_zeros(x.shape[0], 3) if state is None else state.total
        h = total[:, None] + x.cumsum(1)
        ahead = torch.zeros_like(x)
        known = self.sequence[:, pos + 1 : pos + 1 + x.shape[1]] if self.sequence.shape[:1] == x.shape[:1] else x[:, :0]
        ahead[:, : known.shape[1]] = known
        after = Sum(total + x.sum(1), torch.full((x.shape[0],), pos + x.shape[1]))
        return (h + ahead) * self.weight, after


def test_looking_ahead_is_named_even_where_no_split_shows_it():
    with pytest.raises(AssertionError, match="outputs up to token 0 depend on later tokens"):
        check_streaming(PeeksAhead(), 3)


def test_a_cache_that_overwrites_the_first_branch_is_named():
    with pytest.raises(AssertionError, match="a second branch from an old state changed the state of the first"):
        check_streaming(Cached(copies=False), 3)


def test_a_wrong_gradient_of_the_state_is_named():
    with pytest.raises(AssertionError, match=r"the gradient of .* differs from the whole's in pieces"):
        check_streaming(WrongGradientOfTheState(), 3)


def test_a_mixer_of_known_faults_is_found_by_explicit_cuts():
    honest, faulty = RunningSum(), RunningSum(fault="forgets inside a piece")
    check_streaming(honest, 3, cuts=[2, 2, 7])
    check_streaming(honest, 3, cuts=[30])
    with pytest.raises(AssertionError, match="the given cuts"):
        check_streaming(faulty, 3, cuts=[2, 2, 7])
    with pytest.raises(ValueError, match="rise"):
        check_streaming(honest, 3, cuts=[5, 4])


def test_not_a_number_is_a_failure():
    mixer = RunningSum()
    with torch.no_grad():
        mixer.weight[0, 0] = float("nan")
    with pytest.raises(AssertionError, match="nan"):
        check_streaming(mixer, 3)


def test_the_callers_module_gradients_and_random_state_are_untouched():
    mixer = RunningSum()
    mixer.train()
    mixer.weight.grad = torch.ones(3, 3)
    before, state = mixer.weight.detach().clone(), torch.get_rng_state()
    check_streaming(mixer, 3)
    assert mixer.training
    assert mixer.weight.dtype == mixer.decay.dtype == torch.float32
    assert torch.equal(mixer.weight, before)
    assert torch.equal(mixer.weight.grad, torch.ones(3, 3))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_chunk_that_is_not_named_is_asked_for():
    with pytest.raises(AssertionError, match="chunk is None"):
        check_streaming(nn.Identity(), 3)


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (lambda x: x, "returns y and its state"),
        (lambda x: (x, None), "a state is a NamedTuple of tensors, not a NoneType"),
        (lambda x: (x[:, :1], ()), "batch and length"),
    ],
)
def test_a_wrong_kind_of_result_is_named(result, sentence):
    class Wrong(nn.Module):
        chunk = 1

        def forward(self, x, state=None):
            return result(x)

    with pytest.raises(AssertionError, match=sentence):
        check_streaming(Wrong(), 3)


def test_mixers_are_final_and_must_have_a_forward():
    class Plain(Mixer):
        def forward(self, x, state=None):
            return x, Sum(x[:, :0].sum(1), torch.zeros(x.shape[0]))

    with pytest.raises(TypeError, match="mixers are final"):

        class Derived(Plain):
            pass

    class Unfinished(Mixer):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Unfinished()
