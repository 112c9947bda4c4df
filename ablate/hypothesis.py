"""What a study is expected to show, said before it runs.

hypothesis:
  claim: rotary positions lower the loss        # in words
  variant: rope                                 # against the baseline
  expect: better                                # better | worse | equivalent
  metric: loss                                  # the primary one: loss unless given
  smallest: 0.01                                # the smallest effect of interest, in units of the metric
  stopping: all seeds of the grid               # when it ends, in words

Before the first trial it is written, with a hash of it and of what is planned, to the study's `hypothesis.jsonl`;
each run that finds something else adds a line, and the report lists what deviates from the first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ablate.choices import block
from ablate.errors import unknown
from ablate.yamlfile import Document
from analysis.columns import cell_name
from analysis.typed import did_you_mean

KEYS = ("claim", "variant", "expect", "metric", "smallest", "stopping")
EXPECTATIONS = ("better", "worse", "equivalent")


def hypothesis(document: Document, variants: Sequence[str]) -> dict[str, Any] | None:
    """The block with its defaults, None where a grid has none. Raises `UserError`."""
    tree = block(document, "hypothesis", KEYS, f" with {', '.join(KEYS)}")
    if tree is None:
        return None
    found = {"claim": "", "expect": "better", "metric": "loss", "smallest": 0.0, "stopping": "", **tree}
    others = variants[1:]
    if found.get("variant") not in others:
        given = found.get("variant")
        known = f"variants: {', '.join(others)}" if others else "there is no variant beside the baseline"
        problem = f"{given!r} is none to compare;{did_you_mean(given, others)} {known}"
        raise document.error(("hypothesis", "variant"), problem)
    if found["expect"] not in EXPECTATIONS:
        raise document.error(("hypothesis", "expect"), unknown("expectation", found["expect"], EXPECTATIONS))
    smallest = found["smallest"]
    if not isinstance(smallest, int | float) or isinstance(smallest, bool) or not 0 <= smallest < float("inf"):
        raise document.error(("hypothesis", "smallest"), f"{smallest!r} must be a number from 0")
    if found["expect"] == "equivalent" and not smallest:
        raise document.error(
            ("hypothesis", "smallest"), "equivalent within what? give the smallest effect of interest"
        )
    for key in ("claim", "metric", "stopping"):
        if not isinstance(found[key], str):
            raise document.error(("hypothesis", key), f"{found[key]!r} must be text")
    return {key: found[key] for key in KEYS}


def smallest(document: Document, expected: Mapping[str, Any] | None) -> float | dict[str, float] | None:
    """The smallest effect of interest that a grid states, of every metric or by metric: its own key, or what
    `hypothesis` gives of its metric. Raises `UserError`."""
    found = document.value.get("smallest")
    own = expected["smallest"] if expected else 0.0
    if found is None:
        return {expected["metric"]: own} if expected and own else None
    if own:
        raise document.error(("smallest",), "is given in hypothesis too: leave out one of them")
    numbers = found if isinstance(found, Mapping) else {"": found}
    for metric, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number < float("inf"):
            place = ("smallest", metric) if metric else ("smallest",)
            raise document.error(place, f"{number!r} must be a number above 0, in units of the metric")
    return dict(found) if isinstance(found, Mapping) else found


def registration(block: Mapping[str, Any], tree: Mapping[str, Any]) -> dict[str, Any]:
    """The block with what is planned (`study_tree`), and the hash of both."""
    trials = tree["trials"]
    planned = {
        "baseline": tree["baseline"],
        "variants": list(dict.fromkeys(trial["variant"] for trial in trials)),
        "cells": sorted({cell_name(trial) for trial in trials}),
        "seeds": sorted({trial["seed"] for trial in trials}),
        "match": tree["match"],
        "data": tree["data"]["fingerprint"],
    }
    said = {"hypothesis": dict(block), "planned": planned}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
    return {"sha256": digest, **said}
