import json
import math
from collections import defaultdict

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from segdet.data.catalog import DatasetCatalog, MetadataCatalog
from segdet.data.datasets.coco import register_coco_instances
from segdet.data.rle import decode_rle
from segdet.errors import ConfigError, DataError
from segdet.evaluation import COCOEvaluator, evaluate_results
from segdet.structures import Boxes, BoxMode, Instances

NAME = "evaluated_here"


@pytest.fixture(autouse=True)
def _clean_catalog():
    yield
    if NAME in DatasetCatalog.list():
        DatasetCatalog.remove(NAME)
    if NAME in MetadataCatalog:
        MetadataCatalog.remove(NAME)


def register(folder) -> None:
    register_coco_instances(NAME, {}, folder / "annotations/instances_val.json", folder / "val")


def outputs_from(folder) -> tuple[list[dict], list[dict]]:
    """The stored results as a model's inputs and outputs, one image each."""
    categories = MetadataCatalog.get(NAME).thing_dataset_id_to_contiguous_id
    rows = defaultdict(list)
    for row in json.loads((folder / "eval/results.json").read_text()):
        rows[row["image_id"]].append(row)
    inputs, outputs = [], []
    for record in DatasetCatalog.get(NAME):
        size = record["height"], record["width"]
        found = rows[record["image_id"]]
        masks = [decode_rle(row["segmentation"]) for row in found]
        boxes = torch.tensor([row["bbox"] for row in found]).reshape(-1, 4).float()
        boxes[:, 2:] += boxes[:, :2]
        instances = Instances(
            size,
            pred_boxes=Boxes(boxes),
            scores=torch.tensor([row["score"] for row in found]),
            pred_classes=torch.tensor(
                [categories[row["category_id"]] for row in found], dtype=torch.int64
            ),
            pred_masks=torch.tensor(np.array(masks).reshape(-1, *size)).bool(),
        )
        inputs.append({"image_id": record["image_id"], "file_name": record["file_name"]})
        outputs.append({"instances": instances})
    return inputs, outputs


def fill(evaluator: COCOEvaluator, inputs: list[dict], outputs: list[dict]) -> COCOEvaluator:
    evaluator.reset()
    for image, output in zip(inputs, outputs, strict=True):
        evaluator.process([image], [output])
    return evaluator


@pytest.mark.parametrize(
    "name, fast", [("coco_mini", True), ("coco_mini", False), ("nuclei", True)]
)
def test_stored_results_as_outputs_give_the_stored_numbers(shared_data, tmp_path, name, fast):
    folder = shared_data / name
    register(folder)
    DatasetCatalog.get(NAME)
    inputs, outputs = outputs_from(folder)
    evaluator = COCOEvaluator(NAME, output_dir=tmp_path, use_fast_impl=fast)
    results = fill(evaluator, inputs, outputs).evaluate()
    expected = json.loads((folder / "eval/expected.json").read_text())
    assert list(results) == ["bbox", "segm"]
    for kind, metrics in results.items():
        percent = {key: value * 100 for key, value in expected[kind].items() if key[:2] == "AP"}
        percent = {key: math.nan if ap < 0 else ap for key, ap in percent.items()}
        per_class = expected[kind].get("per_category_AP", {}).items()
        percent |= {f"AP-{key}": math.nan if ap is None else ap * 100 for key, ap in per_class}
        assert metrics == pytest.approx(percent, nan_ok=True)
    # What was written says the same, by the data set's own ids.
    gt_json = folder / "annotations/instances_val.json"
    written = evaluate_results(gt_json, tmp_path / "coco_instances_results.json")
    assert written["bbox"] == pytest.approx(results["bbox"], nan_ok=True)
    assert written["segm"] == pytest.approx(results["segm"], nan_ok=True)
    by_image = torch.load(tmp_path / "instances_predictions.pth")
    assert [one["image_id"] for one in by_image] == [image["image_id"] for image in inputs]
    classes = [row["category_id"] for row in by_image[0]["instances"]]
    assert classes == outputs[0]["instances"].pred_classes.tolist()


def _part(rank: int, world_size: int, folder, results) -> None:
    torch.set_num_threads(1)
    meet = f"file://{results}.meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world_size)
    register(folder)
    DatasetCatalog.get(NAME)
    inputs, outputs = outputs_from(folder)
    share = np.array_split(np.arange(len(inputs)), world_size)[rank]  # of 35 images
    evaluator = COCOEvaluator(NAME)
    fill(evaluator, [inputs[i] for i in share], [outputs[i] for i in share])
    values = evaluator.evaluate()
    assert (values is None) == (rank > 0)
    if rank == 0:
        results.write_text(json.dumps(values))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_three_processes_agree_with_one(shared_data, tmp_path):
    folder = shared_data / "nuclei"
    mp.spawn(_part, args=(3, folder, tmp_path / "results.json"), nprocs=3)
    register(folder)
    DatasetCatalog.get(NAME)
    alone = fill(COCOEvaluator(NAME), *outputs_from(folder)).evaluate()
    shared = json.loads((tmp_path / "results.json").read_text())
    assert shared["bbox"] == pytest.approx(alone["bbox"], nan_ok=True, abs=0)
    assert shared["segm"] == pytest.approx(alone["segm"], nan_ok=True, abs=0)


