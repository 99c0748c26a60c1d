from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

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


def found_in(record, scores=(0.9,)) -> Instances:
    width, height = record["size"]
    number = len(scores)
    return Instances(
        (height, width),
        pred_boxes=Boxes(torch.tensor([[2.0, 2, 14, 14]]).repeat(number, 1)),
        scores=torch.tensor(scores),
        pred_classes=torch.zeros(number, dtype=torch.int64),
    )


@pytest.mark.parametrize("number", [0, 1, 3])
@pytest.mark.parametrize("metadata", [None, PETS, SimpleNamespace(thing_classes=["cat"])])
def test_every_image_is_there_twice(records, tmp_path, metadata, number):
    file = tmp_path / "new" / "sheet.png"
    pairs = records[:number]
    save_prediction_sheet(file, pairs, [found_in(r) for r in pairs], metadata, tile_side=100)
    sheet = np.asarray(Image.open(file))
    photo = (sheet == 100).all(2).sum()
    areas = [100 * 100 * min(r["size"]) / max(r["size"]) for r in pairs]
    assert 1.5 * sum(areas) <= photo <= 2 * sum(areas)


def test_prediction_stands_right_of_the_truth(records, tmp_path):
    file = tmp_path / "sheet.png"
    save_prediction_sheet(file, records[1:2], [found_in(records[1], (0.4,))], PETS, tile_side=100)
    sheet = np.asarray(Image.open(file))
    drawn = (sheet[30:] == np.array([10, 132, 255])).all(2)  # the colour of class 1, a dog
    columns = np.flatnonzero(drawn.any(0))
    assert len(columns) and columns.max() < sheet.shape[1] / 2  # 0.4 is below the minimum score


def test_one_prediction_for_each_image(records, tmp_path):
    with pytest.raises(ValueError, match="shorter"):
        save_prediction_sheet(tmp_path / "sheet.png", records, [found_in(records[0])])


def test_an_unreadable_image_is_named(records, tmp_path):
    record = records[0] | {"file_name": str(tmp_path / "absent.png")}
    with pytest.raises(DataError, match=r"absent.png"):
        save_prediction_sheet(tmp_path / "sheet.png", [record], [found_in(record)])
