"""Replaced-token detection: two networks, one that fills in what is masked and one that finds what was filled in."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ablate.contracts import Context, Embedding, Linear, Loss, Site, Slot
from ablate.errors import UserError
from ablate.models import Reader, TokenModel
from ablate.precision import wide
from ablate.spec import ArchSpec

WEIGHT = 50.0  # of the detection's loss, section 3.1 of the paper
STEP = 8  # of the generator's widths


@dataclass(frozen=True)
class Detection:
    """Of a batch: the generator's loss and nll at its M places, log(p / (1 - p)) of being replaced for every token,
    and whether it was."""

    loss_BM: Tensor
    nll_BM: Tensor
    logits_BT: Tensor
    replaced_BT: Tensor
    aux: dict[str, Tensor]

    @property
    def bce_BT(self) -> Tensor:
        """-log p of what is so, in nats."""
        logits_BT = wide(self.logits_BT)
        return F.binary_cross_entropy_with_logits(logits_BT, self.replaced_BT.to(logits_BT.dtype), reduction="none")

    def joint(self, weight: float) -> tuple[Tensor, Tensor]:
        """What is minimised and the plain loss, (B, T): a row's mean is the mean of the generator's losses plus
        `weight` times the mean of the detection's."""
        found_BT = weight * self.bce_BT
        return found_BT + self.loss_BM.mean(1, keepdim=True), found_BT + self.nll_BM.mean(1, keepdim=True)


class ReplacedTokenModel(nn.Module):
    """A generator that fills in masked tokens, and a discriminator that says which tokens are not the text's own.

    tokens_BT has [MASK] at places_BM. The generator's distribution there is sampled, with uniform numbers noise_BM,
    and the discriminator reads the text with the samples in it; a sample that is the text's own token counts as the
    text's. No gradient passes through the sampling.

    The generator is the architecture with `share` of d_model and d_ff, to the nearest multiple of 8, and of the
    heads, one at least, which are as wide as the discriminator's; as deep. Both read one token embedding E: where the
    widths differ the generator reads W e, W (D_g, D), and its tied head's logits are E W^T x.
    Differs from the paper's code: position tables are each network's own, the generator's head is `arch.head`, and
    the discriminator's is w . x + b, as in the paper's equation, without a hidden layer.
    """

    def __init__(self, arch: ArchSpec, site: Site, dropout: float, share: float, masked: float):
        """`masked` is the share of places in an example to count with."""
        super().__init__()
        self.masked = masked
        self.discriminator = Detector(arch, site, dropout)
        table = self.discriminator.embedding
        small = narrowed(arch, share)
        assert small.d_ff is not None
        narrow = replace(site, d_model=small.d_model, n_heads=small.n_heads, d_ff=small.d_ff)
        self.projected = None if narrow.d_model == site.d_model else Projected(narrow, table, site.d_model)
        try:
            self.generator = TokenModel(small, narrow, dropout, self.projected or table)
        except UserError as error:
            raise UserError(f"the generator, of {share:g} of the width: {error}") from None

    def forward(
        self,
        tokens_BT: Tensor,
        places_BM: Tensor,
        noise_BM: Tensor,
        targets_BT: Tensor,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Detection:
        """What both make of a batch. Label smoothing and z-loss are the generator's."""
        x_BTD, read = self.generator(tokens_BT)
        x_BMD = x_BTD.gather(1, places_BM[..., None].expand(-1, -1, x_BTD.shape[-1]))
        words_BM = targets_BT.gather(1, places_BM)
        loss_BM, nll_BM = self.generator.head.objective(x_BMD, words_BM, label_smoothing, z_loss)
        filled_BT = tokens_BT.scatter(1, places_BM, self.sample(x_BMD, noise_BM))
        logits_BT, ctx = self.discriminator(filled_BT)
        for name, loss in read.aux.items():
            ctx.add_aux(name, loss)
        return Detection(loss_BM, nll_BM, logits_BT, filled_BT != targets_BT, ctx.aux)

    @torch.no_grad()
    def sample(self, x_BMD: Tensor, noise_BM: Tensor) -> Tensor:
        """The generator's words where its tower's output is x: of its distribution, by the inverse of its sums."""
        sums_BMV = self.generator.head.log_probs(x_BMD).double().exp().cumsum(-1)
        below_BMV = sums_BMV <= noise_BM[..., None] * sums_BMV[..., -1:]
        return below_BMV.sum(-1).clamp(max=sums_BMV.shape[-1] - 1)

    def nll(self, tokens_BT: Tensor, places_BM: Tensor, noise_BM: Tensor, targets_BT: Tensor) -> Tensor:
        """(B, T); the mean is the paper's objective."""
        found: Detection = self(tokens_BT, places_BM, noise_BM, targets_BT)
        return found.joint(WEIGHT)[1]

    def objective(self, *batch: Tensor, label_smoothing: float, z_loss: float, weight: float = WEIGHT) -> Loss:
        """What is minimised, the plain loss, auxiliary losses of both networks."""
        found: Detection = self(*batch, label_smoothing, z_loss)
        return (*found.joint(weight), found.aux)

    def example(self, rows: int, length: int) -> tuple[Tensor, ...]:
        """Inputs and targets of the shapes that `nll` takes."""
        tokens = torch.zeros(rows, length, dtype=torch.long)
        places = torch.zeros(rows, max(1, round(self.masked * length)), dtype=torch.long)
        return tokens, places, torch.zeros(places.shape), tokens


def narrowed(arch: ArchSpec, share: float) -> ArchSpec:
    """The generator's architecture."""
    assert arch.d_ff is not None

    def part(width: int) -> int:
        return width if share == 1 else max(1, round(width * share / STEP)) * STEP

    heads = max(1, round(arch.n_heads * share))
    return replace(arch, d_model=part(arch.d_model), d_ff=part(arch.d_ff), n_heads=heads)


class Detector(Reader):
    """tokens_BT -> log(p / (1 - p)) for every token, p that it was replaced."""

    def __init__(self, arch: ArchSpec, site: Site, dropout: float):
        super().__init__(arch, site, dropout)
        self.detect = Verdict(site.d_model)

    def forward(self, tokens_BT: Tensor) -> tuple[Tensor, Context]:
        ctx = self.context(tokens_BT)
        return self.detect(self.tower(self.embed(tokens_BT, ctx), ctx)), ctx


class Verdict(Slot):
    """x_BTD -> w . x + b, (B, T)."""

    component = "head/verdict"

    def __init__(self, d: int):
        super().__init__()
        self.project = Linear(d, 1, bias=True, role="logits")

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.project(x_BTD)[..., 0]


class Projected(Embedding):
    """The embedding of a wider network, (D), for a narrower one, (D_g): W e."""

    component = "embedding/projected"

    def __init__(self, site: Site, wider: Embedding, width: int):
        super().__init__(site)
        self.wider = [wider]  # in a list, so that its parameters stay the wider network's
        self.narrow = Linear(width, site.d_model, bias=False)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.narrow(self.wider[0](tokens_BT))

    def rows(self) -> Tensor | None:
        rows_VD = self.wider[0].rows()
        return None if rows_VD is None else self.narrow(rows_VD)

    def logits(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        return self.wider[0].logits(x @ self.narrow.weight, start, stop)

    def closing(self, site: Site) -> nn.Module | None:
        return self.wider[0].closing(site)
