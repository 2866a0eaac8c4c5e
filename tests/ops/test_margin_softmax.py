"""margin_softmax_loss: L = log(exp(s phi) + sum_{j != t} exp(s cos_j)) - s phi, by chunks of classes."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize
from torch.utils._python_dispatch import TorchDispatchMode

from carrel.ops import margin_softmax_loss
from carrel.ops._margin_softmax import chunked, reference

REAL = torch.float64
KINDS = {
    "cos": {"margin": 0.35},
    "arc": {"margin": 0.5},
    "arc, widest": {"kind": "arc", "margin": math.pi / 2},
    "combined": {"m": (1.0, 0.3, 0.2)},
    "combined, four half turns": {"kind": "combined", "m": (4.0, 0.0, 0.0)},
}
every_kind = pytest.mark.parametrize("name", KINDS)


def options(name):
    return {"kind": name, **KINDS[name]}


def problem(batch=6, classes=23, dim=5, dtype=REAL):
    generator = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(batch, dim, generator=generator, dtype=dtype)
    weight = 0.2 * torch.randn(classes, dim, generator=generator, dtype=dtype)
    return z.requires_grad_(), weight.requires_grad_(), torch.randint(classes, (batch,), generator=generator)


def lowered(angle, kind, margin=0.35, m=(1.0, 0.0, 0.0)):
    """What stands for the cosine of the right class, from its angle and in plain Python."""
    if kind == "cos":
        return math.cos(angle) - margin
    if kind == "arc":
        return math.cos(angle + margin) if angle + margin < math.pi else math.cos(angle) - margin * math.sin(margin)
    turned = m[0] * angle + m[1]
    k = int(turned // math.pi)
    return (-1) ** k * math.cos(turned) - 2 * k - m[2]


def by_hand(z, weight, target, scale=30.0, **rule):
    losses = []
    for x, t in zip(z, target.tolist(), strict=True):
        cosines = [float(x @ w / (x.norm() * w.norm())) for w in weight]
        own = scale * lowered(math.acos(cosines[t]), **rule)
        logits = [own if j == t else scale * c for j, c in enumerate(cosines)]
        top = max(logits)
        losses.append(top + math.log(math.fsum(math.exp(v - top) for v in logits)) - own)
    return torch.tensor(losses, dtype=REAL)


def dense(z, weight, target, scale=30.0, **rule):
    """The same in torch, to be differentiated: the slope of phi is that of a sum of cosines and sines of the angle."""
    cosines = normalize(z, dim=-1) @ normalize(weight, dim=-1).mT
    right = cosines.gather(1, target[:, None]).squeeze(1)
    own = torch.stack([_lowered_tensor(torch.acos(c), **rule) for c in right])
    logits = torch.where(torch.arange(len(weight)) == target[:, None], own[:, None], cosines)
    return cross_entropy(scale * logits, target, reduction="none")


def _lowered_tensor(angle, kind, margin=0.35, m=(1.0, 0.0, 0.0)):
    if kind == "cos":
        return torch.cos(angle) - margin
    if kind == "arc":
        if angle + margin < math.pi:
            return torch.cos(angle + margin)
        return torch.cos(angle) - margin * math.sin(margin)
    turned = m[0] * angle + m[1]
    k = int(turned.item() // math.pi)
    return (-1) ** k * torch.cos(turned) - 2 * k - m[2]


@pytest.fixture(params=[1, 4, 23, 1000], ids=lambda n: f"chunks of {n}")
def chunk(request, monkeypatch):
    monkeypatch.setattr(chunked, "_LEAST", request.param)
    monkeypatch.setattr(chunked, "_LOGITS", {"cpu": 0})


@every_kind
def test_it_is_the_definition_in_chunks_of_any_size(name, chunk):
    z, weight, target = problem()
    target[:3] = torch.tensor([0, 22, 4])  # the ends, and the first class of a chunk
    found = margin_softmax_loss(z, weight, target, **options(name), reduction="none")
    torch.testing.assert_close(found, by_hand(z.detach(), weight.detach(), target, **options(name)), atol=1e-12, rtol=0)
    arrived = torch.linspace(-1, 2, len(z), dtype=REAL)
    got = torch.autograd.grad(found, (z, weight), arrived)
    wanted = torch.autograd.grad(dense(z, weight, target, **options(name)), (z, weight), arrived)
    for x, y in zip(got, wanted, strict=True):
        torch.testing.assert_close(x, y, atol=1e-11 * float(y.abs().max()), rtol=0)


@every_kind
def test_its_gradients_are_those_of_the_function(name, monkeypatch):
    monkeypatch.setattr(chunked, "_LEAST", 2)
    monkeypatch.setattr(chunked, "_LOGITS", {"cpu": 0})
    z, weight, target = problem(batch=4, classes=5, dim=3)
    for reduction in ("mean", "sum", "none"):

        def loss(z, weight, reduction=reduction):
            return margin_softmax_loss(z, weight, target, scale=2.0, **options(name), reduction=reduction)

        assert torch.autograd.gradcheck(loss, (z, weight))
    assert torch.autograd.gradgradcheck(loss, (z, weight))
    assert torch.autograd.gradcheck(loss, (z, weight), check_forward_ad=True, check_backward_ad=False)


def test_only_one_side_may_want_a_gradient():
    z, weight, target = problem()
    both = torch.autograd.grad(margin_softmax_loss(z, weight, target), (z, weight))
    (to_z,) = torch.autograd.grad(margin_softmax_loss(z, weight.detach(), target), z)
    (to_weight,) = torch.autograd.grad(margin_softmax_loss(z.detach(), weight, target), weight)
    assert torch.equal(to_z, both[0])
    assert torch.equal(to_weight, both[1])


def test_torch_func_differentiates_it():
    z, weight, target = problem()
    wanted = torch.autograd.grad(margin_softmax_loss(z, weight, target), (z, weight))
    found = torch.func.grad(lambda z, w: margin_softmax_loss(z, w, target), argnums=(0, 1))(z.detach(), weight.detach())
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, atol=1e-12, rtol=0)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo does it itself
def test_it_compiles_whole_forward_and_backward():
    z, weight, target = problem()
    wanted = torch.autograd.grad(margin_softmax_loss(z, weight, target, kind="arc"), (z, weight))
    whole = torch.compile(margin_softmax_loss, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(whole(z, weight, target, kind="arc"), (z, weight))
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x, y, atol=1e-12, rtol=0)


@pytest.mark.parametrize("rule", [{"margin": 0.0}, {"kind": "arc", "margin": 0.0}, {"kind": "combined"}])
def test_without_a_margin_it_is_the_cross_entropy_of_scaled_cosines(rule):
    z, weight, target = problem()
    cosines = normalize(z, dim=-1) @ normalize(weight, dim=-1).mT
    found = margin_softmax_loss(z, weight, target, 16.0, **rule)
    torch.testing.assert_close(found, cross_entropy(16 * cosines, target), atol=1e-12, rtol=0)


def test_a_larger_margin_never_lowers_the_loss():
    z, weight, target = problem(batch=200)
    for kind in ("cos", "arc"):
        losses = torch.stack(
            [
                margin_softmax_loss(z, weight, target, margin=margin, kind=kind, reduction="none")
                for margin in (k * math.pi / 120 for k in range(61))
            ]
        )
        assert (losses.diff(dim=0) >= -1e-12).all()


@every_kind
def test_a_larger_angle_to_the_right_class_never_lowers_the_loss(name):
    angles = torch.linspace(0.001, math.pi - 0.001, 2000, dtype=REAL)
    z = torch.stack([torch.cos(angles), torch.sin(angles), torch.zeros_like(angles)], -1)
    weight = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]], dtype=REAL)  # the other class stays at a right angle
    losses = margin_softmax_loss(
        z, weight, torch.zeros(2000, dtype=torch.int64), 3.0, **options(name), reduction="none"
    )
    assert (losses.diff() > 0).all()


def test_lengths_do_not_matter():
    z, weight, target = problem()
    wanted = margin_softmax_loss(z, weight, target, reduction="none")
    longer = margin_softmax_loss(1e3 * z, weight * torch.logspace(-3, 3, 23)[:, None], target, reduction="none")
    torch.testing.assert_close(longer, wanted, atol=1e-12, rtol=0)
    to_z, to_weight = torch.autograd.grad(margin_softmax_loss(z, weight, target), (z, weight))
    assert (to_z * z).sum(-1).abs().max() < 1e-12
    assert (to_weight * weight).sum(-1).abs().max() < 1e-12


def test_features_on_their_class_have_finite_gradients():
    weight = torch.eye(4, dtype=torch.float32, requires_grad=True)
    z = (2 * torch.eye(4)[:2]).requires_grad_()
    for rule in ({"kind": "arc"}, {"kind": "combined", "m": (2.0, 0.1, 0.0)}):
        for target in ([0, 1], [0, 3]):
            loss = margin_softmax_loss(z, weight, torch.tensor(target), **rule)
            assert all(g.isfinite().all() for g in torch.autograd.grad(loss, (z, weight)))
    opposite = margin_softmax_loss(-z, weight, torch.tensor([0, 1]), kind="arc")
    assert all(g.isfinite().all() for g in torch.autograd.grad(opposite, (z, weight)))


@every_kind
def test_the_slope_of_the_right_class_is_that_of_its_value_also_at_both_ends(name):
    cosines = torch.tensor([-1.0, -1 + 1e-9, -0.97, -0.3, 0.0, 0.6, 1 - 1e-9, 1.0], dtype=REAL, requires_grad=True)
    value, slope = reference.lowered_cosine(cosines, **{"margin": 0.0, "m": (1.0, 0.0, 0.0), **options(name)})
    (wanted,) = torch.autograd.grad(value.sum(), cosines)
    torch.testing.assert_close(slope.detach(), wanted, atol=1e-12, rtol=1e-12)


def test_a_loss_far_below_rounding_keeps_its_digits():
    weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=REAL)
    found = margin_softmax_loss(weight[:1], weight, torch.tensor([0]), scale=64.0, margin=0.5)
    torch.testing.assert_close(found, torch.tensor(math.exp(-96.0), dtype=REAL), rtol=1e-12, atol=0)


def test_a_sharp_scale_overflows_nowhere():
    z, weight, target = problem(dtype=torch.float32)
    exact = margin_softmax_loss(z.double(), weight.double(), target, 500.0, kind="combined", m=(4.0, 1.0, 1.0))
    found = margin_softmax_loss(z, weight, target, 500.0, kind="combined", m=(4.0, 1.0, 1.0))
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)
    assert all(g.isfinite().all() for g in torch.autograd.grad(found, (z, weight)))


def test_one_class_alone_costs_nothing_and_no_rows_cost_nothing():
    z, weight, _ = problem(classes=1)
    loss = margin_softmax_loss(z, weight, torch.zeros(6, dtype=torch.int64))
    assert loss == 0
    assert torch.autograd.grad(loss, z)[0].abs().max() == 0
    none = margin_softmax_loss(z[:0], weight, torch.zeros(0, dtype=torch.int64), reduction="sum")
    assert none == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_summed_in_float32(dtype):
    z, weight, target = problem(classes=300)
    z, weight = (x.detach().to(dtype).requires_grad_() for x in (z, weight))
    found = margin_softmax_loss(z, weight, target)
    assert found.dtype == torch.float32
    wide = [x.detach().double().requires_grad_() for x in (z, weight)]
    wanted = margin_softmax_loss(*wide, target)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=0)
    gradients = torch.autograd.grad(found, (z, weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = margin_softmax_loss(z, weight, target)
    assert torch.equal(again, found)
    for x, y in zip(gradients, torch.autograd.grad(wanted, wide), strict=True):
        assert x.dtype == dtype
        torch.testing.assert_close(x.double(), y, rtol=0, atol=float(y.abs().max()) / 100)


class _Largest(TorchDispatchMode):
    """The most numbers in any one tensor that an operation made."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.numbers = max(self.numbers, x.numel())
        return out


