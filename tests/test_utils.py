import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

from utils import workers
from utils.checkpoint import load_checkpoint, load_weights, save_checkpoint, set_aside
from utils.cli import UserError
from utils.devices import choose_device
from utils.evolution import Evolution
from utils.files import TEMPORARY, atomic_write
from utils.fitting import EarlyStopping, seed_epoch
from utils.workers import Refused, WorkerError, WorkerPool


def test_checkpoint_round_trip_without_leftovers(tmp_path):
    path = tmp_path / "a" / "best.tar"
    state = {"epoch": 3, "precision": 31.25, "state_dict": nn.Linear(2, 3).state_dict()}
    save_checkpoint(path, state)
    loaded = load_checkpoint(path)
    assert loaded["epoch"] == 3 and torch.equal(
        loaded["state_dict"]["weight"], state["state_dict"]["weight"]
    )
    assert [p.name for p in path.parent.iterdir()] == ["best.tar"]


def test_numpy_scalars_of_public_checkpoints_are_read(tmp_path):
    path = tmp_path / "best.tar"
    for legacy in (False, True):
        torch.save(
            {"epoch": 1, "reward": np.float64(870.5)},
            path,
            _use_new_zipfile_serialization=not legacy,
        )
        assert load_checkpoint(path)["reward"] == 870.5


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path):
    torch.save({"state_dict": Payload(tmp_path / "ran")}, tmp_path / "best.tar")
    with pytest.raises(UserError, match="nothing in it was run"):
        load_checkpoint(tmp_path / "best.tar")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"text", None], ids=["empty", "text", "truncated"])
