"""Where two specifications differ: what a row of a comparison changes."""

from __future__ import annotations

from dataclasses import fields

from ablate.arch import ArchSpec, registry_slot
from ablate.spec import TrialSpec


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
    if (baseline.arch.model is None) != (variant.arch.model is None):
        found = {"model"}  # a whole model has none of the other slots, and sizes that mean something else
    if baseline.arch.d_model != variant.arch.d_model:
        found -= {"d_head", "d_ff"}  # they follow the width unless set
    shared = (each.d_head == each.d_model / each.n_heads for each in (baseline.arch, variant.arch))
    if "n_heads" in found and all(shared):
        found -= {"d_head"}  # the heads have the width between them
    for section in ("data", "train"):
        before, after = getattr(baseline, section), getattr(variant, section)
        found |= {
            f"{section}.{field.name}"
            for field in fields(before)
            if field.name != "content" and getattr(before, field.name) != getattr(after, field.name)
        }
    if "data.tokenizer" in found:
        found -= {"data.seq_len", "train.batch_tokens", "train.tokens"}  # in tokens, which are others
    if "train.batch_ramp" in found:
        found -= {"train.ramp_parts", "train.ramp_shape"}  # there is no ramp without them
    if "train.seq_warmup" in found:
        found -= {"train.seq_start"}
    return tuple(sorted(found))
