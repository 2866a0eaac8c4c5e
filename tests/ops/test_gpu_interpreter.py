"""The tests of the Triton kernels, run in Triton's interpreter, in a process of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="test_gpu_backend.py runs here as it is, on the device")
def test_the_triton_kernels_equal_the_reference_in_the_interpreter(passes_in_tritons_interpreter):
    passes_in_tritons_interpreter(Path(__file__).with_name("test_gpu_backend.py"))