def test_damaged_checkpoints_say_what_to_do(tmp_path, content):
    path = tmp_path / "best.tar"
    save_checkpoint(path, {"w": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    with pytest.raises(UserError, match=r"best.tar.*--noreload"):
        load_checkpoint(path)


def test_weights_of_another_model_are_named(tmp_path):
    save_checkpoint(tmp_path / "best.tar", {"state_dict": nn.Linear(2, 3).state_dict()})
    with pytest.raises(UserError, match=r"another model.*weight"):
        load_weights(nn.Linear(2, 4), tmp_path / "best.tar")


def test_a_write_that_fails_keeps_what_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_text() == "before" and len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    (tmp_path / f".c.tar.123{TEMPORARY}").write_text("half")
    (tmp_path / f".d.tar.123{TEMPORARY}").write_text("another's")
    save_checkpoint(tmp_path / "c.tar", {"a": 1})
    assert {p.name for p in tmp_path.iterdir()} == {"c.tar", f".d.tar.123{TEMPORARY}"}


def test_set_aside_keeps_everything_under_another_name(tmp_path, capsys):
    for content in ("first", "second"):
        (tmp_path / "vae").mkdir()
        (tmp_path / "vae" / "best.tar").write_text(content)
        set_aside(tmp_path / "vae")
    kept = sorted(p.read_text() for p in tmp_path.glob("vae-*/best.tar"))
    assert kept == ["first", "second"] and not (tmp_path / "vae").exists()
    assert "kept as" in capsys.readouterr().out


def test_early_stopping_counts_epochs_without_improvement():
    stopping = EarlyStopping(patience=3)
    for loss, stop in ((5, False), (4, False), (4, False), (6, False), (4.5, True)):
        stopping.step(loss)
        assert stopping.stop == stop
    again = EarlyStopping(patience=3)
    again.load_state_dict(stopping.state_dict())
    assert again.stop
    again.step(3)
    assert not again.stop and again.best == 3


def test_an_epoch_is_random_by_seed_and_number_alone():
    draws = {}
    for seed, epoch in ((1, 1), (1, 2), (2, 1), (1, 1)):
        generator = seed_epoch("V's epoch", seed, epoch)
        draw = (generator.integers(2**40), torch.rand(1).item())
        assert draws.setdefault((seed, epoch), draw) == draw
    assert len(set(draws.values())) == 3


def test_evolution_maximises():
    evolution = Evolution(np.zeros(10), sigma=0.3, population=12, seed=0)
    for generation in range(1, 121):
        candidates = evolution.ask(generation)
        evolution.tell(-np.square(candidates - 2).sum(1))
    np.testing.assert_allclose(evolution.mean, 2, atol=0.01)


@pytest.mark.parametrize("size", [99, 867])
def test_evolution_goes_on_with_the_smallest_population(size):
    evolution = Evolution(np.zeros(size), 0.1, population=3, seed=0)
    for generation in range(1, 5):
        candidates = evolution.ask(generation)
        assert candidates.shape == (3, size)
        evolution.tell(-np.square(candidates).sum(axis=1))


@pytest.mark.parametrize("size, population", [(15, 8), (99, 8), (99, 3)])
def test_evolution_goes_on_bit_for_bit_from_its_stored_state(size, population, tmp_path):
    def fitness(x):
        return -np.abs(x - np.arange(size)).sum(1)

    whole = Evolution(np.zeros(size), 0.2, population, seed=4)
    for generation in range(1, 31):
        candidates = whole.ask(generation)
        whole.tell(fitness(candidates))
        if generation == 11:
            save_checkpoint(tmp_path / "c.tar", whole.state_dict())
    resumed = Evolution(np.zeros(size), 0.2, population, seed=4)
    resumed.load_state_dict(load_checkpoint(tmp_path / "c.tar"))
    for generation in range(12, 31):
        candidates = resumed.ask(generation)
        resumed.tell(fitness(candidates))
    assert np.array_equal(whole.mean, resumed.mean) and whole.sigma == resumed.sigma
    assert np.array_equal(whole.ask(31), resumed.ask(31))


def test_evolution_in_a_basis_goes_on_from_its_mean_and_moves_in_the_basis_alone():
    generator = np.random.default_rng(1)
    basis = np.linalg.qr(generator.standard_normal((30, 30)))[0][:4] * [[1], [2], [3], [4]]
    reached = {}
    for few in (False, True):
        evolution = Evolution(np.zeros(30), 0.3, 12, seed=0)
        target = np.ones(4) @ basis
        for generation in range(1, 51):
            if generation == 6 and few:
                before = evolution.mean
                evolution.restart("search", 0.5, basis)
                np.testing.assert_array_equal(evolution.mean, before)
                many = np.concatenate([evolution.ask(k) for k in range(500)]) - before
                factors = np.linalg.lstsq(basis.T, many.T, rcond=None)[0]
                np.testing.assert_allclose(many, factors.T @ basis, atol=1e-12)
                np.testing.assert_allclose(factors.std(1), 0.5, rtol=0.05)
            candidates = evolution.ask(generation)
            evolution.tell(-np.square((candidates - target) @ basis.T).sum(1))
        reached[few] = -np.square((evolution.mean - target) @ basis.T).sum()
    assert reached[True] > reached[False] / 1000


def test_evolution_in_a_basis_goes_on_bit_for_bit_from_its_stored_state(tmp_path):
    basis = np.random.default_rng(2).standard_normal((7, 20))
    whole, resumed = (Evolution(np.zeros(20), 0.2, 8, seed=4) for _ in range(2))
    for generation in range(1, 21):
        if generation == 6:
            whole.restart("refine", 0.1, basis)
        if generation == 11:
            save_checkpoint(tmp_path / "c.tar", whole.state_dict())
        whole.tell(-np.abs(whole.ask(generation) - 1).sum(1))
    resumed.load_state_dict(load_checkpoint(tmp_path / "c.tar"))
    for generation in range(11, 21):
        resumed.tell(-np.abs(resumed.ask(generation) - 1).sum(1))
    assert resumed.phase == "refine" and np.array_equal(whole.mean, resumed.mean)
    assert np.array_equal(whole.ask(21), resumed.ask(21)) and whole.sigma == resumed.sigma


def test_evolution_takes_up_what_earlier_versions_stored():
    """In all weights, or refining in a square basis without an offset."""
    basis = np.random.default_rng(3).standard_normal((6, 6)) + 5 * np.eye(6)
    for square, phase in ((None, "search"), (basis, "refine")):
        earlier, now = Evolution(np.ones(6), 0.2, 8, seed=4), Evolution(np.zeros(6), 0.5, 8, seed=4)
        if square is not None:
            earlier.restart("refine", 0.1, square)
        state = earlier.state_dict()
        del state["phase"]
        if square is not None:
            state["es"]["mean"] += np.linalg.solve(basis.T, state.pop("offset").numpy())
        now.load_state_dict(state)
        assert now.phase == phase
        np.testing.assert_allclose(now.mean, 1)
        np.testing.assert_allclose(now.ask(3), earlier.ask(3), atol=1e-12)


def setup_squares(index, marks):
    """A worker that squares; some units make it die or raise, the first time or always."""

    def work(unit, report):
        kind, value = unit
        mark = marks / f"{kind}-{value}"
        if kind == "dies once" and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), 9)
        if kind == "raises once" and not mark.exists():
            mark.touch()
            raise ValueError("a bad moment")
        if kind == "dies" and len(list(marks.glob("died-*"))) < value:  # so many times
            (marks / f"died-{os.getpid()}").touch()
            os.kill(os.getpid(), 9)
        if kind == "raises":
            raise ValueError("never any good")
        if kind == "refused":
            raise Refused("the disk is full")
        if kind == "slow":
            time.sleep(60)
        report(value)
        return value**2

    return work


