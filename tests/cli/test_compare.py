"""`carrel compare` end to end, with the real worker and the smallest runs that there can be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from carrel.cli import main

SMALL = ("--steps", "8", "--batch", "4", "--dim", "8", "--depth", "1", "--seeds", "2", "--length", "8")


@pytest.fixture
def carrel(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run the command in this process on a data folder of its own: (exit status, stdout, stderr)."""
    monkeypatch.setenv("CARREL_DATA", str(tmp_path / "data"))

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["compare", *words])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def test_mixers_are_trained_measured_and_printed_as_json_and_as_one_page(carrel, tmp_path: Path) -> None:
    words = ("lru", "mamba:selective=false,state_dim=2", "transformer", "--task", "selective-copying", *SMALL)
    status, out, err = carrel(*words, "--json", "--html", str(tmp_path / "page.html"))
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert (found["task"], found["length"], found["seeds"], found["chance"]) == ("selective-copying", 8, 2, 0.125)
    assert [mixer["label"] for mixer in found["mixers"]] == ["lru", "mamba:selective=false,state_dim=2", "transformer"]
    for mixer in found["mixers"]:
        assert len(mixer["right"]["seeds"]) == 2
        assert mixer["right"]["worst"] == min(mixer["right"]["seeds"])
        assert 0 <= mixer["right"]["mean"] <= 1
        assert len(mixer["sweep"]) == 5
        assert min(mixer["training_tokens_per_s"], mixer["decoding_tokens_per_s"], mixer["parameters"]) > 0
    lru, mamba, transformer = found["mixers"]
    channels, heads_and_width = 2 * 8, 8
    assert lru["state_bytes"] == 8 * 8, "eight complex numbers of four bytes a part"
    assert mamba["state_bytes"] == 4 * (channels * 3 + channels * 2)
    tokens = 8 + 4
    assert transformer["state_bytes"] == 4 * 2 * tokens * heads_and_width + 8, "keys, values, and the position"
    assert [mixer["token_bytes"] for mixer in found["mixers"]] == [0, 0, 4 * 2 * heads_and_width]
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Plotly" in page
    assert 'src="http' not in page
    status, out, _ = carrel(*words)
    assert status == 0
    assert "Mixers on selective-copying, length 8: mean of 2 seeds" in out


def test_without_a_task_it_lists_what_there_is(carrel) -> None:
    status, out, _ = carrel()
    assert status == 0
    assert "transformer" in out
    assert "selective-copying" in out
    assert carrel("mamba")[0] == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["mabma", "--task", "mqar"], "did you mean mamba"),
        (["mamba", "--task", "mqra"], "did you mean mqar?"),
        (["mamba", "--task", "mqar", "--length", "63"], "mqar wants an even length"),
        (["mamba:selectiv=no", "--task", "mqar"], "did you mean selective?"),
        (["mamba", "--task", "mqar", "--seeds", "0"], "seeds must be between 1 and 20"),
        (["mamba", "--task", "mqar", "--length", "many"], "length"),
        (["--task", "mqar"], "name the mixers to compare"),
        (["mamba", "--task", "mqar", "--html", "/no/such/folder/page.html"], "there is no folder"),
        (["s4d:state_dim=3", "--task", "mqar", *SMALL[:-2]], "s4d:state_dim=3: S4D wants"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(carrel, words: list[str], says: str) -> None:
    status, out, err = carrel(*words)
    assert (status, out) == (2, "")
    assert err.startswith("carrel: ")
    assert err.count("\n") == 1
    assert says in err
