import gc

import numpy as np
import pytest
import torch
from conftest import SHORT, make_experiment
from PIL import Image

from envs import simulator
from envs.parallel import UNIT, run_rollouts, setup_worker, start_workers
from envs.rollouts import play
from envs.seeing import LOOKS, seen_in_data, seen_in_driving
from envs.simulator import Simulator
from envs.tracks import PURPOSES, track_seeds
from envs.viewer import Video
from models import logdir as stored
from models.agent import AgentPolicy
from models.controller import PARAMETERS, Controller
from models.logdir import DEFAULT, Driving, agent_digest, load_agent, load_models, weights_digest
from models.starts import Starts
from models.vae import VAE
from utils.cli import UserError
from utils.cores import available_cores
from utils.devices import fast_precision

CPU = torch.device("cpu")


def actions_for(seed, steps, n):
    generator = np.random.default_rng(seed)
    return generator.uniform([-1, 0, 0], [1, 1, 0.2], (steps, n, 3)).astype(np.float32)


def test_interface_and_seeds():
    """The same seed is the same episode, whichever others run beside it."""
    environments = Simulator([11, 12, 11])
    ids = np.arange(3)
    frames = environments.reset(ids)
    assert frames.shape == (3, 96, 96, 3) and frames.dtype == np.uint8
    actions = actions_for(0, 20, 3)
    actions[:, 2] = actions[:, 0]
    for t in range(20):
        frames, rewards, terminated, truncated = environments.step(ids, actions[t])
        assert rewards.dtype == np.float32 and terminated.dtype == truncated.dtype == bool
        np.testing.assert_array_equal(frames[0], frames[2])
        assert rewards[0] == rewards[2]
    assert (frames[0] != frames[1]).any()
    environments.close()


def test_only_the_named_episodes_move_and_answers_keep_their_order():
    environments = Simulator([1, 2, 3])
    alone = Simulator([3])
    first = environments.reset(np.array([2, 0]))
    np.testing.assert_array_equal(first[0], alone.reset(np.array([0]))[0])
    environments.reset(np.array([1]))
    gas = np.array([[0.0, 1.0, 0.0]], np.float32)
    for _ in range(30):  # episode 0 stands still meanwhile
        moved = environments.step(np.array([2, 1]), np.concatenate([gas, gas]))
        expected = alone.step(np.array([0]), gas)
        np.testing.assert_array_equal(moved[0][0], expected[0][0])
        assert moved[1][0] == expected[1][0]
    environments.close()
    alone.close()


def stand_still(ids, frames):
    return np.zeros((len(ids), 3), np.float32)


def test_environments_that_are_closed_leave_nothing_behind():
    """A worker makes new ones in each generation; Box2D's bodies once kept themselves."""

    def drive(generation):
        environments = Simulator([2 * generation, 2 * generation + 1])
        play(environments, 2, 2, stand_still, patience=3)
        environments.close()
        gc.collect()
        return len(gc.get_objects())

    counts = [drive(generation) for generation in range(12)]
    assert counts[-1] - counts[2] < 100  # the tiles alone of two tracks are 600


def test_episodes_end_at_the_time_limit_of_1000(monkeypatch):
    assert simulator.MAX_STEPS == 1000
    monkeypatch.setattr(simulator, "MAX_STEPS", 50)
    truncations = []

    def watch(ids, actions, frames, rewards, terminated, truncated):
        assert not terminated.any()
        truncations.append(bool(truncated[0]))

    returns, lengths = play(Simulator([4]), 1, 1, stand_still, watch)
    assert lengths[0] == simulator.MAX_STEPS == len(truncations)
    assert truncations.index(True) == len(truncations) - 1
    # A car that stands still has its first tiles, if any, and pays 0.1 a frame.
    assert 0 <= returns[0] + 0.1 * lengths[0] <= 20


class CountingSimulator:
    """Episode i ends by itself after lengths[i] steps and pays i + 1 a step."""

    max_steps = simulator.MAX_STEPS

    def __init__(self, lengths):
        self.lengths, self.steps = lengths, {}
        self.most = 0
        self.ended = []

    def reset(self, ids):
        for i in ids:
            assert i not in self.steps, "started twice"
            self.steps[i] = 0
        return self.frames(ids)

    def frames(self, ids):
        return np.tile(ids.astype(np.uint8)[:, None, None, None], (1, 96, 96, 3))

    def step(self, ids, actions):
        assert len(set(ids)) == len(ids)
        self.most = max(self.most, len(ids))
        for i in ids:
            assert self.steps[i] < self.lengths[i], "an episode that ended was stepped"
            self.steps[i] += 1
        ended = np.array([self.steps[i] == self.lengths[i] for i in ids])
        return self.frames(ids), (ids + 1).astype(np.float32), ended, np.zeros(len(ids), bool)

    def end(self, ids):
        self.ended += ids.tolist()


