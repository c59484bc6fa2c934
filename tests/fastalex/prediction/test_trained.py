"""Networks that carry their preprocessing and classes, and the Hugging Face hub."""

import copy
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fastalex
from fastalex.errors import ConfigurationError
from fastalex.prediction.preprocessing import UnusableImage
from fastalex.prediction.trained import AlexNet, load
from tests.fastalex.conftest import CLASSES, save_run
from tests.fastalex.evaluation.conftest import result_of

ROOT = Path(__file__).parents[3]


def test_predictions_are_those_of_an_evaluation(runs, prepared, stored):
    model = load(runs[0])
    files = [stored / f"{number}.jpg" for number in range(7)]
    for views in (1, 10):
        expected = result_of(runs[0], crops=views).predictions
        found = model.predict(files, views=views)
        assert [list(prediction.indices) for prediction in found] == expected.top_classes.tolist()
        probabilities = torch.tensor([prediction.probabilities for prediction in found])
        torch.testing.assert_close(probabilities, expected.top_probabilities, rtol=1e-4, atol=1e-6)
        assert found[0].classes == tuple(CLASSES[index] for index in found[0].indices)


def test_it_needs_the_file_and_nothing_else(runs, stored, tmp_path):
    """Whatever the file is called and wherever it lies; and a run folder means its best weights."""
    shutil.copy(runs[0] / "best.safetensors", tmp_path / "renamed.safetensors")
    model, other = load(runs[0]), load(str(tmp_path / "renamed.safetensors"))
    image = stored / "0.jpg"
    assert model.predict(image) == other.predict(image) == AlexNet.from_pretrained(runs[0]).predict([image])
    assert not model.training
    assert (model.classes, model.origin.recipe, model.origin.epoch) == (CLASSES, "test", 1)
    assert torch.equal(model(model.preprocess(image)[None]), other(other.preprocess(image)[None]))


def test_a_training_network_predicts_as_one_in_evaluation_and_goes_on_training(runs, stored):
    model = load(runs[0])
    expected = model.predict(stored / "0.jpg")
    assert model.train().predict(stored / "0.jpg") == expected
    assert model.training
    assert not torch.is_inference(next(model.parameters()))


def test_how_many_classes(runs, stored):
    model = load(runs[0])
    assert [len(model.predict(stored / "0.jpg", top=top)[0].classes) for top in (1, 2, 3, 9)] == [1, 2, 3, 3]
    with pytest.raises(ConfigurationError, match="top must be at least 1, got 0"):
        model.predict(stored / "0.jpg", top=0)
    with pytest.raises(UnusableImage, match=r"none.jpg cannot be read"):
        model.predict(["none.jpg"])


def test_more_images_than_a_batch_come_in_their_order(runs, monkeypatch):
    monkeypatch.setattr("fastalex.prediction.trained._BATCH", 3)
    model, generator = load(runs[0]), np.random.default_rng(2)
    images = [generator.integers(0, 256, (256, 256, 3), dtype=np.uint8) // (1 + number) for number in range(7)]
    found = model.predict(images)
    for image, prediction in zip(images, found, strict=True):
        (alone,) = model.predict(image)
        assert prediction.indices == alone.indices
        assert prediction.probabilities == pytest.approx(alone.probabilities, rel=1e-5)
    assert len(set(found)) == 7


def test_without_the_names_of_classes_they_are_called_by_their_numbers(prepared, stored, tmp_path):
    run = save_run(tmp_path / "run", prepared, with_record=True, classes=())
    prediction = load(run).predict(stored / "0.jpg")[0]
    assert prediction.classes == tuple(map(str, prediction.indices))


def test_a_network_that_no_file_describes_cannot_prepare_images(prepared, tmp_path):
    old = save_run(tmp_path / "old", prepared)
    for model in (fastalex.AlexNet("four-layer", 3, seed=0), load(old)):
        for use in (model.predict, lambda image, model=model: model.preprocess(image)):
            with pytest.raises(ConfigurationError, match="does not know how its images are prepared"):
                use("any.jpg")
        with pytest.raises(ConfigurationError, match="does not know how its images are prepared"):
            _ = model.preprocess.record
        with pytest.raises(ConfigurationError, match="only a network that was loaded with its preprocessing can be"):
            model.save_pretrained(tmp_path / "saved")


def test_saved_for_the_hub_and_loaded_again(runs, stored, tmp_path):
    model = load(runs[0])
    model.save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["README.md", "model.safetensors"]
    again = AlexNet.from_pretrained(tmp_path / "saved")
    for (name, one), (other_name, other) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert name == other_name
        assert torch.equal(one, other)
    assert again.predict(stored / "1.jpg") == model.predict(stored / "1.jpg")
    assert again.origin == model.origin
    card = (tmp_path / "saved" / "README.md").read_text()
    for text in (
        "library_name: fastalex", "3 classes: blue, green, red", "recipe: test, 1 epochs",
        "top-1 validation error: 50.00 %", "resized to 256 pixels, the centre 224 x 224", "mean image", "## Limits",
    ):  # fmt: skip
        assert text in card


def test_copies_and_pickles_are_whole(runs, stored):
    model = load(runs[0])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.predict(stored / "2.jpg") == model.predict(stored / "2.jpg")


def test_hooks_see_the_activations_of_a_photograph(runs, stored):
    model = load(runs[0]).hookable()
    images, seen = model.preprocess(stored / "2.jpg")[None], {}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output}))
    model(images)
    for name in ("conv1.conv", "conv1.pool", "conv2", "fc7.dropout"):
        torch.testing.assert_close(seen[name], model.activations(images, name)[name])
    (found,), (expected,) = model.predict(stored / "2.jpg"), load(runs[0]).predict(stored / "2.jpg")
    assert found.classes == expected.classes
    assert found.probabilities == pytest.approx(expected.probabilities, rel=1e-4)


def test_what_cannot_be_loaded(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "other").mkdir()
    for source, message in (
        (tmp_path / "none", "no such run folder or weights file"),
        ("none.safetensors", "no such run folder or weights file: none.safetensors"),
        (tmp_path, "has no best.safetensors yet: it has not saved a checkpoint"),
        (tmp_path / "other", "other is not a run folder: it has no config.json"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            load(source)
    (tmp_path / "runs" / "photos").mkdir(parents=True)
    (tmp_path / "runs" / "photos" / "config.json").touch()
    monkeypatch.chdir(tmp_path)
    for wrong in ("runs/phtoos", "runs"):  # not a name on the hub
        with pytest.raises(ConfigurationError, match=r"; there are the runs runs/photos$"):
            load(wrong)
    for device, message in (
        ("gpu", "must be cpu or cuda, .*, got 'gpu'"),
        ("cuda:99", "device 99 does not exist"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            load("nowhere", device=device)
    with pytest.raises(ConfigurationError, match="no such file or folder: nobody/nothing; and the hub did not give"):
        AlexNet.from_pretrained("nobody/nothing", local_files_only=True)


def test_without_huggingface_hub_one_line_says_what_to_install(runs, stored):
    program = """
import sys
sys.modules["huggingface_hub"] = None
import fastalex
model = fastalex.load(sys.argv[1])
print(model.predict(sys.argv[2])[0].classes)
for call in (lambda: model.save_pretrained("x"), lambda: model.push_to_hub("x"), lambda: fastalex.load("a/b")):
    try:
        call()
    except fastalex.ConfigurationError as error:
        print(error)
"""
    arguments = [sys.executable, "-c", program, str(runs[0]), str(stored / "0.jpg")]
    out = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(out) == 4
    assert all("huggingface_hub is not installed; install it with: " in line for line in out[1:])
