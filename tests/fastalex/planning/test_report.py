"""The report of the plan, counted and measured."""

import itertools
import json
import re
import signal
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from fastalex.errors import ConfigurationError, Interrupted
from fastalex.network.footprint import layer_costs
from fastalex.options.training import NetworkOptions
from fastalex.parallel.launch import run_workers
from fastalex.parallel.stage_memory import stage_memory
from fastalex.parallel.world import World
from fastalex.planning import speed
from fastalex.planning.options import GIB, PlanOptions, resolve
from fastalex.planning.report import MIB, report
from fastalex.planning.speed import known_speeds, paper_speeds

HERE = World(0, 1, torch.device("cpu"))


@pytest.mark.parametrize("devices", ["0", "0,1", "cpu,cpu"])
def test_the_tables_fit_80_columns(devices, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    report(HERE, resolve(PlanOptions(devices=devices, device_memory=3, precision="bf16")))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    # No cell is broken into two lines.
    assert sum(line.startswith(("│ conv", "│ fc")) for line in lines) == 8
    assert sum(line.startswith(("│ NVIDIA", "│ AMD", "│ Intel", "│ Xeon")) for line in lines) == len(
        known_speeds("krizhevsky")
    )
    assert not any(line.startswith("│" + 20 * " ") for line in lines)
    # No two columns have the same name.
    headers = [re.split(r"\s*┃\s*", line)[1:-1] for line in lines if line.startswith("┃")]
    assert len(headers) == 3
    assert all(len(set(names)) == len(names) for names in headers)


def test_the_report_counts_memory_and_knows_speeds(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    report(HERE, resolve(PlanOptions(devices="0,1", device_memory=3, batch_size=128)))
    out = capsys.readouterr().out
    for text in (
        "conv1 to conv2",
        "60,965,224",
        "222 to 267",
        "time for 91 epochs",
        "5.06 to 6.07",
        "NVIDIA H100 80GB HBM3 │",
        "8 micro-batches",
    ):
        assert text in out


def rows_of(out: str) -> dict[str, list[str]]:
    """The cells of all tables by their first one."""
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if line.startswith("│")]
    return {name: cells for name, *cells in rows}


@pytest.mark.parametrize(
    ("devices", "implementation", "micro_batches"), [("0,1", "triton", 8), ("cpu,cpu", "native", 4)]
)
def test_every_figure_is_that_of_its_layer_or_stage(capsys, monkeypatch, devices, implementation, micro_batches):
    monkeypatch.setenv("COLUMNS", "120")
    plan = resolve(
        PlanOptions(devices=devices, device_memory=1, batch_size=128, precision="bf16", epochs=3, images=7000)
    )
    layers = layer_costs(plan.architecture, "bf16", implementation)
    stages = stage_memory(plan.architecture, layers, plan.parallel.split, micro_batches, "eager-1f1b", "bf16")
    # One image more than the batch fits into the first device, one less into the second.
    batches = (129, 127)
    memory = tuple(stage.total(batch) + 1000 for stage, batch in zip(stages, batches, strict=True))
    report(HERE, replace(plan, memory=memory))
    rows = rows_of(capsys.readouterr().out)
    macs = sum(layer.macs for layer in layers)
    conv2 = layers[1]
    assert rows["conv2"] == [
        "256x13x13",
        "307,456",
        f"{100 * 307_456 / 60_965_224:.2f} %",
        f"{conv2.macs / 1e6:,.1f}",
        f"{100 * conv2.macs / macs:.1f} %",
        f"{conv2.kept_bytes / 1024:,.0f}",
    ]
    expected: dict[str, list[float]] = {
        "weights, gradients, momentum": [3 * stage.weights for stage in stages],
        "low-precision copies": [stage.copies for stage in stages],
        "activations": [128 * stage.activations * stage.in_flight for stage in stages],
        "images, boundaries, deferred": [128 * stage.whole_batch for stage in stages],
        "total": [stage.total(128) for stage in stages],
        "device memory": list(memory),
    }
    for name, values in expected.items():
        decimals = [0 if value >= 10 * MIB else 1 for value in values]
        assert rows[name] == [f"{v / MIB:,.{d}f}" for v, d in zip(values, decimals, strict=True)], name
    assert rows["fits"] == ["yes", "no"]
    assert rows["largest batch"] == ["128", f"{127 - 127 % micro_batches}"]
    largest = [stage.largest_batch(3 * GIB) for stage in stages]
    assert rows["largest on a GTX 580 (3 GiB)"] == [f"{batch - batch % micro_batches:,}" for batch in largest]
    slow, fast = (7000 * 3 / speed / 60 for speed in paper_speeds())  # minutes
    assert rows["two GTX 580"][-1] == f"{fast:.2f} to {slow:.2f}"


def test_the_speed_is_measured_with_the_real_step(capsys, monkeypatch, tmp_path):
    """On a clock that goes on by a second whenever it is read: at both ends of each round of four steps."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    network = NetworkOptions(width=1 / 16, lrn=False)
    drawing = tmp_path / "network.svg"
    options = PlanOptions(network, devices="cpu", batch_size=4, precision="fp32", measure=True, draw=drawing)
    report(HERE, resolve(options))
    out = capsys.readouterr().out
    assert out.endswith(f"written: {drawing}\n")
    assert "a training step of 4 images, measured" in drawing.read_text()
    assert not torch.backends.cudnn.allow_tf32  # the libraries round as the precision says
    assert rows_of(out)["this machine"][:2] == ["cpu, fp32, batch 4", "16.0"]
    assert "This machine: 20 training steps" in out
    assert "Known speeds are of networks without variations" in out


def test_a_measurement_can_be_interrupted(capsys, monkeypatch):
    def told_to_stop(self):
        steps.append(len(steps) + 1)
        self.signal_number = signal.SIGINT if len(steps) == 3 else 0
        return bool(self.signal_number)

    steps = []
    monkeypatch.setattr(World, "stop_requested", told_to_stop)
    plan = resolve(PlanOptions(NetworkOptions(width=1 / 16, lrn=False), devices="cpu", batch_size=4, measure=True))
    with pytest.raises(Interrupted, match=r"^interrupted; nothing was measured$") as stopped:
        report(World(0, 1, torch.device("cpu")), plan)
    assert stopped.value.signal_number == signal.SIGINT
    assert steps == [1, 2, 3]
    assert capsys.readouterr() == ("", "measuring 26 training steps\n")


def test_two_devices_measure_together(capfd):
    network = NetworkOptions(width=1 / 16, lrn=False)
    plan = resolve(PlanOptions(network, devices="cpu,cpu", batch_size=4, measure=True))
    run_workers(report, plan, plan.devices)
    assert capfd.readouterr().out.count("this machine") == 1


@pytest.mark.parametrize(("precision", "copies"), [("fp32", 0), ("bf16", 1)])
def test_no_row_of_the_memory_is_zero(capsys, monkeypatch, precision, copies):
    monkeypatch.setenv("COLUMNS", "80")
    narrow = NetworkOptions(width=1 / 16, init="scaled")
    report(HERE, resolve(PlanOptions(narrow, devices="0,1", device_memory=3, batch_size=8, precision=precision)))
    out = capsys.readouterr().out
    table = out[out.index("memory in MiB") : out.index("│ device memory")].splitlines()
    rows = [line.split("│")[2:-1] for line in table if line.startswith("│") and "cuda" not in line]
    assert len(rows) == 4 + copies
    assert all(any(float(value.replace(",", "")) for value in row) for row in rows)
    assert "3,072" in out


@pytest.mark.parametrize(
    ("images", "unit", "fastest", "slowest"),
    [(1_281_167, "days", "5.06", "6.07"), (50_000, "hours", "4.74", "5.68"), (300, "minutes", "1.70", "2.05")],
)
def test_short_trainings_are_told_in_short_units(capsys, images, unit, fastest, slowest):
    narrow = NetworkOptions(width=0.5)  # no other speeds are known
    report(HERE, resolve(PlanOptions(narrow, devices="0", device_memory=3, images=images)))
    out = capsys.readouterr().out
    assert f"{fastest} to {slowest}" in out
    assert out[out.index("images/s") :].splitlines()[0].split()[2] == unit


def test_all_numbers_are_written_as_json(capsys, tmp_path):
    path = tmp_path / "plan.json"
    plan = resolve(PlanOptions(devices="0,1", device_memory=3, batch_size=128, json=path))
    report(HERE, plan)
    out, written = capsys.readouterr().out, json.loads(path.read_text())
    assert out.splitlines()[-1] == f"written: {path}"
    assert f"{written['parameters']:,}" in out
    assert f"{written['training_macs_per_image'] / 1e6:,.1f}" in out
    for stage in written["stages"]:
        assert f"{stage['memory'] / MIB:,.0f}" in out
        assert f"{stage['largest_batch_in_3_gib'] // written['micro_batches'] * written['micro_batches']:,}" in out
    assert [stage["device"] for stage in written["stages"]] == ["cuda:0", "cuda:1"]
    assert [name for stage in written["stages"] for name in stage["blocks"]] == list(plan.architecture.block_names)
    assert written["images_per_second"] is None
    with pytest.raises(ConfigurationError, match=r"plan.json exists already; choose another file, or add --force"):
        resolve(PlanOptions(devices="cpu", json=path))
