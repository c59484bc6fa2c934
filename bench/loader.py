"""Images/s from prepared shards, and from alternatives to them.

    python bench/loader.py                         # synthetic photographs: nothing to download
    python bench/loader.py --data prepared/mine    # your own prepared data set (without rows for originals)
    python bench/loader.py --resizing              # only the resizing of originals, beside Pillow's

Every reader does the same work: decode, random 224-pixel crop, random flip, subtract the mean image, add colour noise,
and deliver float32 batches (float16 on a GPU). Rows:

- `prepare`: originals to prepared shards, by number of processes
- `shards, DALI`: `dataloading.Loader`, by number of threads; on a GPU also by the share of images that its JPEG
  hardware decodes
- `shards, source only`: the work of Python and NumPy per image before DALI: order, random draws, reading, CRC-32;
  `python_percent` is its share of the processor time per image
- `shards, Pillow` and `shards, simplejpeg` (if installed): torch's DataLoader on the same shards, by number of workers
- `shards, WebDataset` (if installed): that package on the same shards, with simplejpeg or Pillow, by number of workers
- `shards, DALI alone`: DALI's own reader of the same tar files, with its own random numbers, by number of threads
- `originals, Pillow`: torch's DataLoader, which also resizes originals, by number of workers

With `--resizing`, the record `resizing` instead: processor time per original, beside Pillow's box filter.
"""

import importlib.util
import io
import itertools
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import harness
import numpy as np
import torch
from harness.charts import plt
from numpy.typing import NDArray
from PIL import Image
from preparation.photographs import write_photographs
from preparation.resizing import compare
from preparation.rivals import dali_batches, webdataset_batches

from dataloading import Augmentation, Dataset, Loader, prepare_dataset
from dataloading.command_line import parse
from dataloading.loading.batch_feeder import BatchFeeder
from dataloading.loading.order import EpochBatches
from dataloading.preparation.images import resize_shorter_side

CROP = 224
WARM_UP = 5  # batches
NOISE = Augmentation().color_noise_at(0)


class Reader(NamedTuple):
    """A reader with one setting, and what opens its endless batches."""

    name: str
    setting: str
    open: Callable[[], Iterator[Any]]


@dataclass
class Row:
    """One measurement: images/s overall, and milliseconds between batches for the consumer."""

    reader: str
    setting: str
    images_per_second: float
    p50_ms: float | None = None
    p99_ms: float | None = None
    cpu_us_per_image: float | None = None
    python_percent: float | None = None


@dataclass
class Options:
    """Compare readers of training images.

    Args:
        data: A prepared data set. Default: synthetic photographs, prepared by this program.
        images: Number of synthetic photographs.
        batch_size: Images per batch.
        seconds: Seconds per row and round.
        rounds: Number of rounds, in which all rows are measured in turn; the fastest round counts.
        workers: Numbers of threads or processes.
        quick: Few images and one short round.
        resizing: Only compare resizing with Pillow's.
        output: Folder of the records.
        name: Name of the record.
    """

    data: Path | None = None
    images: int = 2000
    batch_size: int = 128
    seconds: float = 4.0
    rounds: int = 4
    workers: tuple[int, ...] = (1, 2)
    quick: bool = False
    resizing: bool = False
    output: Path = harness.RESULTS
    name: str = "loader"


# --- the alternatives -------------------------------------------------------------------------------------------------


class TorchImages(torch.utils.data.Dataset[torch.Tensor]):
    """The training images for torch's DataLoader: `decode` turns what `read` returns into pixels, the rest is NumPy."""

    def __init__(
        self, dataset: Dataset, read: Callable[[int], Any], decode: Callable[[Any], NDArray[np.uint8]]
    ) -> None:
        border = (dataset.size - CROP) // 2
        self.dataset, self.read, self.decode = dataset, read, decode
        self.mean = dataset.mean_image[border : border + CROP, border : border + CROP].copy()

    def __len__(self) -> int:
        return self.dataset.count("train")

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.prepare(self.read(i))

    def prepare(self, data: Any) -> torch.Tensor:
        """From what `read` returns to the image that a network takes."""
        pixels = self.decode(data)
        top, left = (random.randrange(side - CROP + 1) for side in pixels.shape[:2])
        crop = pixels[top : top + CROP, left : left + CROP]
        image = (crop[:, ::-1] if random.random() < 0.5 else crop) - self.mean
        noise = self.dataset.color_deviations * [random.gauss(0, NOISE) for _ in range(3)]
        image += (self.dataset.color_vectors @ noise).astype(np.float32)
        image /= 1 + NOISE
        return torch.from_numpy(image)