def test_play_counts_each_step_once_and_refills_the_slots():
    lengths = np.array([5, 1, 9, 3, 3, 2, 7])
    environments = CountingSimulator(lengths)

    def policy(ids, frames):
        np.testing.assert_array_equal(frames[:, 0, 0, 0], ids)  # frames go with their episodes
        return np.zeros((len(ids), 3), np.float32)

    returns, counted = play(environments, 7, 3, policy)
    np.testing.assert_array_equal(counted, lengths)
    np.testing.assert_array_equal(returns, lengths * np.arange(1, 8))
    assert environments.most == 3
    assert sorted(environments.ended) == list(range(7))


def test_stuck_episodes_leave_their_environment_to_the_next_ones():
    environments = Simulator([1, 2, 3])
    made = []
    make = environments._make
    environments._make = lambda: made.append(make()) or made[-1]
    _, lengths = play(environments, 3, 1, stand_still, patience=5)
    # Tiles under the car count in the first step or two.
    assert len(made) == 1 and (lengths < 10).all()
    environments.reset(np.array([2]))  # its own again
    environments.end(np.array([2]))
    environments.reset(np.array([0]))
    assert len(made) == 1
    environments.reset(np.array([1]))
    assert len(made) == 2
    environments.close()


def test_patience_ends_a_rollout_and_books_its_other_steps():
    class Stuck(CountingSimulator):
        """A tile every second step up to step 6 in episode 0, none in episode 1."""

        def step(self, ids, actions):
            frames, _, ended, truncated = super().step(ids, actions)
            tile = [i == 0 and self.steps[i] % 2 == 0 and self.steps[i] <= 6 for i in ids]
            return frames, np.where(tile, 2.9, -0.1).astype(np.float32), ended, truncated

    returns, lengths = play(Stuck([1000, 1000]), 2, 2, stand_still, patience=5)
    np.testing.assert_array_equal(lengths, [11, 5])
    # As if each had stood still for the rest of its 1000 steps.
    np.testing.assert_allclose(returns, [3 * 3 - 100, -100], atol=1e-4)


def test_play_ends_an_episode_whose_action_is_nan():
    def policy(ids, frames):
        actions = np.zeros((len(ids), 3), np.float32)
        actions[ids == 1, 0] = np.nan
        return actions

    returns, lengths = play(CountingSimulator([4, 4, 4]), 3, 3, policy)
    np.testing.assert_array_equal(np.isnan(returns), [False, True, False])
    np.testing.assert_array_equal(lengths, [4, 1, 4])


def test_tracks_of_different_purposes_never_meet():
    tracks = {p: set(track_seeds(p, 20_000, 0)) for p in PURPOSES}
    for a in tracks:
        assert all(0 <= seed < 2**31 for seed in tracks[a])
        for b in tracks:
            assert a == b or not tracks[a] & tracks[b]
    assert track_seeds("test", 100, 3)[:10] == track_seeds("test", 10, 3)
    assert track_seeds("train", 4, 0, 1) != track_seeds("train", 4, 0, 2)
    assert len(set(track_seeds("evaluate", 1000))) == 1000


def controllers(n):
    torch.manual_seed(1)
    return torch.stack([Controller().flat_parameters() * 2 for _ in range(n)])


def test_batch_equals_one_environment_at_a_time(experiment, monkeypatch):
    """Six controllers on six tracks in three slots, and each alone, give the same returns."""
    monkeypatch.setattr(simulator, "MAX_STEPS", 120)
    agent = load_agent(experiment, CPU, torch.float32)
    parameters, seeds = controllers(6), track_seeds("test", 6, 1)
    together, lengths = play(Simulator(seeds), 6, 3, AgentPolicy(agent, parameters))
    assert len(set(together.round(3))) > 3  # they do drive differently
    for i in range(6):
        alone, length = play(
            Simulator([seeds[i]]),
            1,
            1,
            AgentPolicy(agent, parameters[i : i + 1]),
        )
        assert together[i] == pytest.approx(alone[0], abs=1e-3)
        assert lengths[i] == length[0] == 120


