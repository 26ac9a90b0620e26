"""Playing in the dream: the game, its server, and the page in a real browser."""

import asyncio
import json
import re
import shutil
import struct
import time
from contextlib import contextmanager

import aiohttp
import imageio.v2 as imageio
import numpy as np
import pygame
import pytest
import torch
from aiohttp import test_utils
from conftest import ROOT, fork, run_script
from PIL import Image

from envs.player import window
from envs.player.command import load_driver
from envs.player.game import HOLD, Game
from envs.player.server import MESSAGE_SIZE, Server
from envs.simulated_carracing import Dreaming, load_world
from envs.simulator import Simulator
from envs.tracks import track_seeds
from envs.viewer import write_gif
from models.agent import AgentPolicy
from models.logdir import load_vae, weights_digest
from scripts.record_page import record
from utils.checkpoint import load_checkpoint, save_checkpoint

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
LEFT, RIGHT = np.array([-1, 0, 0], np.float32), np.array([1, 0, 0], np.float32)


@pytest.fixture
def game(dreamer):
    game = Game(load_world(dreamer), load_driver(dreamer, "ctrl"), Dreaming())
    yield game
    game.close()


def test_the_hands_turn_the_wheel_in_a_fifth_of_a_second(game):
    game.target = np.array([1, 0.5, 0.25], np.float32)
    turned = []
    for _ in range(12):
        game.step()
        turned.append(game.action.tolist())
    assert np.array(turned)[:, 0] == pytest.approx(np.minimum(1, 0.1 * np.arange(1, 13)))
    assert turned[0][1:] == [0.5, 0.25]


def test_a_dream_begins_at_what_is_seen_of_the_real_track(game):
    game.switch()
    assert list(game.pictures()) == ["real"] and game.pictures()["real"].shape == (96, 96, 3)
    for _ in range(5):
        game.step()
    z, h = game.real.z.clone(), game.real.h.clone()
    game.switch()
    assert list(game.pictures()) == ["dream"]
    torch.testing.assert_close(game.dream.z, z)
    torch.testing.assert_close(game.dream.h, h)
    game.step()
    assert game.real.steps == 5  # the real track waits
    game.switch()
    game.step()
    assert game.real.steps == 6


def test_both_begin_at_one_frame_and_take_the_same_actions(game):
    game.look_at("both")
    assert list(game.pictures()) == ["real", "dream"]
    torch.testing.assert_close(game.dream.z, game.real.z)
    game.target = LEFT
    game.step()
    torch.testing.assert_close(game.dream.h, game.real.h)  # of the same z and the same action
    game.step()
    assert game.real.steps == game.dream.steps == 2
    assert not torch.equal(game.dream.z, game.real.z)  # one is dreamt


def test_the_controller_takes_the_wheel_and_gives_it_back(game):
    game.hand_over()
    game.step()
    assert game.action == pytest.approx([0.0, 0.5, 0.0])  # that of `make_experiment`
    game.hand_over()
    game.step()
    assert game.action == pytest.approx([0.0, 0.0, 0.0])


def test_an_end_is_shown_for_a_second_and_then_another_dream_begins(game):
    game.set_dreaming(1.0, 3)
    for _ in range(3):
        game.step()
    assert game.status()["dream"]["ended"] in ("the horizon", "M says that it ends")
    last = game.pictures()["dream"]
    for _ in range(HOLD):
        game.step()
        np.testing.assert_array_equal(game.pictures()["dream"], last)
    game.step()
    assert game.status()["dream"]["steps"] == 0 and not game.status()["dream"]["ended"]


def test_without_a_controller_the_hands_drive_and_it_is_said_why_nothing_else_does(dreamer):
    (dreamer / "ctrl/best.tar").unlink()
    game = Game(load_world(dreamer), load_driver(dreamer, "ctrl"), Dreaming())
    game.step()
    with pytest.raises(ValueError, match="there is no controller at"):
        game.hand_over()


