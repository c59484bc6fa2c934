"""The prediction from a committed record."""

import json
import sys

import pipeline
import pytest
from pipelining.block_costs import BlockCost


@pytest.fixture
def predict(monkeypatch, tmp_path):
    """`bench/pipeline.py --predict`, with one record in a temporary folder."""
    monkeypatch.setenv("COLUMNS", "200")

    # 4 images take 1 s, the update 1 s, and the gradients are 2 GB.
    costs = [BlockCost(name, ((2, 0.25), (4, 0.5)), ((4, 0.0),), 0.5, 10, 10**9) for name in ("a", "b")]
    record = {
        "device": "Some GPU 80GB", "date": "2026-01-01",
        "settings": {"precision": "bf16", "batch_size": 4, "costs": [cost.to_json() for cost in costs]},
    }  # fmt: skip
    (tmp_path / "some-gpu-80gb").mkdir()
    (tmp_path / "some-gpu-80gb" / "pipeline_one.json").write_text(json.dumps(record))

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["pipeline.py", "--output", str(tmp_path), *arguments])
        pipeline.main()

    return run


def test_replicas_are_predicted_from_the_costs_of_one_device(predict, capsys):
    predict("--predict", "Some GPU:2,4", "--per-device", "4", "--machine", "2", "--within", "2", "--network", "1")
    said = " ".join(capsys.readouterr().out.split())
    assert "4 images per device and step, with costs measured for up to 4" in said
    assert "at 2 GB/s within machines of 2 devices and 1 GB/s between them" in said
    # 2 s a step alone; 2 x 1/2 x 2 GB at 2 GB/s; 2 x 3/4 x 2 GB at 1 GB/s
    for row in ("1 │ 4 │ 2 │ 100%", "2 │ 8 │ 3 │ 67%", "4 │ 16 │ 3 │ 40%"):
        assert row in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("GPU:2,x", "--predict must be a device and numbers of devices, such as H100:2,8,64, got 'GPU:2,x'"),
        ("GPU", "such as H100:2,8,64, got 'GPU'"),
        ("GPU:0", "such as H100:2,8,64, got 'GPU:0'"),
        ("H100:2", "no record of H100 in "),
    ],
)
def test_bad_predictions_are_refused(predict, capsys, text, message):
    with pytest.raises(SystemExit) as end:
        predict("--predict", text)
    assert end.value.code == 2
    assert message in capsys.readouterr().err
