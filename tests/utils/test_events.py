import json
import logging

import pytest
import torch

from segdet.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    HistoryBuffer,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
    has_event_storage,
)


def test_the_innermost_storage_is_found_and_forgotten():
    assert not has_event_storage()
    with EventStorage() as outer:
        with EventStorage(5) as inner:
            assert get_event_storage() is inner
            assert inner.iteration == 5
        assert get_event_storage() is outer
    with pytest.raises(RuntimeError, match="needs an enclosing `with EventStorage"):
        get_event_storage()


def test_a_storage_is_forgotten_when_its_block_fails():
    with pytest.raises(KeyError), EventStorage():
        raise KeyError
    assert not has_event_storage()


def test_latest_and_medians():
    storage = EventStorage()
    for value in (1.0, 9.0, 2.0):
        storage.put_scalar("loss", value)
        storage.put_scalars(smoothing_hint=False, lr=value / 10, **{"bbox/AP": value})
        storage.step()
    assert storage.latest()["loss"] == (2.0, 2)
    smooth = storage.latest_with_smoothing_hint(20)
    assert smooth["loss"] == (2.0, 2)
    assert smooth["lr"] == (0.2, 2)
    assert storage.latest_with_smoothing_hint(2)["loss"] == (5.5, 2)
    assert storage.smoothing_hints() == {"loss": True, "lr": False, "bbox/AP": False}
    assert storage.history("loss").values() == [(1.0, 0), (9.0, 1), (2.0, 2)]
    assert set(storage.histories()) == {"loss", "lr", "bbox/AP"}


def test_history_statistics():
    history = HistoryBuffer(max_length=3)
    for value in (10.0, 1.0, 2.0, 6.0):
        history.update(value)
    assert (history.latest(), history.median(2), history.avg(3)) == (6.0, 4.0, 3.0)
    assert history.global_avg() == 19 / 4  # over all, also those no longer kept
    assert history.values() == [(1.0, 1), (2.0, 2), (6.0, 3)]


def test_name_scope_prefixes_and_ends():
    storage = EventStorage()
    with storage.name_scope("stage0"):
        storage.put_scalar("loss_cls", 1.0)
    storage.put_scalar("loss_cls", 2.0)
    assert storage.latest() == {"stage0/loss_cls": (1.0, 0), "loss_cls": (2.0, 0)}


def test_refuses_two_hints_and_unknown_names():
    storage = EventStorage()
    storage.put_scalar("lr", 1.0, smoothing_hint=False)
    with pytest.raises(ValueError, match="lr was put with smoothing_hint=False before"):
        storage.put_scalar("lr", 1.0)
    with pytest.raises(KeyError, match="no scalar lrs; there are lr"):
        storage.history("lrs")


def test_json_lines_hold_each_iteration_once_and_are_whole_before_close(tmp_path):
    file = tmp_path / "metrics.json"
    writer = JSONWriter(file)
    with EventStorage() as storage:
        for loss in (4.0, 2.0):
            storage.put_scalar("total_loss", loss)
            writer.write()
            storage.step()
        writer.write()  # nothing new
        storage.put_scalar("bbox/AP", 40.0, smoothing_hint=False)
        writer.write()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines == [
        {"iteration": 0, "total_loss": 4.0},
        {"iteration": 1, "total_loss": 3.0},  # the median of both
        {"iteration": 2, "bbox/AP": 40.0},
    ]
    writer.close()


def test_json_of_a_second_run_is_appended(tmp_path):
    for start in (0, 7):
        with EventStorage(start) as storage:
            storage.put_scalar("lr", 0.1)
            writer = JSONWriter(tmp_path / "metrics.json")
            writer.write()
            writer.close()
    lines = (tmp_path / "metrics.json").read_text().splitlines()
    assert [json.loads(line)["iteration"] for line in lines] == [0, 7]


@pytest.mark.parametrize(
    "rest", ["", '{"iteration": 9, "lr', "\0\0", "[]\n", '"iteration"\n', "{}\n"]
)
@pytest.mark.parametrize(
    "iteration, left", [(-1, []), (4, [0, 3]), (7, [0, 3, 7]), (99, [0, 3, 7])]
)
def test_a_resumed_run_takes_back_the_lines_that_it_writes_again(tmp_path, iteration, left, rest):
    file = tmp_path / "metrics.json"
    file.write_text("".join(f'{{"iteration": {i}, "lr": 1.0}}\n' for i in (0, 3, 7)) + rest)
    writer = JSONWriter(file)
    writer.rewind(iteration)
    with EventStorage(8) as storage:
        storage.put_scalar("lr", 0.5)
        storage.put_scalar("old", 1.0, cur_iter=max(left, default=-1))  # is in the file
        writer.write()
    writer.close()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [*left, 8]


def test_what_was_measured_comes_back_as_far_as_writers_look():
    first, second = EventStorage(), EventStorage(30)
    for value in range(30):
        first.put_scalars(loss=value)
        first.put_scalar("lr", 0.1, smoothing_hint=False)
        first.step()
    second.load_state_dict(first.state_dict())
    assert second.latest() == first.latest()
    assert second.latest_with_smoothing_hint(20) == first.latest_with_smoothing_hint(20)
    assert len(second.history("loss").values()) == 20


def test_console_line(caplog):
    caplog.set_level(logging.INFO)
    with EventStorage(19) as storage:
        storage.put_scalars(total_loss=1.25, loss_cls=0.5, time=0.5, data_time=0.01)
        storage.put_scalar("lr", 0.02, smoothing_hint=False)
        CommonMetricPrinter(max_iter=220).write()
    (line,) = caplog.messages
    assert line.startswith(
        "eta: 0:01:40  iter: 19  total_loss: 1.25  loss_cls: 0.5  time: 0.5000  "
        "data_time: 0.0100  lr: 0.02"
    )
    assert storage.latest()["eta_seconds"] == (100.0, 19)


def test_console_is_silent_after_the_last_iteration(caplog):
    caplog.set_level(logging.INFO)
    with EventStorage(10):
        CommonMetricPrinter(max_iter=10).write()
    assert caplog.messages == []


def test_tensorboard_gets_scalars_images_and_histograms(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = TensorboardXWriter(tmp_path / "tb")
    with EventStorage(3) as storage:
        storage.put_scalar("loss", 2.0)
        storage.put_image("picture", torch.zeros(3, 4, 5))
        storage.put_histogram("weights", torch.arange(10.0), bins=5)
        writer.write()
        writer.write()
    writer.close()
    events = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 2.0)]
    assert len(events.Images("picture")) == 1
    (histogram,) = events.Histograms("weights")
    assert histogram.histogram_value.num == 10
    assert storage.take_images() == []


def test_tensorboard_leaves_nothing_of_a_run_that_never_wrote(tmp_path):
    TensorboardXWriter(tmp_path / "tb").close()
    assert not (tmp_path / "tb").exists()