def pillow(data: Any) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def pillow_original(path: Path, size: int = 256) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return resize_shorter_side(image.convert("RGB"), size, square=True)


def torch_batches(images: TorchImages, batch_size: int, workers: int) -> Iterator[torch.Tensor]:
    order = np.random.default_rng(0).permutation(len(images)).tolist() * 1000
    loader = torch.utils.data.DataLoader(
        images, batch_size, sampler=order, num_workers=workers, drop_last=True, prefetch_factor=2
    )
    for batch in loader:
        yield batch.permute(0, 3, 1, 2)


# --- measuring --------------------------------------------------------------------------------------------------------


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def measure(reader: Reader, size: int, seconds: float) -> Row:
    """Open a reader and take batches for `seconds`, after a few untimed ones that were prefetched.

    DALI is opened anew every time: where its buffers happen to lie changes its speed by up to a tenth.
    """
    batches = reader.open()
    for _ in range(WARM_UP):
        next(batches)
    times, began = [time.perf_counter()], cpu_seconds()
    while times[-1] - times[0] < seconds:
        next(batches)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter())
    used = cpu_seconds() - began
    gaps = np.diff(times) * 1000
    done = len(gaps) * size
    row = Row(reader.name, reader.setting, done / (times[-1] - times[0]), *np.percentile(gaps, [50, 99]).tolist())
    if "DALI" in reader.name or "source" in reader.name:  # worker processes are counted only when they end
        row.cpu_us_per_image = used / done * 1e6
    return row


def fastest(readers: list[Reader], options: Options) -> list[Row]:
    """Measure all readers in turn, round after round, and return the fastest round of each."""
    best: dict[tuple[str, str], Row] = {}
    for number in range(options.rounds):
        for reader in readers:
            row = measure(reader, options.batch_size, options.seconds)
            print(f"{number + 1}  {row.reader:20} {row.setting:26} {row.images_per_second:9,.0f} images/s", flush=True)
            previous = best.setdefault(reader[:2], row)
            if row.images_per_second > previous.images_per_second:
                best[reader[:2]] = row
    return list(best.values())


def share_of_python(rows: list[Row]) -> None:
    """Add the share of Python and NumPy in the processor time to the rows of DALI."""
    (source,) = (row for row in rows if "source only" in row.reader)
    for row in rows:
        if row.reader == "shards, DALI" and row.cpu_us_per_image and source.cpu_us_per_image:
            row.python_percent = 100 * source.cpu_us_per_image / row.cpu_us_per_image
            print(f"   {row.reader:20} {row.setting:26} {row.python_percent:9.1f} % in Python and NumPy")


def endless(load: Callable[..., Loader], **options: Any) -> Iterator[Any]:
    loader, epoch = load(**options), 0
    while True:
        yield from loader.epoch(epoch)
        epoch += 1


def feeds(dataset: Dataset, batch_size: int) -> Iterator[Any]:
    """The endless input of DALI, prepared by this thread."""
    batches = EpochBatches(dataset.count("train"), seed=0, shuffle=True, batch_size=batch_size, drop_last=True)
    feeder = BatchFeeder(dataset, "train", batches, crop_size=CROP, augment=Augmentation(), skip=False)
    upcoming = ((epoch, batch) for epoch in itertools.count() for batch in batches.ranges())
    while True:
        yield feeder.make(0, upcoming)


def dali_readers(dataset: Dataset, options: Options) -> Iterator[Reader]:
    load = partial(Loader, dataset, "train", options.batch_size, shuffle=True, augment=Augmentation(), drop_last=True)
    for threads in options.workers:
        yield Reader("shards, DALI", _count(threads, "thread"), partial(endless, load, threads=threads))
        alone = partial(dali_batches, dataset, options.batch_size, threads, CROP, NOISE)
        yield Reader("shards, DALI alone", _count(threads, "thread"), alone)
    if torch.cuda.is_available():
        for share in (0.0, 0.65, 1.0):
            cores = len(os.sched_getaffinity(0))
            on_gpu = partial(load, threads=cores, device=0, dtype="float16", hardware_decoder_load=share)
            setting = f"GPU, {_count(cores, 'thread')}, hardware share {share:g}"
            yield Reader("shards, DALI", setting, partial(endless, on_gpu))
    yield Reader("shards, source only", "1 thread", partial(feeds, dataset, options.batch_size))


