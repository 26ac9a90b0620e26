"""The frames are Gymnasium's, to the last bit, or Gymnasium's own code draws them."""

import itertools
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pygame
import pytest
from conftest import ROOT
from gymnasium.envs.box2d.car_racing import CarRacing

from envs import carracing, drawing, driving, simulator
from envs.carracing import DrawnCarRacing, difference
from scripts.compare_frames import compare, ways

WAYS = list(ways(0))


@pytest.mark.parametrize(("seed", "way"), list(enumerate(WAYS, start=100)))
def test_episodes_are_those_of_gymnasium(seed, way):
    """Every pixel, reward and end, each way of driving on a track of its own.

    Whole episodes of the shipped controller; of the others `scripts/compare_frames.py` has them.
    """
    compared = compare((seed, way, simulator.MAX_STEPS if "shipped" in way else 300))
    assert (compared.differing, compared.other) == (0, "")
    # Some leave the field, and the shipped controller finishes its lap.
    assert compared.frames > 150


@pytest.fixture(scope="module")
def env():
    env = DrawnCarRacing()
    env.reset(seed=3)
    return env


def assert_as_gymnasium(env):
    ours, theirs = env._render("state_pixels"), CarRacing._render(env, "state_pixels")
    assert np.array_equal(ours, theirs), np.argwhere((ours != theirs).any(axis=2))


@pytest.mark.parametrize("reward", [0.0, -0.06, -7.5, -100.0, -1234.4, 0.5, 1.5, 999.5, 1234.5])
def test_scores_of_either_sign_and_of_four_digits(env, reward):
    env.reward = reward
    assert_as_gymnasium(env)


@pytest.mark.parametrize("t", [0.0, 0.02, 0.1, 0.3, 0.6, 0.98, 1.0, 7.0])
@pytest.mark.parametrize("quarters", range(-5, 6, 2))
def test_angles_close_to_quarter_turns_at_any_zoom(env, quarters, t):
    env.t = t
    for off in (0.0, 4e-7, -4e-7, 3e-6, 0.01):
        env.car.hull.angle = quarters * np.pi / 2 + off
        assert_as_gymnasium(env)


def test_places_all_over_the_field_and_beyond(env):
    """Where the edge of the field is seen, from both sides, and nothing of it."""
    generator = np.random.default_rng(0)
    env.t = 5.0
    for place in itertools.product((-420, -333, -300, 40, 320, 334, 400), repeat=2):
        env.car.hull.position = place
        env.car.hull.angle = generator.uniform(-7, 7)
        assert_as_gymnasium(env)
    env.car.hull.position = (3000.0, -100.0)  # gfxdraw's 16 bits are full
    assert_as_gymnasium(env)


def test_wheels_and_bars_in_any_position(env):
    """The stripes of a wheel in all its phases, bars of either sign and of no height."""
    generator = np.random.default_rng(1)
    env.car.hull.position = (0.0, 0.0)
    for k in range(40):
        for wheel in env.car.wheels:
            wheel.phase, wheel.omega = (
                generator.uniform(-9, 9),
                generator.normal() * 10.0 ** (k % 4 - 2),
            )
        env.car.hull.angularVelocity = generator.normal() * 10.0 ** (k % 5 - 3)
        env.car.hull.linearVelocity = (generator.normal() * 10.0 ** (k % 4 - 2), 0.0)
        assert_as_gymnasium(env)
    for wheel in env.car.wheels:
        wheel.phase, wheel.omega = np.pi / 2, 1e-4
    env.car.hull.linearVelocity, env.car.hull.angularVelocity = (0.0, 0.0), 0.0
    assert_as_gymnasium(env)


def test_random_scenes(env):
    """Places on the road and off it, at any angle, while zooming in and after it."""
    generator = np.random.default_rng(2)
    for k in range(60):
        env.t = generator.choice([0.2, 0.7, 4.0])
        x, y = env.track[generator.integers(len(env.track))][2:]
        place = (x, y) if k % 2 else generator.uniform(-330, 330, 2).tolist()
        env.car.hull.position, env.car.hull.angle = place, generator.uniform(-4, 4)
        assert_as_gymnasium(env)


def test_where_the_colors_do_not_fit_gymnasium_draws(env, monkeypatch):
    """Too many colors, and too many polygons."""
    scene, frame = env._scene(), np.empty((96, 96, 3), np.uint8)
    slivers = np.array([[0, 0], [600, 40], [600, 44], [0, 4]]) + np.zeros((900, 1, 2))
    slivers[:, :, 1] += np.random.default_rng(3).uniform(-40, 0, (900, 1))
    many = scene._replace(
        corners=slivers,
        centers=slivers.mean(axis=1),
        radii=np.full(900, 1e3),
        colors=np.full((900, 3), 99.0),
        camera=np.array([1.0, 0.0, 1.0, 200.0, 400.0]),
    )
    assert drawing.draw(scene, env._buffers(), frame)
    assert not drawing.draw(many, env._buffers(), frame)
    assert not drawing.draw(
        scene._replace(corners=np.zeros((drawing.POLYGONS + 1, 4, 2))), env._buffers(), frame
    )
    monkeypatch.setattr(carracing, "draw", lambda *_: False)
    assert_as_gymnasium(env)


