"""CarRacing as M dreams it (paper, section 4): a batch of dreams, and one as an environment.

    import gymnasium as gym
    import envs.simulated_carracing
    env = gym.make("SimulatedCarRacing-v0", logdir="exp_dir", temperature=1.0)

Needs V and an M that was trained with `--include_reward`. It can be played:

    python -m envs.simulated_carracing --logdir exp_dir
"""

from pathlib import Path
from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from envs.simulator import MAX_STEPS
from models.agent import ACTION_HIGH, ACTION_LOW
from models.logdir import load_dreamer, load_vae, weights_digest
from models.mdrnn import MDRNN, Prediction, draw_latent
from models.starts import Starts, warm_up
from models.vae import Decoder
from utils.cli import run_script
from utils.frames import SIZE, unit_to_pixels
from utils.streams import stream

# What one step can return: a tile is worth 1000 / N, and no track has fewer than 200; leaving the
# field costs 100. A network says more where nothing like it was in its data.
LEAST_REWARD, MOST_REWARD = -100.1, 2 * 1000 / 200

# A product's rows are the same to the last bit whatever is in the other ones, if there are many.
ROWS = 16

NOISE_STEPS = 50  # steps whose noise is drawn together


class Dreaming(NamedTuple):
    """How dreams are dreamt."""

    temperature: float = 1.0
    horizon: int = MAX_STEPS  # steps at most


USUAL = Dreaming()


class World(NamedTuple):
    """What dreams: read once for all dreams of a process."""

    mdrnn: MDRNN
    starts: Starts
    decoder: Decoder


def load_world(logdir: Path) -> World:
    """The world in the logdir's V and M. Raises UserError where M has not learned rewards."""
    mdrnn, vae = load_dreamer(logdir), load_vae(logdir)
    starts = Starts(logdir, weights_digest(vae.encoder))
    return World(mdrnn.eval().requires_grad_(False), starts, vae.decoder.eval())