def torch_readers(dataset: Dataset, originals: Path | None, options: Options) -> Iterator[Reader]:
    images = {"shards, Pillow": TorchImages(dataset, partial(dataset.read, "train"), pillow)}
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        print("simplejpeg is not installed: its rows are skipped")
    else:
        images["shards, simplejpeg"] = TorchImages(dataset, partial(dataset.read, "train"), decode_jpeg)
    if originals is not None:
        files = sorted((originals / "train").rglob("*.jpg"))
        images["originals, Pillow"] = TorchImages(dataset, files.__getitem__, pillow_original)
    for name, source in images.items():
        for workers in options.workers:
            yield Reader(name, _count(workers, "worker"), partial(torch_batches, source, options.batch_size, workers))
    if importlib.util.find_spec("webdataset") is None:
        print("webdataset is not installed: its rows are skipped")
        return
    prepare = images.get("shards, simplejpeg", images["shards, Pillow"]).prepare
    for workers in options.workers:
        batches = partial(webdataset_batches, dataset, prepare, options.batch_size, workers)
        yield Reader("shards, WebDataset", _count(workers, "worker"), batches)


def prepare_rows(originals: Path, folder: Path, options: Options) -> Iterator[Row]:
    for workers in options.workers:
        began = time.perf_counter()
        dest = folder / f"prepared{workers}"
        dataset = prepare_dataset(originals, dest, workers=workers, shard_images=200, progress=False)
        rate = sum(dataset.count(split) for split in dataset.splits) / (time.perf_counter() - began)
        row = Row("prepare", _count(workers, "process", "processes"), rate)
        print(f"   {row.reader:20} {row.setting:26} {rate:9,.0f} images/s", flush=True)
        yield row


def _count(number: int, word: str, words: str = "") -> str:
    return f"{number} {word if number == 1 else words or word + 's'}"


# --- the record -------------------------------------------------------------------------------------------------------


def settings(dataset: Dataset, options: Options) -> dict[str, Any]:
    return {
        "quick": options.quick,
        "processors": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),  # shows what else was running
        "images": "synthetic, 500 x 375" if options.data is None else dataset.name,
        "samples": dataset.count("train"),
        "mean_file_bytes": int(dataset.index("train")["length"].mean()),
        "batch_size": options.batch_size,
        "crop_size": CROP,
        "seconds_per_round": options.seconds,
        "rounds": options.rounds,
    }


def versions() -> dict[str, str | None]:
    import nvidia.dali  # slow to import
    import PIL

    return {"dali": nvidia.dali.__version__, "pillow": PIL.__version__}


def draw_chart(rows: list[Row], title: str, path: Path) -> None:
    shown = [row for row in rows if "source only" not in row.reader][::-1]
    figure, axes = plt.subplots(figsize=(8, 0.42 * len(shown) + 1.2), layout="constrained")
    colors = [
        "tab:green" if "DALI" in row.reader else "tab:orange" if row.reader == "prepare" else "tab:gray"
        for row in shown
    ]
    bars = axes.barh(
        [f"{row.reader}, {row.setting}" for row in shown], [row.images_per_second for row in shown], color=colors
    )
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.set_xlabel("images/s")
    axes.margins(x=0.12)
    axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=120)


def main(options: Options) -> None:
    """Measure all rows, print them, and write the record and the chart."""
    device = harness.device_name()  # before the number of threads changes
    torch.set_num_threads(1)
    if options.resizing:
        repetitions = 20 if options.quick else 200
        about = {"quick": options.quick, "repetitions": repetitions, "load_average": round(os.getloadavg()[0], 1)}
        compared = [asdict(row) for row in compare(repetitions)]
        harness.write_record("resizing", about, compared, options.output, device=device, versions=versions())
        return
    if options.quick:
        options.images, options.seconds, options.rounds = min(options.images, 300), 1.0, 1
    with tempfile.TemporaryDirectory() as scratch:
        folder, originals = Path(scratch), None
        rows: list[Row] = []
        if options.data is None:
            print(f"generating {options.images:,} photographs")
            originals = write_photographs(folder / "originals", options.images)
            rows += prepare_rows(originals, folder, options)
            dataset = Dataset(folder / f"prepared{options.workers[-1]}")
        else:
            dataset = Dataset(options.data)
        readers = []
        for reader in torch_readers(dataset, originals, options):
            batches = reader.open()
            next(batches)  # its workers are forked, so they must start before the threads of DALI
            readers.append(reader._replace(open=partial(iter, batches)))
        rows += fastest(readers + list(dali_readers(dataset, options)), options)
        share_of_python(rows)
        path = harness.write_record(
            options.name,
            settings(dataset, options),
            [asdict(row) for row in rows],
            options.output,
            device=device,
            versions=versions(),
        )
    draw_chart(rows, device, path.with_suffix(".png"))


if __name__ == "__main__":
    main(parse(Options))
