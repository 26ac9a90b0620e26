"""Show what a data set holds, and what V, M and C make of it, in one HTML file.

    python examine_data.py --rootdir datasets/carracing --logdir exp_dir

The file needs nothing else. Without --logdir it shows the episodes alone; what is not trained yet
is left out, and it says so.
"""

import html
from argparse import Namespace
from pathlib import Path

import numpy as np
import torch

from data.ahead import Window, replay
from data.episodes import BadEpisode, EpisodeFile, find_episodes, read_episode, read_signals
from models.logdir import hidden_size, load_vae, stage_weights
from models.mdrnn import MDRNN, draw_latent
from models.starts import WARM_UP
from models.vae import VAE
from utils import page, paper
from utils.checkpoint import load_checkpoint, load_weights
from utils.cli import UserError, add_rootdir, add_seed, run_script, script_parser
from utils.files import atomic_write
from utils.frames import pixels_to_unit, unit_to_pixels

FRAMES = 24  # that are shown beside their reconstructions
SWEEP = np.linspace(-3, 3, 9)  # values of a latent dimension
DREAMT = 250  # steps of the dream that is shown


def parse_arguments() -> Namespace:
    parser = script_parser("Show a data set, and what V, M and C make of it, in one HTML file.")
    add_rootdir(parser)
    parser.add_argument("--logdir", type=Path, help="the experiment, if there is one")
    parser.add_argument("--to", type=Path, default=Path("data.html"), help="the file to write")
    add_seed(parser, "which frames and which episode are shown, and of the dream")
    return parser.parse_args()


def episodes(files: list[EpisodeFile], bad: list[tuple[str, str]]) -> str:
    """Lengths, returns and actions, and which files are damaged."""
    signals, damaged = [], list(bad)
    for file in files:
        try:
            signals.append(read_signals(file))
        except BadEpisode as reason:
            damaged.append((file.name, str(reason)))
    lengths = np.array([len(rewards) for _, rewards, _ in signals])
    returns = np.array([rewards.sum() for _, rewards, _ in signals])
    ended = sum(bool(terminals.any()) for *_, terminals in signals)
    actions = np.concatenate([actions for actions, *_ in signals])
    parts = [
        f"<p>{len(signals)} episodes, {lengths.sum():,} frames; return {returns.mean():.1f} +- "
        f"{returns.std():.1f}, from {returns.min():.1f} to {returns.max():.1f}; {ended} ended by "
        "themselves, the others by a limit.</p>",
        page.histogram(lengths, "lengths, in frames of 1/50 s"),
        page.histogram(returns, "returns"),
    ]
    for k, name in enumerate(("steering, left to right", "gas", "brake")):
        parts.append(page.histogram(actions[:, k], name))
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(why)}</td></tr>" for name, why in damaged
    )
    parts.append(f"<p>{len(damaged)} damaged files.</p><table>{rows}</table>")
    return "".join(parts)


def grid(rows: list[np.ndarray]) -> np.ndarray:
    """Rows of frames (n, 64, 64, 3) uint8 as one picture."""
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows])


def some_frames(files: list[EpisodeFile], generator: np.random.Generator) -> np.ndarray:
    """FRAMES frames of as many episodes, (FRAMES, 64, 64, 3) uint8."""
    frames = []
    for i in generator.integers(len(files), size=FRAMES):
        try:
            observations = read_episode(files[i].path).observations
        except BadEpisode:
            continue  # one of those that are damaged behind their headers: others are enough
        frames.append(observations[generator.integers(len(observations))])
    if not frames:
        raise UserError("none of the episodes that were drawn can be read; try another --seed")
    return np.stack(frames)


def decoded(vae: VAE, z: torch.Tensor) -> np.ndarray:
    """Latents (n, 32) -> frames (n, 64, 64, 3) uint8."""
    return unit_to_pixels(vae.decoder(z)).numpy()


def reconstructions(vae: VAE, frames: np.ndarray) -> str:
    mu = vae.encoder.mean(pixels_to_unit(torch.from_numpy(frames)))
    kept, half = decoded(vae, mu), len(frames) // 2
    rows = [frames[:half], kept[:half], frames[half : 2 * half], kept[half : 2 * half]]
    error = np.square(frames / 255 - kept / 255).sum(axis=(1, 2, 3)).mean()
    caption = f"frames, below each what V keeps of it; squared error {error:.1f} a frame"
    return page.picture(grid(rows), caption)


