"""Networks as programs of torch.export, which need neither fastalex nor kernels."""

import io
import subprocess
import sys
import warnings

import pytest
import torch

from fastalex.interchange.exported_program import DESCRIPTION, build_program
from fastalex.interchange.exporting import relative_difference
from fastalex.interchange.preprocessing_module import StoredPreprocessing
from tests.fastalex.interchange.exported_networks import ROUNDING, network, record
from tests.fastalex.network.inputs import images

# Runs a program where no package of ours can be imported.
STRANGER = """
import sys

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("fastalex", "kernels", "dataloading"):
            raise ImportError(f"{name} is not for strangers")

sys.meta_path.insert(0, Refusing())
import torch
program = torch.export.load("network.pt2").module()
torch.save([program(images) for images in torch.load("images.pt")], "outputs.pt")
assert "fastalex" not in sys.modules
"""


def test_a_program_runs_in_a_process_without_our_packages(tmp_path):
    model, about = network("krizhevsky"), record(240, 224)
    preprocessing = StoredPreprocessing(about, 224)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        content = build_program(model, preprocessing, "a network")
    (tmp_path / "network.pt2").write_bytes(content)
    generator = torch.Generator().manual_seed(1)
    mean = torch.from_numpy(about.mean).permute(2, 0, 1)
    stored = (mean + 16 * torch.rand(8, 3, 240, 240, generator=generator) - 8).to(torch.uint8)
    torch.save([stored[:1], stored], tmp_path / "images.pt")
    subprocess.run([sys.executable, "-P", "-c", STRANGER], cwd=tmp_path, env={}, check=True)
    with torch.no_grad():
        expected = model((stored - mean)[:, :, 8:232, 8:232]).softmax(1)
    assert expected.max() < 0.999  # probabilities of 0 and 1 would hide differences
    for found in torch.load(tmp_path / "outputs.pt"):
        assert relative_difference(found, expected[: len(found)]) < ROUNDING
    files = {DESCRIPTION: ""}
    torch.export.load(io.BytesIO(content), extra_files=files)
    assert files[DESCRIPTION] == "a network"


@pytest.mark.parametrize(("name", "variation"), [("owt", {}), ("separate", {"lrn": False})])
def test_networks_of_other_kinds_with_any_batch_size(name, variation):
    model = network(name, **variation)
    parameters = {key: value.clone() for key, value in model.named_parameters()}
    program = torch.export.load(io.BytesIO(build_program(model))).module()
    inputs = images(8, model.architecture.image_size)
    with torch.no_grad():
        expected = model(inputs)
        for count in (1, 8):
            assert relative_difference(program(inputs[:count]), expected[:count]) < ROUNDING
    state = program.state_dict()
    assert all(torch.equal(state[key], value) for key, value in parameters.items())
    assert all(parameter.requires_grad for parameter in model.parameters())
