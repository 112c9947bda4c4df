"""Hours in words, and what they cost in money and energy.

A device hour is an hour of one GPU, or of one CPU core where a trial has no GPU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ablate.errors import UserError


@dataclass(frozen=True)
class Rates:
    """What a device hour costs, and the power that a device draws."""

    price: float | None = None
    currency: str = ""
    watts: float | None = None

    @classmethod
    def told(cls, price: str | None, watts: float | None) -> Rates:
        """From the options --price, as "2.50 USD" or "2.50 USD/h", and --watts. Raises `UserError`."""
        if watts is not None and not watts > 0:
            raise UserError(f"--watts {watts:g} must be above 0: the power that one device draws")
        if price is None:
            return cls(watts=watts)
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(\D*?)\s*(?:/\s*h)?\s*", price)
        if found is None:
            raise UserError(f'--price {price!r} must be a number and a currency per device hour, as "2.50 USD"')
        return cls(float(found[1]), found[2], watts)

    def of(self, device_hours: float) -> dict[str, Any]:
        """Money and kWh of so many device hours, those that were asked for."""
        found: dict[str, Any] = {}
        if self.price is not None:
            found |= {"cost": self.price * device_hours, "currency": self.currency}
        if self.watts is not None:
            found["kwh"] = self.watts * device_hours / 1000
        return found


def rates_said(told: Mapping[str, Any]) -> str:
    """`, 12.50 USD, 3.2 kWh`: what `Rates.of` found."""
    parts = [f"{told['cost']:,.2f} {told['currency']}".rstrip()] if "cost" in told else []
    parts += [f"{told['kwh']:.3g} kWh"] if "kwh" in told else []
    return "".join(f", {part}" for part in parts)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