SQUARE = [1.0, 1.0, 3.0, 3.0]


def register_by_hand(records: list[dict] | None = None, classes=("cat", "dog")) -> None:
    if records is None:
        annotation = {"bbox": SQUARE, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
        annotation["segmentation"] = [[1.0, 1.0, 3.0, 1.0, 3.0, 3.0, 1.0, 3.0]]
        records = [
            {
                "file_name": "a.png",
                "image_id": i,
                "height": 8,
                "width": 9,
                "annotations": [annotation],
            }
            for i in range(2)
        ]
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(thing_classes=list(classes))


def square(category: int = 1, **fields) -> dict:
    """One object where the ground truth has it."""
    mask = torch.zeros(1, 8, 9, dtype=torch.bool)
    mask[:, 1:3, 1:3] = True
    given = {
        "pred_boxes": Boxes(torch.tensor([SQUARE])),
        "scores": torch.tensor([0.5]),
        "pred_classes": torch.tensor([category]),
        "pred_masks": mask,
    }
    return {"instances": Instances((8, 9), **(given | fields))}


IMAGES = [{"image_id": 0}, {"image_id": 1}]


@pytest.mark.parametrize("with_folder", [True, False])
def test_data_registered_by_hand_is_converted(tmp_path, with_folder):
    register_by_hand()
    evaluator = COCOEvaluator(NAME, output_dir=tmp_path if with_folder else None)
    results = fill(evaluator, IMAGES, [square(), square()]).evaluate()
    assert results["segm"]["AP"] == results["bbox"]["AP-dog"] == pytest.approx(100)
    assert math.isnan(results["bbox"]["AP-cat"])
    expected = {f"{NAME}_coco_format.json", "coco_instances_results.json"}
    expected.add("instances_predictions.pth")
    assert {file.name for file in tmp_path.iterdir()} == (expected if with_folder else set())


def test_a_name_of_paths_is_converted_into_the_folder(tmp_path, monkeypatch):
    register_by_hand()
    name = f"{tmp_path}/pan.json:{tmp_path}/images"
    monkeypatch.setitem(DatasetCatalog._loaders, name, DatasetCatalog._loaders[NAME])
    monkeypatch.setitem(MetadataCatalog._metadata, name, MetadataCatalog.get(NAME))
    COCOEvaluator(name, output_dir=tmp_path / "out")
    assert [one.name for one in tmp_path.iterdir()] == ["out"], "nothing beside the user's files"
    (file,) = (tmp_path / "out").iterdir()
    assert file.is_file() and file.name.endswith("images_coco_format.json")


def test_changed_data_is_converted_anew_unless_asked(tmp_path):
    register_by_hand()
    COCOEvaluator(NAME, output_dir=tmp_path)
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)
    register_by_hand(
        [{"file_name": "b.png", "image_id": 0, "height": 8, "width": 9, "annotations": []}]
    )
    stale = COCOEvaluator(NAME, output_dir=tmp_path, allow_cached_coco=True)
    assert fill(stale, IMAGES, [square(), square()]).evaluate()["bbox"]["AP"] > 99
    fresh = COCOEvaluator(NAME, output_dir=tmp_path)
    assert math.isnan(fill(fresh, IMAGES[:1], [square()]).evaluate()["bbox"]["AP"])


def test_without_masks_only_boxes_are_evaluated():
    register_by_hand()
    outputs = [square(), square()]
    for output in outputs:
        output["instances"].remove("pred_masks")
    results = fill(COCOEvaluator(NAME), IMAGES, outputs).evaluate()
    assert list(results) == ["bbox"] and results["bbox"]["AP50"] == pytest.approx(100)


@pytest.mark.parametrize("tasks", [("segm",), "segm", ["segm"], ["boundary"]])
def test_tasks_can_be_chosen(tasks):
    register_by_hand()
    results = fill(COCOEvaluator(NAME, tasks), IMAGES, [square(), square()]).evaluate()
    (task,) = results
    assert task in tasks and results[task]["AP"] == pytest.approx(100)


def test_classes_of_things_may_have_gaps_where_stuff_is(tmp_path):
    register_by_hand()
    COCOEvaluator(NAME, output_dir=tmp_path)
    json_file = tmp_path / f"{NAME}_coco_format.json"
    ids = [row["id"] for row in json.loads(json_file.read_text())["categories"]]
    places = dict(zip(ids, (2, 11), strict=True))
    facts = {"json_file": str(json_file), "thing_dataset_id_to_contiguous_id": places}
    MetadataCatalog.get(NAME).set(**facts)
    results = fill(COCOEvaluator(NAME), IMAGES, [square(11), square(11)]).evaluate()
    assert results["bbox"]["AP-dog"] == pytest.approx(100)
    with pytest.raises(DataError, match="the model predicts class 5 as an object, which"):
        fill(COCOEvaluator(NAME), IMAGES, [square(11), square(5)]).evaluate()


