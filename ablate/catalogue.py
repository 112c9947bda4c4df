"""The catalogue of components, variants and presets, read without importing any of them."""

from __future__ import annotations

import textwrap
from typing import Any

from ablate import registry
from ablate.errors import UserError, unknown
from ablate.overlays import overlays

NAMED = ("variant", "preset")
WIDEST = 100  # lines that are still read well
FORMS = {  # what a component is for, where that is not a model of tokens
    "pair": "  (encoder-decoder)",
    "classify": "  (classifier)",
    "image": "  (images)",
    "denoise": "  (denoiser of images)",
}


def catalogue_json(slot: str | None) -> list[dict[str, Any]]:
    """All entries, or those of one slot. Raises `UserError` with the known slots."""
    if slot is not None and slot not in (*registry.KINDS, *NAMED):
        raise UserError(unknown("slot", slot, (*registry.KINDS, *NAMED)))
    entries: list[dict[str, Any]] = []
    if slot not in NAMED:
        for entry in registry.catalogue(slot):
            entries.append(
                {
                    "slot": entry.slot,
                    "name": entry.name,
                    "paper": entry.paper,
                    "causal": entry.causal,
                    "form": entry.form,
                    "options": entry.defaults,
                    "summary": entry.doc.split("\n\n")[0].replace("\n", " "),
                }
            )
    for overlay in overlays().values():
        kind = "preset" if overlay.preset else "variant"
        if slot in (None, kind):
            settings = dict(overlay.settings)
            entries.append(
                {
                    "slot": kind,
                    "name": overlay.name,
                    "paper": overlay.paper,
                    "causal": True,
                    "options": settings,
                }
            )
    return entries


def print_catalogue(entries: list[dict[str, Any]], width: int = WIDEST) -> None:
    """Slot by slot, a line each, with options and papers below."""
    width, indent = min(width, WIDEST), "      " if width >= 60 else "    "
    slot = None
    for entry in entries:
        if entry["slot"] != slot:
            slot = entry["slot"]
            print(f"\n{slot}" if entry is not entries[0] else slot)
        causal = "" if entry["causal"] else "  (not causal)"
        form = FORMS.get(entry.get("form", ""), "")
        print(f"  {entry['name']}{form}{causal}")
        if "summary" in entry:
            print(textwrap.fill(entry["summary"], width, initial_indent=indent, subsequent_indent=indent))
        if entry["options"]:
            words = ", ".join(f"{key}: {_show(value)}" for key, value in entry["options"].items())
            print(textwrap.fill(words, width, initial_indent=indent, subsequent_indent=indent))
        print(textwrap.fill(entry["paper"], width, initial_indent=indent, subsequent_indent=indent))


def _show(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
