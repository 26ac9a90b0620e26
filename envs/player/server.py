"""The player's page and its WebSocket: a game for each page, and nothing shared between them.

The page sends JSON, the server frames: a message is the length of a JSON header in 4 bytes, the
header, and the pictures' raw pixels in its order.
"""

import asyncio
import json
import math
import struct
import tempfile
import threading
import time
import webbrowser
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from urllib.parse import urlsplit

import numpy as np
from aiohttp import WSMsgType, web

from envs.player.game import STEPS_PER_SECOND, Game
from envs.player.recording import Recording
from envs.viewer import why_no_window
from utils.cli import UserError, first_line
from utils.workers import Refused

PAGE = Path(__file__).with_name("page.html")
MESSAGE_SIZE = 4096  # of what a page sends, in bytes at most


class Seat:
    """One page's game: what the page asks for is done between two steps.

    Its steps and its end are in threads, of which a lock lets one at a time work.
    """

    def __init__(self, game: Game, folder: Path):
        self.game, self.folder = game, folder
        self.recording: Recording | None = None
        self.recorded: list[Path] = []
        self.asked: SimpleQueue = SimpleQueue()  # messages that are not done yet
        self.single = False  # one step, although it is paused
        self.at_work = threading.Lock()

    def advance(self) -> tuple[bytes, list[str]]:
        """Do what is asked for and one step: the message for the page, and what was wrong."""
        with self.at_work:
            return self._advance()

    def _advance(self) -> tuple[bytes, list[str]]:
        wrong = []
        while not self.asked.empty():
            try:
                self._do(self.asked.get())
            except (ValueError, TypeError, OverflowError) as error:
                wrong.append(first_line(error))
        if not self.game.paused or self.single:
            self.game.step()
            if self.recording is not None:
                self.recording.add(self.game.pictures())
        self.single = False
        return self._message(), wrong

    def _do(self, message: dict) -> None:
        if not isinstance(message, dict):
            raise ValueError("a message is an object")
        for name, value in message.items():
            if name == "hands":
                self.game.target = hands(value)
            elif name == "dreaming":
                temperature, horizon = value
                self.game.set_dreaming(float(temperature), int(horizon))
            elif name == "view":
                self.game.look_at(value)
            elif name == "do" and value in COMMANDS:
                COMMANDS[value](self)
            else:
                raise ValueError(f"{name}: {value!r} is no command")

    def pause(self) -> None:
        self.game.paused = not self.game.paused

    def step_once(self) -> None:
        self.game.paused = self.single = True

    def record(self) -> None:
        """Begin a recording, or end it: the page then fetches it."""
        if self.recording is None:
            self.recording = Recording(self.folder / f"{time.time_ns()}.mp4")
            self.recording.add(self.game.pictures())
        else:
            self.recorded.append(self.recording.end())
            self.recording = None

    def _message(self) -> bytes:
        pictures = self.game.pictures()
        header = {
            **self.game.status(),
            "pictures": [[name, *frame.shape[:2]] for name, frame in pictures.items()],
            "recording": self.recording is not None,
            "recorded": self.recorded[-1].stem if self.recorded else None,
        }
        text = json.dumps(header).encode()
        pixels = [np.ascontiguousarray(frame).tobytes() for frame in pictures.values()]
        return b"".join([struct.pack("<I", len(text)), text, *pixels])

    def close(self) -> None:
        with self.at_work:
            if self.recording is not None:
                self.recorded.append(self.recording.end())
            for path in self.recorded:
                path.unlink(missing_ok=True)
            self.game.close()


COMMANDS: dict[str, Callable[[Seat], None]] = {
    "drive": lambda seat: seat.game.hand_over(),
    "switch": lambda seat: seat.game.switch(),
    "reset": lambda seat: seat.game.reset(),
    "pause": Seat.pause,
    "step": Seat.step_once,
    "record": Seat.record,
}


def hands(value: object) -> np.ndarray:
    """What a page says of the hands -> steering, gas and brake (3,). Raises ValueError."""
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError("hands are three numbers: steering, gas and brake")
    wanted = [float(part) for part in value]
    if not all(map(math.isfinite, wanted)):
        raise ValueError("hands are finite numbers")
    return np.clip(wanted, [-1, 0, 0], [1, 1, 1]).astype(np.float32)


