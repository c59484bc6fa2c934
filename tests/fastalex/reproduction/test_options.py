"""The command line of a reproduction."""

import pytest

from fastalex.reproduction.job import TARGETS
from fastalex.reproduction.options import ReproduceOptions, resolve
from tests.fastalex.commands import refused


def test_targets_come_in_the_papers_order(animals, tmp_path):
    options = ReproduceOptions(("claims", "table2", str(animals)), output=tmp_path / "out", devices="cpu")
    assert resolve(options).targets == ("table2", "claims")
    job = resolve(ReproduceOptions((str(animals), "all"), devices="cpu"))
    assert job.targets == tuple(TARGETS)
    assert str(job.output) == "reproduction/images"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{data}"], "say what to reproduce, before the data: table1, table2, figure1,"),
        (["table1"], "table1 needs data: name prepared data sets or class folders, such as prepared/ILSVRC2012"),
        (["table3", "{data}"], "table3 is neither a folder nor anything to reproduce; choose from table1, table2,"),
        (["all", "synthetic"], "synthetic images are noise, so there is nothing to reproduce; name images"),
        (["all", "no/where"], "no such folder: no/where; name a prepared data set, or a folder with"),
        (["all", "{data}", "{data}"], "is the same data set as one before it; name each once"),
        (["all", "{data}", "--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["all", "{data}", "--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["all", "{data}", "--lr", "nan"], "--lr must be positive, got nan"),
        (["all", "{data}", "--width", "0"], "width"),
        (["all", "{data}", "--devices", "cpu,7"], "--devices must be all GPUs or all CPU, got cpu,cuda:7"),
        (["all", "{data}", "--output", "{data}"], "holds no reproduction; choose another --output"),
        (["all", "{data}", "--batch-size", "999"], "fewer than one batch of 999"),
    ],
)
def test_what_makes_no_sense_is_one_line(animals, tmp_path, words, message):
    given = [word.format(data=animals) for word in words]
    assert message in refused(tmp_path, "fastalex.reproduce", *given)
    assert not list(tmp_path.iterdir())
