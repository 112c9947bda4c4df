"""Gaussian diffusion: how images are noised, and how they are drawn from a model that sees the noise.

x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e with e ~ N(0, I), a_t = prod_{s <= t} (1 - b_s) (Ho, Jain and Abbeel 2020,
arXiv:2006.11239, equation 4; their a-bar is a here). Times count from 0 to steps - 1; before time 0 a is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ablate.errors import UserError, unknown, within

FEWEST, MOST = 25, 100_000  # steps
FULL = 1000  # steps of the published schedule
Sampler = Literal["ddpm", "ddim"]
Noise = Callable[[Tensor, Tensor], Tensor]  # x_t, t (B,) -> the noise in x_t


class Diffusion:
    """A schedule of `steps` steps: b_t rises linearly from 1e-4 to 0.02 in 1,000 steps (section 4 of the paper).

    Fewer or more steps have b_t times 1000 / steps, so that about as much noise is reached at the end (as in the
    code of Nichol and Dhariwal 2021, not re-read).
    """

    def __init__(self, steps: int = FULL):
        within("steps", steps, FEWEST, MOST)
        self.steps = steps
        self.betas = np.linspace(1e-4, 0.02, steps) * (FULL / steps)
        self.alphas = np.cumprod(1 - self.betas)  # a_t

    def q_sample(self, x_BCHW: Tensor, t_B: Tensor, noise_BCHW: Tensor) -> Tensor:
        """x_t of these images."""
        alpha_B111 = torch.from_numpy(self.alphas).to(t_B.device)[t_B][:, None, None, None]
        return alpha_B111.sqrt().to(x_BCHW.dtype) * x_BCHW + (1 - alpha_B111).sqrt().to(x_BCHW.dtype) * noise_BCHW

    def times(self, count: int) -> list[int]:
        """So many times from the last to 0, evenly spaced; all of them, if there are no more."""
        return sorted({round(each) for each in np.linspace(self.steps - 1, 0, min(count, self.steps))}, reverse=True)

    @torch.no_grad()
    def sample(
        self,
        noise_in: Noise,
        shape: tuple[int, int, int],
        generators: Sequence[torch.Generator],
        *,
        sampler: Sampler = "ddim",
        sample_steps: int = 50,
        clip: bool = True,
    ) -> Tensor:
        """Images (B, C, H, W) of this shape, one for each generator, which is all that an image depends on: going
        back from x_T ~ N(0, I) in `sample_steps` of the steps.

        From time t to the time s before it, with x_0 = (x_t - sqrt(1 - a_t) e) / sqrt(a_t) of the noise e that is
        seen, held within [-1, 1] where `clip` is set (and e made to agree with it):
        x_s = sqrt(a_s) x_0 + sqrt(1 - a_s - sigma^2) e + sigma z, z ~ N(0, I)
        (Song, Meng and Ermon 2021, arXiv:2010.02502, equation 12). `ddim` has sigma = 0; `ddpm`
        sigma^2 = (1 - a_s) / (1 - a_t) (1 - a_t / a_s), which with all steps is Ho et al.'s chain with the variance
        of the forward posterior.
        """
        if sampler not in ("ddpm", "ddim"):
            raise UserError(unknown("sampler", sampler, ("ddpm", "ddim")))
        within("sample_steps", sample_steps, 1)
        x_BCHW = gaussian(shape, generators)
        times = self.times(sample_steps)
        for t, before in zip(times, [*times[1:], -1], strict=True):
            a_t, a_s = float(self.alphas[t]), float(self.alphas[before]) if before >= 0 else 1.0
            e_BCHW = noise_in(x_BCHW, torch.full((len(x_BCHW),), t))
            clean_BCHW = (x_BCHW - (1 - a_t) ** 0.5 * e_BCHW) / a_t**0.5
            if clip:
                clean_BCHW = clean_BCHW.clamp(-1, 1)
                e_BCHW = (x_BCHW - a_t**0.5 * clean_BCHW) / (1 - a_t) ** 0.5
            variance = (1 - a_s) / (1 - a_t) * (1 - a_t / a_s) if sampler == "ddpm" else 0.0
            x_BCHW = a_s**0.5 * clean_BCHW + max(0.0, 1 - a_s - variance) ** 0.5 * e_BCHW
            if variance > 0:
                x_BCHW = x_BCHW + variance**0.5 * gaussian(shape, generators)
        return x_BCHW


def gaussian(shape: tuple[int, int, int], generators: Sequence[torch.Generator]) -> Tensor:
    """N(0, I), (B, C, H, W), each image drawn by its own generator."""
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def guided(model: Callable[..., Tensor], classes_B: Tensor, none: int, weight: float) -> Noise:
    """The noise that a class-conditional model sees, with classifier-free guidance: e(none) + w (e(class) - e(none)),
    `none` the number that stands for no class (Ho and Salimans 2022, arXiv:2207.12598, equation 6, whose weight is
    w - 1). w = 1 is the model itself, w = 0 the model without classes."""
    within("guidance", weight, 0)

    def noise_in(x_BCHW: Tensor, t_B: Tensor) -> Tensor:
        x, t = x_BCHW.to(classes_B.device), t_B.to(classes_B.device)
        if weight == 1:
            return model(x, t, classes_B).to(x_BCHW)
        both = torch.cat((classes_B, torch.full_like(classes_B, none)))
        of_class, of_none = model(x.repeat(2, 1, 1, 1), t.repeat(2), both).to(x_BCHW).chunk(2)
        return of_none + weight * (of_class - of_none)

    return noise_in
