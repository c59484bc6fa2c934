"""What follows from the processor's features."""

from __future__ import annotations

import pytest

from kernels.native import processor


@pytest.mark.parametrize(
    ("flags", "multiplies", "filters"),
    [
        ({"avx512_bf16", "avx2"}, True, True),
        ({"avx512_bf16", "amx_bf16"}, True, False),
        ({"bf16", "asimd"}, True, False),
        ({"avx2", "avx_ne_convert"}, False, False),
        (None, None, False),
    ],
)
def test_features_decide(
    flags: set | None, multiplies: bool | None, filters: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FASTALEX_BF16_CONV", raising=False)
    monkeypatch.setattr(processor, "_flags", lambda: flags)
    assert processor.multiplies_bf16() is multiplies
    assert processor.filters_bf16() is filters
    monkeypatch.setenv("FASTALEX_BF16_CONV", "direct")
    assert not processor.filters_bf16()
    monkeypatch.setenv("FASTALEX_BF16_CONV", "minimal")
    assert processor.filters_bf16()


def test_a_wrong_setting_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTALEX_BF16_CONV", "exact")
    with pytest.raises(ValueError, match=r"^FASTALEX_BF16_CONV must be one of minimal, direct, got 'exact'$"):
        processor.filters_bf16()
