"""Train C, the linear controller, with CMA-ES on real CarRacing.

    python traincontroller.py --logdir exp_dir --n-samples 4 --pop-size 4 \\
        --target-return 950 --display

Needs `logdir/vae/best.tar` and, with a trained M, `logdir/mdrnn/best.tar`. Writes
`logdir/ctrl/best.tar`, the best controller on the evaluation tracks, and
`logdir/ctrl/checkpoint.tar`, the latest generation; the workers' output goes to `logdir/tmp/`.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from envs.parallel import (
    agent_digest,
    load_agent,
    load_controller,
    new_controller,
    run_rollouts,
    start_workers,
)
from envs.rollouts import seen_in_driving
from envs.simulator import Simulator
from envs.tracks import track_seeds
from models.agent import Driving
from models.controller import Controller, even_basis
from models.inference import tell_if_not_packed
from utils.checkpoint import (
    check_options,
    load_checkpoint,
    save_checkpoint,
    set_aside,
)
from utils.cli import (
    UserError,
    add_device,
    add_logdir,
    add_noreload,
    add_seed,
    finite_float,
    natural_int,
    positive_float,
    positive_int,
    run_script,
    script_parser,
)
from utils.cores import available_cores
from utils.curves import Curves
from utils.evolution import Evolution, reliability
from utils.files import exclusive
from utils.learning import choose_device, fast_precision
from utils.workers import STUCK_AFTER, WorkerPool

# Generations in the running average of the distribution's means: all of the first so many, later
# about this share of all so far. Near its end a search walks around the optimum, and the longer the
# average, the nearer it comes (Polyak and Juditsky 1992).
AVERAGE_GENERATIONS, AVERAGE_SHARE = 10, 0.25

# Controllers in an evaluation: see `evaluate`.
CONTENDERS = 3


def population(text: str) -> int:
    """argparse type: what CMA-ES can work with; two candidates of each generation try its step."""
    value = positive_int(text)
    if value < 3:
        raise argparse.ArgumentTypeError(f"CMA-ES needs a population of at least 3, not {text}")
    return value


def parse_arguments() -> argparse.Namespace:
    parser = script_parser("Train C, the linear controller, with CMA-ES.")
    add_logdir(parser)
    parser.add_argument(
        "--n-samples", type=positive_int, default=4, help="rollouts of each candidate"
    )
    parser.add_argument(
        "--pop-size", type=population, default=32, help="candidates in a generation"
    )
    parser.add_argument("--sigma", type=positive_float, default=0.1, help="initial step size")
    parser.add_argument(
        "--target-return",
        type=finite_float,
        default=950,
        help="stop when an evaluation reaches this",
    )
    parser.add_argument(
        "--max-generations",
        type=natural_int,
        default=0,
        help="stop after so many generations in all; 0: only at the target",
    )
    parser.add_argument(
        "--max-steps",
        type=natural_int,
        default=0,
        help="stop after the generation that completes so many environment steps of training in "
        "all; 0: never",
    )
    parser.add_argument(
        "--eval-every", type=positive_int, default=3, help="generations between evaluations"
    )
    parser.add_argument(
        "--eval-rollouts", type=positive_int, default=100, help="tracks of an evaluation"
    )
    parser.add_argument(
        "--max-workers",
        type=positive_int,
        default=available_cores(),
        help="worker processes at most; worker i computes on GPU i modulo the visible GPUs, "
        "and says how much of its memory it holds. One of which nothing is heard for "
        f"{STUCK_AFTER // 60} minutes is killed, and its work done again",
    )
    parser.add_argument(
        "--patience",
        type=natural_int,
        default=0,
        help="in training, end a rollout without a new tile for so many steps and book the rest "
        "of its steps at -0.1 each; 0: never. Evaluations always run in full",
    )
    memory = parser.add_mutually_exclusive_group()
    memory.add_argument(
        "--untrained-mdrnn",
        action="store_const",
        dest="memory",
        const="untrained",
        default="trained",
        help="C sees the hidden state of an M with random weights (drawn from --seed)",
    )
    memory.add_argument(
        "--no-mdrnn",
        action="store_const",
        dest="memory",
        const="none",
        default="trained",
        help="C sees z alone: 99 parameters instead of 867",
    )
    parser.add_argument(
        "--actions",
        choices=["clip", "squash"],
        default="clip",
        help="clip: C's output is clipped to the action box; squash: tanh of the steering, "
        "sigmoid of gas and brake, as in the paper",
    )
    parser.add_argument(
        "--diagonal",
        action="store_true",
        help="CMA-ES with a diagonal covariance: one step size for each parameter, learnt faster "
        "than a full covariance, and from noise as well (docs/experiments.md)",
    )
    parser.add_argument(
        "--max-samples",
        type=natural_int,
        default=0,
        help="let the rollouts of each candidate grow from --n-samples up to so many, one more "
        "after each generation whose differences are mostly noise; 0: never",
    )
    add_seed(parser, "candidates and training tracks")
    parser.add_argument(
        "--refine-from",
        type=natural_int,
        default=0,
        help="from this generation on take steps that change the actions evenly, whatever part of "
        "z and h they use (`even_basis` in models/controller.py): CMA-ES starts anew from the mean "
        "of its distribution; 0: never, or as stored in the checkpoint",
    )
    parser.add_argument(
        "--refine-sigma",
        type=positive_float,
        default=0.4,
        help="step size at --refine-from: the standard deviation of a candidate's actions from "
        "those of the mean",
    )
    parser.add_argument(
        "--refine-screen",
        type=natural_int,
        default=32,
        help="tracks that the mean drives before each generation from --refine-from on; half of "
        "the candidates' tracks are those of them on which it returns least. 0: none",
    )
    add_device(parser)
    parser.add_argument(
        "--display", action="store_true", help="show a progress bar for each generation"
    )
    add_noreload(parser)
    return parser.parse_args()


def load_alike(path: Path, driving: Driving) -> tuple[Controller, dict]:
    """The controller at `path` and its checkpoint. Raises UserError where it drives otherwise."""
    controller, its_driving, state = load_controller(path)
    if its_driving != driving:
        raise UserError(
            f"{path} drives with {its_driving}, not {driving}; use --noreload to start afresh"
        )
    return controller, state


class Judge:
    """Evaluates controllers on fixed tracks and keeps the best one in `best.tar`."""

    def __init__(
        self,
        path: Path,
        pool: WorkerPool,
        tracks: list[int],
        driving: Driving,
        models: str,
    ):
        """`models` is the fingerprint of V and M."""
        self.path, self.pool, self.tracks = path, pool, tracks
        self.driving = driving
        # The conditions under which returns can be compared.
        self.about = {"eval-rollouts": len(tracks), "models": models}
        self.best = -np.inf

    def load(self) -> None:
        """Know the best return so far; what was scored under other conditions is scored again."""
        if not self.path.exists():
            return
        controller, state = load_alike(self.path, self.driving)
        about = dict(state.get("about", {}))
        gymnasium = about.pop("simulator", "gymnasium") == "gymnasium"  # earlier versions had two
        if gymnasium and about == self.about and "reward" in state:
            self.best = float(state["reward"])
            print(f"{self.path}: best return so far {self.best:.1f}")
            return
        print(f"{self.path}: scored under other conditions, evaluating it again", flush=True)
        returns = self.score(controller.flat_parameters().numpy()[None])[0]
        if np.isfinite(returns).all():
            self.save(controller.flat_parameters().numpy(), returns, int(state.get("epoch", 0)))
            print(
                f"{self.path}: {returns.mean():.1f} +- {returns.std():.1f} on {len(self.tracks)} "
                "tracks",
                flush=True,
            )
        else:
            print(f"{self.path}: it returns NaN, so anything is better")

    def score(self, parameters: np.ndarray, bar: tqdm | None = None) -> np.ndarray:
        """Controllers (m, P) -> returns (m, tracks)."""
        progress = bar.update if bar is not None else None
        return run_rollouts(self.pool, parameters, self.tracks, progress)[0]

    def save(self, parameters: np.ndarray, returns: np.ndarray, generation: int) -> None:
        controller = new_controller(self.driving)
        controller.load_flat(torch.from_numpy(parameters.astype(np.float32)))
        self.best = float(returns.mean())
        save_checkpoint(
            self.path,
            {
                "epoch": generation,
                "reward": self.best,
                "state_dict": controller.state_dict(),
                "driving": self.driving._asdict(),
                "about": self.about,
            },
        )


def worst_for_nan(returns: np.ndarray) -> np.ndarray:
    """Fitness (m,): mean returns; a candidate with a NaN return gets the generation's worst."""
    fitness = returns.mean(axis=1)
    bad = ~np.isfinite(fitness)
    if bad.all():
        raise UserError("every candidate's return is NaN: V or M in the logdir are broken")
    if bad.any():
        print(f"{bad.sum()} candidates acted or returned NaN and get the worst fitness")
        fitness[bad] = fitness[~bad].min()
    return fitness


