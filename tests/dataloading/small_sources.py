"""Small sources with the layouts of the real ones, made from real JPEG files."""

import gzip
import io
import os
import signal
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat


def photograph(seed: int, width: int = 60, height: int = 48) -> np.ndarray:
    """A smooth random colour picture: uint8, height x width x 3."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encoded(pixels: np.ndarray, kind: str = "JPEG", **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"quality": 90} if kind == "JPEG" else {}), **options)
    return buffer.getvalue()


def jpeg(seed: int, width: int = 60, height: int = 48) -> bytes:
    return encoded(photograph(seed, width, height))


def class_folders(
    root: Path, *, classes: int = 3, train: int = 8, val: int = 4, width: int = 60, height: int = 48
) -> Path:
    """Write ``train/<class>/*.jpg`` and ``val/<class>/*.jpg``: `train` and `val` images in each class."""
    seed = 0
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                (folder / f"{number:04d}.jpg").write_bytes(jpeg(seed, width, height))
                seed += 1
    return root


def tar_of(files: Iterable[tuple[str, bytes]], change: Callable[[tarfile.TarInfo], None] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if change:
                change(info)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def link(name: str, target: str) -> bytes:
    """The tar header of a symbolic link."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info.tobuf(tarfile.USTAR_FORMAT)


# Numbers in the development kit differ from the order of the WordNet ids, as in the real one.
SYNSETS = [(1, "n02119789", "kit fox"), (2, "n02100735", "English setter"), (3, "n01440764", "tench, Tinca tinca")]
INNER = (4, "n00001930", "physical entity")


def meta_mat(year: int) -> bytes:
    """``meta.mat`` with the fields of the real one: three classes and their parent synset."""
    fields = [
        (f"ILSVRC{year}_ID", "O"),
        ("WNID", "O"),
        ("words", "O"),
        ("gloss", "O"),
        ("num_children", "O"),
        ("children", "O"),
        ("wordnet_height", "O"),
        ("num_train_images", "O"),
    ]
    rows = np.empty((len(SYNSETS) + 1, 1), dtype=fields)
    for row, (number, wnid, words) in zip(rows[:, 0], [*SYNSETS, INNER], strict=True):
        children = [1, 2, 3] if wnid == INNER[1] else []
        for name, value in zip(
            rows.dtype.names, (number, wnid, words, "...", len(children), children, 0, 5), strict=True
        ):
            row[name] = value
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": rows})
    return buffer.getvalue()


def truth_of(numbers: Iterable[int]) -> bytes:
    return "".join(f"{number}\n" for number in numbers).encode()


VAL_TRUTH = [3, 1, 2, 2, 1]
TEST_TRUTH = [2, 3, 1]


def ilsvrc2012(root: Path, *, val_truth: list[int] = VAL_TRUTH, odd: dict[str, bytes] | None = None) -> Path:
    """The three archives of ILSVRC2012 with 5 images in each of 3 classes; `odd` files are added to the tench class."""
    root.mkdir(parents=True, exist_ok=True)
    inner = {}
    for number, wnid, _ in SYNSETS:
        files = [(f"{wnid}_{image}.JPEG", jpeg(100 * number + image)) for image in range(5)]
        if wnid == "n01440764":
            files += list((odd or {}).items())
        inner[wnid] = tar_of(files)
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of((f"{wnid}.tar", data) for wnid, data in inner.items()))
    val = [(f"ILSVRC2012_val_{i + 1:08d}.JPEG", jpeg(1000 + i)) for i in range(len(VAL_TRUTH))]
    # Labels belong to the sorted names, not to the order in the archive.
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_of(reversed(val)))
    kit = tar_of(
        [
            ("ILSVRC2012_devkit_t12/readme.txt", b"read me"),
            ("ILSVRC2012_devkit_t12/data/meta.mat", meta_mat(2012)),
            ("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth_of(val_truth)),
        ]
    )
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(gzip.compress(kit))
    return root


def ilsvrc2010(root: Path) -> Path:
    """The archives of ILSVRC2010: with a test set, a gzip-compressed image, and patches for two blank ones."""
    root.mkdir(parents=True, exist_ok=True)
    inner = {}
    for number, wnid, _ in SYNSETS:
        files = [(f"{wnid}_{image}.JPEG", jpeg(100 * number + image)) for image in range(4)]
        files[1] = files[1][0], gzip.compress(files[1][1])
        inner[wnid] = tar_of(files)
    (root / "ILSVRC2010_images_train.tar").write_bytes(tar_of((f"{wnid}.tar", data) for wnid, data in inner.items()))
    for split, truth in (("val", VAL_TRUTH), ("test", TEST_TRUTH)):
        files = [(f"{split}/ILSVRC2010_{split}_{i + 1:08d}.JPEG", jpeg(2000 + i)) for i in range(len(truth))]
        (root / f"ILSVRC2010_images_{split}.tar").write_bytes(tar_of(reversed(files)))
    patches = [
        ("patch_images/train/n02119789_0.JPEG", jpeg(7001)),
        ("patch_images/val/ILSVRC2010_val_00000002.JPEG", jpeg(7002)),
        ("patch_images/README", b"good versions of blank images"),
    ]
    (root / "patch_images.tar").write_bytes(tar_of(patches))
    kit = tar_of(
        [
            ("devkit-1.0/data/meta.mat", meta_mat(2010)),
            ("devkit-1.0/data/ILSVRC2010_validation_ground_truth.txt", truth_of(VAL_TRUTH)),
        ]
    )
    (root / "ILSVRC2010_devkit-1.0.tar.gz").write_bytes(gzip.compress(kit))
    (root / "ILSVRC2010_test_ground_truth.txt").write_bytes(truth_of(TEST_TRUTH))
    return root


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def png_header(width: int, height: int) -> bytes:
    """A PNG file that declares a size and has almost no data, like a decompression bomb."""
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def command(module: str, *arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module`` and wait for it."""
    words = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, **options)


def started(module: str, *arguments: object) -> subprocess.Popen[str]:
    """Start ``python -m module`` in a process group of its own, with Ctrl-C enabled even if the tests ignore it."""
    words = [sys.executable, "-m", module, *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, **pipes, text=True, start_new_session=True, preexec_fn=_heed_ctrl_c)


def _heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # background jobs of a script inherit that it is ignored


def processes_of(group: int) -> list[int]:
    """The processes of a process group, without zombies."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, process_group = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
            except OSError:
                continue
            if int(process_group) == group and state != "Z":
                found.append(int(entry.name))
    return found


def kill(process: subprocess.Popen[str]) -> None:
    """``kill -9`` the process, but not its workers: they have to notice."""
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
