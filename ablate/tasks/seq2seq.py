"""From one sequence to another: transliteration, translation, letters to sounds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ablate import metrics
from ablate.data import lexicon
from ablate.data.batches import keys_of, permute
from ablate.data.corpora import resolve
from ablate.data.parallel import LEXICON, ParallelText, prepare_parallel
from ablate.data.rows import RowOrder, padded
from ablate.data.tokenizers import Specials
from ablate.decoding import Greedy
from ablate.errors import SpecError, UserError
from ablate.generate import generate
from ablate.registry import register
from ablate.spec import DataSpec, TrainSpec, digest
from ablate.tasks.base import Batch, Meter, Task

if TYPE_CHECKING:
    from ablate.sampling import SampleRequest

MEASURES = {"error_rate": metrics.error_rate, "bleu": metrics.bleu, "chrf": metrics.chrf}


@register("task", "seq2seq", paper="Sutskever, Vinyals and Le 2014, arXiv:1409.3215", form="pair")
class SequenceToSequence(Task):
    """-log p(y_t | y_<t, x), over the tokens of the target y and its end.

    x is the source. The decoder reads `start, y_1, .., y_n` and is to say `y_1, .., y_n, end`: the tokenizer's end
    of a document, or the task's separator where it has none. Both sides have one vocabulary. `source` and `target`
    are columns; corpus `cmudict`, letters to phonemes, has its own, for tokenizer `symbols`, and keeps the vowels'
    stress with `stress`. A row is at most `data.seq_len` tokens on either side: what is longer is cut, with its end
    (facts: `truncated_frac`); a step reads train.batch_tokens / data.seq_len rows, of about the same length with
    `bucket`. Of several targets of one source all are trained on, or the `first`.

    Measured everywhere: `token_accuracy`, given the right tokens before, and `row_accuracy`, of rows whose tokens are
    all right, which is how often greedy decoding says exactly the row's target. At the end `decode_rows` sources of a
    split are decoded greedily: `exact_match` is the share of outputs that are one of the source's targets, and
    `metric` names what else is measured: `error_rate`, of words, or of phonemes, against the nearest target; `bleu`;
    `chrf`. Targets are compared as they were given.
    """

    forms = ("pair",)
    corpora = (LEXICON,)

    def __init__(
        self,
        *,
        source: str = "source",
        target: str = "target",
        stress: bool = False,
        train_targets: Literal["all", "first"] = "all",
        bucket: bool = True,
        metric: Literal["error_rate", "bleu", "chrf", "exact_match"] = "error_rate",
        decode_rows: int = 512,
    ):
        if source == target:
            raise SpecError(["target"], f"{target!r} is the source's column as well")
        if decode_rows < 1:
            raise SpecError(["decode_rows"], f"{decode_rows} must be at least 1")
        self.columns = (source, target)
        self.stress, self.train_targets, self.bucket, self.decode_rows = stress, train_targets, bucket, decode_rows
        self.metric = metric
        self.higher_is_better = metric != "error_rate"

    @classmethod
    def resolve(cls, data: DataSpec, folder: Path) -> DataSpec:
        task = cls(**dict(data.task.options))
        data = resolve(data, folder, cls.corpora, task.columns)
        if data.corpus != LEXICON:
            if task.stress:
                raise SpecError(["task", "stress"], f"has no effect: only corpus {LEXICON!r} has stress")
            return data
        for option in ("source", "target"):
            if data.task.get(option):
                raise SpecError(["task", option], f"has no effect: corpus {LEXICON!r} has its own columns")
        return replace(data, content=digest([data.content, lexicon.content()]))

    def open(self, data: DataSpec, cache: Path) -> None:
        self.data = data
        self.parallel: ParallelText = prepare_parallel(data, cache, self.columns, self.stress)
        self.tokenizer = self.parallel.tokenizer
        self.specials = Specials(self.tokenizer.vocab)
        self.end = self.specials.separator if self.tokenizer.eos is None else self.tokenizer.eos

    @property
    def vocab(self) -> int:
        return self.specials.vocab

    @property
    def vocabulary(self) -> str:
        return self.parallel.ragged.fingerprint

    @property
    def train_tokens(self) -> int:
        """A row counts as seq_len tokens."""
        return len(self._trained()) * self.data.seq_len

    def _trained(self) -> np.ndarray:
        """The rows of the training split that are trained on."""
        if self.train_targets == "all":
            return np.arange(self.parallel.size("train"))
        return np.sort(np.unique(self.parallel.keys("train"), return_index=True)[1])

    def lengths(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Of every row's source, and of its target with its end."""
        return self.parallel.field(split, "source").lengths, self.parallel.field(split, "target").lengths + 1

    def facts(self) -> dict[str, Any]:
        meta = self.parallel.ragged.meta
        sources, targets = self.lengths("train")
        return {
            "corpus": str(self.data.corpus or self.data.hub or self.data.path),
            "tokenizer": self.data.tokenizer.name,
            "vocab": self.vocab,
            "fingerprint": self.parallel.ragged.fingerprint,
            **{f"{split}_rows": self.parallel.size(split) for split in self.splits},
            "source_length": float(sources.mean()),
            "target_length": float(targets.mean()),
            "truncated_frac": float((np.maximum(sources, targets) > self.data.seq_len).mean()),
            "unknown_frac": meta["unknown_frac"],
            "baselines": [
                {"name": "frequencies of tokens", "metric": "loss", "value": meta["unigram_loss"]},
                {"name": "most frequent token", "metric": "token_accuracy", "value": meta["unigram_accuracy"]},
                {"name": "copy of the source", "metric": self.metric, "value": self._copied()},
            ],
        }

    def _copied(self) -> float:
        """What saying the source again comes to on the validation split."""
        said = Transcript(self, "valid")
        for batch in self.held_out("valid", self.decode_rows * self.data.seq_len, 64):
            sources = sources_of(batch)
            said.add(
                sources, [own_target(batch, row) for row in range(len(batch))], [each.tolist() for each in sources]
            )
        return said.result()[self.metric]

    def batches(self, train: TrainSpec, seed: int) -> PairBatches:
        return PairBatches(self, self._trained(), train, seed)

    def held_out(self, split: str, at_most: int, rows: int) -> Iterable[Batch]:
        """The first rows of a fixed random order of the split, so that the first of them are a sample as well."""
        size = self.parallel.size(split)
        count = max(1, min(size, at_most // self.data.seq_len))
        chosen = permute(np.arange(count, dtype=np.int64), size, keys_of("held out"))
        for at in range(0, count, rows):
            yield self.batch(split, chosen[at : at + rows])

    def batch(self, split: str, rows: np.ndarray) -> Batch:
        """These rows of a split. There are marks where there is padding."""
        longest = self.data.seq_len
        source, target = (self.parallel.field(split, name) for name in ("source", "target"))
        source_BS, valid_BS = padded([source[row][:longest] for row in rows], self.specials.pad)
        said = [np.append(target[row], self.end)[:longest] for row in rows]
        targets_BT, counts_BT = padded(said, self.specials.pad)
        start_B1 = torch.full((len(rows), 1), self.specials.start)
        tokens_BT = torch.cat((start_B1, targets_BT[:, :-1]), 1)
        marks = {} if valid_BS.all() else {"valid_BS": valid_BS}
        return Batch((source_BS, tokens_BT), targets_BT, counts_BT, marks)

    def text(self, ids: Iterable[int]) -> str:
        """What the tokenizer makes of ids; the task's own are left out."""
        return self.tokenizer.decode([each for each in ids if each < self.tokenizer.vocab])

    def meter(self, split: str, final: bool) -> PairMeter:
        return PairMeter(self, split, final)

    def generate(self, model: nn.Module, request: SampleRequest) -> list[str]:
        """What is said of a source, the prompt: of the first of the validation sample where there is none."""
        from ablate.sampling import known

        first = next(iter(self.held_out("valid", 1, 1)))
        source = first.inputs[0][0].numpy() if request.prompt is None else known(self.tokenizer, request.prompt)
        if not len(source):
            raise UserError("the prompt, the source, is empty")
        found = request.continuations(
            model,
            [self.specials.start],
            source=source.tolist(),
            default=Greedy(),
            at_most=self.data.seq_len,
            stop=self.end,
        )
        return [f"{self.text(source)} -> {self.text(each)}" for each in found]


class PairBatches:
    """The training batches: every row once an epoch."""

    def __init__(self, task: SequenceToSequence, rows: np.ndarray, train: TrainSpec, seed: int):
        self.task, self.rows = task, rows
        lengths = np.add(*(each[rows] for each in task.lengths("train"))) if task.bucket else None
        key = f"{task.parallel.ragged.fingerprint}/{seed}"
        self.order = RowOrder(len(rows), train.batch_tokens // task.data.seq_len, key, lengths)

    def __getitem__(self, step: int) -> Batch:
        return self.task.batch("train", self.rows[self.order[step]])


class PairMeter(Meter):
    """Accuracies of tokens and of rows; at the end, what greedy decoding says."""

    def __init__(self, task: SequenceToSequence, split: str, final: bool):
        super().__init__()
        self.task = task
        self.said = Transcript(task, split) if final else None
        self.right = self.rows_right = self.rows = 0

    def add(self, model: Any, batch: Batch) -> None:
        assert batch.counts is not None
        log_p_BTV: Tensor = model.log_probs(*batch.inputs, **batch.marks)
        self.add_loss(-log_p_BTV.gather(-1, batch.targets[..., None])[..., 0], batch)
        right_BT = log_p_BTV.argmax(-1) == batch.targets
        self.right += int((right_BT & batch.counts).sum())
        self.rows_right += int((right_BT | ~batch.counts).all(1).sum())
        self.rows += len(batch)
        if self.said is not None:
            self._decode(model, batch, self.said)

    def _decode(self, model: nn.Module, batch: Batch, said: Transcript) -> None:
        sources = sources_of(batch)
        rows = said.wanted(sources)
        if not rows:
            return
        source_BS, valid_BS = padded([sources[row] for row in rows], self.task.specials.pad)
        device = batch.targets.device
        outputs = generate(
            model,
            torch.full((len(rows), 1), self.task.specials.start, device=device),
            source=(source_BS.to(device),),
            marks={} if valid_BS.all() else {"valid_BS": valid_BS.to(device)},
            stop=self.task.end,
            at_most=self.task.data.seq_len,
        )
        said.add([sources[row] for row in rows], [own_target(batch, row) for row in rows], outputs)

    def result(self) -> dict[str, float]:
        found = super().result()
        found["token_accuracy"] = self.right / max(1, self.count)
        found["row_accuracy"] = self.rows_right / max(1, self.rows)
        return found if self.said is None else found | self.said.result()


class Transcript:
    """What was said of a split's sources, at most `decode_rows` different ones, beside what there was to say."""

    def __init__(self, task: SequenceToSequence, split: str):
        self.task, self.split = task, split
        self.seen: set[bytes] = set()
        self.outputs: list[list[int]] = []
        self.references: list[list[list[int]]] = []
        self.texts: list[list[str]] = []

    def wanted(self, sources: list[np.ndarray]) -> list[int]:
        """Which of these are still to be said: none twice."""
        found = []
        for row, source in enumerate(sources):
            if source.tobytes() not in self.seen and len(self.seen) < self.task.decode_rows:
                self.seen.add(source.tobytes())
                found.append(row)
        return found

    def add(self, sources: list[np.ndarray], own: list[list[int]], outputs: list[list[int]]) -> None:
        """A source that was cut has the batch's target alone, its `own`."""
        parallel = self.task.parallel
        for source, target, output in zip(sources, own, outputs, strict=True):
            rows = parallel.same_source(self.split, source)
            self.outputs.append(output)
            self.references.append([parallel.field(self.split, "target")[row].tolist() for row in rows] or [target])
            self.texts.append([parallel.text(self.split, row) for row in rows] or [self.task.text(target)])

    def result(self) -> dict[str, float]:
        found = {"exact_match": metrics.exact_match(self.outputs, self.references)}
        if (measure := MEASURES.get(self.task.metric)) is not None:
            found[self.task.metric] = measure([self.task.text(each) for each in self.outputs], self.texts)
        return found


def sources_of(batch: Batch) -> list[np.ndarray]:
    """The ids of every row's source."""
    source_BS, valid_BS = batch.inputs[0].cpu(), batch.marks.get("valid_BS")
    lengths = [source_BS.shape[1]] * len(batch) if valid_BS is None else valid_BS.sum(1).tolist()
    return [row[:length].numpy() for row, length in zip(source_BS, lengths, strict=True)]


def own_target(batch: Batch, row: int) -> list[int]:
    """What a row's decoder reads after the start: the target, without its end (without its last token if cut)."""
    assert batch.counts is not None
    return batch.inputs[1][row, 1 : int(batch.counts[row].sum())].tolist()  # type: ignore[no-any-return]
