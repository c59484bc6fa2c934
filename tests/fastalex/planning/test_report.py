"""The report of the plan, counted and measured."""

import pytest
import torch

from fastalex.parallel.launch import run_workers
from fastalex.parallel.world import World
from fastalex.planning.options import PlanOptions, resolve
from fastalex.planning.report import report
from fastalex.planning.speed import known_speeds
from fastalex.training.options import NetworkOptions

HERE = World(0, 1, torch.device("cpu"))


@pytest.mark.parametrize("devices", ["0", "0,1", "cpu,cpu"])
def test_the_tables_fit_80_columns(devices, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    report(HERE, resolve(PlanOptions(devices=devices, device_memory=3, precision="bf16")))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    # No cell is broken into two lines.
    assert sum(line.startswith(("│ conv", "│ fc")) for line in lines) == 8
    assert sum(line.startswith(("│ NVIDIA", "│ AMD", "│ Intel")) for line in lines) == len(known_speeds("krizhevsky"))
    assert not any(line.startswith("│" + 20 * " ") for line in lines)


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


def test_the_speed_is_measured_with_the_real_step(capsys):
    network = NetworkOptions(width=1 / 16, lrn=False)
    report(HERE, resolve(PlanOptions(network, devices="cpu", batch_size=4, measure=True)))
    out = capsys.readouterr().out
    assert "This machine: 20 training steps" in out
    assert "Known speeds are of networks without variations" in out


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
