import gc
import json
import math
import tracemalloc

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hotcoco import panoptic as hotcoco_panoptic

from segdet.data import MetadataCatalog
from segdet.data.segment_ids import id2rgb, read_segment_ids, write_segment_ids
from segdet.errors import ConfigError, DataError
from segdet.evaluation import COCOPanopticEvaluator

NAME = "segments_here"


@pytest.fixture(autouse=True)
def _own_catalog(monkeypatch):
    monkeypatch.setattr(MetadataCatalog, "_metadata", {})


def register(json_file, root) -> list[dict]:
    """Things and stuff numbered apart, as Panoptic FPN has them."""
    categories = json.loads(json_file.read_text())["categories"]
    things = [row["id"] for row in categories if row["isthing"]]
    stuff = [row["id"] for row in categories if not row["isthing"]]
    MetadataCatalog.get(NAME).set(
        panoptic_json=str(json_file),
        panoptic_root=str(root),
        thing_dataset_id_to_contiguous_id={k: i for i, k in enumerate(things)},
        stuff_dataset_id_to_contiguous_id={0: 0, **{k: i for i, k in enumerate(stuff, 1)}},
    )
    return categories


def outputs_from(json_file, root, order="image_id") -> tuple[list[dict], list[dict]]:
    """Stored results as a model's inputs and outputs, with contiguous classes."""
    metadata = MetadataCatalog.get(NAME)
    things = metadata.thing_dataset_id_to_contiguous_id
    stuff = metadata.stuff_dataset_id_to_contiguous_id
    inputs, outputs = [], []
    for row in json.loads(json_file.read_text())["annotations"]:
        segments = []
        for segment in row["segments_info"]:
            category = segment["category_id"]
            label = things[category] if category in things else stuff[category]
            one = {"id": segment["id"], "category_id": label, "isthing": category in things}
            segments.append(one)
        ids = torch.from_numpy(read_segment_ids(root / row["file_name"]))
        file = f"somewhere/{row['file_name'].replace('.png', '.jpg')}"
        inputs.append({"image_id": row["image_id"], "file_name": file})
        outputs.append({"panoptic_seg": (ids, segments)})
    return inputs, outputs


def camvid(shared_data) -> tuple[list[dict], list[dict]]:
    folder = shared_data / "camvid_small"
    register(folder / "annotations/panoptic_val.json", folder / "annotations/panoptic_val")
    return outputs_from(folder / "eval/panoptic_pred_val.json", folder / "eval/panoptic_pred_val")


def test_real_results(shared_data, tmp_path, caplog):
    folder = shared_data / "camvid_small"
    inputs, outputs = camvid(shared_data)
    evaluator = COCOPanopticEvaluator(NAME, output_dir=tmp_path)
    for _ in range(2):  # whatever came before
        evaluator.reset()
        evaluator.process(inputs[:5], outputs[:5])
        evaluator.process(inputs[5:], outputs[5:])
    with caplog.at_level("INFO"):
        results = evaluator.evaluate()["panoptic_seg"]
    golden = json.loads((folder / "eval/expected_val.json").read_text())
    for suffix, group in (("", "All"), ("_th", "Things"), ("_st", "Stuff")):
        for name in ("PQ", "SQ", "RQ"):
            number = 100 * golden[group][name.lower()]
            assert results[name + suffix] == pytest.approx(number, abs=1e-9)
    assert list(results)[:4] == ["PQ", "SQ", "RQ", "PQ_th"]
    assert results["PQ-car"] == pytest.approx(100 * golden["per_class"]["car"]["pq"], abs=1e-9)
    assert "| Things |" in caplog.text and f"{results['PQ_st']:.3f}" in caplog.text

    # What was written is the official format: others count the same from it.
    truth = folder / "annotations/panoptic_val.json"
    theirs = hotcoco_panoptic.pq_compute(
        truth, tmp_path / "predictions.json", pred_folder=tmp_path / "panoptic"
    )
    assert 100 * theirs["All"]["pq"] == pytest.approx(results["PQ"], abs=1e-9)
    written = json.loads((tmp_path / "predictions.json").read_text())
    official = json.loads((folder / "eval/panoptic_pred_val.json").read_text())
    assert written["categories"] == json.loads(truth.read_text())["categories"]
    ours = {row["image_id"]: row for row in written["annotations"]}
    for row in official["annotations"]:
        mine = ours[row["image_id"]]
        ids = [(s["id"], s["category_id"]) for s in row["segments_info"]]
        assert [(s["id"], s["category_id"]) for s in mine["segments_info"]] == ids
        np.testing.assert_array_equal(
            read_segment_ids(tmp_path / "panoptic" / mine["file_name"]),
            read_segment_ids(folder / "eval/panoptic_pred_val" / row["file_name"]),
        )


