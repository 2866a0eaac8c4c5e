"""carrel nbce: a local checkpoint, files, a question."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from carrel.cli import main

QUESTION = "who?"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with random weights and a tokenizer of single characters, as transformers saves them."""
    transformers = pytest.importorskip("transformers")
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("checkpoint")
    letters = ["<end>", *(chr(code) for code in range(32, 127)), "\n"]
    tokenizer = Tokenizer(models.WordLevel({letter: i for i, letter in enumerate(letters)}, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(letters), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=160, initializer_range=0.3, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is read by one thread; two wait for each other longer than they work."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    for name, text in (("a.txt", "the first one"), ("b.txt", "another, a little longer"), ("c.txt", "third")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    return [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]


def carrel(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_the_answer_is_printed_and_its_sources_named(checkpoint, files, capsys) -> None:
    words = ["nbce", "--model", checkpoint, "--context", *files, "--ask", QUESTION, "--tokens", 12]
    status, out, err = carrel(capsys, *words)
    assert status == 0
    assert err.startswith("from: ")
    assert any(str(file) in err for file in files)
    status, text, err = carrel(capsys, *words, "--json")
    found = json.loads(text)
    assert (status, err) == (0, "")
    assert found["text"] + "\n" == out
    assert found["contexts"] == [str(file) for file in files]
    assert 0 < len(found["tokens"]) <= 12
    for token in found["tokens"]:
        assert token["context"] in found["contexts"]
        surest = min(range(3), key=token["entropies"].__getitem__)
        assert token["context"] == found["contexts"][surest]


def test_sampling_follows_its_seed_and_files_may_come_in_any_order(checkpoint, files, capsys) -> None:
    def text(seed: int, order: list[Path]) -> str:
        named = [word for file in order for word in ("--context", file)]
        options = ["--tokens", 8, "--temperature", 2, "--top-p", 1, "--seed", seed, "--context-batch", 2]
        return carrel(capsys, "nbce", "--model", checkpoint, *named, "--ask", QUESTION, *options)[1]

    assert text(1, files) == text(1, files[::-1])
    assert len({text(seed, files) for seed in range(4)}) > 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--model": "no-such-folder"}, "no-such-folder"),
        ({"--model": "meta-llama/Llama-3.2-1B"}, "config.json"),
        ({"--context": "no-such-file.txt"}, "no-such-file.txt"),
        ({"--pooling": "median"}, "median"),
        ({"--beta": -2}, "beta"),
        ({"--tokens": 130}, "b.txt makes a prompt of"),
        ({"--template": "{context}"}, "{question}"),
        ({"--tokens": 0}, "tokens"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_status_2(checkpoint, files, capsys, change: dict, says: str) -> None:
    options = {"--model": checkpoint, "--context": files[1], "--ask": QUESTION, "--tokens": 4, **change}
    status, out, err = carrel(capsys, "nbce", *(word for pair in options.items() for word in pair))
    assert (status, out) == (2, "")
    assert err.startswith("carrel: ")
    assert err.count("\n") == 1
    assert says in err


@pytest.mark.parametrize(
    ("content", "says"), [(b" \n", "is empty"), (b"\xff\xfe\x00", "not text in UTF-8")], ids=["empty", "binary"]
)
def test_a_file_without_text_is_named(checkpoint, tmp_path, capsys, content: bytes, says: str) -> None:
    (tmp_path / "odd.txt").write_bytes(content)
    status, _, err = carrel(capsys, "nbce", "--model", checkpoint, "--context", tmp_path / "odd.txt", "--ask", QUESTION)
    assert status == 2
    assert "odd.txt" in err
    assert says in err


def test_a_folder_that_is_no_language_model_is_refused(tmp_path, capsys, files) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"model_type": "no-such-type"}', encoding="utf-8")
    status, _, err = carrel(capsys, "nbce", "--model", tmp_path, "--context", files[0], "--ask", QUESTION)
    assert status == 2
    assert "does not load" in err
    assert err.count("\n") == 1


def test_without_transformers_one_sentence_says_what_to_install(tmp_path, files) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "from carrel.cli import main\n"
        f"main(['nbce', '--model', {str(tmp_path)!r}, '--context', {str(files[0])!r}, '--ask', 'who?'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "carrel: carrel nbce needs transformers: pip install 'carrel[llm]'\n"
