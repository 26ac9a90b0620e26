"""What one person plays: the dream, the real track, or both from the same frame."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from envs.simulated_carracing import Dream, Dreaming, World
from envs.simulator import Simulator
from envs.tracks import track_seeds
from models.agent import Agent
from models.mdrnn import Prediction

STEPS_PER_SECOND = 50  # of CarRacing
STEERING_STEP = 0.1  # of a hand, which turns the wheel from straight to full in a fifth of a second
HOLD = STEPS_PER_SECOND  # steps for which an end is shown, before the next beginning
VIEWS = ("dream", "real", "both")

ONLY = np.arange(1)


class Driver(NamedTuple):
    """The trained controller, which takes the wheel when it is asked to."""

    agent: Agent
    parameters: Tensor | None  # (P,)
    missing: str = ""  # why there is none

    def act(self, z: Tensor, h: Tensor) -> np.ndarray:
        """z (1, 32) and h (1, 256) -> the action (3,)."""
        if self.agent.mdrnn is None:
            h = h[:, :0]
        return self.agent.act(self.parameters[None], z, h)[0].numpy()


class Side:
    """One of the two worlds, with M's state of it: z (1, 32), h and c (1, 256)."""

    def __init__(self, world: World):
        self.world = world
        self.prediction: Prediction | None = None  # M's of the last step, before it was seen

    def _begin(self, frame: np.ndarray) -> None:
        self.frame = frame  # (H, W, 3) uint8
        self.steps, self.total, self.reward, self.ended, self.held = 0, 0.0, 0.0, "", 0

    def _count(self, reward: float, ended: str) -> None:
        self.steps += 1
        self.reward, self.total, self.ended = reward, self.total + reward, ended

    def waits(self) -> bool:
        """Whether its end is still to be looked at."""
        self.held += bool(self.ended)
        return 0 < self.held <= HOLD

    def status(self) -> dict:
        """What is shown beside its picture."""
        shown = {
            "steps": self.steps,
            "reward": self.reward,
            "total": self.total,
            "ended": self.ended,
        }
        if self.prediction is not None:
            shown["predicted"] = float(self.prediction.reward[0])
            shown["weights"] = self.prediction.logpi[0].exp().tolist()
            shown["end"] = float(self.prediction.terminal[0].sigmoid())
        return shown


class RealSide(Side):
    """A real track, which M follows."""

    def __init__(self, world: World, agent: Agent):
        super().__init__(world)
        self.agent = agent
        self.simulator: Simulator | None = None

    def reset(self, seed: int) -> None:
        self.close()
        (track,) = track_seeds("data", 1, seed)
        self.simulator = Simulator([track])
        self._begin(self.simulator.reset(ONLY)[0])
        self.z = self._latent()
        self.h = self.c = torch.zeros(1, self.world.mdrnn.hidden_size)
        self.prediction = None

    def step(self, action: np.ndarray) -> None:
        taken = torch.from_numpy(action)[None]
        self.h, self.c = self.world.mdrnn.step(taken, self.z, self.h, self.c)
        self.prediction = self.world.mdrnn.predict(self.h)
        frames, rewards, terminated, truncated = self.simulator.step(ONLY, action[None])
        self.frame = frames[0]
        self.z = self._latent()
        end = "the lap is done, or the field was left" if terminated[0] else ""
        self._count(float(rewards[0]), end or ("the time is up" if truncated[0] else ""))

    def close(self) -> None:
        if self.simulator is not None:
            self.simulator.close()

    def _latent(self) -> Tensor:
        return self.agent.observe(torch.from_numpy(np.ascontiguousarray(self.frame))[None])


class DreamSide(Side):
    """A dream, from a start of its own or from where the real car is."""

    def __init__(self, world: World, dreaming: Dreaming):
        super().__init__(world)
        self.dreaming = dreaming

    def reset(self, seed: int, real: RealSide | None = None) -> None:
        self.dream = Dream(self.world, [seed], self.dreaming)
        if real is None:
            self.dream.reset(ONLY)
            self.prediction = None
        else:
            self.dream.begin(0, real.z[0], real.h[0], real.c[0])
            self.prediction = real.prediction
        self._begin(self.dream.frames(ONLY)[0])

    def step(self, action: np.ndarray) -> None:
        _, rewards, terminated, truncated = self.dream.step(ONLY, action[None])
        self.prediction = Prediction(*(part[:1] for part in self.dream.prediction))
        self.frame = self.dream.frames(ONLY)[0]
        end = "M says that it ends" if terminated[0] else ""
        self._count(float(rewards[0]), end or ("the horizon" if truncated[0] else ""))

    @property
    def z(self) -> Tensor:
        return self.dream.z

    @property
    def h(self) -> Tensor:
        return self.dream.h