class Dream:
    """One dream for each seed, with the interface of `envs.simulator.Simulator`.

    The seed of a dream says where it begins and which noise it meets, so the same seed and actions
    give the same dream, whatever else is in the batch. What is observed is z and M's state, [z h]:
    nobody has to step M again. `frames` shows them. A dream ends where M's terminal head says so
    with a chance of more than one half, or after `horizon` steps.
    """

    def __init__(self, world: World, seeds: list[int], dreaming: Dreaming = USUAL):
        self.world, self.seeds = world, seeds
        self.temperature, self.max_steps = dreaming
        n, mdrnn = len(seeds), world.mdrnn
        self.z = torch.zeros(n, mdrnn.latent_size)
        self.h, self.c = torch.zeros(n, mdrnn.hidden_size), torch.zeros(n, mdrnn.hidden_size)
        self.steps = np.zeros(n, np.int64)
        self.noise = np.empty((n, NOISE_STEPS, mdrnn.latent_size + 1), np.float32)
        self.generators: list[np.random.Generator | None] = [None] * n
        self.warm: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # seed -> z, h, c
        self.prediction: Prediction | None = None  # of the last step; its first rows are `ids`

    @torch.inference_mode()
    def reset(self, ids: np.ndarray) -> np.ndarray:
        """Start the dreams `ids` (n,) and return what is observed, [z h] (n, 288) float32."""
        for i in ids.tolist():
            seed = self.seeds[i]
            if seed not in self.warm:
                self.warm[seed] = warm_up(self.world.mdrnn, self.world.starts.draw(seed))
            self.begin(i, *self.warm[seed])
        return self._observed(torch.from_numpy(ids))

    def begin(self, i: int, z: Tensor, h: Tensor, c: Tensor) -> None:
        """Start dream i at z (32,), with M's state h and c (256,), not where its seed says."""
        self.z[i], self.h[i], self.c[i] = z, h, c
        self.steps[i] = 0
        self.generators[i] = stream("dream's noise", self.seeds[i])

    @torch.inference_mode()
    def step(
        self, ids: np.ndarray, actions: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Execute actions (n, 3) float32, clipped to the action box, in the dreams `ids` (n,).

        Returns what is observed (n, 288) float32, rewards (n,) float32, terminated (n,) bool and
        truncated (n,) bool (the horizon).
        """
        n, rows = len(ids), torch.from_numpy(ids)
        padded = torch.cat([rows, rows[:1].expand(-n % ROWS)])
        action = torch.from_numpy(np.asarray(actions, np.float32)).clamp(ACTION_LOW, ACTION_HIGH)
        action = torch.cat([action, action[:1].expand(len(padded) - n, -1)])
        h, c = self.world.mdrnn.step(action, self.z[padded], self.h[padded], self.c[padded])
        self.prediction = prediction = self.world.mdrnn.predict(h)
        noise = torch.from_numpy(self._noise(ids))
        noise = torch.cat([noise, noise[:1].expand(len(padded) - n, -1)])
        z = draw_latent(prediction, self.temperature, noise[:, 0], noise[:, 1:])
        self.z[rows], self.h[rows], self.c[rows] = z[:n], h[:n], c[:n]
        self.steps[ids] += 1
        rewards = prediction.reward[:n].clamp(LEAST_REWARD, MOST_REWARD).numpy()
        terminated = (prediction.terminal[:n] > 0).numpy()
        return self._observed(rows), rewards, terminated, self.steps[ids] >= self.max_steps

    def end(self, ids: np.ndarray) -> None:
        """Say that the dreams `ids` (n,) are dreamt no further."""

    def close(self) -> None:
        """Nothing is held that has to be given back."""

    @torch.inference_mode()
    def frames(self, ids: np.ndarray) -> np.ndarray:
        """What the dreams `ids` (n,) look like, decoded by V: (n, 64, 64, 3) uint8."""
        return unit_to_pixels(self.world.decoder(self.z[torch.from_numpy(ids)])).numpy()

    def picture(self, i: int) -> np.ndarray:
        """What a spectator of dream i sees, (400, 600, 3) uint8, as of the real car."""
        frame = Image.fromarray(self.frames(np.array([i]))[0])
        return np.asarray(frame.resize((600, 400), Image.Resampling.BILINEAR))

    def _observed(self, rows: Tensor) -> np.ndarray:
        return torch.cat([self.z[rows], self.h[rows]], dim=1).numpy()

    def _noise(self, ids: np.ndarray) -> np.ndarray:
        """For each dream a uniform number and a normal one for each latent, (n, 1 + 32) float32."""
        turn = self.steps[ids] % NOISE_STEPS
        for i in ids[turn == 0].tolist():
            generator, own = self.generators[i], self.noise[i]
            own[:, 0] = generator.random(NOISE_STEPS, np.float32)
            own[:, 1:] = generator.standard_normal(own[:, 1:].shape, np.float32)
        return self.noise[ids, turn]


class SimulatedCarRacing(gym.Env):
    """One dream as an environment of Gymnasium, with the actions of CarRacing.

    `observation` is "frame", (64, 64, 3) uint8 as V decodes it, or "latent", [z h] (288,) float32.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012, as Gymnasium has it

    def __init__(
        self,
        logdir: str | Path,
        temperature: float = 1.0,
        observation: str = "frame",
        horizon: int = MAX_STEPS,
        render_mode: str | None = None,
    ):
        if observation not in ("frame", "latent"):
            raise ValueError(f'observation is "frame" or "latent", not {observation!r}')
        if not temperature > 0:
            raise ValueError(f"temperature is more than 0, not {temperature}")
        self.world = load_world(Path(logdir))
        self.dreaming = Dreaming(temperature, horizon)
        self.observation, self.render_mode = observation, render_mode
        self.action_space = gym.spaces.Box(ACTION_LOW.numpy(), ACTION_HIGH.numpy())
        if observation == "frame":
            self.observation_space = gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)
        else:
            size = self.world.mdrnn.latent_size + self.world.mdrnn.hidden_size
            self.observation_space = gym.spaces.Box(-np.inf, np.inf, (size,))
        self.only = np.arange(1)
        self.dream: Dream | None = None

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        own = int(self.np_random.integers(2**31))
        self.dream = Dream(self.world, [own], self.dreaming)
        return self._observed(self.dream.reset(self.only)), {}

    def step(self, action: np.ndarray):
        observed, rewards, terminated, truncated = self.dream.step(
            self.only, np.asarray(action, np.float32)[None]
        )
        return (
            self._observed(observed),
            float(rewards[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            {},
        )

    def render(self) -> np.ndarray | None:
        return self.dream.frames(self.only)[0] if self.render_mode == "rgb_array" else None

    def _observed(self, observed: np.ndarray) -> np.ndarray:
        return self.dream.frames(self.only)[0] if self.observation == "frame" else observed[0]


if __name__ == "__main__":
    # What plays imports this file as a module.
    from envs.player.command import main

    run_script(main)
else:
    gym.register("SimulatedCarRacing-v0", entry_point=SimulatedCarRacing)
