"""What the server has imported and computed from which the tests' scripts and workers are forked.

Its processes end an episode after SHORT steps: evaluations drive whole ones, whatever the patience.
"""

import cma  # noqa: F401
import tensorboardX  # noqa: F401
import torch._dynamo  # noqa: F401, the first optimizer imports it
import torchvision  # noqa: F401
from conftest import SHORT

from envs import simulator

simulator.MAX_STEPS = SHORT
simulator.environment()  # compiles what draws, and looks whether it is right

import traincontroller  # noqa: E402, F401, after MAX_STEPS, which others import by name