def _part(rank: int, world_size: int, shared_data, folder) -> None:
    torch.set_num_threads(1)
    meet = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=world_size)
    inputs, outputs = camvid(shared_data)
    share = np.array_split(np.arange(len(inputs)), world_size)[rank]
    evaluator = COCOPanopticEvaluator(NAME, output_dir=folder)
    evaluator.process([inputs[i] for i in share], [outputs[i] for i in share])
    values = evaluator.evaluate()
    assert (values is None) == (rank > 0)
    if rank == 0:
        (folder / "results.json").write_text(json.dumps(values))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_several_processes_give_equal_numbers(shared_data, tmp_path):
    mp.spawn(_part, args=(3, shared_data, tmp_path), nprocs=3)
    images = camvid(shared_data)
    evaluator = COCOPanopticEvaluator(NAME)
    evaluator.process(*images)
    shared = json.loads((tmp_path / "results.json").read_text())
    assert shared == evaluator.evaluate()  # to the last bit
    rows = json.loads((tmp_path / "predictions.json").read_text())["annotations"]
    assert len(rows) == 21 == len(list((tmp_path / "panoptic").iterdir()))


@pytest.fixture
def one_image(tmp_path):
    """An image of a car (id 5) on a road (id 9), and a metadata entry."""
    ids = np.array([[1, 1, 2, 2], [1, 1, 2, 0]])
    (tmp_path / "truth").mkdir()
    write_segment_ids(tmp_path / "truth/a.png", ids)
    segments = [
        {"id": 1, "category_id": 5, "area": 4, "iscrowd": 0},
        {"id": 2, "category_id": 9, "area": 3, "iscrowd": 0},
    ]
    tree = {
        "images": [{"id": "a", "file_name": "a.jpg", "height": 2, "width": 4}],
        "categories": [
            {"id": 5, "name": "car", "isthing": 1},
            {"id": 9, "name": "road", "isthing": 0},
        ],
        "annotations": [{"image_id": "a", "file_name": "a.png", "segments_info": segments}],
    }
    (tmp_path / "truth.json").write_text(json.dumps(tree))
    register(tmp_path / "truth.json", tmp_path / "truth")
    return torch.from_numpy(ids)


A = {"image_id": "a", "file_name": "a.jpg"}


def test_memory_does_not_grow_with_the_images(one_image, tmp_path):
    """220 images of 64 segments each: kept, the last 200 would take 200 x 64 x 200 bytes."""
    ids = np.arange(1, 65).reshape(8, 8)
    write_segment_ids(tmp_path / "truth/a.png", ids)
    file = tmp_path / "truth.json"
    tree = json.loads(file.read_text())
    segments = [{"id": i, "category_id": 5, "area": 1, "iscrowd": 0} for i in range(1, 65)]
    tree["annotations"] = [
        {"image_id": i, "file_name": f"{i}.png", "segments_info": segments} for i in range(220)
    ]
    for i in range(220):
        (tmp_path / f"truth/{i}.png").hardlink_to(tmp_path / "truth/a.png")
    file.write_text(json.dumps(tree))
    evaluator = COCOPanopticEvaluator(NAME, output_dir=tmp_path / "out")
    found = [SEGMENTS[0] | {"id": i} for i in range(1, 65)]
    tracemalloc.start()
    try:
        for i in range(220):
            if i == 20:
                gc.collect()
                before = tracemalloc.get_traced_memory()[0]
            record = {"image_id": i, "file_name": f"{i}.jpg"}
            evaluator.process([record], [{"panoptic_seg": (torch.from_numpy(ids), found)}])
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 200 * 64 * 20  # bytes; caches of other code are let some 26 000
    assert evaluator.evaluate()["panoptic_seg"]["PQ"] == 100


