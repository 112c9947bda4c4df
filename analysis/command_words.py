"""What `ablate fit` found, in words."""

from __future__ import annotations

from typing import Any


def words(result: dict[str, Any]) -> str:
    """The result for a person."""
    if "groups" in result:
        parts = [f"{each['group']}:\n{words(each)}" for each in result["groups"]]
        return "\n\n".join([*parts, *_compared(result)])
    head = f"{result['form']}, {result['n']} points"
    if result.get("equation"):
        head = (
            f"{result['equation']}  ({result['objective_name']}, {result['n']} points, sum {result['objective']:.6g})"
        )
    lines = [head]
    for name, value in result["params"].items():
        ends = result["ci95"].get(name)
        if isinstance(value, float):
            lines.append(f"  {name:<10} {value:.6g}" + (f"  [{ends[0]:.6g}, {ends[1]:.6g}]" if ends else ""))
    for name, value in result.get("derived", {}).items():
        lines.append(f"  {name:<10} {value:.6g}")
    lines += [f"  {_prediction(each)}" for each in result["predictions"]]
    if result["holdout"]:
        held = result["holdout"]
        lines.append(
            f"  {held['held_out']} points held out, up to {held['distance']:.3g} times the compute of the "
            f"{held['fitted']} fitted: off by {held['mean_abs_error_percent']:.2f} % on average, "
            f"{held['max_abs_error_percent']:.2f} % at most"
        )
    lines += _more(result)
    lines += [f"  left out: row {each['row']}: {each['reason']}" for each in result["dropped"]]
    skipped = [each["gate"] for each in result["gates"] if each["skipped"].startswith("no column")]
    if skipped:
        lines.append(f"  not checked, for want of columns: {', '.join(skipped)}")
    lines += [f"  beware: {each}" for each in result["warnings"]]
    return "\n".join(lines)


def _compared(result: dict[str, Any]) -> list[str]:
    """Groups against the baseline: where they cross, and the preferred fit's differences and gains."""
    if "comparisons" not in result:
        return []
    lines = list(result["crossovers"])
    for row in result["comparisons"]:
        if row["preferred"] and row["quantity"] != "crossover" and row["value"] is not None:
            at = "" if row["at"] is None else f" at {row['at']:.3g}"
            name = row["quantity"] if row["quantity"] == "gain" else f"{row['quantity']} less {row['baseline']}'s"
            ends = f" [{row['lo']:.4g}, {row['hi']:.4g}]" if row["lo"] is not None and row["hi"] is not None else ""
            lines.append(f"  {row['variant']}: {name}{at} {row['value']:.4g}{ends} ({row['fit']} offset)")
    told = dict.fromkeys(doubt for doubts in result["beware"].values() for doubt in doubts)
    lines += [f"  beware: {doubt}" for doubt in told] + _figures(result)
    return ["\n".join(lines)]


def _more(result: dict[str, Any]) -> list[str]:
    """A tournament, what to run next, and where figures are."""
    lines = []
    for row in result.get("tournament", {}).get("ranking", []):
        what = f"{row['form']}, {row['objective']}"
        error = row["failed"] or f"{row['mean']:.2f} % on held-out points, {row['largest']:.2f} % at most"
        lines.append(f"  {what:<28} {error}")
    for each in result.get("tournament", {}).get("predictions", []):
        said = f"refused: {each['refused']}" if each["refused"] else f"loss {each['loss']:.5g}"
        lines.append(f"  contestants at c = {each['c']:.4g}: {said} ({each['lowest']:.5g} to {each['highest']:.5g})")
    for row in result.get("next", []):
        at = ", ".join(f"{name} = {row[name]:.4g}" for name in ("n", "d", "c", "s") if row.get(name) is not None)
        ends = f"{100 * (row['hi'] / row['lo'] - 1):.2g} %"
        lines.append(f"  run {row['run']} next: {at}: narrows the prediction to {ends}")
    return lines + _figures(result)


def _figures(result: dict[str, Any]) -> list[str]:
    return [f"  figure: {file}" for file in result.get("figures", [])]


def _prediction(found: dict[str, Any]) -> str:
    """`at c = 1e+20, n = 8e+08, ...: loss 2.9 [2.8, 3.0]`."""
    at = [name for name in ("c", "n", "d", "s", "u", "e", "l") if found.get(name) is not None]
    parts = [f"{name} = {found[name]:.4g}{_ends(found, name)}" for name in at]
    told = f": loss {found['loss']:.5g}{_ends(found, 'loss')}" if found.get("loss") is not None else ""
    new = f", a new run {_ends(found, 'new').strip()}" if "new_lo" in found else ""
    return f"at {', '.join(parts)}{told}{new}"


def _ends(found: dict[str, Any], name: str) -> str:
    low, high = (found.get(f"{name}_{end}") for end in ("lo", "hi"))
    return f" [{low:.4g}, {high:.4g}]" if low is not None and high is not None else ""
