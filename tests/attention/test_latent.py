"""MLA: keys and values of all heads are linear in one latent vector c_t, and a turned key is shared."""

import importlib.util
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode

from carrel.attention import MHA, MLA
from carrel.attention.latent import _COMMON, _RANKED
from carrel.layers import LatentCache, YaRNScaling
from carrel.testing import check_streaming

SMALL = {"kv_rank": 8, "nope_dim": 6, "rope_dim": 4, "v_dim": 5}
LAYOUTS = [
    {},
    {"q_rank": 7},
    {"norm": False},
    {"rope_dim": 0, "v_dim": 9},
    {"rotary_scaling": YaRNScaling(4, 4), "scale": 0.7},
    {"kv_rank": 3, "heads": 4, "dim": 8},
]


def mixer(dim=12, heads=3, seed=0, **options):
    torch.manual_seed(seed)
    return MLA(dim, heads, **(SMALL | options)).double()


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def written_out(m, x):
    """The definition, one token and one head at a time."""

    def norm(t, layer):
        return layer.weight * t / (t.square().mean() + 1e-6).sqrt() if hasattr(layer, "weight") else t

    def turned(t, at):
        if m.rope is None:
            return t
        half, parts = m.rope_dim // 2, [None] * m.rope_dim
        for i, theta in enumerate(m.rope.frequencies.tolist()):
            a, size = at * theta, m.rope.size
            parts[i] = size * (t[i] * math.cos(a) - t[i + half] * math.sin(a))
            parts[i + half] = size * (t[i] * math.sin(a) + t[i + half] * math.cos(a))
        return torch.stack(parts)

    rows = []
    for row in x:
        down = [m.kv_down.weight @ t for t in row]
        c = [norm(d[: m.kv_rank], m.kv_norm) for d in down]
        shared = [turned(d[m.kv_rank :], j) for j, d in enumerate(down)]
        heads = [(m.kv_up.weight @ each).reshape(m.heads, -1) for each in c]
        for t in range(len(row)):
            whole = (
                m.q.weight @ row[t] if m.q_rank is None else m.q_up.weight @ norm(m.q_down.weight @ row[t], m.q_norm)
            )
            o = []
            for s, q in enumerate(whole.reshape(m.heads, -1)):
                q = torch.cat([q[: m.nope_dim], turned(q[m.nope_dim :], t)])
                keys = [torch.cat([heads[j][s, : m.nope_dim], shared[j]]) for j in range(t + 1)]
                p = torch.softmax(m.scale * torch.stack([q @ k for k in keys]), 0)
                o.append(sum(p[j] * heads[j][s, m.nope_dim :] for j in range(t + 1)))
            rows.append(m.out.weight @ torch.cat(o))
    return torch.stack(rows).reshape(x.shape)


@pytest.mark.parametrize("options", LAYOUTS)
def test_output_is_the_definition_written_out(options):
    m = mixer(**options)
    with torch.no_grad():
        for layer in (m.kv_norm, getattr(m, "q_norm", None)):
            if hasattr(layer, "weight"):
                layer.weight.uniform_(0.5, 2)
    x = noise(2, 7, m.dim)
    wanted = written_out(m, x)
    torch.testing.assert_close(m(x)[0], wanted, atol=1e-12, rtol=0)
    for cut in (3, 6):  # the last token alone is absorbed
        y, state = m(x[:, :cut])
        torch.testing.assert_close(torch.cat([y, m(x[:, cut:], state)[0]], 1), wanted, atol=1e-12, rtol=0)


def test_without_norms_there_are_none():
    assert not [name for name, _ in mixer(q_rank=7, norm=False).named_parameters() if "norm" in name]
    both = [name for name, _ in mixer(q_rank=7).named_parameters() if "norm" in name]
    assert both == ["q_norm.weight", "kv_norm.weight"]


def test_absorbed_and_rebuilt_are_the_same():
    m, x = mixer(16, 4, kv_rank=32, nope_dim=16, v_dim=16), noise(2, 40, 16)
    _, state = m(x[:, :30])
    for length in (1, 3, 10):
        found = []
        for way in (True, False):
            m._absorbs = lambda *_, way=way: way
            found.append(m(x[:, 30 : 30 + length], state)[0])
        torch.testing.assert_close(*found, atol=1e-13, rtol=0)


def test_the_way_is_chosen_by_the_numbers_of_tokens():
    m = MLA(64, 16)
    assert m._absorbs(1, 4096)
    assert m._absorbs(128, 4096)
    assert not m._absorbs(256, 4096)
    assert not m._absorbs(64, 64), "without a past there is nothing to save"
    assert not m._absorbs(1, 1)


@pytest.mark.parametrize("options", LAYOUTS)
def test_streaming(options):
    m = mixer(**options)
    check_streaming(m, m.dim)


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(0, 40), max_size=8).map(sorted))
def test_every_split_gives_the_same(cuts):
    check_streaming(mixer(q_rank=7), 12, cuts=cuts)


