"""Feeding a sequence in any split gives the same outputs, gradients and future: asked of every mixer there is.

Nobody signs up here: every public mixer of the library takes part, with the options of its card where that has some.
"""

import importlib
import inspect
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import carrel
from carrel.atlas.catalogue import load_catalogue
from carrel.layers import Mixer
from carrel.testing import check_streaming

DIM = 16
ROOMS = ("attention", "layers", "recurrent")
# those that are not made from a width alone
MADE: dict[str, Callable[[type, int], Mixer]] = {
    "ParallelRNN": lambda kind, dim: kind(carrel.recurrent.GRU(dim, dim)),
}


def mixers() -> dict[str, tuple[type, dict]]:
    """Every mixer's name with its class and options."""
    found = {}
    for room in ROOMS:
        for name, thing in vars(getattr(carrel, room)).items():
            if is_mixer(thing):
                found[name] = (thing, {})
    for card in load_catalogue().values():
        module, _, name = card.module.partition(":")
        thing = getattr(importlib.import_module(module), name)
        if is_mixer(thing):
            first = not found.get(name, (thing, {}))[1]  # a class may have several cards
            options = dict(card.compare.options) if card.compare else {}
            found[name if first else f"{name}, {card.slug}"] = (thing, options)
    return found


def is_mixer(thing: object) -> bool:
    return inspect.isclass(thing) and issubclass(thing, Mixer) and not inspect.isabstract(thing)


MIXERS = mixers()


@pytest.fixture(params=sorted(MIXERS))
def mixer(request: pytest.FixtureRequest) -> Mixer:
    kind, options = MIXERS[request.param]
    torch.manual_seed(0)
    if "head_dim" in inspect.signature(kind).parameters:
        options.setdefault("head_dim", DIM // 4)  # what heads have by default may be wider than all of this
    made = MADE[request.param](kind, DIM) if request.param in MADE else kind(DIM, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            if not parameter.any():  # nothing can be seen through a projection of zeros
                parameter.normal_(std=0.1)
    return made


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_known_ones_take_part() -> None:
    assert {"LRU", "MHA", "Mamba", "S4", "S4D", "S5", "ShortConvolution"} <= MIXERS.keys()
    assert "Mixer" not in MIXERS


def test_every_mixer_keeps_the_contract(mixer: Mixer) -> None:
    check_streaming(mixer, DIM)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_mixer_streams_in_random_splits(mixer: Mixer, data: st.DataObject) -> None:
    longest = 2 * mixer.chunk + 11
    cuts = data.draw(st.lists(st.integers(0, longest), max_size=6).map(sorted), label="cuts")
    check_streaming(mixer, DIM, cuts=cuts)
