import json
import shutil

import numpy as np
import pytest
import torch
import yaml

from segdet.data.catalog import DatasetCatalog
from segdet.data.sem_seg import read_sem_seg
from segdet.evaluation.rle import encode_masks
from segdet.report.gallery import Sources
from segdet.report.gather import report_of
from segdet.report.regions import Region, gallery_of_regions, judge, regions_of
from segdet.report.run import read_run


def region(category, columns, crowd=False):
    mask = np.zeros((10, 20), bool)
    mask[:, columns] = True
    return Region(category, mask, crowd)


def test_a_region_is_right_above_an_iou_of_a_half():
    truth = [region(0, slice(0, 10)), region(1, slice(10, 20))]
    found = [region(0, slice(0, 10)), region(1, slice(15, 20)), region(2, slice(10, 15))]
    assert judge(truth, found) == [("correct", 0, 1.0), ("wrong", 1, 0.5), ("wrong", 0, 0.0)]
    assert judge([], [region(0, slice(0, 3))]) == [("ignored", -1, 0.0)]


def test_pixels_without_annotation_and_crowds_do_not_count():
    truth = [region(0, slice(0, 4)), region(0, slice(4, 10), crowd=True)]
    # Half of the union is void or crowd, and no reason to call it wrong.
    assert judge(truth, [region(0, slice(0, 20))])[0] == ("correct", 0, 1.0)
    assert judge(truth, [region(0, slice(5, 10))])[0][0] == "ignored"
    assert judge(truth, [region(1, slice(2, 20))])[0][0] == "ignored"
    assert judge(truth, [region(1, slice(0, 5))])[0][0] == "wrong"


@pytest.fixture
def panoptic_run(tmp_path, demo):
    """A run that found all segments, but for the first of each image."""
    json_file, maps = demo / "annotations/panoptic_val.json", demo / "annotations/panoptic_val"
    tree = json.loads(json_file.read_text())
    for row in tree["annotations"]:
        row["segments_info"] = row["segments_info"][1:]
    folder = tmp_path / "panoptic"
    (folder / "inference").mkdir(parents=True)
    (folder / "inference/predictions.json").write_text(json.dumps(tree))
    shutil.copytree(maps, folder / "inference/panoptic")
    data = {"DATASETS": {"TRAIN": [], "TEST": [f"{json_file}:{demo / 'val'}"]}}
    (folder / "config.yaml").write_text(yaml.safe_dump(data))
    return folder


def test_the_gallery_of_segments(panoptic_run):
    task, (regions,) = regions_of([read_run(panoptic_run)])
    gallery = gallery_of_regions(task, [regions], 3, Sources(3))
    assert task == "panoptic_seg" and gallery["title"] == "Panoptic segments"
    for one in gallery["pictures"]:
        (found,) = one["runs"]
        assert {row["k"] for row in found} == {"correct"}
        things = [row for row in one["truth"] if not row["crowd"]]
        assert len(things) - len(found) in (0, 1) and all(row["p"] for row in found)


def test_the_gallery_of_label_maps(tmp_path, demo):
    labels, images = demo / "annotations/semantic_val", demo / "val"
    name = f"{labels}:{images}"
    classes = tmp_path / "classes.txt"
    classes.write_text("".join(f"class {k}\n" for k in range(10)))
    run = read_run(_semantic_run(tmp_path / "run", f"{name}:{classes}"))
    task, (regions,) = regions_of([run])
    gallery = gallery_of_regions(task, [regions, None], 6, Sources(6))
    assert task == "sem_seg" and len(gallery["pictures"]) == 6
    kinds = [[row["k"] for row in one["runs"][0]] for one in gallery["pictures"]]
    assert {kind for own in kinds for kind in own} == {"correct", "wrong"}
    assert all(one["runs"][1] == [] for one in gallery["pictures"])


def _semantic_run(folder, name):
    """A run that says everything right, and class 0 also of a corner."""
    (folder / "inference").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"DATASETS": {"TEST": [name]}}))
    rows = []
    for record in DatasetCatalog.get(name):
        found = read_sem_seg(record).copy()
        found[:20, :20] = 0
        for label in np.unique(found).tolist():
            (mask,) = encode_masks(torch.from_numpy(found == label)[None])
            part = {"file_name": record["file_name"], "category_id": label}
            rows.append({**part, "segmentation": mask})
    (folder / "inference/sem_seg_predictions.json").write_text(json.dumps(rows))
    return folder


def test_a_report_has_both_galleries_and_each_picture_once(
    panoptic_run, run_folder, demo, tmp_path, monkeypatch
):
    (tmp_path / "demo").symlink_to(demo)
    monkeypatch.setenv("SEGDET_DATASETS", str(tmp_path))
    text = yaml.safe_dump({"DATASETS": {"TEST": ["demo_panoptic_val"]}})
    (panoptic_run / "config.yaml").write_text(text)
    results = "inference/coco_instances_results.json"
    shutil.copy(run_folder / results, panoptic_run / results)
    run = read_run(panoptic_run)
    report = report_of([run], pictures=6)
    assert [one["title"] for one in report["galleries"]] == ["Objects", "Panoptic segments"]
    places = [one["source"] for own in report["galleries"] for one in own["pictures"]]
    assert sorted(places) == sorted([*range(6)] * 2) and len(report["sources"]) == 6


def test_says_why_regions_cannot_be_shown(panoptic_run):
    run = read_run(panoptic_run)
    (run.inference / "predictions.json").write_text("{")
    assert regions_of([run]) is None and "not valid JSON" in run.missing[-1].why
    run.config["DATASETS.TEST"] = ["balloon_val"]
    (run.inference / "predictions.json").write_text("{}")
    assert regions_of([run]) is None and "not known here" in run.missing[-1].why