SEGMENTS = [
    {"id": 1, "category_id": 0, "isthing": True, "score": 0.9, "instance_id": 0},
    {"id": 2, "category_id": 1, "isthing": False, "area": 3},
]


def evaluate(*outputs, **options) -> dict:
    evaluator = COCOPanopticEvaluator(NAME, **options)
    evaluator.process([A] * len(outputs), [{"panoptic_seg": one} for one in outputs])
    return evaluator.evaluate()["panoptic_seg"]


def test_the_data_sets_own_ids_need_no_isthing(one_image):
    own = [{"id": 1, "category_id": 5}, {"id": 2, "category_id": 9}]
    assert evaluate((one_image, own)) == evaluate((one_image, SEGMENTS))
    assert evaluate((one_image, SEGMENTS))["PQ"] == 100


def test_maps_may_say_their_segments_themselves(one_image, tmp_path):
    MetadataCatalog.get(NAME).set(label_divisor=1000)
    MetadataCatalog.get(NAME).stuff_dataset_id_to_contiguous_id.pop(0)
    labels = torch.tensor([[0, 0, 1000, 1000], [0, 0, 1000, -1]])
    assert evaluate((labels, None), output_dir=tmp_path)["PQ"] == 100
    rgb = id2rgb(np.array([[1, 1, 1001, 1001], [1, 1, 1001, 0]]))
    np.testing.assert_array_equal(
        read_segment_ids(tmp_path / "panoptic/a.png"), rgb[..., 0] + 256 * rgb[..., 1].astype(int)
    )


def test_pictures_are_named_as_the_ground_truths(one_image, tmp_path):
    file = tmp_path / "truth.json"
    tree = json.loads(file.read_text())
    (row,) = tree["annotations"]
    rows = [row | {"image_id": i, "file_name": f"{i}.png"} for i in (1, 2)]
    for i in (1, 2):
        (tmp_path / f"truth/{i}.png").hardlink_to(tmp_path / "truth/a.png")
    file.write_text(json.dumps(tree | {"annotations": rows}))
    evaluator = COCOPanopticEvaluator(NAME, tmp_path / "out")
    for i in (1, 2):
        image = {"image_id": i, "file_name": f"{i}/frame.jpg"}
        evaluator.process([image], [{"panoptic_seg": (one_image, SEGMENTS)}])
    evaluator.evaluate()
    written = json.loads((tmp_path / "out/predictions.json").read_text())["annotations"]
    assert [row["file_name"] for row in written] == ["1.png", "2.png"]
    assert {one.name for one in (tmp_path / "out/panoptic").iterdir()} == {"1.png", "2.png"}

    images = [{"id": i, "file_name": f"{i}/frame.jpg"} for i in (1, 2)]
    del tree["annotations"]
    file.write_text(json.dumps(tree | {"images": images}))
    with pytest.raises(DataError, match=r"2 images would have one picture of .*frame\.png"):
        COCOPanopticEvaluator(NAME, tmp_path / "out")


def test_classes_of_one_name_keep_their_numbers(one_image, tmp_path):
    file = tmp_path / "truth.json"
    tree = json.loads(file.read_text())
    tree["categories"][1]["name"] = "car"
    file.write_text(json.dumps(tree))
    results = evaluate((one_image, SEGMENTS))
    assert results["PQ-car (5)"] == results["PQ-car (9)"] == 100 and "PQ-car" not in results


def test_a_model_without_segments_is_named(one_image):
    MetadataCatalog.get(NAME).set(evaluator_type="coco_panoptic_seg")
    with pytest.raises(
        ConfigError, match=r"gives nothing, no panoptic_seg, .* \(evaluator_type coco_"
    ):
        COCOPanopticEvaluator(NAME).process([A], [{}])


def test_nothing_found_is_zero_and_nothing_to_find_is_nan(one_image, tmp_path):
    results = evaluate((torch.zeros(2, 4, dtype=torch.int32), []))
    assert results["PQ"] == results["SQ_th"] == results["RQ_st"] == 0
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    assert all(map(math.isnan, COCOPanopticEvaluator(NAME).evaluate()["panoptic_seg"].values()))


