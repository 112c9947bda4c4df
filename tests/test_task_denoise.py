"""Diffusion: the noise that is added, the samplers, guidance, the task's batches and figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import opened, trial
from runs import run_here, train
from torch import Tensor, nn

from ablate.data.image_files import read_picture
from ablate.diffusion import Diffusion, guided
from ablate.errors import SpecError, UserError
from ablate.run.ledger import Ledger
from ablate.spec import TrainSpec, parse_component
from ablate.tasks.base import Meter
from ablate.tasks.denoise import SampleMeter, nearest

QUICK = {"name": "denoise", "steps": 50, "samples": 20, "sample_steps": 5}


def seeds(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + number) for number in range(count)]


# ---- the schedule


def test_the_published_schedule() -> None:
    """Linear from 1e-4 to 0.02 in 1,000 steps; a-bar is the product, 4.04e-5 at the end."""
    found = Diffusion()
    betas = [1e-4 + (0.02 - 1e-4) * t / 999 for t in range(1000)]
    np.testing.assert_allclose(found.betas, betas, rtol=1e-12)
    products = [math.prod(1 - beta for beta in betas[: t + 1]) for t in (0, 10, 999)]
    np.testing.assert_allclose(found.alphas[[0, 10, 999]], products, rtol=1e-10)
    assert found.alphas[-1] == pytest.approx(4.04e-5, rel=1e-2)


def test_fewer_steps_reach_as_much_noise() -> None:
    """The betas are scaled by 1000 / steps."""
    found = Diffusion(100)
    assert found.betas[0] == pytest.approx(1e-3) and found.betas[-1] == pytest.approx(0.2)
    assert found.alphas[-1] < 1e-4
    with pytest.raises(UserError, match="steps 24 must be from 25"):
        Diffusion(24)


@pytest.mark.parametrize("t", [0, 300, 999])
def test_noised_images_have_the_right_mean_and_variance(t: int) -> None:
    """x_t ~ N(sqrt(a) x, 1 - a), within 5 standard errors of 40,000 draws; and by hand."""
    diffusion = Diffusion()
    noise = torch.randn(10_000, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, times = torch.full_like(noise, 0.7), torch.full((10_000,), t)
    found, alpha = diffusion.q_sample(x, times, noise), diffusion.alphas[t]
    deviation = math.sqrt(1 - alpha)
    assert found.mean().item() == pytest.approx(math.sqrt(alpha) * 0.7, abs=5 * deviation / 200)
    assert found.var().item() == pytest.approx(1 - alpha, rel=5 * math.sqrt(2 / 40_000))
    assert found[3, 0, 1, 1].item() == pytest.approx(0.7 * math.sqrt(alpha) + noise[3, 0, 1, 1].item() * deviation)


def test_every_image_has_its_own_time() -> None:
    diffusion = Diffusion(50)
    x, noise, times = torch.ones(3, 1, 2, 2), torch.zeros(3, 1, 2, 2), torch.tensor([49, 0, 20])
    found = diffusion.q_sample(x, times, noise)[:, 0, 0, 0]
    np.testing.assert_allclose(found, np.sqrt(diffusion.alphas[[49, 0, 20]]), rtol=1e-6)


# ---- the samplers


def test_times_go_from_the_last_to_0() -> None:
    assert Diffusion(50).times(50) == Diffusion(50).times(99) == list(range(49, -1, -1))
    assert Diffusion(101).times(5) == [100, 75, 50, 25, 0]
    assert Diffusion(50).times(1) == [49]


def perfect(diffusion: Diffusion, image: Tensor) -> Any:
    """The noise that is in x_t if this image is what was noised."""

    def noise_in(x: Tensor, t: Tensor) -> Tensor:
        alpha = torch.from_numpy(diffusion.alphas)[t][:, None, None, None].to(x.dtype)
        return (x - alpha.sqrt() * image) / (1 - alpha).sqrt()

    return noise_in


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("count", [1, 7, 100])
def test_with_a_perfect_noise_predictor_the_image_comes_back(sampler: Any, count: int) -> None:
    diffusion = Diffusion(100)
    image = torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    settings = {"sampler": sampler, "sample_steps": count}
    found = diffusion.sample(perfect(diffusion, image), (2, 4, 4), seeds(3), **settings)
    assert found.shape == (3, 2, 4, 4)
    np.testing.assert_allclose(found, image.expand(3, -1, -1, -1), atol=2e-4)  # float32 / sqrt(a_T)


def gaussian_noise(diffusion: Diffusion, mean: float, variance: float) -> Any:
    """The best prediction of the noise where images are N(mean, variance): E[e | x_t] in closed form."""

    def noise_in(x: Tensor, t: Tensor) -> Tensor:
        alpha = torch.from_numpy(diffusion.alphas)[t][:, None, None, None].to(x.dtype)
        return (1 - alpha).sqrt() * (x - alpha.sqrt() * mean) / (alpha * variance + 1 - alpha)

    return noise_in


@pytest.mark.parametrize(("sampler", "count"), [("ddim", 1000), ("ddpm", 1000)])
def test_samples_have_the_distribution_of_the_data(sampler: Any, count: int) -> None:
    """Images of independent pixels N(0.5, 0.04): mean and deviation of 40,000 pixels come back, within 2 %."""
    diffusion = Diffusion(1000)
    found = diffusion.sample(
        gaussian_noise(diffusion, 0.5, 0.04), (1, 100, 100), seeds(4), sampler=sampler, sample_steps=count, clip=False
    )
    assert found.mean().item() == pytest.approx(0.5, abs=0.01)
    assert found.std().item() == pytest.approx(0.2, rel=0.02)


def test_ddpm_steps_by_the_posterior_of_the_paper() -> None:
    """Equations 6 and 7 of Ho et al.: mean sqrt(a_s) b / (1 - a_t) x_0 + sqrt(1 - b) (1 - a_s) / (1 - a_t) x_t and
    variance (1 - a_s) / (1 - a_t) b, written out over all steps, the clean image held within [-1, 1]."""
    diffusion = Diffusion(30)
    predict = gaussian_noise(diffusion, 0.9, 1.0)
    found = diffusion.sample(predict, (1, 3, 3), seeds(2), sampler="ddpm", sample_steps=30)
    generators = seeds(2)
    draw = [torch.stack([torch.randn(1, 3, 3, generator=each) for each in generators]) for _ in range(30)]
    x = draw[0]
    clipped = False
    for step, t in enumerate(range(29, -1, -1)):
        a, s, b = diffusion.alphas[t], diffusion.alphas[t - 1] if t else 1.0, diffusion.betas[t]
        clean = (x - math.sqrt(1 - a) * predict(x, torch.full((2,), t))) / math.sqrt(a)
        clipped |= bool((clean.abs() > 1).any())
        clean = clean.clamp(-1, 1)
        x = math.sqrt(s) * b / (1 - a) * clean + math.sqrt(1 - b) * (1 - s) / (1 - a) * x
        if t:
            x = x + math.sqrt((1 - s) / (1 - a) * b) * draw[step + 1]
    assert clipped
    np.testing.assert_allclose(found, x, atol=1e-5)


def test_an_image_depends_on_its_own_generator_alone() -> None:
    diffusion = Diffusion(30)
    predict = gaussian_noise(diffusion, 0.0, 0.5)
    for sampler in ("ddim", "ddpm"):
        many = diffusion.sample(predict, (1, 3, 3), seeds(3), sampler=sampler, sample_steps=10)
        one = diffusion.sample(predict, (1, 3, 3), seeds(1, 2), sampler=sampler, sample_steps=10)
        assert torch.equal(many[2:], one) and not torch.equal(many[0], many[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"sampler": "euler"}, "unknown sampler 'euler'"), ({"sample_steps": 0}, "sample_steps 0 must be at least 1")],
)
def test_what_cannot_be_drawn_with(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Diffusion(30).sample(lambda x, t: x, (1, 3, 3), seeds(1), **settings)


def of_class(x: Tensor, t: Tensor, classes: Tensor) -> Tensor:
    """A model whose noise says what it was given."""
    return x + 100 * t[:, None, None, None] + 10 * classes[:, None, None, None]


@pytest.mark.parametrize(("weight", "shift"), [(0, 70), (1, 20), (1.5, -5), (4, -130)])
def test_guidance(weight: float, shift: float) -> None:
    """e(none) + w (e(class) - e(none)): 70 + w (20 - 70) beside what has no class, with 7 for none."""
    x, t = torch.ones(2, 1, 3, 3), torch.tensor([3, 4])
    found = guided(of_class, torch.tensor([2, 2]), 7, weight)(x, t)
    np.testing.assert_allclose(found[:, 0, 0, 0], [301 + shift, 401 + shift])
    with pytest.raises(UserError, match="guidance -1 must be at least 0"):
        guided(of_class, t, 7, -1)


# ---- the task


def step_batches(task: Any, seed: int = 0) -> Any:
    return task.batches(TrainSpec(batch_tokens=32), seed)


def test_a_batch_is_a_function_of_seed_and_step(token_cache: Path) -> None:
    task, other = (opened(token_cache, "denoise") for _ in range(2))
    batches, again = step_batches(task), step_batches(other)
    for step in (5, 3, 70):
        one, two = batches[step], again[step]
        assert all(torch.equal(a, b) for a, b in zip(one.inputs, two.inputs, strict=True))
        assert torch.equal(one.targets, two.targets)
    elsewhere = step_batches(task, seed=1)[5]
    for one, two in ((batches[5], elsewhere), (batches[5], batches[6])):
        assert not torch.equal(one.targets, two.targets) and not torch.equal(one.inputs[1], two.inputs[1])


def test_a_batch_is_noised_images_from_minus_1_to_1(token_cache: Path) -> None:
    """Taking the noise away gives training images of the classes that are said; a loss for each image."""
    task = opened(token_cache, "denoise")
    pixels, labels = task.images.splits["train"]
    known = {image.tobytes(): int(label) for image, label in zip(pixels, labels, strict=True)}
    batch = step_batches(task)[0]
    images, times, classes = batch.inputs
    early = times < 500  # later, too little of the image is left in float32
    alpha = torch.from_numpy(task.diffusion.alphas)[times][:, None, None, None]
    clean = (images - (1 - alpha).sqrt() * batch.targets) / alpha.sqrt()
    bytes_of = (clean[early] * 8 + 8).round().to(torch.uint8).numpy()
    assert int(early.sum()) > 8
    assert [known[image.tobytes()] for image in bytes_of] == classes[early].tolist()
    assert batch.n == 32 and batch.rows(0, 5).n == 5
    assert batch.mean(torch.arange(32.0)).item() == pytest.approx(15.5)


def test_times_are_uniform(token_cache: Path) -> None:
    batches = step_batches(opened(token_cache, {"name": "denoise", "steps": 50}))
    times = torch.cat([batches[step].inputs[1] for step in range(100)])
    counts = torch.bincount(times, minlength=50)
    assert len(counts) == 50 and (counts - 64).abs().max() < 5 * 8


def test_held_out_noise_is_fixed(token_cache: Path) -> None:
    """The same in batches of any size; times evenly spread, each tenth of them equally often."""
    task = opened(token_cache, "denoise", valid=0.2)
    one, two = (list(task.held_out("valid", 200, rows)) for rows in (200, 33))
    assert len(one[0]) == 200
    for index in range(3):
        assert torch.equal(one[0].inputs[index], torch.cat([batch.inputs[index] for batch in two]))
    assert torch.equal(one[0].targets, torch.cat([batch.targets for batch in two]))
    times = one[0].inputs[1]
    assert sorted(times.tolist()) == [5 * index for index in range(200)] and times.tolist() != sorted(times.tolist())
    assert one[0].targets.double().std().item() == pytest.approx(1, abs=0.03)


class Zero(nn.Module):
    """A model that says no noise, or the noise of one image for each class."""

    def __init__(self, diffusion: Diffusion | None = None, images: Tensor | None = None):
        super().__init__()
        self.none = nn.Parameter(torch.zeros(1))
        self.diffusion, self.images = diffusion, images

    def forward(self, x: Tensor, t: Tensor, classes: Tensor) -> Tensor:
        if self.diffusion is None or self.images is None:
            return torch.zeros_like(x)
        return perfect(self.diffusion, self.images[classes])(x, t)

    def nll(self, x: Tensor, t: Tensor, classes: Tensor, noise: Tensor) -> Tensor:
        return (self(x, t, classes) - noise).square().mean((1, 2, 3))


def memory(task: Any) -> tuple[Zero, np.ndarray]:
    """A model that knows one training image of every class, and these."""
    pixels, labels = task.images.splits["train"]
    chosen = np.stack([pixels[np.flatnonzero(labels == number)[3]] for number in range(10)])
    images = torch.from_numpy(task.images.centred(chosen))
    return Zero(task.diffusion, torch.cat((images, torch.zeros(1, 1, 8, 8)))), chosen


def test_the_loss_is_per_pixel_and_1_where_nothing_is_seen(token_cache: Path) -> None:
    task = opened(token_cache, "denoise", valid=0.2)
    meter = task.meter("valid", final=False)
    noise = []
    for batch in task.held_out("valid", 10**6, 100):
        meter.add(Zero(), batch)
        noise.append(batch.targets)
    assert meter.result() == {"loss": pytest.approx(torch.cat(noise).double().square().mean().item())}
    assert meter.result()["loss"] == pytest.approx(1, abs=0.03)


def test_samples_that_are_training_images_are_told(token_cache: Path) -> None:
    """Their distance is 0, and a classifier of real images says the class that was asked for, for most."""
    task = opened(token_cache, {**QUICK, "guidance": 1.0})
    model, chosen = memory(task)
    meter = task.meter("valid", final=True)
    assert isinstance(meter, SampleMeter)
    for batch in task.held_out("valid", 50, 50):
        meter.add(model, batch)
    found = meter.result()
    assert found["nearest_train"] < 1e-4 and found["class_agreement"] >= 0.9
    drawn = task.sample(model, 20, seed=3)
    np.testing.assert_array_equal((drawn[10:].numpy() * 8 + 8).round(), chosen)
    assert type(task.meter("valid", final=False)) is type(task.meter("test", final=True)) is Meter
    assert type(opened(token_cache, {**QUICK, "samples": 0}).meter("valid", final=True)) is Meter


def test_classes_are_counted_against_those_asked_for(token_cache: Path) -> None:
    """A model that draws the class after the one that is asked for agrees with none."""
    task = opened(token_cache, {**QUICK, "guidance": 1.0})
    model, _ = memory(task)
    assert model.images is not None
    model.images = model.images.roll(1, 0)
    meter = task.meter("valid", final=True)
    for batch in task.held_out("valid", 50, 50):
        meter.add(model, batch)
    assert meter.result()["class_agreement"] <= 0.1


def test_the_nearest_training_image(token_cache: Path) -> None:
    """The root mean square difference of pixels, by comparing with every one."""
    images = opened(token_cache, "denoise").images
    found = images.centred(images.splits["valid"][0][:5])
    train_images = images.centred(images.splits["train"][0])
    expected = [min(math.sqrt(((one - other) ** 2).mean()) for other in train_images) for one in found]
    np.testing.assert_allclose(nearest(images, found), expected, rtol=1e-3)


def drawn(task: Any, model: nn.Module, rows: int, seed: int = 0, **how: Any) -> Tensor:
    return task.sample(model, rows, seed, **how)


def test_an_image_depends_on_seed_row_and_class(token_cache: Path) -> None:
    """Not on how many are drawn with it; and the model's mode is as before."""
    task = opened(token_cache, QUICK)
    model = task.build(trial(QUICK, arch={"model": "dit", "d_model": 16}).arch, 0, 0.0)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    model.train()
    for sampler in ("ddim", "ddpm"):
        many = drawn(task, model, 70, sampler=sampler)
        assert many.shape == (70, 1, 8, 8) and model.training
        few = drawn(task, model, 66, sampler=sampler)
        np.testing.assert_allclose(few, many[:66], atol=1e-5)
        assert not np.allclose(many[0], many[10], atol=0.01)  # one class, two rows
        assert not np.allclose(drawn(task, model, 1, seed=1, sampler=sampler), many[:1], atol=0.01)
        other = drawn(task, model, 1, classes=[4], sampler=sampler)
        assert not np.allclose(other, many[:1], atol=1e-4)
    assert not np.allclose(drawn(task, model, 1, guidance=3.0), drawn(task, model, 1, guidance=1.0), atol=1e-4)


