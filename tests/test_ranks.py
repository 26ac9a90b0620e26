"""Trainings of V and M by several processes, as torchrun starts them, on CPUs by Gloo."""

import multiprocessing
import os
import socket
import subprocess
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch
from conftest import ROOT, fork, make_experiment, run_script, write_dataset

import trainmdrnn
from data.latents import LatentEpisode, Latents
from data.loaders import WindowLoader
from models.mdrnn import MDRNN, mdrnn_losses
from utils import ranks
from utils.checkpoint import load_checkpoint
from utils.cli import UserError
from utils.fitting import Fitting

CPU = torch.device("cpu")


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def environment(rank, port, count=2):
    """What torchrun tells its processes."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    sizes = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    return {"RANK": rank, "LOCAL_RANK": rank, **sizes, **address}


def work(task, rank, port, folder):
    os.environ.update({name: str(value) for name, value in environment(rank, port).items()})
    with ranks.joined(Namespace(device="cpu")):
        torch.save(task(folder), folder / f"rank_{rank}.pt")


def on_two_ranks(task, folder):
    """What the function of this module returns on each of two ranks."""
    server, port = multiprocessing.get_context("forkserver"), free_port()
    processes = [server.Process(target=work, args=(task, k, port, folder)) for k in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
        assert process.exitcode == 0
    return [torch.load(folder / f"rank_{k}.pt", weights_only=False) for k in range(2)]


def batches(sizes):
    """Actions, latents, rewards and terminals of windows, the same whoever asks."""
    generator = torch.Generator().manual_seed(0)
    n = sum(sizes)
    whole = torch.randn(9, n, 3 + 8 + 8 + 1 + 1, generator=generator)
    whole[..., -1] = (whole[..., -1] > 0).float()
    return whole.split(sizes, dim=1)


def gradient(model, batch, weight):
    actions, latents, following, rewards, terminals = batch.split([3, 8, 8, 1, 1], dim=-1)
    model.zero_grad()
    terms = mdrnn_losses(
        model(actions, latents), following, rewards[..., 0], terminals[..., 0], True
    )
    (terms["loss"] * weight).backward()
    return [p.grad.clone() for p in model.parameters()]


def small_model():
    torch.manual_seed(0)
    return MDRNN(8, hidden_size=16)


def gradients_of_a_rank(folder):
    """Two batches on the first rank, of 3 and 4 windows, and one of 2 on the second."""
    ours = [batches([3, 2, 4])[k] for k in ([0, 2], [1])[ranks.rank()]]
    rows = [torch.zeros(9, batch.shape[1]) for batch in ours]  # as M's loader gives numbers of rows
    model = ranks.wrapped(small_model())
    found = []
    for rows_of, weight, size in ranks.weighted(iter(rows), CPU, together=True):
        batch = next(b for b in ours if b.shape[1] == rows_of.shape[1])
        found.append((gradient(model, batch, weight), size))
    return found


def test_gradients_are_those_of_one_process_with_the_batch_of_both(tmp_path):
    first, second, third = batches([3, 2, 4])
    both = torch.cat([first, second], dim=1)
    one = torch.ones(())
    expected = [gradient(small_model(), batch, one) for batch in (both, third)]
    sizes = []
    for found in on_two_ranks(gradients_of_a_rank, tmp_path):
        assert len(found) == 2  # as many steps on each rank
        sizes.append([size for _, size in found])
        for (grads, _), wanted in zip(found, expected, strict=True):
            for grad, want in zip(grads, wanted, strict=True):
                torch.testing.assert_close(grad, want)
    assert sizes == [[3, 4], [2, 0]]  # nothing is counted twice


def write_latents(folder):
    """Three episodes of different lengths, whose z is known exactly."""
    generator = np.random.default_rng(0)
    for k, length in enumerate((30, 55, 41)):
        episode = LatentEpisode(
            generator.standard_normal((length, 32)).astype(np.float32),
            np.full((length, 32), -60, np.float32),
            generator.standard_normal((length, 3)).astype(np.float32),
            generator.standard_normal(length).astype(np.float32),
            generator.random(length) > 0.5,
        )
        np.savez(folder / f"{k}.npz", length=length, **episode._asdict())


def held_out_losses(folder):
    paths = ranks.share(sorted(folder.glob("*.npz")))
    loader = WindowLoader([Latents(p, int(np.load(p)["length"])) for p in paths], 2, 8, CPU, False)
    torch.manual_seed(0)
    model = ranks.wrapped(MDRNN(32))
    generator = np.random.default_rng(0)
    return trainmdrnn.run_epoch(model, loader, generator, torch.float32, True, "test")


def test_held_out_losses_count_each_window_once(tmp_path):
    """Three episodes for two ranks."""
    write_latents(tmp_path)
    alone = held_out_losses(tmp_path)
    for losses in on_two_ranks(held_out_losses, tmp_path):
        assert losses == pytest.approx(alone, rel=1e-5)


def trained_weights(folder):
    """An epoch of M, after the first rank alone has found a checkpoint; then its weights."""
    torch.manual_seed(ranks.rank())  # each rank would begin elsewhere
    model = MDRNN(32)
    optimizer = trainmdrnn.make_optimizer(model)
    episodes = {"to train on": "", "held out": ""}
    fitting = Fitting(folder / f"of_rank_{ranks.rank()}", model, optimizer, {}, episodes)
    fitting.resume()
    paths = ranks.share(sorted(folder.glob("*.npz")))
    loader = WindowLoader([Latents(p, int(np.load(p)["length"])) for p in paths], 2, 8, CPU, True)
    generator = np.random.default_rng(ranks.rank())
    forward = ranks.wrapped(model)
    trainmdrnn.run_epoch(forward, loader, generator, torch.float32, True, "train", optimizer)
    return model.state_dict(), fitting.done


def test_ranks_go_on_from_the_first_ones_checkpoint_and_stay_the_same(tmp_path):
    write_latents(tmp_path)
    model = MDRNN(32)
    optimizer = trainmdrnn.make_optimizer(model)
    stored = Fitting(
        tmp_path / "of_rank_0", model, optimizer, {}, {"to train on": "", "held out": ""}
    )
    model.rnn.weight_hh_l0.data.fill_(0.5)
    stored.stopping.step(1.0)
    stored.save(7, 1.0)
    (first, done), (second, also) = on_two_ranks(trained_weights, tmp_path)
    assert done == also == 7
    assert abs(first["rnn.weight_hh_l0"].mean() - 0.5) < 0.1  # and not where a new one begins
    for name, weights in first.items():
        torch.testing.assert_close(weights, second[name], rtol=0, atol=0)


def train_by(count, *command, cwd):
    """A script on so many ranks; what each of them said on stdout and stderr."""
    if count == 1:
        done = run_script(*command, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return [(done.stdout, done.stderr)]
    port, processes = free_port(), []
    for k in range(count):
        env = os.environ | {n: str(v) for n, v in environment(k, port, count).items()}
        files = {name: cwd / f"{name}_{k}" for name in ("stdout", "stderr")}
        for path in files.values():
            path.unlink(missing_ok=True)
        processes.append(fork(*command, cwd=cwd, env=env, **files))
    for process in processes:
        process.join(120)
        process.kill()
    said = [
        ((cwd / f"stdout_{k}").read_text(), (cwd / f"stderr_{k}").read_text()) for k in range(count)
    ]
    assert [process.exitcode for process in processes] == [0] * count, said
    return said


@pytest.mark.parametrize(
    ("stage", "script", "options"),
    [
        ("vae", "trainvae.py", ["--batch-size", 9, "--nosamples"]),
        ("mdrnn", "trainmdrnn.py", ["--batch-size", 3, "--seq-len", 8, "--include_reward"]),
    ],
)
def test_a_training_goes_on_with_any_number_of_ranks(stage, script, options, tmp_path):
    write_dataset(tmp_path / "data", [30, 40, 35, 45, 30, 30])
    logdir = make_experiment(tmp_path / "exp")
    for name in ("checkpoint.tar", "best.tar"):
        (logdir / stage / name).unlink(missing_ok=True)
    command = [script, "--logdir", "exp", "--rootdir", "data", "--device", "cpu", *options]
    for epoch, count in enumerate((2, 1, 2) if stage == "mdrnn" else (1, 2), start=1):
        said = train_by(count, *command, "--epochs", epoch, cwd=tmp_path)
        assert f"epoch {epoch}: train" in said[0][0]
        assert all(not stdout and not stderr for stdout, stderr in said[1:]), (
            said
        )  # the first prints
        if epoch > 1:
            assert f"continuing after epoch {epoch - 1}" in said[0][0]
        assert load_checkpoint(logdir / stage / "checkpoint.tar")["epoch"] == epoch
    assert len(list((logdir / stage / "tensorboard").iterdir())) == epoch


def test_torchrun_starts_it(tmp_path):
    write_dataset(tmp_path / "data", [30, 40, 30, 30])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command += ["2", str(ROOT / "trainvae.py"), "--logdir", "exp", "--rootdir", "data"]
    command += ["--device", "cpu", "--epochs", "1", "--batch-size", "4", "--nosamples"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("epoch 1: train") == 1, done.stderr


def test_too_few_for_the_ranks_is_said(monkeypatch):
    monkeypatch.setattr(ranks, "count", lambda: 3)
    with pytest.raises(UserError, match="3 processes for 2 episodes"):
        ranks.share_of_batch(32, 2)
    with pytest.raises(UserError, match="--batch-size 2"):
        ranks.share_of_batch(2, 10)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        shares.append((ranks.share_of_batch(32, 4), ranks.share(list(range(4)))))
    assert sum(size for size, _ in shares) == 32
    assert sorted(item for _, items in shares for item in items) == [0, 1, 2, 3]