def test_workers_give_each_rollout_its_place(experiment, monkeypatch):
    """The matrix of returns does not depend on how the rollouts were shared out."""
    # Three that reach different numbers of tiles, and are soon stuck.
    parameters, seeds = controllers(12)[[0, 10, 11]].numpy(), track_seeds("test", 2, 5)
    with start_workers(experiment, CPU, 2, 6, agent_digest(experiment)) as pool:
        assert len(pool) == 2
        counted = []
        returns, lengths = run_rollouts(pool, parameters, seeds, counted.append, patience=30)
        again, _ = run_rollouts(pool, parameters, seeds, patience=30)
    assert returns.shape == lengths.shape == (3, 2)
    assert sum(counted) == 6
    assert len(counted) > 2  # as rollouts end, not by the unit
    assert len(set(returns.ravel().round(1))) == 6  # each has a place of its own
    np.testing.assert_array_equal(returns, again)
    agent = load_agent(experiment, CPU, fast_precision(CPU))
    monkeypatch.setattr(simulator, "MAX_STEPS", SHORT)  # as in the workers
    for i, j in ((0, 1), (2, 0)):
        alone, _ = play(
            Simulator([seeds[j]]),
            1,
            1,
            AgentPolicy(agent, torch.from_numpy(parameters[i : i + 1])),
            patience=30,
        )
        assert returns[i, j] == alone[0]  # to the last bit, whatever else is in the batch


def test_no_more_workers_than_work(tmp_path):
    logdir = make_experiment(tmp_path / "exp")
    with start_workers(logdir, CPU, 8, 2, agent_digest(logdir)) as pool:
        assert len(pool) == 2


def test_a_random_memory_is_the_same_again_from_its_seed(tmp_path):
    logdir = make_experiment(tmp_path / "exp")
    (logdir / "mdrnn/best.tar").unlink()  # it needs none
    a, b, other = (
        load_agent(logdir, CPU, torch.float32, Driving("random", seed)).mdrnn.rnn.weight_hh_l0
        for seed in (1, 1, 2)
    )
    assert torch.equal(a, b) and not torch.equal(a, other)
    digests = [agent_digest(logdir, Driving("random", seed)) for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]
    assert load_agent(logdir, CPU, torch.float32, Driving("none")).mdrnn is None


def test_a_worker_refuses_other_models_than_its_fellows(experiment, monkeypatch):
    digest = agent_digest(experiment)
    reading = []
    load = stored.load_models
    monkeypatch.setattr(stored, "load_models", lambda *a: reading.append(a) or load(*a))
    setup_worker(0, experiment, "cpu", DEFAULT, digest, available_cores())
    assert len(reading) == 1  # it drives with what was checked
    with pytest.raises(UserError, match="changed since the start"):
        setup_worker(0, experiment, "cpu", DEFAULT, "another", available_cores())


@pytest.mark.parametrize(
    "error, expected",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), UserError),
        (RuntimeError("CUDA error: out of memory"), UserError),  # of a context, pinned memory
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), UserError),
        (RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"), UserError),
        (
            RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
            UserError,
        ),
        (
            RuntimeError("GET was unable to find an engine to execute this computation"),
            UserError,
        ),
        (RuntimeError("expected a matrix"), RuntimeError),
    ],
)
def test_a_full_gpu_is_the_users_to_mend(error, expected, experiment, monkeypatch):
    def full(*_, **__):
        raise error

    digest = agent_digest(experiment)
    monkeypatch.setattr(stored, "Agent", full)
    with pytest.raises(expected) as raised:
        setup_worker(0, experiment, "cpu", DEFAULT, digest, available_cores())
    assert ("smaller --max-workers" in str(raised.value)) == (expected is UserError)