def sweeps(vae: VAE, frames: np.ndarray) -> str:
    """Each dimension of one frame's z from -3 to 3."""
    mu = vae.encoder.mean(pixels_to_unit(torch.from_numpy(frames)))
    z = mu[:1].repeat(len(SWEEP), 1)
    rows = []
    for dimension in range(vae.latent_size):
        changed = z.clone()
        changed[:, dimension] = torch.from_numpy(SWEEP).float()
        rows.append(decoded(vae, changed)[:, ::2, ::2])
    half = -(-len(rows) // 2)
    blank = np.full_like(rows[0], 255)
    columns = [
        np.concatenate([left, blank[:1], right])
        for left, right in zip(rows[:half], [*rows[half:], blank][:half], strict=True)
    ]
    used = int((mu.std(0) > 0.1).sum())
    return page.picture(
        grid(columns),
        f"each of the {vae.latent_size} dimensions from {SWEEP[0]:g} to {SWEEP[-1]:g}, the others "
        f"as in one frame, in two columns; mu varies by more than 0.1 in {used} of them here",
    )


def beside_its_dream(
    vae: VAE, mdrnn: MDRNN, files: list[EpisodeFile], generator: np.random.Generator
) -> str:
    """A real episode, what V keeps of it, and M's dream under the same actions."""
    long = [file for file in files if file.length > WARM_UP + 25]
    if not long:
        return page.note(f"no episode is longer than {WARM_UP + 25} frames")
    file = max((long[i] for i in generator.integers(len(long), size=8)), key=lambda f: f.length)
    episode = read_episode(file.path)
    end = min(len(episode.observations), WARM_UP + DREAMT)
    frames = episode.observations[:end]
    mu = vae.encoder.mean(pixels_to_unit(torch.from_numpy(frames)))
    window = Window(
        mu[:, None],
        torch.from_numpy(episode.actions[:end, None]),
        torch.from_numpy(episode.rewards[:end, None]),
    )
    noise = torch.Generator().manual_seed(int(generator.integers(2**31)))

    def draw(prediction) -> torch.Tensor:
        normal = torch.randn(1, vae.latent_size, generator=noise)
        return draw_latent(prediction, 1.0, torch.rand(1, generator=noise), normal)

    latents, _ = replay(mdrnn, window, draw)
    panels = [frames[WARM_UP:], decoded(vae, mu[WARM_UP:]), decoded(vae, latents[:, 0])]
    both = np.concatenate(panels, axis=2).repeat(4, axis=1).repeat(4, axis=2)
    caption = (
        f"{file.name} from frame {WARM_UP} on: real, what V keeps of it, and what M dreams at "
        "temperature 1 under the same actions"
    )
    return page.video(both, 50, caption)


def learning_curve(path: Path) -> str:
    state = load_checkpoint(path).get("state", {})
    if not state.get("history"):
        return page.note(f"{path} has no history of generations")
    history, evaluations = np.array(state["history"]), np.array(state["evaluations"])
    series = {"population mean": (history[:, 1], history[:, 3])}
    if len(evaluations):
        series["mean of the distribution, on evaluation tracks"] = evaluations[:, [1, 3]].T
    series["the paper's population mean"] = (paper.CURVE[:, 0] * paper.STEPS, paper.CURVE[:, 1])
    return page.curves(series, "environment steps", "return while C was trained")


@torch.inference_mode()
def of_models(args: Namespace, files: list[EpisodeFile]) -> dict[str, str]:
    """The sections about V, M and C, as far as they are there."""
    generator = np.random.default_rng(args.seed)
    vae = load_vae(args.logdir).eval()
    frames = some_frames(files, generator)
    sections = {
        "What V keeps": reconstructions(vae, frames),
        "What the latent dimensions mean": sweeps(vae, frames),
    }
    if (args.logdir / "mdrnn" / "best.tar").exists():
        mdrnn = MDRNN(vae.latent_size, hidden_size=hidden_size(args.logdir)).eval()
        load_weights(mdrnn, stage_weights(args.logdir, "mdrnn"))
        dream = beside_its_dream(vae, mdrnn, files, generator)
    else:
        dream = page.note("M is not trained yet")
    sections["An episode beside its dream"] = dream
    path = args.logdir / "ctrl" / "checkpoint.tar"
    sections["How C learned"] = (
        learning_curve(path) if path.exists() else page.note(f"there is no {path}")
    )
    return sections


def main() -> None:
    args = parse_arguments()
    files, bad = find_episodes(args.rootdir)
    sections = {f"Episodes in {args.rootdir}": episodes(files, bad)}
    if args.logdir is not None:
        sections |= of_models(args, files)
    with atomic_write(args.to) as file:
        file.write(page.page("CarRacing: data and models", sections).encode())
    size = args.to.stat().st_size / 1e6
    print(f"{args.to}: {len(files)} episodes, {len(bad)} damaged ones, {size:.1f} MB")


if __name__ == "__main__":
    run_script(main)