def test_the_window_is_played_until_it_is_closed(game, monkeypatch):
    """In SDL's dummy driver; not with a real display."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("DISPLAY", ":0")
    keys = [pygame.K_m, pygame.K_b, pygame.K_p, pygame.K_n]
    steps = iter([*([pygame.event.Event(pygame.KEYDOWN, key=key)] for key in keys)])
    shown = []
    draw = window.draw

    def draw_and_press(screen, font, game, message):
        draw(screen, font, game, message)
        shown.append((pygame.surfarray.array3d(screen), game.status()))
        event = next(steps, [pygame.event.Event(pygame.QUIT)])
        pygame.event.post(event[0])

    monkeypatch.setattr(window, "draw", draw_and_press)
    window.play(game)
    assert [status["drives"] for _, status in shown[:2]] == [False, True]
    assert shown[2][1]["view"] == "both" and shown[3][1]["paused"]
    assert shown[4][1]["real"]["steps"] == shown[3][1]["real"]["steps"] + 1
    picture = shown[2][0].swapaxes(0, 1)
    middle = picture[: window.SIDE, window.SIDE // 2].std()
    assert middle > 0 and picture.shape[1] == 2 * window.SIDE
    assert not pygame.display.get_init()


def test_without_a_display_there_is_no_window_and_it_is_said(dreamer, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    options = ["-m", "envs.simulated_carracing", "--logdir", dreamer, "--window"]
    done = run_script(*options, cwd=ROOT)
    assert done.returncode == 2 and "there is no display" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def serving(dreamer, folder, play, players=2):
    """Run the coroutine `play(client, server)` with a server of dreams of random weights."""
    world, driver = load_world(dreamer), load_driver(dreamer, "ctrl")

    async def run():
        server = Server(lambda seed: Game(world, driver, Dreaming(), seed), players, 0, folder)
        async with test_utils.TestClient(test_utils.TestServer(server.application())) as client:
            await asyncio.wait_for(play(client, server), 60)

    asyncio.run(run())


async def received(socket):
    """The header and the pixels of the next frame, or the next error's text."""
    message = await socket.receive()
    if message.type == aiohttp.WSMsgType.TEXT:
        return json.loads(message.data)["error"]
    (length,) = struct.unpack("<I", message.data[:4])
    return json.loads(message.data[4 : 4 + length]), message.data[4 + length :]


async def error_of(socket):
    while not isinstance(said := await received(socket), str):
        pass
    return said


async def frame_of(socket, wanted=lambda header: True):
    while isinstance(said := await received(socket), str) or not wanted(said[0]):
        pass
    return said


def test_a_message_has_the_pixels_that_its_header_names(dreamer, tmp_path):
    async def play(client, server):
        socket = await client.ws_connect("/play")
        header, pixels = await frame_of(socket)
        assert header["pictures"] == [["dream", 64, 64]] and len(pixels) == 64 * 64 * 3
        await socket.send_json({"view": "both"})
        header, pixels = await frame_of(socket, lambda header: header["view"] == "both")
        assert header["pictures"] == [["real", 96, 96], ["dream", 64, 64]]
        assert len(pixels) == 3 * (96 * 96 + 64 * 64)
        (seat,) = server.seats
        assert len(header["dream"]["weights"]) == 5 or header["dream"]["steps"] == 0
        await socket.send_json({"do": "step"})  # which pauses, too
        header, pixels = await frame_of(socket, lambda header: header["paused"])
        steps = header["real"]["steps"]
        assert (await frame_of(socket))[0]["real"]["steps"] == steps
        assert pixels[: 3 * 96 * 96] == seat.game.real.frame.tobytes()

    serving(dreamer, tmp_path, play)


BAD = [
    *("{", "[1]", '"m"', "null", '{"do": "fly"}', '{"do": []}', '{"hands": [1, 2]}'),
    *('{"hands": [NaN, 0, 0]}', '{"hands": ["a", 0, 0]}', '{"hands": [[], 0, 0]}', "[" * 4000),
    *('{"dreaming": [0, 100]}', '{"dreaming": [1, 1e400]}', '{"dreaming": 5}', '{"view": "x"}'),
    *('{"view": {}}', '{"what": 1}', '{"dreaming": [NaN, 5]}'),
]


