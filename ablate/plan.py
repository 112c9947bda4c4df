"""Grid -> Plan: every trial with its solved sizes, its costs and its id; nothing is trained here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ablate.arch import ArchSpec
from ablate.build import build_on_meta
from ablate.choices import Choice
from ablate.cost import Cost, params_only
from ablate.designs import Designed
from ablate.differences import differences
from ablate.draft import Draft
from ablate.errors import UserError
from ablate.grid import Budget, Grid
from ablate.ladders import ladders
from ablate.match import TARGETS, Candidate, Matcher, Unmatched
from ablate.resolve import Resolver
from ablate.rows import Plan, PlannedTrial, Row, Sweep, trials_of
from ablate.spec import DataSpec, Resources, TrainSpec, TrialSpec, to_tree
from ablate.stages import Stage
from ablate.train.start import refuse_misfits
from ablate.variants import Variant


def make_plan(grid: Grid, cache: Path) -> Plan:
    """Resolve data and precision, solve the sizes, count, and list the trials.

    Raises `UserError` naming the place in the grid for whatever cannot be run as asked.
    """
    found: list[tuple[Row, Draft]] = []
    planner = _Planner(grid, cache)
    for size in grid.sizes:
        for axes in grid.axes:
            found += planner.cell(size, axes)
    rows = [row for row, _ in found]
    trials: dict[str, PlannedTrial] = {}
    of_row: dict[int, list[PlannedTrial]] = {}
    for row in rows:  # a stage's rows come after those that they begin from
        parents = [None] if row.parent is None else [trial.id for trial in of_row[id(row.parent)]]
        of_row[id(row)] = trials_of(row, parents)
        for trial in of_row[id(row)]:
            if other := trials.get(trial.id):
                raise planner.duplicate(row, other.row)
            trials[trial.id] = trial
    plan = Plan(grid, tuple(rows), tuple(trials.values()), planner.facts(rows))
    if grid.promote is not None:
        ladders(plan)  # raises where there are none
    if grid.tune is None:
        return plan
    sweeps = tuple(Sweep(row, draft, grid.tune) for row, draft in found)
    tried = [sweep.tried(values) for sweep in sweeps for values in grid.tune.values()]
    return replace(plan, rows=(), trials=(), sweeps=sweeps).with_rows(tried)


class _Planner(Resolver):
    """The rows of a grid, cell by cell."""

    def __init__(self, grid: Grid, cache: Path):
        super().__init__(grid, cache)
        self._solved: dict[tuple[Any, ...], Candidate] = {}  # axes of training repeat the same architectures

    def cell(self, size: Choice, axes: Choice) -> list[tuple[Row, Draft]]:
        """The rows of all stages and variants at one size and axis setting, the baseline's first in each stage, and
        what each was made of."""
        rows: list[Row] = []
        drafts: dict[int, Draft] = {}  # of the rows so far: what the stages after them begin with
        for stage in self.grid.stages:
            common = self.grid.base.copy()
            common.lay(size.settings, size.origin)
            common.lay(axes.settings, axes.origin)
            for own in stage.axes:
                if stage.parent is None:
                    found = self.afresh(stage, common, size, axes, own)
                else:
                    parents = [row for row in rows if row.stage == stage.parent]
                    found = self.following(stage, common, parents, drafts, own)
                for row, draft in found:
                    drafts[id(row)] = draft
                    rows.append(row)
        return [(row, drafts[id(row)]) for row in rows]

    def afresh(
        self, stage: Stage, common: Draft, size: Choice, axes: Choice, own: Choice
    ) -> Iterator[tuple[Row, Draft]]:
        """The rows of a stage that begins from fresh weights."""
        baseline: tuple[TrialSpec, Cost] | None = None
        seen: dict[TrialSpec, str] = {}
        where = f" at {axes.label}" if axes.label else ""
        for variant in self.grid.variants:
            draft = variant.lay_on(common)
            _lay_stage(draft, stage, own)
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
                draft.lay(solved, variant.origin)
            if spec.resources.parallel.ranks > 1:
                self.spreadable(spec, draft, variant)
            differs = differences(baseline[0], asked)
            for budget in self.grid.budgets:
                yield (
                    Row(
                        variant=variant.name,
                        size=size.label,
                        axes=_joined(axes.label, own.label),
                        budget=budget.label,
                        spec=self.budgeted(spec, cost, baseline[1], budget, draft),
                        cost=cost,
                        residuals=_residuals(cost, baseline[1]),
                        solved=solved,
                        differs_in=differs,
                        confounded=len(differs) > 1 and not variant.is_combination,
                        axis_values={**axes.settings, **own.settings},
                        stage=stage.name,
                        seeds=stage.seeds,
                        told=self.told(spec),
                    ),
                    draft,
                )

    def following(
        self, stage: Stage, common: Draft, parents: list[Row], drafts: Mapping[int, Draft], own: Choice
    ) -> Iterator[tuple[Row, Draft]]:
        """The rows of a stage that begins from the trained weights of others, one for each of theirs."""
        variants = {variant.name: variant for variant in self.grid.variants}
        baseline: dict[tuple[str, str], Cost] = {}
        for parent in parents:
            variant = variants[parent.variant]
            before = drafts[id(parent)]
            draft = before.begun(variant.lay_on(common))
            _lay_stage(draft, stage, own)
            _keep_tokenizer(draft, parent.spec.data, stage)
            vocabulary = parent.spec.data.vocabulary or self.task(parent.spec.data).vocabulary
            spec = self.resolved(draft, parent=parent.stage, vocabulary=vocabulary)
            cost = self.cost(spec, variant)
            self._refuse_misfits(spec, parent, stage)
            first = baseline.setdefault((parent.axes, parent.budget), cost)
            yield (
                Row(
                    variant=variant.name,
                    size=parent.size,
                    axes=_joined(parent.axes, own.label),
                    budget=parent.budget,
                    spec=spec,
                    cost=cost,
                    residuals=_residuals(cost, first),
                    solved=parent.solved,
                    differs_in=parent.differs_in,
                    confounded=parent.confounded,
                    axis_values={**parent.axis_values, **own.settings},
                    stage=stage.name,
                    seeds=stage.seeds,
                    parent=parent,
                    told=self.told(spec),
                ),
                draft,
            )

    def _refuse_misfits(self, spec: TrialSpec, parent: Row, stage: Stage) -> None:
        """Raise `UserError` where the weights of a row's trials are not those of this architecture."""
        mine, theirs = (
            build_on_meta(each.arch, task.vocab, task.max_len, **task.sizes).state_dict()
            for each, task in ((spec, self.task(spec.data)), (parent.spec, self.task(parent.spec.data)))
        )
        try:
            refuse_misfits({name: value.shape for name, value in mine.items()}, theirs)
        except UserError as error:
            raise stage.origin.error(f"{error} ({stage.parent!r}, {parent.variant})") from None

    def facts(self, rows: list[Row]) -> dict[str, Any]:
        """The facts of the first row's data, and what all rows' data have to compare results with."""
        every: dict[tuple[str, Any], dict[str, Any]] = {}
        for row in rows:
            every.setdefault((row.stage, row.spec.data), self.task(row.spec.data).facts())
        baselines = [
            {"stage": stage, **baseline} for (stage, _), facts in every.items() for baseline in facts["baselines"]
        ]
        first = next(iter(every.values()))
        return {**first, "baselines": [each for n, each in enumerate(baselines) if each not in baselines[:n]]}

    def matched(
        self, draft: Draft, spec: TrialSpec, variant: Variant | Designed, size: Choice, axes: Choice, want: Cost
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
            return self.book.cost(arch, task.vocab, task.length(arch), **task.sizes).flops_forward

        def params(arch: ArchSpec) -> int:
            return params_only(arch, task.vocab, task.length(arch), **task.sizes)

        values = {"params": float(want.params_total), "flops": want.flops_forward}
        frozen = frozenset(variant.paths()) | frozenset(axes.settings)
        key = (variant.name, spec.arch, tuple(values.values()), frozen, task.vocab, task.max_len, str(task.sizes))
        try:
            if key not in self._solved:
                self._solved[key] = Matcher(make, params, flops).solve(
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
        if budget.kind == "tokens":
            tokens = budget.value
        elif budget.kind == "tokens_per_param":
            tokens = budget.value * baseline.params_total
        else:
            tokens = budget.value / cost.flops_train
        train: TrainSpec = spec.train
        steps = round(tokens / train.batch_tokens)
        if steps < 1:
            raise budget.origin.error(
                f"{budget.kind} {budget.value:g} is {tokens:,.0f} tokens, less than one batch of {train.batch_tokens}"
            )
        return replace(spec, train=replace(train, tokens=steps * train.batch_tokens))

    def duplicate(self, row: Row, other: Row) -> UserError:
        def name(row: Row) -> str:
            return ", ".join(each for each in (row.stage, row.variant, row.size, row.axes, row.budget) if each)

        where = "budgets" if row.budget != other.budget else "axes" if row.axes != other.axes else "sizes"
        if row.variant != other.variant:
            where = "variants"
        return self.grid.document.error(
            (where,), f"two cells are the same experiment: ({name(other)}) and ({name(row)})"
        )


def _lay_stage(draft: Draft, stage: Stage, own: Choice) -> None:
    draft.lay(stage.settings, stage.origin)
    draft.lay(own.settings, own.origin)


def _keep_tokenizer(draft: Draft, before: DataSpec, stage: Stage) -> None:
    """The tokenizer of the stage before. Raises `UserError` where another is asked for."""
    mine: DataSpec = draft.section("data")
    if "data.tokenizer" in stage.settings and mine.tokenizer != before.tokenizer:
        raise stage.origin.error(
            f"a stage has the tokenizer of the one it begins from, {before.tokenizer.name!r}", ("data.tokenizer",)
        )
    draft.set(("data", "tokenizer"), to_tree(before.tokenizer), stage.origin)


def _joined(*labels: str) -> str:
    return ", ".join(filter(None, labels))


def _residuals(cost: Cost, baseline: Cost) -> dict[str, float]:
    return {
        "params": cost.params_total / baseline.params_total - 1,
        "flops": cost.flops_forward / baseline.flops_forward - 1,
    }
