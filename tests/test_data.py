from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import make_episode, write_dataset
from PIL import Image

from data import playing
from data.episodes import (
    BadEpisode,
    Episode,
    episode_length,
    list_episodes,
    read_episode,
    split_episodes,
    write_episode,
)
from data.latents import LatentEpisode, encode_episodes
from data.loaders import FRAME_BYTES, FrameLoader, WindowLoader
from data.policies import brownian, burst_plan, white
from envs.simulator import Simulator
from models.logdir import load_agent, load_controller
from models.vae import Encoder
from utils.cli import UserError
from utils.devices import fast_precision
from utils.frames import pixels_to_unit, to_64
from utils.streams import stream

CPU = torch.device("cpu")


def test_brownian_policy_has_the_statistics_of_the_reference():
    actions = np.stack([brownian(400, np.random.default_rng(k)) for k in range(500)])
    assert actions.shape == (500, 400, 3) and actions.dtype == np.float32
    low, high = np.array([-1, 0, 0]), np.array([1, 1, 1])
    assert (actions >= low).all() and (actions <= high).all()
    first = actions[:, 0]  # uniform in the box: mean and variance of a uniform distribution
    np.testing.assert_allclose(first.mean(0), (low + high) / 2, atol=0.1)
    np.testing.assert_allclose(first.var(0), (high - low) ** 2 / 12, rtol=0.15)
    steps = np.diff(actions[..., 0], axis=1)
    inner = np.abs(actions[:, :-1, 0]) < 0.4  # too far from the walls to be clipped
    assert steps[inner].mean() == pytest.approx(0, abs=0.005)
    assert steps[inner].std() == pytest.approx(np.sqrt(1 / 50), rel=0.03)


def test_white_policy_is_uniform_and_independent():
    actions = white(20_000, np.random.default_rng(0))
    np.testing.assert_allclose(actions.mean(0), [0, 0.5, 0.5], atol=0.02)
    assert abs(np.corrcoef(actions[:-1, 0], actions[1:, 0])[0, 1]) < 0.03


def test_episode_survives_the_disk_and_opens_without_pickle(tmp_path):
    episode = make_episode(30)
    write_episode(tmp_path / "a" / "e.npz", episode)
    for got, want in zip(read_episode(tmp_path / "a" / "e.npz"), episode, strict=True):
        np.testing.assert_array_equal(got, want)
        assert got.dtype == want.dtype
    with np.load(tmp_path / "a" / "e.npz", allow_pickle=False) as npz:
        assert set(npz) == {"observations", "actions", "rewards", "terminals"}
    assert episode_length(tmp_path / "a" / "e.npz") == 30
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["e.npz"]


def test_recorded_frames_follow_their_actions(monkeypatch, tmp_path):
    """Playing actions[:t + 1] again from the same seed shows observations[t]."""
    monkeypatch.setattr(playing, "MAX_STEPS", 25)
    paths = {7: tmp_path / "e7.npz", 8: tmp_path / "e8.npz"}
    seeds = {}

    class Short(Simulator):
        """CarRacing with a time limit of 25."""

        def step(self, ids, actions):
            frames, rewards, terminated, _ = super().step(ids, actions)
            self.t = getattr(self, "t", 0) + 1
            return frames, rewards, terminated, np.full(len(ids), self.t == 25)

    def make(tracks):
        seeds.update(zip(sorted(paths), tracks, strict=True))
        return Short(tracks)

    monkeypatch.setattr(playing, "Simulator", make)
    playing.play_episodes(paths, playing.random_policy("brown"), 3)
    assert seeds[7] != seeds[8]
    for k, path in paths.items():
        episode = read_episode(path)
        assert len(episode.observations) == 25
        np.testing.assert_array_equal(episode.actions, brownian(25, stream("actions", 3, k)))
        simulator = Simulator([seeds[k]])
        ids = np.array([0])
        simulator.reset(ids)
        for t in range(25):
            frames, rewards, terminated, _ = simulator.step(ids, episode.actions[t : t + 1])
            expected = to_64(torch.from_numpy(frames)).numpy()[0]
            np.testing.assert_array_equal(episode.observations[t], expected)
            assert episode.rewards[t] == rewards[0] and episode.terminals[t] == terminated[0]
        simulator.close()


