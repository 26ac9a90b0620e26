"""The dream: what it draws, where it begins, and that it is an environment like the real one."""

import shutil

import gymnasium as gym
import imageio.v2 as imageio
import numpy as np
import pytest
import torch
from conftest import make_experiment, run_script, write_dataset
from gymnasium.utils.env_checker import check_env

from data.ahead import AHEAD, ahead, replay, replayed_returns, rms, windows
from data.latents import LatentEpisode
from data.playing import load_driver
from envs.parallel import run_rollouts, start_workers
from envs.rollouts import play
from envs.simulated_carracing import LEAST_REWARD, MOST_REWARD, Dream, Dreaming, load_world
from envs.tracks import track_seeds
from models.agent import AgentPolicy
from models.logdir import (
    Driving,
    agent_digest,
    load_agent,
    load_controller,
    load_vae,
    weights_digest,
)
from models.mdrnn import MDRNN, Prediction, draw_latent, mixture_mean
from models.starts import WARM_UP, Starts
from utils.checkpoint import load_checkpoint, save_checkpoint
from utils.cli import UserError
from utils.scores import read_scores

CPU = torch.device("cpu")


def episodes(logdir):
    return [dict(np.load(path)) for path in sorted(logdir.glob("latents/*/thread_0/*.npz"))]


def driven(dream, ids, steps, actions):
    """What is observed and returned in `steps` steps with the same actions for all."""
    seen = [dream.reset(ids)]
    for t in range(steps):
        observed, rewards, terminated, truncated = dream.step(ids, actions[t].repeat(len(ids), 0))
        seen.append(np.column_stack([observed, rewards, terminated, truncated]))
    return seen


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_a_latent_is_drawn_from_the_mixture_at_its_temperature(temperature):
    """Three components far apart: how often each is taken, and with which mean and deviation."""
    n = 60_000
    logpi = torch.tensor([0.2, 0.5, 0.3]).log()
    mu = torch.tensor([-100.0, 0.0, 100.0])[:, None].expand(3, 2)
    sigma = torch.tensor([1.0, 2.0, 3.0])
    prediction = Prediction(
        mu.expand(n, 3, 2), sigma.log()[:, None].expand(n, 3, 2), logpi.expand(n, 3), *(2 * [None])
    )
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(n, generator=generator)
    z = draw_latent(prediction, temperature, uniform, torch.randn(n, 2, generator=generator))
    weights = (logpi / temperature).softmax(0)
    for k in range(3):
        taken = z[(z - mu[k]).abs().max(dim=1).values < 40]
        assert len(taken) / n == pytest.approx(weights[k].item(), abs=0.01)
        assert taken.mean(0).tolist() == pytest.approx(mu[k].tolist(), abs=0.1)
        deviation = sigma[k].item() * temperature**0.5
        assert taken.std(0).tolist() == pytest.approx(2 * [deviation], rel=0.03)


def test_the_same_seed_and_actions_are_the_same_dream_whatever_else_is_dreamt(dreamer):
    world = load_world(dreamer)
    steps = 120  # more than are drawn together
    actions = np.random.default_rng(1).uniform(-1, 1, (steps, 1, 3)).astype(np.float32)
    alone = driven(Dream(world, [7]), np.arange(1), steps, actions)
    batch = Dream(world, [*range(100, 130), 7, *range(200, 240)])
    among = driven(batch, np.arange(71), steps, actions)
    assert all(np.array_equal(a[0], b[30]) for a, b in zip(alone, among, strict=True))
    again = driven(batch, np.array([30, 2]), steps, actions)  # a second time, beside one other
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(alone, again, strict=True))
    assert not np.array_equal(among[-1][30], among[-1][31])  # another seed is another dream
    other = driven(Dream(world, [7]), np.arange(1), steps, actions[::-1])
    assert not np.array_equal(alone[-1], other[-1])