@pytest.fixture
def unchecked():
    """As in a process that has not looked yet whether the drawing is the same."""
    assert difference() == ""  # all is compiled
    simulator.environment.cache_clear()
    yield
    simulator.environment.cache_clear()


def wrong_pixel(scene, buffers, frame):
    drawn = drawing.draw(scene, buffers, frame)
    frame[40, 50, 1] ^= 1
    return drawn


def broken(scene, buffers, frame):
    raise AttributeError("a later Gymnasium's car has no wheels")


def wordless(scene, buffers, frame):
    raise AssertionError


@pytest.mark.parametrize(
    ("draw", "why"),
    [
        (wrong_pixel, "1 of 9216 pixels differ with pygame"),
        (broken, "car has no wheels"),
        (wordless, "(AssertionError)"),
    ],
)
def test_a_drawing_that_is_not_the_same_is_not_used(draw, why, unchecked, monkeypatch, capsys):
    monkeypatch.setattr(carracing, "draw", draw)
    ours, theirs = simulator.Simulator([5, 6]), CarRacing()
    ids, action = np.array([1]), np.array([0.1, 0.5, 0], np.float32)
    assert np.array_equal(ours.reset(ids)[0], theirs.reset(seed=6)[0])
    assert np.array_equal(ours.step(ids, action[None])[0][0], theirs.step(action)[0])
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "drawn by Gymnasium itself" in said and why in said
    ours.reset(np.array([0]))
    assert not capsys.readouterr().out  # once for a process


def test_a_car_that_drives_otherwise_is_noticed(monkeypatch):
    monkeypatch.setattr(driving, "FRICTION_LIMIT", 401.0)
    assert difference() == "its car drives otherwise"


def test_another_smoothscale_is_noticed(unchecked, capsys):
    backend = pygame.transform.get_smoothscale_backend()
    pygame.transform.set_smoothscale_backend("GENERIC")
    try:
        assert "smoothscale is GENERIC" in difference()
        assert simulator.environment().__name__ == "GymnasiumCarRacing"
    finally:
        pygame.transform.set_smoothscale_backend(backend)
    assert difference() == ""


LOOK = "from envs.simulator import environment; print(environment().__name__, flush=True)"
# A module as `envs/drawing.py` is, which is compiled within a second.
SMALL = """
from utils.compiling import compiled, kept

@compiled
def double(x):
    return 2 * x

@kept
def compute(x):
    return double(x) + 1
"""
COMPUTE = "from envs.small import compute; print(compute(3), flush=True)"
CHILD = f"import subprocess, sys; {COMPUTE}; subprocess.run([sys.executable, '-c', {COMPUTE!r}])"


def look(folder, code=LOOK, **environment):
    """What a new process says that drives with the copy of the project in `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_what_draws_is_compiled_once_for_an_installation():
    """The tests' server has compiled it, in other processes than this one."""
    assert look(ROOT) == ["DrawnCarRacing"]


def test_what_is_compiled_is_kept_beside_its_file_or_for_a_run(tmp_path):
    shutil.copytree(ROOT / "utils", tmp_path / "utils")
    kept = tmp_path / "envs" / "__pycache__"
    kept.parent.mkdir()
    (tmp_path / "envs" / "small.py").write_text(SMALL)
    first, second = look(tmp_path, COMPUTE), look(tmp_path, COMPUTE)
    assert len(first) == 2 and f"kept in {kept}" in first[0]
    assert second == ["7"]
    kept.rename(tmp_path / "before")
    kept.touch()  # no folder can be made there, nor below it
    (tmp_path / "tmp").mkdir()
    nowhere = {"XDG_CACHE_HOME": str(kept)}
    denied = look(tmp_path, CHILD, TMPDIR=str(tmp_path / "tmp"), **nowhere)
    assert len(denied) == 3 and f"kept in {tmp_path / 'tmp' / 'compiled-'}" in denied[0]
    assert denied[1:] == ["7"] * 2  # the second process had nothing to compile
    assert not list((tmp_path / "tmp").iterdir())


def test_without_numba_gymnasium_draws(tmp_path):
    (tmp_path / "numba.py").write_text("raise ImportError('No module named numba')")
    for name in ("envs", "utils"):
        (tmp_path / name).symlink_to(ROOT / name)
    said = look(tmp_path)
    assert len(said) == 2 and "No module named numba" in said[0] and said[1] == "GymnasiumCarRacing"


def test_threads_draw_beside_each_other():
    """As several players do: each thread has what it draws in for itself."""

    def drive(seed):
        env, frames = simulator.environment()(), []
        env.reset(seed=seed)
        for step in range(40):
            env.move(np.array([np.sin(step / 5 + seed), 1.0, 0.0]))
            frames.append(env.frame().copy())
        env.close()
        return np.stack(frames)

    seeds = list(range(4))
    with ThreadPoolExecutor(len(seeds)) as threads:
        together = list(threads.map(drive, seeds))
    for seed, frames in zip(seeds, together, strict=True):
        np.testing.assert_array_equal(frames, drive(seed))
