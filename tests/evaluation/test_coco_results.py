import gc
import json

import numpy as np
import pytest

from segdet.data.limits import JSON_BYTES
from segdet.errors import ConfigError, DataError
from segdet.evaluation import evaluate_results
from segdet.evaluation.coco_metrics import BACKENDS, coco_metrics
from segdet.evaluation.coco_records import read_ground_truth
from segdet.evaluation.coco_results import read_predictions

# Set -> ground truth, results per kind
FIXTURES = {
    "coco_eval_100": (
        "instances_val2014_100.json",
        {
            "bbox": "instances_val2014_fakebbox100_results.json",
            "segm": "instances_val2014_fakesegm100_results.json",
        },
    ),
    "coco_mini": (
        "annotations/instances_val.json",
        {"bbox": "eval/results.json", "segm": "eval/results.json"},
    ),
    "nuclei": (
        "annotations/instances_val.json",
        {"bbox": "eval/results.json", "segm": "eval/results.json"},
    ),
}


def expected_of(folder) -> dict:
    """pycocotools' numbers, made outside of this project."""
    (file,) = folder.rglob("expected.json")
    return json.loads(file.read_text())


@pytest.mark.parametrize("kind", ["bbox", "segm"])
@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("name", FIXTURES)
def test_stored_numbers_are_reproduced(shared_data, name, backend, kind):
    gt_json, results = FIXTURES[name]
    truth = read_ground_truth(shared_data / name / gt_json)
    found = read_predictions(shared_data / name / results[kind], truth)
    metrics = coco_metrics(truth, found, kind, backend=backend)
    expected = expected_of(shared_data / name)[kind]
    per_category = expected.pop("per_category_AP", None)
    assert metrics.stats == pytest.approx(expected, abs=1e-12)
    if per_category is not None:
        by_name = dict(zip(truth.category_names, metrics.category_ap, strict=True))
        assert by_name == pytest.approx(
            {name: -1 if ap is None else ap for name, ap in per_category.items()}, abs=1e-12
        )


def test_a_part_of_the_finds_gives_the_stored_numbers_too(shared_data, tmp_path):
    folder = shared_data / "coco_eval_100"
    gt_json, results = FIXTURES["coco_eval_100"]
    rows = json.loads((folder / results["segm"]).read_text())
    median = np.median([row["score"] for row in rows])
    part = tmp_path / "part.json"
    part.write_text(json.dumps([row for row in rows if row["score"] > median]))
    expected = expected_of(folder)["segm_scores_above_median"]
    assert evaluate_results(folder / gt_json, part)["segm"]["AP"] == pytest.approx(
        100 * expected["AP"]
    )


# What each file of nasty/results gives: (bbox AP, segm AP), or words of the error.
NASTY = {
    "duplicates": (55.2249, 55.2249),
    "empty_list": (0, 0),
    "empty_mask": (100, 81.4081),
    "inf_box": r"results\[0\] \(image_id 1\): bbox must be four finite numbers",
    "mask_wrong_size": r"results\[0\].*: segmentation size .* is \[60, 80\], the image's is \[120",
    "missing_score": r"results\[0\] \(image_id 1\): has no score",
    "more_than_100_per_image": (100, 100),
    "nan_score": r"results\[0\].*: score must be a finite number, is nan",
    "negative_size_box": r"results\[0\].*: bbox must have width and height >= 0",
    "perfect": (100, 100),
    "string_score": r"results\[0\].*: score must be a finite number, is '0.9'",
    "ties": (100, 100),
    "truncated": r"is not valid JSON \(Unterminated string",
    "unknown_category_id": r"results\[0\].*: category_id 999 is not in the ground truth",
    "unknown_image_id": r"results\[0\] \(image_id 999\): image_id 999 is not in the ground truth",
    "zero_size_box": (81.4081, 100),
}


@pytest.mark.parametrize("name", NASTY)
def test_nasty_results_are_told_or_counted(shared_data, name):
    truth, file = shared_data / "nasty/json/ok.json", shared_data / f"nasty/results/{name}.json"
    if isinstance(NASTY[name], str):
        with pytest.raises(DataError, match=f"{name}.json: {NASTY[name]}"):
            evaluate_results(truth, file)
        return
    for backend in BACKENDS:
        results = evaluate_results(truth, file, backend=backend)
        aps = results["bbox"]["AP"], results["segm"]["AP"]
        assert aps == pytest.approx(NASTY[name], abs=1e-3)


def test_every_nasty_result_is_expected_here(shared_data):
    assert {file.stem for file in (shared_data / "nasty/results").iterdir()} == set(NASTY)


def test_nasty_ground_truth_is_evaluated_or_refused_by_name(shared_data):
    refused = []
    for file in sorted((shared_data / "nasty/json").iterdir()):
        try:
            truth = read_ground_truth(file, str(shared_data / "nasty/images"))
            found = read_predictions(shared_data / "nasty/results/empty_list.json", truth)
            for kind in ("bbox", "segm"):
                assert coco_metrics(truth, found, kind).stats["AP"] in (0, -1)
        except DataError as error:
            assert file.name in str(error)
            refused.append(file.stem)
    assert {"invalid_truncated", "top_level_list", "rle_garbage_string"} <= set(refused)
    assert not {"ok", "category_id_gaps", "huge_ids", "all_crowd", "no_area"} & set(refused)