def train(args: argparse.Namespace) -> None:
    """All generations, from the latest one that is stored."""
    device = choose_device(args.device)
    if args.max_samples and args.max_samples < args.n_samples:
        raise UserError(f"--max-samples {args.max_samples} is below --n-samples {args.n_samples}")
    driving = Driving(args.memory, args.seed if args.memory == "untrained" else 0, args.actions)
    models = agent_digest(args.logdir, driving)  # missing stages end here

    folder = args.logdir / "ctrl"
    checkpoint = folder / "checkpoint.tar"
    afresh = args.noreload or not checkpoint.exists()
    stored = None if afresh else load_checkpoint(checkpoint)
    if stored is not None and "cma" not in stored:
        raise UserError(f"{checkpoint} is not a controller training; use --noreload")
    refine_from = args.refine_from
    if stored is not None:  # what a training began with, it goes on with
        refine_from = refine_from or stored["options"].get("refine-from", 0)
    if 0 < args.max_generations < refine_from:
        print(
            f"--max-generations {args.max_generations} comes before --refine-from {refine_from}: "
            "nothing is refined till then"
        )
    if args.noreload:
        set_aside(folder)
    options = {
        "pop-size": args.pop_size,
        "n-samples": args.n_samples,
        "sigma": args.sigma,
        "patience": args.patience,
        "untrained-mdrnn": args.memory == "untrained",
        "no-mdrnn": args.memory == "none",
        "actions": args.actions,
        "diagonal": args.diagonal,
        "max-samples": args.max_samples,
        "seed": args.seed,
    }
    # Unlike the others, these a training may take up in its middle.
    if refine_from:
        options |= {
            "refine-from": refine_from,
            "refine-sigma": args.refine_sigma,
            "refine-screen": args.refine_screen,
        }

    start = np.zeros(new_controller(driving).flat_parameters().numel())
    best = folder / "best.tar"
    if stored is None and best.exists():
        start = load_alike(best, driving)[0].flat_parameters().double().numpy()
        print(f"{best}: the search starts from this controller (with --noreload from zero)")
    evolution = Evolution(start, args.sigma, args.pop_size, args.seed, args.diagonal)
    # What a training goes on from: `champion` is the last generation's best candidate.
    # `average` is the running average of the search distribution's means.
    state = {
        "generation": 0,
        "evaluated": 0,
        "steps": 0,
        "seconds": 0.0,
        "n-samples": args.n_samples,
        "champion": None,
        "average": torch.from_numpy(evolution.mean),
        "history": [],  # (generation, steps, seconds, mean return, best return)
        "evaluations": [],  # (generation, steps, seconds, returns of mean, average, champion)
    }
    if stored is not None:
        check_options(checkpoint, stored["options"], options)
        if stored["models"] != models:
            raise UserError(
                f"{checkpoint}: V or M in {args.logdir} are not those that this controller was "
                "trained with; put them back, or use --noreload to start afresh"
            )
        evolution.load_state_dict(stored["cma"])
        state |= stored["state"]
        generation = state["generation"]
        if "refine-from" not in stored["options"] and 0 < refine_from <= generation:
            raise UserError(
                f"--refine-from {refine_from}: {checkpoint} has {generation} generations without "
                f"it; use {generation + 1} or more, or --noreload to start afresh"
            )
        if stored["options"].get("simulator") == "envpool":
            print(
                f"{checkpoint}: begun on EnvPool, which is no longer used; it goes on, with all it "
                "has, on Gymnasium's CarRacing"
            )
        print(f"{checkpoint}: continuing after generation {generation}")

    # What there is to do at once: a generation with all its rollouts, or an evaluation.
    samples = max(args.n_samples, args.max_samples)
    rollouts = max(args.pop_size * samples, CONTENDERS * args.eval_rollouts)
    curves = Curves(folder / "tensorboard", state["generation"] + 1)
    tell_if_not_packed(device)
    with start_workers(args.logdir, device, args.max_workers, rollouts, models, driving) as pool:
        precision = str(fast_precision(device)).removeprefix("torch.")
        print(f"{len(pool)} workers on {device}, V in {precision}; logs in {args.logdir / 'tmp'}")

        tracks = track_seeds("evaluate", args.eval_rollouts)
        judge = Judge(best, pool, tracks, driving, models)
        judge.load()

        def save() -> None:
            save_checkpoint(
                checkpoint,
                {
                    "cma": evolution.state_dict(),
                    "state": state,
                    "options": options,
                    "models": models,
                },
            )

        while True:
            generation = state["generation"]
            finished = (args.max_generations and generation >= args.max_generations) or (
                args.max_steps and state["steps"] >= args.max_steps
            )
            due = finished or generation % args.eval_every == 0
            if due and state["evaluated"] < generation:
                evaluate(judge, evolution, state, args.display, curves)
                save()
            if judge.best >= args.target_return:
                print(f"target reached: {judge.best:.1f} on {args.eval_rollouts} tracks")
                break
            if finished:
                score = f"best return {judge.best:.1f}" if judge.best > -np.inf else "not evaluated"
                print(f"{folder}: {generation} generations done, {score}")
                break
            if generation + 1 == refine_from:
                refine(evolution, state, driving, models, device, args)
            run_generation(pool, evolution, state, args, curves)
            save()
    curves.close()


