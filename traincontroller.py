"""Train C, the linear controller, with CMA-ES on CarRacing (paper, section 2.3 and appendix A.3).

    python traincontroller.py --logdir exp_dir --max-generations 54

Needs V, and M for `--memory trained`. Writes `logdir/ctrl/best.tar`, the best controller on the
evaluation tracks, and `checkpoint.tar`, the latest generation; the workers' output goes to
`logdir/tmp/`. With `--dream` (section 4) candidates drive in M's dream, and the folder is `dream/`.
"""

import argparse
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from envs.evaluation import CONTENDERS, Judge, first_mean, rollout_bar, screen
from envs.parallel import run_rollouts, start_workers
from envs.seeing import seen_by_candidates, seen_in_data
from envs.simulated_carracing import Dreaming
from envs.tracks import track_seeds
from models.inference import tell_if_not_packed
from models.logdir import Driving, agent_digest, driving_with, load_search, write_config
from utils.checkpoint import check_options, save_checkpoint, set_aside
from utils.cli import (
    UserError,
    add_device,
    add_logdir,
    add_max_workers,
    add_noreload,
    add_ray_address,
    add_seed,
    finite_float,
    natural_int,
    population_int,
    positive_float,
    positive_int,
    run_script,
    script_parser,
)
from utils.curves import Curves
from utils.devices import choose_device, fast_precision
from utils.evolution import Evolution, Progress, component_basis, finite_fitness
from utils.files import exclusive
from utils.workers import WorkerPool


def parse_arguments() -> argparse.Namespace:
    parser = script_parser("Train C, the linear controller, with CMA-ES.")
    add_logdir(parser)

    search = parser.add_argument_group("search")
    search.add_argument("--pop-size", type=population_int, default=32, help="candidates at a time")
    search.add_argument(
        "--n-samples", type=positive_int, default=3, help="rollouts of each candidate"
    )
    search.add_argument(
        "--components",
        type=natural_int,
        help="search in so many principal components of what C sees in the data, each as large as "
        "the others; 0: in all its weights (default: 0, as in the paper; with --dream 16)",
    )
    search.add_argument(
        "--sigma",
        type=positive_float,
        help="initial step size, of the weights (default: 0.1), or in components of the actions "
        "(default: 0.4)",
    )
    search.add_argument(
        "--patience",
        type=natural_int,
        default=100,
        help="in training, end a rollout without a new tile for so many steps and book the rest "
        "of its steps at -0.1 each; 0: never. Evaluations always run in full",
    )
    search.add_argument(
        "--warm-start", type=Path, metavar="FILE", help="begin at the controller in this file"
    )
    add_seed(search, "candidates, training tracks and a random memory")

    dream = parser.add_argument_group("dream, of an M that was trained with --include_reward")
    dream.add_argument(
        "--dream", action="store_true", help="drive in dreams, and real tracks in evaluations alone"
    )
    dream.add_argument(
        "--temperature", type=positive_float, default=1.15, help="of M's mixture in a dream"
    )
    dream.add_argument("--horizon", type=positive_int, default=400, help="steps of a dream at most")

    refining = parser.add_argument_group("refining, which may be switched on and off at any time")
    refining.add_argument(
        "--refine-from",
        type=natural_int,
        help="from this generation on take smaller steps, in the principal components of what the "
        "candidates see: CMA-ES starts anew from its mean; 0: never (default: as the training "
        "began, at first 31)",
    )
    refining.add_argument(
        "--refine-sigma", type=positive_float, default=0.15, help="step size then, of the actions"
    )
    refining.add_argument(
        "--refine-screen",
        type=natural_int,
        default=32,
        help="tracks that the mean drives before each generation then; half of the candidates' "
        "tracks are those of them on which it returns least. 0: none",
    )

    controller = parser.add_argument_group("controller")
    controller.add_argument(
        "--memory",
        choices=["trained", "random", "none"],
        default="trained",
        help="what C sees beside z: the hidden state of M, of an M with random weights, or nothing",
    )
    controller.add_argument(
        "--actions",
        choices=["clip", "squash"],
        default="clip",
        help="clip: C's output is clipped to the action box; squash: tanh of the steering, "
        "sigmoid of gas and brake, as in the paper",
    )

    evaluation = parser.add_argument_group("evaluation and end")
    evaluation.add_argument(
        "--eval-every",
        type=positive_int,
        help="generations between evaluations (default: as often as takes at most a quarter of "
        "all steps; with --dream 10)",
    )
    evaluation.add_argument(
        "--eval-rollouts", type=positive_int, default=100, help="tracks of each"
    )
    evaluation.add_argument(
        "--target-return", type=finite_float, default=950, help="end when an evaluation reaches it"
    )
    evaluation.add_argument(
        "--max-generations", type=natural_int, default=0, help="end after so many; 0: never"
    )
    evaluation.add_argument(
        "--max-steps", type=natural_int, default=0, help="end after so many of training; 0: never"
    )

    running = parser.add_argument_group("running")
    add_max_workers(running)
    add_ray_address(running)
    add_device(running)
    running.add_argument(
        "--display", action="store_true", help="a progress bar for each generation"
    )
    add_noreload(running)
    args = parser.parse_args()
    args.stage = "dream" if args.dream else "ctrl"  # the folder
    if not args.dream:
        args.temperature = args.horizon = None
    elif args.memory == "random":
        parser.error("--dream gives C the hidden state of the trained M; not --memory random")
    elif args.eval_every is None:
        args.eval_every = 10
    return args


