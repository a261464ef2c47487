"""Which format a model computes in where its recipe leaves that open."""

from __future__ import annotations

import pytest

from speechsum import precision
from speechsum.precision import resolved


@pytest.mark.parametrize(("gpu", "kernels", "chosen"), [
    (True, False, "bfloat16"), (False, True, "bfloat16"), (False, False, "float32"),
])  # fmt: skip
def test_bfloat16_where_it_is_fast(monkeypatch: pytest.MonkeyPatch, gpu: bool, kernels: bool, chosen: str) -> None:
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: kernels)
    assert resolved("auto", gpu=gpu) == chosen


@pytest.mark.parametrize("named", ["bfloat16", "float32"])
def test_a_named_format_is_kept(monkeypatch: pytest.MonkeyPatch, named: precision.Precision) -> None:
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: pytest.fail("nobody asked"))
    assert resolved(named, gpu=False) == named
    assert resolved(named, gpu=True) == named


def test_an_x86_without_the_instructions_has_no_kernels() -> None:
    import torch

    known = torch.cpu.get_capabilities()
    if known["architecture"] != "x86_64":
        pytest.skip(f"the names of the instructions are those of x86, not of {known['architecture']}")
    assert precision.cpu_has_bfloat16() == (known["avx512_bw"] or known["avx_ne_convert"])
