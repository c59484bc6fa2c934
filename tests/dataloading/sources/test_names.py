"""Names of data sets, splits and classes, and lists of names in messages."""

from pathlib import Path

import pytest

from dataloading import DatasetError
from dataloading.sources.names import (
    check_distinct,
    classes_in_words,
    name_of_set,
    natural_key,
    split_in,
    split_of_folder,
)
from dataloading.sources.notes import first_few


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-000000.tar", "train"),
        ("imagenet_TRAINING.tar", "train"),
        ("set-validation-000.tar", "val"),
        ("Valid2.tar", "val"),
        ("my.val.tar", "val"),
        ("testing.tar", "test"),
        ("train-and-test.tar", "train"),
        ("constraint.tar", None),
        ("trainer.tar", None),
        ("value.tar", None),
        ("interval.tar", None),
        ("latest.tar", None),
        ("tests.tar", None),
    ],
)
def test_a_split_is_a_word_of_its_own_in_a_name(name, split):
    assert split_in(name) == split


@pytest.mark.parametrize(
    ("name", "split"),
    [("Train", "train"), ("validation", "val"), ("TEST", "test"), ("train2", None), ("my-train", None), ("", None)],
)
def test_a_folder_of_a_split_has_its_name_alone(name, split):
    assert split_of_folder(name) == split


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/data/photos", "photos"),
        ("/data/photos/train", "photos"),
        ("/photos/train", "photos"),
        ("/photos/Validation/train", "photos"),
        ("/train", "train"),
        ("/", "images"),
    ],
)
def test_a_data_set_is_called_by_its_last_name_that_no_split_has(path, name):
    assert name_of_set(Path(path)) == name


@pytest.mark.parametrize(("one", "other"), [("tea", " tea"), ("tea", "tea\t"), ("caf\u00e9", "cafe\u0301")])
def test_names_that_look_the_same_are_refused(one, other):
    with pytest.raises(DatasetError, match=r"here: classes 2 and 4 cannot be told apart: '.*' and '.*'; give each"):
        check_distinct(["a", one, "b", other, "a"], "here")
    check_distinct(["a", one, "b"], "here")


@pytest.mark.parametrize(
    ("count", "text"),
    [(1, "0"), (8, "0, 1, 2, 3, 4, 5, 6, 7"), (9, "0, 1, 2, 3, 4, 5, 6, 7 and 1 more"), (2008, "7 and 2,000 more")],
)
def test_a_long_list_of_names_is_cut(count, text):
    assert first_few([str(number) for number in range(count)]).endswith(text)


@pytest.mark.parametrize(
    "ordered",
    [
        ["img1.png", "img2.png", "img10.png", "img10b.png", "img11.png"],
        ["1", "2", "10", "a", "a1", "a1b", "a1b2", "a1b10", "b"],
        ["", "007", "7", "08", "8", "9"],  # 007 and 7 are one number: the names decide
        ["a01", "a1", "a002", "a2", "a10"],
        ["a0", "a00", "a1"],
        ["IMG10", "img2"],
        ["x٢", "x３", "x12", "x१५"],  # 2, 3, 12, 15 in Arabic, wide, Latin and Devanagari digits
        ["x2", "x٢", "x３"],  # the same number in two scripts
        ["x2", "x3", "x²"],  # a superscript is no decimal digit
        ["v1.2.9", "v1.2.10", "v1.10.0"],
        ["\udcff2", "\udcff10"],  # bytes that are not UTF-8
    ],
)
def test_numbers_in_names_count_as_numbers(ordered):
    names = ordered[::-1]
    names.sort(key=natural_key)
    assert names == ordered
    assert len({natural_key(name) for name in ordered}) == len(ordered)


def test_numbers_in_names_may_be_of_any_length():
    """Python refuses to convert more than 4300 digits."""
    names = ["a" + "0" * 9000 + "5", "a6", "a" + "9" * 5000, "a1" + "0" * 5000]
    backwards = names[::-1]
    backwards.sort(key=natural_key)
    assert backwards == names


def test_classes_are_called_by_their_first_synonym():
    classes = ["n1", "n2", "n3", "n4"]
    assert classes_in_words(classes, None) == classes
    words = ["tench, Tinca tinca", "crane", "crane, wading bird", " , nothing"]
    assert classes_in_words(classes, words) == ["tench", "crane (n2)", "crane (n3)", "n4"]
