"""Cards: what is wrong with one is said with file, line and a sentence; what is right comes out frozen."""

from __future__ import annotations

import dataclasses
import re
import time

import pytest

from carrel.atlas.catalogue import CardError, Comparable, UnknownMethod, load_catalogue
from carrel.atlas.parameter import BadParameter, Parameter


def line_with(text: str, wanted: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if line.startswith(wanted))


def read(workshop, text: str):
    workshop.add("made-up", card=text)
    return workshop.catalogue["made-up"]


def test_a_card_becomes_a_frozen_object(workshop):
    card = read(workshop, workshop.card)
    assert card.title == "A made-up method"
    assert card.usage == "made_up(1)"
    assert card.papers[0].year == 2023
    assert card.parameters == (Parameter("size", "int", 4, "how many", low=1, high=100, unit="things", quick=2),)
    with pytest.raises(dataclasses.FrozenInstanceError):
        card.title = "another"


def test_every_card_of_our_own_is_right():
    assert all(card.slug == slug for slug, card in load_catalogue().items())


@pytest.mark.parametrize("field", ["title", "family", "module", "aliases", "summary", "equation", "claim", "seconds"])
def test_a_missing_field_is_named_with_the_file(workshop, field):
    text = "\n".join(line for line in workshop.card.splitlines() if not line.startswith(f"{field} ="))
    with pytest.raises(CardError, match=rf'made-up\.toml:1: missing field "{field}"$'):
        read(workshop, text)


def test_a_field_missing_in_a_table_is_named_with_the_line_of_its_header(workshop):
    text = workshop.card.replace("year = 2023\n", "")
    with pytest.raises(CardError) as raised:
        read(workshop, text)
    assert raised.value.line == line_with(text, "[[papers]]")
    assert str(raised.value).endswith('missing field "year" in [papers]')


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seconds = 3", 'seconds = 3\ncliam = "x"', r'unknown field "cliam"; did you mean claim\?'),
        (
            'help = "how many"',
            'help = "how many"\nhigest = 3',
            r'unknown field "higest" in \[parameters.size\]; did you mean high\?',
        ),
        ('slug = "{slug}"', 'slug = "other"', 'slug must be the file\'s name, "made-up", got "other"'),
        ('family = "theory"', 'family = "theories"', 'family must be one of attention, .*, got "theories"'),
        ('module = "carrel.theory.made_up:made_up"', 'module = "carrel.theory"', "module looks like"),
        ('aliases = ["made-up method"]', "aliases = []", "aliases wants at least one phrase"),
        ('aliases = ["made-up method"]', 'aliases = ["x", ""]', "aliases wants at least one phrase"),
        ('aliases = ["made-up method"]', 'aliases = "x"', "aliases must be a list of texts, got 'x'"),
        ('equation = "y = x"', 'equation = "  "', "equation must not be empty"),
        ("seconds = 3", "seconds = 0", "seconds must be above 0, got 0"),
        ("seconds = 3", "seconds = true", "seconds must be a number, got True"),
        ('title = "A title"', "title = 3", "title must be text in quotes, got 3"),
        ('id = "2303.06349"', 'id = "2303.6349v2"', 'id must be an arXiv id such as "2303.06349", got "2303.6349v2"'),
        ("year = 2023", 'year = "2023"', "year must be a whole number, got '2023'"),
        ("year = 2023", "year = 23", "year must be a year such as 2023, got 23"),
        ('type = "int"', 'type = "integer"', "type must be int, float, choice or bool, got 'integer'"),
        (
            "default = 4",
            "default = 400",
            "default is not a value it may take: size must be between 1 and 100 things, got 400",
        ),
        ("[parameters.size]", "[parameters.json]", 'and not as the commands name their own options, got "json"'),
        ("quick = 2", "quick = 0", "quick is not a value it may take: size must be between 1 and 100 things, got 0"),
        ("default = 4", "default = 4.5", "default must be a whole number, got 4.5"),
        ("low = 1", "low = 101", "low must not be above high, got 101 and 100"),
        ("high = 100", "high = 100\nchoices = ['a']", 'unknown field "choices"'),
    ],
)
def test_what_is_wrong_is_said_with_its_line(workshop, old, new, said):
    assert workshop.card.count(old) == 1
    text = workshop.card.replace(old, new)
    with pytest.raises(CardError, match=said) as raised:
        read(workshop, text)
    assert re.match(r".*made-up\.toml:\d+: ", str(raised.value))
    assert raised.value.line == line_with(text, new.splitlines()[-1])


