"""The page as HTML: complete, closed, without requests, whatever files and classes are called."""

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

import dataloading
from fastalex.evaluation.options import EvaluateOptions
from fastalex.evaluation.options import resolve as resolve_evaluation
from fastalex.reports import page as page_module
from fastalex.reports.page import Report, render
from fastalex.reports.results import collect
from fastalex.reports.runs import Run
from fastalex.training.config import RunConfig
from fastalex.training.metrics_log import read_metrics
from tests.fastalex.reports.conftest import HERE, ODD

VOID = {"meta", "link", "img", "br", "circle", "path", "polyline"}


class Page(HTMLParser):
    """What a browser would see: tags, attributes and text. Wrongly nested tags fail."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def text_in(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


@pytest.fixture(scope="module")
def seen(page: Path) -> Page:
    return Page(page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def data(seen: Page) -> dict:
    return json.loads(next(text for text in seen.text_in("script") if text.startswith("{")))


def test_nothing_is_loaded_from_elsewhere(seen, page):
    for tag, attributes in seen.tags:
        for name, value in attributes.items():
            assert name not in ("srcset", "action", "onerror", "onload"), (tag, name)
            if name == "src":
                assert value.startswith("data:image/")
    links = [a["href"] for a in seen.all("a")]
    assert [Path(unquote(link)).name for link in links] == [
        *["config.json"] * 2,
        *["metrics.jsonl"] * 2,
        *["best.safetensors"] * 2,
    ]
    for link in links:
        assert not link.startswith("/")
        assert (page.parent / unquote(link)).is_file(), link
    assert [a["href"] for a in seen.all("link")] == ["data:,"]
    assert "url(" not in page.read_text(encoding="utf-8")


def test_names_are_text_wherever_they_stand(seen, data, odd_runs):
    assert len(seen.all("script")) == 2
    assert all(a.get("src") != "x" for a in seen.all("img"))
    assert seen.all("i") == []
    classes = {text for text in seen.text_in("th") if text in ODD}
    assert classes == set(ODD)
    alts = {a["alt"] for a in seen.all("img")}
    assert {f"an image of {name}" for name in ODD} <= alts
    titles = {a["title"] for a in seen.all("img") if a.get("title")}
    assert any("</script><img src=x onerror=alert(1)>{{1}}1.jpg" in title for title in titles)
    assert any(r"{{1}}0\udcff.jpg" in title for title in titles)
    assert "t&w#o <b>" in seen.text_in("h2")
    assert any("</script><img" in file for file in data["files"].values())
    assert sum(r"{{1}}0\udcff.jpg" in file for file in data["files"].values()) == 3  # as text, not as half a character


def test_every_image_and_figure_says_what_it_is(seen):
    assert all(a["alt"] for a in seen.all("img"))
    assert all(a["aria-label"] for a in seen.all("svg") if a.get("role") == "img")
    assert all(a.get("scope") for a in seen.all("th"))
    assert seen.text_in("title") == ["2 krizhevsky width=0.0625 lrn=False networks on images, 3 classes"]


def test_every_number_of_the_matrix_has_its_images(seen, data, odd_data, odd_runs):
    buttons = [a for a in seen.all("button") if "data-cell" in a]
    assert {a["data-cell"] for a in buttons} == set(data["cells"])
    labels = dataloading.Dataset(odd_data).labels("val")
    for number in range(2):
        cells = {key: cell for key, cell in data["cells"].items() if key.startswith(f"{number}:")}
        rows = [row for cell in cells.values() for row, _ in cell["images"]]
        assert sorted(rows) == list(range(9))
        assert sum(cell["count"] for cell in cells.values()) == 9
        for key, cell in cells.items():
            true = int(key.split(":")[1])
            assert cell["true"] == ODD[true]
            assert {int(labels[row]) for row, _ in cell["images"]} == {true}
    assert set(data["images"]) == set(data["files"]) == {str(row) for row in range(9)}
    titles = {a["title"] for a in buttons}
    assert any(title.endswith(f"of {ODD[0]} predicted as {ODD[1]}") or ODD[0] in title for title in titles)


def test_the_table_has_the_figures_of_the_files(seen):
    values = seen.text_in("td")
    for value in ("40.00 % (epoch 2)", "50.00 %", "16.0 images/s", "0:06", "9 images (val)"):
        assert values.count(value) == 2, value
    assert sum("(chance 66.67 %)" in value for value in values) == 2
    assert "top-5 error" not in " ".join(seen.text_in("th"))  # says nothing about three classes


def test_curves_have_their_points_and_dashes(seen, data):
    assert [[(line["name"], line["kind"], len(line["points"])) for line in chart] for chart in data["charts"]] == [
        [
            ("one", "training", 12),
            ("one", "validation", 3),
            ("t&w#o <b>", "training", 12),
            ("t&w#o <b>", "validation", 3),
        ]
    ] * 2
    assert data["charts"][1][1]["points"] == [[1, 60], [2, 40], [3, 50]]
    groups = [a.get("class") or "" for a in seen.all("g")]
    assert sum("dash0" in name for name in groups) == sum("dash1" in name for name in groups) == 5  # and the legend


def test_the_configuration_is_there_as_it_is(seen, odd_runs):
    assert seen.text_in("pre") == [(run / "config.json").read_text() for run in odd_runs]


def test_neighbours_say_how_many_images_were_searched(seen):
    assert any(
        "Only 7 of 12 training images of images were searched" in " ".join(text.split()) for text in seen.text_in("p")
    )


def test_a_large_matrix_is_a_list_of_its_errors(run, prepared, monkeypatch, tmp_path):
    monkeypatch.setattr(page_module, "MOST_CLASSES", 2)
    dataset = dataloading.Dataset(prepared)
    dataset.words = ["azure, sky blue", "lime", "crimson"]
    evaluation = resolve_evaluation(EvaluateOptions((run,), devices="cpu", batch_size=7)).evaluation
    results = collect(HERE, evaluation, dataset, dataset, searched=0, images=10)
    config = RunConfig.load(run)
    one = Run("run", run, config, "{}", read_metrics(run), results)
    matrix = np.array([[2, 1, 0], [0, 1, 0], [0, 3, 0]])
    cells = {(0, 0): [(0, 90.0)], (0, 1): [(1, 80.0)], (1, 1): [(3, 75.0)], (2, 1): [(5, 70.0)]}
    other = replace(one, results=replace(results, matrix=matrix, cells=cells))
    for reported in (one, other):
        seen = Page(render(Report((reported,), dataset, HERE.device, tmp_path / "page.html")))
        data = json.loads(next(text for text in seen.text_in("script") if text.startswith("{")))
        assert {a["data-cell"] for a in seen.all("button") if "data-cell" in a} == set(data["cells"])
        assert "azure, sky blue" in seen.text_in("td")
        assert "Not searched." in seen.text_in("p")
    assert [a["title"] for a in seen.all("button") if "data-cell" in a] == [
        "3 images of crimson predicted as lime",
        "1 image of azure predicted as lime",
    ]
    assert set(data["images"]) == {"1", "5"}
    assert seen.text_in("title")[0].startswith("krizhevsky width=0.0625 lrn=False, 0.2 million parameters, on ")
