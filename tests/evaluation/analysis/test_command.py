import json

import numpy as np
import pytest

from segdet.errors import DataError
from segdet.evaluation import evaluate_results
from segdet.evaluation.analysis.command import main
from tests.evaluation.sets import SIZE, found_of, random_boxes


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Annotations, a run's folder, and the results file of a worse run."""
    folder = tmp_path_factory.mktemp("analysis")
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, 30).clip(min=0)
    image, category = rng.integers(1, 7, 30).tolist(), rng.integers(1, 4, 30).tolist()
    x, y, w, h = boxes.T
    polygons = np.stack([x, y, x + w, y, x + w, y + h, x, y + h], axis=1)
    truth = {
        "images": [
            {"id": i, "file_name": f"{i}.jpg", "height": SIZE[0], "width": SIZE[1]}
            for i in range(1, 7)
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(("cup", "pen", "hat"), 1)],
        "annotations": [
            {
                **{"id": i + 1, "image_id": image[i], "category_id": category[i], "iscrowd": 0},
                **{"bbox": box, "area": box[2] * box[3], "segmentation": [polygon]},
            }
            for i, (box, polygon) in enumerate(zip(boxes.tolist(), polygons.tolist(), strict=True))
        ],
    }
    (folder / "truth.json").write_text(json.dumps(truth))
    run = folder / "run" / "inference"
    run.mkdir(parents=True)
    for file, noise in ((run / "coco_instances_results.json", 2), (folder / "worse.json", 20)):
        moved = boxes + rng.normal(0, noise, boxes.shape) * [1, 1, 0, 0]
        found = found_of(image, category, rng.random(30), moved)
        assert found.masks is not None
        rows = zip(image, category, found.scores.tolist(), moved.tolist(), found.masks, strict=True)
        keys = ("image_id", "category_id", "score", "bbox", "segmentation")
        file.write_text(json.dumps([dict(zip(keys, row, strict=True)) for row in rows]))
    return folder


def test_prints_tables_and_writes_the_same_numbers(files, capsys, tmp_path):
    truth = files / "truth.json"
    options = ["--annotations", str(truth), "--samples", "50", "--output", str(tmp_path)]
    main([str(files / "run"), *options, "--against", str(files / "worse.json")])
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "analysis.json").read_text())
    results = files / "run" / "inference" / "coco_instances_results.json"
    expected = evaluate_results(truth, results)
    for kind in ("bbox", "segm"):
        one = written[kind]
        assert f"== {kind} of " in printed and f"== {kind} against " in printed
        assert f"| AP   | {expected[kind]['AP']:.1f}" in printed
        numbers = one["tables"]["over_classes"]
        assert 100 * numbers["ap"][0] == pytest.approx(expected[kind]["AP"])
        assert 100 * numbers["ap50"][0] == pytest.approx(expected[kind]["AP50"])
        assert one["comparison"]["overall"]["AP"]["value"] > 0.1
        assert one["comparison"]["overall"]["AP"]["p_value"] < 0.1
        assert sum(map(sum, one["confusion"]["counts"])) > 0
        assert one["errors"]["counts"]["correct"] + one["errors"]["counts"]["localisation"] > 20


def test_mistakes_end_in_one_message(files, tmp_path):
    truth, run = ["--annotations", str(files / "truth.json")], str(files / "run")
    with pytest.raises(DataError, match="is the folder of no evaluated run; looked for"):
        main([str(tmp_path), *truth])
    with pytest.raises(DataError, match="iou must be one of"):
        main([run, *truth, "--iou", "0.3"])
    with pytest.raises(DataError, match="--samples must be >= 1, is 0"):
        main([run, *truth, "--samples", "0"])
    (tmp_path / "broken.json").write_text('[{"image_id": 9, "category_id": 1, "score": 1}]')
    with pytest.raises(DataError, match=r"broken\.json: results\[0\] has no bbox"):
        main([str(tmp_path / "broken.json"), *truth])
    boxes = json.loads((files / "worse.json").read_text())
    rows = [{key: row[key] for key in row if key != "segmentation"} for row in boxes]
    (tmp_path / "boxes.json").write_text(json.dumps(rows))
    masks = [{key: row[key] for key in row if key != "bbox"} for row in boxes]
    (tmp_path / "masks.json").write_text(json.dumps(masks))
    with pytest.raises(DataError, match="hold nothing of the same kind"):
        main([
            str(tmp_path / "boxes.json"), *truth, "--samples", "1",
            "--against", str(tmp_path / "masks.json"),
        ])  # fmt: skip