def test_a_parameter_of_a_bad_name_or_shape_is_refused(workshop):
    with pytest.raises(CardError, match="a parameter is named in small letters"):
        read(workshop, workshop.card.replace("[parameters.size]", "[parameters.seed]"))
    with pytest.raises(CardError, match="steps must be a table"):
        read(workshop, workshop.card.replace("[parameters.size]", "[parameters]\nsteps = 3\n[parameters.size]"))


def test_broken_toml_is_named_with_its_line(workshop):
    text = workshop.card.replace('title = "A made-up method"', 'title = "A made-up method')
    with pytest.raises(CardError, match=r"made-up\.toml:2: not TOML"):
        read(workshop, text)
    with pytest.raises(CardError, match=r"made-up\.toml:\d+: not TOML"):
        read(workshop, workshop.card + '\nx = """never closed')
    (workshop.folder / "cards" / "latin.toml").write_bytes(b'title = "\xe9"\n')
    with pytest.raises(CardError, match=r"latin\.toml:1: not UTF-8 text"):
        workshop.catalogue["latin"]


def test_lines_are_found_past_long_texts_that_look_like_toml(workshop):
    trap = workshop.card.replace(
        'summary = "Nothing of the kind exists."', "summary = '''\nyear = 1\n[[papers]]\nyear = 2\n'''"
    )
    text = trap.replace("year = 2023", "year = 7")
    with pytest.raises(CardError) as raised:
        read(workshop, text)
    assert raised.value.line == line_with(text, "year = 7")


def test_the_second_of_two_papers_is_the_one_complained_of(workshop):
    second = '\n[[papers]]\nid = "nonsense"\ntitle = "B"\nauthor = "B"\nyear = 2020\nremark = "B."\n'
    text = workshop.card.replace("[parameters.size]", second + "\n[parameters.size]")
    with pytest.raises(CardError) as raised:
        read(workshop, text)
    assert raised.value.line == line_with(text, 'id = "nonsense"')


def test_a_card_without_a_source_is_refused_and_another_source_than_arxiv_will_do(workshop):
    start, end = workshop.card.index("[[papers]]"), workshop.card.index("[parameters.size]")
    with pytest.raises(CardError, match="cites at least one source"):
        read(workshop, workshop.card[:start] + workshop.card[end:])
    elsewhere = '[[references]]\nurl = "https://example.org/x"\ntitle = "T"\nyear = 1990\n\n'
    card = read(workshop, workshop.card[:start] + elsewhere + workshop.card[end:])
    assert card.references[0].year == 1990
    with pytest.raises(CardError, match="url must start with https"):
        read(workshop, workshop.card[:start] + elsewhere.replace("https://", "javascript:") + workshop.card[end:])


@pytest.mark.parametrize("id", ["2303.06349", "0704.0001", "math/0309136", "hep-th/9711200"])
def test_both_forms_of_arxiv_ids_are_taken(workshop, id):
    assert read(workshop, workshop.card.replace("2303.06349", id)).papers[0].id == id


SIZE = Parameter("length", "int", 256, "tokens fed", low=16, high=4096, unit="tokens")
RATE = Parameter("rate", "float", 0.1, "step", low=0.0, high=1.0)
START = Parameter("start", "choice", "ring", "how it starts", choices=("ring", "dense", "zero"))
NORM = Parameter("normalize", "bool", True, "divide by gamma")


@pytest.mark.parametrize(
    ("parameter", "given", "value"),
    [
        (SIZE, "64", 64),
        (SIZE, " 64 ", 64),
        (SIZE, 64, 64),
        (SIZE, "1e3", 1000),
        (SIZE, "1_024", 1024),
        (SIZE, 64.0, 64),
        (RATE, "1e-3", 0.001),
        (RATE, ".5", 0.5),
        (RATE, 1, 1.0),
        (START, "dense", "dense"),
        (NORM, "no", False),
        (NORM, "TRUE", True),
        (NORM, "on", True),
        (NORM, False, False),
    ],
)
def test_texts_and_values_become_parameters(parameter, given, value):
    parsed = parameter.parse(given)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("parameter", "given", "said"),
    [
        (SIZE, "5", "length must be between 16 and 4096 tokens, got 5"),
        (SIZE, "12.5", "length must be a whole number, got 12.5"),
        (SIZE, "", "length must be a whole number, got ''"),
        (SIZE, "many", "length must be a whole number, got many"),
        (SIZE, "nan", "length must be a whole number, got nan"),
        (SIZE, "1e999999999", "length must be a whole number, got 1e999999999"),
        (SIZE, True, "length must be a whole number, got True"),
        (SIZE, None, "length must be a whole number, got None"),
        (SIZE, [64], r"length must be a whole number, got \[64\]"),
        (SIZE, "9" * 200, "length must be between 16 and 4096 tokens, got 9{57}…"),
        (RATE, "inf", "rate must be a number, got inf"),
        (RATE, "1.01", "rate must be between 0.0 and 1.0, got 1.01"),
        (START, "rong", "start must be ring, dense or zero, got rong"),
        (START, ["ring"], r"start must be ring, dense or zero, got \['ring'\]"),
        (NORM, "maybe", "normalize must be yes or no, got maybe"),
    ],
)
def test_what_cannot_be_a_parameter_is_refused_in_one_sentence(parameter, given, said):
    with pytest.raises(BadParameter, match=said + "$"):
        parameter.parse(given)


