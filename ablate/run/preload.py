"""Imported once by the fork server, so that every worker starts with it: seconds saved for each.

The first optimizer of a process imports torch._dynamo, which alone takes most of a second.
"""

import torch
import torch._dynamo

from ablate import registry

torch.set_num_threads(1)
for entry in registry.catalogue():
    registry.load(entry)