def test_neither_way_holds_all_cosines():
    batch, classes, dim = 512, 10_000, 8
    z, weight, target = problem(batch, classes, dim, torch.float32)
    with _Largest() as seen:
        loss = margin_softmax_loss(z, weight, target)
        torch.autograd.grad(loss, (z, weight))
    assert seen.numbers < batch * classes / 32
    with torch.profiler.profile(profile_memory=True, activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        loss = margin_softmax_loss(z, weight, target)
        torch.autograd.grad(loss, (z, weight))
    held, peak = 0, 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    assert 0 < peak < batch * classes * 4 / 12


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scale": 0.0}, "a finite scale above 0, not 0.0"),
        ({"scale": math.inf}, "a finite scale above 0, not inf"),
        ({"margin": -0.1}, "a margin of at least 0, and of at most π / 2 for arc, not -0.1"),
        ({"kind": "arc", "margin": 1.6}, "at most π / 2 for arc, not 1.6"),
        ({"kind": "sphere"}, "a kind among cos, arc, combined, not 'sphere'"),
        ({"m": (0.5, 0, 0)}, "m1 of at least 1, m2 and m3 of at least 0, not (0.5, 0, 0)"),
        ({"reduction": "max"}, "a reduction among mean, sum, none, not 'max'"),
        ({"target": torch.tensor([0, 1, 2, 3, 4, 23])}, "classes from 0 to 22, not 0 .. 23"),
        ({"target": torch.tensor([-1, 1, 2, 3, 4, 5])}, "classes from 0 to 22, not -1 .. 5"),
        ({"target": torch.zeros(6)}, "a target of shape (6,) and type int64, not (6,) and torch.float32"),
        ({"target": torch.zeros(5, dtype=torch.int64)}, "a target of shape (6,) and type int64, not (5,)"),
        (
            {"z": torch.zeros(6, 4, dtype=REAL)},
            "weight (C, D) with C of at least 1, not (6, 4) and (23, 5)",
        ),
        ({"weight": torch.zeros(0, 5, dtype=REAL)}, "with C of at least 1, not (6, 5) and (0, 5)"),
        ({"z": torch.ones(6, 5)}, "of one floating-point type, not torch.float32 and torch.float64"),
        ({"z": torch.zeros(6, 5, dtype=REAL)}, "rows that have a direction, but row 0 of z is zero"),
        ({"weight": torch.zeros(23, 5, dtype=REAL)}, "rows that have a direction, but row 0 of weight is zero"),
    ],
)
def test_bad_input_is_one_clear_sentence(change, words):
    z, weight, target = problem()
    with pytest.raises(ValueError, match=re.escape(words)):
        margin_softmax_loss(**{"z": z, "weight": weight, "target": target, **change})
