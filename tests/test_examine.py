"""The page about data and models: whole, true, and in need of nothing else."""

import re
import shutil

import numpy as np
import pytest
from conftest import write_dataset

from utils import page
from utils.checkpoint import save_checkpoint


@pytest.fixture
def data(tmp_path):
    """Four episodes, of which the last is damaged behind its headers, and a file that is none."""
    write_dataset(tmp_path / "data", [80, 90, 70, 75])
    (tmp_path / "data" / "thread_0" / "a<b.npz").write_bytes(b"PK nothing")
    return tmp_path / "data"


def examine(run_here, tmp_path, *options):
    return run_here("examine_data.py", "--rootdir", "data", *options, cwd=tmp_path)


def test_the_page_tells_of_data_and_models_and_needs_nothing_else(
    run_here, experiment, data, tmp_path
):
    history = [[1.0, 3000.0, 2.0, -50.0, 10.0], [2.0, 6000.0, 4.0, 20.0, 80.0]]
    state = {"history": history, "evaluations": [[2.0, 6000.0, 4.0, 100.0, 60.0, 80.0]]}
    save_checkpoint(experiment / "ctrl/checkpoint.tar", {"state": state})
    done = examine(run_here, tmp_path, "--logdir", experiment, "--to", "page.html")
    assert done.returncode == 0, done.stderr
    assert "4 episodes, 1 damaged ones" in done.stdout
    text = (tmp_path / "page.html").read_text()
    assert "4 episodes, 315 frames" in text
    assert "1 damaged files" in text and "a&lt;b.npz" in text and "a<b" not in text
    sections = re.findall(r"<h2>(.*?)</h2>", text)
    assert len(sections) == 5 and "An episode beside its dream" in sections
    assert text.count("data:image/png;base64,") == 2 and text.count("data:video/mp4;base64,") == 1
    assert not re.search(r'(src|href)="(?!data:)', text) and "http" not in text
    assert "the paper&#x27;s population mean" in text


def test_the_page_says_what_is_not_there_yet(run_here, experiment, data, tmp_path):
    for stage in ("mdrnn", "ctrl"):
        shutil.rmtree(experiment / stage)
    examine(run_here, tmp_path, "--logdir", experiment).check_returncode()
    text = (tmp_path / "data.html").read_text()
    assert "M is not trained yet" in text and "there is no" in text
    examine(run_here, tmp_path).check_returncode()
    assert len(re.findall("<h2>", (tmp_path / "data.html").read_text())) == 1
    before = (tmp_path / "data.html").read_bytes()
    missing = examine(run_here, tmp_path, "--logdir", tmp_path / "none")
    assert missing.returncode == 2 and "trainvae.py" in missing.stderr
    shutil.rmtree(data)
    gone = examine(run_here, tmp_path)
    assert gone.returncode == 2 and "does not exist" in gone.stderr
    assert (tmp_path / "data.html").read_bytes() == before


def test_bars_are_as_high_as_their_counts():
    drawn = page.histogram(np.array([0.0] * 3 + [1.0] * 6 + [4.0]), "<caption>", bins=4)
    heights = [float(h) for h in re.findall(r' height="([\d.]+)" fill', drawn)]
    assert heights == pytest.approx([110 / 2, 110, 0, 110 / 6], abs=0.1)
    assert "&lt;caption&gt;" in drawn


def test_curves_are_drawn_to_one_scale():
    x, y = np.array([10.0, 1000.0]), np.array([0.0, 900.0])
    drawn = page.curves({"a": (x, y), "b": (x * 10, y)}, "steps", "")
    a, b = (
        [tuple(map(float, p.split(","))) for p in line.split()]
        for line in re.findall(r'points="([^"]+)"', drawn)
    )
    assert a[0][0] == 50 and b[1][0] == 760  # from the left end of the axis to the right one
    assert b[0][0] - a[0][0] == pytest.approx((a[1][0] - a[0][0]) / 2, abs=0.2)  # a decade of two
    assert [p[1] for p in a] == [p[1] for p in b] and a[0][1] > a[1][1]
