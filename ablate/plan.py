"""Grid -> Plan: every trial with its solved sizes, its costs and its id; nothing is trained here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from traceback import extract_tb
from typing import Any

import torch

from ablate import registry
from ablate.arch import ArchSpec, registry_slot
from ablate.build import form_of
from ablate.cost import Cost, CostBook
from ablate.data.corpora import resolve
from ablate.draft import Draft
from ablate.errors import SpecError, UserError
from ablate.grid import Budget, Choice, Grid, Variant
from ablate.match import TARGETS, Candidate, Matcher, Unmatched
from ablate.spec import DataSpec, Resources, TrainSpec, TrialSpec
from ablate.tasks.base import Task


@dataclass(frozen=True)
class Row:
    """One variant at one size, axis setting and budget: its trials differ in the seed alone."""

    variant: str
    size: str
    axes: str
    budget: str
    spec: TrialSpec  # with seed 0
    cost: Cost
    residuals: Mapping[str, float]  # variant / baseline - 1, of parameters and FLOPs
    solved: Mapping[str, int]  # sizes that matching chose
    differs_in: tuple[str, ...]
    confounded: bool
    axis_values: Mapping[str, Any]

    @property
    def tokens(self) -> int:
        return self.spec.train.steps * self.spec.train.batch_tokens

    @property
    def flops(self) -> float:
        """Executed training FLOPs of one trial."""
        return self.cost.flops_train * self.tokens


@dataclass(frozen=True)
class PlannedTrial:
    """One training run of a plan: a row with one of the seeds."""

    id: str
    spec: TrialSpec
    row: Row


@dataclass(frozen=True)
class Plan:
    """What a grid comes to. `facts` describes the data: see `Task.facts`."""

    grid: Grid
    rows: tuple[Row, ...]
    trials: tuple[PlannedTrial, ...]
    facts: Mapping[str, Any]

    @property
    def baseline(self) -> str:
        return self.grid.variants[0].name

    @property
    def total_flops(self) -> float:
        return sum(trial.row.flops for trial in self.trials)


def make_plan(grid: Grid, cache: Path) -> Plan:
    """Resolve data and precision, solve the sizes, count, and list the trials.

    Raises `UserError` naming the place in the grid for whatever cannot be run as asked.
    """
    rows: list[Row] = []
    planner = _Planner(grid, cache)
    for size in grid.sizes:
        for axes in grid.axes:
            rows += planner.cell(size, axes)
    trials: dict[str, PlannedTrial] = {}
    for row in rows:
        for seed in grid.seeds:
            spec = replace(row.spec, seed=seed)
            trial = PlannedTrial(spec.trial_id, spec, row)
            if other := trials.get(trial.id):
                raise planner.duplicate(row, other.row)
            trials[trial.id] = trial
    return Plan(grid, tuple(rows), tuple(trials.values()), planner.facts(rows))


class _Planner:
    def __init__(self, grid: Grid, cache: Path):
        self.grid = grid
        self.cache = cache
        self.book = CostBook(cache / "cost")
        self._data: dict[DataSpec, DataSpec] = {}
        self._tasks: dict[DataSpec, Task] = {}
        self._solved: dict[tuple[Any, ...], Candidate] = {}  # axes of training repeat the same architectures

    def cell(self, size: Choice, axes: Choice) -> Iterator[Row]:
        """The rows of all variants at one size and axis setting, the baseline's first."""
        common = self.grid.base.copy()
        common.lay(size.settings, size.origin)
        common.lay(axes.settings, axes.origin)
        baseline: tuple[TrialSpec, Cost] | None = None
        seen: dict[TrialSpec, str] = {}
        where = f" at {axes.label}" if axes.label else ""
        for variant in self.grid.variants:
            draft = variant.lay_on(common)
            asked = spec = self.resolved(draft)
            same = replace(spec, resources=Resources())  # they are no part of the experiment
            if same in seen:
                raise variant.origin.error(
                    f"variant {variant.name!r} has no effect{where}: it is the same experiment as {seen[same]!r}"
                )
            seen[same] = variant.name
            if baseline is not None and spec.train.precision != baseline[0].train.precision:
                raise variant.origin.error(
                    f"variant {variant.name!r} trains in {spec.train.precision}, the baseline in "
                    f"{baseline[0].train.precision}: precision is never mixed inside one comparison; set it in base"
                )
            solved: dict[str, int] = {}
            if baseline is None:
                cost = self.cost(spec, variant)
                baseline = spec, cost
                if not cost.params_total:
                    raise variant.origin.error(
                        f"variant {variant.name!r} has no parameters, and sizes are compared with those of the "
                        "baseline: let another variant be the first"
                    )
            else:
                spec, cost, solved = self.matched(draft, spec, variant, size, axes, baseline[1])
            differs = differences(baseline[0], asked)
            for budget in self.grid.budgets:
                yield Row(
                    variant=variant.name,
                    size=size.label,
                    axes=axes.label,
                    budget=budget.label,
                    spec=self.budgeted(spec, cost, baseline[1], budget, draft),
                    cost=cost,
                    residuals={
                        "params": cost.params_total / baseline[1].params_total - 1,
                        "flops": cost.flops_forward / baseline[1].flops_forward - 1,
                    },
                    solved=solved,
                    differs_in=differs,
                    confounded=len(differs) > 1 and not variant.is_combination,
                    axis_values=axes.settings,
                )

    def resolved(self, draft: Draft) -> TrialSpec:
        """The draft's specification with its data's content and its precision known."""
        data = draft.section("data")
        if data not in self._data:
            try:
                self._data[data] = resolve(data, self.grid.folder)
            except SpecError as error:
                raise draft.error(SpecError(("data", *error.path), error.problem)) from None
            except UserError as error:
                raise draft.error(SpecError(("data", "path"), str(error))) from None
        spec = draft.spec(data=self._data[data])
        try:
            task = self.task(spec.data)
        except SpecError as error:
            raise draft.error(SpecError(("data", "tokenizer", *error.path), error.problem)) from None
        except UserError as error:
            raise draft.error(SpecError(("data", "path"), str(error))) from None
        try:
            task.batches(spec.data.seq_len, 0)
            for split in task.splits[1:]:
                task.held_out(split, 1)
        except UserError as error:
            raise draft.error(SpecError(("data", "seq_len"), str(error))) from None
        if (form := form_of(spec.arch)) not in task.forms:
            field = {"pair": "encoder", "image": "embedding"}.get(form, "model" if spec.arch.model else "head")
            problem = f"task {spec.data.task.name!r} trains models of form {' or '.join(task.forms)}, not {form}"
            raise draft.error(SpecError(("arch", field), problem + ("; set it to false" if form == "pair" else "")))
        self._check_recipe(spec.train, draft)
        if spec.train.precision == "auto":
            spec = replace(spec, train=replace(spec.train, precision=default_precision(spec)))
        return spec

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

    def task(self, data: DataSpec) -> Task:
        if data not in self._tasks:
            task: Task = registry.make("task", data.task)
            task.open(data, self.cache)
            self._tasks[data] = task
        return self._tasks[data]

    def facts(self, rows: list[Row]) -> dict[str, Any]:
        """The facts of the first row's data, and the unigram entropies of all rows': one a tokenizer or corpus."""
        every = [self.task(data).facts() for data in dict.fromkeys(row.spec.data for row in rows)]
        return {**every[0], "unigram_entropies": sorted({float(facts["unigram_entropy"]) for facts in every})}

    def cost(self, spec: TrialSpec, variant: Variant) -> Cost:
        """Counted costs; an architecture in which something has no effect is refused here."""
        task = self.task(spec.data)
        try:
            return self.book.cost(spec.arch, task.vocab, task.max_len)
        except UserError as error:
            raise variant.origin.error(f"variant {variant.name!r}: {error}") from None
        except Exception as error:  # an option's value that torch refuses, a mistake in a plugin
            ours = [each for each in extract_tb(error.__traceback__) if "torch" not in Path(each.filename).parts]
            problem = f"variant {variant.name!r} cannot be built: {type(error).__name__}: {error}".rstrip(": ")
            problem += f" ({Path(ours[-1].filename).name}:{ours[-1].lineno})"
            raise variant.origin.error(problem) from error

    def matched(
        self, draft: Draft, spec: TrialSpec, variant: Variant, size: Choice, axes: Choice, want: Cost
    ) -> tuple[TrialSpec, Cost, dict[str, int]]:
        """The variant at the sizes that give it the baseline's parameters or FLOPs."""
        targets = TARGETS[self.grid.match]
        cost = self.cost(spec, variant)
        if not targets:
            return spec, cost, {}
        task = self.task(spec.data)

        def make(sizes: Mapping[str, int]) -> ArchSpec:
            sized = draft.copy()
            sized.lay(sizes, variant.origin)
            return sized.section("arch")

        def flops(arch: ArchSpec) -> float:
            return self.book.cost(arch, task.vocab, task.max_len).flops_forward

        values = {"params": float(want.params_total), "flops": want.flops_forward}
        frozen = frozenset(variant.paths()) | frozenset(axes.settings)
        key = (variant.name, spec.arch, tuple(values.values()), frozen, task.vocab, task.max_len)
        try:
            if key not in self._solved:
                self._solved[key] = Matcher(make, task.vocab, task.max_len, flops).solve(
                    {target: values[target] for target in targets}, self.grid.tolerance, frozen
                )
        except Unmatched as error:
            raise variant.origin.error(
                f"variant {variant.name!r} at size {size.label!r} {error}. Widen `tolerance`, or set `match: none`"
            ) from None
        found = self._solved[key]
        spec = replace(spec, arch=found.arch)
        return spec, self.cost(spec, variant), dict(found.sizes)

    def budgeted(self, spec: TrialSpec, cost: Cost, baseline: Cost, budget: Budget, draft: Draft) -> TrialSpec:
        """The specification with the budget's tokens. Variants share the baseline's, except at equal FLOPs."""
        if budget.kind == "base":
            return spec
        if budget.kind == "flops" and not cost.flops_train:
            raise budget.origin.error("flops: there are none in a model fitted by counting: give a budget of tokens")
        tokens = {
            "tokens": budget.value,
            "tokens_per_param": budget.value * baseline.params_total,
            "flops": budget.value / cost.flops_train,
        }[budget.kind]
        train: TrainSpec = spec.train
        steps = round(tokens / train.batch_tokens)
        if steps < 1:
            raise budget.origin.error(
                f"{budget.kind} {budget.value:g} is {tokens:,.0f} tokens, less than one batch of {train.batch_tokens}"
            )
        return replace(spec, train=replace(train, tokens=steps * train.batch_tokens))

    def duplicate(self, row: Row, other: Row) -> UserError:
        def name(row: Row) -> str:
            return ", ".join(each for each in (row.variant, row.size, row.axes, row.budget) if each)

        where = "budgets" if row.budget != other.budget else "axes" if row.axes != other.axes else "sizes"
        if row.variant != other.variant:
            where = "variants"
        return self.grid.document.error(
            (where,), f"two cells are the same experiment: ({name(other)}) and ({name(row)})"
        )


