"""The report's section on what was expected: registered when, what deviates from it, and what came of it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.records import is_number, is_time, read_lines
from analysis.tables import SIGN

TEXTS = ("claim", "variant", "expect", "metric", "stopping")  # of a registered block, beside `smallest`


@dataclass
class Expected:
    """As printed: the claim, when it was registered and its hash, the outcome, and deviations."""

    claim: str = ""
    registered: str = ""
    outcome: str = ""
    deviations: list[str] = field(default_factory=list)


def _is_whole(line: dict[str, Any]) -> bool:
    block = line.get("hypothesis")
    return (
        is_time(line.get("time"))
        and isinstance(line.get("sha256"), str)
        and isinstance(line.get("planned"), dict)
        and isinstance(block, dict)
        and all(isinstance(block.get(name), str) for name in TEXTS)
        and is_number(block.get("smallest"))
    )


def expected_section(folder: Path, table: pd.DataFrame, overall: pd.DataFrame) -> Expected | None:
    """Of a study's folder, its trials that are compared, and the comparison over all cells. None without one."""
    file = folder / "hypothesis.jsonl"
    if not file.is_file():
        return None
    lines = [line for line in read_lines(file) if _is_whole(line)]
    if not lines:
        return None
    first, block = lines[0], lines[0]["hypothesis"]
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(first["time"]))
    size = f" by at least {block['smallest']:g}" if block["smallest"] and block["expect"] != "equivalent" else ""
    size = f" within {block['smallest']:g}" if block["expect"] == "equivalent" else size
    claim = f"{block['variant']} is expected to be {block['expect']}{size} in {block['metric']}"
    claim += f": {block['claim']}" if block["claim"] else ""
    claim += f". It ends with {block['stopping']}" if block["stopping"] else ""
    return Expected(
        claim,
        f"{when}, before the first trial, SHA-256 {first['sha256'][:16]}",
        _outcome(block, overall),
        [*_changes(lines), *_missing(first["planned"], table)],
    )


def _outcome(block: dict[str, Any], overall: pd.DataFrame) -> str:
    mine = overall[(overall["variant"] == block["variant"]) & (overall["metric"] == block["metric"])]
    if not len(mine):
        return f"not known: the study has no {block['metric']} of {block['variant']}"
    row = mine.iloc[0]
    if pd.isna(row["lo"]) and row["verdict"] in ("better", "worse", "equivalent"):  # by a race in several cells
        word = "as expected" if row["verdict"] == block["expect"] else "not as expected"
        return f"{word}: {row['verdict']}, on average {row['diff']:+.4f}"
    if pd.isna(row["lo"]):
        return "not known: fewer than two pairs have finished"
    told = f"{row['diff']:+.4f} [{row['lo']:+.4f}, {row['hi']:+.4f}] over {int(row['n'])} seeds"
    lo, hi = sorted(SIGN[row["better"]] * row[name] for name in ("lo", "hi"))  # less is better
    smallest = block["smallest"]
    if block["expect"] == "equivalent":
        holds, fails = -smallest < lo and hi < smallest, lo > smallest or hi < -smallest
    elif block["expect"] == "better":
        holds, fails = hi < -smallest or (smallest == 0 and hi < 0), lo > -smallest
    else:
        holds, fails = lo > smallest, hi < smallest
    word = "as expected" if holds else "not as expected" if fails else "neither shown nor excluded"
    return f"{word}: {told}"


def _changes(lines: list[dict[str, Any]]) -> list[str]:
    """What later runs found otherwise than the first one."""
    found, before = [], lines[0]
    for line in lines[1:]:
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(line["time"]))
        for part in ("hypothesis", "planned"):
            for key, value in line[part].items():
                if value != before[part].get(key):
                    found.append(f"{when}: {key} was {_short(before[part].get(key))}, is {_short(value)}")
        before = line
    return found


def _missing(planned: dict[str, Any], table: pd.DataFrame) -> list[str]:
    """Trials of what was planned that did not come to an end."""
    left = table[table["status"] != "finished"]
    counts = left["status"].value_counts()
    return [f"{count} planned trials are {status}" for status, count in counts.items()]


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 120 else text[:117] + "..."
