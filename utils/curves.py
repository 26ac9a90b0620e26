"""A stage's curves and pictures in TensorBoard."""

import os
import sys
import time
from contextlib import suppress
from pathlib import Path

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from torch import Tensor

from utils.cli import first_line


class Curves:
    """Event files in `folder`, from whose earlier ones all from `first_step` on is hidden.

    A curve is not worth a training: what cannot be written is left out, with one line. Not by
    tensorboardX's SummaryWriter: its thread ends at a failed write, and its next calls then wait
    for that thread for ever.
    """

    def __init__(self, folder: Path, first_step: int):
        self.folder, self.first_step = folder, first_step
        self._file: EventsWriter | None = None
        self._files = 0
        self._reported = False

    def add(self, values: dict[str, float], step: int) -> None:
        """A point of each of some curves, on disk when this returns."""
        self._write([summary.scalar(name, value) for name, value in values.items()], step)

    def add_picture(self, name: str, picture: Tensor, step: int) -> None:
        """A picture (3, H, W) in [0, 1]."""
        self._write([summary.image(name, picture)], step)

    def _write(self, summaries: list, step: int) -> None:
        try:
            if self._file is None:
                self._file = self._open()
            for each in summaries:
                self._file.write_event(Event(step=step, wall_time=time.time(), summary=each))
            self._file.flush()
            self.first_step = step + 1  # a new file leaves all that is written as it is
        except Exception as error:  # of the file system, or of whatever tensorboardX does there
            if not self._reported:
                print(
                    f"{self.folder}: curves cannot be written ({first_line(error)}); going on "
                    "without those of this time",
                    file=sys.stderr,
                )
                self._reported = True
            self.close()  # what follows half a record could not be read: try a new file next time
            for file in self.folder.glob(f"events*.{os.getpid()}.{self._files}"):
                with suppress(OSError):
                    if file.stat().st_size == 0:
                        file.unlink()

    def _open(self) -> EventsWriter:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._files += 1
        # tensorboardX names files by seconds, and overwrites one that is there.
        file = EventsWriter(str(self.folder / "events"), f".{os.getpid()}.{self._files}")
        start = SessionLog(status=SessionLog.START)
        file.write_event(Event(step=self.first_step, wall_time=time.time(), session_log=start))
        return file

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None
