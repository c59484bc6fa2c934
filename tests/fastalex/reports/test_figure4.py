"""Figure 4 of the paper as a picture, beside the page."""

import json

import pytest
from PIL import Image

import dataloading
from fastalex.errors import ConfigurationError
from fastalex.reports.options import ReportOptions, resolve, write_report
from tests.fastalex.reports.conftest import HERE


def test_the_picture_and_its_numbers(odd_runs, odd_data, tmp_path, capsys):
    """Also of classes and files with odd names."""
    picture = tmp_path / "figure4.png"
    options = ReportOptions(odd_runs[:1], output=tmp_path / "r.html", figure4=picture, device="cpu", batch_size=8)
    write_report(HERE, resolve(options))
    assert capsys.readouterr().out.endswith(f"figure 4  {picture}\n")
    with Image.open(picture) as image:
        assert image.width > 2 * image.height  # both panels
    assert "<svg" in picture.with_suffix(".svg").read_text()
    written = json.loads(picture.with_suffix(".json").read_text())
    dataset = dataloading.Dataset(odd_data)
    assert len(written["images"]) == 8
    assert {image["class"] for image in written["images"]} == set(dataset.classes)
    assert all(len(image["predictions"]) == 3 for image in written["images"])
    assert all(
        sum(guess["percent"] for guess in image["predictions"]) == pytest.approx(100) for image in written["images"]
    )
    assert written["layer"] == "fc7"
    for row in written["neighbours"]:
        distances = [near["distance"] for near in row["neighbours"]]
        assert len(distances) == 6
        assert distances == sorted(distances)
    assert written["searched"] == written["training_images"] == dataset.count("train")


@pytest.mark.parametrize("suffix", [".png", ".svg", ".json"])
def test_no_file_beside_it_is_replaced(odd_runs, tmp_path, suffix):
    options = {"output": tmp_path / "r.html", "figure4": tmp_path / "figure4.png", "device": "cpu"}
    (tmp_path / f"figure4{suffix}").write_text("mine")
    with pytest.raises(
        ConfigurationError, match=rf"figure4{suffix} exists already; choose another file, or add --force"
    ):
        resolve(ReportOptions(odd_runs[:1], **options))
    assert resolve(ReportOptions(odd_runs[:1], **options, force=True)).figure4 == options["figure4"]
    with pytest.raises(ConfigurationError, match=r"figure4.svg must end with .png, got '.svg'"):
        resolve(ReportOptions(odd_runs[:1], **(options | {"figure4": tmp_path / "figure4.svg"}), force=True))
