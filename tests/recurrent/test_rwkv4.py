"""RWKV4: y_t = W_o(σ(r_t) wkv_t), and the weights of a transformers model."""

import importlib.util
import math

import pytest
import torch

from carrel.recurrent import RWKV4, RWKVChannelMix

REAL = torch.float64


def small(dim=5, seed=0):
    torch.manual_seed(seed)
    mixer = RWKV4(dim).double()
    with torch.no_grad():
        mixer.key.weight.mul_(6)
        mixer.decay.uniform_(-2, 1)
    return mixer


def written_out(m, x):
    """The layer's equations, with the sums over all earlier tokens written out."""
    before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
    r, k, v = (
        (mix * x + (1 - mix) * before) @ weight.T
        for mix, weight in (
            (m.mix_r, m.receptance.weight),
            (m.mix_k, m.key.weight),
            (m.mix_v, m.value.weight),
        )
    )
    rows = []
    for t in range(x.shape[1]):
        faded = k[:, :t] - torch.arange(t - 1, -1, -1)[:, None] * m.decay.exp()
        weights = torch.exp(torch.cat([faded, (m.bonus + k[:, t])[:, None]], 1))
        rows.append((weights * v[:, : t + 1]).sum(1) / weights.sum(1))
    return (torch.sigmoid(r) * torch.stack(rows, 1)) @ m.output.weight.T


def test_output_is_the_layer_written_out():
    mixer, x = small(), torch.randn(2, 20, 5, dtype=REAL)
    torch.testing.assert_close(mixer(x)[0], written_out(mixer, x), atol=1e-12, rtol=0)


def test_the_start_is_the_authors_first_layers():
    mixer = RWKV4(64)
    assert (mixer.decay[0], mixer.decay[-1]) == (-5, 3)
    assert (mixer.decay.diff() > 0).all()
    torch.testing.assert_close(mixer.bonus[:4], math.log(0.3) + torch.tensor([0, 0.5, -0.5, 0]))
    torch.testing.assert_close(mixer.mix_k, torch.arange(64) / 64)
    torch.testing.assert_close(mixer.mix_r, (torch.arange(64) / 64).sqrt())


def test_an_endless_rate_forgets_all_but_the_last_token_and_its_own():
    """Then y_t is a function of x_t, x_{t-1} and x_{t-2}, which the last key has seen."""
    mixer = small()
    with torch.no_grad():
        mixer.decay.fill_(50)
    x = torch.randn(2, 9, 5, dtype=REAL)
    other = torch.cat([torch.randn(2, 6, 5, dtype=REAL), x[:, 6:]], 1)
    torch.testing.assert_close(mixer(other)[0][:, 8], mixer(x)[0][:, 8], atol=1e-14, rtol=0)
    assert (mixer(other)[0][:, 7] - mixer(x)[0][:, 7]).abs().max() > 1e-3


# ------------------------------------------------------------------------------------------- weights of transformers


def theirs(layers=3, **sizes):
    if importlib.util.find_spec("transformers") is None or importlib.util.find_spec("transformers.models.rwkv") is None:
        pytest.skip("needs a transformers that ships RwkvModel, to compare with")
    from transformers import RwkvConfig
    from transformers.models.rwkv.modeling_rwkv import RwkvModel

    torch.manual_seed(3)
    config = RwkvConfig(vocab_size=11, hidden_size=12, num_hidden_layers=layers, attention_hidden_size=12, **sizes)
    model = RwkvModel(config).double().eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return model


@pytest.fixture
def _wide(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # they would round keys to float32


@pytest.mark.usefixtures("_wide")
@pytest.mark.filterwarnings("ignore")
def test_weights_of_transformers_layers_give_their_outputs():
    block = theirs().blocks[1]
    x = torch.randn(2, 33, 12, dtype=REAL)
    for layer, kind in ((block.attention, RWKV4), (block.feed_forward, RWKVChannelMix)):
        with torch.no_grad():
            wanted = layer(x)[0]
        y, _ = kind.from_transformers(layer.state_dict())(x)
        assert y.requires_grad
        torch.testing.assert_close(y, wanted, atol=1e-8, rtol=0)


@pytest.mark.usefixtures("_wide")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("hidden", [None, 20])
def test_a_whole_transformers_model_goes_through_our_mixers_in_pieces(hidden):
    model = theirs(intermediate_size=hidden)
    tokens = torch.randint(11, (2, 25))
    with torch.no_grad():
        wanted = model(tokens, use_cache=False).last_hidden_state
        weights, halves, h = model.state_dict(), [], []
        for i, block in enumerate(model.blocks):
            halves.append((block.ln1, RWKV4.from_transformers(weights, prefix=f"blocks.{i}.attention.")))
            halves.append((block.ln2, RWKVChannelMix.from_transformers(weights, prefix=f"blocks.{i}.feed_forward.")))
        states = [None] * len(halves)
        for piece in tokens.split([7, 1, 17], 1):
            x = model.blocks[0].pre_ln(model.embeddings(piece))
            for i, (norm, mixer) in enumerate(halves):
                y, states[i] = mixer(norm(x), states[i])
                x = x + y
            h.append(model.ln_out(x))
    torch.testing.assert_close(torch.cat(h, 1), wanted, atol=1e-8, rtol=0)


NAMES = {
    "decay": "time_decay", "bonus": "time_first", "mix_r": "time_mix_receptance", "mix_k": "time_mix_key",
    "mix_v": "time_mix_value",
}  # fmt: skip


def as_theirs(mixer):
    return {NAMES.get(name, name): t for name, t in mixer.state_dict().items()}


def test_loaded_weights_are_copies():
    for mixer in (small(), RWKVChannelMix(5)):
        loaded = type(mixer).from_transformers(as_theirs(mixer))
        with torch.no_grad():
            loaded.mix_r.fill_(7)
        assert (mixer.mix_r < 1).all()


def test_a_state_dict_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"a transformers RwkvSelfAttention, but this one lacks key.weight, output"):
        RWKV4.from_transformers({})
    with pytest.raises(ValueError, match=r"a transformers RwkvFeedForward, but this one has bias, which has no place"):
        RWKVChannelMix.from_transformers(as_theirs(RWKVChannelMix(5)) | {"bias": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"RWKV4 wants time_decay of shape \(5,\), not \(7,\)"):
        RWKV4.from_transformers(as_theirs(small()) | {"time_decay": torch.zeros(7)})