class Game:
    """The worlds, the hands and the view of one player.

    `target` is what the hands want, steering, gas and brake; `hands` what they do, because
    nobody turns a wheel at once.
    """

    def __init__(self, world: World, driver: Driver, dreaming: Dreaming, seed: int = 0):
        self.driver, self.seed = driver, seed
        self.dream, self.real = DreamSide(world, dreaming), RealSide(world, driver.agent)
        self.view, self.drives, self.paused = "dream", False, False
        self.target, self.hands = np.zeros(3, np.float32), np.zeros(3, np.float32)
        self.action = self.hands
        self.dream.reset(seed)

    @torch.inference_mode()
    def step(self) -> None:
        """One step of what is in view; an end is shown for a second, before the next beginning."""
        change = np.clip(self.target[0] - self.hands[0], -STEERING_STEP, STEERING_STEP)
        self.hands = np.array([self.hands[0] + change, *self.target[1:]], np.float32)
        leading = self.dream if self.view == "dream" else self.real
        self.action = self.driver.act(leading.z, leading.h) if self.drives else self.hands
        if self.view != "dream":
            if self.real.waits():
                return
            if self.real.ended:
                self._reset()
                return
            self.real.step(self.action)
        if self.view != "real" and not self.dream.waits():
            if self.dream.ended:
                self._dream_on()
            else:
                self.dream.step(self.action)

    def _dream_on(self) -> None:
        """The next dream: from the real car's place, where both are in view."""
        self.seed += 1
        self.dream.reset(self.seed, self.real if self.view == "both" else None)

    @torch.inference_mode()
    def look_at(self, view: str) -> None:
        """Change the view. From the real track to a dream, that begins at what is seen there."""
        if view not in VIEWS:
            raise ValueError(f"there is no view {view!r}; there are {', '.join(VIEWS)}")
        if view != "dream" and self.real.simulator is None:
            self.real.reset(self.seed)
        if view == "both" or (view == "dream" and self.view == "real"):
            self.seed += 1
            self.dream.reset(self.seed, self.real)
        self.view = view

    def switch(self) -> None:
        """From the dream to the real track, and back."""
        self.look_at("real" if self.view == "dream" else "dream")

    def hand_over(self) -> None:
        """Give the wheel to the trained controller, or take it back."""
        if self.driver.parameters is None:
            raise ValueError(self.driver.missing)
        self.drives = not self.drives

    @torch.inference_mode()
    def reset(self) -> None:
        """Another track, another dream."""
        self._reset()

    def _reset(self) -> None:
        self.seed += 1
        if self.view != "dream":
            self.real.reset(self.seed)
        if self.view != "real":
            self.dream.reset(self.seed, self.real if self.view == "both" else None)

    def set_dreaming(self, temperature: float, horizon: int) -> None:
        """Change how it is dreamt, from the next step on."""
        if not (0 < temperature <= 10 and 1 <= horizon <= 100_000):
            raise ValueError("the temperature is in (0, 10], the horizon in 1 to 100000 steps")
        self.dream.dreaming = Dreaming(temperature, horizon)
        self.dream.dream.temperature, self.dream.dream.max_steps = self.dream.dreaming

    def pictures(self) -> dict[str, np.ndarray]:
        """What is in view: frames (64, 64, 3) of dreams, (96, 96, 3) of the real track, uint8."""
        shown = {"real": self.real, "dream": self.dream}
        return {name: side.frame for name, side in shown.items() if self.view in (name, "both")}

    def status(self) -> dict:
        """What is shown beside the pictures."""
        sides = {"real": self.real, "dream": self.dream}
        return {
            "view": self.view,
            "drives": self.drives,
            "paused": self.paused,
            "action": self.action.tolist(),
            "temperature": self.dream.dreaming.temperature,
            "horizon": self.dream.dreaming.horizon,
            **{name: side.status() for name, side in sides.items() if self.view in (name, "both")},
        }

    def close(self) -> None:
        self.real.close()
