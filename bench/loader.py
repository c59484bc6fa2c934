"""How many images a second come out of prepared shards, and out of the obvious alternatives.

    python bench/loader.py                         # photographs made up on the spot: nothing to download
    python bench/loader.py --data prepared/mine    # a data set of one's own (without rows on originals)

Every reader does the same work: decode, crop 224 at random, flip at random, subtract the mean image, add colour noise,
and deliver float32 batches (float16 on a GPU). Rows:

- ``prepare``: originals to prepared shards, by processes
- ``shards, DALI``: `dataloading.Loader`, by threads; on a GPU also by the share that its JPEG hardware decodes
- ``shards, source only``: what Python and NumPy do for each image before DALI gets it: order, draws, reading, CRC-32;
  ``python_percent`` is its share of the processor time that an image costs in all
- ``shards, Pillow`` and ``shards, simplejpeg`` (where installed): torch's DataLoader on the same prepared files, by
  workers
- ``originals, Pillow``: torch's DataLoader that also resizes originals, by workers
"""

import itertools
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import harness
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dataloading import Augmentation, Dataset, Loader, prepare_dataset
from dataloading.command_line import parse
from dataloading.feed import Feeder
from dataloading.images import centre_square, resize_shorter_side
from dataloading.order import Schedule

CROP = 224
WARM_UP = 5  # batches
NOISE = Augmentation().color_noise


class Reader(NamedTuple):
    """A way of reading: what it is, with what setting, and its batches without end."""

    name: str
    setting: str
    batches: Iterator[Any]


@dataclass
class Row:
    """One measurement: images per second overall, and milliseconds between batches as the consumer sees them."""

    reader: str
    setting: str
    images_per_second: float
    p50_ms: float | None = None
    p99_ms: float | None = None
    cpu_us_per_image: float | None = None
    python_percent: float | None = None


@dataclass
class Options:
    """Compare ways of reading training images.

    Args:
        data: A prepared data set. Default: photographs that this program makes up and prepares.
        images: How many photographs to make up.
        batch_size: Images per batch.
        seconds: How long each row is measured in each round.
        rounds: All rows are measured in turn so many times; the fastest counts, as the least disturbed.
        workers: Threads or processes to try.
        quick: Few images and short rounds, to try the program.
        output: Folder for the record and the picture.
    """

    data: Path | None = None
    images: int = 2000
    batch_size: int = 128
    seconds: float = 4.0
    rounds: int = 4
    workers: tuple[int, ...] = (1, 2)
    quick: bool = False
    output: Path = harness.RESULTS


# --- material ---------------------------------------------------------------------------------------------------------


def made_up_photograph(seed: int, width: int, height: int) -> NDArray[np.uint8]:
    """Return noise with the spectrum, contrast and correlated colours of photographs: uint8, height x width x 3."""
    generator = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf

    def layer() -> NDArray[np.float64]:
        phases = np.exp(2j * np.pi * generator.random(frequency.shape))
        pixels = np.fft.irfft2(phases / frequency**1.5, s=(height, width))
        return pixels / pixels.std()

    shared = layer()
    return np.clip(np.stack([118 + 58 * (0.93 * shared + 0.37 * layer()) for _ in range(3)], -1), 0, 255).astype(
        np.uint8
    )


def make_up_photographs(root: Path, count: int) -> Path:
    """Write `count` photographs of ImageNet's usual size, 500 x 375, into class folders."""
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(partial(_make_up, root), range(count), chunksize=20))
    return root


def _make_up(root: Path, i: int) -> None:
    path = root / ("val" if i % 20 == 19 else "train") / f"class{i // 20 % 5}" / f"{i:05d}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = (375, 500) if i % 4 == 3 else (500, 375)
    Image.fromarray(made_up_photograph(i, width, height)).save(path, quality=92)


# --- the alternatives -------------------------------------------------------------------------------------------------