def test_old_scripts_may_pass_their_config():
    register_by_hand()
    evaluator = COCOEvaluator(NAME, {"TEST": {}}, False, output_dir=None)
    assert list(fill(evaluator, IMAGES, [square(), square()]).evaluate()) == ["bbox", "segm"]


def test_unknown_tasks_are_refused():
    register_by_hand()
    with pytest.raises(ConfigError, match="knows the tasks bbox, segm, keypoints, boundary; got"):
        COCOEvaluator(NAME, ("bbox", "masks"))


def test_nothing_found_is_nan(caplog):
    register_by_hand()
    nothing = {"instances": square()["instances"][:0]}
    results = fill(COCOEvaluator(NAME), IMAGES, [nothing, nothing]).evaluate()
    assert list(results) == ["bbox", "segm"]
    assert all(math.isnan(value) for value in results["bbox"].values())
    assert "Nothing was found in any image" in caplog.text


def test_no_image_gives_no_results(caplog):
    register_by_hand()
    assert COCOEvaluator(NAME).evaluate() == {}
    assert "No image was predicted" in caplog.text


def test_images_left_out_count_as_missed_and_are_told(caplog):
    register_by_hand()
    results = fill(COCOEvaluator(NAME), IMAGES[:1], [square()]).evaluate()
    assert results["bbox"]["AP"] == pytest.approx(100 * 51 / 101)
    assert "Only 1 of 2 images were predicted" in caplog.text


def test_a_test_set_is_only_written(shared_data, tmp_path):
    register_coco_instances(
        NAME, {}, shared_data / "nasty/json/no_annotations_key.json", shared_data / "nasty/images"
    )
    evaluator = COCOEvaluator(NAME, output_dir=tmp_path)
    mask = torch.ones(1, 120, 160, dtype=torch.bool)
    assert fill(evaluator, [{"image_id": 1}], [square(pred_masks=mask)]).evaluate() == {}
    (row,) = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert row["category_id"] == 2 and row["bbox"] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    "image, output, said",
    [
        ({"image_id": 7}, square(), "no image of the predicted image_id 7"),
        ({"file_name": "x.png"}, square(), "the record of x.png has no image_id"),
        ({"image_id": 0}, square(2), "predicts class 2, but .* has 2 categories; .*NUM_CLASSES"),
        ({"image_id": 0}, square(scores=torch.tensor([math.nan])), "image 0: .* are NaN or"),
    ],
)
def test_outputs_that_do_not_fit_are_named(image, output, said):
    register_by_hand()
    with pytest.raises(DataError, match=said):
        fill(COCOEvaluator(NAME), [image], [output]).evaluate()


def test_a_broken_ground_truth_is_found_before_inference(shared_data):
    register_coco_instances(NAME, {}, shared_data / "nasty/json/invalid_truncated.json", "")
    with pytest.raises(DataError, match=r"invalid_truncated.json: is not valid JSON"):
        COCOEvaluator(NAME)


def test_masks_are_kept_as_run_lengths():
    register_by_hand()
    evaluator = fill(COCOEvaluator(NAME), IMAGES, [square(), square()])
    assert all(len(one.masks[0]["counts"]) < 10 for one in evaluator._found)


def test_masks_rank_by_their_own_scores(tmp_path):
    """Of two objects the true one is second by `scores` and first by `mask_scores`."""
    register_by_hand()
    elsewhere = {"pred_boxes": Boxes(torch.tensor([[5.0, 5.0, 8.0, 8.0]]))}
    elsewhere["pred_masks"] = square()["instances"].pred_masks.roll((4, 4), (1, 2))
    both = Instances.cat(
        [square(**elsewhere, scores=torch.tensor([0.9]))["instances"], square()["instances"]]
    )

    def evaluate(**fields) -> dict[str, float]:
        one = Instances(both.image_size, **both.get_fields(), **fields)
        evaluator = COCOEvaluator(NAME, output_dir=tmp_path)
        evaluator.process(IMAGES, [{"instances": one}] * 2)
        results = evaluator.evaluate()
        from_file = evaluate_results(
            tmp_path / f"{NAME}_coco_format.json", tmp_path / "coco_instances_results.json"
        )
        assert from_file["segm"]["AP"] == pytest.approx(results["segm"]["AP"])
        return {task: results[task]["AP-dog"] for task in ("bbox", "segm")}

    assert evaluate() == pytest.approx({"bbox": 50, "segm": 50}, abs=1)
    scored = evaluate(mask_scores=torch.tensor([-0.1, 1.2]))
    assert scored == pytest.approx({"bbox": 50, "segm": 100}, abs=1)
