"""Neighbours against scikit-learn, and features of single images against those of a loader."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

import dataloading
from fastalex.errors import Interrupted
from fastalex.evaluation.options import EvaluateOptions, resolve
from fastalex.network.weights import load_model
from fastalex.parallel.world import World
from fastalex.reports.neighbours import HiddenLayer, nearest
from tests.fastalex.conftest import save_run
from tests.fastalex.reports.conftest import HERE


def test_neighbours_are_those_of_scikit_learn():
    """Far from the origin, where a matrix product in fp32 would lose the distances."""
    generator = np.random.default_rng(0)
    searched = (1000 + generator.normal(size=(90, 64))).astype(np.float32)
    queries = (1000 + generator.normal(size=(5, 64))).astype(np.float32)
    distances, rows = nearest(queries, np.array_split(searched, 4), 6)
    expected = NearestNeighbors(n_neighbors=6, algorithm="brute").fit(searched.astype(np.float64))
    expected_distances, expected_rows = expected.kneighbors(queries.astype(np.float64))
    assert np.array_equal(rows, expected_rows)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-9)  # scikit-learn's own product is not exact


def test_of_equal_neighbours_the_first_comes_first_and_few_are_enough():
    searched = np.array([[3.0], [1.0], [1.0]], dtype=np.float32)
    distances, rows = nearest(np.zeros((1, 1), dtype=np.float32), [searched], 6)
    assert rows.tolist() == [[1, 2, 0]]
    assert distances.tolist() == [[1, 1, 3]]


@pytest.mark.parametrize("with_record", [True, False])
def test_features_of_single_images_are_those_of_the_loader(prepared, tmp_path, with_record):
    run = save_run(tmp_path / "run", prepared, with_record=with_record)
    dataset = dataloading.Dataset(prepared)
    evaluation = resolve(EvaluateOptions((run,), devices="cpu", batch_size=4)).evaluation
    layer = HiddenLayer(HERE, evaluation, dataset)
    assert layer.name == "fc7"
    rows = [6, 0, 3, 2, 5]
    batches = list(layer.features(dataset, "val", rows, "images"))
    assert [len(batch) for batch in batches] == [4, 1]
    model, _ = load_model(run / "best.safetensors")
    loader = dataloading.Loader(dataset, "val", 7, shuffle=False, augment=None, drop_last=False)
    with torch.no_grad():
        expected = model.activations(next(loader.epoch(0)).images, "fc7")["fc7"][rows]
    torch.testing.assert_close(torch.from_numpy(np.concatenate(batches)), expected)


def test_a_signal_ends_the_search(prepared, tmp_path):
    run = save_run(tmp_path / "run", prepared, with_record=True)
    evaluation = resolve(EvaluateOptions((run,), devices="cpu", batch_size=4)).evaluation
    dataset = dataloading.Dataset(prepared)
    layer = HiddenLayer(World(0, 1, torch.device("cpu"), signal_number=2), evaluation, dataset)
    with pytest.raises(Interrupted, match="nothing was written"):
        list(layer.features(dataset, "val", [0], "images"))
