"""What the nodes of a Ray cluster have, and whether a trial can run on one of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import ray

WORDS = {"CPU": "CPUs", "GPU": "GPUs", "memory": "GB of memory"}
HIDDEN = ("node:", "object_store_memory", "accelerator_type:")
GONE = (ray.exceptions.NodeDiedError, ray.exceptions.WorkerCrashedError, ray.exceptions.TaskUnschedulableError)
LOOK_S = 120.0  # patience with a node that starts its first worker

Needs = Mapping[str, Mapping[str, float]]  # resource class -> amounts by Ray's names


def nodes() -> dict[str, dict[str, float]]:
    """Resources of the living nodes, by id."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def refusal(kinds: Needs, have: Iterable[Mapping[str, float]]) -> str:
    """Why some class of trials can run on none of these nodes; empty when every class can."""
    found = list(have)
    names = sorted({name for node in found for name in node})
    most = {name: max(node.get(name, 0) for node in found) for name in names}
    for need in kinds.values():
        if any(all(node.get(name, 0) >= amount for name, amount in need.items()) for node in found):
            continue
        for name, amount in need.items():
            if amount > most.get(name, 0):
                asked = f"a trial asks for {_amount(name, amount)}"
                return f"{asked}, but no node of the Ray cluster has more than {_amount(name, most.get(name, 0))}"
        together = ", ".join(_amount(name, amount) for name, amount in need.items())
        known = ", ".join(_amount(name, each) for name, each in most.items() if not name.startswith(HIDDEN))
        return f"a trial asks for {together} together, but no one node of the Ray cluster has all: at most {known}"
    return ""


def _amount(name: str, amount: float) -> str:
    if name == "memory":
        amount /= 1e9
    return f"{amount:g} {WORDS.get(name, name)}"


def look(ids: Iterable[str], version: str, probe: Any) -> str:
    """Why trials cannot run on some of these nodes; empty when they can. `probe` tells what a node imports."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(probe)
    asked = {
        task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(each, soft=False)).remote(): each
        for each in ids
    }
    for answer, each in asked.items():
        try:
            host, found, missing = ray.get(answer, timeout=LOOK_S)
        except GONE:
            continue  # it has gone: the others will do
        except ray.exceptions.GetTimeoutError:
            return f"node {each[:8]} of the Ray cluster starts no worker within {LOOK_S:g} s"
        except ray.exceptions.RayError as error:
            return f"node {each[:8]} of the Ray cluster cannot run Python as here: {str(error).splitlines()[-1]}"
        if missing:
            return f"node {host} cannot import ablate ({missing}): install it there, or --ship sends the code"
        if found != version:
            return f"node {host} has ablate {found}, not {version}: install the same there, or --ship sends the code"
    return ""
