"""Drafts -> specifications: data and precision resolved, recipes tried out, costs counted; all errors name the grid's
line."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from traceback import extract_tb
from typing import Any

import torch

from ablate import registry
from ablate.build import form_of
from ablate.cost import Cost, CostBook
from ablate.designs import Designed
from ablate.draft import Draft
from ablate.errors import SpecError, UserError
from ablate.grid import Grid
from ablate.spec import DataSpec, TrainSpec, TrialSpec
from ablate.tasks.base import Task, first_rows
from ablate.variants import Variant


class Resolver:
    """Knows every data set and task of a grid that has been looked at."""

    def __init__(self, grid: Grid, cache: Path):
        self.grid = grid
        self.cache = cache
        self.book = CostBook(cache / "cost")
        self._data: dict[DataSpec, DataSpec] = {}
        self._tasks: dict[DataSpec, Task] = {}

    def resolved(self, draft: Draft, parent: str | None = None, vocabulary: str = "") -> TrialSpec:
        """The draft's specification with its data's content and its precision known."""
        data = replace(draft.section("data"), vocabulary=vocabulary)
        if data not in self._data:
            try:
                kind: type[Task] = registry.load(registry.find("task", data.task.name))
                self._data[data] = kind.resolve(data, self.grid.folder)
            except SpecError as error:
                raise draft.error(SpecError(("data", *error.path), error.problem)) from None
            except UserError as error:
                raise draft.error(SpecError(("data", "path"), str(error))) from None
        spec = draft.spec(parent, data=self._data[data])
        try:
            task = self.task(spec.data)
        except SpecError as error:
            raise draft.error(SpecError(("data", "tokenizer", *error.path), error.problem)) from None
        except UserError as error:
            raise draft.error(SpecError(("data", "path"), str(error))) from None
        if "train" not in task.splits and (spec.train.tokens or spec.train.epochs):
            problem = f"task {spec.data.task.name!r} measures a model and trains none: set train.tokens to 0"
            raise draft.error(SpecError(("train", "epochs" if spec.train.epochs else "tokens"), problem))
        spec = self._with_tokens(spec, task, draft)
        try:
            if "train" in task.splits:
                task.batches(spec.train, 0)
            for split in task.splits:
                first_rows(task.held_out(split, 1, 1), 1)
        except UserError as error:
            raise draft.error(SpecError(("data", "seq_len"), str(error))) from None
        if (form := form_of(spec.arch)) not in task.forms:
            field = {"pair": "encoder", "image": "embedding"}.get(form, "model" if spec.arch.model else "head")
            problem = f"task {spec.data.task.name!r} trains models of form {' or '.join(task.forms)}, not {form}"
            raise draft.error(SpecError(("arch", field), problem + ("; set it to false" if form == "pair" else "")))
        if spec.train.seq_warmup and not task.cuts:
            problem = f"task {spec.data.task.name!r} has rows that cannot be cut shorter: set it to 0"
            raise draft.error(SpecError(("train", "seq_warmup"), problem))
        self._check_recipe(spec.train, draft)
        if spec.train.precision == "auto":
            spec = replace(spec, train=replace(spec.train, precision=default_precision(spec)))
        return spec

    def _with_tokens(self, spec: TrialSpec, task: Task, draft: Draft) -> TrialSpec:
        """The specification with its epochs as tokens, in whole batches."""
        train = spec.train
        if train.epochs is None:
            return spec
        steps = round(train.epochs * task.train_tokens / train.batch_tokens)
        if steps < 1:
            problem = (
                f"{train.epochs:g} of {task.train_tokens:,} tokens is less than one batch of {train.batch_tokens}"
            )
            raise draft.error(SpecError(("train", "epochs"), problem))
        return replace(spec, train=replace(train, tokens=steps * train.batch_tokens, epochs=None))

    def _check_recipe(self, train: TrainSpec, draft: Draft) -> None:
        """Make the schedule and the optimizer once: they know the ranges of their options."""
        try:
            registry.make("schedule", train.schedule)
        except UserError as error:
            raise draft.error(SpecError(("train", "schedule"), str(error))) from None
        if train.optimizer.options:
            try:
                parts: list[dict[str, Any]] = [{"params": [torch.zeros(1, 1, requires_grad=True)]}]
                registry.make("optimizer", train.optimizer).build(parts, train.lr)
            except (ValueError, RuntimeError, UserError) as error:
                problem = f"optimizer {train.optimizer.name!r}: {error}"
                raise draft.error(SpecError(("train", "optimizer"), problem)) from None

    def spreadable(self, spec: TrialSpec, draft: Draft, variant: Variant | Designed) -> None:
        """Refuse a trial that cannot be trained by several processes."""
        from ablate.train.parallel.run import refuse  # torch.distributed takes a second to import

        try:
            refuse(spec, self.cache)
        except UserError as error:
            problem = f"variant {variant.name!r}: {error}"
            raise draft.error(SpecError(("resources", "parallel"), problem)) from None

    def task(self, data: DataSpec) -> Task:
        if data not in self._tasks:
            task: Task = registry.make("task", data.task)
            task.open(data, self.cache)
            self._tasks[data] = task
        return self._tasks[data]

    def told(self, spec: TrialSpec) -> dict[str, Any]:
        """What the data tell the model."""
        task = self.task(spec.data)
        return {"vocab": task.vocab, "max_len": task.length(spec.arch), **task.sizes}

    def cost(self, spec: TrialSpec, variant: Variant | Designed) -> Cost:
        """Counted costs; an architecture in which something has no effect is refused here."""
        task = self.task(spec.data)
        try:
            return self.book.cost(spec.arch, task.vocab, task.length(spec.arch), **task.sizes)
        except UserError as error:
            raise variant.origin.error(f"variant {variant.name!r}: {error}") from None
        except Exception as error:  # an option's value that torch refuses, a mistake in a plugin
            ours = [each for each in extract_tb(error.__traceback__) if "torch" not in Path(each.filename).parts]
            problem = f"variant {variant.name!r} cannot be built: {type(error).__name__}: {error}".rstrip(": ")
            problem += f" ({Path(ours[-1].filename).name}:{ours[-1].lineno})"
            raise variant.origin.error(problem) from error


def default_precision(spec: TrialSpec) -> str:
    """bf16 where the trial gets a GPU, fp32 on a CPU."""
    return "bf16" if default_gpus(spec) > 0 else "fp32"


def default_gpus(spec: TrialSpec) -> float:
    """GPUs that a trial asks for: as stated, else one where this machine has any."""
    if spec.resources.gpus is not None:
        return spec.resources.gpus
    return float(spec.resources.parallel.ranks) if torch.cuda.is_available() else 0.0
