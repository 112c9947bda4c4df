"""Where images come from, how they are split, and what is refused."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import opened, resolved
from PIL import Image

from ablate.data import images as images_module
from ablate.data.image_files import read_picture, sheet, write_sheet
from ablate.data.images import FASHION_MNIST, load_digits, open_images
from ablate.errors import SpecError, UserError


def paint(folder: Path, per_class: int = 12, size: tuple[int, int] = (6, 4), classes: str = "ab") -> None:
    """PNG files in a folder for each class; every image is another one."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(per_class):
            pixels = np.full(size[::-1], 100 * number + index, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index:03}.png")


def write_idx(folder: Path, split: str, count: int, seed: int = 0, packed: bool = True) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 5, 7), dtype=np.uint8)
    labels = (np.arange(count) % 3).astype(np.uint8)
    folder.mkdir(exist_ok=True)
    for kind, values in (("images-idx3", pixels), ("labels-idx1", labels)):
        content = struct.pack(f">HBB{values.ndim}i", 0, 8, values.ndim, *values.shape) + values.tobytes()
        name = f"{split}-{kind}-ubyte" + (".gz" if packed else "")
        (folder / name).write_bytes(gzip.compress(content) if packed else content)
    return pixels


# ---- where images come from


def test_digits_are_split_by_their_pixels(tmp_path: Path) -> None:
    """Every digit once, about the fractions asked for, the sides decided by the pixels alone; read from the cache."""
    task = opened(tmp_path, valid=0.15, test=0.2)
    splits = task.images.splits
    assert [len(labels) for _, labels in splits.values()] == [1168, 270, 359]
    everything = load_digits()
    of_pixels = {
        image.tobytes(): int(label) for image, label in zip(everything.images, everything.labels, strict=True)
    }
    seen: set[bytes] = set()
    for pixels, labels in splits.values():
        for image, label in zip(pixels, labels, strict=True):
            assert of_pixels[image.tobytes()] == label and image.tobytes() not in seen
            seen.add(image.tobytes())
    assert len(seen) == 1797
    turned = images_module.Labelled(everything.images[::-1], everything.labels[::-1])
    again = images_module.shared_out(turned, 0.15, 0.2, "turned")
    assert {image.tobytes() for image in again["test"].images} == {image.tobytes() for image in splits["test"][0]}
    assert task.facts()["train_images"] == 1168 and task.shape["image"] == (1, 8, 8) and task.shape["classes"] == 10


def test_the_cache_is_made_once_and_again_where_it_is_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = resolved()
    first = open_images(data, tmp_path)
    made: list[int] = []
    monkeypatch.setattr(images_module, "load_digits", lambda: (made.append(1), load_digits())[1])
    assert open_images(data, tmp_path).fingerprint == first.fingerprint and not made
    (first.folder / "test.npy").write_bytes(b"")
    assert len(open_images(data, tmp_path).splits["test"][1]) == len(first.splits["test"][1]) and made == [1]
    assert not list(tmp_path.glob("images/*.part"))


def test_equal_images_are_on_one_side(tmp_path: Path) -> None:
    paint(tmp_path / "data", per_class=40)
    for name in "ab":
        for file in sorted((tmp_path / "data" / name).iterdir()):
            file.with_name(f"copy_{file.name}").write_bytes(file.read_bytes())
    found = opened(tmp_path / "cache", path=str(tmp_path / "data"), valid=0.2, test=0.2).images.splits
    sides = {split: {image.tobytes() for image in pixels} for split, (pixels, _) in found.items()}
    assert sum(map(len, sides.values())) == 80 and sum(len(labels) for _, labels in found.values()) == 160


