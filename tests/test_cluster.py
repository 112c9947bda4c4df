"""Ray clusters of several nodes: what a node's end costs, nodes that join, nodes without the results folder, several
drivers at once, and what is refused beforehand."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clusters import QUIET, RayCluster
from conftest import TINY
from runs import (
    FAULTS,
    LONG,
    Command,
    curves,
    events,
    faulty,
    new_results,
    run_here,
    trainer,
    under_way,
    undisturbed,
    wait_for,
    with_database,
)

from ablate.run.ledger import Ledger, TrialFolder

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc"),
]

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _as_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def ledger(tmp_path: Path, token_cache: Path) -> Ledger:
    return with_database(new_results(tmp_path / "results", token_cache))


@pytest.fixture(scope="module")
def undisturbed_tiny(tmp_path_factory: pytest.TempPathFactory, token_cache: Path) -> Ledger:
    return undisturbed(TINY, tmp_path_factory.mktemp("tiny"), token_cache)


def command(ledger: Ledger, grid: Path, cluster: RayCluster, *options: object) -> tuple[object, ...]:
    where = ("--results", ledger.root, "--executor", "ray", "--address", cluster.address)
    return ("run", grid, *where, "--checkpoint-every", 0.1, *options)


def log_of(ledger: Ledger, study: str = "long") -> Path:
    return ledger.study_folder(study) / "ray.log"


def assert_as_undisturbed(ledger: Ledger, expected: Ledger) -> None:
    assert curves(ledger) == curves(expected)
    for trial_id in expected.trial_ids():
        ours, theirs = ledger.trial(trial_id).record(), expected.trial(trial_id).record()
        assert ours is not None and theirs is not None
        for key in ("status", "metrics", "params_total", "train_flops", "tokens", "steps", "layers"):
            assert ours[key] == theirs[key]
        assert ledger.trial(trial_id).weights.read_bytes() == expected.trial(trial_id).weights.read_bytes()
        assert not ledger.trial(trial_id).checkpoint.exists()


def on(ledger: Ledger, pids: list[int]) -> list[TrialFolder]:
    """The trials under way in these processes."""
    return [each for each in under_way(ledger) if trainer(each) in pids]


def test_a_node_that_dies(ledger: Ledger, undisturbed_long: Ledger, write: Write, tmp_path: Path) -> None:
    """Its trial goes on from its checkpoint on the other node."""
    with RayCluster(tmp_path) as cluster:
        node = cluster.add()
        with Command(tmp_path, *command(ledger, write(LONG), cluster)) as driver:
            (hit, *_) = driver.wait_for(lambda: on(ledger, node.processes()), "a trial there", log_of(ledger))
            node.kill()
            assert driver.wait() == 0, driver.output() + log_of(ledger).read_text()[-3000:]
            assert "trained 4, reused 0: 4 finished" in driver.output()
            driver.wait_until_alone()
        assert "resume" in events(hit) and "lost" in events(hit)
        assert_as_undisturbed(ledger, undisturbed_long)


PLUGIN = '''\
"""A norm of the study's own."""

import time

from ablate import register
from ablate.components.norms import LayerNorm


@register("norm", "own", paper="made up")
class Own(LayerNorm):
    """A layer norm that takes its time, so that its trials are there for a while."""

    def forward(self, x):
        if self.training and x.device.type != "meta":
            time.sleep(0.005)
        return super().forward(x)
