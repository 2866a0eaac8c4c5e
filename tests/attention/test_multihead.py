"""MHA: o_t = sum over j <= t of softmax(q_t . k_j / sqrt(d)) v_j in heads, with turned queries and keys."""

import importlib.util
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from carrel.attention import MHA, attention_scale
from carrel.layers import KVCache, LinearScaling, NTKScaling, YaRNScaling
from carrel.ops import entmax, entmax15, sparse_softmax, sparsemax
from carrel.testing import check_streaming


def mixer(dim=12, heads=3, seed=0, **options):
    torch.manual_seed(seed)
    return MHA(dim, heads, **options).double()


def noise(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def written_out(m, x, start=0):
    """The definition, one token, one head and one pair of channels at a time."""
    d, group = m.head_dim, m.heads // m.kv_heads
    w = m.qkv.weight.reshape(-1, d, m.dim)
    wq, wk, wv = w.split([m.heads, m.kv_heads, m.kv_heads])

    def turned(t, at):
        if m.rotary_base is None:
            return t
        parts = [None] * d
        for i in range(d // 2):
            a = (start + at) * m.rotary_base ** (-2 * i / d)
            parts[i] = t[i] * math.cos(a) - t[i + d // 2] * math.sin(a)
            parts[i + d // 2] = t[i] * math.sin(a) + t[i + d // 2] * math.cos(a)
        return torch.stack(parts)

    rows = []
    for row in x:
        for t in range(len(row)):
            o = []
            for s in range(m.heads):
                g = s // group
                q = turned(wq[s] @ row[t], t)
                scores = torch.stack([q @ turned(wk[g] @ row[j], j) / math.sqrt(d) for j in range(t + 1)])
                p = scores.exp() / scores.exp().sum()
                o.append(sum(p[j] * (wv[g] @ row[j]) for j in range(t + 1)))
            rows.append(m.out.weight @ torch.cat(o))
    return torch.stack(rows).reshape(x.shape)


LAYOUTS = [{}, {"rotary_base": None}, {"heads": 6, "kv_heads": 2}, {"heads": 6, "kv_heads": 1}, {"head_dim": 2}]


@pytest.mark.parametrize("options", LAYOUTS)
def test_output_is_the_definition_written_out(options):
    m, x = mixer(**options), noise(2, 7, 12)
    wanted = written_out(m, x)
    torch.testing.assert_close(m(x)[0], wanted, atol=1e-12, rtol=0)
    y, state = m(x[:, :3])
    after, _ = m(x[:, 3:], state)
    torch.testing.assert_close(torch.cat([y, after], 1), wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("options", LAYOUTS)
def test_streaming(options):
    check_streaming(mixer(**options), 12)


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(0, 40), max_size=8).map(sorted))
def test_every_split_gives_the_same(cuts):
    check_streaming(mixer(heads=6, kv_heads=2), 12, cuts=cuts)


# ------------------------------------------------------------------------- what scores are made of, and what is seen


def in_full(m, x):
    """The definition with all weights at once: norms, turns, factors by row, a window, a normaliser."""

    def norm(t, layer):
        return t if layer is None else layer.weight * t / (t.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    length, d = x.shape[1], m.head_dim
    q, k, v = (x @ m.qkv.weight.T).unflatten(-1, (-1, d)).transpose(1, 2).split([m.heads, m.kv_heads, m.kv_heads], 1)
    q, k = norm(q, m.q_norm), norm(k, m.k_norm)
    if m.rope is not None:
        q, k = m.rope(q, torch.arange(length)), m.rope(k, torch.arange(length))
    k, v = (t.repeat_interleave(m.heads // m.kv_heads, 1) for t in (k, v))
    distance = torch.arange(length)[:, None] - torch.arange(length)
    hidden = (distance < 0) | (distance >= (m.window or length))
    factor = attention_scale((~hidden).sum(1), d, m.scale, base=m.scale_base)[:, None]
    scores = factor * (q @ k.mT) / (d if m.scale == "gradmax-cosine" else 1)
    rule = {
        "softmax": lambda s: torch.softmax(s, -1),
        "sparsemax": sparsemax,
        "entmax15": entmax15,
        "entmax": lambda s: torch.stack([entmax(s[:, h], m.alpha[h].item()) for h in range(m.heads)], 1),
        "sparse-softmax": lambda s: sparse_softmax(s, m.top_k),
        "taylor-softmax": lambda s: (p := (1 + s + s**2 / 2).nan_to_num(0, 0, 0)) / p.sum(-1, keepdim=True),
        "relu2": lambda s: (p := s.clamp(min=0) ** 2) / p.sum(-1, keepdim=True).clamp(min=1e-300),
    }[m.normalizer]
    o = rule(scores.masked_fill(hidden, -torch.inf)) @ v
    return o.transpose(1, 2).flatten(2) @ m.out.weight.T


VARIANTS = [
    {"scale": "entropy", "scale_base": 20.0},
    {"scale": "gradmax-normal", "heads": 6, "kv_heads": 2},
    {"scale": "gradmax-cosine", "qk_norm": True},
    {"qk_norm": True, "heads": 6, "kv_heads": 3},
    {"window": 3},
    {"window": 1, "rotary_base": None},
    {"window": 70, "heads": 6, "kv_heads": 2},
    {"window": 20, "scale": "entropy", "scale_base": 4.0},
    {"normalizer": "sparsemax"},
    {"normalizer": "entmax", "heads": 6, "kv_heads": 3},
    {"normalizer": "relu2"},
    {"normalizer": "sparse-softmax", "top_k": 5, "heads": 6, "kv_heads": 3},
    {"normalizer": "sparse-softmax", "top_k": 4, "window": 20},
    {"normalizer": "taylor-softmax"},
    {"normalizer": "entmax15", "heads": 6, "kv_heads": 2, "window": 5, "scale": "entropy"},
    {"rotary_scaling": LinearScaling(4)},
    {"rotary_scaling": NTKScaling(4), "rotary_base": 100.0},
    {"rotary_scaling": YaRNScaling(4, 16), "rotary_base": 100.0},
]


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_variant_is_its_definition(options):
    m, x = mixer(**options), noise(2, 250, 12)
    for norm in (m.q_norm, m.k_norm):
        if norm is not None:
            torch.nn.init.uniform_(norm.weight, 0.5, 2)
    wanted = in_full(m, x)
    torch.testing.assert_close(m(x)[0], wanted, atol=1e-12, rtol=0)
    with torch.no_grad():  # into the cache's room, by pieces long and short
        state, found = None, []
        for piece in x.split([1, 99, 1, 2, 0, 140, 7], 1):
            y, state = m(piece, state)
            found.append(y)
    torch.testing.assert_close(torch.cat(found, 1), wanted, atol=1e-12, rtol=0)
    assert state.k.shape[2] == min(250, (m.window or 1000) - 1)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_every_variant_streams(options):
    if options.get("window") != 1:  # which sees no earlier token, as the check wants
        check_streaming(mixer(**options), 12)


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(0, 300), max_size=8).map(sorted))
def test_a_window_gives_the_same_in_every_split(cuts):
    check_streaming(mixer(heads=6, kv_heads=2, window=7, scale="entropy"), 12, cuts=cuts)


def test_a_window_forgets_what_left_it():
    m, x = mixer(window=4), noise(2, 300, 12)
    changed = x.clone()
    changed[:, :100] = noise(2, 100, 12, seed=1)
    torch.testing.assert_close(m(x)[0][:, 103:], m(changed)[0][:, 103:], atol=0, rtol=0)
    assert (m(x)[0][:, 102] - m(changed)[0][:, 102]).abs().max() > 1e-3


def test_rows_of_different_lengths_go_on_together_in_a_window():
    m, x = mixer(window=6, scale="entropy"), noise(2, 40, 12)
    with torch.no_grad():
        (_, long), (_, short) = m(x[:1, :9]), m(x[1:, :3])
        filled = [torch.cat([torch.full_like(t[:, :, :2], 1e3), t], 2) for t in short[:2]]
        both = [torch.cat([a, b]) for a, b in zip(long[:2], filled, strict=True)]
        joined = KVCache(*both, torch.cat([long.pos, short.pos]))
        for more in (2, 20):
            y, _ = m(torch.stack([x[0, 9 : 9 + more], x[1, 3 : 3 + more]]), joined)
            wanted = torch.cat([m(x[:1, : 9 + more])[0][:, 9:], m(x[1:, : 3 + more])[0][:, 3:]])
            torch.testing.assert_close(y, wanted, atol=1e-12, rtol=0)


def test_sparse_weights_have_zeros_and_gradients():
    m = mixer(4, 2, normalizer="entmax15", window=3)
    x, old = noise(1, 4, 4).requires_grad_(), noise(1, 2, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, old: m(x, m(old)[1])[0], (x, old))


def test_every_head_learns_an_alpha_of_its_own():
    m, x = mixer(4, 2, normalizer="entmax"), noise(1, 4, 4)

    def run(alpha):
        return torch.func.functional_call(m, {"alpha": alpha}, (x,))[0]

    assert torch.autograd.gradcheck(run, torch.tensor([1.3, 1.8], dtype=torch.float64, requires_grad=True))
    assert "alpha" in MHA.no_weight_decay


def test_gradients_of_blocks_are_those_of_the_definition():
    m, x, g = mixer(heads=6, kv_heads=2, window=5), noise(2, 140, 12).requires_grad_(), noise(2, 140, 12, seed=1)
    found, wanted = (torch.autograd.grad((y * g).sum(), [x, *m.parameters()]) for y in (m(x)[0], in_full(m, x)))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)


def test_bytes_per_token_are_those_of_the_heads_that_are_kept():
    for kv_heads in (16, 4, 1):
        _, state = MHA(256, 16, kv_heads=kv_heads)(torch.randn(1, 10, 256))
        kept = sum(part.numel() * part.element_size() for part in (state.k, state.v))
        assert kept == 10 * 4 * kv_heads * (16 + 16)


def test_scores_depend_on_distances_only():
    m, x = mixer(), noise(2, 9, 12)
    for start in (1, 1000, 10**6):
        ahead = KVCache(torch.zeros(2, 3, 0, 4).double(), torch.zeros(2, 3, 0, 4).double(), torch.full((2,), start))
        # phases at 10^6 radians are exact to 1e-10
        torch.testing.assert_close(m(x, ahead)[0], m(x)[0], atol=1e-9 if start > 1000 else 1e-12, rtol=0)


def test_without_rotation_the_past_is_a_set():
    m, x = mixer(rotary_base=None), noise(2, 9, 12)
    mixed = x[:, [4, 2, 7, 0, 1, 6, 3, 5, 8]]
    torch.testing.assert_close(m(x)[0][:, -1], m(mixed)[0][:, -1], atol=1e-12, rtol=0)
    turned = mixer()
    assert (turned(x)[0][:, -1] - turned(mixed)[0][:, -1]).abs().max() > 1e-3


def test_equal_keys_make_a_running_mean():
    m, x = mixer(rotary_base=None), noise(1, 6, 12)
    with torch.no_grad():
        m.qkv.weight[12:24] = 0
    v = x @ m.qkv.weight[24:].T
    wanted = v.cumsum(1) / torch.arange(1, 7)[:, None] @ m.out.weight.T
    torch.testing.assert_close(m(x)[0], wanted, atol=1e-12, rtol=0)


def test_shared_heads_are_all_heads_with_keys_and_values_repeated():
    few, many, x = mixer(heads=6, kv_heads=2), mixer(heads=6), noise(2, 9, 12)
    with torch.no_grad():
        q, k, v = few.qkv.weight.split([12, 4, 4])
        repeated = [t.reshape(2, 2, 12).repeat_interleave(3, 0).reshape(12, 12) for t in (k, v)]
        many.qkv.weight.copy_(torch.cat([q, *repeated]))
        many.out.weight.copy_(few.out.weight)
    torch.testing.assert_close(few(x)[0], many(x)[0], atol=1e-12, rtol=0)


def test_gradients_are_those_of_the_definition():
    m = mixer(4, 2)
    x, old = noise(1, 3, 4).requires_grad_(), noise(1, 2, 4, seed=1).requires_grad_()

    def both(x, old):
        _, state = m(old)
        y, state = m(x, state)
        return y, state.k, state.v

    assert torch.autograd.gradcheck(both, (x, old))


def test_rows_of_different_lengths_go_on_together():
    """Their states are joined by filling the shorter one up in front; pos says how much of it counts."""
    m, x = mixer(heads=6, kv_heads=2), noise(2, 12, 12)
    with torch.no_grad():
        _, long = m(x[:1, :7])
        _, short = m(x[1:, :3])
        filler = torch.full((1, 2, 4, 2), 1e3, dtype=torch.float64)
        joined = KVCache(
            torch.cat([long.k, torch.cat([filler, short.k], 2)]),
            torch.cat([long.v, torch.cat([filler, short.v], 2)]),
            torch.cat([long.pos, short.pos]),
        )
        nexts = torch.stack([x[0, 7:10], x[1, 3:6]])
        y, after = m(nexts, joined)
        wanted = torch.cat([m(x[:1, :10])[0][:, 7:], m(x[1:, :6])[0][:, 3:]])
    torch.testing.assert_close(y, wanted, atol=1e-12, rtol=0)
    assert after.pos.tolist() == [10, 6]


@pytest.mark.parametrize("options", [{}, {"heads": 6, "kv_heads": 2, "window": 4}], ids=str)
def test_beams_go_on_from_the_rows_that_were_picked(options):
    m, x, more = mixer(**options), noise(3, 7, 12), noise(4, 5, 12, seed=1)
    rows = torch.tensor([2, 0, 2, 2])
    with torch.no_grad():
        state = m(x)[1].reorder(rows)
        wanted = m(torch.cat([x[rows], more], 1))[0][:, 7:]
        for t in range(5):
            y, state = m(more[:, t : t + 1], state)
            torch.testing.assert_close(y, wanted[:, t : t + 1], atol=1e-12, rtol=0)


def test_half_precision_is_near_and_keeps_its_type():
    m, x = mixer(32, 4).float(), noise(2, 300, 32).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = m(x)
        later, _ = m(x[:, :2], state)
    assert y.dtype == later.dtype == state.k.dtype == torch.bfloat16
    assert (y.float() - m(x)[0]).abs().max() < 0.03


def test_mixer_compiles_as_one_graph():
    torch.compiler.reset()
    m, x = mixer(heads=6, kv_heads=2), noise(2, 6, 12)
    compiled = torch.compile(m, backend="aot_eager", fullgraph=True)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            y, state = compiled(x)
            torch.testing.assert_close(y, m(x)[0])
            state = KVCache(*(part.detach() for part in state))
            torch.testing.assert_close(compiled(x, state)[0], m(x, state)[0])


# ------------------------------------------------------------------------------------------- weights of transformers


def theirs(kind, **options):
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("needs transformers, to compare with its attention")
    import transformers
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
    from transformers.models.mistral.modeling_mistral import MistralAttention

    torch.manual_seed(3)
    sizes = {"hidden_size": 24, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8}
    sizes |= {"attn_implementation": "eager", "max_position_embeddings": 128}
    made = {
        "llama": (transformers.LlamaConfig, LlamaAttention),
        "mistral": (transformers.MistralConfig, MistralAttention),
    }
    config = made[kind][0](**(sizes | options))
    attention = made[kind][1](config, layer_idx=0).double().eval()
    for p in attention.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return attention, config, LlamaRotaryEmbedding(config)


YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "rope_theta": 5e5}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("kind", "options", "ours"),
    [
        ("llama", {}, {}),
        ("llama", {"rope_parameters": YARN}, {"rotary_base": 5e5, "rotary_scaling": YaRNScaling(8, 64, ramp="index")}),
        ("llama", {"num_key_value_heads": 6, "head_dim": 4}, {}),
        ("mistral", {"sliding_window": 5}, {"window": 5}),
        ("mistral", {"sliding_window": None}, {}),
    ],
    ids=["llama", "llama-yarn", "llama-all-heads", "mistral", "mistral-unwindowed"],
)
def test_weights_of_a_transformers_attention_give_its_outputs(kind, options, ours, monkeypatch):
    attention, config, rotary = theirs(kind, **options)
    from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

    x, pos = noise(2, 40, 24), torch.arange(40)[None]
    m = MHA.from_transformers(attention.state_dict(), heads=6, **ours)
    torch.testing.assert_close(rotary.inv_freq.double(), m.rope.frequencies, rtol=3e-7, atol=0)
    assert abs(rotary.attention_scaling - m.rope.size) < 1e-12
    # their frequencies are made in float32: ours stand in for them now that they have been compared
    angle = (pos[..., None] * m.rope.frequencies).repeat(1, 1, 2)
    turned = m.rope.size * angle.cos(), m.rope.size * angle.sin()
    make_mask = create_sliding_window_causal_mask if options.get("sliding_window") else create_causal_mask
    mask = make_mask(config=config, inputs_embeds=x, attention_mask=None, past_key_values=None, position_ids=pos)
    with torch.no_grad(), monkeypatch.context() as patched:
        near, _ = attention(x, rotary(x, pos), mask)
        patched.setattr(torch, "float32", torch.float64)  # it would round weights to float32
        wanted, _ = attention(x, turned, mask)
    y, _ = m(x)
    assert y.requires_grad
    torch.testing.assert_close(y, wanted, atol=1e-8, rtol=0)
    torch.testing.assert_close(y, near, atol=3e-5, rtol=0)
    first, state = m(x[:, :30])
    torch.testing.assert_close(torch.cat([first, m(x[:, 30:], state)[0]], 1), wanted, atol=1e-8, rtol=0)
    whole = {f"model.layers.0.self_attn.{name}": t for name, t in attention.state_dict().items()} | {"other": x}
    again, _ = MHA.from_transformers(whole, "model.layers.0.self_attn.", heads=6, **ours)(x)
    torch.testing.assert_close(again, y, atol=0, rtol=0)


def test_a_state_dict_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"LlamaAttention, but this one lacks k_proj.weight"):
        MHA.from_transformers({}, heads=2)
    sizes = {"q": 12, "k": 4, "v": 4}
    weights = {f"{name}_proj.weight": torch.zeros(size, 10) for name, size in sizes.items()}
    weights["o_proj.weight"] = torch.zeros(10, 12)
    assert MHA.from_transformers(weights, heads=6).kv_heads == 2
    with pytest.raises(ValueError, match=r"has q_proj.bias, which has no place here"):
        MHA.from_transformers(weights | {"q_proj.bias": torch.zeros(12)}, heads=6)
    with pytest.raises(ValueError, match=r"not heads=5 with 12, 4 and 4 rows"):
        MHA.from_transformers(weights, heads=5)
    with pytest.raises(ValueError, match=r"MHA wants o_proj.weight of shape \(10, 12\), not \(10, 11\)"):
        MHA.from_transformers(weights | {"o_proj.weight": torch.zeros(10, 11)}, heads=6)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"heads": 5}, "heads that divide dim, or head_dim, not dim=12 and heads=5"),
        ({"heads": 0}, "dim and heads of at least 1"),
        ({"heads": 4, "kv_heads": 3}, "kv_heads that divide heads, not dim=12, heads=4 and kv_heads=3"),
        ({"heads": 4}, "an even number of channels and a base above 1, not 3 and 10000.0"),
        ({"rotary_base": 1.0}, "an even number of channels and a base above 1, not 4 and 1.0"),
        ({"head_dim": 0}, "head_dim of at least 1, not 0"),
        ({"window": 0}, "a window of at least 1, not 0"),
        (
            {"normalizer": "max"},
            "entmax15, entmax, taylor-softmax, relu2, perturb-max, not 'max'",
        ),
        ({"normalizer": "sparse-softmax"}, "top_k of at least 1 for sparse-softmax alone, not None for sparse-softmax"),
        ({"normalizer": "sparse-softmax", "top_k": 0}, "top_k of at least 1 for sparse-softmax alone, not 0"),
        ({"top_k": 3}, "top_k of at least 1 for sparse-softmax alone, not 3 for softmax"),
        ({"scale": "best"}, "a rule among standard, entropy"),
        ({"scale": "entropy", "scale_base": 1.0}, "a finite base above 1, not 1.0"),
        ({"scale": "gradmax-cosine"}, "qk_norm for the scale gradmax-cosine"),
        ({"rotary_base": None, "rotary_scaling": LinearScaling(2)}, "a rotary_base where there is a rotary_scaling"),
    ],
)
def test_bad_arguments_are_named(options, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        mixer(**options)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s: (s.k, s.v, s.pos), "a KVCache or None as its state, not tuple"),
        (lambda s: s._replace(k=s.k[:1]), "k of shape (2, 3, tokens, 4) and type torch.float64, not (1, 3, 5, 4)"),
        (lambda s: s._replace(v=s.v[:, :, :4]), "v of shape (2, 3, tokens, 4)"),
        (lambda s: s._replace(v=s.v.float()), "and torch.float32"),
        (lambda s: s._replace(k=s.k[..., :3]), "not (2, 3, 5, 3)"),
        (lambda s: s._replace(pos=s.pos[:1]), "pos of shape (2,), not (1,)"),
    ],
)
def test_a_state_that_does_not_fit_is_named(change, sentence):
    m, x = mixer(), noise(2, 5, 12)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        m(x, change(m(x)[1]))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=re.escape("MHA wants x of shape (batch, length, 12), not (2, 5, 11)")):
        mixer()(noise(2, 5, 11))