def test_a_folder_of_classes(tmp_path: Path) -> None:
    """Relative to the grid; 4 high and 6 wide; classes by name, numbers in their order; notes are left alone."""
    paint(tmp_path / "data", classes="b")
    for name in ("10", "9"):
        (tmp_path / "data" / "b").rename(tmp_path / "data" / name)
        paint(tmp_path / "data", classes="b")
    (tmp_path / "data" / "README.md").write_text("notes")
    (tmp_path / "data" / "b" / "notes.txt").write_text("notes")
    for index, file in enumerate(sorted((tmp_path / "data").rglob("*.png"))):
        Image.fromarray(np.full((4, 6), index, dtype=np.uint8)).save(file)
    task = opened(tmp_path / "cache", folder=tmp_path, path="data", valid=0.2, test=0.2)
    assert task.images.classes == ("9", "10", "b") and task.images.shape == (1, 4, 6)
    for pixels, labels in task.images.splits.values():
        assert [int(image[0, 0, 0]) // 12 for image in pixels] == [(1, 0, 2)[label] for label in labels]


def test_folders_for_splits(tmp_path: Path) -> None:
    """A validation split is taken from the training split where there is none."""
    for split, classes in (("train", "ab"), ("test", "b")):
        paint(tmp_path / "data" / split, per_class=20, classes=classes)
    found = opened(tmp_path / "cache", path=str(tmp_path / "data"), valid=0.25).images.splits
    assert {split: len(labels) for split, (_, labels) in found.items()} == {"train": 30, "valid": 10, "test": 20}
    paint(tmp_path / "data" / "val", per_class=5)
    other = opened(tmp_path / "cache", path=str(tmp_path / "data"), valid=0.25).images.splits
    assert {split: len(labels) for split, (_, labels) in other.items()} == {"train": 40, "valid": 10, "test": 20}
    named = {split: str(tmp_path / "data" / folder) for split, folder in
             (("train", "train"), ("valid", "val"), ("test", "test"))}  # fmt: skip
    assert resolved(path=named).content == resolved(path=str(tmp_path / "data")).content


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files(tmp_path: Path, packed: bool) -> None:
    pixels = write_idx(tmp_path / "data", "train", 40, packed=packed)
    test = write_idx(tmp_path / "data", "t10k", 10, seed=1, packed=packed)
    task = opened(tmp_path / "cache", path=str(tmp_path / "data"), valid=0.25)
    found = task.images.splits
    assert np.array_equal(found["test"][0][:, 0], test) and found["test"][1].tolist() == [
        0,
        1,
        2,
        0,
        1,
        2,
        0,
        1,
        2,
        0,
    ]
    both = {image.tobytes() for split in ("train", "valid") for image in found[split][0]}
    assert both == {image.tobytes() for image in pixels} and len(found["valid"][1]) == 10


@pytest.mark.parametrize("colour", [True, False])
def test_npz_files(tmp_path: Path, colour: bool) -> None:
    """Channels last in the file; floats are from 0 to 1."""
    pixels = np.random.default_rng(0).random((60, 4, 5, 3) if colour else (60, 4, 5))
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.array(["x", "y", "z"] * 20))
    task = opened(tmp_path / "cache", path=str(tmp_path / "a.npz"), valid=0.2, test=0.2)
    assert task.images.classes == ("x", "y", "z") and task.images.shape == (3 if colour else 1, 4, 5)
    assert task.images.peak == 1.0
    first = task.images.splits["train"][0][0]
    expected = pixels.astype(np.float32)
    assert any(np.array_equal(first, each.transpose(2, 0, 1) if colour else each[None]) for each in expected)


def test_npz_files_for_splits_have_images_of_one_size(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        pixels = rng.integers(0, 256, (count, 4, 5), dtype=np.uint8)
        np.savez(tmp_path / f"{split}.npz", images=pixels, labels=np.arange(count) % 2)
    found = opened(tmp_path / "cache", path=str(tmp_path), valid=0.25).images.splits
    assert {split: len(labels) for split, (_, labels) in found.items()} == {"train": 30, "valid": 10, "test": 10}
    np.savez(tmp_path / "test.npz", images=np.zeros((10, 5, 4), np.uint8), labels=np.arange(10) % 2)
    with pytest.raises(
        UserError, match="images of the train split are 5 x 4 pixels in 1 channel of uint8, of the te"
    ):
        opened(tmp_path / "cache", path=str(tmp_path), valid=0.25)


def test_colours_and_transparency(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 4), dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    assert np.array_equal(read_picture(tmp_path / "a.png"), pixels[..., :3].transpose(2, 0, 1))
    Image.fromarray(pixels[..., 0]).save(tmp_path / "b.png")
    assert np.array_equal(read_picture(tmp_path / "b.png"), pixels[None, ..., 0])


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="needs dataset-fashion-mnist")
def test_fashion_mnist(tmp_path: Path) -> None:
    task = opened(tmp_path, corpus="fashion_mnist")
    assert {split: len(labels) for split, (_, labels) in task.images.splits.items()} == {
        "train": 57_000, "valid": 3_000, "test": 10_000,
    }  # fmt: skip
    assert task.images.shape == (1, 28, 28) and task.images.classes[9] == "Ankle boot"
    assert task.images.splits["test"][1][:5].tolist() == [9, 2, 1, 1, 6]


# ---- what is refused


