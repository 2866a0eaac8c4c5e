"""The command line: exit statuses, one sentence on stderr, JSON that parses."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from carrel import __version__
from carrel.cli import main


@pytest.fixture
def carrel(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Run the command in this process on a data folder of its own: (exit status, stdout, stderr)."""
    monkeypatch.setenv("CARREL_DATA", str(tmp_path / "data"))

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(words))
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def one_sentence(err: str) -> bool:
    return err.startswith("carrel: ") and err.count("\n") == 1 and "Traceback" not in err


def test_it_says_its_version(carrel) -> None:
    assert carrel("--version") == (0, f"carrel {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["read-my-mind"], "No such command"),
        (["run", "no-such-method"], "no-such-method"),
        (["run", "lur"], "lru"),
        (["run", "min-abc", "--weight", "3"], "weight"),
        (["run", "min-abc", "--exponent-high", "-3"], "exponent"),
        (["run", "min-abc", "--seeds", "0"], "seeds"),
        (["run", "min-abc", "stray"], "stray"),
        (["import", "no-such-file.jsonl"], "no-such-file.jsonl"),
        (["search", "attention", "--sort", "sideways"], "sideways"),
        (["serve", "--port", "70000"], "65535"),
    ],
)
def test_wrong_usage_is_one_sentence_and_status_2(carrel, words: list[str], says: str) -> None:
    status, out, err = carrel(*words)
    assert (status, out) == (2, "")
    assert one_sentence(err)
    assert says in err


def test_a_data_folder_that_cannot_be_written_is_one_sentence(carrel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    status, _, err = carrel("search", "attention", "--data", str(tmp_path / "file" / "below"))
    assert status == 2
    assert one_sentence(err)
    assert "cannot be written" in err


def test_a_port_in_use_is_one_sentence(carrel) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        status, _, err = carrel("serve", "--port", str(taken.getsockname()[1]))
    assert status == 2
    assert one_sentence(err)
    assert "--port" in err


def test_methods_lists_every_card(carrel) -> None:
    status, out, _ = carrel("methods", "--json")
    assert status == 0
    assert {method["slug"] for method in json.loads(out)} >= {"lru", "min-abc"}
    status, out, _ = carrel("methods")
    assert status == 0
    assert "min-abc" in out


def test_an_unknown_family_finds_nothing(carrel) -> None:
    status, _, err = carrel("methods", "--family", "sorcery")
    assert status == 1
    assert one_sentence(err)


def test_search_finds_the_starter_shelf_and_says_when_there_is_nothing(carrel) -> None:
    status, out, _ = carrel("search", "resurrecting recurrent neural networks", "--json")
    assert status == 0
    assert "2303.06349" in json.loads(out)["papers"][0]["key"]
    assert carrel("search", "zzzzqqqq xxyyzz")[0] == 1


def test_import_reports_counts_and_keeps_going_where_it_can(carrel, tmp_path: Path) -> None:
    rows = [
        {
            "day": "2026-04-01",
            "id": "2603.28800",
            "categories": ["cs.GT"],
            "authors": ["A B"],
            "title": "T",
            "comment": None,
            "summary": "S",
        },
        ["not", "an", "object"],
    ]
    dump = tmp_path / "day.jsonl"
    dump.write_text("\n".join(json.dumps(row) for row in rows))
    status, out, _ = carrel("import", str(dump), "--json")
    assert status == 0
    (report,) = json.loads(out)
    assert (report["read"], report["new"], report["rejected"]) == (2, 1, 1)
    assert Path(report["rejects_file"]).is_file()
    (again,) = json.loads(carrel("import", str(dump), "--json")[1])
    assert (again["new"], again["updated"], again["unchanged"]) == (0, 0, 1)
    assert "2603.28800" in carrel("import", str(dump))[1] + carrel("search", "id:2603.28800")[1]


def test_a_file_that_cannot_be_read_does_not_keep_the_others_out(carrel, tmp_path: Path) -> None:
    row = {"day": "2026-04-01", "categories": ["cs.GT"], "authors": ["A B"], "comment": None, "summary": "S"}
    for name, number in (("a", 1), ("b", 2)):
        (tmp_path / name).write_text(json.dumps({**row, "id": f"2603.0000{number}", "title": f"T{number}"}))
    (tmp_path / "letter").write_text("Dear reader")
    status, out, err = carrel("import", *(str(tmp_path / name) for name in ("a", "letter", "b")), "--json")
    assert status == 2
    assert one_sentence(err)
    assert "letter is of no known format" in err
    assert [report["new"] for report in json.loads(out)] == [1, 1]


def test_help_of_a_method_lists_the_parameters_of_its_card(carrel) -> None:
    status, out, _ = carrel("run", "lru", "--help")
    assert status == 0
    assert "--length" in out


def test_help_answers_without_the_heavy_rooms() -> None:
    done = subprocess.run([sys.executable, "-m", "carrel", "--help"], capture_output=True, text=True, check=True)
    for command in ("serve", "import", "search", "methods", "run", "doctor"):
        assert command in done.stdout


def test_a_stopped_command_says_that_what_was_finished_is_kept(carrel, tmp_path: Path, monkeypatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "list.jsonl").write_text("{}")
    monkeypatch.setattr("carrel.desk.import_file", stop)
    assert carrel("import", str(tmp_path / "list.jsonl")) == (130, "", "carrel: stopped; what was finished is kept\n")


def test_the_site_closed_by_control_c_ends_well(carrel, monkeypatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("carrel.web.serve._run", stop)
    status, _, err = carrel("serve", "--port", "0")
    assert (status, err) == (0, "")
