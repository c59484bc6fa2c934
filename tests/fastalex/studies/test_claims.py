"""The claims, their data file, and the page that shows them."""

import re
import sys

import pytest

from fastalex import study as command_of_studies
from fastalex.errors import ConfigurationError
from fastalex.network.variation import Variation, build_architecture
from fastalex.studies.claims import PUBLISHED_ERRORS, STUDIES, TRAINING_ERROR_GOAL, find_study, read_claims
from fastalex.studies.comparison import MARKS, NOT_LEARNED
from tests.fastalex.studies import claims_page


def test_what_the_variants_are():
    networks = {
        (chosen.name, variant.name): Variation(**{k: v for k, v in variant.network.items() if k != "arch"})
        for chosen in STUDIES.values()
        for variant in chosen.variants
    }
    assert networks["depth", "without conv4"].without == ("conv4",)
    assert networks["depth", "with conv6"].conv6
    assert not networks["lrn", "no lrn"].lrn
    assert not networks["overlapping", "no overlapping, 2x2"].overlapping
    assert networks["dropout", "no dropout"].dropout == 0.0
    assert networks["width", "width x 0.5"].width == 0.5
    base = find_study("dropout").variants[0].network
    assert build_architecture(variation=Variation(**base)) == build_architecture()
    assert find_study("activation").variants[0].network == {"activation": "relu"}


def test_the_page_shows_the_claims_and_the_records():
    """After one of them has changed: python -m tests.fastalex.studies.claims_page."""
    page = claims_page.PAGE.read_text()
    assert page == claims_page.with_tables(page)


def test_published_figures_are_the_papers():
    """Tables 1 and 2, and the differences of section 3 with the errors behind them."""
    assert str(PUBLISHED_ERRORS["network-2010"]) == "37.5 / 17.0"
    assert str(PUBLISHED_ERRORS["sift-fisher-vectors-2012"]) == "- / 26.2"
    assert TRAINING_ERROR_GOAL == 25
    published = {variant.name: variant.published for name in ("lrn", "towers") for variant in STUDIES[name].variants}
    assert str(published["no lrn"]) == "+1.4 / +1.2"
    assert published["half, one tower"].details == (
        "paper, section 3.2; 2012 source, configuration 145-half: 39.17 / 18.23 against 37.47 / 17.00, 10 views, "
        "ILSVRC-2010 test"
    )
    for study in STUDIES.values():
        for variant in study.variants:
            difference = variant.published
            if difference is not None and difference.error is not None:
                error, base = difference.error, difference.base_error
                assert difference.top1 == pytest.approx(error.top1 - base.top1, abs=0.051)
                assert difference.top5 == pytest.approx(error.top5 - base.top5, abs=0.051)
                assert (error.images, error.views) == (base.images, base.views)


SMALL = """
training_error_goal = 25
[errors]
old = { method = "old", top5 = 26.2, images = "some", source = "paper" }
[studies.depth]
claim = "Depth matters."
question = "Does depth matter?"
variants = [
    { name = "base" },
    { name = "without", network = { without = ["conv3"] }, published = { top1 = 2, source = "paper" } },
]
[[others]]
claim = "Another."
commands = ["plan"]
"""