def test_a_latent_vector_as_wide_as_all_keys_and_values_is_the_usual_attention():
    heads, d, dim = 3, 4, 12
    usual = MHA(dim, heads, rotary_base=None).double()
    m = mixer(dim, heads, kv_rank=2 * heads * d, nope_dim=d, rope_dim=0, v_dim=d, norm=False)
    with torch.no_grad():
        q, k, v = usual.qkv.weight.split(heads * d)
        m.q.weight.copy_(q)
        m.kv_down.weight.copy_(torch.cat([k, v]))
        m.out.weight.copy_(usual.out.weight)
        picks = m.kv_up.weight.zero_().view(heads, 2, d, 2, heads, d)
        for s in range(heads):
            for part in range(2):
                picks[s, part, :, part, s] = torch.eye(d)
    x = noise(2, 9, dim)
    torch.testing.assert_close(m(x)[0], usual(x)[0], atol=1e-12, rtol=0)


def test_what_is_kept_is_one_vector_and_one_turned_key_for_all_heads():
    m = MLA(256, 128).to(torch.bfloat16)
    _, state = m(torch.randn(1, 3, 256, dtype=torch.bfloat16))
    kept = sum(part.numel() * part.element_size() for part in (state.c, state.k_rope)) / 3
    assert kept == 2 * (512 + 64) == 1152
    assert round(kept / (2 * 128 * (128 + 128)), 4) == 0.0176, "of what 128 heads would keep"


def test_scores_depend_on_distances_only():
    m, x = mixer(), noise(2, 9, 12)
    for start in (1, 1000):
        empty = torch.zeros(2, 1, 0, 8).double(), torch.zeros(2, 1, 0, 4).double()
        ahead = LatentCache(*empty, torch.full((2,), start))
        torch.testing.assert_close(m(x, ahead)[0], m(x)[0], atol=1e-11, rtol=0)


def test_gradients_are_those_of_the_definition_both_ways():
    m = mixer(4, 2, kv_rank=3, nope_dim=2, rope_dim=2, v_dim=2, q_rank=3)
    x, old = noise(1, 3, 4).requires_grad_(), noise(1, 2, 4, seed=1).requires_grad_()
    for way in (True, False):
        m._absorbs = lambda *_, way=way: way

        def both(x, old):
            y, state = m(x, m(old)[1])
            return y, state.c, state.k_rope

        assert torch.autograd.gradcheck(both, (x, old))


def test_rows_of_different_lengths_go_on_together():
    m, x = mixer(), noise(2, 12, 12)
    with torch.no_grad():
        (_, long), (_, short) = m(x[:1, :7]), m(x[1:, :3])
        pairs = ((long.c, short.c), (long.k_rope, short.k_rope))
        filled = [torch.cat([a, torch.cat([torch.full_like(a[:, :, :4], 1e3), b], 2)]) for a, b in pairs]
        joined = LatentCache(*filled, torch.cat([long.pos, short.pos]))
        wanted = torch.cat([m(x[:1, :10])[0][:, 7:], m(x[1:, :6])[0][:, 3:]])
        for way in (True, False):
            m._absorbs = lambda *_, way=way: way
            y, after = m(torch.stack([x[0, 7:10], x[1, 3:6]]), joined)
            torch.testing.assert_close(y, wanted, atol=1e-12, rtol=0)
    assert after.pos.tolist() == [10, 6]


def test_half_precision_is_no_worse_absorbed():
    torch.manual_seed(0)
    m = MLA(64, 4, kv_rank=64, nope_dim=32, rope_dim=16, v_dim=32)
    x, errors = torch.randn(1, 200, 64), {}
    with torch.no_grad():
        exact = m(x)[0][:, -1:]
        for way in (True, False):
            m._absorbs = lambda *_, way=way: way
            with torch.autocast("cpu", dtype=torch.bfloat16):
                _, state = m(x[:, :-1])
                y, _ = m(x[:, -1:], state)
            assert y.dtype == state.c.dtype == torch.bfloat16
            errors[way] = float((y.float() - exact).norm() / exact.norm())
    assert errors[True] < 1.5 * errors[False]
    assert errors[False] < 0.03


def test_mixer_compiles_as_one_graph():
    torch.compiler.reset()
    m, x = mixer(), noise(2, 6, 12)
    compiled = torch.compile(m, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x)[0], m(x)[0])
    with torch.no_grad():
        _, state = m(x)
        torch.testing.assert_close(compiled(x[:, :1], state)[0], m(x[:, :1], state)[0])


# ------------------------------------------------------------------------------------------- weights of transformers