def test_the_controller_of_a_second_round_is_varied_from_episode_to_episode(experiment):
    controller = load_controller(experiment / "ctrl/best.tar")[0].flat_parameters()
    driver = playing.load_driver(experiment)
    exact = playing.controller_policy(driver, 0)([4, 9], 1)
    torch.testing.assert_close(exact.parameters, controller.expand(2, -1))
    make = playing.controller_policy(driver, 0.1)
    varied = make([4, 9], 1)
    assert torch.equal(varied.parameters[1], make([9], 1).parameters[0])
    assert not torch.equal(varied.parameters[0], make([4], 2).parameters[0])
    noise = varied.parameters - controller
    assert noise.std().item() == pytest.approx(0.1, rel=0.1)
    assert abs(np.corrcoef(noise.numpy())[0, 1]) < 0.15
    frames = np.random.default_rng(0).integers(0, 256, (2, 96, 96, 3), dtype=np.uint8)
    alone = [make([k], 1)(np.array([0]), frames[i : i + 1])[0] for i, k in enumerate((4, 9))]
    np.testing.assert_allclose(varied(np.arange(2), frames), alone, atol=0.01)


@torch.no_grad()
def test_in_bursts_a_random_walk_drives_and_the_memory_knows_it(experiment):
    driver = playing.load_driver(experiment)
    parameters = playing.controller_policy(driver, 0)([0], 1).parameters
    act = playing.controller_policy(driver, 0, bursts=0.5)([4], 1)
    agent = load_agent(experiment, CPU, fast_precision(CPU), driver.driving)
    taken, walk = burst_plan(1000, 0.5, stream("bursts", 1, 4))
    assert not np.array_equal(taken, burst_plan(1000, 0.5, stream("bursts", 1, 5))[0])
    h, c = agent.initial_state(1)
    rng = np.random.default_rng(0)
    for t in range(200):
        frames = rng.integers(0, 256, (1, 96, 96, 3), dtype=np.uint8)
        mu = agent.observe(torch.from_numpy(frames))
        expected = torch.from_numpy(walk[t : t + 1]) if taken[t] else agent.act(parameters, mu, h)
        h, c = agent.mdrnn.step(expected, mu, h, c)
        np.testing.assert_allclose(act(np.array([0]), frames), expected, atol=1e-3)
    assert 40 < taken[:200].sum() < 160


def test_bursts_have_their_share_and_are_walks():
    plans = [burst_plan(1000, 0.25, np.random.default_rng(k)) for k in range(300)]
    assert np.mean([taken.mean() for taken, _ in plans]) == pytest.approx(0.25, abs=0.02)
    taken, walk = plans[0]
    inside = taken[1:] & taken[:-1]
    steps = np.diff(walk[:, 0])[inside & (np.abs(walk[:-1, 0]) < 0.4)]
    assert steps.std() == pytest.approx(np.sqrt(1 / 50), rel=0.25)