def test_classes_that_are_not_there(token_cache: Path) -> None:
    task = opened(token_cache, QUICK)
    classes: Sequence[Sequence[int]] = ([10], [-2], [])
    for each in classes:
        with pytest.raises(UserError, match="must be numbers from 0 to 9, or -1 for none"):
            task.sample(Zero(), 3, 0, classes=each)
    assert task.sample(Zero(), 2, 0, classes=[-1, 9]).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"steps": 10}, "steps 10 must be from 25"),
        ({"samples": -1}, "samples -1 must be at least 0"),
        ({"sample_steps": 51, "steps": 50}, "sample_steps 51 must be from 1 to 50"),
        ({"guidance": -1.0}, "guidance -1 must be at least 0"),
        ({"sampler": "euler"}, "sampler"),
    ],
)
def test_options_out_of_range(token_cache: Path, option: dict[str, Any], message: str) -> None:
    with pytest.raises((UserError, SpecError), match=message):
        parse_component("task", {"name": "denoise", **option}, ())
        opened(token_cache, {"name": "denoise", **option})


def test_a_trial(ledger: Ledger, tmp_path: Path) -> None:
    """A tiny DiT learns to see noise, with an average of its weights; its images are drawn and written."""
    spec = trial(QUICK, arch={"model": "dit"}, tokens=1600, batch_tokens=32, ema=0.99)
    folder = train(ledger, spec)
    record = folder.record()
    assert record is not None and record["status"] == "finished", record
    metrics = record["metrics"]
    assert metrics["loss"] < 0.8 and 0 <= metrics["class_agreement"] <= 1 and metrics["nearest_train"] > 0
    assert "test_class_agreement" not in metrics
    assert {each["metric"] for each in record["data"]["baselines"]} == {"loss", "class_agreement", "nearest_train"}
    out = tmp_path / "a.png"
    at = (folder.id, "--results", ledger.root)
    code, said = run_here("sample", *at, "--count", 20, "--out", out, "--prompt", "3,7")
    assert code == 0 and said == f"20 images of class 3, 7 in turn: {out}\n", said
    pixels = read_picture(out)
    assert pixels.shape == (1, 8 * (2 * 9 + 1), 8 * (10 * 9 + 1)) and pixels.std() > 10
    for more, message in (
        ([], "give --out FILE.png"),
        (["--out", out, "--prompt", "eleven"], "unknown class 'eleven'"),
        (["--out", out, "--temperature", "0.5"], "ways to decode tokens have no effect"),
        (["--out", tmp_path / "a.png" / "b.png"], "cannot be written"),
    ):
        code, said = run_here("sample", *at, *more)
        assert code == 2 and message in said, said
