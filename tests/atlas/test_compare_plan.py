"""Who is compared on what: words become a plan, and what cannot be is told in one sentence before anything runs."""

from __future__ import annotations

import importlib
import inspect

import pytest

from carrel.atlas.catalogue import load_catalogue
from carrel.atlas.compare.contender import YARDSTICK, contenders, offers
from carrel.atlas.compare.plan import RATES, SWEEP_SEED, Plan
from carrel.atlas.compare.problems import PROBLEMS
from carrel.atlas.compare.signature import options_of, parse_options
from carrel.atlas.parameter import BadParameter

CATALOGUE = load_catalogue()


def plan(*mixers: str, task: str = "mqar", **given: object) -> Plan:
    return Plan.of(mixers or ("s4d", "mamba"), task, given, CATALOGUE)


def test_the_yardstick_and_every_card_that_says_so_are_offered():
    names = list(offers(CATALOGUE))
    assert names[0] == "transformer"
    assert {"lru", "s4", "s4d", "s5", "mamba"} <= set(names)
    assert {card.slug for card in CATALOGUE.values() if card.compare} == set(names) - {"transformer"}


@pytest.mark.parametrize("offer", offers(CATALOGUE).values(), ids=lambda offer: offer.name)
def test_options_read_from_the_source_are_those_of_the_constructor(offer):
    module, name = offer.module.split(":")
    kind = getattr(importlib.import_module(module), name)
    real = {p.name: p for p in inspect.signature(kind).parameters.values() if p.name != "dim"}
    given = list(options_of(offer.module))
    assert given == [name for name in real if name in given]
    # what is left out is what no text can say
    assert set(real) - set(given) <= {"rotary_scaling", "generator"}
    for option in options_of(offer.module).values():
        if option.default is not None:
            assert option.default == real[option.name].default
    assert set(offer.defaults.options) <= set(real)
    mixer = kind(16, **offer.defaults.options)
    assert mixer.dim == 16


def test_an_option_whose_choices_have_a_name_elsewhere_takes_a_word():
    assert parse_options("gau", CATALOGUE["gau"].module, {"scaling": "n2"}) == {"scaling": "n2"}
    with pytest.raises(BadParameter, match="has no option 'rotary_scaling'"):
        parse_options("mha", CATALOGUE["mha"].module, {"rotary_scaling": "yarn"})


def test_problems_say_what_the_tasks_themselves_say():
    from carrel.tasks import TASKS, make_task

    assert tuple(PROBLEMS) == TASKS
    for name, problem in PROBLEMS.items():
        task = make_task(name)
        assert (problem.length, problem.steps, problem.batch) == (task.length, task.steps, task.batch)
        for length in problem.only or (problem.low, min(problem.high, 128)):
            assert make_task(name, length).length == length
        if not problem.only:
            with pytest.raises(ValueError, match="wants"):
                make_task(name, problem.low - 1)


def test_a_variant_is_its_mixer_s_defaults_with_what_was_said():
    plain, off, wide = contenders(["mamba", "mamba:selective=false,state_dim=4", "lru:mlp=0"], CATALOGUE)
    assert (plain.label, plain.options["state_dim"]) == ("mamba", 8)
    assert off.label == "mamba:selective=false,state_dim=4"
    assert off.options == {**plain.options, "selective": False, "state_dim": 4}
    assert wide.mlp == 0
    assert "mlp" not in wide.options
    assert offers(CATALOGUE)["lru"].defaults.mlp == 2


@pytest.mark.parametrize(
    ("mixers", "said"),
    [
        (["mabma"], r"no mixer to compare is called 'mabma'; did you mean mamba\?"),
        (["min-abc"], "min-abc is no mixer, or none that can be compared; there are transformer, "),
        (["quicksort"], "no mixer to compare is called 'quicksort'; there are transformer, "),
        ([], "name the mixers to compare; there are transformer, "),
        (["mamba", "mamba"], "mamba is mamba once more; name each side once"),
        (["mamba", "mamba:state_dim=8"], "mamba:state_dim=8 is mamba once more"),
        (["mamba:"], "'mamba:' cannot be read: a variant is written mamba:option=value,option=value"),
        (["mamba:selective"], "'mamba:selective' cannot be read"),
        (["mamba:selectiv=no"], r"mamba has no option 'selectiv'; did you mean selective\?"),
        (["mamba:dim=3"], "mamba has no option 'dim'; it has state_dim, expand,"),
        (["mamba:selective=perhaps"], "mamba: selective must be yes or no, got 'perhaps'"),
        (["mamba:state_dim=many"], "mamba: state_dim must be a whole number, got 'many'"),
        (["mamba:state_dim=1.5"], "mamba: state_dim must be a whole number, got '1.5'"),
        (["mamba:dt_rank=few"], "mamba: dt_rank must be a whole number or auto, got 'few'"),
        (["lru:r_min=nothing"], "lru: r_min must be a number, got 'nothing'"),
        (["s4d:mlp=-1"], "s4d: mlp must be a number from 0 to 16, got '-1'"),
        ([f"mamba:state_dim={n}" for n in range(1, 14)], "at most 12 mixers are compared at once, got 13"),
    ],
)
def test_mixers_that_cannot_be_compared_are_told_in_a_sentence(mixers, said):
    with pytest.raises(BadParameter, match=said) as raised:
        contenders(mixers, CATALOGUE)
    assert "\n" not in str(raised.value)


