"""Rollouts and episodes on a Ray cluster: the same as on one machine, whatever happens to nodes."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import ROOT, fork, make_experiment, run_script

from data.episodes import list_episodes, read_episode
from data.playing import controller_policy, load_driver, play_episodes, random_policy
from envs.parallel import run_rollouts, start_workers
from envs.rollouts import play
from envs.simulator import Simulator
from envs.tracks import track_seeds
from models.agent import AgentPolicy
from models.logdir import agent_digest, load_agent
from models.parcel import pack, unpack
from utils.checkpoint import load_checkpoint
from utils.devices import fast_precision
from utils.workers import Refused, WorkerError

ray = pytest.importorskip("ray", reason="Ray is not installed (requirements-cluster.txt)")
from ray.cluster_utils import Cluster  # noqa: E402

from utils import cluster as cluster_module  # noqa: E402
from utils.cluster import RayPool  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def cluster():
    """A head without cores; nodes are added by the tests. This process and scripts join it."""
    # The code of the nodes is this repository's, already compiled, and not what a driver sends.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 200 * 2**20}
    started = Cluster(initialize_head=True, head_node_args=head)
    ray.init(started.address, log_to_driver=False, logging_level="ERROR")
    yield started
    ray.shutdown()
    started.shutdown()


@pytest.fixture
def node(cluster):
    """Adds nodes, which are gone after the test."""
    added = []

    def add(cores=1):
        added.append(cluster.add_node(num_cpus=cores, object_store_memory=100 * 2**20))
        return added[-1]

    yield add
    for one in added:
        if one in cluster.list_all_nodes():
            cluster.remove_node(one)
    while ray.cluster_resources().get("CPU"):
        time.sleep(0.1)


def setup_squares(index, folder):
    def work(unit, report):
        number, seconds = unit
        report(("seen", number))
        (folder / f"begun_{number}_{time.time_ns()}").touch()
        time.sleep(seconds)
        if number < 0:
            raise ArithmeticError("a negative number")
        return number**2

    return work


def setup_dying(index):
    os._exit(1)


def setup_refusing(index):
    raise Refused("there is nothing to do here")


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_units_are_done_in_any_order_and_each_once(node, tmp_path):
    node(2)
    with RayPool(None, setup_squares, (tmp_path,), tmp_path / "logs") as pool:
        assert len(pool) == 2
        said = []
        units = [(k, 0.01) for k in range(10)]
        assert dict(pool.run(units, said.append)) == {k: k**2 for k in range(10)}
        assert sorted(number for _, number in said) == list(range(10))
        # A run that is left early does not mix its results with those of the next one.
        next(pool.run([(7, 0.0), (8, 0.3), (9, 0.3)]))
        assert dict(pool.run([(1, 0.0), (2, 0.0)])) == {0: 1, 1: 4}
    with RayPool(1, setup_squares, (tmp_path,), tmp_path / "logs") as pool:
        assert len(pool) == 1  # at most


def test_a_node_that_dies_costs_what_it_had_in_hand_and_one_that_joins_is_used(
    cluster, node, tmp_path, capsys
):
    first, dying = node(), node()
    del first
    with RayPool(None, setup_squares, (tmp_path,), tmp_path / "logs") as pool:
        units = [(k, 1.0) for k in range(6)]

        def begun():
            return len(list(tmp_path.glob("begun_*")))

        with ThreadPoolExecutor() as threads:
            running = threads.submit(lambda: dict(pool.run(units)))
            wait_until(lambda: begun() >= 2)
            cluster.remove_node(dying, allow_graceful=False)
            done = running.result(60)
        assert done == {k: k**2 for k in range(6)}
        assert 6 <= begun() <= 7  # one unit at most was begun twice
        assert "its work is done again" in capsys.readouterr().err
        node()
        wait_until(lambda: ray.cluster_resources().get("CPU") == 2)
        assert dict(pool.run([(k, 0.5) for k in range(4)])) == {k: k**2 for k in range(4)}
        assert len(pool) == 2


def test_no_node_is_waited_for_and_ended_with_a_line(node, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cluster_module, "TELL_AFTER", 2)
    with RayPool(None, setup_squares, (tmp_path,), tmp_path / "logs", no_node_after=7) as pool:
        with pytest.raises(Refused, match="no node of the Ray cluster had room"):
            list(pool.run([(1, 0.0)]))
        assert "waiting" in capsys.readouterr().out
        pool._no_node_after = 60
        with ThreadPoolExecutor() as threads:  # Ray starts nodes in the main thread alone
            waiting = threads.submit(lambda: dict(pool.run([(3, 0.0)])))
            time.sleep(1)
            node()
            assert waiting.result(60) == {0: 9}


def test_errors_of_a_worker_are_told_and_end_it(node, tmp_path, capsys, monkeypatch):
    node()
    with RayPool(None, setup_squares, (tmp_path,), tmp_path / "logs") as pool:
        with pytest.raises(WorkerError, match="a negative number"):
            list(pool.run([(-1, 0.0)]))
        assert "ArithmeticError" in capsys.readouterr().err
        assert "ArithmeticError" in (tmp_path / "logs/ray.log").read_text()
    monkeypatch.setattr(cluster_module, "MAX_KILLS", 3)
    with (
        RayPool(None, setup_dying, (), tmp_path / "logs") as pool,
        pytest.raises(WorkerError, match="3 workers failed in a row"),
    ):
        list(pool.run([1]))
    with (
        RayPool(None, setup_refusing, (), tmp_path / "logs") as pool,
        pytest.raises(Refused, match="nothing to do here"),
    ):
        list(pool.run([1]))


def test_returns_are_those_of_one_machine_to_the_last_digit(cluster, node, experiment):
    node(2)
    parameters = torch.randn(3, 867, generator=torch.Generator().manual_seed(0)).numpy() * 0.1
    seeds, models = track_seeds("test", 2, 5), agent_digest(experiment)
    with start_workers(experiment, CPU, None, 6, models, ray_address=cluster.address) as pool:
        returns, lengths = run_rollouts(pool, parameters, seeds, patience=40)
    agent = load_agent(experiment, CPU, fast_precision(CPU))
    policy = AgentPolicy(agent, torch.from_numpy(parameters).repeat_interleave(2, 0))
    here = play(Simulator(seeds * 3), 6, 6, policy, patience=40)
    np.testing.assert_array_equal(returns.ravel(), here[0])
    np.testing.assert_array_equal(lengths.ravel(), here[1])


def run_whole(script, *arguments, cwd):
    """A script with an interpreter and workers of its own, whose episodes are of full length."""
    command = [sys.executable, ROOT / script, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


TRAINING = [
    *("traincontroller.py", "--device", "cpu", "--pop-size", 6, "--n-samples", 2),
    *("--patience", 30, "--max-generations", 3, "--eval-every", 3, "--eval-rollouts", 1),
]


def history(logdir):
    """What a training's checkpoint has of all generations, without its times."""
    state = load_checkpoint(logdir / "ctrl/checkpoint.tar")
    return state["cma"]["es"]["mean"], [row[:2] + row[3:] for row in state["state"]["history"]]