def test_a_dream_begins_at_a_real_frame_with_the_state_that_m_has_there(dreamer):
    world = load_world(dreamer)
    real = episodes(dreamer)
    places = set()
    for seed in range(60):
        z, h = np.split(Dream(world, [seed]).reset(np.arange(1))[0], [32])
        k, t = next(
            (k, t) for k, e in enumerate(real) for t, mu in enumerate(e["mu"]) if (mu == z).all()
        )
        places.add((k, t))
        state = torch.zeros(1, 256), torch.zeros(1, 256)
        for s in range(max(0, t - WARM_UP), t):
            action, mu = (
                torch.from_numpy(x)[None] for x in (real[k]["actions"][s + 1], real[k]["mu"][s])
            )
            state = world.mdrnn.step(action, mu, *state)
        np.testing.assert_allclose(state[0][0].numpy(), h, atol=1e-5)
    assert {k for k, _ in places} == {0, 1} and len(places) > 20
    assert max(t for _, t in places) > WARM_UP


def test_a_step_is_one_of_m_and_the_agent_takes_its_state(dreamer):
    world = load_world(dreamer)
    dream, ids = Dream(world, [1, 2]), np.arange(2)
    before = torch.from_numpy(dream.reset(ids))
    c, action = dream.c.clone(), torch.tensor([[0.3, 5.0, -1.0], [-0.2, 0.1, 0.0]])
    observed, rewards, terminated, truncated = dream.step(ids, action.numpy())
    inside = action.clamp(torch.tensor([-1.0, 0, 0]), torch.ones(3))  # the box of the actions
    h, _ = world.mdrnn.step(inside, before[:, :32], before[:, 32:], c)
    assert torch.allclose(torch.from_numpy(observed[:, 32:]), h, atol=1e-6)
    prediction = world.mdrnn.predict(h)
    assert rewards == pytest.approx(prediction.reward.numpy(), abs=1e-5)
    assert (terminated == (prediction.terminal.numpy() > 0)).all() and not truncated.any()

    for memory, size in (("trained", 288), ("none", 32)):
        agent = load_agent(dreamer, CPU, torch.float32, Driving(memory))
        parameters = torch.randn(2, 3 * size + 3, generator=torch.Generator().manual_seed(3)) * 0.1
        actions = AgentPolicy(agent, parameters)(ids, observed)
        seen = torch.from_numpy(observed)
        expected = agent.act(parameters, seen[:, :32], seen[:, 32:size])
        assert torch.equal(torch.from_numpy(actions), expected)


def test_rewards_are_bounded_and_dreams_end_by_m_or_at_the_horizon(dreamer):
    world, ids = load_world(dreamer), np.arange(2)
    bias = world.mdrnn.gmm_linear.bias
    for said, believed in ((1e4, MOST_REWARD), (-1e4, LEAST_REWARD)):
        bias[-2] = said
        dream = Dream(world, [1, 2], Dreaming(horizon=3))
        dream.reset(ids)
        assert (dream.step(ids, np.zeros((2, 3)))[1] == np.float32(believed)).all()
    bias[-2:] = torch.tensor([-0.1, -20.0])
    world.mdrnn.gmm_linear.weight[-2:] = 0
    agent = load_agent(dreamer, CPU, torch.float32)
    drive = AgentPolicy(agent, torch.zeros(2, 867))
    returns, lengths = play(Dream(world, [1, 2], Dreaming(horizon=30)), 2, 2, drive)
    assert lengths.tolist() == [30, 30] and returns == pytest.approx(2 * [-3.0], abs=1e-4)
    bias[-1] = 20.0
    assert play(Dream(world, [1, 2], Dreaming(horizon=30)), 2, 2, drive)[1].tolist() == [1, 1]


@pytest.mark.parametrize("observation", ["frame", "latent"])
def test_it_is_an_environment_of_gymnasium(observation, dreamer):
    env = gym.make(
        "SimulatedCarRacing-v0", logdir=dreamer, temperature=1.3, observation=observation
    )
    check_env(env.unwrapped, skip_render_check=True)
    first, _ = env.reset(seed=5)
    moved = [env.step(np.array([0.1, 0.5, 0], np.float32))[0] for _ in range(3)]
    again, _ = env.reset(seed=5)
    assert np.array_equal(first, again) and not np.array_equal(first, moved[-1])
    assert np.array_equal(moved[0], env.step(np.array([0.1, 0.5, 0], np.float32))[0])
    assert not np.array_equal(first, env.reset()[0])  # without a seed it is another one
    if observation == "frame":
        z = env.unwrapped.dream.z
        with torch.no_grad():
            decoded = load_vae(dreamer).decoder(z)[0].permute(1, 2, 0).numpy() * 255
        assert np.abs(env.unwrapped.dream.frames(np.arange(1))[0] - decoded).max() <= 0.51