class TorchImages(torch.utils.data.Dataset[torch.Tensor]):
    """The training images for torch's DataLoader: `decode` turns `files` into pixels, the rest is NumPy."""

    def __init__(
        self, dataset: Dataset, read: Callable[[int], Any], decode: Callable[[Any], NDArray[np.uint8]]
    ) -> None:
        border = (dataset.size - CROP) // 2
        self.dataset, self.read, self.decode = dataset, read, decode
        self.mean = dataset.mean_image[border : border + CROP, border : border + CROP].copy()

    def __len__(self) -> int:
        return self.dataset.count("train")

    def __getitem__(self, i: int) -> torch.Tensor:
        pixels = self.decode(self.read(i))
        top, left = (random.randrange(side - CROP + 1) for side in pixels.shape[:2])
        crop = pixels[top : top + CROP, left : left + CROP]
        image = (crop[:, ::-1] if random.random() < 0.5 else crop) - self.mean
        noise = self.dataset.color_deviations * [random.gauss(0, NOISE) for _ in range(3)]
        image += (self.dataset.color_vectors @ noise).astype(np.float32)
        image /= 1 + NOISE
        return torch.from_numpy(image)


def pillow(data: Any) -> NDArray[np.uint8]:
    import io

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def pillow_original(path: Path, size: int = 256) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(centre_square(resize_shorter_side(image.convert("RGB"), size), size))


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


def measured(reader: Reader, size: int, seconds: float) -> Row:
    """Take batches for `seconds`, after a few that do not count: those that were waiting."""
    for _ in range(WARM_UP):
        next(reader.batches)
    times, began = [time.perf_counter()], cpu_seconds()
    while times[-1] - times[0] < seconds:
        next(reader.batches)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter())
    used = cpu_seconds() - began
    gaps = np.diff(times) * 1000
    done = len(gaps) * size
    row = Row(reader.name, reader.setting, done / (times[-1] - times[0]), *np.percentile(gaps, [50, 99]).tolist())
    if "DALI" in reader.name or "source" in reader.name:  # children are counted only when they end
        row.cpu_us_per_image = used / done * 1e6
    return row


def fastest(readers: list[Reader], options: Options) -> list[Row]:
    """Measure all readers in turn, round by round, so that what disturbs one round disturbs them alike."""
    best: dict[tuple[str, str], Row] = {}
    for number in range(options.rounds):
        for reader in readers:
            row = measured(reader, options.batch_size, options.seconds)
            print(f"{number + 1}  {row.reader:20} {row.setting:26} {row.images_per_second:9,.0f} images/s", flush=True)
            before = best.setdefault(reader[:2], row)
            if row.images_per_second > before.images_per_second:
                best[reader[:2]] = row
    return list(best.values())


def share_of_python(rows: list[Row]) -> None:
    """Note with each row of DALI's how much of its processor time Python and NumPy take."""
    (source,) = (row for row in rows if "source only" in row.reader)
    for row in rows:
        if "DALI" in row.reader and row.cpu_us_per_image and source.cpu_us_per_image:
            row.python_percent = 100 * source.cpu_us_per_image / row.cpu_us_per_image
            print(f"   {row.reader:20} {row.setting:26} {row.python_percent:9.1f} % of it in Python and NumPy")


def endless(loader: Loader) -> Iterator[Any]:
    epoch = 0
    while True:
        yield from loader.epoch(epoch)
        epoch += 1


def fed(dataset: Dataset, batch_size: int) -> Iterator[Any]:
    """What DALI is fed, without end, made by this thread."""
    schedule = Schedule(dataset.count("train"), seed=0, shuffle=True, batch_size=batch_size, last="drop")
    feeder = Feeder(dataset, "train", schedule, crop_size=CROP, augment=Augmentation(), skip=False)
    batches = ((epoch, window) for epoch in itertools.count() for window in schedule.windows(0))
    while True:
        yield feeder.make(0, batches)