def test_a_training_with_nodes_that_die_and_join_is_the_undisturbed_one(cluster, node, tmp_path):
    for name in ("quiet", "disturbed"):
        make_experiment(tmp_path / name)
    run_whole(*TRAINING, "--logdir", "quiet", cwd=tmp_path).check_returncode()
    node()
    dying = node()
    options = ["--logdir", "disturbed", "--ray-address", cluster.address]
    process = fork(*TRAINING, *options, cwd=tmp_path, stderr=tmp_path / "stderr")
    wait_until((tmp_path / "disturbed/ctrl/checkpoint.tar").exists, 200)  # of generation 1
    cluster.remove_node(dying, allow_graceful=False)
    node()
    process.join(200)
    errors = (tmp_path / "stderr").read_text()
    assert process.exitcode == 0 and "its work is done again" in errors, errors
    (mean, rows), (expected, expected_rows) = (
        history(tmp_path / "disturbed"),
        history(tmp_path / "quiet"),
    )
    torch.testing.assert_close(mean, expected, rtol=0, atol=0)
    assert rows == expected_rows and len(rows) == 3


def test_episodes_arrive_whole_and_are_those_of_one_machine(cluster, node, experiment, tmp_path):
    node(2)
    options = ["--rollouts", 3, "--patience", 40, "--seed", 5, "--ray-address", cluster.address]
    driven = ["--policy", "controller", "--logdir", experiment]
    makers = {
        "brown": ([], random_policy("brown")),
        "driven": (driven, controller_policy(load_driver(experiment), 0.05)),
    }
    for kind, (policy, maker) in makers.items():
        command = ["data/generation_script.py", "--rootdir", kind, *options, *policy]
        run_script(*command, cwd=tmp_path).check_returncode()
        here = {k: tmp_path / "here" / f"{kind}_{k}.npz" for k in range(3)}
        play_episodes(here, maker, 5, 40)
        there = {int(f.path.stem.split("_")[1]): f.path for f in list_episodes(tmp_path / kind)}
        assert there.keys() == here.keys()
        for k, path in here.items():
            assert path.read_bytes() == there[k].read_bytes()
            read_episode(there[k])


def test_a_parcel_has_what_drives_and_no_more(dreamer):
    packed = pack(dreamer, dreams=True)
    folder = unpack(packed)
    assert unpack(pack(dreamer, dreams=True)) == folder  # once for a machine
    (folder / "whole").unlink()  # of a worker that was killed meanwhile
    (folder / "vae/best.tar").write_bytes(b"half")
    assert unpack(packed) == folder
    assert agent_digest(folder) == agent_digest(dreamer)
    load_agent(folder, CPU, torch.float32)
    assert {p.name for p in folder.iterdir()} == {"vae", "mdrnn", "latents", "whole"}
    assert "optimizer" not in load_checkpoint(folder / "vae/best.tar")
    assert folder.parent.stat().st_mode & 0o077 == 0  # nobody else looks into it
    assert len(pack(dreamer)) < len(packed)


def test_units_are_for_all_workers_a_new_node_too(cluster, node, experiment):
    """The units of a generation are cut for those that are there when it begins."""
    parameters, seeds = np.zeros((4, 867)), track_seeds("test", 1, 5)
    models = agent_digest(experiment)
    node()
    with start_workers(experiment, CPU, None, 4, models, ray_address=cluster.address) as pool:
        assert len(pool) == 1
        node()
        wait_until(lambda: len(pool) == 2)
        units, run = [], pool.run

        def counted(all_units, *arguments):
            units.extend(all_units)
            return run(all_units, *arguments)

        pool.run = counted
        returns, _ = run_rollouts(pool, parameters, seeds, patience=20)
        assert len(units) == 2 and len(set(returns.ravel())) == 1  # four times the same drive


def test_no_cluster_is_one_line(experiment, tmp_path):
    command = [*TRAINING, "--logdir", experiment, "--ray-address", "127.0.0.1:1"]
    done = run_script(*command, cwd=tmp_path)
    assert done.returncode == 2 and "--ray-address 127.0.0.1:1" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