def spoil(file: Path, **how: Any) -> None:
    Image.new(how.get("mode", "L"), how.get("size", (6, 4))).save(file)


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "sizes": (lambda at: spoil(at / "b" / "005.png", size=(6, 5)),
              r"b/005.png: the image is 6 x 5 pixels in grey, but .*a/000.png is 6 x 4 pixels in grey"),
    "colour": (lambda at: spoil(at / "b" / "005.png", mode="RGB"), r"b/005.png: the image is 6 x 4 pixels in colour"),
    "no image": (lambda at: (at / "a" / "000.png").write_text("text"), r"a/000.png: cannot be read as an image"),
    "16 bits": (lambda at: spoil(at / "a" / "000.png", mode="I;16"), r"a/000.png: pixels of mode I;16, not of 8"),
    "empty class": (lambda at: (at / "c").mkdir(), r"data/c holds no PNG or JPEG file"),
    "one class": (lambda at: [file.unlink() for file in [*(at / "b").iterdir()]] + [(at / "b").rmdir()],
                  r"12 images are too few to split: there must be 20"),
    "rare class": (lambda at: [(at / "c").mkdir(), spoil(at / "c" / "0.png")], r"class 'c', which the training"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_a_folder_name_the_file(tmp_path: Path, mistake: str) -> None:
    paint(tmp_path / "data")
    change, message = MISTAKES[mistake]
    change(tmp_path / "data")
    with pytest.raises(UserError, match=message):
        opened(tmp_path / "cache", path=str(tmp_path / "data"), valid=0.2, test=0.2)


def test_one_class_is_no_classes(tmp_path: Path) -> None:
    paint(tmp_path / "data", per_class=30, classes="a")
    with pytest.raises(UserError, match="all training images are of class 'a': there must be two classes"):
        opened(tmp_path / "cache", path=str(tmp_path / "data"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros((30, 4, 5), np.uint8)}, "must hold the arrays images and labels, not images"),
        ({"images": np.zeros((30, 4)), "labels": np.zeros(30, int)}, r"images of shape \(30, 4\) must be"),
        ({"images": np.zeros((30, 4, 5)), "labels": np.zeros(29, int)}, r"labels of shape \(29,\) .* must be 30"),
        ({"images": np.zeros((30, 4, 5)), "labels": np.zeros(30)}, "type float64 must be 30 integers or texts"),
        ({"images": np.full((30, 4, 5), 1.5), "labels": np.zeros(30, int)}, "pixel 1.5 must lie between 0 and 1"),
        ({"images": np.full((30, 4, 5), np.nan), "labels": np.zeros(30, int)}, "pixel nan must lie between 0 and 1"),
        ({"images": np.full((30, 4, 5), 256), "labels": np.zeros(30, int)}, "pixel 256 must lie between 0 and 255"),
    ],
)
def test_mistakes_in_an_npz_file(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=message):
        opened(tmp_path / "cache", path=str(tmp_path / "a.npz"))


def test_mistakes_in_idx_files(tmp_path: Path) -> None:
    write_idx(tmp_path / "data", "train", 40, packed=False)
    file, labels = (tmp_path / "data" / f"train-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
    whole = file.read_bytes()
    for content, message in (
        (whole[:-1], "1399 bytes where the sizes"),
        (b"\0\0\r" + whole[3:], "begins with 00 00 0d"),
    ):
        file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            opened(tmp_path / "cache", path=str(file))
    file.write_bytes(whole)
    labels.write_bytes(struct.pack(">HBBi", 0, 8, 1, 2) + b"\0\1")
    with pytest.raises(UserError, match="2 labels for the 40 images of train-images"):
        opened(tmp_path / "cache", path=str(file))
    labels.unlink()
    with pytest.raises(UserError, match=r"labels-idx1-ubyte: cannot be read: No such file"):
        opened(tmp_path / "cache", path=str(file))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"corpus": "mnist"}, "unknown corpus 'mnist'.*known: digits, fashion_mnist"),
        ({"hub": "mnist"}, "hub: images come from data.corpus or data.path"),
        ({"tokenizer": "characters"}, "tokenizer: has no effect: task 'image' reads images"),
        ({"column": "image"}, "column: has no effect"),
        ({"seq_len": 64}, "seq_len: 64 has no effect"),
        ({"path": "nowhere"}, "path: .*nowhere does not exist"),
    ],
)
def test_settings_that_images_have_no_use_for(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        resolved(tmp_path, **fields)


def test_the_package_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "FASHION_MNIST", Path("/nowhere/fashion-mnist"))
    with pytest.raises(SpecError, match="apt-get install -y dataset-fashion-mnist"):
        resolved(corpus="fashion_mnist")


def test_a_sheet_of_images(tmp_path: Path) -> None:
    images = np.arange(1, 13, dtype=np.uint8).reshape(3, 1, 2, 2)
    assert sheet(images, 2)[0].tolist() == [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 1, 2, 0, 5, 6, 0],
        [0, 3, 4, 0, 7, 8, 0],
        [0, 0, 0, 0, 0, 0, 0],
        [0, 9, 10, 0, 0, 0, 0],
        [0, 11, 12, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0],
    ]
    write_sheet(tmp_path / "new" / "a.png", images, 2, enlarge=3)
    assert np.array_equal(read_picture(tmp_path / "new" / "a.png")[0, ::3, ::3], sheet(images, 2)[0])
