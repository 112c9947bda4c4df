"""Classification of texts, and of pairs of texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ablate import registry
from ablate.data.corpora import SPLITS, resolve
from ablate.data.labelled import Example, Layout, class_names, files_of, labelled
from ablate.data.ragged import Ragged, RaggedSplits, RaggedWriter, prepare_ragged
from ablate.data.rows import RowOrder, padded, spread
from ablate.data.tokenizers import Specials
from ablate.data.tokens import MOST_UNKNOWN, fingerprint_of, tokenizer_for, write_tokenizer
from ablate.errors import SpecError, UserError
from ablate.registry import register
from ablate.spec import ArchSpec, DataSpec, TrainSpec, digest
from ablate.tasks.base import Batch, Meter, Task

CACHE_FORMAT = 1


class LabelledTexts(Task):
    """A task on rows of one text or two with one target each. Subclasses say which rows, and what the target is.

    A row is [start] a [separator b] [separator]: `begin_first` puts Specials.start first, `end_last` a separator
    last, and two texts have one between them. Rows longer than data.seq_len are cut at their ends, of two texts the
    longer first, a token at a time (Devlin et al. 2019). Padding stands at the end, where `valid_BT` is False.
    """

    forms: ClassVar[tuple[str, ...]] = ("classify",)
    corpora: ClassVar[tuple[str, ...]] = ()
    begin_first: bool = True
    end_last: bool = False
    pairs: bool = False  # of texts

    def reading(self) -> list[Any]:
        """What the rows depend on beside the data: part of the cache's identity."""
        return []

    def examples(self, data: DataSpec) -> list[Example]:
        raise NotImplementedError

    def targets(self, examples: Sequence[Example]) -> tuple[np.ndarray, dict[str, Any]]:
        """The target of every row, and what is to be kept beside them."""
        raise NotImplementedError

    def baselines(self, texts: dict[str, Any], targets: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        """What `facts` says of it, from all texts and targets by split. Computed once, with the cache."""
        raise NotImplementedError

    @classmethod
    def resolve(cls, data: DataSpec, folder: Path) -> DataSpec:
        task: LabelledTexts = registry.make("task", data.task)
        task.data = data
        if task.room < 1 + task.pairs:
            due = data.seq_len - task.room + 1 + task.pairs
            raise SpecError(["seq_len"], f"{data.seq_len} leaves no room for a text: it must be at least {due}")
        return task.resolved(data, folder)

    def resolved(self, data: DataSpec, folder: Path) -> DataSpec:
        """The specification with its paths and its content, as of `Task.resolve`."""
        return resolve(data, folder, self.corpora)

    def open(self, data: DataSpec, cache: Path) -> None:
        self.data = data
        fingerprint = digest([type(self).__name__, CACHE_FORMAT, fingerprint_of(data), self.reading()])

        def make(folder: Path, rows: RaggedWriter) -> dict[str, Any]:
            return self._make(folder, rows, cache)

        self.kept: RaggedSplits = prepare_ragged(cache, fingerprint, SPLITS, ("text", "pair"), make)
        self.specials = Specials(self.kept.meta["vocab"])
        self.labels = {split: np.load(self.kept.folder / f"{split}.targets.npy") for split in SPLITS}

    def _make(self, folder: Path, rows: RaggedWriter, cache: Path) -> dict[str, Any]:
        data, examples = self.data, self.examples(self.data)
        by_split = {split: [each for each in examples if each.split == split] for split in SPLITS}
        targets, meta = self.targets(examples)  # what is wrong with a row comes first
        for split, found in by_split.items():
            if not found:
                raise UserError(f"{data.path or data.hub or data.corpus}: the {split} split is empty")
        tokenizer = tokenizer_for(data, cache, (text for each in by_split["train"] for text in each.texts))
        tokens = unknown = 0
        for each in examples:
            ids = [tokenizer.encode(text) for text in each.texts]
            rows.add(each.split, text=ids[0], pair=ids[1] if self.pairs else [])
            tokens += sum(map(len, ids))
            unknown += sum(int((side == tokenizer.unk).sum()) for side in ids) if tokenizer.unk is not None else 0
        if unknown > MOST_UNKNOWN * tokens:
            problem = f"tokenizer {data.tokenizer.name!r} does not fit the text: {unknown / tokens:.0%} of the tokens"
            raise SpecError([], f"{problem} are unknown to it; use a larger vocabulary, or bytes or bpe")
        write_tokenizer(folder, tokenizer)
        split_of = np.array([each.split for each in examples])
        of_split = {split: targets[split_of == split] for split in SPLITS}
        for split in SPLITS:
            np.save(folder / f"{split}.targets.npy", of_split[split])
        texts = {split: [each.texts for each in found] for split, found in by_split.items()}
        return {
            **meta,
            "vocab": tokenizer.vocab,
            "unknown_frac": unknown / max(1, tokens),
            "baselines": self.baselines(texts, of_split),
        }

    @property
    def vocab(self) -> int:
        return self.specials.vocab

    @property
    def vocabulary(self) -> str:
        return self.kept.fingerprint

    @property
    def shape(self) -> dict[str, Any]:
        return {"causal": self.causal, "classes": self.classes}

    @property
    def classes(self) -> int:
        raise NotImplementedError

    @property
    def room(self) -> int:
        """How many tokens of the texts a row can have."""
        return self.data.seq_len - self.begin_first - self.end_last - self.pairs

    @property
    def train_tokens(self) -> int:
        """Each row counts as seq_len tokens, as in a batch."""
        return len(self.labels["train"]) * self.data.seq_len

    def facts(self) -> dict[str, Any]:
        every = {split: self._whole_lengths(split) for split in SPLITS}
        return {
            "corpus": str(self.data.corpus or self.data.hub or self.data.path),
            "tokenizer": self.data.tokenizer.name,
            "vocab": self.specials.pad,
            "fingerprint": self.kept.fingerprint,
            **{f"{split}_rows": len(sizes) for split, sizes in every.items()},
            **{f"{split}_rows_truncated": int((sizes > self.room).sum()) for split, sizes in every.items()},
            "longest_row": int(max(sizes.max() for sizes in every.values())),
            "empty_rows": int(sum((sizes == 0).sum() for sizes in every.values())),
            "unknown_frac": self.kept.meta["unknown_frac"],
            "baselines": self.kept.meta["baselines"],
        }

    def build(self, arch: ArchSpec, seed: int, dropout: float) -> nn.Module:
        if arch.model is None and arch.head.get("pool") == "first" and not self.begin_first:
            problem = "reads the first token: set begin_first: true in data.task, so that it is the same in every row"
            raise SpecError(["arch", "head", "pool"], f"'first' {problem}")
        return super().build(arch, seed, dropout)

    def _whole_lengths(self, split: str) -> np.ndarray:
        """The tokens of every row's texts, before any is cut off."""
        return self.kept.splits[split]["text"].lengths + self.kept.splits[split]["pair"].lengths

    def packed(self, split: str, row: int) -> np.ndarray:
        """The ids of one row, as the model reads them."""
        sides: list[Ragged] = [self.kept.splits[split][name] for name in ("text", "pair")[: 1 + self.pairs]]
        texts = [side[row] for side in sides]
        sizes = kept_lengths([len(text) for text in texts], self.room)
        between = np.array([self.specials.separator])
        parts = [text[:size] for text, size in zip(texts, sizes, strict=True)]
        marked = [np.array([self.specials.start])] * self.begin_first + [parts[0]]
        marked += [each for part in parts[1:] for each in (between, part)] + [between] * self.end_last
        return np.concatenate(marked)

    def batch(self, split: str, rows: Iterable[int]) -> Batch:
        """These rows of a split, shorter ones filled up."""
        rows = np.asarray(rows)
        ids_BT, valid_BT = padded([self.packed(split, int(row)) for row in rows], self.specials.pad)
        return Batch((ids_BT,), torch.from_numpy(self.labels[split][rows]), marks={"valid_BT": valid_BT})

    def batches(self, train: TrainSpec, seed: int) -> RowBatches:
        lengths = np.minimum(self._whole_lengths("train"), self.room)
        size = train.batch_tokens // self.data.row_tokens
        return RowBatches(self, RowOrder(len(lengths), size, f"{self.kept.fingerprint}/{seed}", lengths))

    def held_out(self, split: str, at_most: int, rows: int) -> Iterable[Batch]:
        """Rows of about one length together."""
        chosen = spread(len(self.labels[split]), at_most // self.data.row_tokens)
        chosen = chosen[np.argsort(self._whole_lengths(split)[chosen], kind="stable")]
        return (self.batch(split, chosen[at : at + rows]) for at in range(0, len(chosen), rows))


class RowBatches:
    """The rows of an order as batches of the training split."""

    def __init__(self, task: LabelledTexts, order: RowOrder):
        self.task, self.order = task, order

    def __getitem__(self, step: int) -> Batch:
        return self.task.batch("train", self.order[step])


def kept_lengths(sizes: Sequence[int], room: int) -> list[int]:
    """How long one text or two may stay: as long as they are together too long, the longer loses a token; of equal
    ones, the second."""
    if sum(sizes) <= room:
        return list(sizes)
    if len(sizes) == 1:
        return [room]
    short = min(*sizes, room // 2)
    if short == min(sizes):
        return [short, room - short] if sizes[0] == short else [room - short, short]
    return [room - short, short]


class LabelMeter(Meter):
    """Loss, and how well the likeliest class is the right one: accuracy, macro F1, Matthews' correlation."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[Tensor] = []
        self.labels: list[Tensor] = []

    def add(self, model: Any, batch: Batch) -> None:
        log_p_BC = model.log_probs(*batch.inputs, **batch.marks)
        self.add_loss(-log_p_BC.gather(-1, batch.targets[:, None])[:, 0], batch)
        self.told.append(log_p_BC.argmax(-1).cpu())
        self.labels.append(batch.targets.cpu())

    def result(self) -> dict[str, float]:
        from ablate.metrics_labels import class_metrics

        labels, told = torch.cat(self.labels).numpy(), torch.cat(self.told).numpy()
        return {**super().result(), **class_metrics(labels, told)}


class ClassifiedTexts(LabelledTexts):
    """Rows with classes, those of the training split: loss = -log p(class) in nats a row."""

    metric = "accuracy"
    higher_is_better = True

    @property
    def classes(self) -> int:
        return len(self.kept.meta["classes"])

    def targets(self, examples: Sequence[Example]) -> tuple[np.ndarray, dict[str, Any]]:
        read = [label_of(each) for each in examples]
        names = class_names(label for label, each in zip(read, examples, strict=True) if each.split == "train")
        if len(names) < 2:
            found = f"has one class, {names[0]!r}" if names else "is empty"
            raise UserError(f"{examples[0].place}: the training split {found}: there must be two classes")
        known = {name: number for number, name in enumerate(names)}
        for label, each in zip(read, examples, strict=True):
            if str(label) not in known:
                raise UserError(
                    f"{each.place}: class {str(label)!r} is in the {each.split} split, but not in the training "
                    f"split, whose {len(names)} classes are {_shown(names)}"
                )
        counts = Counter(map(str, read))
        meta = {"classes": names, "rows_of_class": {name: counts[name] for name in names}}
        return np.array([known[str(label)] for label in read]), meta

    def baselines(self, texts: dict[str, Any], targets: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        from ablate.words_baselines import bags_of_words, majority

        return majority(targets) + bags_of_words(texts, targets)

    def facts(self) -> dict[str, Any]:
        names = self.kept.meta["classes"]
        return {**super().facts(), "classes": len(names), "class_names": _shown(names)}

    def meter(self, split: str, final: bool) -> Meter:
        return LabelMeter()


def label_of(example: Example) -> str | int:
    """Text or an integer. Raises `UserError`."""
    label = example.label.strip() if isinstance(example.label, str) else example.label
    if label == "" or not isinstance(label, str | int):
        hint = "; for real numbers take task regress" if isinstance(label, float) else ""
        raise UserError(f"{example.place}: the label is {label!r:.60}, must be text or an integer{hint}")
    return label


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


class LabelledFiles(LabelledTexts):
    """Rows of the user's data: see `data/labelled.py` for the layouts."""

    layout: Layout

    def resolved(self, data: DataSpec, folder: Path) -> DataSpec:
        if data.column != DataSpec.column:
            raise SpecError(["column"], f"has no effect: set the option `text` of task {data.task.name!r}")
        return resolve(data, folder, (), self.layout.columns, lambda placed: files_of(placed, self.layout))

    def reading(self) -> list[Any]:
        return [self.layout.encoding, self.layout.out_of_scope]

    def examples(self, data: DataSpec) -> list[Example]:
        return labelled(data, self.layout)


@register("task", "classify", paper="Kim 2014, arXiv:1408.5882; Devlin et al. 2019, section 4.1", form="classify")
class Classify(LabelledFiles, ClassifiedTexts):
    """The class of a text, or of a pair of texts: loss = -log p(class | row) in nats a row.

    The data are the user's: see `data/labelled.py` for the layouts. `text`, `pair` (a second text) and `label` are
    columns of tables; `encoding` is that of files of text; `out_of_scope` takes CLINC150's questions of no class as a
    class of their own. A validation or test split that is not given is cut from the training rows. Classes are those
    of the training split. `causal` is for fine-tuning a language model, with head pool `last`; pool `first` needs
    `begin_first`.
    Differs from the papers: a pair's texts have no segment embeddings, the separator alone tells them apart.
    """

    def __init__(
        self,
        *,
        text: str = "text",
        pair: str | None = None,
        label: str = "label",
        causal: bool = False,
        begin_first: bool = True,
        end_last: bool = False,
        encoding: str = "utf-8",
        out_of_scope: bool = False,
    ):
        self.causal, self.begin_first, self.end_last = causal, begin_first, end_last
        self.pairs = pair is not None
        columns = (text, label) if pair is None else (text, pair, label)
        self.layout = Layout(columns, encoding, out_of_scope)

    @classmethod
    def specimen(cls, folder: Path) -> dict[str, Any]:
        rows = [f"{n} is {'even' if n % 2 else 'odd'} not {n + 1},{n % 2}" for n in range(120)]
        (folder / "examples.csv").write_text("\n".join(["text,label", *rows]))
        return {"seq_len": 24, "path": "examples.csv", "valid": 0.2, "test": 0.2}
