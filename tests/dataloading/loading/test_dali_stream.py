"""Prefetching, threads, memory and the GPU."""

import os
import resource
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline, fn

from dataloading import Augmentation, Dataset, prepare_dataset
from dataloading.loading.dali_graph import _decoder_options
from dataloading.loading.dali_stream import DaliStream
from tests.dataloading.loading.loaders import evaluating, loader, same, samples, stored
from tests.dataloading.small_sources import encoded


def test_the_next_epoch_is_prefetched(small):
    source = loader(small, batch_size=8)
    list(source.epoch(0, 8))
    fed = source._stream._plan_number
    for epoch in (1, 2):
        assert len(list(source.epoch(epoch))) == 3
    assert source._stream._plan_number == fed, "a new plan was made although the next epoch simply followed"
    validating = evaluating(small)
    for _ in range(3):
        assert samples(validating.epoch(0)) == list(range(12))
    assert validating._stream._plan_number == 1


def test_files_are_read_by_a_thread_of_the_loader(small, monkeypatch):
    readers = []
    view = Dataset.view
    monkeypatch.setattr(Dataset, "view", lambda *a: readers.append(threading.get_ident()) or view(*a))
    source = loader(small, batch_size=4)
    for epoch in (0, 5):  # the second one is not what was being made
        list(source.epoch(epoch))
    assert len(set(readers)) == 1
    assert threading.get_ident() not in readers


def thread_count() -> int:
    return len(os.listdir("/proc/self/task"))


def test_a_closed_loader_gives_its_threads_back_and_can_be_used_again(small):
    others = set(threading.enumerate())  # an earlier test's dropped loader may still be ending its thread
    source = loader(small, threads=4)
    first = next(source.epoch(0))
    running = thread_count()
    started = set(threading.enumerate()) - others
    assert [thread.name.startswith("feed") for thread in started] == [True]
    source.close()
    assert thread_count() <= running - 4
    assert not any(thread.is_alive() for thread in started)
    assert same(next(source.epoch(0)), first)
    del source
    assert thread_count() <= running - 4, "a loader that is dropped keeps its threads"


def test_earlier_batches_are_not_overwritten(small):
    source = loader(small, batch_size=4)
    kept = [(batch, batch.images.clone()) for epoch in range(4) for batch in source.epoch(epoch)]
    assert all(torch.equal(batch.images, copy) for batch, copy in kept)


def test_what_dali_reads_without_a_copy_is_kept_until_its_images_are_there(small, monkeypatch):
    feed, run, fed, delivered = DaliStream._feed, DaliStream._run, [], []

    def noted_feed(self: DaliStream) -> object:
        fed.append(feed(self))
        return fed[-1]

    def noted_run(self: DaliStream) -> object:
        output = run(self)
        assert any(kept is fed[len(delivered)] for kept in self._fed)
        delivered.append(output)
        return output

    monkeypatch.setattr(DaliStream, "_feed", noted_feed)
    monkeypatch.setattr(DaliStream, "_run", noted_run)
    source = loader(small, batch_size=4)
    for epoch in (0, 1, 5):
        list(source.epoch(epoch))
    assert len(delivered) > 18


def test_an_error_of_the_graph_reaches_the_caller(small, monkeypatch):
    def run(stream: object) -> None:
        raise RuntimeError("the graph is out of memory")

    source = loader(small, batch_size=4)
    batches = source.epoch(0)
    next(batches)
    monkeypatch.setattr(source._stream._pipeline, "run", run)
    with pytest.raises(RuntimeError, match="the graph is out of memory"):
        list(batches)


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_memory_does_not_grow_over_epochs(awkward):
    source = loader(awkward, batch_size=50)
    for epoch in range(3):
        list(source.epoch(epoch))
    before = resident_bytes()
    for epoch in range(3, 15):
        for batch in source.epoch(epoch):
            del batch
    assert resident_bytes() - before < 16e6


