"""decay_attention: S_t = diag(e^{log_decay_t}) S_{t-1} + k_t v_t', o_t = S_t' q_t, or S_{t-1}' q_t if exclusive."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
import torch

from carrel.ops import decay_attention

BACKENDS = ["reference", "cpu"]
REAL = torch.float64
NAMES = ("q", "k", "v", "log_decay", "state")


def problem(batch=2, heads=2, length=7, size=5, value=3, per_channel=True, dtype=REAL, seed=0):
    torch.manual_seed(seed)
    row = (batch, heads, length)
    shapes = ((*row, size), (*row, size), (*row, value), (*row, size) if per_channel else row)
    tensors = [torch.randn(shape, dtype=REAL) for shape in (*shapes, (batch, heads, size, value))]
    tensors[3] = -torch.nn.functional.softplus(tensors[3] - 1)
    return [x.to(dtype) for x in tensors]


def written_out(q, k, v, log_decay, state, *, exclusive=False):
    """Token by token, in numpy and from the equations alone."""
    q, k, v, log_decay, state = (x.double().numpy() for x in (q, k, v, log_decay, state))
    o, last = np.zeros(v.shape), np.zeros(state.shape)
    for i in np.ndindex(*q.shape[:2]):
        S = state[i]
        for t in range(q.shape[2]):
            before = S
            S = np.exp(np.broadcast_to(log_decay[i][t], S.shape[:1]))[:, None] * S + np.outer(k[i][t], v[i][t])
            o[i][t] = (before if exclusive else S).T @ q[i][t]
        last[i] = S
    return torch.from_numpy(o), torch.from_numpy(last)


def close(got, wanted, atol=1e-12):
    for x, y in zip(got, wanted, strict=True):
        torch.testing.assert_close(x, y, atol=atol, rtol=0)


SHAPES = [(2, 2, 7, 5, 3), (1, 2, 70, 16, 64), (1, 1, 1, 1, 1), (1, 3, 9, 33, 70), (2, 1, 4, 2, 130), (1, 1, 0, 3, 2)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_number_is_that_of_the_equations(backend, exclusive, per_channel, shape):
    p = problem(*shape, per_channel)
    close(decay_attention(*p, exclusive=exclusive, backend=backend), written_out(*p, exclusive=exclusive))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_it_is_a_masked_product_of_queries_and_keys(backend, exclusive, per_channel):
    """o_t = sum over s <= t (s < t if exclusive) of sum_n q_t[n] k_s[n] e^{b_t[n] - b_s[n]} v_s: the quadratic form."""
    q, k, v, log_decay, _ = problem(length=40, per_channel=per_channel)
    each = log_decay if per_channel else log_decay.unsqueeze(-1).expand_as(k)
    b = each.cumsum(2)
    reach = (b - each if exclusive else b).unsqueeze(3) - b.unsqueeze(2)
    mask = torch.ones(40, 40, dtype=torch.bool).tril(-1 if exclusive else 0)
    weight = torch.einsum("bhtn,bhsn,bhtsn->bhts", q, k, reach.masked_fill(~mask[..., None], -torch.inf).exp())
    got, _ = decay_attention(q, k, v, log_decay, exclusive=exclusive, backend=backend)
    close([got], [weight @ v])


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_decay_it_is_linear_attention(backend):
    q, k, v, log_decay, _ = problem(length=50)
    o, last = decay_attention(q, k, v, torch.zeros_like(log_decay), backend=backend)
    close([o, last], [(q @ k.mT).tril() @ v, k.mT @ v], atol=1e-11)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [REAL, torch.float32])
@pytest.mark.parametrize("per_channel", [False, True])
def test_a_decay_that_forgets_all_leaves_each_token_alone(backend, dtype, per_channel):
    """log_decay = -1e4: o_t = (q_t . k_t) v_t, the memory is that of the last token, every gradient is finite."""
    p = problem(length=30, per_channel=per_channel, dtype=dtype)
    p[3] = torch.full_like(p[3], -1e4)
    q, k, v = inputs = [x.requires_grad_() for x in p][:3]
    o, last = decay_attention(*p, backend=backend)
    atol = 1e-12 if dtype == REAL else 1e-5
    close([o, last], [(q * k).sum(-1, keepdim=True) * v, k[:, :, -1, :, None] * v[:, :, -1, None]], atol)
    gradients = torch.autograd.grad(o.sum() + last.sum(), [*inputs, *p[3:]])
    assert all(bool(g.isfinite().all()) for g in gradients)
    assert not gradients[3].any()
    assert not gradients[4].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("exclusive", [False, True])
def test_any_split_is_the_whole(backend, exclusive):
    p = problem(length=150, per_channel=True)
    whole = decay_attention(*p, exclusive=exclusive, backend=backend)
    for cuts in ([0, 1, 2, 150], [0, 0, 63, 64, 65, 150], [0, 3, 7, 131, 150, 150]):
        outputs, S = [], p[4]
        for a, b in itertools.pairwise(cuts):
            piece = [x[:, :, a:b] for x in p[:4]]
            o, S = decay_attention(*piece, S, exclusive=exclusive, backend=backend)
            outputs.append(o)
        close([torch.cat(outputs, 2), S], whole)


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_a_token_by_itself_gets_what_the_kernel_gives(exclusive, per_channel):
    """Of one token "auto" takes the equation itself."""
    p = [x.requires_grad_() for x in problem(length=1, size=18, value=70, per_channel=per_channel)]
    routes = [decay_attention(*p, exclusive=exclusive, backend=backend) for backend in ("auto", "cpu")]
    close(*routes)
    g, g_last = torch.randn_like(routes[0][0]), torch.randn_like(routes[0][1])
    close(*(torch.autograd.grad((o * g).sum() + (S * g_last).sum(), p) for o, S in routes))
    p[3].data.fill_(0.5)
    with pytest.raises(ValueError, match="log_decay must be at most 0"):
        decay_attention(*p)


def test_a_broken_split_would_be_seen():
    p = problem(length=20)
    whole, _ = decay_attention(*p)
    after, _ = decay_attention(*(x[:, :, 10:] for x in p[:4]), p[4])
    assert float((after - whole[:, :, 10:]).abs().max()) > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_type_is_that_of_what_is_asked_and_the_memory_is_wider(backend):
    p = problem(dtype=torch.bfloat16)
    o, last = decay_attention(*p, backend=backend)
    assert (o.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    exact = decay_attention(*(x.float() for x in p), backend=backend)
    torch.testing.assert_close(o, exact[0].bfloat16(), atol=0.01, rtol=0.01)
    torch.testing.assert_close(last, exact[1], atol=1e-6, rtol=1e-6)
    mixed = decay_attention(*(x.bfloat16() for x in p[:3]), p[3].float(), backend=backend)
    assert [x.dtype for x in mixed] == [torch.bfloat16, torch.float32]
    wider = decay_attention(*(x.float() for x in p[:3]), p[3].double(), backend=backend)
    assert [x.dtype for x in wider] == [REAL, REAL]


BAD = [
    ({"q": torch.zeros(2, 3, 4)}, "q must be (batch, heads, length, N) with N >= 1, got (2, 3, 4)"),
    ({"k": torch.zeros(2, 2, 7, 4)}, "k must have the shape of q, (2, 2, 7, 5), got (2, 2, 7, 4)"),
    ({"v": torch.zeros(2, 2, 6, 3)}, "v must be (2, 2, 7, 'P') with P >= 1, got (2, 2, 6, 3)"),
    ({"log_decay": torch.zeros(2, 2)}, "one per channel, got (2, 2)"),
    ({"log_decay": torch.zeros(2, 2, 7, 1)}, "one per channel, got (2, 2, 7, 1)"),
    ({"state": torch.zeros(2, 2, 3, 5)}, "state must be (2, 2, 5, 3), got (2, 2, 3, 5)"),
    ({"q": [1.0]}, "q must be a tensor, got list"),
    ({"k": torch.zeros(2, 2, 7, 5, dtype=torch.int64)}, "k must be real floating point, got torch.int64"),
    ({"v": torch.zeros(2, 2, 7, 3, dtype=torch.complex64)}, "v must be real floating point, got torch.complex64"),
    ({"v": torch.zeros(2, 2, 7, 3, device="meta")}, "v is on meta, not on one device with q"),
    ({"chunk": 0}, "chunk must be a whole number of at least 1, got 0"),
    ({"backend": "cuda"}, "backend must be one of auto, reference, cpu, gpu, got 'cuda'"),
]


@pytest.mark.parametrize(("wrong", "sentence"), BAD)
def test_bad_input_is_refused_in_one_sentence(wrong, sentence):
    given = dict(zip(NAMES, problem(), strict=True)) | wrong
    with pytest.raises(ValueError, match=re.escape(sentence)):
        decay_attention(**given)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("per_channel", [False, True])
def test_growth_is_refused(backend, per_channel):
    p = problem(per_channel=per_channel)
    p[3].view(-1)[-1] = 0.25
    with pytest.raises(ValueError, match=r"log_decay must be at most 0 everywhere, its largest entry is 0\.25"):
        decay_attention(*p, backend=backend)