def test_texts_become_values_of_the_types_that_the_constructor_names():
    given = {"state_dim": "4", "dt_rank": "auto", "dt_min": "1e-2", "selective": "No"}
    parsed = parse_options("mamba", "carrel.recurrent.mamba:Mamba", given)
    assert parsed == {"state_dim": 4, "dt_rank": "auto", "dt_min": 0.01, "selective": False}
    assert parse_options("mamba", "carrel.recurrent.mamba:Mamba", {"dt_rank": "2"}) == {"dt_rank": 2}
    assert parse_options("lru", "carrel.recurrent.lru:LRU", {"state_dim": "8"}) == {"state_dim": 8}
    assert parse_options("s4d", "carrel.recurrent.s4d:S4D", {"init": "lin"}) == {"init": "lin"}


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("carrel.recurrent.mambo:Mamba", "there is no module carrel.recurrent.mambo"),
        ("nowhere.at.all:X", "there is no module nowhere.at.all"),
        ("carrel.recurrent.mamba:Mambo", "carrel.recurrent.mamba has no Mambo"),
    ],
)
def test_a_module_that_is_not_there_is_told_in_a_sentence(module, said):
    with pytest.raises(BadParameter, match=said):
        options_of(module)


def test_numbers_that_are_not_given_are_the_task_s_own():
    own = plan(task="copying")
    assert (own.length, own.steps, own.batch) == (32, 400, 32)
    assert (own.seeds, own.dim, own.depth, own.schedule) == (3, 32, 2, "cosine")
    other = plan(task="copying", length="48", steps=100, dim="16", batch=None, depth="")
    assert (other.length, other.steps, other.batch, other.dim, other.depth) == (48, 100, 32, 16, 2)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"task": "mqra"}, r"no task is called 'mqra'; did you mean mqar\?"),
        ({"task": "Selective_Copying "}, "did you mean selective-copying"),
        ({"task": "poetry"}, "no task is called 'poetry'; there are copying, selective-copying"),
        ({"length": 63}, "mqar wants an even length from 4 to 4096, got 63"),
        ({"length": 2}, "mqar wants an even length from 4 to 4096, got 2"),
        ({"length": 10**6}, "length must be between 1 and 4096 tokens, got 1000000"),
        ({"length": 0}, "length must be between 1 and 4096 tokens, got 0"),
        ({"task": "sequential-digits", "length": 32}, "sequential-digits wants a length of 8 or 64, got 32"),
        ({"task": "copying", "length": 3}, "copying wants a length from 4 to 4096, got 3"),
        ({"seeds": 0}, "seeds must be between 1 and 20, got 0"),
        ({"steps": "many"}, "steps must be a whole number, got many"),
        ({"schedule": "linear"}, "schedule must be cosine or constant, got linear"),
    ],
)
def test_a_plan_that_cannot_be_is_told_in_a_sentence(given, said):
    with pytest.raises(BadParameter, match=said):
        plan(**given)


def test_every_mixer_gets_the_same_sweep_on_a_seed_of_its_own_at_a_quarter_of_the_steps():
    made = plan(task="copying")
    works = {side.label: [made.sweep(side, rate) for rate in RATES] for side in made.contenders}
    for sweep in works.values():
        assert [work.parameters["rate"] for work in sweep] == list(RATES)
        assert {work.parameters["steps"] for work in sweep} == {100}
        assert {work.seeds for work in sweep} == {(SWEEP_SEED,)}
        assert not any(work.parameters["held_out"] for work in sweep)
    full = made.trial(made.contenders[0], 0.01, 2)
    assert (full.seeds, full.parameters["steps"], full.parameters["held_out"]) == ((2,), 400, True)


def test_the_same_mixer_asked_for_in_other_words_is_the_same_work():
    one, other = plan("mamba", "mamba:expand=3").contenders[0], plan("mamba:state_dim=8", "s4d").contenders[0]
    assert one.label != other.label
    assert plan().trial(one, 0.01, 0).key == plan().trial(other, 0.01, 0).key
    assert plan().trial(one, 0.01, 0).key != plan().trial(one, 0.01, 1).key


def test_the_transformer_is_attention_with_a_gated_mlp():
    assert YARDSTICK.module == "carrel.attention.multihead:MHA"
    assert YARDSTICK.defaults.mlp == 2
