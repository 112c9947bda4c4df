"""The same grid as a competent user runs it: a plain GPT loop in a Ray Tune function trainable."""

from __future__ import annotations

import json
import os
import sys
import tempfile

os.environ.update({"OMP_NUM_THREADS": "1", "RAY_AIR_NEW_OUTPUT": "0", "RAY_USAGE_STATS_ENABLED": "0"})


def train(config: dict) -> None:
    import numpy as np
    import torch
    from ray import tune

    from benchmarks.plain_gpt import PlainGPT, optimizer_of, train_step

    torch.set_num_threads(1)
    torch.manual_seed(config["seed"])
    d, depth, heads, length, batch = config["shape"]
    tokens = np.memmap(config["tokens"], dtype=np.uint16, mode="r")
    rng = np.random.default_rng(config["seed"])
    model = PlainGPT(d, depth, heads, length)
    optimizer = optimizer_of(model)

    def batch_of() -> tuple[torch.Tensor, torch.Tensor]:
        starts = rng.integers(0, len(tokens) - length - 1, batch)
        window = torch.from_numpy(tokens[starts[:, None] + np.arange(length + 1)].astype(np.int64))
        return window[:, :-1], window[:, 1:]

    for _ in range(config["steps"]):
        train_step(model, optimizer, *batch_of())
    with torch.no_grad():
        losses = [model(*batch_of()).item() for _ in range(max(1, 2048 // (batch * length)))]
    tune.report({"loss": sum(losses) / len(losses)})


def main() -> None:
    import ray
    from ray import tune

    orders = json.loads(sys.argv[1])
    trials = orders.pop("trials")
    ray.init("local", num_cpus=2, log_to_driver=False, include_dashboard=False, object_store_memory=100 * 2**20)
    with tempfile.TemporaryDirectory() as scratch:
        tune.Tuner(
            tune.with_resources(train, {"cpu": 1}),
            param_space={**orders, "seed": tune.grid_search(list(range(trials)))},
            run_config=tune.RunConfig(storage_path=scratch, verbose=0),
        ).fit()
    ray.shutdown()


if __name__ == "__main__":
    main()
