"""Which tile suits a GPU: `python -m benchmarks.tiles` times the forward and the backward of `linear_scan` for each.

The constants it tries are those at the top of `carrel/ops/_linear_scan/gpu.py`; put the best there.
"""

from __future__ import annotations

import itertools

import torch

from carrel.ops import linear_scan
from carrel.ops._linear_scan import gpu

from .timing import interleave

_SHAPE = (8, 8192, 2048)


def main() -> None:
    """One line per choice, best backward last; GB/s count 3 streams forward and 5 backward."""
    device = torch.device("cuda")
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.rand(_SHAPE, device=device).to(dtype).requires_grad_()
        b = torch.randn(_SHAPE, device=device).to(dtype).requires_grad_()
        arrived = torch.randn_like(b)
        stream = b.numel() * b.element_size() / 1e9
        lines = []
        for tile, row, warps, stages in itertools.product((32, 64, 128), (64, 128, 256), (2, 4, 8), (1, 2, 3)):
            gpu._TILE, gpu._ROW_BYTES, gpu._WARPS, gpu._STAGES = tile, row, warps, stages
            try:
                h, _ = linear_scan(a, b)
                sides = {
                    "forward": lambda a=a, b=b: linear_scan(a.detach(), b.detach()),
                    "backward": lambda a=a, b=b, h=h, g=arrived: torch.autograd.grad(h, (a, b), g, retain_graph=True),
                }
                timed = interleave(sides, rounds=3, inner=3, warmup=1, device=device)
            except Exception as error:  # a tile that does not fit is a line, not an end
                print(f"{dtype} tile {tile} row {row} warps {warps} stages {stages}: {type(error).__name__}")
                continue
            forward, backward = 3 * stream / timed[0].median, 5 * stream / timed[1].median
            lines.append((backward, f"{forward:6.0f} {backward:6.0f} GB/s"))
            lines[-1] = (backward, f"tile {tile:3} row {row:3} warps {warps} stages {stages}: {lines[-1][1]}")
        for _, line in sorted(lines):
            print(dtype, line)


if __name__ == "__main__":
    main()