def test_it_is_an_environment_of_stable_baselines(dreamer):
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    env = gym.make("SimulatedCarRacing-v0", logdir=dreamer, observation="latent", horizon=40)
    checker.check_env(env.unwrapped)


def test_starts_that_are_stored_are_those_of_the_latents(dreamer, tmp_path):
    digest = weights_digest(load_vae(dreamer).encoder)
    Starts(dreamer, digest).write(dreamer / "mdrnn/starts.npz", 30)
    assert (dreamer / "mdrnn/starts.npz").stat().st_size < 30 * 8000
    real = episodes(dreamer)
    (dreamer / "latents").rename(tmp_path / "away")
    stored = Starts(dreamer, digest)
    for seed in range(50):
        mu, actions = stored.draw(seed)
        assert any(
            (mu[-1] == e["mu"]).all(1).any() and (actions[-1] == e["actions"]).all(1).any()
            for e in real
        )
    assert len({stored.draw(seed).mu.tobytes() for seed in range(50)}) > 10
    (dreamer / "mdrnn/starts.npz").write_bytes(b"PK nothing")
    with pytest.raises(UserError, match=r"starts\.npz is damaged"):
        Starts(dreamer, digest).draw(0)
    (dreamer / "mdrnn/starts.npz").unlink()
    with pytest.raises(UserError, match="neither latents nor"):
        Starts(dreamer, digest)


def test_an_m_without_rewards_does_not_dream(experiment):
    with pytest.raises(UserError, match="include_reward"):
        load_world(experiment)
    save_checkpoint(experiment / "mdrnn/best.tar", {"state_dict": MDRNN().state_dict()})
    with pytest.raises(UserError, match="include_reward"):
        gym.make("SimulatedCarRacing-v0", logdir=experiment)


DREAM = ["traincontroller.py", "--logdir", "exp", "--dream", "--device", "cpu", "--pop-size", 4]
DREAM += ["--n-samples", 2, "--eval-rollouts", 1, "--horizon", 30, "--seed", 3]