class InFloat64(TorchFunctionMode):
    """Their code, with every cast to float32 made one to float64."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.float:
            func = torch.Tensor.double
        wide = [torch.float64 if a is torch.float32 else a for a in args]
        return func(*wide, **{n: torch.float64 if a is torch.float32 else a for n, a in (kwargs or {}).items()})


def theirs(**options):
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("needs transformers, to compare with its DeepseekV2Attention")
    from transformers import DeepseekV2Config
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Attention, DeepseekV2RotaryEmbedding

    torch.manual_seed(3)
    sizes = {"hidden_size": 24, "num_attention_heads": 4, "q_lora_rank": 10, "kv_lora_rank": 16}
    sizes |= {"qk_nope_head_dim": 6, "qk_rope_head_dim": 8, "v_head_dim": 5, "attn_implementation": "eager"}
    config = DeepseekV2Config(**(sizes | options))
    attention = DeepseekV2Attention(config, layer_idx=0).double().eval()
    for p in attention.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return attention, DeepseekV2RotaryEmbedding(config)


YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("options", "ours"),
    [
        ({}, {}),
        ({"q_lora_rank": None}, {}),
        (
            {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}},
            {
                "rotary_scaling": YaRNScaling(
                    8, 64, ramp="index", temperature=(1 + 0.1 * math.log(8)) / (1 + 0.05 * math.log(8))
                ),
                "scale": 14**-0.5 * (1 + 0.05 * math.log(8)) ** 2,
            },
        ),
    ],
    ids=["ranked", "unranked", "yarn"],
)
def test_weights_of_a_transformers_attention_give_its_outputs(options, ours):
    attention, rotary = theirs(**options)
    x, pos = noise(2, 33, 24), torch.arange(33)[None]
    mask = torch.full((33, 33), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    m = MLA.from_transformers(attention.state_dict(), heads=4, **ours)
    with torch.no_grad():
        # their frequencies are made in float32: ours stand in for them once they have been compared
        torch.testing.assert_close(rotary.inv_freq.double(), m.rope.frequencies, rtol=3e-7, atol=0)
        assert abs(rotary.attention_scaling - m.rope.size) < 1e-12
        angle = pos.double()[..., None] * m.rope.frequencies
        turned = torch.polar(torch.full_like(angle, m.rope.size), angle)
        with InFloat64():
            wanted, _ = attention(x, mask, position_embeddings=turned)
        near, _ = attention(x, mask, position_embeddings=rotary(x.float(), pos))
    y, _ = m(x)
    assert y.requires_grad
    torch.testing.assert_close(y, wanted, atol=1e-8, rtol=0)
    torch.testing.assert_close(y, near, atol=3e-5, rtol=0)
    first, state = m(x[:, :32])
    torch.testing.assert_close(torch.cat([first, m(x[:, 32:], state)[0]], 1), wanted, atol=1e-8, rtol=0)
    whole = {f"model.layers.0.self_attn.{name}": t for name, t in attention.state_dict().items()} | {"other": x}
    again, _ = MLA.from_transformers(whole, "model.layers.0.self_attn.", heads=4, **ours)(x)
    torch.testing.assert_close(again, y, atol=0, rtol=0)
    before = attention.o_proj.weight.clone()
    with torch.no_grad():
        m.out.weight.add_(1)
    assert torch.equal(attention.o_proj.weight, before)


def test_a_state_dict_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"DeepseekV2Attention, but this one lacks kv_a_layernorm"):
        MLA.from_transformers({}, heads=2)
    m = mixer(q_rank=7)
    weights = {theirs: m.state_dict()[ours] for ours, theirs in (_COMMON | _RANKED).items()}
    MLA.from_transformers(weights, heads=3)
    with pytest.raises(ValueError, match=r"has o_proj.bias, which has no place here"):
        MLA.from_transformers(weights | {"o_proj.bias": torch.zeros(12)}, heads=3)
    with pytest.raises(ValueError, match=r"MLA wants q_b_proj.weight of shape \(30, 7\), not \(27, 7\)"):
        MLA.from_transformers(weights | {"q_b_proj.weight": torch.zeros(27, 7)}, heads=3)
    with pytest.raises(ValueError, match=r"heads that divide 15 and 33, not 2"):
        MLA.from_transformers(weights, heads=2)


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"heads": 0}, "heads of at least 1, not 0"),
        ({"q_rank": 0}, "q_rank of at least 1, not 0"),
        ({"rope_dim": 3}, "an even rope_dim of at least 0, not 3"),
        ({"rotary_base": 1.0}, "a base above 1, not 4 and 1.0"),
    ],
)
def test_bad_arguments_are_named(options, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        mixer(**options)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: (s.c, s.k_rope, s.pos), "a LatentCache or None as its state, not tuple"),
        (lambda s: s._replace(c=s.c[..., :7]), "c of shape (2, 1, tokens, 8) and type torch.float64, not (2, 1, 5, 7)"),
        (lambda s: s._replace(k_rope=s.k_rope[:, :, :4]), "k_rope of shape (2, 1, tokens, 4)"),
        (lambda s: s._replace(c=s.c.float()), "and torch.float32"),
        (lambda s: s._replace(pos=s.pos[:1]), "pos of shape (2,), not (1,)"),
    ],
)
def test_a_state_that_does_not_fit_is_named(change, sentence):
    m, x = mixer(), noise(2, 5, 12)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        m(x, change(m(x)[1]))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=re.escape("MLA wants x of shape (batch, length, 12), not (2, 5, 11)")):
        mixer()(noise(2, 5, 11))
