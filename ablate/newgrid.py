"""A first grid.yaml: written from a few choices, or taken from the studies that come with the package.

A new grid compares the components of one slot, or registered variants, on a small language model; its base is the
default architecture or a preset as a decoder. Everything is planned before it is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import relpath
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate import registry
from ablate.draft import Draft, Origin
from ablate.errors import PlaceError, UserError, unknown
from ablate.names import wrong_with
from ablate.overlays import BASELINE, Overlay, compose, ladders, overlays
from ablate.spec import ArchSpec
from ablate.yamlfile import Document, parse_scalar, read_yaml

if TYPE_CHECKING:
    from ablate.rows import Plan

PACKAGE = Path(__file__).parent
STUDIES = (PACKAGE / "experiments", PACKAGE.parent / "experiments")  # of an installation, of a checkout
SCHEMA = "grid.schema.json"  # beside a grid, for editors
CORPUS = "kjv"  # embedded
DECODER = "  arch: {encoder: false, d_head: null, d_ff: null}    # as a decoder, at the sizes below\n"
SLOT, SIZE, SEEDS = "position", "d64", 3
COMMENT = 56  # where those of variants begin
LETTERS = {"mixer": "sublayers.s", "channel": "sublayers.f"}
SMALL, RECIPE, LARGE_RECIPE = 128, (64, 2048, "3e-3"), (512, 32_768, "6e-4")  # d_model; seq_len, batch_tokens, lr


@dataclass(frozen=True)
class Choices:
    """What a new grid is made of. `data` is a path, None the embedded text."""

    vary: str = SLOT
    variants: tuple[str, ...] = ()
    preset: str | None = None
    data: str | None = None
    size: str = SIZE
    seeds: int = SEEDS


def presets() -> dict[str, Overlay]:
    """Those that can be language models: of tokens, and not encoders alone."""
    known = {name: each for name, each in overlays().items() if each.preset}
    return {name: each for name, each in known.items() if not {"encoder_only", "image"} & set(each.at or ())}


def studies() -> dict[str, Document]:
    """The studies that come with the package and ask for no files, by name."""
    folder = next((each for each in STUDIES if each.is_dir()), None)
    found = [read_yaml(file) for file in sorted(folder.glob("*.yaml"))] if folder else []
    return {each.file.stem: each for each in found if not _names_files(each.value)}


def question(study: Document) -> str:
    """The question in a study's header."""
    found = re.search(r"^# Question: (.*)$", study.text, re.MULTILINE)
    return found[1] if found else ""


def sizes() -> dict[str, Mapping[str, Mapping[str, Any]]]:
    """The rungs of every ladder, and of every single rung, by name."""
    rungs = {name: {name: rung} for ladder in ladders().values() for name, rung in ladder.items()}
    return {**rungs, **ladders()}


def copied(study: Document, file: Path) -> str:
    """The text of a study, as a grid of the file's name."""
    return re.sub(r"^study: .*$", f"study: {_study(file)}", study.text, count=1, flags=re.MULTILINE)


def new(choices: Choices, file: Path, cache: Path) -> tuple[str, Plan]:
    """The text of a new grid, and its plan. Of the components of a slot those are left out, with the reason in the
    text, that no change of this one thing can compare here: as they contradict the base, or cannot be matched.

    Raises `UserError` for a choice that is not known, and where the grid does not plan.
    """
    left_out: dict[str, str] = {}
    while True:
        text = _written(choices, file, left_out)
        try:
            plan = checked(text, file, cache)
        except PlaceError as error:
            name = error.path[1] if len(error.path) > 1 and error.path[0] == "variants" else None
            if choices.variants or name is None or name in left_out:
                raise
            left_out[name] = _reason(error.problem.removeprefix(f"variant {name!r}"))
        else:
            if len(plan.grid.variants) > 1:
                return text, plan
            reasons = "; ".join(left_out.values()) or "there is none"
            raise UserError(f"no other {choices.vary} can be compared here: {reasons}")


def _reason(problem: str) -> str:
    """The first part of what is wrong, as it fits in a line."""
    return " ".join(problem.lstrip(": ").split(";")[0].split())


def _written(choices: Choices, file: Path, left_out: Mapping[str, str]) -> str:
    """Raises `UserError` for a choice that is not known."""
    base = _base(choices.preset)
    rungs = _rungs(choices.size, base)
    rows, what = _compared(choices, base, left_out)
    small = max(rung["arch.d_model"] for rung in rungs.values()) <= SMALL
    seq_len, batch, lr = RECIPE if small else LARGE_RECIPE
    data = f"corpus: {CORPUS}" if choices.data is None else f"path: {_scalar(_beside(choices.data, file))}"
    start = f"  preset: {choices.preset}\n{DECODER}" if choices.preset else ""
    variants = "\n".join(f"  {name}: {body}" for name, body in rows)
    ladder = "\n".join(f"  {_scalar(name)}: {_flow(rung)}" for name, rung in rungs.items())
    return f"""\
# Question: {what}?
study: {_study(file)}
base:                                  # what all trials share
{start}  data: {{task: lm, {data}, tokenizer: bytes, seq_len: {seq_len}}}
  train: {{batch_tokens: {batch}, lr: {lr}, eval_tokens: 4096, final_eval_tokens: 32768}}
variants:                              # the first is the baseline; leave out what you do not want to train
{variants}
sizes:
{ladder}
budgets: {{tokens_per_param: 5}}         # a first look; about 20 are compute-optimal (Hoffmann et al. 2022)
match: params                          # every variant has the baseline's parameters, within 1 %
seeds: {choices.seeds}                               # how many a difference needs: `ablate power`
# tune: {{train.lr: {{low: 1e-3, high: 1e-2}}}}   # tunes the rate of every variant alike, by more trials
"""


