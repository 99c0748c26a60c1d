"""Videos and cameras: stages of work that overlap, and frames in and out by OpenCV."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from segdet.errors import DataError

Item = TypeVar("Item")

_CLOSING_KEYS = {ord("q"), 27}  # 27 is Escape
_WINDOW = "segdet"


def ahead(items: Iterable[Item], depth: int = 2) -> Iterator[Item]:
    """The same items in their order, made by a thread of its own before they are asked for.

    Args:
        items: what makes them; an error in it comes out here.
        depth: items that wait at most.
    """
    waiting: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def hand_over(item: Item | None, error: BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                waiting.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not hand_over(item, None):
                    return
            hand_over(None, StopIteration())
        except BaseException as error:
            hand_over(None, error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error = waiting.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # pyright: ignore[reportReturnType]
    finally:
        stopped.set()
        thread.join()


class Video:
    """Frames of a file or a camera, and a copy that frames are written to.

    Args:
        source: a file that OpenCV decodes, or the number of a camera.
        copy: the mp4 to write.

    Attributes:
        count: frames of a file, as far as it tells; None for a camera.

    Raises:
        DataError: OpenCV is missing, or cannot read the source or write the copy.
    """

    def __init__(self, source: Path | int, copy: Path) -> None:
        try:
            import cv2  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise DataError(
                "--video and --webcam need OpenCV: pip install opencv-python-headless (with "
                "opencv-python a camera's pictures are shown, too)"
            ) from None
        self._cv2: Any = cv2
        self._shows = isinstance(source, int)
        self._reader = cv2.VideoCapture(source if self._shows else str(source))
        width, height = (
            int(self._reader.get(key))
            for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        )
        if not self._reader.isOpened() or min(width, height) < 1:
            name = f"camera {source}" if self._shows else f"video {source}"
            raise DataError(f"{name} cannot be {'opened' if self._shows else 'decoded'}")
        frames = int(self._reader.get(cv2.CAP_PROP_FRAME_COUNT))
        self.count = frames if frames > 0 and not self._shows else None
        rate = self._reader.get(cv2.CAP_PROP_FPS) or 25.0
        code = cv2.VideoWriter.fourcc(*"mp4v")
        self._writer = cv2.VideoWriter(str(copy), code, rate, (width, height))
        if not self._writer.isOpened():
            raise DataError(f"OpenCV cannot write {copy}")

    def frames(self) -> Iterator[np.ndarray]:
        """(H, W, 3) BGR each."""
        while True:
            is_frame, frame = self._reader.read()
            if not is_frame:
                return
            yield frame

    def write(self, frame: np.ndarray, rate: float | None) -> bool:
        """Add a frame (H, W, 3) BGR to the copy; show it, with the rate, if it is a camera's.

        Returns:
            False where the user closed the window (Escape or q).
        """
        self._writer.write(frame)
        if not self._shows:
            return True
        told = f"{rate or 0:.1f} frames/s"
        picture = np.ascontiguousarray(frame)
        font = self._cv2.FONT_HERSHEY_SIMPLEX
        self._cv2.putText(picture, told, (8, 24), font, 0.7, (255, 255, 255), 2)
        try:
            self._cv2.imshow(_WINDOW, picture)
            return self._cv2.waitKey(1) & 0xFF not in _CLOSING_KEYS
        except self._cv2.error:  # a build without windows
            self._shows = False
            return True

    def close(self) -> None:
        """Finish the copy."""
        self._reader.release()
        self._writer.release()


@contextmanager
def open_video(source: Path | int, copy: Path) -> Iterator[Video]:
    """A `Video` that is closed in the end."""
    video = Video(source, copy)
    try:
        yield video
    finally:
        video.close()
