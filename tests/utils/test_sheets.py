from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from segdet.data.segment_ids import write_segment_ids
from segdet.errors import DataError
from segdet.structures import Boxes, BoxMode, Instances
from segdet.utils.sheets import save_prediction_sheet

PETS = SimpleNamespace(thing_classes=["cat", "dog"])


@pytest.fixture
def records(tmp_path):
    """Three grey pictures of different sizes, one annotated object each."""
    made = []
    for i, size in enumerate([(40, 30), (60, 60), (20, 80)]):
        file = tmp_path / f"{'long_name_' * 9}{i}.png"
        Image.new("RGB", size, (100, 100, 100)).save(file)
        annotation = {"bbox": [2, 2, 12, 12], "bbox_mode": BoxMode.XYWH_ABS, "category_id": i % 2}
        made.append({"file_name": str(file), "annotations": [annotation], "size": size})
    return made


def found_in(record, scores=(0.9,)) -> dict:
    width, height = record["size"]
    number = len(scores)
    found = Instances(
        (height, width),
        pred_boxes=Boxes(torch.tensor([[2.0, 2, 14, 14]]).repeat(number, 1)),
        scores=torch.tensor(scores),
        pred_classes=torch.zeros(number, dtype=torch.int64),
    )
    return {"instances": found}


@pytest.mark.parametrize("number", [0, 1, 3])
@pytest.mark.parametrize("metadata", [None, PETS, SimpleNamespace(thing_classes=["cat"])])
def test_every_image_is_there_twice(records, tmp_path, metadata, number):
    file = tmp_path / "new" / "sheet.png"
    pairs = records[:number]
    save_prediction_sheet(file, [(r, found_in(r)) for r in pairs], metadata, tile_side=100)
    sheet = np.asarray(Image.open(file))
    photo = (sheet == 100).all(2).sum()
    areas = [100 * 100 * min(r["size"]) / max(r["size"]) for r in pairs]
    assert 1.5 * sum(areas) <= photo <= 2 * sum(areas)


def drawn_halves(file, color) -> tuple[bool, bool]:
    """Whether a colour is in the left half of a sheet, and in the right one."""
    sheet = np.asarray(Image.open(file))
    drawn = (sheet[30:] == np.array(color)).all(2)
    middle = sheet.shape[1] // 2
    return bool(drawn[:, :middle].any()), bool(drawn[:, middle:].any())


def test_prediction_stands_right_of_the_truth(records, tmp_path):
    file = tmp_path / "sheet.png"
    doubtful = found_in(records[1], (0.4,))  # below the minimum score
    save_prediction_sheet(file, [(records[1], doubtful)], PETS, tile_side=100)
    assert drawn_halves(file, [10, 132, 255]) == (True, False)  # the colour of class 1, a dog


SCENE = SimpleNamespace(
    thing_classes=["cat"],
    thing_colors=[(255, 0, 0)],
    stuff_classes=["things", "sky"],
    stuff_colors=[(1, 2, 3), (0, 0, 255)],
)


def test_segments_are_drawn_on_both_sides(records, tmp_path):
    ids = np.zeros((60, 60), np.int32)
    ids[:20], ids[30:50, 10:40] = 4, 300
    write_segment_ids(tmp_path / "ids.png", ids)
    segments = [
        {"id": 4, "category_id": 1, "isthing": False},
        {"id": 300, "category_id": 0, "isthing": True},
    ]
    record = records[1] | {"pan_seg_file_name": tmp_path / "ids.png", "segments_info": segments}
    output = {"panoptic_seg": (torch.from_numpy(ids), segments), **found_in(record)}
    save_prediction_sheet(tmp_path / "sheet.png", [(record, output)], SCENE, tile_side=120)
    assert drawn_halves(tmp_path / "sheet.png", [0, 0, 255]) == (True, True)


def test_maps_of_classes_are_drawn_on_both_sides(records, tmp_path):
    labels = np.full((60, 60), 255, np.uint8)
    labels[:20] = 1
    Image.fromarray(labels).save(tmp_path / "labels.png")
    record = {"file_name": records[1]["file_name"], "sem_seg_file_name": tmp_path / "labels.png"}
    scores = torch.zeros(2, 60, 60)
    scores[1, :20] = 1
    save_prediction_sheet(tmp_path / "sheet.png", [(record, {"sem_seg": scores})], SCENE)
    assert drawn_halves(tmp_path / "sheet.png", [0, 0, 255]) == (True, True)


def test_an_unreadable_image_is_named(records, tmp_path):
    record = records[0] | {"file_name": str(tmp_path / "absent.png")}
    with pytest.raises(DataError, match=r"absent.png"):
        save_prediction_sheet(tmp_path / "sheet.png", [(record, found_in(record))])
