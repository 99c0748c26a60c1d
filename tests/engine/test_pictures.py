import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from segdet.data import DatasetCatalog, MetadataCatalog
from segdet.engine import SimpleTrainer
from segdet.engine.hooks import EvalHook
from segdet.engine.pictures import TrainingPictures, save_predictions
from segdet.evaluation import inference_context
from segdet.structures import (
    Boxes,
    BoxMode,
    Instances,
    Keypoints,
    PolygonMasks,
    RotatedBoxes,
    Targets,
)


class Finds(nn.Module):
    """Finds one object in every image, if it is in evaluation mode."""

    def forward(self, batch: list[dict]) -> list[dict]:
        assert not self.training
        found = Instances((30, 40))
        found.pred_boxes = Boxes(torch.tensor([[5.0, 5.0, 20.0, 20.0]]))
        found.scores = torch.tensor([0.9])
        found.pred_classes = torch.tensor([0])
        return [{"instances": found} for _ in batch]


@pytest.fixture
def name(tmp_path, request):
    """A registered data set of three gray images."""
    name = f"pictures_{request.node.name}"
    box = {"bbox": [5, 5, 15, 15], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    records = []
    for i in range(3):
        file = tmp_path / f"{i}.png"
        Image.fromarray(np.full((30, 40, 3), 128, np.uint8)).save(file)
        records.append(
            {"file_name": str(file), "image_id": i, "height": 30, "width": 40, "annotations": [box]}
        )
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=["thing", "other"])
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_draws_the_first_images_in_evaluation_mode(name, tmp_path):
    loader = [[record] for record in DatasetCatalog.get(name)]
    model = Finds().train()
    one, all_three = tmp_path / "out" / "one.png", tmp_path / "out" / "all.png"
    save_predictions(one, model, loader, name, count=1)
    save_predictions(all_three, model, loader, name)
    assert model.training
    assert Image.open(all_three).height > Image.open(one).height


class Labels(nn.Module):
    """Every pixel is of the class 1."""

    def forward(self, batch: list[dict]) -> list[dict]:
        scores = torch.zeros(2, 30, 40)
        scores[1] = 1
        return [{"sem_seg": scores} for _ in batch]


def test_label_maps_are_drawn_too(name, tmp_path):
    MetadataCatalog.get(name).set(stuff_classes=["sky", "sea"], stuff_colors=[[0] * 3, [0, 0, 255]])
    loader = [[record] for record in DatasetCatalog.get(name)]
    save_predictions(tmp_path / "out.png", Labels(), loader, name, count=2)
    drawn = (np.asarray(Image.open(tmp_path / "out.png")) == [0, 0, 255]).all(2)
    assert drawn.any()


class FindsNothing(nn.Module):
    """Has other results than instances."""

    def forward(self, batch: list[dict]) -> list[dict]:
        return [{"proposals": 0} for _ in batch]


def test_draws_nothing_where_there_is_nothing_to_draw(name, tmp_path):
    path = tmp_path / "none.png"
    loader = [DatasetCatalog.get(name)]
    save_predictions(path, FindsNothing(), loader, name)
    save_predictions(path, Finds(), loader, "pictures_not_registered")
    save_predictions(path, Finds(), [[{"image_id": 0}]], name)
    assert not path.exists()


def test_records_without_a_file_are_passed_over(name, tmp_path):
    path = tmp_path / "out.png"
    records = DatasetCatalog.get(name)
    del records[0]["file_name"]
    save_predictions(path, Finds(), [records[:1]], name)
    assert not path.exists()
    save_predictions(path, Finds(), [records], name)
    assert path.exists()


class Learns(nn.Linear):
    """In training a loss, else two objects, in the frame of the image or of the size asked for."""

    kind = Boxes

    def forward(self, batch):
        if self.training:
            return {"loss": self.weight.sum()}
        assert not torch.is_grad_enabled()
        height = batch[0].get("height", 30)
        row = [10.0, 10, 30, 20] if self.kind is Boxes else [20.0, 15, 20, 10, 0]
        found = Instances((height, 40), pred_boxes=self.kind(torch.tensor([row, row])))
        found.scores, found.pred_classes = torch.tensor([0.9, 0.8]), torch.tensor([0, 1])
        return [{"instances": found} for _ in batch]


def pictures_of(model, inputs, iterations=4, period=2, **options):
    trainer = SimpleTrainer(model, [[inputs]], torch.optim.SGD(model.parameters(), 0.1))
    trainer.register_hooks([TrainingPictures(period, "BGR", **options)])
    trainer.train(0, iterations)
    assert model.training and not model._forward_pre_hooks
    return trainer.storage.take_images()


def inputs(**fields):
    image = torch.zeros(3, 30, 40, dtype=torch.uint8)
    image[0] = 200  # blue
    targets = Targets((30, 40), gt_boxes=Boxes(torch.tensor([[4.0, 4, 20, 25]])))
    targets.gt_classes = torch.tensor([1])
    for name, value in fields.items():
        targets.set(name, value)
    return {"image": image, "height": 300, "instances": targets}


def test_training_inputs_are_drawn_beside_what_is_found():
    drawn = pictures_of(Learns(1, 1), inputs())
    assert [iteration for _, _, iteration in drawn] == [1, 3]
    picture = drawn[0][1].numpy()
    assert picture.shape == (3, 30, 80) and picture.dtype == np.uint8
    changed = (picture != np.array([0, 0, 200])[:, None, None]).any(0)
    assert changed[4:25, 4].all() and not changed[:, 25:40].any()  # the truth, on the left alone
    assert changed[10:20, 50].all() and not changed[4:25, 44].any()


def test_an_evaluation_in_the_same_iteration_does_not_get_into_the_picture():
    model, test_image = Learns(1, 1), inputs()
    test_image["image"] = torch.full((3, 30, 40), 255, dtype=torch.uint8)

    def evaluate():
        with inference_context(model), torch.no_grad():
            model([test_image])

    trainer = SimpleTrainer(model, [[inputs()]], torch.optim.SGD(model.parameters(), 0.1))
    trainer.register_hooks([EvalHook(2, evaluate), TrainingPictures(2, "BGR")])
    trainer.train(0, 3)
    (drawn,) = trainer.storage.take_images()
    assert drawn[1][:, 0, 0].tolist() == [0, 0, 200]


def test_masks_keypoints_and_rotated_boxes_are_drawn():
    plain = pictures_of(Learns(1, 1), inputs(), 2)[0][1]
    triangle = PolygonMasks([[np.array([5.0, 5, 19, 5, 19, 24])]])
    assert (pictures_of(Learns(1, 1), inputs(gt_masks=triangle), 2)[0][1] != plain).any()
    points = Keypoints(torch.tensor([[[12.0, 28, 2]]]))
    assert (pictures_of(Learns(1, 1), inputs(gt_keypoints=points), 2)[0][1] != plain).any()
    model = Learns(1, 1)
    model.kind = RotatedBoxes
    turned = inputs(gt_boxes=RotatedBoxes(torch.tensor([[12.0, 14.5, 16, 21, 0]])))
    assert torch.equal(pictures_of(model, turned, 2)[0][1], plain)


def test_the_best_are_drawn_up_to_a_number():
    few = pictures_of(Learns(1, 1), inputs(), 2, max_objects=0)[0][1].numpy()
    assert (few[:, :, 40:] == np.array([0, 0, 200])[:, None, None]).all()
