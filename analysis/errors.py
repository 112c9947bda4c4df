"""What a person did wrong, in one class: shown as one line, with exit code 2."""

from __future__ import annotations


class AnalysisError(ValueError):
    """A table, an option or points that cannot be used. The message says which, and what would do."""
