"""Imported once by the fork server, so that every worker starts with it: seconds saved for each.

The first optimizer of a process imports torch._dynamo, which alone takes most of a second.
"""

import atexit
import os
import sys
from types import TracebackType

import torch
import torch._dynamo

import ablate.run.process
import ablate.run.worker  # noqa: F401
from ablate import registry


def _unless_left(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an exception, but for that of a server whose driver was killed while it asked for a worker."""
    if kind is not EOFError:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _unless_left
torch.set_num_threads(1)
for entry in registry.catalogue():
    registry.load(entry)
atexit.register(os._exit, 0)  # what the server has loaded is not taken apart when it ends; its forks do not run this