@pytest.mark.parametrize(
    "size, tolerance", [((96, 96), 0), ((64, 64), 0), ((40, 100), 1), ((200, 150), 1)]
)
def test_frames_are_resampled_as_pillow_does(size, tolerance):
    frames = np.random.default_rng(0).integers(0, 256, (3, *size, 3), dtype=np.uint8)
    got = to_64(torch.from_numpy(frames)).numpy()
    for frame, g in zip(frames, got, strict=True):
        want = np.asarray(Image.fromarray(frame).resize((64, 64), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(g.astype(int), want.astype(int), atol=tolerance, rtol=0)


def test_frames_must_be_uint8_rgb():
    for bad in (torch.zeros(2, 64, 64, 3), torch.zeros(2, 64, 64, 4, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            to_64(bad)


def test_pixels_to_unit_puts_channels_first():
    frames = torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    frames[0, 10, 20, 2] = 255
    x = pixels_to_unit(frames)
    assert x.shape == (1, 3, 64, 64) and x[0, 2, 10, 20] == 1 and x.sum() == 1


def test_foreign_data_set(tmp_path):
    """96x96 frames, one action more than frames, float64 and int arrays, deep sub-folders."""
    generator = np.random.default_rng(0)
    frames = generator.integers(0, 256, (45, 96, 96, 3), dtype=np.uint8)
    actions = generator.uniform(-1, 1, (46, 3))
    rewards = generator.standard_normal(45)
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    np.savez(
        folder / "x.npz",
        observations=frames,
        actions=actions,
        rewards=rewards,
        terminals=np.zeros(45, np.int64),
    )
    (file,) = list_episodes(tmp_path)
    assert file.name == "deep/er/x.npz" and file.length == 45
    episode = read_episode(file.path)
    np.testing.assert_array_equal(episode.observations, to_64(torch.from_numpy(frames)).numpy())
    np.testing.assert_array_equal(episode.actions, actions[:45].astype(np.float32))
    assert episode.terminals.dtype == bool and episode.rewards.dtype == np.float32


def test_split_is_deterministic_by_episode_and_holds_out_a_tenth(tmp_path):
    files = list_episodes(write_dataset(tmp_path, [3] * 40))
    train, test = split_episodes(files)
    assert len(test) == 4 and len(train) == 36
    assert {f.name for f in train} | {f.name for f in test} == {f.name for f in files}
    again = split_episodes(files[::-1])
    assert {f.name for f in again[1]} == {f.name for f in test}
    # What was held out from a smaller set is held out from a larger one.
    for n in range(2, 40):
        fewer = {f.name for f in split_episodes(files[:n])[1]}
        expected = {f.name for f in files[:n]} & {f.name for f in test}
        if 0 < len(expected) < n:
            assert fewer == expected
        else:  # all on one side: then a tenth of them
            assert len(fewer) == max(1, n // 10)
    with pytest.raises(UserError, match="at least two"):
        split_episodes(files[:1])


def test_every_frame_comes_once_an_epoch_whatever_the_buffer(tmp_path):
    lengths = [13, 7, 21, 5, 17]
    write_dataset(tmp_path, lengths)
    files = list_episodes(tmp_path)
    everything = sorted(
        frame.tobytes() for file in files for frame in read_episode(file.path).observations
    )
    for buffer_frames in (2, 30, 60, 1000):
        loader = FrameLoader(files, 8, CPU, shuffle=True, buffer_bytes=buffer_frames * FRAME_BYTES)
        assert len(loader) == sum(lengths)
        orders = []
        for epoch in range(2):
            batches = list(loader.epoch(np.random.default_rng(epoch)))
            assert [len(b) for b in batches] == [8] * 7 + [7]
            frames = [frame.tobytes() for frame in torch.cat(batches).numpy()]
            assert sorted(frames) == everything
            orders.append(frames)
        assert orders[0] != orders[1]
        again = torch.cat(list(loader.epoch(np.random.default_rng(1)))).numpy()
        assert [frame.tobytes() for frame in again] == orders[1]


def test_buffer_is_never_larger_than_stated(tmp_path, monkeypatch):
    write_dataset(tmp_path, [10] * 12)
    files = list_episodes(tmp_path)
    loader = FrameLoader(files, 4, CPU, shuffle=True, buffer_bytes=60 * FRAME_BYTES)
    sizes = []
    read = loader._read
    monkeypatch.setattr(loader, "_read", lambda chunk: sizes.append(len(f := read(chunk))) or f)
    list(loader.epoch(np.random.default_rng(0)))
    # Two of these lie in memory at a time: the half in use and the half that is read.
    assert sizes == [30, 30, 30, 30]


def numbered_latents(length, first):
    """An episode whose every value is the number of its frame."""
    t = np.arange(first, first + length, dtype=np.float32)
    return LatentEpisode(
        np.tile(t[:, None], (1, 32)),
        np.zeros((length, 32), np.float32),
        np.tile(t[:, None], (1, 3)),
        t,
        t == 49,
    )


class InMemory(NamedTuple):
    """What a loader asks of `Latents`, without a file."""

    length: int
    first: int

    def read(self):
        return numbered_latents(self.length, self.first)


def test_windows_pair_each_latent_with_the_next_action_reward_and_latent():
    episodes = [InMemory(50, 0), InMemory(9, 1000), InMemory(33, 2000)]
    loader = WindowLoader(episodes, 2, 8, CPU, shuffle=True)
    seen, windows, sizes = set(), 0, []
    for batch in map(loader.look_up, loader.rows(np.random.default_rng(0))):
        frames = batch["mu"][..., 0]
        assert batch["mu"].shape == batch["logsigma"].shape == (9, frames.shape[1], 32)
        assert (frames[1:] == frames[:-1] + 1).all()  # a window is of one episode, without gaps
        now, after = frames[:-1], frames[1:]
        assert batch["actions"].shape == (8, frames.shape[1], 3)
        assert (batch["actions"] == after[..., None]).all()
        assert (batch["rewards"] == after).all() and not batch["logsigma"].any()
        assert (batch["terminals"] == (after == 49)).all()
        seen |= set(now.flatten().tolist())
        windows += now.shape[1]
        sizes.append(now.shape[1])
    assert windows == 7 + 1 + 4 and sum(sizes) == windows and set(sizes) == {2}
    assert {0, 48, 1000, 1007, 2000, 2031} <= seen  # both ends of each episode


def test_unshuffled_windows_cover_every_transition_and_the_last_batch_counts():
    episodes = [InMemory(50, 0), InMemory(33, 2000)]
    loader = WindowLoader(episodes, 4, 8, CPU, shuffle=False)
    rows = loader.rows(np.random.default_rng(0))
    batches = [loader.look_up(r)["mu"][:-1, :, 0] for r in rows]
    assert [b.shape[1] for b in batches] == [4, 4, 3]
    seen = set(torch.cat([b.flatten() for b in batches]).tolist())
    assert seen == set(range(49)) | set(range(2000, 2032))
    with pytest.raises(UserError, match="--seq-len 50"):
        WindowLoader(episodes, 4, 50, CPU, shuffle=False)


def test_latents_are_encoded_once_and_tied_to_the_weights(dataset, tmp_path, capsys):
    files = list_episodes(dataset)
    torch.manual_seed(0)
    encoder = Encoder()

    def encode(which=encoder):
        latents = encode_episodes(files, which, tmp_path, CPU, torch.float32)
        return latents, capsys.readouterr().out

    first, said = encode()
    assert "4 are encoded now" in said
    for file in files:
        episode = read_episode(file.path)
        with torch.no_grad():
            mu, logsigma = encoder(pixels_to_unit(torch.from_numpy(episode.observations)))
        got = first[file.name].read()
        np.testing.assert_allclose(got.mu, mu.numpy(), atol=1e-5)
        np.testing.assert_allclose(got.logsigma, logsigma.numpy(), atol=1e-5)
        np.testing.assert_array_equal(got.actions, episode.actions)

    mu = first[files[0].name].read().mu
    again, said = encode()
    assert "all 4 episodes" in said
    np.testing.assert_array_equal(again[files[0].name].read().mu, mu)

    write_episode(files[1].path, make_episode(44, seed=9))  # another episode of the same name
    changed, said = encode()
    assert "1 are encoded now" in said and len(changed[files[1].name].read().mu) == 44
    files = list_episodes(dataset)

    (tmp_path / "latents" / ".DS_Store").touch()  # of a file manager, not ours to remove
    other, said = encode(Encoder())
    assert "another VAE" in said and "4 are encoded now" in said
    assert not np.allclose(other[files[0].name].read().mu, mu)


def test_frames_take_a_third_of_a_gpus_free_memory_at_most(monkeypatch, dataset):
    files = list_episodes(dataset)
    whole = sum(file.length for file in files) * FRAME_BYTES
    for free, fits in ((3 * whole + 3, True), (3 * whole - 3, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 2 * free))
        loader = FrameLoader(files, 4, torch.device("cuda"), shuffle=True)
        assert loader.fits == fits and 2 * loader.half <= free // 3


@pytest.mark.parametrize("precision", [torch.float32, fast_precision(CPU)])
def test_encoding_leaves_the_encoder_alone(precision, dataset, tmp_path):
    encoder = Encoder()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    encode_episodes(list_episodes(dataset), encoder, tmp_path, CPU, precision)
    # It stays trainable, and its weights must not go through bfloat16 and back.
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, before[name])


def bad_arrays(**changes):
    arrays = make_episode(12)._asdict() | changes
    return {key: value for key, value in arrays.items() if value is not None}


BAD = {
    "no key": (bad_arrays(rewards=None), "rewards"),
    "too few rewards": (bad_arrays(rewards=np.zeros(11, np.float32)), "11 rewards"),
    "too few actions": (bad_arrays(actions=np.zeros((11, 3), np.float32)), "11 actions"),
    "float frames": (bad_arrays(observations=np.zeros((12, 64, 64, 3))), "uint8"),
    "grey frames": (bad_arrays(observations=np.zeros((12, 64, 64), np.uint8)), "uint8"),
    "objects": (bad_arrays(rewards=np.array([None] * 12)), "object"),
    "NaN": (bad_arrays(rewards=np.full(12, np.nan, np.float32)), "NaN"),
    "no frames": (Episode(*(array[:0] for array in make_episode(1)))._asdict(), "no frames"),
}


@pytest.mark.parametrize("arrays, reason", BAD.values(), ids=BAD.keys())
def test_unusable_episodes_say_why(tmp_path, arrays, reason):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(BadEpisode, match=f"(?i){reason}"):
        read_episode(tmp_path / "bad.npz")


def test_no_damage_of_a_file_changes_what_is_read(tmp_path):
    path, rng = tmp_path / "e.npz", np.random.default_rng(0)
    episode = make_episode(12)
    write_episode(path, episode)
    whole = path.read_bytes()
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            got = read_episode(path)
        except BadEpisode:
            refused += 1
        else:  # a bit that means nothing: a date, say
            for array, original in zip(got, episode, strict=True):
                np.testing.assert_array_equal(array, original)
    assert refused > 200  # most of a file are frames


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_any_layout_are_read_as_numpy_reads_them(tmp_path, save):
    episode = make_episode(12)
    save(
        tmp_path / "e.npz",
        observations=np.asfortranarray(episode.observations),
        actions=np.asfortranarray(episode.actions.astype(">f8")),
        rewards=episode.rewards.astype(np.float16),
        terminals=episode.terminals.astype(np.int64),
        another=np.zeros(3),
    )
    got = read_episode(tmp_path / "e.npz")
    with np.load(tmp_path / "e.npz") as npz:
        for key, array in got._asdict().items():
            np.testing.assert_array_equal(array, npz[key], err_msg=key)


def test_unusable_files_are_skipped_with_one_warning_that_names_them(tmp_path):
    write_dataset(tmp_path, [5, 6])
    (tmp_path / "text.npz").write_text("not a zip")
    whole = (tmp_path / "thread_0" / "rollout_0.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match=r"skipped 2 .*half\.npz.*text\.npz") as warned:
        assert len(list_episodes(tmp_path)) == 2
    assert len(warned) == 1
