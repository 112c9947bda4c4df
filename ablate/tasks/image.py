"""Classifying images, and what all tasks on images share."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ablate import registry
from ablate.arch import ArchSpec
from ablate.build import Shape, site_of
from ablate.data.batches import keys_of
from ablate.data.images import CORPORA, Images, open_images, resolve_images
from ablate.data.rows import RowOrder, spread
from ablate.errors import UserError, within
from ablate.registry import register
from ablate.run.files import read_json, write_json, write_whole
from ablate.spec import DataSpec, TrainSpec
from ablate.tasks.base import Batch, Meter, Task
from ablate.tasks.classify import LabelMeter

FITTED_ON = 4000  # training images at most that the simple classifier sees
JUDGED = 2000  # validation images at most that it is measured on


class ImageTask(Task):
    """A task on labelled images. Subclasses say what is made of them. An image counts as one token."""

    causal = False
    corpora: ClassVar[tuple[str, ...]] = CORPORA

    @classmethod
    def resolve(cls, data: DataSpec, folder: Path) -> DataSpec:
        return resolve_images(data, folder)

    @classmethod
    def specimen(cls, folder: Path) -> dict[str, Any]:
        return {"corpus": "digits"}

    def open(self, data: DataSpec, cache: Path) -> None:
        self.data = data
        self.images: Images = open_images(data, cache)

    @property
    def vocab(self) -> int:
        return 0

    @property
    def max_len(self) -> int:
        """Every pixel, and a token before them: what no patch embedding exceeds."""
        return self.images.shape[1] * self.images.shape[2] + 1

    def length(self, arch: ArchSpec) -> int:
        """The tokens that the architecture's embedding makes of an image, so that tables of positions have as many
        rows; found by running the embedding without values. 1 for a whole model, which has no tokens."""
        if arch.model is not None:
            return 1
        with torch.device("meta"):
            site = site_of(arch, Shape(self.vocab, self.max_len, len(self.images.classes), self.images.shape), False)
            embedding = registry.make("embedding", arch.embedding, site)
            return int(embedding(torch.zeros(1, *self.images.shape)).shape[1])

    @property
    def shape(self) -> dict[str, Any]:
        return {"causal": False, "classes": len(self.images.classes), "image": self.images.shape}

    @property
    def train_tokens(self) -> int:
        return len(self.images.splits["train"][1])

    def facts(self) -> dict[str, Any]:
        images = self.images
        return {
            "corpus": str(self.data.corpus or self.data.path),
            "fingerprint": images.fingerprint,
            "image": list(images.shape),
            "classes": list(images.classes),
            **{f"{split}_images": len(images.splits[split][1]) for split in self.splits},
            "baselines": self.baselines(),
        }

    def baselines(self) -> list[dict[str, Any]]:
        raise NotImplementedError

    def order(self, train: TrainSpec, seed: int) -> RowOrder:
        """Which images every step reads."""
        return RowOrder(self.train_tokens, train.batch_tokens, f"{self.images.fingerprint}/{seed}")


@register("task", "image", paper="LeCun et al. 1998; Dosovitskiy et al. 2021, arXiv:2010.11929", form="image")
class ImageClassification(ImageTask):
    """Say the class of an image: loss = -log p(class) in nats per image; accuracy, the mean over classes of
    F1 = 2 precision recall / (precision + recall), and Matthews' correlation.

    Corpora: `digits`, scikit-learn's 1,797 digits of 8 x 8 pixels; `fashion_mnist`, 70,000 pictures of clothes of
    28 x 28 pixels (Xiao, Rasul and Vollgraf 2017), from Debian's package dataset-fashion-mnist. `data.path`: a
    folder with a folder of PNG or JPEG files for each class (or train and test folders of such), IDX files, or an
    .npz file with images and labels. What is not split is split by a hash of the pixels: the images with the
    smallest hashes are the test split, `data.test` of all, the next ones `data.valid`; where there is no validation
    split it is cut from the training split so.

    Pixels are scaled to mean 0 and deviation 1 in each channel of the training split. In training an image is
    moved by up to `shift` pixels across and down, zeros coming in, and flipped from left to right with probability
    1/2 where `flip` is set.
    """

    forms: ClassVar[tuple[str, ...]] = ("image",)
    metric = "accuracy"
    higher_is_better = True

    def __init__(self, *, shift: int = 0, flip: bool = False):
        within("task 'image': shift", shift, 0)
        self.shift, self.flip = shift, flip

    def open(self, data: DataSpec, cache: Path) -> None:
        super().open(data, cache)
        if self.shift >= min(self.images.shape[1:]):
            height, width = self.images.shape[1:]
            raise UserError(
                f"task 'image': shift {self.shift} moves images of {width} x {height} pixels out of sight"
            )

    def batches(self, train: TrainSpec, seed: int) -> ImageBatches:
        return ImageBatches(self.images, self.order(train, seed), self.shift, self.flip)

    def held_out(self, split: str, at_most: int, rows: int) -> Iterable[Batch]:
        pixels, labels = self.images.splits[split]
        chosen = spread(len(labels), at_most)
        for at in range(0, len(chosen), rows):
            here = chosen[at : at + rows]
            yield labelled(self.images.standard(pixels[here]), labels[here])

    def baselines(self) -> list[dict[str, Any]]:
        labels = self.images.splits["valid"][1]
        majority = np.bincount(self.images.splits["train"][1]).argmax()
        return [
            {"name": "majority class", "metric": "accuracy", "value": float((labels == majority).mean())},
            {"name": "logistic regression on pixels", "metric": "accuracy", "value": judge(self.images)},
        ]

    def meter(self, split: str, final: bool) -> Meter:
        return LabelMeter()


class ImageBatches:
    """Training images, moved and flipped as the task asks: a pure function of the seed and the step."""

    def __init__(self, images: Images, order: RowOrder, shift: int, flip: bool):
        self.images, self.order, self.shift, self.flip = images, order, shift, flip

    def __getitem__(self, step: int) -> Batch:
        pixels, labels = self.images.splits["train"]
        rows = self.order[step]
        found = pixels[rows]
        if self.shift or self.flip:
            rng = np.random.default_rng(keys_of(f"{self.order.key}/change/{step}"))
            down, across = rng.integers(-self.shift, self.shift + 1, (2, len(rows)))
            found = moved(found, down, across)
            if self.flip:
                mirrored = rng.random(len(rows)) < 0.5
                found[mirrored] = found[mirrored][..., ::-1]
        return labelled(self.images.standard(found), labels[rows])


def labelled(images: np.ndarray, labels: np.ndarray) -> Batch:
    return Batch((torch.from_numpy(images),), torch.from_numpy(labels))


def moved(pixels: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Images (N, C, H, W), each moved by its own number of pixels; zeros come in."""
    N, _, H, W = pixels.shape
    most = int(max(np.abs(down).max(initial=0), np.abs(across).max(initial=0)))
    wide = np.pad(pixels, ((0, 0), (0, 0), (most, most), (most, most)))
    rows_NH = most - down[:, None] + np.arange(H)
    columns_NW = most - across[:, None] + np.arange(W)
    found_NHWC = wide[np.arange(N)[:, None, None], :, rows_NH[:, :, None], columns_NW[:, None, :]]
    return np.ascontiguousarray(found_NHWC.transpose(0, 3, 1, 2))