REFINED = 32  # components, where the search was in all weights
WEIGHTS_SIGMA = 0.1  # of steps in all weights


@dataclass
class Options:
    """What a training is: one that goes on has the same."""

    pop_size: int
    n_samples: int
    components: int  # 0: the search is in all weights
    sigma: float
    patience: int
    memory: str
    actions: str
    seed: int
    temperature: float | None  # of a training in dreams
    horizon: int | None


class Training:
    """CMA-ES, its progress and its options; stored after each generation and evaluation."""

    def __init__(self, args: argparse.Namespace, driving: Driving, models: str):
        """`models` is the fingerprint of V and M."""
        self.folder = args.logdir / args.stage
        self.dream = Dreaming(args.temperature, args.horizon) if args.dream else None
        self.checkpoint, self.best = self.folder / "checkpoint.tar", self.folder / "best.tar"
        self.models, self.progress = models, Progress()
        stored = None
        if args.noreload:
            set_aside(self.folder)
        elif self.checkpoint.exists():
            stored = load_search(self.checkpoint)
        # Earlier versions searched in all weights.
        before = {} if stored is None else {"components": 0, "refine-from": 0} | stored["options"]
        if args.components is None:
            args.components = before.get("components", 16 if args.dream else 0)
        if args.sigma is None:
            args.sigma = before.get("sigma", 0.4 if args.components else WEIGHTS_SIGMA)
        if args.refine_from is None:
            args.refine_from = before.get("refine-from", 31)
        self.refine_from = args.refine_from
        self.options = Options(**{f.name: getattr(args, f.name) for f in fields(Options)})
        first = args.warm_start or (self.best if self.best.exists() else None)
        start = first_mean(first if stored is None else None, driving)
        self.evolution = Evolution(start, WEIGHTS_SIGMA, args.pop_size, args.seed)
        if stored is not None:
            check_options(self.checkpoint, before, self.stored_options())
            self.restore(stored)

    def restore(self, stored: dict) -> None:
        """Take up a checkpoint. Raises UserError where it is of another V or M."""
        if stored["models"] != self.models:
            raise UserError(
                f"{self.checkpoint}: V or M in {self.folder.parent} are not those that this "
                "controller was trained with; put them back, or use --noreload to start afresh"
            )
        self.evolution.load_state_dict(stored["cma"])
        known = {f.name for f in fields(Progress)}
        self.progress = Progress(**{n: v for n, v in stored["state"].items() if n in known})
        print(f"{self.checkpoint}: continuing after generation {self.progress.generation}")

    def stored_options(self) -> dict:
        return {name.replace("_", "-"): value for name, value in asdict(self.options).items()}

    def save(self) -> None:
        state = {
            "cma": self.evolution.state_dict(),
            "state": vars(self.progress),
            "options": self.stored_options() | {"refine-from": self.refine_from},
            "models": self.models,
        }
        save_checkpoint(self.checkpoint, state)


def change_phase(
    training: Training, driving: Driving, device: torch.device, args: argparse.Namespace
) -> None:
    """Begin to search, or to refine, where the next generation is the first to do so.

    What is seen says which steps change the actions evenly. Where the candidates of that generation
    have to drive for it, their steps and time count as training.
    """
    evolution, progress = training.evolution, training.progress
    generation, start = progress.generation + 1, time.monotonic()
    refine = 0 < training.refine_from <= generation
    phase, components, sigma = "search", training.options.components, training.options.sigma
    if refine:
        phase, components, sigma = "refine", components or REFINED, args.refine_sigma
    if phase == evolution.phase:
        return
    if not components:
        evolution.restart(phase, sigma)
        print(f"generation {generation} and on: {phase} in all weights, sigma {sigma}", flush=True)
        return
    where, seen = "in the data", None if refine else seen_in_data(args.logdir, driving)
    if seen is None:
        where = "in driving"
        candidates = evolution.ask(generation)
        tracks = track_seeds("train", len(candidates), args.seed, generation)
        agent_of = args.logdir, device, driving, training.models
        seen = seen_by_candidates(*agent_of, candidates, tracks, args.patience, training.dream)
    basis = component_basis(seen.mean, seen.covariance, components)
    evolution.restart(phase, sigma, basis)
    progress.steps += seen.steps
    progress.seconds += time.monotonic() - start
    print(
        f"generation {generation} and on: {phase} in {len(basis)} directions, of the principal "
        f"components of what C sees {where}; sigma {sigma}, of the actions",
        flush=True,
    )


