"""Run what tells most about a larger scale, until its loss is known well enough.

predict: {flops: 1e18, within: 0.02, form: power_offset, spend: 1e16}

The plan's trials are candidates. Once every variant has enough of the cheapest ones for the law `form`, each next
batch is the one that narrows the 90 % interval of the widest prediction at `flops` most for its measured cost. It
ends where every variant's interval is narrower than `within` (a ratio: 0.02 is 2 %), where `spend` FLOPs have been
spent, or where nothing is left.
"""

from __future__ import annotations

from dataclasses import dataclass

from ablate.choices import block
from ablate.errors import unknown
from ablate.yamlfile import Document

KEYS = ("flops", "within", "form", "spend")
FORMS = ("power_offset", "power", "chinchilla", "chinchilla_tied")
OTHERS = ("rungs", "stages", "axes")  # keys of a grid that it does not go with


@dataclass(frozen=True)
class Prediction:
    """The compute that the loss is to be known at, how well, by which law, and what that may cost."""

    flops: float
    within: float = 0.02
    form: str = "power_offset"
    spend: float | None = None


def prediction(document: Document) -> Prediction | None:
    """The prediction that a grid asks for, None where it does not. Raises `UserError`."""
    tree = block(document, "predict", KEYS, ", as {flops: 1e18, within: 0.02}")
    if tree is None:
        return None
    for other in OTHERS:
        if document.value.get(other):
            raise document.error(
                (other,), f"{other} and predict do not go together: one law is fitted to one setting"
            )
    if "flops" not in tree:
        raise document.error(("predict",), "needs flops: the compute that the loss is to be known at")
    numbers = {}
    for key in ("flops", "within", "spend"):
        value = tree.get(key)
        if value is None:
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
            raise document.error(("predict", key), f"{value!r} must be a number above 0")
        numbers[key] = float(value)
    form = tree.get("form", "power_offset")
    if form not in FORMS:
        raise document.error(("predict", "form"), unknown("form", form, FORMS))
    return Prediction(form=form, **numbers)
