"""Pictures that a page of the player gets in a second, against the 25 that look like motion."""

import asyncio
import json
import tempfile
import time
from pathlib import Path

import aiohttp
from aiohttp import test_utils

from benchmarks.measure import Row, medians, row
from benchmarks.setting import experiment
from envs.player.command import load_driver
from envs.player.game import VIEWS, Game
from envs.player.server import Server
from envs.simulated_carracing import Dreaming, load_world
from envs.simulator import environment

SECONDS = 4
MOTION = 25  # pictures a second
PAGES = 4  # as many as `--players` lets in


async def rate(pages: int, view: str, logdir: Path) -> float:
    """Of the slowest of several pages at a time, the controller driving."""
    world, driver = load_world(logdir), load_driver(logdir, "ctrl")

    def new_game(seed: int) -> Game:
        return Game(world, driver, Dreaming(), seed)

    async def watch(client: test_utils.TestClient) -> float:
        async with client.ws_connect("/play", max_msg_size=0) as socket:
            for wish in ({"view": view}, {"do": "drive"}):
                await socket.send_str(json.dumps(wish))
            for _ in range(10):  # until the first picture of that view
                await socket.receive_bytes()
            count, start = 0, time.perf_counter()
            while time.perf_counter() - start < SECONDS:
                message = await socket.receive()
                assert message.type == aiohttp.WSMsgType.BINARY, message.data
                count += 1
            return count / (time.perf_counter() - start)

    with tempfile.TemporaryDirectory() as folder:
        server = Server(new_game, pages, 0, Path(folder))
        async with test_utils.TestClient(test_utils.TestServer(server.application())) as client:
            return min(await asyncio.gather(*(watch(client) for _ in range(pages))))


def measure(repeats: int) -> list[Row]:
    logdir = experiment()
    environment()  # compiled before anything is timed
    ways = [(pages, view) for pages in (1, PAGES) for view in VIEWS]
    rates = medians({way: lambda way=way: asyncio.run(rate(*way, logdir)) for way in ways}, repeats)
    against = "what looks like motion"
    rows = []
    for pages, view in ways:
        stage = f"player, {pages} {'page' if pages == 1 else 'pages'}, {view} in view"
        target = ">= 1" if pages == 1 else ""
        rows.append(row(stage, rates[pages, view], against, MOTION, "pictures/s", target))
    return rows