@pytest.mark.parametrize(
    "outputs, message",
    [
        ([], r"truth.json: image 'a' was not predicted \(1 such images\)"),
        ([SEGMENTS, SEGMENTS], "image 'a' was twice predicted"),
        ([SEGMENTS[:1]], "prediction of a.jpg: segments_info lacks the segment 2 of the map"),
        ([[SEGMENTS[0] | {"isthing": 1}]], "a.jpg: segment 1: isthing must be True or False, is 1"),
        ([[SEGMENTS[0] | {"category_id": 7}]], "a.jpg: segment 1: thing has no class 7"),
        ([[{"id": 1, "category_id": 99}]], "a.jpg: segment 1 has category_id 99, which is not"),
    ],
)
def test_wrong_predictions_are_refused(one_image, outputs, message):
    with pytest.raises(DataError, match=message):
        evaluate(*[(one_image, segments) for segments in outputs])


def test_an_image_that_is_not_annotated_is_refused(one_image):
    evaluator = COCOPanopticEvaluator(NAME)
    with pytest.raises(DataError, match=r"truth.json has no annotation of image 'b'"):
        evaluator.process([A | {"image_id": "b"}], [{"panoptic_seg": (one_image, SEGMENTS)}])


def test_a_test_set_is_only_predicted(one_image, tmp_path):
    file = tmp_path / "truth.json"
    tree = json.loads(file.read_text())
    del tree["annotations"]
    file.write_text(json.dumps(tree))
    evaluator = COCOPanopticEvaluator(NAME, output_dir=tmp_path / "out")
    evaluator.process([A], [{"panoptic_seg": (one_image, SEGMENTS)}])
    assert evaluator.evaluate() == {}
    written = json.loads((tmp_path / "out/predictions.json").read_text())
    assert len(written["annotations"]) == 1 and written["images"] == tree["images"]


@pytest.mark.parametrize("key", ["panoptic_json", "panoptic_root"])
def test_metadata_that_lacks_something_is_named(key):
    MetadataCatalog.get("bare").set(
        **dict.fromkeys(("panoptic_json", "panoptic_root"), "x") | {key: None}
    )
    with pytest.raises(DataError, match=f"metadata of bare has no {key}, which panoptic"):
        COCOPanopticEvaluator("bare")


NASTY = {
    "ok": None,
    "all_void": None,
    "crowd_segment": None,
    "png_palette": None,
    "png_rgba": None,
    "stuff_twice": None,
    "segment_missing_in_json": "segments_info lacks the segment",
    "segment_missing_in_png": "segment 12345 of segments_info has no pixel",
    "unknown_category": "category_id 999",
    "duplicate_segment_ids": "twice",
    "png_missing": "does not exist",
    "png_half_size": r"\(height, width\)",
    "png_gray": "hold ids as RGB",
    "no_isthing": "isthing must be 0 or 1",
}


@pytest.mark.parametrize("kind", NASTY)
def test_broken_ground_truth_is_named(shared_data, kind):
    folder = shared_data / "nasty/panoptic"
    found = json.loads((folder / "ok.json").read_text())
    metadata = MetadataCatalog.get(NAME)
    metadata.set(panoptic_json=str(folder / f"{kind}.json"), panoptic_root=str(folder / "png"))

    def run() -> dict:
        evaluator = COCOPanopticEvaluator(NAME)
        for row in found["annotations"]:
            ids = read_segment_ids(folder / "png" / row["file_name"])
            record = {"image_id": row["image_id"], "file_name": row["file_name"]}
            evaluator.process([record], [{"panoptic_seg": (ids, row["segments_info"])}])
        return evaluator.evaluate()["panoptic_seg"]

    if NASTY[kind] is None:
        # Stuff twice: of the stuff 3 of 5 segments are found; 2 are taken for a thing, of which 1
        # is there; the two other things are right.
        expected = (1 + 1 + 1 / (1 + 2 / 2) + 3 / (3 + 2 / 2)) / 4 if kind == "stuff_twice" else 1
        results = run()
        assert results["SQ"] == 100 and results["PQ"] == pytest.approx(100 * expected)
        assert results["RQ-fig"] == (50 if kind == "stuff_twice" else 100)
        return
    with pytest.raises(DataError, match=NASTY[kind]) as error:
        run()
    assert ".json" in str(error.value) or ".png" in str(error.value)
