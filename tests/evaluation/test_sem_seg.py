import json
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hotcoco import semantic as hotcoco_semantic
from PIL import Image

from segdet.data import DatasetCatalog, MetadataCatalog
from segdet.data.rle import decode_rle
from segdet.data.sem_seg import read_sem_seg
from segdet.errors import ConfigError, DataError
from segdet.evaluation import SemSegEvaluator
from segdet.evaluation.label_maps import boundary_of
from segdet.evaluation.sem_seg import semantic_scores

NAME = "labelled_here"


@pytest.fixture(autouse=True)
def _own_catalogs(monkeypatch):
    monkeypatch.setattr(MetadataCatalog, "_metadata", {})
    monkeypatch.setattr(DatasetCatalog, "_loaders", {})


def register(files: dict[str, str], classes, **facts) -> None:
    records = [{"file_name": image, "sem_seg_file_name": file} for image, file in files.items()]
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(stuff_classes=list(classes), ignore_label=255, **facts)


def as_scores(labels: np.ndarray, count: int) -> torch.Tensor:
    """(count, H, W) logits whose best are the labels."""
    return torch.nn.functional.one_hot(torch.tensor(labels).long(), count).permute(2, 0, 1) * 2.5


def camvid(shared_data) -> tuple[dict, list[dict], list[dict]]:
    folder = shared_data / "camvid_small"
    golden = json.loads((folder / "eval/expected_val.json").read_text())["semantic"]
    classes = list(golden["per_class_IoU"])
    truth = sorted((folder / "annotations/semantic_val").glob("*.png"))
    register({f"{file.stem}.jpg": str(file) for file in truth}, classes)
    found = [np.asarray(Image.open(folder / "eval/semantic_pred_val" / f.name)) for f in truth]
    inputs = [{"file_name": f"{file.stem}.jpg"} for file in truth]
    return golden, inputs, [{"sem_seg": as_scores(one, 11)} for one in found]


def test_real_results(shared_data, tmp_path):
    golden, inputs, outputs = camvid(shared_data)
    evaluator = SemSegEvaluator(NAME, output_dir=tmp_path)
    evaluator.process(inputs[:1], outputs[:1])
    evaluator.reset()
    evaluator.process(inputs[:4], outputs[:4])
    evaluator.process(inputs[4:], outputs[4:])
    results = evaluator.evaluate()["sem_seg"]
    named = {"mIoU": "mIoU", "fwIoU": "fwIoU", "mACC": "mean_class_accuracy"}
    for ours, theirs in (named | {"pACC": "pixel_accuracy"}).items():
        assert results[ours] == pytest.approx(100 * golden[theirs], abs=1e-9)
    for name, value in golden["per_class_IoU"].items():
        assert results[f"IoU-{name}"] == pytest.approx(100 * value, abs=1e-9)
    assert torch.load(tmp_path / "sem_seg_evaluation.pth") == {"sem_seg": results}
    rows = json.loads((tmp_path / "sem_seg_predictions.json").read_text())
    first = [row for row in rows if row["file_name"] == inputs[0]["file_name"]]
    labels = outputs[0]["sem_seg"].argmax(0).numpy()
    assert [row["category_id"] for row in first] == np.unique(labels).tolist()
    for row in first:
        np.testing.assert_array_equal(decode_rle(row["segmentation"]), labels == row["category_id"])


def _part(rank: int, shared_data, folder) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
    _, inputs, outputs = camvid(shared_data)
    evaluator = SemSegEvaluator(NAME, output_dir=folder)
    for i in np.array_split(np.arange(len(inputs)), 3)[rank]:
        evaluator.process([inputs[i]], [outputs[i]])
    values = evaluator.evaluate()
    assert (values is None) == (rank > 0)
    if rank == 0:
        (folder / "results.json").write_text(json.dumps(values))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_three_processes_agree_with_one(shared_data, tmp_path):
    mp.spawn(_part, args=(shared_data, tmp_path), nprocs=3)
    _, inputs, outputs = camvid(shared_data)
    evaluator = SemSegEvaluator(NAME)
    evaluator.process(inputs, outputs)
    assert json.loads((tmp_path / "results.json").read_text()) == evaluator.evaluate()
    rows = json.loads((tmp_path / "sem_seg_predictions.json").read_text())
    assert len({row["file_name"] for row in rows}) == 21