def checked(text: str, file: Path, cache: Path) -> Plan:
    """The plan of a grid that is not written yet. Raises `UserError` where it does not plan."""
    from ablate.grid import load_grid
    from ablate.plan import make_plan

    return make_plan(load_grid(file, instead=text), cache)


def _study(file: Path) -> str:
    if wrong := wrong_with(file.stem):
        raise UserError(f"{file}: the study has the file's name, and {file.stem[:150]!r} {wrong}")
    return _scalar(file.stem)


def _base(preset: str | None) -> Draft:
    """The base as the grid will have it, before its sizes."""
    if preset is not None and preset not in presets():
        raise UserError(unknown("preset", preset, presets()))
    draft = Draft()
    origin = Origin(Document(Path("base"), ""), ("base",))
    for overlay in compose(preset) if preset else ():
        draft.lay_overlay(overlay, origin)
    return draft


def _rungs(size: str, base: Draft) -> dict[str, dict[str, Any]]:
    """The sizes with d_ff, where the base's is another multiple of d_model than 4."""
    if size not in sizes():
        raise UserError(unknown("size", size, sizes()))
    arch: ArchSpec = base.section("arch")
    assert arch.d_ff is not None
    rungs = {name.replace(".", "_"): dict(rung) for name, rung in sizes()[size].items()}  # a name has no dots
    if arch.d_ff != 4 * arch.d_model:
        for rung in rungs.values():
            rung["arch.d_ff"] = round(rung["arch.d_model"] * arch.d_ff / arch.d_model)
    return rungs


def _compared(choices: Choices, base: Draft, left_out: Mapping[str, str]) -> tuple[list[tuple[str, str]], str]:
    """The variants with what stands behind their names, the baseline first, and the question."""
    if choices.variants:
        return _named(choices.variants), f"what do {', '.join(choices.variants)} change of a small language model"
    slot = choices.vary
    if slot not in registry.SLOTS:
        raise UserError(unknown("slot to vary", slot, registry.SLOTS))
    arch: ArchSpec = base.section("arch")
    letter = LETTERS.get(slot, "")
    now = dict(arch.sublayers)[letter[-1]] if letter else getattr(arch, slot)
    rows = [(now.name, "{}")]
    for entry in registry.catalogue(slot):
        fits = entry.causal and entry.form == registry.FORMS[0]
        if entry.name in left_out:
            rows.append((f"# {entry.name}", f"left out: {left_out[entry.name]}"))
        elif fits and entry.name != now.name:
            body = f"{{arch.{letter or slot}: {entry.name}}}"
            rows.append((entry.name, f"{body:<{COMMENT - len(entry.name)}} # {entry.paper}"))
    return rows, f"which {slot} is best for a small language model"


def _named(names: Sequence[str]) -> list[tuple[str, str]]:
    for name in names:
        if any(overlay.preset for overlay in compose(name)):
            raise UserError(f"--variants: {name!r} has a preset, which sets everything: give it as --from")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--variants: {twice[0]!r} is given twice")
    rows = [(BASELINE, "{}")]
    for name in names:
        papers = "; ".join(dict.fromkeys(overlay.paper for overlay in compose(name)))
        rows += [(name, f"{name:<{COMMENT - len(name)}} # {papers}")] * (name != BASELINE)
    return rows


def _beside(data: str, file: Path) -> str:
    """A path as the grid in `file` names it. Raises `UserError` where there is nothing."""
    place = Path(data).expanduser()
    if not place.exists():
        raise UserError(f"--data {data!r}: there is no such file or folder; the embedded text is {CORPUS}")
    return data if place.is_absolute() or data.startswith("~") else relpath(place, file.parent)


def _names_files(tree: Any) -> bool:
    """Whether a grid names a path or a data set of a hub somewhere."""
    if isinstance(tree, Mapping):
        keys = {str(key).split(".")[-1] for key in tree}
        return bool({"path", "hub", "plugins"} & keys) or any(map(_names_files, tree.values()))
    return isinstance(tree, list) and any(map(_names_files, tree))


def _flow(settings: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{path}: {value}" for path, value in settings.items()) + "}"


def _scalar(text: str) -> str:
    """Text as YAML has it: quoted where it could be read as anything else."""
    plain = re.fullmatch(r"[A-Za-z./~][\w./~-]*", text) and parse_scalar(text) == text
    return text if plain else json.dumps(text, ensure_ascii=False)
