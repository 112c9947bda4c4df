"""What can be seen inside a model that training does not report: rank, gradients, activations, attention, heads."""

from __future__ import annotations

from ablate.diagnose.rank import by_layer, rank_residual, rank_residual_frobenius

__all__ = ["by_layer", "rank_residual", "rank_residual_frobenius"]