class PixelClassifier:
    """A logistic regression on pixels, with scikit-learn's penalty (C = 1): the simple classifier of a data set."""

    def __init__(self, images: Images, weight: np.ndarray, bias: np.ndarray):
        self.images, self.weight, self.bias = images, weight, bias

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """The class of each image (N, C, H, W), its pixels as they are in the splits."""
        x = self.images.standard(pixels).reshape(len(pixels), -1)
        return np.asarray((x @ self.weight.T + self.bias).argmax(-1))


def simple_classifier(images: Images) -> PixelClassifier:
    """Fitted to 4,000 images of the training split at most; kept in the cache."""
    file = images.folder / "logistic_regression.npz"
    if not file.exists():
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        pixels, labels = images.splits["train"]
        rows = spread(len(labels), FITTED_ON)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            fitted = LogisticRegression(max_iter=200).fit(
                images.standard(pixels[rows]).reshape(len(rows), -1), labels[rows]
            )
        weight = np.full((len(images.classes), fitted.coef_.shape[1]), 0.0)
        bias = np.full(len(images.classes), -np.inf)  # of a class that it has not seen
        if len(fitted.classes_) == 2:
            weight[fitted.classes_[1]], bias[fitted.classes_] = fitted.coef_[0], (0.0, fitted.intercept_[0])
        else:
            weight[fitted.classes_], bias[fitted.classes_] = fitted.coef_, fitted.intercept_
        write_whole(file, lambda part: _save(part, weight, bias))
    with np.load(file, allow_pickle=False) as kept:
        return PixelClassifier(images, kept["weight"], kept["bias"])


def _save(part: Path, weight: np.ndarray, bias: np.ndarray) -> None:
    with open(part, "wb") as stream:
        np.savez(stream, weight=weight, bias=bias)


def judge(images: Images) -> float:
    """The simple classifier's accuracy on the validation split; kept in the cache."""
    file = images.folder / "judge.json"
    if (kept := read_json(file)) is None:
        pixels, labels = images.splits["valid"]
        rows = spread(len(labels), JUDGED)
        kept = {"accuracy": float((simple_classifier(images)(pixels[rows]) == labels[rows]).mean())}
        write_json(file, kept)
    return float(kept["accuracy"])
