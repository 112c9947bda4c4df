"""A process of a trial that is not rank 0: `python -m ablate.train.parallel.rank`, started by rank 0.

Reads its place and then what to do as JSON lines from stdin; ends with it.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from ablate import registry
from ablate.spec import TrialSpec, parse
from ablate.train.parallel.ranks import meet
from ablate.train.parallel.run import ParallelRun
from ablate.train.run import Diverged
from ablate.train.trial import settle_process


def main() -> None:
    place = json.loads(sys.stdin.readline())
    device = torch.device(place["device"])
    settle_process(device, place["threads"])
    for file in place["plugins"]:
        registry.add_plugin(Path(file))
    spec = parse(TrialSpec, place["spec"])
    seat = meet(spec.resources.parallel, place["rank"], device, Path(place["folder"]))
    run = ParallelRun(spec, device, Path(place["cache"]), seat)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            run.do(order.pop("do"), **order)
        except Diverged:
            continue  # rank 0 sees it as well
    dist.destroy_process_group()
    os._exit(0)


if __name__ == "__main__":
    main()