def refine(
    evolution: Evolution,
    state: dict,
    driving: Driving,
    models: str,
    device: torch.device,
    args: argparse.Namespace,
) -> None:
    """Go on with steps that change the actions evenly, by what the next candidates would see.

    The steps and the time that this takes are added to those of the training in `state`.
    """
    generation, start = state["generation"] + 1, time.monotonic()
    candidates = torch.from_numpy(evolution.ask(generation))
    agent = load_agent(args.logdir, device, fast_precision(device), driving, models)
    tracks = track_seeds("train", len(candidates), args.seed, generation)
    environments = Simulator(tracks)
    try:
        mean, covariance, steps = seen_in_driving(agent, candidates, environments, args.patience)
    finally:
        environments.close()
    if not covariance.trace() > 0:
        raise UserError(
            f"--refine-from {generation}: z and h are constant or NaN, so V or M in {args.logdir} "
            "are broken; train them again"
        )
    evolution.refine(even_basis(mean, covariance), args.refine_sigma)
    state["steps"] += steps
    state["seconds"] += time.monotonic() - start
    print(
        f"even steps from generation {generation} on (--refine-from); sigma is now of the actions",
        flush=True,
    )


def screen(
    pool: WorkerPool,
    mean: np.ndarray,
    n: int,
    generation: int,
    args: argparse.Namespace,
    curves: Curves,
) -> tuple[list[int], int]:
    """The n tracks of a generation, half of them hard, and the steps it took to find these.

    A good controller leaves the road on one track of ten or twenty, and the candidates around it on
    the same ones. Few generations would show them any of these.
    """
    drawn = track_seeds("train", max(n, args.refine_screen), args.seed, generation)
    returns, lengths = run_rollouts(pool, mean[None], drawn, patience=args.patience)
    print(
        f"screening: the mean returns {returns.mean():.1f} +- {returns.std():.1f} on "
        f"{len(drawn)} tracks, minimum {returns.min():.1f}",
        flush=True,
    )
    curves.add({"return/of_the_mean": returns.mean()}, generation)
    worst = returns[0].argsort().tolist()  # NaN last
    hard, others = worst[: -(-n // 2)], sorted(worst[-(-n // 2) :])
    return [drawn[i] for i in hard + others[: n // 2]], int(lengths.sum())


def run_generation(
    pool: WorkerPool,
    evolution: Evolution,
    state: dict,
    args: argparse.Namespace,
    curves: Curves,
) -> None:
    """Sample, drive, update: one generation of CMA-ES, in place in `evolution` and `state`."""
    generation = state["generation"] + 1
    start = time.monotonic()
    candidates = evolution.ask(generation)
    # The same tracks for all candidates, so that luck with tracks does not choose among them.
    n_samples = state["n-samples"]
    tracks, steps = track_seeds("train", n_samples, args.seed, generation), 0
    if evolution.refined and args.refine_screen:
        tracks, steps = screen(pool, evolution.mean, n_samples, generation, args, curves)
    with tqdm(
        total=args.pop_size * n_samples,
        unit="rollout",
        desc=f"generation {generation}",
        disable=not args.display,
        leave=False,
    ) as bar:
        returns, lengths = run_rollouts(pool, candidates, tracks, bar.update, args.patience)
    fitness = worst_for_nan(returns)
    evolution.tell(fitness)
    seconds = time.monotonic() - start
    steps += int(lengths.sum())
    state["generation"] = generation
    state["steps"] += steps
    state["seconds"] += seconds
    state["champion"] = torch.from_numpy(candidates[fitness.argmax()])
    mean = torch.from_numpy(evolution.mean)
    weight = 1 / min(generation, max(AVERAGE_GENERATIONS, AVERAGE_SHARE * generation))
    state["average"] = (1 - weight) * state["average"] + weight * mean
    if n_samples < args.max_samples and reliability(returns) < 0.5:
        state["n-samples"] += 1
        print(f"candidates differ mostly by chance: {n_samples + 1} rollouts each from now on")
    row = (generation, state["steps"], state["seconds"], fitness.mean(), fitness.max())
    state["history"].append([float(value) for value in row])
    print(
        f"generation {generation}: return mean {fitness.mean():.1f}, best {fitness.max():.1f}, "
        f"worst {fitness.min():.1f}, sigma {evolution.sigma:.4f}, {steps / seconds:.0f} steps/s, "
        f"{seconds:.0f} s",
        flush=True,
    )
    points = {
        "return/mean": fitness.mean(),
        "return/best": fitness.max(),
        "return/worst": fitness.min(),
        "sigma": evolution.sigma,
        "steps_per_second": steps / seconds,
        "steps": state["steps"],
    }
    curves.add(points, generation)


def evaluate(
    judge: Judge, evolution: Evolution, state: dict, display: bool, curves: Curves
) -> None:
    """Score the distribution's mean, its running average and the generation's best candidate.

    The best that ever was is kept. The average wanders less than the mean itself, which
    follows the luck of single tracks.
    """
    generation = state["generation"]
    contenders = {
        "mean": evolution.mean,
        "average": state["average"].numpy(),
        "champion": state["champion"].numpy(),
    }
    with tqdm(
        total=len(contenders) * len(judge.tracks),
        unit="rollout",
        desc=f"evaluation {generation}",
        disable=not display,
        leave=False,
    ) as bar:
        returns = judge.score(np.stack(list(contenders.values())), bar)
    state["evaluated"] = generation
    row = (generation, state["steps"], state["seconds"], *returns.mean(axis=1))
    state["evaluations"].append([float(value) for value in row])
    scores = np.nan_to_num(returns.mean(axis=1), nan=-np.inf)
    line = ", ".join(
        f"{name} {r.mean():.1f} +- {r.std():.1f}"
        for name, r in zip(contenders, returns, strict=True)
    )
    winner = int(scores.argmax())
    if scores[winner] > judge.best:
        judge.save(list(contenders.values())[winner], returns[winner], generation)
        line += f"; saved the {list(contenders)[winner]}"
    print(
        f"evaluation after generation {generation} on {len(judge.tracks)} tracks: {line}; "
        f"best {judge.best:.1f}",
        flush=True,
    )
    points = dict(zip((f"evaluation/{name}" for name in contenders), scores, strict=True))
    curves.add(points | {"evaluation/best": judge.best}, generation)


def main() -> None:
    args = parse_arguments()
    with exclusive(args.logdir, "ctrl"):
        train(args)


if __name__ == "__main__":
    run_script(main)