class Server:
    """The page, and the seats in front of it."""

    def __init__(self, new_game: Callable[[int], Game], players: int, seed: int, folder: Path):
        self.new_game, self.players, self.seed, self.folder = new_game, players, seed, folder
        self.seats: set[Seat] = set()
        self.taken = 0  # seats, with those whose game is still being made

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_get("/", self.page)
        application.router.add_get("/play", self.play)
        application.router.add_get("/recordings/{name:[0-9]+}.mp4", self.recorded)
        return application

    async def page(self, request: web.Request) -> web.FileResponse:
        return web.FileResponse(PAGE, headers={"Cache-Control": "no-cache"})

    async def recorded(self, request: web.Request) -> web.FileResponse:
        path = self.folder / f"{request.match_info['name']}.mp4"
        if not any(path in seat.recorded for seat in self.seats):
            raise web.HTTPNotFound(text="there is no such recording (any more)")
        return web.FileResponse(path)

    async def play(self, request: web.Request) -> web.WebSocketResponse:
        # Any page of the web may open a socket to this machine; only ours is served.
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            raise web.HTTPForbidden(text="only the page of this server plays here")
        seed = request.query.get("seed", "")
        if not seed.isdecimal() or len(seed) > 9:  # none given: another for each page
            self.seed += 1000
            seed = self.seed - 1000
        socket = web.WebSocketResponse(max_msg_size=MESSAGE_SIZE, heartbeat=20)
        await socket.prepare(request)
        if self.taken >= self.players:
            await tell(socket, f"all {self.players} seats are taken; close another page first")
            await socket.close()
            return socket
        self.taken += 1
        seat = driving = None
        try:
            game = await asyncio.to_thread(self.new_game, int(seed))
            seat = Seat(game, self.folder)
            self.seats.add(seat)
            driving = asyncio.create_task(drive(socket, seat))
            await listen(socket, seat)
        except Refused as error:  # of a file that the game needs
            await tell(socket, str(error))
            await socket.close()
        finally:  # nothing is awaited here, for this may have been cancelled with its connection
            self.taken -= 1
            if driving is not None:
                driving.cancel()
            if seat is not None:
                self.seats.discard(seat)
                asyncio.get_running_loop().run_in_executor(None, seat.close)
        return socket


async def tell(socket: web.WebSocketResponse, error: str) -> None:
    await socket.send_str(json.dumps({"error": error}))


async def listen(socket: web.WebSocketResponse, seat: Seat) -> None:
    """Take the page's messages until it closes."""
    async for message in socket:
        if message.type == WSMsgType.ERROR:  # too long a message, say: the socket is closed
            return
        if message.type != WSMsgType.TEXT:
            await tell(socket, "only text is understood")
            continue
        try:
            seat.asked.put(json.loads(message.data))
        except (ValueError, RecursionError) as error:
            await tell(socket, f"a message that is no JSON: {first_line(error)}")


async def drive(socket: web.WebSocketResponse, seat: Seat) -> None:
    """Step the game at the real car's pace, or slower where this machine is."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    try:
        while True:
            message, wrong = await asyncio.to_thread(seat.advance)
            await socket.send_bytes(message)
            for error in wrong:
                await tell(socket, error)
            due = max(due + 1 / STEPS_PER_SECOND, loop.time())
            await asyncio.sleep(due - loop.time())
    except ConnectionError:  # the page is gone, of which `listen` hears as well
        pass
    except Exception as error:
        await tell(socket, f"the game failed: {first_line(error)}; load the page again")
        await socket.close()
        raise


def serve(new_game: Callable[[int], Game], host: str, port: int, players: int, seed: int) -> None:
    """Serve until Ctrl-C, and open the page where a browser has a display.

    Raises UserError where it cannot listen there.
    """

    async def run(folder: Path) -> None:
        server = Server(new_game, players, seed, folder)
        runner = web.AppRunner(server.application(), shutdown_timeout=1)
        await runner.setup()
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            raise UserError(
                f"--host {host} --port {port}: {error.strerror}; --port 0 takes any free one"
            ) from None
        address = f"http://{host}:{runner.addresses[0][1]}/"
        print(f"{address} (Ctrl-C ends it)", flush=True)
        if why_no_window() is None:  # without a display, a browser of the terminal would take it
            threading.Thread(target=webbrowser.open, args=[address], daemon=True).start()
        try:
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))