# --- chroma -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def colorful(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Images of random colours, 3 x 3 pixels each, stored with half the resolution in chroma: two classes, 4 + 1."""
    root: Path = tmp_path_factory.mktemp("colorful")
    draw = np.random.default_rng(1)
    for split, count in (("train", 4), ("val", 1)):
        for label in ("a", "b"):
            (root / "images" / split / label).mkdir(parents=True)
            for number in range(count):
                colors = np.kron(draw.integers(0, 256, (86, 86, 3), dtype=np.uint8), np.ones((3, 3, 1), dtype=np.uint8))
                path = root / "images" / split / label / f"{number}.png"
                path.write_bytes(encoded(colors[:256, :256], "PNG"))
    return prepare_dataset(root / "images", root / "prepared", workers=0, progress=False)


def test_the_cpu_interpolates_chroma_as_libjpeg_does(colorful):
    decode_jpeg = pytest.importorskip("simplejpeg").decode_jpeg
    batch = next(evaluating(colorful, "train", batch_size=8, crop_size=224, dtype="uint8").epoch(0))
    for sample, image in zip(batch.samples, batch.images.permute(0, 2, 3, 1).numpy(), strict=True):
        assert np.array_equal(image, stored(colorful, "train", sample)[16:240, 16:240])  # Pillow's libjpeg interpolates
        repeated = decode_jpeg(colorful.read("train", sample), fastupsample=True)[16:240, 16:240]
        assert np.abs(image.astype(int) - repeated).mean() > 5, "these images would not tell the two apart"


@pytest.mark.parametrize("operator", [fn.decoders.image, fn.decoders.image_crop])
def test_dali_knows_the_options_of_the_gpu_decoder(operator):
    options = _decoder_options(0, 256, 0.5)
    assert options["jpeg_fancy_upsampling"]
    with Pipeline(batch_size=1, num_threads=1, device_id=0):  # is not built, which would take a GPU
        files = fn.external_source(name="files")
        assert operator(files, **options).device == "gpu"
        with pytest.raises(KeyError, match="no_such_option"):
            operator(files, **options, no_such_option=True)


# --- on a GPU ---------------------------------------------------------------------------------------------------------


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@needs_gpu
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_a_gpu_delivers_what_the_cpu_delivers(full_size, dtype):
    options = {"crop_size": 224, "dtype": dtype, "augment": Augmentation(color_noise=0.0 if dtype == "uint8" else 0.1)}
    on_cpu = list(loader(full_size, **options).epoch(1))
    on_gpu = list(loader(full_size, **options, device=0, hardware_decoder_load=0).epoch(1))
    for one, other in zip(on_cpu, on_gpu, strict=True):
        assert other.images.device.type == other.labels.device.type == "cuda"
        assert other.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(one.labels, other.labels.cpu())
        # decoders differ in rounding, by less than one of 255 levels on average
        assert (one.images.float() - other.images.cpu().float()).abs().mean() < 1


@needs_gpu
@pytest.mark.parametrize("hardware", [0.0, 1.0])
def test_a_gpu_interpolates_chroma_as_the_cpu_does(colorful, hardware):
    options = {"crop_size": 224, "dtype": "uint8", "augment": Augmentation(color_noise=0.0)}
    on_cpu = list(loader(colorful, **options).epoch(1))
    on_gpu = list(loader(colorful, **options, device=0, hardware_decoder_load=hardware).epoch(1))
    for one, other in zip(on_cpu, on_gpu, strict=True):
        error = (one.images.int() - other.images.cpu().int()).abs().float()
        # Repeated chroma differs by more than 5 levels (see above). The border of a crop depends on pixels outside.
        assert error.mean() < 1
        for border in (error[:, :, :1], error[:, :, -1:], error[..., :1], error[..., -1:]):
            assert border.mean() < 1


@needs_gpu
def test_a_gpu_without_its_jpeg_hardware_repeats_every_bit(full_size):
    runs = [list(loader(full_size, crop_size=224, device=0, hardware_decoder_load=0).epoch(0)) for _ in range(2)]
    assert all(torch.equal(one.images, other.images) for one, other in zip(*runs, strict=True))


@needs_gpu
def test_gpu_memory_does_not_grow_over_epochs(full_size):
    source = loader(full_size, batch_size=8, crop_size=224, device=0)
    list(source.epoch(0))
    list(source.epoch(1))
    free, _ = torch.cuda.mem_get_info()
    for epoch in range(2, 12):
        list(source.epoch(epoch))
    assert free - torch.cuda.mem_get_info()[0] < 64e6