def test_units_are_alike_and_as_many_for_each_worker():
    class Pool:
        def __init__(self, workers):
            self.workers = workers

        def __len__(self):
            return self.workers

        def run(self, units, reports, shared):
            self.sizes = [len(unit.seeds) for unit in units]
            for i, unit in enumerate(units):
                for done in (1, 1):  # its worker died, and another one began it again
                    reports((unit.number, done))
                yield i, (np.array(unit.seeds, float), np.ones(len(unit.seeds), np.int64))

    for workers, m, k in ((2, 32, 3), (2, 32, 4), (4, 3, 100), (8, 96, 3), (3, 2, 1), (2, 5, 7)):
        pool = Pool(workers)
        counted = []
        returns, _ = run_rollouts(pool, np.zeros((m, 867)), list(range(k)), counted.append)
        assert sum(counted) == m * k
        np.testing.assert_array_equal(returns, np.tile(np.arange(k), (m, 1)))
        assert sum(pool.sizes) == m * k and max(pool.sizes) <= UNIT
        rounds = -(-len(pool.sizes) // workers)
        assert rounds * max(pool.sizes) * workers < m * k + workers * rounds


def test_agent_has_all_parameters_of_a_controller(experiment):
    agent = load_agent(experiment, CPU, torch.float32)
    assert controllers(1).shape == (1, PARAMETERS)
    h, c = agent.initial_state(2)
    assert h.shape == c.shape == (2, 256) and not h.any() and not c.any()


def test_a_gif_has_every_fourth_step_at_half_size_and_real_speed(tmp_path):
    path = tmp_path / "videos" / "lap.gif"
    with Video(path, VAE()) as video:
        for shade in range(40, 201, 20):
            picture = np.full((400, 600, 3), shade, np.uint8)
            video.add(lambda p=picture: p, np.full((96, 96, 3), shade, np.uint8))
        assert not path.exists()  # until it is complete
    assert [p.name for p in path.parent.iterdir()] == ["lap.gif"]
    with Image.open(path) as gif:
        assert gif.n_frames == 3 and gif.size == (400, 200)
        for k, shade in enumerate((40, 120, 200)):
            gif.seek(k)
            assert gif.info["duration"] == 80  # milliseconds: four steps of 1/50 s
            frame = np.asarray(gif.convert("RGB")).astype(int)
            for x, y in ((100, 100), (350, 50)):  # the car's picture, and what V sees
                assert abs(frame[y, x] - shade).max() < 8


@pytest.mark.parametrize("driving", [DEFAULT, Driving(memory="none")])
def test_what_is_seen_in_driving_is_z_and_the_h_beside_it(driving, experiment):
    """Against V, M and numpy, one episode after the other."""
    agent = load_agent(experiment, torch.device("cpu"), torch.float32, driving)
    size = 867 if driving == DEFAULT else 99
    parameters = torch.randn(3, size, generator=torch.Generator().manual_seed(0)) * 0.1
    seeds = track_seeds("train", 3, 0)
    mean, covariance, steps = seen_in_driving(agent, parameters, Simulator(seeds), patience=12)

    rows, driven = [], 0
    for seed, weights in zip(seeds, parameters, strict=True):
        h, c = agent.initial_state(1)
        of_one = []

        def drive(ids, frames, weights=weights, of_one=of_one):
            nonlocal h, c
            seen = torch.from_numpy(np.ascontiguousarray(frames))
            of_one.append(torch.cat([agent.observe(seen), h], dim=1)[0].detach().numpy())
            action, h, c = agent.step(seen, weights[None], h, c)
            return action.numpy()

        environments = Simulator([seed])
        play(environments, 1, 1, drive, patience=12)
        environments.close()
        driven += len(of_one)
        rows += of_one[::4]
    rows = np.array(rows, np.float64)
    assert steps == driven > len(rows)
    assert rows.shape[1] == len(mean) == (288 if driving == DEFAULT else 32)
    np.testing.assert_allclose(mean, rows.mean(0), atol=1e-4)
    np.testing.assert_allclose(covariance, np.cov(rows.T, bias=True), atol=1e-4)


@pytest.mark.parametrize("driving", [DEFAULT, Driving(memory="none")])
def test_what_is_seen_in_the_data_is_z_and_the_h_beside_it(driving, experiment):
    """Against M, frame by frame, in an episode of 30 frames, so that each is seen many times."""
    assert seen_in_data(experiment, driving) is None  # without latents
    encoder, mdrnn = load_models(experiment, driving)
    generator = np.random.default_rng(0)
    mu = generator.standard_normal((30, 32), np.float32)
    actions = generator.random((30, 3), np.float32)
    folder = experiment / "latents" / f"{weights_digest(encoder)[:16]}-float32"
    folder.mkdir(parents=True)
    np.savez(folder / "rollout_0.npz", mu=mu, actions=actions)

    rows, h, c = [], torch.zeros(1, 256), torch.zeros(1, 256)
    with torch.no_grad():
        for t in range(30):
            rows.append(mu[t] if mdrnn is None else np.append(mu[t], h[0]))
            if mdrnn is not None and t < 29:
                h, c = mdrnn.step(
                    torch.tensor(actions[t + 1 :][:1]), torch.tensor(mu[t])[None], h, c
                )
    starts = Starts(experiment, weights_digest(encoder))
    drawn = [len(starts.draw(seed).mu) - 1 for seed in range(LOOKS)]
    assert set(drawn) == set(range(30))
    want = np.array(rows, np.float64)[drawn]
    seen = seen_in_data(experiment, driving)
    np.testing.assert_allclose(seen.mean, want.mean(0), atol=1e-4)
    np.testing.assert_allclose(seen.covariance, np.cov(want.T, bias=True), atol=1e-4)
    assert seen.steps == 0