def test_a_bad_message_is_answered_and_ends_nothing(dreamer, tmp_path):
    async def play(client, server):
        socket = await client.ws_connect("/play")
        for bad in BAD:
            await socket.send_str(bad)
            assert await error_of(socket), bad
        await socket.send_bytes(b"\x00\xff")
        assert "only text" in await error_of(socket)
        header, _ = await frame_of(socket)
        before = header["dream"]["steps"]
        await frame_of(socket, lambda header: header["dream"]["steps"] != before)
        other = await client.ws_connect("/play")
        await other.send_str("x" * (MESSAGE_SIZE + 1))  # which closes this page's socket alone
        while (await other.receive()).type != aiohttp.WSMsgType.CLOSE:
            pass
        await frame_of(socket)

    serving(dreamer, tmp_path, play)


def test_pages_have_dreams_of_their_own_and_a_limit(dreamer, tmp_path):
    async def play(client, server):
        first, second = [await client.ws_connect("/play") for _ in range(2)]
        one, other = [await frame_of(socket) for socket in (first, second)]
        assert one[1] != other[1]
        third = await client.ws_connect("/play")
        assert "all 2 seats are taken" in await error_of(third)
        assert (await third.receive()).type == aiohttp.WSMsgType.CLOSE
        await first.close()
        while len(server.seats) == 2:  # a closed page frees its dream
            await asyncio.sleep(0.01)
        await frame_of(await client.ws_connect("/play"))

    serving(dreamer, tmp_path, play)


def test_only_the_servers_own_page_may_play(dreamer, tmp_path):
    async def play(client, server):
        with pytest.raises(aiohttp.WSServerHandshakeError):
            await client.ws_connect("/play", headers={"Origin": "http://elsewhere.example"})
        own = f"http://{client.host}:{client.port}"
        await frame_of(await client.ws_connect("/play", headers={"Origin": own}))
        text = await (await client.get("/")).text()
        assert not re.findall(r"(?:src|href)=|https?://", text.replace("link.href", ""))

    serving(dreamer, tmp_path, play)


def test_a_recording_is_fetched_as_a_film_and_goes_with_its_page(dreamer, tmp_path):
    async def play(client, server):
        socket = await client.ws_connect("/play")
        await socket.send_json({"do": "record"})
        await frame_of(socket, lambda header: header["recording"])
        for _ in range(20):
            await frame_of(socket)
        await socket.send_json({"do": "record"})
        header, _ = await frame_of(socket, lambda header: header["recorded"])
        address = f"/recordings/{header['recorded']}.mp4"
        answer = await client.get(address)
        (tmp_path / "film.mp4").write_bytes(await answer.read())
        await socket.close()
        while server.seats:
            await asyncio.sleep(0.01)
        assert (await client.get(address)).status == 404
        assert (await client.get("/recordings/..%2f..%2fetc.mp4")).status == 404

    folder = tmp_path / "recordings"
    folder.mkdir()
    serving(dreamer, folder, play)
    film = imageio.mimread(tmp_path / "film.mp4", memtest=False)
    assert len(film) >= 10 and film[0].shape == (384, 768, 3)
    assert film[0][:, 200:560].std() > 5  # the dream is in its middle
    assert not list(folder.iterdir())


@contextmanager
def server_process(logdir, folder, *options):
    """The address of a server in a process of its own."""
    stdout = folder / "stdout"
    command = ["-m", "envs.simulated_carracing", "--logdir", logdir, "--port", 0, *options]
    process = fork(*command, cwd=ROOT, stdout=stdout, stderr=folder / "stderr")
    try:
        while not (there := re.findall(r"http\S+", stdout.read_text() if stdout.exists() else "")):
            assert process.is_alive(), (folder / "stderr").read_text()
            time.sleep(0.05)
        yield there[0]
    finally:
        process.kill()
        process.join()