def test_a_controller_is_trained_in_dreams_and_resumed(dreamer, run_here, tmp_path):
    """Real tracks are driven in evaluations alone; what `ctrl` holds stays."""
    before = (dreamer / "ctrl/best.tar").read_bytes()
    done = run_script(*DREAM, "--max-generations", 3, "--eval-every", 2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    whole = load_checkpoint(dreamer / "dream/checkpoint.tar")
    assert whole["state"]["steps"] <= 3 * 4 * 2 * 30
    assert [row[0] for row in whole["state"]["evaluations"]] == [2, 3]
    assert "of the last mean" in done.stdout
    assert (dreamer / "ctrl/best.tar").read_bytes() == before
    (dreamer / "dream").rename(tmp_path / "whole")
    for generations in (2, 3):
        done = run_script(*DREAM, "--max-generations", generations, "--eval-every", 2, cwd=tmp_path)
    assert "continuing after generation 2" in done.stdout
    resumed = load_checkpoint(dreamer / "dream/checkpoint.tar")
    assert torch.equal(resumed["cma"]["es"]["mean"], whole["cma"]["es"]["mean"])
    _, driving, best = load_controller(dreamer / "dream/best.tar")
    assert driving == Driving() and np.isfinite(best["reward"])
    # The last mean, which may be another, drives as well in new data for M.
    last = load_driver(dreamer, "dream", last=True).weights
    cma = resumed["cma"]
    mean = cma["offset"] + cma["es"]["mean"] @ cma["basis"]
    np.testing.assert_allclose(last, mean.numpy(), rtol=1e-5, atol=1e-6)
    for option, value in (("--temperature", 0.7), ("--horizon", 31)):
        refused = run_here(*DREAM, option, value, cwd=tmp_path)
        assert refused.returncode == 2 and f"{option} {value}" in refused.stderr


def test_dreams_in_workers_are_those_of_one_process(dreamer):
    """Whatever the workers: each candidate in each dream, with the dream's own state."""
    seeds, dreaming = [11, 12, 13], Dreaming(0.9, 50)
    parameters = np.random.default_rng(0).normal(0, 0.3, (5, 867)).astype(np.float32)
    with start_workers(dreamer, CPU, 2, 15, agent_digest(dreamer)) as pool:
        returns, lengths = run_rollouts(pool, parameters, seeds, dream=dreaming)
    agent, world = load_agent(dreamer, CPU, torch.float32), load_world(dreamer)
    for i, j in ((0, 0), (3, 2), (4, 1)):
        policy = AgentPolicy(agent, torch.from_numpy(parameters[i : i + 1]))
        alone, steps = play(Dream(world, [seeds[j]], dreaming), 1, 1, policy)
        assert lengths[i, j] == steps[0]
        assert returns[i, j] == pytest.approx(alone[0], abs=1e-3)


def test_a_search_starts_from_a_controller_of_elsewhere(dreamer, run_here, tmp_path):
    done = run_script(
        *(*DREAM, "--warm-start", "exp/ctrl/best.tar", "--sigma", 1e-9, "--max-generations", 1),
        cwd=tmp_path,
    )
    assert done.returncode == 0 and "best.tar: the search starts from it" in done.stdout
    champion = load_checkpoint(dreamer / "dream/checkpoint.tar")["state"]["champion"]
    theirs = load_controller(dreamer / "ctrl/best.tar")[0].flat_parameters()
    np.testing.assert_allclose(champion, theirs, atol=1e-4)
    random = run_here(*DREAM, "--memory", "random", cwd=tmp_path)
    assert random.returncode == 2 and "--memory random" in random.stderr
    missing = run_here(*DREAM, "--noreload", "--warm-start", "none.tar", cwd=tmp_path)
    assert missing.returncode == 2 and "none.tar" in missing.stderr


def test_a_controller_is_scored_and_shown_in_dreams(dreamer, run_here, tmp_path):
    test = ["test_controller.py", "--logdir", "exp", "--device", "cpu"]
    missing = run_here(*test, "--controller", "dream", cwd=tmp_path)
    assert missing.returncode == 2 and "--dream` first" in missing.stderr
    shutil.copytree(dreamer / "ctrl", dreamer / "dream")
    dreams = [*test, "--in-dream", "--horizon", 20, "--temperature", 0.7]
    done = run_script(*dreams, "--episodes", 3, "--json", "scores.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "temperature 0.7, 20 steps" in done.stdout and "over 3 episodes" in done.stdout
    scores = read_scores(tmp_path / "scores.json")
    world, agent = load_world(dreamer), load_agent(dreamer, CPU, torch.float32)
    parameters = load_controller(dreamer / "ctrl/best.tar")[0].flat_parameters().expand(3, -1)
    dream = Dream(world, scores.tracks, Dreaming(0.7, 20))
    returns, _ = play(dream, 3, 3, AgentPolicy(agent, parameters))
    assert scores.returns == pytest.approx(returns.tolist(), abs=1e-3)
    assert not set(scores.tracks) & set(track_seeds("test", 3, 0))
    with imageio.get_reader(dreamer / "controller_in_dream.mp4") as video:
        assert video.count_frames() == 10 and video.get_data(0).shape == (400, 800, 3)
    real = run_script(*test, "--controller", "dream", "--no-render", cwd=tmp_path)
    assert real.returncode == 0 and "exp/dream/best.tar" in real.stdout


def an_episode(steps, drift, seed=0):
    """Latents that drift evenly, random actions, and rewards of 0.5 with one of 3 in four."""
    generator = np.random.default_rng(seed)
    mu = np.tile(drift * np.arange(steps, dtype=np.float32)[:, None], 32)
    rewards = np.where(np.arange(steps) % 4 == 0, 3.0, 0.5).astype(np.float32)
    actions = generator.uniform(-1, 1, (steps, 3)).astype(np.float32)
    return LatentEpisode(mu, np.zeros_like(mu), actions, rewards, np.zeros(steps, bool))


def constant_m(latent, reward):
    """An M that expects the same of every step."""
    model = MDRNN().eval()
    with torch.no_grad():
        model.gmm_linear.weight.zero_()
        model.gmm_linear.bias.zero_()
        model.gmm_linear.bias[: 5 * 32] = latent
        model.gmm_linear.bias[-2] = reward
    return model


def test_errors_ahead_are_those_of_the_closed_form():
    episodes = [an_episode(300, 0.01), an_episode(91, 0.01), an_episode(60, 0.01)]
    errors = ahead(constant_m(0.0, 0.5), episodes, True)
    window = windows(episodes, AHEAD[-1])
    assert window.mu.shape == (WARM_UP + 50, 6, 32)  # 5 of the first one, 1 of the second
    for steps in AHEAD:
        assert errors[f"copied/{steps}"] == pytest.approx(0.01 * steps, abs=1e-5)
        real = window.mu[WARM_UP + steps - 1]
        assert errors[f"latent/{steps}"] == pytest.approx(rms(real), abs=1e-5)
        paid = window.rewards[WARM_UP + steps - 1]
        off = rms(paid - 0.5)
        assert errors[f"reward/{steps}"] == pytest.approx(off, abs=1e-5)
    assert not any("reward" in name for name in ahead(constant_m(0, 0), episodes, False))
    assert ahead(constant_m(0, 0), episodes[2:], True) == {}

    dreamt, real = replayed_returns(constant_m(0.0, 0.25), [an_episode(480, 0.01)])
    assert dreamt == pytest.approx(2 * [50.0]) and real == pytest.approx(2 * [225.0])


def test_m_looks_ahead_without_seeing():
    """It is shown WARM_UP frames and all actions, and goes on by what it said itself."""
    torch.manual_seed(0)
    model, episode = MDRNN().eval(), an_episode(WARM_UP + 5, 0.1)
    window = windows([episode], 5)
    latents, rewards = replay(model, window, mixture_mean)
    blind = window._replace(mu=window.mu.clone())
    blind.mu[WARM_UP:] = 99
    assert torch.equal(replay(model, blind, mixture_mean)[0], latents)
    other = window._replace(actions=window.actions.clone())
    other.actions[WARM_UP + 2] = 9
    changed = replay(model, other, mixture_mean)[0]
    assert torch.equal(changed[:2], latents[:2]) and not torch.equal(changed[2], latents[2])
    # Against M's own forward pass over what it was shown and what it said.
    seen = torch.cat([window.mu[:WARM_UP], latents])
    with torch.no_grad():
        whole = model(window.actions[1:], seen[:-1])
    assert torch.allclose(mixture_mean(whole)[-5:], latents, atol=1e-5)
    assert torch.allclose(whole.reward[-5:], rewards, atol=1e-5)


def test_training_m_says_how_far_its_dream_is_from_reality(run_here, tmp_path):
    write_dataset(tmp_path / "data", [250, 260, 250, 270])
    make_experiment(tmp_path / "exp")
    shutil.rmtree(tmp_path / "exp/mdrnn")
    command = ["trainmdrnn.py", "--logdir", "exp", "--rootdir", "data", "--device", "cpu"]
    done = run_here(*command, "--epochs", 6, "--include_reward", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if "steps ahead: latent" in line]
    assert [line.split(":")[0] for line in lines] == ["epoch 5", "exp/mdrnn/best.tar"]
    assert all("(mean reward" in line for line in lines)
    assert "1 replays of 200 steps: return" in done.stdout
    without = run_here(*command, "--epochs", 1, "--noreload", cwd=tmp_path)
    assert "steps ahead: latent" in without.stdout and "mean reward" not in without.stdout


def test_what_was_exported_dreams_without_the_latents(dreamer, run_here, tmp_path):
    done = run_here("scripts/export.py", "--logdir", "exp", "--to", "given", cwd=tmp_path)
    assert done.returncode == 0 and "starts.npz" in done.stdout
    shutil.rmtree(dreamer)
    env = gym.make("SimulatedCarRacing-v0", logdir=tmp_path / "given", observation="latent")
    first, _ = env.reset(seed=1)
    assert np.abs(first[32:]).max() > 0 and env.step(env.action_space.sample())[1] != 0
