"""Contract checks: what every component must satisfy, run by `ablate check` and by the tests over the registry.

A component is put into its slot of a small model and the model is probed: `ablate/checks/` has the checks.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from ablate.checks.model import (
    check_bf16,
    check_deterministic,
    check_documented,
    check_effect,
    check_fits,
    check_gradient,
    check_learns,
    check_meta,
    check_normalised,
    check_resume,
    check_rows,
    check_shape,
    check_state_dict,
)
from ablate.checks.tasks import TASK_CHECKS
from ablate.checks.time import (
    check_cache,
    check_causal,
    check_lengths,
    check_mixes,
    check_padding,
    check_pointwise,
)
from ablate.checks.training import check_factors, check_optimises, check_round_trip, check_shared, check_unknown
from ablate.errors import UserError
from ablate.registry import add_plugin, load, plugin_files
from ablate.run.cores import usable
from ablate.subject import MODELS, CheckFailed, Subject, subjects

WORTH_A_PROCESS = 20  # subjects: a process takes some seconds to start
Check = Callable[[Subject], None]
EVERYWHERE: tuple[Check, ...] = (
    check_documented,
    check_shape,
    check_gradient,
    check_rows,
    check_meta,
    check_deterministic,
    check_state_dict,
    check_bf16,
    check_learns,
    check_resume,
    check_effect,
)
FITTED: tuple[Check, ...] = (
    check_documented,
    check_shape,
    check_rows,
    check_deterministic,
    check_state_dict,
    check_fits,
)
IN_TIME: tuple[Check, ...] = (check_lengths, check_causal)
BY_SLOT: dict[str, tuple[Check, ...]] = {
    "mixer": (check_mixes,),
    "channel": (check_pointwise,),
    "head": (check_normalised,),
    "optimizer": (check_optimises,),
    "schedule": (check_factors, check_shared),
    "tokenizer": (check_round_trip, check_unknown),
    "task": TASK_CHECKS,
}


def checks_for(subject: Subject) -> tuple[Check, ...]:
    """The checks that apply to a component."""
    entry = subject.entry
    if entry.slot not in MODELS:
        return (check_documented, *BY_SLOT.get(entry.slot, ()))
    found = FITTED if getattr(load(entry), "fitted", False) else EVERYWHERE
    if subject.form in ("tokens", "pair"):
        found += IN_TIME + ((check_cache,) if entry.causal else ())
    if subject.form in ("tokens", "pair", "classify") and entry.slot != "model":
        found += (check_padding,)
    return found + BY_SLOT.get(entry.slot, ())


def check_components(name: str | None = None, say: Callable[[str], None] | None = None) -> list[dict[str, Any]]:
    """Run all checks on every component, or on those of one name. Raises `UserError` for an unknown name.

    Many are shared out among processes, one to a processor.
    """
    chosen = list(subjects(name))
    results = []
    with contextlib.ExitStack() as stack:
        verdicts: Iterable[dict[str, Any]] = map(check_one, chosen)
        processes = min(usable(), len(chosen) // WORTH_A_PROCESS)
        if processes > 1:
            spawn = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(processes, spawn, _add_plugins, (list(plugin_files()),))
            verdicts = stack.enter_context(pool).map(check_one, chosen)
        for verdict in verdicts:
            results.append(verdict)
            if say:
                failed = "; ".join(f"{key}: {each}" for key, each in verdict["failed"].items())
                words = f"FAILED {failed}" if failed else "ok"
                say(f"{verdict['subject']:<40} {len(verdict['passed']):>2} passed  {words}")
    return results


def check_one(subject: Subject) -> dict[str, Any]:
    """All checks on one subject: which passed, and what failed."""
    torch.set_num_threads(1)
    failed: dict[str, str] = {}
    passed = []
    for check in checks_for(subject):
        label = check.__name__.removeprefix("check_")
        try:
            check(subject)
            passed.append(label)
        except (CheckFailed, UserError) as problem:
            failed[label] = str(problem)
        except Exception as error:  # a component may raise anything
            failed[label] = f"raises {type(error).__name__}: {error}"
    entry = subject.entry
    return {"slot": entry.slot, "name": entry.name, "subject": subject.name, "passed": passed, "failed": failed}


def _add_plugins(files: list[str]) -> None:
    """In a fresh process: what the user's plugins register."""
    for file in files:
        add_plugin(Path(file))


def print_results(results: list[dict[str, Any]]) -> None:
    """The last line: how many components pass, and which do not."""
    bad = [result["subject"] for result in results if result["failed"]]
    print(
        f"{len(results) - len(bad)} of {len(results)} components pass all checks"
        + (f"; not {', '.join(bad)}" if bad else "")
    )
