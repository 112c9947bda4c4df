"""Images with their classes, by split: resolved, read once into a cache, and mapped from it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ablate.data.image_files import Labelled, files_of, places_of, read
from ablate.errors import SpecError, UserError, unknown
from ablate.run.files import locked
from ablate.spec import DataSpec, digest

CACHE_FORMAT = 1
FEWEST_IMAGES = 20  # below this, images cannot be split
SPLITS = ("train", "valid", "test")
CORPORA = ("digits", "fashion_mnist")
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_NAMES = ("T-shirt", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DIGITS = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"  # of the bytes of pixels, then labels


@dataclass(frozen=True)
class Images:
    """Labelled images. `splits` hold pixels (N, C, H, W) from 0 to `peak`, a read-only memory map, and the number of
    each one's class (N,); `mean` and `sd` are of the training split's channels, (C, 1, 1)."""

    fingerprint: str
    folder: Path  # of the cache
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    peak: float
    mean: np.ndarray
    sd: np.ndarray
    splits: Mapping[str, tuple[np.ndarray, np.ndarray]]

    def standard(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels of mean 0 and deviation 1 in each channel of the training split, float32."""
        return ((pixels - self.mean) / self.sd).astype(np.float32)

    def centred(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels from -1 to 1, float32."""
        return (pixels / (self.peak / 2) - 1).astype(np.float32)


def resolve_images(data: DataSpec, folder: Path) -> DataSpec:
    """The specification with absolute paths and the fingerprint of its images. `folder` is the grid's.

    Raises `SpecError` for an unknown corpus, a missing file, settings that images have no use for.
    """
    if data.hub is not None:
        raise SpecError(["hub"], "images come from data.corpus or data.path")
    for name in ("tokenizer", "column"):
        if getattr(data, name) != getattr(DataSpec, name):
            raise SpecError([name], f"has no effect: task {data.task.name!r} reads images")
    if data.path is None:
        data = replace(data, corpus=data.corpus or CORPORA[0])
        if data.corpus not in CORPORA:
            raise SpecError(["corpus"], unknown("corpus", data.corpus, CORPORA) + " (your own files: data.path)")
    elif isinstance(data.path, tuple):
        data = replace(data, path=tuple((split, str(_absolute(folder, each))) for split, each in data.path))
    else:
        data = replace(data, path=str(_absolute(folder, data.path)))
    try:
        return replace(data, content=_content(data))
    except UserError as error:
        raise SpecError(["path" if data.path else "corpus"], str(error)) from None


def _absolute(folder: Path, path: str) -> Path:
    try:
        return (folder / Path(path).expanduser()).resolve()
    except (RuntimeError, ValueError, OSError) as error:
        raise SpecError(["path"], f"{path!r} is no path: {error}") from None


def _places(data: DataSpec) -> dict[str, Path]:
    """Where the splits lie that are files."""
    if data.corpus == "fashion_mnist":
        if not FASHION_MNIST.is_dir():
            raise UserError(f"{FASHION_MNIST} does not exist: apt-get install -y dataset-fashion-mnist")
        return places_of(FASHION_MNIST)
    if isinstance(data.path, tuple):
        found = {}
        for split, path in data.path:
            places = places_of(Path(path))
            if set(places) != {"all"}:
                raise UserError(f"{path}: holds splits of its own ({', '.join(places)}): give it alone")
            found[split] = places["all"]
        return found
    assert data.path is not None
    return places_of(Path(data.path))


def _content(data: DataSpec) -> str:
    """The bytes of the files, in their splits and classes."""
    if data.corpus == "digits":
        return digest([DIGITS])
    found = []
    for split, place in sorted(_places(data).items()):
        files = [(file.parent.name if place.is_dir() else "", _hash_file(file)) for file in files_of(place)]
        found.append([split, files])
    return digest(found)


def _hash_file(file: Path) -> str:
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None


def open_images(data: DataSpec, cache: Path) -> Images:
    """The images of a resolved specification, from the cache folder or read now. Raises `UserError`.

    Whoever comes first makes them in a folder of its own and renames it into place; others wait for the lock.
    """
    fingerprint = digest([CACHE_FORMAT, data.content, data.valid, data.test])
    folder = cache / "images" / fingerprint
    if not _is_whole(folder):
        with locked(folder.with_suffix(".lock")):
            if not _is_whole(folder):
                _make(data, folder)
    meta = json.loads((folder / "meta.json").read_text())
    splits = {
        split: (np.load(folder / f"{split}.npy", mmap_mode="r"), np.load(folder / f"{split}_labels.npy"))
        for split in SPLITS
    }
    mean, sd = (np.array(meta[name])[:, None, None] for name in ("mean", "sd"))
    shape: tuple[int, int, int] = tuple(meta["shape"])
    return Images(fingerprint, folder, tuple(meta["classes"]), shape, meta["peak"], mean, sd, splits)


def _is_whole(folder: Path) -> bool:
    """Whether all files are there at their full sizes: a machine that went down can leave torn ones."""
    try:
        sizes = json.loads((folder / "meta.json").read_text())["bytes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _make(data: DataSpec, folder: Path) -> None:
    splits, peak = _read_splits(data)
    classes = sorted(set(splits["train"].labels), key=_by_number)
    if len(classes) < 2:
        raise UserError(f"{_name(data)}: all training images are of class {classes[0]!r}: there must be two classes")
    number = {name: index for index, name in enumerate(classes)}
    pixels = splits["train"].images
    mean, sd = pixels.mean((0, 2, 3), dtype=np.float64), pixels.std((0, 2, 3), dtype=np.float64)
    part = Path(tempfile.mkdtemp(prefix=folder.name, suffix=".part", dir=folder.parent))
    try:
        for split, found in splits.items():
            for name in set(found.labels) - set(classes):
                raise UserError(
                    f"{_name(data)}: the {split} split has class {name!r}, which the training split lacks"
                )
            np.save(part / f"{split}.npy", found.images)
            np.save(part / f"{split}_labels.npy", np.array([number[name] for name in found.labels], dtype=np.int64))
        meta = {
            "classes": list(FASHION_NAMES) if data.corpus == "fashion_mnist" else classes,
            "shape": pixels.shape[1:],
            "peak": peak,
            "mean": mean.tolist(),
            "sd": np.where(sd > 0, sd, 1.0).tolist(),  # a channel that is the same everywhere
            "bytes": {file.name: file.stat().st_size for file in part.iterdir()},
        }
        (part / "meta.json").write_text(json.dumps(meta))
        shutil.rmtree(folder, ignore_errors=True)  # torn, or not there
        os.rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _by_number(name: str) -> tuple[int, int, str]:
    """Names that are numbers in their order, before others."""
    return (0, int(name), "") if name.isdecimal() else (1, 0, name)


def _name(data: DataSpec) -> str:
    return str(data.corpus or (dict(data.path)["train"] if isinstance(data.path, tuple) else data.path))


def _read_splits(data: DataSpec) -> tuple[dict[str, Labelled], float]:
    """The images of every split, and the largest value that a pixel may have."""
    if data.corpus == "digits":
        return shared_out(load_digits(), data.valid, data.test, _name(data)), 16.0
    found = {split: read(place) for split, place in _places(data).items()}
    kinds = {split: (each.images.shape[1:], each.images.dtype) for split, each in found.items()}
    for split, kind in kinds.items():
        (split_before, before), *_ = kinds.items()
        if kind != before:
            raise UserError(
                f"{_name(data)}: images of the {split} split are {_kind(*kind)}, of the {split_before} split "
                f"{_kind(*before)}: all must be of one size"
            )
    if "all" in found:
        found = shared_out(found["all"], data.valid, data.test, _name(data))
    elif "valid" not in found:
        cut = shared_out(found["train"], data.valid, 0.0, _name(data))
        found = {"train": cut["train"], "valid": cut["valid"], "test": found["test"]}
    return found, 1.0 if found["train"].images.dtype.kind == "f" else 255.0


def _kind(shape: tuple[int, ...], dtype: np.dtype) -> str:
    channels, height, width = shape
    return f"{width} x {height} pixels in {channels} channel{'s' * (channels > 1)} of {dtype}"


def load_digits() -> Labelled:
    """The 1,797 handwritten digits of 8 x 8 pixels from 0 to 16 that scikit-learn carries (Alpaydin and Kaynak
    1998, the UCI set's test part)."""
    from sklearn import datasets

    digits = datasets.load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    if hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest() != DIGITS:
        raise UserError("scikit-learn's digits are not those that this version knows")
    return Labelled(images[:, None], tuple(str(each) for each in labels.tolist()))


def shared_out(found: Labelled, valid: float, test: float, name: str) -> dict[str, Labelled]:
    """The images by split, about these fractions of them, by a hash of their pixels: equal images never lie on both
    sides, and an image's side does not depend on its place."""
    if len(found.labels) < FEWEST_IMAGES:
        raise UserError(f"{name}: {len(found.labels)} images are too few to split: there must be {FEWEST_IMAGES}")
    hashes = np.array(
        [
            int.from_bytes(hashlib.blake2b(np.ascontiguousarray(image).tobytes(), digest_size=8).digest(), "little")
            for image in found.images
        ],
        dtype=np.uint64,
    )
    ordered = np.sort(hashes)
    n_valid, n_test = (max(1, round(len(hashes) * fraction)) if fraction else 0 for fraction in (valid, test))
    below_test, below_valid = ordered[n_test], ordered[min(n_test + n_valid, len(hashes) - 1)]
    of_split = {
        "train": hashes >= below_valid,
        "valid": (hashes >= below_test) & (hashes < below_valid),
        "test": hashes < below_test,
    }
    made = {}
    for split, chosen in of_split.items():
        labels = tuple(label for label, mine in zip(found.labels, chosen, strict=True) if mine)
        made[split] = Labelled(found.images[chosen], labels)
        if not labels and (split != "test" or test):
            raise UserError(f"{name}: the {split} split is empty: there are too few different images")
    return made
