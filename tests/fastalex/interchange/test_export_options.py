"""``python -m fastalex.export`` as a user types it."""

import json
import sys

import onnxruntime
import pytest
import safetensors.torch
import torch

from fastalex.interchange import exporting
from fastalex.interchange.exporting import relative_difference
from fastalex.network.weights import NetworkSpec, load_model
from tests.fastalex.commands import command, command_here, refused
from tests.fastalex.interchange.exported_networks import save


def printed_lines(out: str) -> list[str]:
    """The two lines of Python that run the network."""
    first, second = out.splitlines()[-2:]
    assert first.startswith("run it")
    return [first.removeprefix("run it").strip(), second.strip()]


def test_a_run_is_exported_beside_its_weights_and_runs_as_printed(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    model, _ = load_model(save(run / "best.safetensors"))
    code, out, err = command(tmp_path, "fastalex.export", "run", "--to", "onnx")
    assert code == 0, err
    assert "run/best.onnx (" in out
    assert "run/best.onnx.json (" in out
    assert "run/best.onnx.mean.npy (18.9 KiB)" in out
    assert "with the network on 2 random images: outputs differ by" in out
    images = torch.randn(3, 3, 32, 32) * 60
    names = {"onnxruntime": onnxruntime, "images": images.numpy()}
    exec("\n".join(printed_lines(out)).replace("run/", f"{tmp_path}/run/"), names)
    with torch.no_grad():
        assert relative_difference(torch.from_numpy(names["logits"]), model(images)) < 1e-5


def test_a_program_with_preprocessing_runs_as_printed(tmp_path):
    save(tmp_path / "w.safetensors", kind="colour")
    arguments = ["w.safetensors", "--to", "pt2", "--with-preprocessing", "-o", "net.pt2"]
    code, out, err = command_here(tmp_path, "fastalex.export", *arguments)
    assert code == 0, err
    names = {"torch": torch, "images": torch.zeros(2, 3, 40, 40, dtype=torch.uint8)}
    exec("\n".join(printed_lines(out)).replace("net.pt2", f"{tmp_path}/net.pt2"), names)
    assert names["probabilities"].sum(1).tolist() == pytest.approx([1, 1])
    assert "uint8, N x 3 x 40 x 40, RGB" in out
    assert not (tmp_path / "net.pt2.mean.npy").exists()


def test_existing_files_stay_unless_forced(tmp_path):
    save(tmp_path / "w.safetensors")
    (tmp_path / "net.onnx.json").write_text("mine")
    arguments = ["fastalex.export", "w.safetensors", "--to", "onnx", "-o", "net.onnx"]
    message = refused(tmp_path, *arguments)
    assert message == "error: net.onnx.json exists already; choose another --output, or add --force"
    assert (tmp_path / "net.onnx.json").read_text() == "mine"
    assert not (tmp_path / "net.onnx").exists()
    code, _, err = command_here(tmp_path, *arguments, "--force")
    assert code == 0, err
    assert json.loads((tmp_path / "net.onnx.json").read_text())["format"] == "onnx"


def test_a_file_of_an_earlier_version_has_no_mean(tmp_path):
    spec = NetworkSpec("four-layer", 3, classes=("ant", "bee", "cat"))
    weights = {name: parameter.detach().contiguous() for name, parameter in spec.build(seed=0).named_parameters()}
    safetensors.torch.save_file(weights, tmp_path / "old.safetensors", {"fastalex": spec.to_json()})
    arguments = ["fastalex.export", "old.safetensors", "--to", "onnx"]
    message = refused(tmp_path, *arguments, "--with-preprocessing")
    assert "old.safetensors is of an earlier version and does not hold the mean of its images" in message
    code, _, err = command_here(tmp_path, *arguments)
    assert code == 0, err
    about = json.loads((tmp_path / "old.onnx.json").read_text())
    assert about["preparation"]["mean"] == {"kind": "unknown"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("nowhere", "--to", "onnx"), "error: no such run folder or weights file: nowhere"),
        (("empty", "--to", "onnx"), "error: empty is not a run folder: it has no config.json"),
        (("w.safetensors",), "error: missing --to"),
        (("w.safetensors", "--to", "tflite"), "--to must be one of onnx, pt2, timm-safetensors, torchvision"),
        (("w.safetensors", "--to", "pt2", "-o", "a.onnx"), "error: --output must end with .pt2, got a.onnx"),
        (("w.safetensors", "--to", "torchvision"), "alexnet is the network owt; four-layer has other layers: export"),
        (("w.safetensors", "--to", "timm-safetensors"), "alexnet is the network owt; four-layer has other layers"),
        (
            ("w.safetensors", "--to", "torchvision", "--with-preprocessing"),
            "--with-preprocessing is not possible with --to torchvision, which holds weights only",
        ),
        (("w.safetensors", "--to", "onnx", "-o", "no/a.onnx"), "no/a.onnx: the folder no does not exist; create it"),
        (("w.safetensors", "--to", "onnx", "-o", "d.onnx"), "d.onnx cannot be written: Is a directory; choose another"),
    ],
)
def test_what_is_refused_in_one_line(tmp_path, arguments, expected):
    save(tmp_path / "w.safetensors")
    (tmp_path / "empty").mkdir()
    (tmp_path / "d.onnx").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    assert expected in refused(tmp_path, "fastalex.export", *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_missing_package_is_named_before_the_weights_are_read(tmp_path, monkeypatch):
    save(tmp_path / "w.safetensors")
    monkeypatch.delattr(exporting, "load_model")
    monkeypatch.setitem(sys.modules, "onnx", None)
    message = refused(tmp_path, "fastalex.export", "w.safetensors", "--to", "onnx")
    assert message.startswith("error: onnx is not installed; install it with: ")
    assert message.endswith("-m pip install 'fastalex[export]'")


@pytest.fixture
def small_owt(monkeypatch):
    """Take a narrow owt for torchvision's network, whose own width is too large for tests of files."""
    for name in ("exporting", "torchvision_export"):
        module = sys.modules[f"fastalex.interchange.{name}"]
        monkeypatch.setattr(module, "check_torchvision", lambda spec: None)


def test_weights_for_torchvision_and_timm(tmp_path, small_owt):
    save(tmp_path / "w.safetensors", "owt", "colour", width=0.05)
    code, out, err = command_here(tmp_path, "fastalex.export", "w.safetensors", "--to", "torchvision")
    assert code == 0, err
    load, run = printed_lines(out)
    assert load == 'model = torchvision.models.alexnet(num_classes=3); model.load_state_dict(torch.load("w.pth"))'
    assert run.startswith("logits = model.eval()(torchvision.transforms.Normalize([0.")
    assert "[0.229, 0.224, 0.225])(images))" in run
    about = json.loads((tmp_path / "w.pth.json").read_text())
    assert about["normalise"]["mean"] == pytest.approx(
        [value / 255 for value in about["preparation"]["mean"]["values"]]
    )
    assert len(torch.load(tmp_path / "w.pth")) == 16

    code, out, err = command_here(tmp_path, "fastalex.export", "w.safetensors", "--to", "timm-safetensors")
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "w-timm").iterdir()) == ["config.json", "model.safetensors"]
    assert 'safetensors.torch.load_file("w-timm/model.safetensors")' in printed_lines(out)[0]
    assert json.loads((tmp_path / "w-timm" / "config.json").read_text())["architecture"] == "alexnet"


def test_the_weights_themselves_are_never_replaced(tmp_path, small_owt):
    folder = tmp_path / "net"
    folder.mkdir()
    before = save(folder / "model.safetensors", "owt", "colour", width=0.05).read_bytes()
    arguments = ["net/model.safetensors", "--to", "timm-safetensors", "-o", "net", "--force"]
    message = refused(tmp_path, "fastalex.export", *arguments)
    assert message == "error: net/model.safetensors holds the weights to export; choose another --output"
    assert (folder / "model.safetensors").read_bytes() == before


def test_a_mean_image_has_no_transform(tmp_path, small_owt):
    save(tmp_path / "w.safetensors", "owt", width=0.05)
    code, out, err = command_here(tmp_path, "fastalex.export", "w.safetensors", "--to", "torchvision")
    assert code == 0, err
    assert "(images / torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1))" in printed_lines(out)[1]
    assert (tmp_path / "w.pth.mean.npy").exists()
    message = refused(tmp_path, "fastalex.export", "w.safetensors", "--to", "timm-safetensors")
    assert "timm's config.json holds one mean per colour, these weights have a mean image" in message
