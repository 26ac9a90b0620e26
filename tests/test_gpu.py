"""What only a GPU can show; left out where there is none."""

from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import trainmdrnn
import trainvae
from data.episodes import list_episodes
from data.latents import LatentEpisode
from data.loaders import FrameLoader, WindowLoader
from models.agent import Agent, AgentPolicy
from models.controller import PARAMETERS
from models.mdrnn import MDRNN
from models.vae import VAE
from tests.conftest import run_script
from utils.fitting import Fitting, seed_epoch
from utils.frames import to_64
from utils.graphs import WARM_UP, recorded

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
CPU, GPU = torch.device("cpu"), torch.device("cuda")


def losses_of(record: bool, rates: list[float]) -> tuple[list[float], torch.Tensor]:
    """Regression with noise on the inputs: the loss of each step, and the weights."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 2).to(GPU, torch.float64)
    optimizer = torch.optim.Adam(model.parameters(), fused=True, capturable=True)
    batches = torch.randn(12, 16, 8, device=GPU, dtype=torch.float64).unbind()
    losses = []

    def step(x):
        optimizer.zero_grad(set_to_none=True)
        loss = (model(x + torch.randn_like(x)) - x[:, :2]).square().mean()
        loss.backward()
        optimizer.step()
        return {"loss": loss.detach()}

    for rate in rates:
        for group in optimizer.param_groups:
            group["lr"] = rate
        do = recorded(step, GPU) if record else step
        for x in (*batches, batches[0][:5], batches[1]):  # a smaller one among them
            losses.append(do(x)["loss"].item())
        assert not record or do.graph is not None
    return losses, model.weight.detach()


def test_a_recorded_step_is_the_step():
    rates = [0.1, 0.01]
    want, weights = losses_of(False, rates)
    got, recorded_weights = losses_of(True, rates)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    torch.testing.assert_close(recorded_weights, weights, rtol=1e-9, atol=1e-12)
    assert len(set(want[WARM_UP:])) == len(want) - WARM_UP  # the noise is drawn anew each time


def test_frames_are_resized_as_on_the_cpu():
    frames = torch.randint(0, 256, (16, 96, 96, 3), dtype=torch.uint8)
    difference = to_64(frames.to(GPU)).cpu().int() - to_64(frames).int()
    assert difference.abs().max() <= 1


def test_an_agent_drives_as_on_the_cpu_and_remembers_for_who_is_under_way():
    torch.manual_seed(0)
    vae, mdrnn = VAE(), MDRNN()
    parameters = 0.1 * torch.randn(5, PARAMETERS)
    policies = [
        AgentPolicy(Agent(vae.encoder, deepcopy(mdrnn), device, torch.float32), parameters)
        for device in (CPU, GPU)
    ]
    running = [[0, 1, 2]] * (WARM_UP + 2) + [[0, 2], [2, 3], [2, 3, 4], [4]]  # some begin late
    for ids in map(np.array, running):
        frames = np.random.default_rng(len(ids)).integers(0, 256, (len(ids), 96, 96, 3), np.uint8)
        on_cpu, on_gpu = (policy(ids, frames) for policy in policies)
        np.testing.assert_allclose(on_gpu, on_cpu, atol=5e-3)
    torch.testing.assert_close(policies[1].h.cpu(), policies[0].h, atol=5e-3, rtol=5e-3)


def train_v(dataset) -> list[float]:
    loader = FrameLoader(list_episodes(dataset), 16, GPU, shuffle=True)
    assert loader.fits
    torch.manual_seed(0)
    model = VAE().to(GPU)
    optimizer = trainvae.make_optimizer(model)
    where = (GPU, torch.float32)
    losses = []
    for epoch in (1, 2):
        means = trainvae.run_epoch(
            model, loader, seed_epoch("V's epoch", 0, epoch), *where, "train", optimizer
        )
        losses.append(means["loss"])
    return losses


def train_m(_) -> list[float]:
    generator = np.random.default_rng(0)
    episodes = [
        LatentEpisode(
            generator.standard_normal((300, 32), np.float32),
            np.full((300, 32), -1, np.float32),
            generator.uniform(-1, 1, (300, 3)).astype(np.float32),
            generator.standard_normal(300, np.float32),
            np.zeros(300, bool),
        )
        for _ in range(9)
    ]
    kept = [SimpleNamespace(length=len(e.mu), read=lambda e=e: e) for e in episodes]
    loader = WindowLoader(kept, 16, 32, GPU, shuffle=True)
    torch.manual_seed(0)
    model = MDRNN().to(GPU)
    optimizer = trainmdrnn.make_optimizer(model)
    losses = []
    for epoch in (1, 2):
        arguments = (seed_epoch("M's epoch", 0, epoch), torch.float32, True, "train", optimizer)
        losses.append(trainmdrnn.run_epoch(model, loader, *arguments)["loss"])
    return losses


@pytest.mark.parametrize("train", [train_v, train_m])
def test_recorded_epochs_are_the_epochs(train, dataset, monkeypatch):
    want = train(dataset)
    for script in (trainvae, trainmdrnn):
        monkeypatch.setattr(script, "recorded", lambda step, device: step)
    np.testing.assert_allclose(train(dataset), want, rtol=5e-3)


@pytest.mark.parametrize("first, second", [(GPU, CPU), (CPU, GPU)])
@pytest.mark.parametrize(
    "make, make_optimizer", [(VAE, trainvae.make_optimizer), (MDRNN, trainmdrnn.make_optimizer)]
)
def test_a_training_goes_on_on_another_device(make, make_optimizer, first, second, tmp_path):
    episodes = {"to train on": "3 episodes", "held out": "1 episodes"}

    def trainer(device):
        model = make().to(device)
        return Fitting(tmp_path, model, make_optimizer(model), {"seed": 0}, episodes)

    def step(model, optimizer) -> None:
        optimizer.zero_grad()
        sum(p.square().sum() for p in model.parameters()).backward()
        optimizer.step()

    before, after = trainer(first), trainer(second)
    step(before.model, before.optimizer)
    before.save(1, 0.5)
    after.resume()
    assert (after.done, after.comparable) == (1, True)
    step(before.model, before.optimizer)
    step(after.model, after.optimizer)
    for got, want in zip(after.model.parameters(), before.model.parameters(), strict=True):
        torch.testing.assert_close(got.cpu(), want.cpu(), atol=1e-5, rtol=1e-5)


def test_a_full_gpu_is_one_line(dataset, tmp_path):
    taken = torch.empty(torch.cuda.mem_get_info()[0] - 200 * 2**20, dtype=torch.uint8, device=GPU)
    done = run_script(
        "trainvae.py", "--logdir", "exp", "--rootdir", dataset, "--epochs", 1, cwd=tmp_path
    )
    del taken
    torch.cuda.empty_cache()
    assert done.returncode == 2 and "the GPU has not enough memory" in done.stderr
    assert "Traceback" not in done.stderr
