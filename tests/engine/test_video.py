import threading
import time

import numpy as np
import pytest

from segdet.engine.video import Video, ahead
from segdet.errors import DataError


def test_items_keep_their_order():
    assert list(ahead(range(100))) == list(range(100))
    assert list(ahead([])) == []


def test_stages_overlap():
    arrived = threading.Event()

    def numbers():
        yield 1
        arrived.set()  # made while the first one is still being worked on
        yield 2

    items = ahead(numbers())
    assert next(items) == 1
    assert arrived.wait(5)
    assert list(items) == [2]


def test_errors_come_out_after_the_items_before_them():
    def broken():
        yield 1
        raise DataError("frame 2 is broken")

    items = ahead(broken())
    assert next(items) == 1
    with pytest.raises(DataError, match="frame 2 is broken"):
        next(items)


def test_no_more_is_made_than_may_wait_and_stopping_ends_the_threads():
    made = []
    before = threading.active_count()
    items = ahead((made.append(i) or i for i in range(1000)), depth=3)
    assert next(items) == 0
    time.sleep(0.05)
    assert len(made) <= 5  # taken, waiting, and the one that finds no place
    items.close()
    assert threading.active_count() == before


def test_a_camera_that_is_not_there_is_named(tmp_path):
    pytest.importorskip("cv2", reason="cameras need OpenCV")
    with pytest.raises(DataError, match="camera 987 cannot be opened"):
        Video(987, tmp_path / "webcam.mp4")


def test_a_camera_shows_the_rate_until_it_is_closed(tmp_path, monkeypatch):
    cv2 = pytest.importorskip("cv2", reason="cameras need OpenCV")
    shown, keys = [], iter([-1, 27])
    source = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for _ in range(3):
        writer.write(np.full((48, 64, 3), 99, np.uint8))
    writer.release()
    capture = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: capture(str(source)))
    monkeypatch.setattr(cv2, "imshow", lambda name, picture: shown.append(picture), raising=False)
    monkeypatch.setattr(cv2, "waitKey", lambda wait: next(keys), raising=False)
    video = Video(0, tmp_path / "webcam.mp4")
    frames = list(video.frames())
    assert video.count is None and len(frames) == 3
    assert [video.write(frame, 12.5) for frame in frames[:2]] == [True, False]
    assert all((picture == 255).any() for picture in shown)  # the rate
    video.close()