def test_pool_does_lost_units_again(tmp_path, capfd):
    units = [("fine", 1), ("dies once", 2), ("raises once", 3), ("fine", 4), ("fine", 5)]
    reports = []
    with WorkerPool(2, setup_squares, (tmp_path,), tmp_path / "logs") as pool:
        results = dict(pool.run(units, reports.append))
        assert results == {0: 1, 1: 4, 2: 9, 3: 16, 4: 25}
        assert dict(pool.run([("fine", 6)])) == {0: 36}  # the pool goes on
    assert sorted(reports) == [1, 2, 3, 4, 5]
    said = capfd.readouterr().err
    assert "killed by SIGKILL" in said and "ValueError: a bad moment" in said
    assert said.count("its work is done again") == 2
    logs = "".join(p.read_text() for p in (tmp_path / "logs").iterdir())
    assert "ValueError: a bad moment" in logs and "Traceback" in logs


CTRL_C = """
import os, signal, time
from pathlib import Path
from utils.workers import WorkerPool

def setup(index):
    return lambda unit, report: unit + 1

if __name__ == "__main__":
    with WorkerPool(2, setup, (), Path("logs")) as pool:
        for _ in range(20):  # through the imports of the workers, a second or two
            for worker in pool._workers:
                os.kill(worker.process.pid, signal.SIGINT)
            time.sleep(0.1)
        print(dict(pool.run([1, 2])))
"""


def test_ctrl_c_is_the_parents_business_from_a_workers_first_moment_on(tmp_path):
    # In a process of its own, whose first worker is the first that multiprocessing starts.
    (tmp_path / "start.py").write_text(CTRL_C)
    done = subprocess.run(
        [sys.executable, "start.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout in ("{0: 2, 1: 3}\n", "{1: 3, 0: 2}\n")
    assert not any(log.read_text() for log in (tmp_path / "logs").iterdir())


def test_the_first_error_of_a_worker_is_repeated_in_full(tmp_path, capfd):
    with WorkerPool(1, setup_squares, (tmp_path,), tmp_path / "logs") as pool:
        list(pool.run([("raises once", 1), ("raises once", 2)]))
    said = capfd.readouterr().err
    assert said.count("Traceback") == 1 and said.count("ValueError: a bad moment") == 3
    assert 'raise ValueError("a bad moment")' in said


def test_pool_gives_up_with_the_workers_own_traceback(tmp_path):
    with (
        WorkerPool(2, setup_squares, (tmp_path,), tmp_path / "logs") as pool,
        pytest.raises(WorkerError, match=r"(?s)Traceback.*never any good"),
    ):
        list(pool.run([("raises", 1)]))
    for worker in pool._workers:
        assert not worker.process.is_alive()


def test_kills_in_a_row_are_borne_longer_than_errors(tmp_path, monkeypatch):
    with WorkerPool(1, setup_squares, (tmp_path,), tmp_path / "logs") as pool:
        assert dict(pool.run([("dies", workers.MAX_ERRORS)])) == {0: workers.MAX_ERRORS**2}
        monkeypatch.setattr(workers, "MAX_KILLS", 2)
        with pytest.raises(WorkerError, match=r"(?s)2 workers failed.*killed by SIGKILL"):
            list(pool.run([("dies", 99)]))


def test_pool_does_not_try_again_what_a_worker_refuses(tmp_path):
    with (
        WorkerPool(2, setup_squares, (tmp_path,), tmp_path / "logs") as pool,
        pytest.raises(Refused, match="the disk is full"),
    ):
        list(pool.run([("fine", 1), ("refused", 1), ("fine", 2)]))


def setup_broken(index):
    raise RuntimeError("no such model")


def test_pool_gives_up_when_workers_cannot_start(tmp_path):
    with (
        WorkerPool(1, setup_broken, (), tmp_path) as pool,
        pytest.raises(WorkerError, match="no such model"),
    ):
        list(pool.run([1]))


def test_closing_a_pool_ends_workers_in_the_middle_of_a_unit(tmp_path):
    start = time.monotonic()
    with WorkerPool(1, setup_squares, (tmp_path,), tmp_path / "logs") as pool:
        processes = [worker.process for worker in pool._workers]
        pool._workers[0].take((1, 0), ("slow", 1))
        time.sleep(0.5)
    assert time.monotonic() - start < 30
    assert not any(process.is_alive() for process in processes)


def test_a_gpu_whose_driver_cannot_be_used_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # of the driver's own library
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="cannot use its driver"):
        choose_device("cuda")
    assert choose_device("auto").type == "cpu"