def run_generation(
    training: Training, pool: WorkerPool, curves: Curves, args: argparse.Namespace
) -> None:
    """Ask, drive, tell: one generation of CMA-ES."""
    evolution, progress = training.evolution, training.progress
    generation, start, steps = progress.generation + 1, time.monotonic(), 0
    candidates = evolution.ask(generation)
    # The same tracks for all candidates, so that luck with tracks does not choose among them.
    tracks = track_seeds("train", args.n_samples, args.seed, generation)
    if evolution.phase == "refine" and args.refine_screen > args.n_samples:
        drawn = track_seeds("train", args.refine_screen, args.seed, generation)
        tracks, of_mean, steps = screen(
            pool, evolution.mean, drawn, args.n_samples, args.patience, training.dream
        )
        curves.add({"return/of_the_mean": of_mean}, generation)
    label = f"generation {generation}" if args.display else None
    with rollout_bar(len(candidates) * len(tracks), label) as bar:
        returns, lengths = run_rollouts(
            pool, candidates, tracks, bar.update, args.patience, training.dream
        )
    fitness = finite_fitness(returns)
    evolution.tell(fitness)

    seconds = time.monotonic() - start
    steps += int(lengths.sum())
    progress.generation = generation
    progress.steps += steps
    progress.seconds += seconds
    progress.champion = torch.from_numpy(candidates[fitness.argmax()])
    progress.record(progress.history, fitness.mean(), fitness.max())
    print(
        f"generation {generation}: return mean {fitness.mean():.1f}, best {fitness.max():.1f}, "
        f"worst {fitness.min():.1f}, sigma {evolution.sigma:.4f}, {steps / seconds:.0f} steps/s, "
        f"{seconds:.0f} s",
        flush=True,
    )
    returned = {"mean": fitness.mean(), "best": fitness.max(), "worst": fitness.min()}
    curves.add({f"return/{name}": value for name, value in returned.items()}, generation)
    curves.add({"sigma": evolution.sigma, "steps": progress.steps}, generation)
    curves.add({"steps_per_second": steps / seconds}, generation)


def evaluate(training: Training, judge: Judge, curves: Curves, args: argparse.Namespace) -> None:
    """Score the distribution's mean, its running average and the generation's best candidate.

    The average wanders less than the mean itself, which follows the luck of single tracks.
    """
    progress = training.progress
    contenders = {
        "mean": training.evolution.mean,
        "average": training.evolution.average,
        "champion": progress.champion.numpy(),
    }
    label = f"evaluation {progress.generation}" if args.display else None
    means, steps = judge.evaluate(contenders, progress.generation, label)
    progress.evaluated = progress.generation
    progress.evaluation_steps += steps
    progress.record(progress.evaluations, *means)
    points = dict(zip((f"evaluation/{name}" for name in contenders), means, strict=True))
    curves.add(points | {"evaluation/best": judge.best}, progress.generation)


def train(args: argparse.Namespace) -> None:
    """All generations, from the last one that is stored."""
    device = choose_device(args.device)
    memory_seed = args.seed if args.memory == "random" else 0
    driving = driving_with(args.logdir, args.memory, memory_seed, args.actions)
    models = agent_digest(args.logdir, driving)
    training = Training(args, driving, models)
    progress = training.progress
    write_config(training.folder, args)

    # What there is to do at once: a generation with all its rollouts, or an evaluation.
    rollouts = max(args.pop_size * args.n_samples, CONTENDERS * args.eval_rollouts)
    curves = Curves(training.folder / "tensorboard", progress.generation + 1)
    tell_if_not_packed(device)
    where = args.logdir, device, args.max_workers
    with start_workers(*where, rollouts, models, driving, args.ray_address, args.dream) as pool:
        precision = str(fast_precision(device)).removeprefix("torch.")
        print(f"{len(pool)} workers on {device}, V in {precision}; logs in {args.logdir / 'tmp'}")
        judge = Judge(training.best, pool, args.eval_rollouts, driving, models)
        judge.load()
        while True:
            finished = (0 < args.max_generations <= progress.generation) or (
                0 < args.max_steps <= progress.steps
            )
            if progress.evaluated < progress.generation and (
                finished or judge.is_due(progress, args.eval_every)
            ):
                evaluate(training, judge, curves, args)
                training.save()
            if judge.best >= args.target_return:
                print(f"target reached: {judge.best:.1f} on {args.eval_rollouts} tracks")
                break
            if finished:
                last = progress.evaluations[-1][3] if progress.evaluations else float("-inf")
                score = f"best return {judge.best:.1f}, of the last mean {last:.1f}"
                print(f"{training.folder}: {progress.generation} generations done, {score}")
                break
            change_phase(training, driving, device, args)
            run_generation(training, pool, curves, args)
            training.save()
    curves.close()


def main() -> None:
    args = parse_arguments()
    with exclusive(args.logdir, args.stage):
        train(args)


if __name__ == "__main__":
    run_script(main)