@pytest.fixture
def one_image(tmp_path):
    """An image of the classes a and b, with one ignored pixel."""
    labels = np.array([[0, 0, 0, 255], [1, 1, 1, 1]], np.uint8)
    Image.fromarray(labels).save(tmp_path / "a.png")
    register(
        {"a.jpg": str(tmp_path / "a.png")},
        "abc",
        stuff_dataset_id_to_contiguous_id={7: 0, 90: 1, 91: 2},
    )
    return labels


def evaluate(labels, count=3, **options) -> dict:
    evaluator = SemSegEvaluator(NAME, **options)
    evaluator.process([{"file_name": "a.jpg"}], [{"sem_seg": as_scores(np.array(labels), count)}])
    return evaluator.evaluate()["sem_seg"]


def test_scores_by_hand(one_image, tmp_path):
    results = evaluate([[0, 0, 1, 2], [1, 1, 2, 2]], output_dir=tmp_path)
    iou = {"a": 2 / 3, "b": 2 / 5, "c": math.nan}  # c is not in the ground truth
    for name, value in iou.items():
        assert results[f"IoU-{name}"] == pytest.approx(100 * value, nan_ok=True)
    assert results["mIoU"] == pytest.approx(100 * (2 / 3 + 2 / 5) / 2)
    assert results["fwIoU"] == pytest.approx(100 * (3 / 7 * 2 / 3 + 4 / 7 * 2 / 5))
    assert results["mACC"] == pytest.approx(100 * (2 / 3 + 2 / 4) / 2)
    assert results["pACC"] == pytest.approx(100 * 4 / 7)
    assert results["ACC-b"] == 50 and math.isnan(results["ACC-c"])
    order = ["mIoU", "fwIoU", "IoU-a", "BoundaryIoU-a", "min(IoU, B-Iou)-a", "IoU-b"]
    assert list(results)[:6] == order and list(results)[-4:-2] == ["pACC", "ACC-a"]
    rows = json.loads((tmp_path / "sem_seg_predictions.json").read_text())
    assert [row["category_id"] for row in rows] == [7, 90, 91]


def test_edges_are_compared_as_label_maps(tmp_path):
    rng = np.random.default_rng(0)
    truth, found = np.kron(rng.integers(0, 4, (2, 6, 8)), np.ones((1, 20, 20))).astype(np.uint8)
    truth[:30, :30] = 255
    Image.fromarray(truth).save(tmp_path / "a.png")
    register({"a.jpg": str(tmp_path / "a.png")}, "abcd")
    results = evaluate(found, count=4)
    truth_edge = boundary_of(np.where(truth == 255, 4, truth).astype(np.uint8), reach=4)
    found_edge = boundary_of(found, reach=4)  # 2% of 200
    for k, name in enumerate("abcd"):
        inside = (truth_edge != 4) & (found_edge != 4)
        a, b = (truth_edge == k) & inside, (found_edge == k) & inside
        expected = 100 * (a & b).sum() / (a | b).sum()
        assert results[f"BoundaryIoU-{name}"] == pytest.approx(expected)
        lower = min(expected, results[f"IoU-{name}"])
        assert results[f"min(IoU, B-Iou)-{name}"] == pytest.approx(lower)


def test_random_tables_as_hotcoco_counts_them():
    rng = np.random.default_rng(0)
    for _ in range(50):
        count = int(rng.integers(1, 9))
        theirs = hotcoco_semantic.SemanticEval(count, ignore_index=count)
        truth = rng.integers(0, count + 1, (20, 30))
        truth[0, :count] = np.arange(count)  # every class is there: means agree then
        found = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, count, truth.shape))
        found = np.minimum(found, count - 1)
        theirs.update(truth, found)
        pixels = np.zeros((count + 1, count + 1), np.int64)
        np.add.at(pixels, (found, truth), 1)
        ours = semantic_scores(pixels, [str(k) for k in range(count)])
        metrics = theirs.report()["metrics"]
        expected = [metrics[key] for key in ("mIoU", "fwIoU", "mAcc", "aAcc")]
        numbers = [ours[key] / 100 for key in ("mIoU", "fwIoU", "mACC", "pACC")]
        assert numbers == pytest.approx(expected, abs=1e-12)


