"""Architecture ablations and scaling laws from one grid.yaml.

Importing this package is cheap: the public names below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

EXPORTS = {
    # to write a component
    "register": "ablate.registry",
    "Site": "ablate.contracts",
    "Context": "ablate.contracts",
    "Linear": "ablate.contracts",
    "Embedding": "ablate.contracts",
    "Position": "ablate.contracts",
    "Mixer": "ablate.contracts",
    "Channel": "ablate.contracts",
    "Norm": "ablate.contracts",
    "Residual": "ablate.contracts",
    "Stack": "ablate.contracts",
    "Sharing": "ablate.contracts",
    "Init": "ablate.contracts",
    "Head": "ablate.contracts",
    "ClassHead": "ablate.contracts",
    "Model": "ablate.contracts",
    "Attention": "ablate.components.mixers.attention",
    # to run a study from Python
    "load": "ablate.study",
    "open_study": "ablate.study",
    "Study": "ablate.study",
    "UserError": "ablate.errors",
    # parts of the harness
    "ArchSpec": "ablate.spec",
    "DataSpec": "ablate.spec",
    "TrainSpec": "ablate.spec",
    "TrialSpec": "ablate.spec",
    "build_model": "ablate.build",
    "count": "ablate.cost",
}
__all__ = list(EXPORTS)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in EXPORTS:
        return getattr(importlib.import_module(EXPORTS[name]), name)
    raise AttributeError(f"module 'ablate' has no attribute {name!r}")


def __dir__() -> list[str]:
    """What a notebook completes."""
    return sorted({*globals(), *EXPORTS})
