"""Denoising images: class-conditional diffusion."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ablate.data.batches import keys_of, permute
from ablate.data.image_files import write_sheet
from ablate.data.images import Images
from ablate.data.rows import RowOrder, spread
from ablate.diffusion import Diffusion, Sampler, guided
from ablate.errors import UserError, plural, unknown, within
from ablate.registry import register
from ablate.run.files import read_json, write_json
from ablate.spec import TrainSpec
from ablate.tasks.base import Batch, Meter
from ablate.tasks.image import ImageTask, judge, simple_classifier

if TYPE_CHECKING:
    from ablate.sampling import SampleRequest

ROWS = 64  # images that are drawn together
COLUMNS = 10  # of a sheet of images
COMPARED = 500  # validation images at most whose neighbours are looked for
DRAWN_WITH = 0  # seed of the images that are drawn for a trial's figures: the same in all trials


@register("task", "denoise", paper="Ho, Jain and Abbeel 2020, arXiv:2006.11239; Peebles and Xie 2023", form="denoise")
class Denoising(ImageTask):
    """Say the noise in an image of known class: loss = mean over pixels of (e - e_model(x_t, t, class))^2, with
    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e, t uniform over `steps` times (1,000 in the paper; b_t is scaled where they
    are others, see `Diffusion`), e ~ N(0, I). Pixels from -1 to 1. Corpora and `data.path` as for task `image`.

    What a step is noised with depends on (data, seed, step) alone; held-out images keep their noise, and their times
    are evenly spread over all.

    After the last step `samples` images are drawn, so many of every class in turn, by `sampler` in `sample_steps`
    steps with classifier-free guidance of weight `guidance` (1: none), and measured:
    class_agreement, how many of them a logistic regression on pixels (fitted to 4,000 real images at most) says to
    be of the class that was asked for; nearest_train, the root mean square difference of pixels to the most similar
    image of the training split, the mean over samples: where it is far below that of real held-out images (a
    baseline in the facts), training images were memorised. `samples: 0` leaves both out.
    """

    forms: ClassVar[tuple[str, ...]] = ("denoise",)
    writes_file: ClassVar[bool] = True

    def __init__(
        self,
        *,
        steps: int = 1000,
        samples: int = 100,
        sampler: Literal["ddpm", "ddim"] = "ddim",
        sample_steps: int = 50,
        guidance: float = 1.5,
    ):
        self.diffusion = Diffusion(steps)
        within("task 'denoise': samples", samples, 0)
        within("task 'denoise': sample_steps", sample_steps, 1, steps)
        within("task 'denoise': guidance", guidance, 0)
        self.samples, self.guidance = samples, guidance
        self.sampler: Sampler = sampler
        self.sample_steps = sample_steps

    def batches(self, train: TrainSpec, seed: int) -> NoisedBatches:
        return NoisedBatches(self.images, self.diffusion, self.order(train, seed))

    def held_out(self, split: str, at_most: int, rows: int) -> Iterable[Batch]:
        pixels, labels = self.images.splits[split]
        chosen = spread(len(labels), at_most)
        key = f"{self.images.fingerprint}/{split}/{len(chosen)}"
        times = permute(np.arange(len(chosen)), len(chosen), keys_of(key)) * self.diffusion.steps // len(chosen)
        for at in range(0, len(chosen), rows):
            here = chosen[at : at + rows]
            noise = np.stack([_drawn(f"{key}/{row}", self.images.shape) for row in range(at, at + len(here))])
            yield noised(
                self.diffusion, self.images.centred(pixels[here]), labels[here], times[at : at + rows], noise
            )

    def baselines(self) -> list[dict[str, Any]]:
        return [
            {"name": "no noise seen", "metric": "loss", "value": 1.0},
            {"name": "validation images", "metric": "class_agreement", "value": judge(self.images)},
            {"name": "validation images", "metric": "nearest_train", "value": self.apart()},
        ]

    def apart(self) -> float:
        """`nearest_train` of validation images; kept in the cache."""
        file = self.images.folder / "apart.json"
        if (kept := read_json(file)) is None:
            pixels = self.images.splits["valid"][0]
            found = pixels[spread(len(pixels), COMPARED)]
            kept = {"nearest_train": float(nearest(self.images, self.images.centred(found)).mean())}
            write_json(file, kept)
        return float(kept["nearest_train"])

    def meter(self, split: str, final: bool) -> Meter:
        return SampleMeter(self) if final and split == "valid" and self.samples else Meter()

    def sample(
        self,
        model: nn.Module,
        rows: int,
        seed: int,
        *,
        classes: Sequence[int] | None = None,
        guidance: float | None = None,
        sampler: Sampler | None = None,
        sample_steps: int | None = None,
    ) -> Tensor:
        """Images drawn from the model, (rows, C, H, W) from -1 to 1, on the CPU. Row i is of class i modulo their
        number, unless `classes` names them (-1: of none); the other settings are the task's unless given.

        An image depends on the seed, its row and its class, and not on how many are drawn.
        """
        count = len(self.images.classes)
        asked = list(range(count)) if classes is None else list(classes)
        if not asked or not all(-1 <= each < count for each in asked):
            raise UserError(f"classes {asked} must be numbers from 0 to {count - 1}, or -1 for none")
        classes_N = torch.tensor([asked[row % len(asked)] for row in range(rows)]).remainder(count + 1)
        weight_of = next(model.parameters())

        def said(x: Tensor, t_B: Tensor, classes_B: Tensor) -> Tensor:
            return model(x.to(weight_of.dtype), t_B, classes_B)  # type: ignore[no-any-return]

        training = model.training
        model.eval()
        drawn = []
        for at in range(0, rows, ROWS):
            here = range(at, min(at + ROWS, rows))
            generators = [torch.Generator().manual_seed(_seed(f"sample/{seed}/{row}")) for row in here]
            weight = self.guidance if guidance is None else guidance
            images = self.diffusion.sample(
                guided(said, classes_N[at : at + ROWS].to(weight_of.device), count, weight),
                self.images.shape,
                generators,
                sampler=sampler or self.sampler,
                sample_steps=self.sample_steps if sample_steps is None else sample_steps,
            )
            drawn.append(images)
        model.train(training)
        return torch.cat(drawn) if drawn else torch.empty(0, *self.images.shape)

    def generate(self, model: nn.Module, request: SampleRequest) -> list[str]:
        """Write `request.count` images into a PNG file, ten in a row, and say so. The prompt names their classes,
        with commas or spaces between; all of them in turn without one."""
        classes = self.images.classes
        asked = [] if request.prompt is None else _names_in(request.prompt, classes)
        if request.how is not None or request.length is not None:
            raise UserError(
                f"task {self.data.task.name!r} draws images: ways to decode tokens have no effect on them"
            )
        if request.out is None or request.out.suffix.lower() != ".png":
            raise UserError(f"task {self.data.task.name!r} writes images: give --out FILE.png")
        numbers = [classes.index(name) for name in asked] or None
        images = self.pictures(self.sample(model, request.count, request.seed, classes=numbers))
        try:
            write_sheet(request.out, images, min(COLUMNS, request.count), enlarge=max(1, 64 // images.shape[-1]))
        except OSError as error:
            raise UserError(f"--out {request.out}: cannot be written: {error.strerror}") from None
        return [f"{plural(request.count, 'image')} of class {', '.join(asked or classes)} in turn: {request.out}"]

    def pictures(self, images: Tensor) -> np.ndarray:
        """Images from -1 to 1 as bytes, (N, C, H, W), for `image_files.write_sheet`."""
        return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy()


def _names_in(prompt: str, classes: Sequence[str]) -> list[str]:
    """The classes that a prompt names: parted by commas, else by spaces; or one name that has spaces."""
    text = prompt.strip()
    names = [text] if text in classes else [each.strip() for each in text.split("," if "," in text else None)]
    for name in names or [text]:
        if name not in classes:
            raise UserError(unknown("class", name, classes))
    return names


class NoisedBatches:
    """Training images with noise: a pure function of the seed and the step."""

    def __init__(self, images: Images, diffusion: Diffusion, order: RowOrder):
        self.images, self.diffusion, self.order = images, diffusion, order

    def __getitem__(self, step: int) -> Batch:
        pixels, labels = self.images.splits["train"]
        rows = self.order[step]
        rng = np.random.default_rng(keys_of(f"{self.order.key}/noise/{step}"))
        times = rng.integers(0, self.diffusion.steps, len(rows))
        clean = self.images.centred(pixels[rows])
        return noised(self.diffusion, clean, labels[rows], times, rng.standard_normal(clean.shape, np.float32))


def noised(
    diffusion: Diffusion, clean: np.ndarray, labels: np.ndarray, times: np.ndarray, noise: np.ndarray
) -> Batch:
    """One loss an image: every image counts, not every pixel."""
    t_B, e_BCHW = torch.from_numpy(times), torch.from_numpy(noise)
    images = diffusion.q_sample(torch.from_numpy(clean), t_B, e_BCHW)
    return Batch((images, t_B, torch.from_numpy(labels)), e_BCHW, torch.ones(len(labels), dtype=torch.bool))


def _drawn(key: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(keys_of(key)).standard_normal(shape, np.float32)


def _seed(key: str) -> int:
    return int(keys_of(key)[0] >> np.uint64(1))


class SampleMeter(Meter):
    """The loss; and of images that are drawn, whether they are of their class, and how far from training images."""

    def __init__(self, task: Denoising):
        super().__init__()
        self.task = task
        self.model: nn.Module | None = None

    def add(self, model: nn.Module, batch: Batch) -> None:
        super().add(model, batch)
        self.model = model

    def result(self) -> dict[str, float]:
        assert self.model is not None
        task = self.task
        images = task.sample(self.model, task.samples, DRAWN_WITH).numpy()
        if not np.isfinite(images).all():  # of a model that diverged
            return super().result()
        classes = np.arange(task.samples) % len(task.images.classes)
        said = simple_classifier(task.images)((images + 1) * (task.images.peak / 2))
        return {
            **super().result(),
            "class_agreement": float((said == classes).mean()),
            "nearest_train": float(nearest(task.images, images).mean()),
        }


def nearest(images: Images, found: np.ndarray) -> np.ndarray:
    """Of each image (N, C, H, W) from -1 to 1, the root mean square difference to the most similar training image."""
    pixels = images.splits["train"][0]
    x = torch.from_numpy(found).flatten(1)
    best = torch.full((len(x),), torch.inf)
    for at in range(0, len(pixels), 4096):
        y = torch.from_numpy(images.centred(pixels[at : at + 4096])).flatten(1)
        best = torch.minimum(best, torch.cdist(x, y).amin(1))
    return (best / x.shape[1] ** 0.5).numpy()