def test_nothing_to_count_is_nan(one_image):
    assert all(map(math.isnan, SemSegEvaluator(NAME).evaluate()["sem_seg"].values()))


def test_ground_truth_may_be_loaded_otherwise(one_image):
    results = evaluate(one_image.clip(max=2), sem_seg_loading_fn=lambda file, dtype: one_image * 0)
    assert results["IoU-a"] == pytest.approx(100 * 3 / 8) and math.isnan(results["IoU-b"])
    assert (
        evaluate(
            one_image.clip(max=2),
            ignore_label=1,
            sem_seg_loading_fn=lambda file, dtype: one_image % 255,
        )["pACC"]
        == 75
    )


def test_ground_truth_may_be_made_from_segments(shared_data, monkeypatch):
    monkeypatch.setenv("SEGDET_DATASETS", str(shared_data))
    name = "camvid_small_panoptic_val"
    evaluator = SemSegEvaluator(name)
    records = DatasetCatalog.get(name)[:2]
    truth = [read_sem_seg(record) for record in records]
    assert any((labels == 255).any() for labels in truth)
    found = [np.where(labels == 255, 3, labels) for labels in truth]
    evaluator.process(records, [{"sem_seg": as_scores(labels, 9)} for labels in found])
    assert evaluator.evaluate()["sem_seg"]["pACC"] == 100


def test_classes_of_one_name_keep_their_numbers(one_image):
    metadata = MetadataCatalog.get(NAME)
    vars(metadata)["stuff_classes"] = ["a", "b", "a"]
    results = evaluate(one_image.clip(max=2))
    assert {"IoU-a (7)", "IoU-b", "IoU-a (91)"} <= results.keys() and "IoU-a" not in results


def test_a_model_without_label_maps_is_named(one_image):
    MetadataCatalog.get(NAME).set(evaluator_type="sem_seg")
    evaluator = SemSegEvaluator(NAME)
    with pytest.raises(
        ConfigError, match=r"gives instances, no sem_seg, .* labelled_here .*sem_seg"
    ):
        evaluator.process([{"file_name": "a.jpg"}], [{"instances": 1}])


def test_a_given_number_of_classes_must_be_right(one_image):
    SemSegEvaluator(NAME, num_classes=3)
    with pytest.raises(ConfigError, match="num_classes is 4, stuff_classes of labelled_here are 3"):
        SemSegEvaluator(NAME, num_classes=4)


def test_what_does_not_fit_is_refused(one_image, tmp_path):
    with pytest.raises(DataError, match=r"a.jpg: the predicted map is \(1, 4\), the annotation"):
        evaluate([[0, 0, 0, 0]])
    with pytest.raises(DataError, match=r"a.jpg: the model predicts class 3, labelled_here has 3"):
        evaluate(np.full((2, 4), 3), count=4)
    Image.fromarray(one_image + 3).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a.png: has label 3, which is neither one of the 3 stuff"):
        evaluate(one_image.clip(max=2))
    with pytest.raises(DataError, match=r"b.jpg is not among the images of labelled_here"):
        SemSegEvaluator(NAME).process([{"file_name": "b.jpg"}], [{"sem_seg": None}])


def test_data_without_ground_truth_or_names_is_refused():
    DatasetCatalog.register("bare", lambda: [{"file_name": "a.jpg"}])
    with pytest.raises(DataError, match="bare has records without sem_seg_file_name"):
        SemSegEvaluator("bare")
    DatasetCatalog.register("unnamed", list)
    with pytest.raises(DataError, match="metadata of unnamed has no stuff_classes"):
        SemSegEvaluator("unnamed")