def dali_readers(dataset: Dataset, options: Options) -> Iterator[Reader]:
    load = partial(Loader, dataset, "train", options.batch_size, shuffle=True, augment=Augmentation(), drop_last=True)
    for threads in options.workers:
        yield Reader("shards, DALI", _count(threads, "thread"), endless(load(threads=threads)))
    if torch.cuda.is_available():
        for share in (0.0, 0.65, 1.0):
            cores = len(os.sched_getaffinity(0))
            loader = load(threads=cores, device=0, dtype="float16", hardware_decoder_load=share)
            setting = f"GPU, {_count(cores, 'thread')}, hardware share {share:g}"
            yield Reader("shards, DALI", setting, endless(loader))
    yield Reader("shards, source only", "1 thread", fed(dataset, options.batch_size))


def torch_readers(dataset: Dataset, originals: Path | None, options: Options) -> Iterator[Reader]:
    images = {"shards, Pillow": TorchImages(dataset, partial(dataset.read, "train"), pillow)}
    try:
        from simplejpeg import decode_jpeg
    except ImportError:
        print("simplejpeg is not installed: its rows are left out")
    else:
        images["shards, simplejpeg"] = TorchImages(dataset, partial(dataset.read, "train"), decode_jpeg)
    if originals is not None:
        files = sorted((originals / "train").rglob("*.jpg"))
        images["originals, Pillow"] = TorchImages(dataset, files.__getitem__, pillow_original)
    for name, source in images.items():
        for workers in options.workers:
            yield Reader(name, _count(workers, "worker"), torch_batches(source, options.batch_size, workers))


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
        "load_average": round(os.getloadavg()[0], 1),  # what else ran shows in it
        "images": "made up, 500 x 375" if options.data is None else dataset.name,
        "samples": dataset.count("train"),
        "mean_file_bytes": int(dataset.index("train")["length"].mean()),
        "batch_size": options.batch_size,
        "crop_size": CROP,
        "seconds_per_round": options.seconds,
        "rounds": options.rounds,
    }


def versions() -> dict[str, str | None]:
    import nvidia.dali
    import PIL

    return {"dali": nvidia.dali.__version__, "pillow": PIL.__version__}


def save_picture(rows: list[Row], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    shown = [row for row in rows if "source only" not in row.reader][::-1]
    figure, axes = pyplot.subplots(figsize=(8, 0.42 * len(shown) + 1.2), layout="constrained")
    colors = [
        "tab:green" if "DALI" in row.reader else "tab:orange" if row.reader == "prepare" else "tab:gray"
        for row in shown
    ]
    bars = axes.barh(
        [f"{row.reader}, {row.setting}" for row in shown], [row.images_per_second for row in shown], color=colors
    )
    axes.bar_label(bars, fmt="{:,.0f}", padding=3)
    axes.set_xlabel("images per second")
    axes.margins(x=0.12)
    axes.set_title(title, fontsize=10)
    figure.savefig(path, dpi=120)


def main(options: Options) -> None:
    """Measure all rows, print them, and write JSON and PNG."""
    device = harness.device_name()  # with the number of threads that torch takes by itself
    torch.set_num_threads(1)
    if options.quick:
        options.images, options.seconds, options.rounds = min(options.images, 300), 1.0, 1
    with tempfile.TemporaryDirectory() as scratch:
        folder, originals = Path(scratch), None
        rows: list[Row] = []
        if options.data is None:
            print(f"making up {options.images:,} photographs")
            originals = make_up_photographs(folder / "originals", options.images)
            rows += prepare_rows(originals, folder, options)
            dataset = Dataset(folder / f"prepared{options.workers[-1]}")
        else:
            dataset = Dataset(options.data)
        readers = list(torch_readers(dataset, originals, options))
        for reader in readers:  # their workers are forked, so they start before DALI's threads do
            next(reader.batches)
        rows += fastest(readers + list(dali_readers(dataset, options)), options)
        share_of_python(rows)
        path = harness.write_record(
            "loader",
            settings(dataset, options),
            [asdict(row) for row in rows],
            options.output,
            device=device,
            versions=versions(),
        )
    save_picture(rows, device, path.with_suffix(".png"))


if __name__ == "__main__":
    main(parse(Options, prog="python bench/loader.py", description=__doc__))
