import pytest
import torch

from segdet.evaluation import (
    DatasetEvaluator,
    DatasetEvaluators,
    inference_context,
    inference_on_dataset,
)


class Recorder(DatasetEvaluator):
    def __init__(self, results=None):
        self.results = results
        self.seen = ["left over"]

    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += zip(inputs, outputs, strict=True)

    def evaluate(self):
        return self.results


class Doubler(torch.nn.Module):
    def forward(self, inputs):
        assert not self.training and not torch.is_grad_enabled()
        return [2 * x for x in inputs]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batches", [0, 1, 8])
def test_every_batch_is_processed_in_evaluation_mode(training, batches):
    model = Doubler().train(training)
    recorder = Recorder({"task": {"AP": 1.0}})
    results = inference_on_dataset(model, [[i] for i in range(batches)], recorder)
    assert results == {"task": {"AP": 1.0}}
    assert recorder.seen == [(i, 2 * i) for i in range(batches)]
    assert model.training is training and torch.is_grad_enabled()


def test_a_plain_function_can_be_evaluated():
    recorder = Recorder()
    assert inference_on_dataset(lambda inputs: inputs, [[1], [2]], recorder) == {}
    assert recorder.seen == [(1, 1), (2, 2)]


def test_without_an_evaluator_the_model_only_runs():
    seen = []
    assert inference_on_dataset(lambda inputs: seen.extend(inputs) or inputs, [[1]], None) == {}
    assert seen == [1]


def test_an_evaluator_needs_no_base_class():
    class Own:
        reset, process, evaluate = Recorder.reset, Recorder.process, lambda self: {"n": self.seen}

    results = inference_on_dataset(lambda inputs: inputs, [[1]], Own())
    assert results == {"n": [(1, 1)]}


def test_callbacks_are_called_around_the_loop_and_the_model():
    calls = []
    moments = ("on_start", "before_inference", "after_inference", "on_end")
    callbacks = {moment: lambda moment=moment: calls.append(moment) for moment in moments}
    model = lambda inputs: calls.append("model") or inputs  # noqa: E731
    inference_on_dataset(model, [[1], [2]], None, callbacks)
    around = ["before_inference", "model", "after_inference"]
    assert calls == ["on_start", *around, *around, "on_end"]
    inference_on_dataset(model, [[1]], None, {"on_end": callbacks["on_end"]})
    assert calls[-2:] == ["model", "on_end"]
    with pytest.raises(ValueError, match=r"callbacks are on_start, .*; got at_end"):
        inference_on_dataset(model, [[1]], None, {"at_end": callbacks["on_end"]})


def test_results_of_several_evaluators_are_merged():
    evaluators = [Recorder({"a": {"x": 1.0}}), Recorder(None), Recorder({"b": {"x": 2.0}})]
    results = inference_on_dataset(lambda inputs: inputs, [[1]], evaluators)
    assert results == {"a": {"x": 1.0}, "b": {"x": 2.0}}
    assert all(one.seen == [(1, 1)] for one in evaluators)


def test_two_evaluators_cannot_report_one_task():
    evaluators = DatasetEvaluators([Recorder({"bbox": {}}), Recorder({"bbox": {}})])
    with pytest.raises(ValueError, match="two evaluators report bbox"):
        evaluators.evaluate()


def test_the_training_flag_comes_back_after_an_error():
    model = Doubler().train()
    with pytest.raises(RuntimeError), inference_context(model):
        raise RuntimeError
    assert model.training


def test_a_line_tells_where_the_time_went(caplog):
    caplog.set_level("INFO")
    inference_on_dataset(lambda inputs: inputs, [[i] for i in range(7)], None)
    assert "Inference done: 7 batches; seconds per batch: data" in caplog.text
