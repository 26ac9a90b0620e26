"""What a logdir holds: the weights of V, M and C, how C drives, and which models it drives with."""

import hashlib
import json
import platform
import shlex
import sys
import time
from argparse import Namespace
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from models.agent import Agent
from models.controller import Controller
from models.mdrnn import HIDDEN_SIZE, MDRNN
from models.vae import LATENT_SIZE, VAE, Encoder
from utils.checkpoint import load_checkpoint, load_weights
from utils.cli import UserError
from utils.files import atomic_write

# What a result depends on, by the names that pip has.
PACKAGES = ("torch", "numpy", "gymnasium", "cma")

# The script that makes each stage's `best.tar`.
SCRIPTS = {"vae": "trainvae.py", "mdrnn": "trainmdrnn.py", "ctrl": "traincontroller.py"}


class Driving(NamedTuple):
    """What a controller is trained with, beyond the weights of V and M."""

    memory: str = "trained"  # M's LSTM; or "random", with random weights; or "none": z alone
    memory_seed: int = 0  # of the random weights
    actions: str = "clip"  # raw actions clipped to the box; or "squash": tanh and sigmoid
    latent_size: int = LATENT_SIZE
    hidden_size: int = HIDDEN_SIZE  # of the memory, if there is one


DEFAULT = Driving()


def stage_weights(logdir: Path, stage: str) -> Path:
    """The path of an earlier stage's `best.tar`.

    Raises UserError that names the stage's command where it is missing.
    """
    path = logdir / stage / "best.tar"
    if not path.exists():
        option = " --dream" if stage == "dream" else ""
        script = SCRIPTS["ctrl" if stage == "dream" else stage]
        raise UserError(
            f"{path} does not exist; run `python {script} --logdir {logdir}{option}` first"
        )
    return path


def stored_size(path: Path, name: str, usual: int) -> int:
    """The last dimension of the weights `name` in a checkpoint.

    `usual` where they are not there: loading them will say what is wrong.
    """
    weights = load_checkpoint(path).get("state_dict")
    tensor = weights.get(name) if isinstance(weights, dict) else None
    return tensor.shape[-1] if isinstance(tensor, torch.Tensor) and tensor.ndim else usual


def latent_size(logdir: Path) -> int:
    """Of the V in a logdir. Raises UserError where there is none."""
    return stored_size(stage_weights(logdir, "vae"), "encoder.fc_mu.bias", LATENT_SIZE)


def hidden_size(logdir: Path) -> int:
    """Of the M in a logdir. Raises UserError where there is none."""
    return stored_size(stage_weights(logdir, "mdrnn"), "rnn.weight_hh_l0", HIDDEN_SIZE)


def driving_with(
    logdir: Path, memory: str = "trained", memory_seed: int = 0, actions: str = "clip"
) -> Driving:
    """How a new controller drives with the V and M of a logdir.

    Raises UserError where one that it needs is missing.
    """
    latents = latent_size(logdir)
    hidden = hidden_size(logdir) if memory == "trained" else HIDDEN_SIZE
    return Driving(memory, memory_seed, actions, latents, hidden)


def load_vae(logdir: Path) -> VAE:
    """V of an experiment, whatever its latent size. Raises UserError where it is missing."""
    vae = VAE(latent_size(logdir))
    load_weights(vae, stage_weights(logdir, "vae"))
    return vae


def load_models(logdir: Path, driving: Driving = DEFAULT) -> tuple[Encoder, MDRNN | None]:
    """V's encoder and M of an experiment, or what `driving` has in M's place.

    Raises UserError where a stage that is needed is missing or is of another model.
    """
    latents, hidden = driving.latent_size, driving.hidden_size
    check_size(logdir, "V", "latent-size", latent_size(logdir), latents)
    encoder, mdrnn = Encoder(latents), None
    load_weights(encoder, stage_weights(logdir, "vae"), part="encoder.")
    if driving.memory == "trained":
        check_size(logdir, "M", "hidden-size", hidden_size(logdir), hidden)
        mdrnn = MDRNN(latents, hidden_size=hidden)
        load_weights(mdrnn, stage_weights(logdir, "mdrnn"))
    elif driving.memory == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(driving.memory_seed)
            mdrnn = MDRNN(latents, hidden_size=hidden)
    return encoder, mdrnn


def load_dreamer(logdir: Path) -> MDRNN:
    """The M of an experiment for dreams. Raises UserError where it has not learned rewards."""
    path = stage_weights(logdir, "mdrnn")
    state = load_checkpoint(path)
    heads = state.get("heads", state.get("about", {}).get("heads", "latents"))
    if "rewards" not in heads:
        raise UserError(
            f"{path}: this M has learned {heads} and no rewards, without which there is no dream; "
            f"run `python trainmdrnn.py --logdir {logdir} --include_reward --noreload`"
        )
    mdrnn = MDRNN(latent_size(logdir), hidden_size=hidden_size(logdir))
    load_weights(mdrnn, path)
    return mdrnn