def test_claims_are_read_with_their_types():
    claims = read_claims(SMALL)
    variant = claims.studies["depth"].variants[1]
    assert variant.network == {"without": ("conv3",)}
    assert (variant.published.top1, variant.published.top5) == (2.0, None)
    assert claims.others[0].commands == ("plan",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("training_error_goal = 25\n", "", "the top level lacks the key 'training_error_goal'"),
        ("training_error_goal = 25\n", "goal = 1\n", "the top level has the unknown key 'goal'; choose from"),
        ("= 25\n", '= "much"\n', "training_error_goal must be a float, got 'much'"),
        ("top5 = 26.2", "top5 = true", "errors.old.top5 must be a float, got True"),
        ("top5 = 26.2", "top9 = 26.2", "errors.old has the unknown key 'top9'; choose from method, images,"),
        ("claim = \"Depth matters.\"\n", "", "studies.depth lacks the key 'claim'"),
        ("question = \"Does depth matter?\"\n", "", "studies.depth lacks the key 'question'"),
        ("claim = \"Depth matters.\"\n", "claim = 1\n", "studies.depth.claim must be a str, got 1"),
        ("{ without =", "{ less =", r"studies.depth.variants\[1\].network has the unknown option 'less'"),
        ("network = { without = [\"conv3\"] }", "network = 3", r"studies.depth.variants\[1\].network must be a table"),
        ('name = "without"', 'name = ["a"]', r"variants\[1\].name must be a str, got \['a'\]"),
        ("top1 = 2,", 'top1 = 2, error = "new",', r"variants\[1\].published names the unknown error 'new'"),
        ("published = {", "publisht = {", r"studies.depth.variants\[1\] has the unknown key 'publisht'"),
        ("claim = \"Depth matters.\"\n", 'claim = "x"\nmeasure = "time"\n', "measure must be 'error' or 'epochs', got"),
        ('commands = ["plan"]', 'commands = "plan"', r"others\[0\].commands must be an array, got 'plan'"),
        ('commands = ["plan"]', "commands = [1]", r"others\[0\].commands\[0\] must be a str, got 1"),
        ('commands = ["plan"]', 'commands = []\ncomparisons = [["old"]]', "comparisons must hold pairs of error names"),
        ("[[others]]", "[others]", "others must be an array of tables"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_explained(old, new, message):
    assert old in SMALL
    with pytest.raises(ConfigurationError, match=message):
        read_claims(SMALL.replace(old, new))


def test_every_study_asks_a_question():
    questions = [study.question for study in STUDIES.values()]
    assert all(question.endswith("?") for question in questions)
    assert len(set(questions)) == len(questions)


def test_former_names_still_work(tmp_path):
    assert find_study("overlap") is find_study("overlapping")
    names = [name for study in STUDIES.values() for name in study.names]
    assert len(set(names)) == len(names)
    for study in STUDIES.values():
        given = [name for variant in study.variants for name in (variant.name, variant.formerly) if name]
        assert len(set(given)) == len(given)
    lrn = find_study("lrn").variants[1]
    assert lrn.folder_in(tmp_path) == tmp_path / "no-lrn"
    (tmp_path / "without-any").mkdir()
    assert lrn.folder_in(tmp_path) == tmp_path / "without-any"
    assert find_study("dropout").variants[0].folder_in(tmp_path) == tmp_path / "dropout-0.5"


def test_the_page_explains_the_marks():
    page = " ".join(claims_page.PAGE.read_text().split())
    for mark, meaning in MARKS.items():
        assert f"`{mark}`: {meaning}" in page
    assert f"`{NOT_LEARNED}`: " in page


def test_the_page_tells_which_networks_did_not_learn():
    """Of ten classes and 250 images: guessing has 90 %, and learning begins 5.7 points below."""
    runs = [{"top1_error": error} for error in (84.0, 84.4, 89.6)]
    data = {"classes": 10, "val": 250}
    assert claims_page.failures({"runs": runs}, data) == "2 of 3 did not learn"
    assert claims_page.failures({"runs": runs[1:]}, data) == "did not learn"
    assert claims_page.failures({"runs": runs[:1]}, data) == ""


def test_unknown_studies_are_refused():
    with pytest.raises(ConfigurationError, match=re.escape("unknown study 'deep'; choose one of depth, width")):
        find_study("deep")


def test_the_help_names_every_study(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["study", "--help"])
    with pytest.raises(SystemExit):
        command_of_studies.main()
    _, _, names = capsys.readouterr().out.partition("The claim: ")
    assert set(re.split(r"\W*,\s*|\s+or\s+", names.partition(".")[0])) == set(STUDIES)
