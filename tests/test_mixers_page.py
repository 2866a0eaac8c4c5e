"""docs/mixers.md: the code on the page runs as it stands."""

import re
from pathlib import Path

import torch

_PAGE = Path(__file__).parents[1] / "docs" / "mixers.md"


def test_the_code_of_the_page_runs_and_says_the_truth():
    blocks = re.findall(r"```python\n(.*?)```", _PAGE.read_text(encoding="utf-8"), re.S)
    names: dict[str, object] = {}
    for block in blocks:
        if "@given" not in block:
            exec(compile(block, str(_PAGE), "exec"), names)
    first, rest = names["first"], names["rest"]
    whole, _ = names["mixer"](names["x"])
    torch.testing.assert_close(torch.cat([first, rest], 1), whole)
    assert names["model"].in_dim == 10
    assert len(blocks) >= 6
