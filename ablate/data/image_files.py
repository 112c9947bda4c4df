"""Images from files: folders of classes, IDX files, NumPy archives; and a sheet of images as a PNG."""

from __future__ import annotations

import gzip
import math
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ablate.data.corpora import SPLIT_NAMES
from ablate.errors import UserError

PICTURES = (".png", ".jpg", ".jpeg")
GREY, COLOUR = ("1", "L", "LA"), ("P", "RGB", "RGBA", "CMYK", "YCbCr")  # Pillow's modes
IDX_NAMES = {"t10k": "test"}  # of the files of MNIST and its like


@dataclass(frozen=True)
class Labelled:
    """Images (N, C, H, W), uint8 or float32 from 0 to 1, and the name of each one's class."""

    images: np.ndarray
    labels: tuple[str, ...]


def places_of(path: Path) -> dict[str, Path]:
    """Where each split lies: `all` where the images are not split. A place is a folder with one folder for each
    class, a file of images in the IDX format, or an .npz file.

    A folder may hold train, test and valid (validation, val, dev) as folders or .npz files, or IDX files whose names
    begin with them (t10k is test, as MNIST's are called). Raises `UserError`.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.is_file():
        return {"all": path}
    found: dict[str, Path] = {}
    for each in sorted(path.iterdir()):
        is_place = each.is_dir() or each.suffix == ".npz" or _is_idx_of_images(each)
        split = (SPLIT_NAMES | IDX_NAMES).get(each.name.split(".")[0].split("-")[0].split("_")[0].lower())
        if is_place and split is not None and not each.name.startswith("."):
            if split in found:
                raise UserError(f"{path}: both {found[split].name} and {each.name} are the {split} split")
            found[split] = each
    return found if {"train", "test"} <= set(found) else {"all": path}


def files_of(place: Path) -> list[Path]:
    """The files that `read` reads, in order."""
    if place.is_dir():
        return [file for _, file in _pictures(place)]
    return [place, _labels_beside(place)] if _is_idx_of_images(place) else [place]


def read(place: Path) -> Labelled:
    """The images of one place. Raises `UserError` naming the file for whatever is not as it should be."""
    try:
        if place.is_dir():
            return _read_folder(place)
        if place.suffix == ".npz":
            return _read_npz(place)
        if _is_idx_of_images(place):
            return _read_idx(place)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{place}: cannot be read: {error}") from None
    raise UserError(
        f"{place}: no images: give a folder with a folder for each class, an .npz file, or a file of images in the "
        "IDX format whose name says images and idx3"
    )


def _pictures(folder: Path) -> Iterator[tuple[str, Path]]:
    """The class and the file of every picture."""
    classes = [each for each in sorted(folder.iterdir()) if each.is_dir() and not each.name.startswith(".")]
    if not classes:
        raise UserError(f"{folder} holds no folders: there must be one for each class, with PNG or JPEG files")
    for each in classes:
        files = sorted(file for file in each.iterdir() if file.suffix.lower() in PICTURES)
        if not files:
            raise UserError(f"{each} holds no PNG or JPEG file: every folder is a class")
        yield from ((each.name, file) for file in files)


def _read_folder(folder: Path) -> Labelled:
    images, labels = [], []
    first: tuple[Path, np.ndarray] | None = None
    for label, file in _pictures(folder):
        pixels = read_picture(file)
        if first is None:
            first = file, pixels
        elif pixels.shape != first[1].shape:
            raise UserError(
                f"{file}: the image is {_size(pixels)}, but {first[0]} is {_size(first[1])}: all must be of one size"
            )
        images.append(pixels)
        labels.append(label)
    return Labelled(np.stack(images), tuple(labels))


def _size(pixels: np.ndarray) -> str:
    channels, height, width = pixels.shape
    return f"{width} x {height} pixels {'in colour' if channels == 3 else 'in grey'}"


def read_picture(file: Path) -> np.ndarray:
    """A PNG or JPEG file as (C, H, W) uint8: one channel where it is grey, else three. Transparency is dropped."""
    from PIL import Image

    try:
        with Image.open(file, formats=("PNG", "JPEG")) as image:
            if image.mode not in GREY + COLOUR:
                raise UserError(f"{file}: pixels of mode {image.mode}, not of 8 bits: convert it first")
            pixels = np.asarray(image.convert("L" if image.mode in GREY else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{file}: cannot be read as an image: {error}") from None
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _read_npz(file: Path) -> Labelled:
    try:
        with np.load(file, allow_pickle=False) as archive:
            if not {"images", "labels"} <= set(archive.files):
                raise UserError(f"{file}: must hold the arrays images and labels, not {', '.join(archive.files)}")
            images, labels = archive["images"], archive["labels"]
    except (ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{file}: cannot be read as .npz: {error}") from None
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
        raise UserError(f"{file}: images of shape {images.shape} must be (N, H, W), (N, H, W, 1) or (N, H, W, 3)")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iuU":
        raise UserError(
            f"{file}: labels of shape {labels.shape} and type {labels.dtype} must be {len(images)} integers or texts"
        )
    return Labelled(_as_pixels(images, file).transpose(0, 3, 1, 2), tuple(str(each) for each in labels.tolist()))


def _as_pixels(images: np.ndarray, file: Path) -> np.ndarray:
    """As uint8, or float32 from 0 to 1. Raises `UserError` for values outside."""
    top, kind = (1, np.float32) if images.dtype.kind == "f" else (255, np.uint8)
    if images.dtype.kind not in "fiu":
        raise UserError(f"{file}: images of type {images.dtype} must be numbers")
    wrong = images[~((images >= 0) & (images <= top))]
    if wrong.size:
        raise UserError(f"{file}: the pixel {wrong[0]} must lie between 0 and {top}, as images are {images.dtype}")
    return images.astype(kind)


def _is_idx_of_images(file: Path) -> bool:
    return file.is_file() and "images" in file.name and "idx3" in file.name


def _labels_beside(file: Path) -> Path:
    return file.with_name(file.name.replace("images", "labels").replace("idx3", "idx1"))


def _read_idx(file: Path) -> Labelled:
    beside = _labels_beside(file)
    if not beside.is_file():
        raise UserError(f"{beside} does not exist: it must hold the labels of {file.name}")
    images, labels = read_idx(file, 3), read_idx(beside, 1)
    if len(images) != len(labels):
        raise UserError(f"{beside}: {len(labels)} labels for the {len(images)} images of {file.name}")
    return Labelled(images[:, None], tuple(str(each) for each in labels.tolist()))


def read_idx(file: Path, axes: int) -> np.ndarray:
    """An array of bytes in the IDX format: 0, 0, 8, the number of axes, each one's size in four bytes, the values."""
    content = file.read_bytes()
    if file.suffix == ".gz":
        content = gzip.decompress(content)
    if content[:4] != bytes((0, 0, 8, axes)) or len(content) < 4 + 4 * axes:
        raise UserError(f"{file}: begins with {content[:4].hex(' ')}: no IDX file of bytes with {axes} axes")
    sizes = tuple(np.frombuffer(content, ">i4", axes, 4).tolist())
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
    if len(values) != math.prod(sizes) or not len(values):
        raise UserError(f"{file}: {len(values)} bytes where the sizes {sizes} ask for {math.prod(sizes)}")
    return values.reshape(sizes)


def sheet(images: np.ndarray, columns: int, margin: int = 1) -> np.ndarray:
    """Images (N, C, H, W) side by side, `columns` in a row, black where there is none: (C, rows H, columns W) with
    margins."""
    N, C, H, W = images.shape
    rows = -(-N // columns)
    made = np.zeros((C, rows * (H + margin) + margin, columns * (W + margin) + margin), dtype=images.dtype)
    for index, image in enumerate(images):
        top, left = (
            place * (side + margin) + margin for place, side in zip(divmod(index, columns), (H, W), strict=True)
        )
        made[:, top : top + H, left : left + W] = image
    return made


def write_sheet(file: Path, images: np.ndarray, columns: int, enlarge: int = 1) -> None:
    """Write images (N, C, H, W), uint8, as one PNG file, `columns` in a row, each pixel `enlarge` wide and high."""
    from PIL import Image

    pixels = sheet(images, columns).repeat(enlarge, 1).repeat(enlarge, 2)
    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file, format="PNG")