'''


def can_hide() -> bool:
    tried = ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"]
    return shutil.which("unshare") is not None and subprocess.run(tried, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_hide(), reason="needs root, to hide the results folder from a node")
def test_nodes_that_do_not_see_the_results(
    ledger: Ledger, undisturbed_long: Ledger, write: Write, tmp_path: Path
) -> None:
    """Two variants ask for what such nodes alone have, one of them with a plugin that they do not see. The node dies,
    another joins, which sees nothing either: the files come home, the trial goes on from what had come, the rest runs
    beside it."""
    (ledger.root / "own.py").write_text(PLUGIN)
    asks = LONG.replace("  plain: {}\n", "  plain: {resources.custom.away: 1}\n")
    asks = asks.replace("  rope: rope\n", "  rope: rope\n  own: {arch.norm: own, resources.custom.away: 1}\n")
    asks += f"plugins: [{ledger.root / 'own.py'}]\n"

    def own(trials: list[TrialFolder]) -> list[TrialFolder]:
        return [each for each in trials if each.id not in undisturbed_long.trial_ids()]

    with RayCluster(tmp_path) as cluster:
        first = cluster.add_without(ledger.root, tmp_path / "first", away=1)
        wait_for(lambda: first.processes("raylet/raylet") and cluster.count() == 2, "two nodes")
        with Command(tmp_path, *command(ledger, write(asks), cluster)) as driver:
            (hit, *_) = driver.wait_for(
                lambda: own(on(ledger, first.processes())), "a slow one there, of which a checkpoint came home"
            )
            assert list((tmp_path / "first").glob(f"*/*/trials/{hit.id}/checkpoint.pt"))
            assert hit.running()  # it is held at home
            first.kill()
            second = cluster.add_without(ledger.root, tmp_path / "second", away=1)
            driver.wait_for(lambda: on(ledger, second.processes()), "it goes on there", log_of(ledger))
            assert driver.wait() == 0, driver.output() + log_of(ledger).read_text()[-3000:]
            driver.wait_until_alone()
            assert "trained 6, reused 0: 6 finished" in driver.output()
        assert {"start", "lost", "resume", "end"} <= set(events(hit))
        for each in own([ledger.trial(each) for each in ledger.trial_ids()]):
            assert each.metrics.read_bytes() in curves(undisturbed_long).values()  # it computes what `plain` does
            shutil.rmtree(each.folder)
        assert_as_undisturbed(ledger, undisturbed_long)
        assert not list((tmp_path / "second").glob("*/*/trials/*/record.json"))
        tokens = list((tmp_path / "second").glob("*/cache/tokens/*/meta.json"))
        assert len(tokens) == 1


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """Two CPUs and a little memory, for studies that leave it as it was."""
    with RayCluster(tmp_path_factory.mktemp("cluster"), cpus=2, tpu=1) as made:
        yield made


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        ("resources.cpus=3", "a trial asks for 3 CPUs, but no node of the Ray cluster has more than 2 CPUs"),
        ("resources.gpus=1", "a trial asks for 1 GPUs, but no node of the Ray cluster has more than 0 GPUs"),
        ("resources.memory=9 TB", "a trial asks for 9000 GB of memory, but no node of the Ray cluster has more than"),
        ("resources.custom.tpu=2", "a trial asks for 2 tpu, but no node of the Ray cluster has more than 1 tpu"),
    ],
)
def test_more_than_any_node_has(ledger: Ledger, write: Write, cluster: RayCluster, ask: str, words: str) -> None:
    with Command(ledger.root, *command(ledger, write(TINY), cluster, "--set", ask)) as driver:
        assert driver.wait() == 2 and words in driver.output()
        driver.wait_until_alone()
    assert all(ledger.trial(each).record() is None for each in ledger.trial_ids())


def test_two_studies_and_a_killed_driver(
    ledger: Ledger, other_ledger: Ledger, undisturbed_long: Ledger, write: Write, tmp_path: Path, cluster: RayCluster
) -> None:
    """Side by side on one cluster, which they leave as it was; of a driver that is killed no actor stays. A plugin's
    text travels with its study."""
    write(FAULTS, "faults.py")
    other = write(faulty(TINY, "raises"), "other.yaml")
    first = command(ledger, write(LONG), cluster)
    with Command(tmp_path, *first) as killed, Command(tmp_path, *command(other_ledger, other, cluster)) as driver:
        killed.wait_for(lambda: under_way(ledger), "a checkpoint", log_of(ledger))
        for pid in killed.alive():
            os.kill(pid, signal.SIGKILL)
        assert driver.wait() == 1, driver.output() + log_of(other_ledger, "tiny").read_text()[-3000:]
        assert "trained 4, reused 0: 2 finished, 2 failed" in driver.output()
    assert [other_ledger.trial(each).record()["error"] for each in other_ledger.trial_ids()].count(  # type: ignore[index]
        "RuntimeError: the norm [/is upset]"
    ) == 2
    wait_for(lambda: not cluster.actors(), "the end of all actors")
    with Command(tmp_path, *first) as again:
        assert again.wait() == 0, again.output() + log_of(ledger).read_text()[-3000:]
        again.wait_until_alone()
    assert_as_undisturbed(ledger, undisturbed_long)
    wait_for(lambda: not cluster.actors(), "the end of all actors")
    assert cluster.count() == 1


def test_the_end_of_a_cluster(ledger: Ledger, undisturbed_long: Ledger, write: Write, tmp_path: Path) -> None:
    """The command ends and says so; it goes on with another cluster."""
    with RayCluster(tmp_path) as cluster:
        with Command(tmp_path, *command(ledger, write(LONG), cluster)) as driver:
            driver.wait_for(lambda: under_way(ledger), "a checkpoint", log_of(ledger))
            cluster.head.end()
            assert driver.wait(180) == 1, driver.output()
            assert "run the command again" in driver.output() and "Traceback" not in driver.output()
            driver.wait_until_alone()
    with Command(tmp_path, "run", tmp_path / "grid.yaml", "--results", ledger.root, "--workers", 2) as driver:
        assert driver.wait() == 0, driver.output()
    assert_as_undisturbed(ledger, undisturbed_long)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("name", ["raylet/raylet", "gcs_server", "ray_driver", "lane"])
def test_a_process_of_our_own_cluster_dies(
    ledger: Ledger, undisturbed_long: Ledger, write: Write, tmp_path: Path, name: str
) -> None:
    """Whichever it is: the command goes on or ends with a message, leaves no process, and the next one completes."""
    ray = ("--executor", "ray", "--workers", 2, "--checkpoint-every", 0.1)
    run = ("run", write(LONG), "--results", ledger.root, *ray)
    with Command(tmp_path, *run) as driver:
        (trial, *_) = driver.wait_for(lambda: under_way(ledger), "a checkpoint", log_of(ledger))
        hit = [pid for pid, command in driver.alive().items() if name in command]
        if name == "lane":  # Ray renames its process: it has started the server that the trial's is forked from
            hit = [parent(parent(trainer(trial)))]
        assert hit, driver.alive()
        os.kill(hit[0], signal.SIGKILL)
        code = driver.wait(180)
        driver.wait_until_alone(30)  # Ray's agents would wait a minute for their daemons
        assert "Traceback" not in driver.output()
        if name in ("lane", "ray_driver"):
            assert code == (name == "ray_driver"), driver.output()
        if code:  # else what was left was quicker than the news of the daemon's death
            assert code == 1 and "run the command again to go on" in driver.output()
    if code:
        with Command(tmp_path, *run) as driver:
            assert driver.wait() == 0, driver.output() + log_of(ledger).read_text()[-3000:]
            driver.wait_until_alone()
    assert_as_undisturbed(ledger, undisturbed_long)


def test_a_store(ledger: Ledger, undisturbed_tiny: Ledger, write: Write, tmp_path: Path, cluster: RayCluster) -> None:
    """All trials are kept there and come home; what is there is trained no more, even where the results were lost."""
    run = command(ledger, write(TINY), cluster, "--store", f"file://{tmp_path / 'store'}")
    for said in ("trained 4, reused 0: 4 finished", "trained 0, reused 4: 4 finished"):
        with Command(tmp_path, *run) as driver:
            assert driver.wait() == 0, driver.output() + log_of(ledger, "tiny").read_text()[-3000:]
            assert said in driver.output()
        assert_as_undisturbed(ledger, undisturbed_tiny)
        assert all(events(ledger.trial(each)) == ["start", "end"] for each in ledger.trial_ids())
        for trial_id in ledger.trial_ids():
            kept = {each.name for each in (tmp_path / "store" / "trials" / trial_id).iterdir()}
            assert kept == {"attempts.jsonl", "metrics.jsonl", "weights.pt", "record.json"}
        shutil.rmtree(ledger.root / "trials")


def test_a_cohort_and_a_store(ledger: Ledger, write: Write, tmp_path: Path, cluster: RayCluster) -> None:
    """All of a cohort come home."""
    store = f"file://{tmp_path / 'store'}"
    with Command(tmp_path, *command(ledger, write(TINY), cluster, "--store", store, "--cohorts", 2)) as driver:
        assert driver.wait() == 0, driver.output() + log_of(ledger, "tiny").read_text()[-3000:]
        assert "trained 4, reused 0: 4 finished" in driver.output()
    for trial_id in ledger.trial_ids():
        record = ledger.trial(trial_id).record()
        assert record is not None and record["cohort"]["size"] == 2 and ledger.trial(trial_id).weights.exists()
        assert events(ledger.trial(trial_id)) == ["start", "cohort", "end"]


def test_code_that_a_node_lacks(ledger: Ledger, undisturbed_tiny: Ledger, write: Write, tmp_path: Path) -> None:
    """The node is named; with --ship it gets the code."""
    grid = write(TINY.replace("base:\n", "base:\n  resources: {custom: {bare: 1}}\n"))
    with RayCluster(tmp_path) as cluster:
        bare = cluster.add_bare(tmp_path / "bare", bare=1)
        wait_for(lambda: bare.processes("raylet/raylet") and cluster.count() == 2, "two nodes")
        run = command(ledger, grid, cluster)
        with Command(tmp_path, *run) as driver:
            assert driver.wait() == 2, driver.output()
            assert (
                "cannot import ablate (ImportError: not on this node): install it there, or --ship" in driver.output()
            )
        with Command(tmp_path, *run, "--ship") as driver:
            assert driver.wait() == 0, driver.output() + log_of(ledger, "tiny").read_text()[-3000:]
        assert_as_undisturbed(ledger, undisturbed_tiny)


def test_what_is_refused_without_a_cluster(ledger: Ledger, write: Write) -> None:
    run = ("run", write(TINY), "--results", ledger.root, "--executor", "ray")
    for options, words in (
        (("--ship",), "--ship is for the nodes of a Ray cluster: add --address"),
        (("--store", "file:///tmp"), "--store is for the nodes of a Ray cluster: add --address"),
        (("--address", "ray://127.0.0.1:10001"), "Ray's client cannot drive Tune; run the command on a node"),
        (("--address", "127.0.0.1:1"), "the Ray cluster at 127.0.0.1:1 cannot be reached"),
        (("--address", "auto", "--store", "nosuch://x"), "--store nosuch://x: Protocol not known: nosuch"),
        (("--set", "resources.custom.tpu=1"), "resources.custom (tpu) are of a Ray cluster's nodes: add --address"),
    ):
        code, said = run_here(*run, *options)
        assert code == 2 and words in said, said
    assert all(ledger.trial(each).record() is None for each in ledger.trial_ids())