@pytest.fixture
def files(tmp_path):
    """A function that writes ground truth of one 4 x 5 image and results, and evaluates them."""
    square = {"bbox": [1, 1, 2, 2], "segmentation": {"size": [4, 5], "counts": [5, 2, 2, 2, 9]}}
    truth = {
        "images": [{"id": "a", "height": 4, "width": 5, "file_name": "a.png"}],
        "categories": [{"id": 0, "name": "cat"}, {"id": 2**40, "name": "cat"}],
        "annotations": [{"id": 0, "image_id": "a", "category_id": 2**40, "area": 4, **square}],
    }
    good = {"image_id": "a", "category_id": 2**40, "score": 0.5, **square}

    def evaluate(*changes: dict, tasks=None) -> dict:
        rows = [
            {key: value for key, value in (good | change).items() if value is not None}
            for change in changes
        ]
        (tmp_path / "gt.json").write_text(json.dumps(truth))
        (tmp_path / "results.json").write_text(json.dumps(rows))
        return evaluate_results(tmp_path / "gt.json", tmp_path / "results.json", tasks)

    return evaluate


def test_odd_ids_and_uncompressed_masks_count(files):
    results = files({})
    assert results["bbox"]["AP"] == results["segm"]["AP"] == pytest.approx(100)


def test_classes_of_one_name_stay_apart(files):
    results = files({})["bbox"]
    assert results[f"AP-cat ({2**40})"] == pytest.approx(100)
    assert np.isnan(results["AP-cat (0)"]) and np.isnan(results["APl"])


def test_tasks_are_those_that_all_records_have(files):
    assert list(files({"segmentation": None})) == ["bbox"]
    assert list(files({"bbox": None})) == ["segm"]
    assert list(files({}, tasks=["segm"])) == ["segm"]
    with pytest.raises(DataError, match=r"results\[1\] \(image_id 'a'\): has no bbox"):
        files({}, {"bbox": None})
    with pytest.raises(DataError, match=r"results.json: .*nothing to evaluate for segm"):
        files({"segmentation": None}, tasks=["segm"])
    with pytest.raises(ConfigError, match="knows the tasks bbox, segm"):
        files({}, tasks=["masks"])


@pytest.mark.parametrize(
    "change, said",
    [
        ({"score": 10**400}, "score must be a finite number"),
        ({"score": True}, "score must be a finite number, is True"),
        ({"mask_score": None}, "has no mask_score"),
        ({"mask_score": float("nan")}, "mask_score must be a finite number, is nan"),
        ({"bbox": [1, 1, 2]}, "bbox must be four finite numbers"),
        ({"bbox": "1, 1, 2, 2"}, "bbox must be four finite numbers"),
        ({"image_id": ["a"]}, "image_id .* is not in the ground truth"),
        ({"category_id": None}, "category_id None is not in the ground truth"),
        ({"segmentation": [[1, 1, 3, 1, 3, 3]]}, "segmentation must be an RLE"),
        ({"segmentation": {"size": [4, 5], "counts": [5, 2, 20]}}, "counts sum to 27"),
        ({"segmentation": {"size": [4, 5], "counts": [-5, 25]}}, "counts must be >= 0"),
        ({"segmentation": {"size": [4, 5], "counts": "garbage"}}, "RLE"),
        ({"segmentation": {"size": [4, 5], "counts": "5\udc80"}}, "RLE"),
    ],
)
def test_broken_records_are_named(files, change, said):
    with pytest.raises(DataError, match=rf"results.json: results\[1\].*{said}"):
        files({"mask_score": 0.5}, {"mask_score": 0.5} | change)


def test_records_of_a_rarer_form_give_the_same_columns(shared_data, tmp_path):
    folder = shared_data / "nuclei"
    truth = read_ground_truth(folder / FIXTURES["nuclei"][0])
    rows = json.loads((folder / FIXTURES["nuclei"][1]["segm"]).read_text())
    usual = read_predictions(folder / FIXTURES["nuclei"][1]["segm"], truth)
    rows[-1]["image_id"] = float(rows[-1]["image_id"])  # then all are read one by one
    (tmp_path / "results.json").write_text(json.dumps(rows))
    rare = read_predictions(tmp_path / "results.json", truth)
    assert len(usual) == len(rows) and usual.masks == rare.masks
    for name in ("image", "category", "scores", "boxes"):
        np.testing.assert_array_equal(getattr(usual, name), getattr(rare, name))
        assert getattr(usual, name).dtype == getattr(rare, name).dtype
    assert gc.isenabled()


@pytest.mark.parametrize(
    "content, said",
    [
        ("{}", "results must be a list, this is a dict"),
        ("[3]", r"results\[0\] must be an object, is 3"),
        ('[{"image_id": 1}]', r"results\[0\] has no bbox, segmentation or keypoints"),
    ],
)
def test_other_files_are_refused(tmp_path, shared_data, content, said):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(DataError, match=f"results.json: {said}"):
        evaluate_results(shared_data / "nasty/json/ok.json", tmp_path / "results.json")


def test_a_missing_file_is_named(tmp_path, shared_data):
    with pytest.raises(DataError, match=r"absent.json: cannot be read \(No such file"):
        evaluate_results(shared_data / "nasty/json/ok.json", tmp_path / "absent.json")


def test_a_results_file_beyond_the_limit_is_refused(shared_data, tmp_path, monkeypatch):
    truth = read_ground_truth(shared_data / "coco_mini" / "annotations/instances_val.json")
    (tmp_path / "a.json").write_text("[" * 41)
    monkeypatch.setenv(JSON_BYTES, "40")
    with pytest.raises(DataError, match=r"a\.json: has 41 bytes, more than SEGDET_.* 40"):
        read_predictions(tmp_path / "a.json", truth)