def differences(baseline: TrialSpec, variant: TrialSpec) -> tuple[str, ...]:
    """Where two specifications differ: slots of the architecture (order and depth are one, the pattern),
    sizes, and paths of data and training."""
    found: set[str] = set()
    for field in fields(ArchSpec):
        one, two = getattr(baseline.arch, field.name), getattr(variant.arch, field.name)
        if one == two:
            continue
        if field.name in ("order", "depth", "encoder_order", "encoder_depth"):
            found.add("pattern")
        elif field.name == "share_embeddings":
            found.add("head")  # which of the tables are one: with the head's `tied`, a single question
        elif field.name == "swap":
            found.update(registry_slot(swap.by) for swap in (one, two) if swap is not None)
        elif field.name == "sublayers":
            letters = dict(one), dict(two)
            for letter in letters[0].keys() & letters[1].keys():
                if letters[0][letter] != letters[1][letter]:
                    found.add(registry_slot(letters[1][letter]))
        else:
            found.add(field.name)
    if baseline.arch.d_model != variant.arch.d_model:
        found -= {"d_head", "d_ff"}  # they follow the width unless set
    for section in ("data", "train"):
        before, after = getattr(baseline, section), getattr(variant, section)
        found |= {
            f"{section}.{field.name}"
            for field in fields(before)
            if field.name != "content" and getattr(before, field.name) != getattr(after, field.name)
        }
    return tuple(sorted(found))


def default_precision(spec: TrialSpec) -> str:
    """bf16 where the trial gets a GPU, fp32 on a CPU."""
    return "bf16" if default_gpus(spec) > 0 else "fp32"


def default_gpus(spec: TrialSpec) -> float:
    """GPUs that a trial asks for: as stated, else one where this machine has any."""
    if spec.resources.gpus is not None:
        return spec.resources.gpus
    return 1.0 if torch.cuda.is_available() else 0.0