def test_the_page_is_opened_where_there_is_a_display(dreamer, tmp_path, monkeypatch):
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\nprintf "%s" "$1" > {opened}\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    monkeypatch.setenv("DISPLAY", "")
    monkeypatch.setenv("WAYLAND_DISPLAY", "")
    with server_process(dreamer, tmp_path):
        time.sleep(0.5)
    (tmp_path / "stdout").unlink()
    assert not opened.exists()
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("DISPLAY", ":0")
    with server_process(dreamer, tmp_path) as address:
        while not opened.exists() or opened.read_text() != address:
            time.sleep(0.05)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The shipped models, with dreams that begin where their controller drives.

    Their M has learned no rewards, and what it says of them means nothing.
    """
    logdir = tmp_path_factory.mktemp("shipped") / "pretrained"
    shutil.copytree(ROOT / "pretrained", logdir)
    path = logdir / "mdrnn/best.tar"
    save_checkpoint(path, load_checkpoint(path) | {"heads": "latents, terminals, rewards"})
    agent, parameters, _ = load_driver(logdir, "ctrl")
    simulator, latents, ids = Simulator(track_seeds("data", 1, 0)), [], np.arange(1)
    policy, frames = AgentPolicy(agent, parameters[None]), simulator.reset(ids)
    for _ in range(140):
        action = policy(ids, frames)
        frames = simulator.step(ids, action)[0]
        latents.append((agent.observe(torch.from_numpy(frames))[0].numpy(), action[0]))
    simulator.close()
    folder = logdir / "latents" / f"{weights_digest(load_vae(logdir).encoder)[:16]}-float32"
    folder.mkdir(parents=True)
    mu, actions = (np.stack(part) for part in zip(*latents, strict=True))
    np.savez(folder / "rollout_0.npz", mu=mu[80:], actions=actions[80:])  # once the view is near
    return logdir


STATE = "() => state"
PIXELS = """(name) => {
  const canvas = document.querySelector(`#${name} canvas`);
  return Array.from(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data);
}"""


def pixels(page, name):
    """What a canvas shows, (H, W, 3)."""
    flat = np.array(page.evaluate(PIXELS, name), np.uint8)
    side = int((len(flat) / 4) ** 0.5)
    return flat.reshape(side, side, 4)[..., :3]


def moved(before, after):
    """By how many columns a picture's upper half moved to the right, by what fits best."""
    a, b = (x[10 : len(x) // 2].mean(axis=2) for x in (before, after))
    width = a.shape[1]
    shifts = range(-width // 4, width // 4 + 1)

    def difference(shift):
        left, right = max(0, shift), min(width, width + shift)
        return np.abs(b[:, left:right] - a[:, left - shift : right - shift]).mean()

    return min(shifts, key=difference)


def wait_for(page, condition):
    page.wait_for_function(f"state && ({condition})", timeout=20_000)


def steered(page, address, hand, steps):
    """What is seen of dream 5 after so many single steps with a held key."""
    page.goto(f"{address}?seed=5")
    wait_for(page, "state.dream.steps > 0")
    page.keyboard.press("p")
    wait_for(page, "state.paused")
    page.keyboard.press("r")
    wait_for(page, "state.dream.steps === 0")
    page.keyboard.down(hand)
    for k in range(steps):
        page.keyboard.press("n")
        wait_for(page, f"state.dream.steps === {k + 1}")
    page.keyboard.up(hand)
    return pixels(page, "dream")


def turned(picture):
    """Where the bar of the steering is, of what is dreamt: left of the middle is negative."""
    bars = picture[56:62].astype(int)
    _, columns = np.nonzero(bars[..., 1] - bars[..., 0] > 100)
    return columns.mean() - (picture.shape[1] - 1) / 2


def test_steering_moves_what_is_dreamt_to_the_other_side(browser, shipped, tmp_path):
    """With the wheel to the right, the road goes to the left of where it goes with it to the left;
    and so does the indicator of the wheel."""
    with server_process(shipped, tmp_path) as address:
        page = browser.new_page()
        left = steered(page, address, "ArrowLeft", 12)
        assert page.evaluate(STATE)["action"][0] == pytest.approx(-1)
        right = steered(page, address, "ArrowRight", 12)
        assert page.evaluate(STATE)["action"][0] == pytest.approx(1)
        assert turned(left) < -1 and turned(right) > 1
        assert moved(left, right) < -2


GAMEPAD = """
navigator.getGamepads = () => [null, {axes: [-0.5, 0], buttons: Array.from(
  {length: 8}, (_, k) => ({value: k === 7 ? 0.75 : 0}))}];
"""


def test_a_finger_and_a_gamepad_steer(browser, shipped, tmp_path):
    """The gamepad is a stand-in, of which the browser says that it is held to the left with gas."""
    with server_process(shipped, tmp_path) as address:
        phone = browser.new_context(
            has_touch=True, is_mobile=True, viewport={"width": 390, "height": 800}
        )
        page = phone.new_page()
        page.goto(address)
        wait_for(page, "state.dream.steps > 0")
        right = page.locator("[data-hand=right]")
        assert right.is_visible()
        right.dispatch_event("pointerdown")
        wait_for(page, "state.action[0] === 1")
        right.dispatch_event("pointerup")
        wait_for(page, "state.action[0] === 0")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        phone.close()

        desk = browser.new_context()
        desk.add_init_script(GAMEPAD)
        page = desk.new_page()
        page.goto(address)
        wait_for(page, "state.action[0] === -0.5 && state.action[1] === 0.75")
        assert not page.locator("[data-hand=right]").is_visible()
        page.keyboard.down("ArrowRight")  # a key that is held goes before it
        wait_for(page, "state.action[0] === 1 && state.action[1] === 0")
        desk.close()


def test_the_page_is_recorded_for_the_readme(browser, shipped, tmp_path):
    """One frame each four steps: eight of a dream, then three times four beside the real track."""
    with server_process(shipped, tmp_path) as address:
        page = browser.new_page()
        write_gif(tmp_path / "page.gif", record(page, address, 0, 8, 4))
        state = page.evaluate(STATE)
        assert state["view"] == "both" and state["drives"]
        assert state["dream"]["steps"] == 4 and state["real"]["steps"] == 80 + 3 * 4
    with Image.open(tmp_path / "page.gif") as gif:
        assert gif.n_frames == 5 and gif.info["duration"] == 80


def test_a_page_in_a_browser_is_played(browser, shipped, tmp_path):
    with server_process(shipped, tmp_path, "--players", 2) as address:
        page, other = browser.new_page(), browser.new_page()
        requests, errors = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(error))
        page.goto(address)
        wait_for(page, "state.dream.steps > 50")
        page.keyboard.press("m")
        wait_for(page, "state.drives && state.action[1] > 0.1")
        other.goto(address)
        wait_for(other, "state.dream.steps > 0")
        assert not np.array_equal(pixels(page, "dream"), pixels(other, "dream"))
        third = browser.new_page()
        third.goto(address)
        third.wait_for_function("document.querySelector('#message').textContent.includes('seats')")
        page.keyboard.press("b")
        wait_for(page, "state.view === 'both' && state.real.steps > 20")
        assert pixels(page, "real").shape == (96, 96, 3)
        page.keyboard.press("Tab")
        wait_for(page, "state.view === 'dream'")
        page.keyboard.press("Tab")
        wait_for(page, "state.view === 'real'")
        page.locator("#temperature").fill("0.5")
        wait_for(page, "state.temperature === 0.5")
        with page.expect_download() as download:
            page.keyboard.press("c")
            wait_for(page, "state.recording")
            page.keyboard.press("c")
        download.value.save_as(tmp_path / "film.mp4")
        assert imageio.mimread(tmp_path / "film.mp4", memtest=False)
        assert not errors and {url.split("/")[2] for url in requests} == {address.split("/")[2]}
