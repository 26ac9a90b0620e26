"""The logdir that is shipped drives, on both simulators."""

from pathlib import Path

import pytest
from conftest import ROOT, run_script

from utils.checkpoint import load_checkpoint

PRETRAINED = ROOT / "pretrained"


@pytest.mark.parametrize("simulator", ["envpool", "gymnasium"])
def test_pretrained_drives_three_tracks(simulator, tmp_path):
    if simulator == "envpool":
        pytest.importorskip("envpool")
    for stage in ("vae", "mdrnn", "ctrl"):  # workers log into the logdir: not into the shipped one
        (tmp_path / "pretrained").mkdir(exist_ok=True)
        (tmp_path / "pretrained" / stage).symlink_to(PRETRAINED / stage)
    options = [
        "--logdir",
        "pretrained",
        "--no-render",
        "--episodes",
        3,
        "--device",
        "cpu",
        "--seed",
        1,
    ]
    done = run_script("test_controller.py", *options, "--simulator", simulator, cwd=tmp_path)
    assert done.returncode == 0 and "note:" not in done.stdout, done.stdout + done.stderr
    mean = float(done.stdout.splitlines()[-1].split()[1])
    assert mean > 800, done.stdout


def test_pretrained_is_weights_only_and_small():
    files = list(PRETRAINED.rglob("*.tar"))
    assert {path.relative_to(PRETRAINED) for path in files} == {
        Path(stage, "best.tar") for stage in ("vae", "mdrnn", "ctrl")
    }
    assert sum(path.stat().st_size for path in files) < 25e6
    for path in files:
        assert not {"optimizer", "scheduler"} & load_checkpoint(path).keys()