def test_parse_fills_in_defaults_and_the_quick_values(workshop):
    card = read(workshop, workshop.card)
    assert card.parse({}) == {"size": 4}
    assert card.parse({}, quick=True) == {"size": 2}
    assert card.parse({"size": "7"}, quick=True) == {"size": 7}
    with pytest.raises(BadParameter, match="made-up has no parameter 'sizes'; did you mean size"):
        card.parse({"sizes": "7"})
    with pytest.raises(BadParameter, match="made-up has no parameter 'colour'; it has size"):
        card.parse({"colour": "7"})


def test_an_unknown_method_suggests_its_neighbours(workshop):
    workshop.add("linear-scan")
    with pytest.raises(UnknownMethod, match="there is no method called 'linear_scann'; did you mean linear-scan"):
        workshop.catalogue["linear_scann"]
    with pytest.raises(LookupError, match="carrel methods lists them all"):
        workshop.catalogue["zzzzzz"]
    assert workshop.catalogue.get("zzzzzz") is None
    assert "zzzzzz" not in workshop.catalogue


def test_groups_follow_the_order_of_families_then_titles(workshop):
    for slug, family, title in [("c", "theory", "B"), ("a", "theory", "a"), ("b", "attention", "Z")]:
        workshop.add(slug, card=workshop.card.replace('"theory"', f'"{family}"').replace("A made-up method", title))
    groups = workshop.catalogue.groups()
    assert [(group.title, [card.slug for card in group.cards]) for group in groups] == [
        ("Attention", ["b"]),
        ("Theory", ["a", "c"]),
    ]


def test_aliases_name_the_phrases_and_the_papers(workshop):
    workshop.add("made-up")
    assert workshop.catalogue.aliases() == {"made-up": ("made-up method", "arxiv:2303.06349")}


def test_a_method_without_a_committed_result_has_none(workshop):
    workshop.add("made-up")
    assert workshop.catalogue.result("made-up") is None
    with pytest.raises(UnknownMethod):
        workshop.catalogue.result("nope")


def test_opening_a_catalogue_of_sixty_cards_takes_under_30_ms(workshop):
    for k in range(60):
        workshop.add(f"method-{k}")
    took = []
    for _ in range(5):
        started = time.process_time()
        assert len(workshop.catalogue) == 60
        assert workshop.catalogue["method-7"].slug == "method-7"
        took.append(time.process_time() - started)
    assert min(took) < 0.03


def test_a_card_may_say_how_it_stands_in_a_comparison(workshop):
    assert read(workshop, workshop.card).compare is None
    stands = '[compare]\noptions = { state_dim = 8, init = "lin", gate = false }\nmlp = 2\n\n[parameters.size]'
    card = read(workshop, workshop.card.replace("[parameters.size]", stands))
    assert card.compare == Comparable({"state_dim": 8, "init": "lin", "gate": False}, 2.0)
    plain = read(workshop, workshop.card.replace("[parameters.size]", "[compare]\noptions = {}\n[parameters.size]"))
    assert plain.compare == Comparable({}, 0.0)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("[compare]", r'missing field "options" in \[compare\]'),
        ("[compare]\noptions = 3", "options must be a table, got 3"),
        ("[compare]\noptions = { a = [1] }", r"option a must be a number, a text, true or false, got \[1\]"),
        ("[compare]\noptions = {}\nmlp = -1", "mlp must not be below 0, got -1"),
        ("[compare]\noption = {}", 'unknown field "option" in .compare.; did you mean options'),
    ],
)
def test_a_comparison_that_is_not_right_is_said_with_its_line(workshop, table, said):
    text = workshop.card.replace("[parameters.size]", f"{table}\n[parameters.size]")
    with pytest.raises(CardError, match=said) as raised:
        read(workshop, text)
    line = table.splitlines()[-1]
    assert raised.value.line in (line_with(text, "[compare]"), line_with(text, line))