def check_size(logdir: Path, model: str, name: str, there: int, wanted: int) -> None:
    """Raise UserError where V or M is not of the size that the controller was trained with."""
    if there != wanted:
        raise UserError(
            f"{logdir}: its {model} has --{name} {there}, but the controller was trained with "
            f"{wanted}; put back the {model} of that size, or train another controller"
        )


def weights_digest(*modules: nn.Module) -> str:
    """A fingerprint of the modules' weights, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def models_digest(encoder: Encoder, mdrnn: MDRNN | None) -> str:
    """A fingerprint of the weights behind a controller, 16 hexadecimal digits."""
    return weights_digest(encoder, *([] if mdrnn is None else [mdrnn.rnn]))[:16]


def agent_digest(logdir: Path, driving: Driving = DEFAULT) -> str:
    """`models_digest` of what is on disk now; raises as `load_models` does."""
    return models_digest(*load_models(logdir, driving))


def load_agent(
    logdir: Path,
    device: torch.device,
    precision: torch.dtype,
    driving: Driving = DEFAULT,
    models: str | None = None,
) -> Agent:
    """V's encoder and M of an experiment as an Agent.

    Raises as `load_models` does, and where `models` is the fingerprint of others.
    """
    encoder, mdrnn = load_models(logdir, driving)
    if models is not None and models_digest(encoder, mdrnn) != models:
        raise UserError(
            f"V or M in {logdir} changed since the start of this script; what was saved before is "
            "kept. Put them back, or begin again"
        )
    return Agent(encoder, mdrnn, device, precision, squash=driving.actions == "squash")


def new_controller(driving: Driving) -> Controller:
    """A controller of the size that `driving` needs."""
    return Controller(driving.latent_size, 0 if driving.memory == "none" else driving.hidden_size)


def load_controller(path: Path) -> tuple[Controller, Driving, dict]:
    """The controller at `path`, how it drives, and the checkpoint.

    Raises UserError where it is missing or is of another model.
    """
    state = load_checkpoint(path)
    try:
        driving = Driving(**state.get("driving", {}))
        if driving.memory == "untrained":  # the name that earlier versions gave it
            driving = driving._replace(memory="random")
    except TypeError:
        raise UserError(f"{path} was written by another version of this program") from None
    controller = new_controller(driving)
    load_weights(controller, path)
    return controller, driving, state


def load_search(path: Path) -> dict:
    """The checkpoint of a controller training at `path`, also of an earlier version.

    Raises UserError where it is none, or none that can go on.
    """
    stored = load_checkpoint(path)
    if "cma" not in stored:
        raise UserError(f"{path} is not a controller training; use --noreload")
    options = stored["options"]
    if options.pop("diagonal", False):
        raise UserError(
            f"{path}: begun with --diagonal, which is gone, for it drove worse; use --noreload"
        )
    memory = "random" if options.pop("untrained-mdrnn", False) else "trained"
    options.setdefault("memory", "none" if options.pop("no-mdrnn", False) else memory)
    stored["cma"].setdefault("average", stored["state"].get("average"))
    if options.get("simulator") == "envpool":
        print(
            f"{path}: begun on EnvPool, which is no longer used; it goes on, with all it has, on "
            "Gymnasium's CarRacing"
        )
    return stored


def stage_controller(
    logdir: Path, stage: str, last: bool = False
) -> tuple[Path, Controller, Driving, dict]:
    """The best controller of a stage, or the mean of its last generation, and where it is kept.

    Beside it, as `load_controller` gives them, how it drives and what else is known of it. Raises
    UserError where it is missing.
    """
    if not last:
        path = stage_weights(logdir, stage)
        return path, *load_controller(path)
    path = logdir / stage / "checkpoint.tar"
    if not path.exists():
        best = stage_weights(logdir, stage)  # name the command where that is missing as well
        raise UserError(f"{path} does not exist, only {best}; leave out --last")
    stored = load_search(path)
    options, search = stored["options"], stored["cma"]
    memory_seed = options["seed"] if options["memory"] == "random" else 0
    driving = driving_with(logdir, options["memory"], memory_seed, options.get("actions", "clip"))
    mean = search["es"]["mean"]
    if "basis" in search:
        mean = search.get("offset", 0) + mean @ search["basis"]
    controller = new_controller(driving)
    controller.load_flat(mean.float())
    about = {"epoch": stored["state"]["generation"], "conditions": {"models": stored["models"]}}
    return path, controller, driving, about


def versions() -> dict[str, str]:
    """Of Python and of what results depend on."""
    packages = {name: metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **packages}


def write_config(folder: Path, args: Namespace, data: dict[str, str] | None = None) -> None:
    """Note in a stage's `config.json` how its latest run was called: for who reads the results.

    Nothing here reads it. `data` describes the episodes.
    """
    config = {
        "command": shlex.join(["python", *sys.argv]),
        "options": {name: _plain(value) for name, value in sorted(vars(args).items())},
        "data": data,
        "versions": versions(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    with atomic_write(folder / "config.json") as file:
        file.write((json.dumps(config, indent=2) + "\n").encode())


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
