from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from segdet.data.segment_ids import write_segment_ids
from segdet.evaluation.rle import encode_masks
from segdet.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from segdet.utils.colormap import as_rgb, distinct_color, text_color_on
from segdet.utils.visualizer import ColorMode, VisImage, Visualizer

GREY = np.full((60, 80, 3), 100, np.uint8)
PETS = SimpleNamespace(thing_classes=["cat", "dog"], thing_colors=[(255, 0, 0), (0, 0, 255)])


def square_mask() -> torch.Tensor:
    mask = torch.zeros(60, 80, dtype=torch.bool)
    mask[20:40, 30:60] = True
    return mask


def predictions(number: int = 1, classes=None) -> Instances:
    found = Instances((60, 80))
    found.pred_boxes = Boxes(torch.tensor([[30.0, 20, 60, 40]]).repeat(number, 1))
    found.scores = torch.full((number,), 0.93)
    found.pred_classes = torch.tensor(classes or [1] * number)
    found.pred_masks = square_mask()[None].repeat(number, 1, 1)
    return found


def changed(picture: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels that are no longer grey."""
    return (picture != 100).any(2)


def test_a_mask_is_tinted_inside_and_outlined_in_its_colour():
    picture = Visualizer(GREY).draw_binary_mask(square_mask(), (1.0, 0, 0), alpha=0.5).get_image()
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(changed(picture), square_mask().numpy())
    assert picture[20, 30].tolist() == picture[39, 59].tolist() == [255, 0, 0]
    assert picture[30, 45].tolist() == pytest.approx([178, 50, 50], abs=1)


def test_the_image_given_stays_as_it_is():
    image = GREY.copy()
    Visualizer(image).draw_instance_predictions(predictions())
    np.testing.assert_array_equal(image, GREY)


def test_masks_of_every_kind_give_one_picture():
    mask = square_mask()
    polygon = [30, 20, 60, 20, 60, 40, 30, 40]
    kinds = [
        mask[None],
        mask[None].numpy(),
        BitMasks(mask[None]),
        PolygonMasks([[polygon]]),
        [[polygon]],
        encode_masks(mask[None]),
        [{"size": [60, 80], "counts": [30 * 60 + 20, *([20, 40] * 29), 20, 20 + 20 * 60]}],
    ]
    pictures = [Visualizer(GREY).overlay_instances(masks=kind).get_image() for kind in kinds]
    assert changed(pictures[0]).sum() == 600
    for picture in pictures[1:]:
        np.testing.assert_array_equal(picture, pictures[0])


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7, 3.0])
def test_scaling_moves_everything_along(scale):
    drawn = Visualizer(GREY, scale=scale).overlay_instances(
        boxes=np.array([[30, 20, 60, 40]]), masks=square_mask()[None]
    )
    height, width = drawn.get_image().shape[:2]
    assert (height, width) == (round(60 * scale), round(80 * scale))
    rows, columns = np.nonzero(changed(drawn.get_image()))
    frame = [columns.min(), rows.min(), columns.max(), rows.max()]
    assert frame == pytest.approx([30 * scale, 20 * scale, 60 * scale, 40 * scale], abs=1.5)


def test_predictions_carry_names_scores_and_class_colours():
    visualizer = Visualizer(GREY, PETS, 4, ColorMode.SEGMENTATION)
    written = []
    visualizer.output.label = lambda text, box, color: written.append((text, color))
    visualizer.draw_instance_predictions(predictions(2, classes=[1, 0]))
    assert written == [("dog 93%", (0, 0, 255)), ("cat 93%", (255, 0, 0))]


def test_classes_without_names_or_colours_still_get_some():
    visualizer = Visualizer(GREY, None, 4, ColorMode.SEGMENTATION)
    written = []
    visualizer.output.label = lambda text, box, color: written.append((text, color))
    visualizer.draw_instance_predictions(predictions(1, classes=[7]))
    assert written == [("7 93%", as_rgb(distinct_color(7)))]


def test_labels_are_drawn_inside_the_picture_and_apart():
    visualizer = Visualizer(np.zeros((300, 300, 3), np.uint8))
    boxes = np.array([[0, 0, 299, 299], [250, 0, 299, 30], [250, 2, 299, 30], [0, 280, 40, 299]])
    visualizer.overlay_instances(boxes=boxes, labels=["dog 93%"] * 4)
    plates = visualizer.output._taken
    assert len(plates) == 4
    for i, (x1, y1, x2, y2) in enumerate(plates):
        assert 0 <= x1 < x2 <= 300 and 0 <= y1 < y2 <= 300
        for u1, v1, u2, v2 in plates[:i]:
            assert x2 <= u1 or u2 <= x1 or y2 <= v1 or v2 <= y1


@pytest.mark.parametrize("name", ["größe", "核桃", "", "a\nb", "🍒", "\u202eabc", "x" * 500])
def test_any_name_can_be_drawn(name):
    metadata = SimpleNamespace(thing_classes=[name])
    Visualizer(GREY, metadata, 3).draw_instance_predictions(predictions(classes=[0]))


def test_no_objects_leave_the_picture_alone():
    picture = Visualizer(GREY, PETS).draw_instance_predictions(predictions()[:0]).get_image()
    np.testing.assert_array_equal(picture, GREY)
    np.testing.assert_array_equal(Visualizer(GREY).overlay_instances().get_image(), GREY)
    np.testing.assert_array_equal(Visualizer(GREY).draw_dataset_dict({}).get_image(), GREY)


def test_predictions_may_lack_masks_or_boxes():
    found = predictions()
    found.remove("pred_masks")
    outlined = changed(Visualizer(GREY).draw_instance_predictions(found).get_image())
    assert not outlined[30, 45] and outlined[30, 30]
    found = predictions()
    found.remove("pred_boxes")
    assert changed(Visualizer(GREY).draw_instance_predictions(found).get_image())[30, 45]


def test_black_and_white_keeps_colour_in_masks_only():
    colourful = np.zeros((60, 80, 3), np.uint8)
    colourful[..., 0] = 200
    visualizer = Visualizer(colourful, None, 1, ColorMode.IMAGE_BW)
    picture = visualizer.draw_instance_predictions(predictions()).get_image()
    assert len(set(picture[55, 5].tolist())) == 1
    assert len(set(picture[30, 45].tolist())) > 1


def test_annotations_are_drawn_with_their_names():
    annotation = {"bbox": [30, 20, 30, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    crowd = annotation | {"iscrowd": 1, "segmentation": encode_masks(square_mask()[None])[0]}
    written = []
    visualizer = Visualizer(GREY, PETS)
    visualizer.output.label = lambda text, box, color: written.append((text, *box))
    picture = visualizer.draw_dataset_dict({"annotations": [annotation, crowd]}).get_image()
    assert written == [("cat", 30, 20, 60, 40), ("cat|crowd", 30, 20, 60, 40)]
    assert changed(picture)[30, 45]


def test_small_objects_stay_visible_on_large_ones():
    large = torch.ones(60, 80, dtype=torch.bool)
    picture = Visualizer(GREY).overlay_instances(
        masks=torch.stack([square_mask(), large]), assigned_colors=["red", "blue"], alpha=1
    )
    assert picture.get_image()[30, 45].tolist() == [255, 0, 0]


def test_numbers_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"differ in number: \[2, 1\]"):
        Visualizer(GREY).overlay_instances(boxes=np.zeros((2, 4)), labels=["one"])


def test_a_map_of_classes_is_drawn_by_its_colours():
    metadata = SimpleNamespace(
        stuff_classes=["sky", "sea"], stuff_colors=[(0, 0, 255), (0, 255, 0)]
    )
    label_map = torch.full((60, 80), 255)
    label_map[:30] = 0
    label_map[30:32] = 1
    picture = Visualizer(GREY, metadata).draw_sem_seg(label_map, area_threshold=500).get_image()
    assert picture[0, 0].tolist() == [0, 0, 255]
    assert not changed(picture)[30:].any()


def test_only_classes_that_are_there_cost_memory():
    metadata = SimpleNamespace(stuff_classes=["a", "b", "c"], ignore_label=255)
    label_map = np.full((60, 80), 255)
    label_map[:10], label_map[10:20] = 2, 3  # of which the names know nothing
    assert list(Visualizer(GREY, metadata)._masks_of_classes(label_map)) == [2]


def test_classes_without_names_are_drawn_by_number():
    written = []
    visualizer = Visualizer(GREY)
    visualizer.output.label_inside = lambda text, mask, color: written.append(text)
    label_map = np.full((60, 80), 255)
    label_map[:10] = 3
    picture = visualizer.draw_sem_seg(label_map, alpha=1).get_image()
    assert written == ["3"] and changed(picture).sum() == 800


SCENE = SimpleNamespace(
    thing_classes=["cat", "dog"],
    thing_colors=[(255, 0, 0), (0, 0, 255)],
    stuff_classes=["things", "sky", "sea"],
    stuff_colors=[(9, 9, 9), (0, 200, 200), (0, 0, 90)],
    thing_dataset_id_to_contiguous_id={17: 0, 18: 1},
    label_divisor=1000,
)
DOG, SKY = (
    {"id": 300, "category_id": 1, "isthing": True},
    {"id": 7, "category_id": 1, "isthing": False},
)


def scene_ids() -> torch.Tensor:
    """The sky (id 7) above, a dog (id 300) in the middle."""
    ids = torch.zeros(60, 80, dtype=torch.int32)
    ids[:30] = 7
    ids[20:40, 30:60] = 300
    return ids


def drawn_segments(segments, mode=ColorMode.SEGMENTATION, **options):
    """The picture, and each text with its colour."""
    written = []
    visualizer = Visualizer(GREY, SCENE, 1, mode)
    visualizer.output.label = lambda text, box, color: written.append((text, color))
    visualizer.output.label_inside = lambda text, mask, color: written.append((text, color))
    drawn = visualizer.draw_panoptic_seg_predictions(scene_ids(), segments, **options)
    return drawn.get_image(), written


def test_segments_have_the_colours_and_names_of_their_classes():
    picture, written = drawn_segments([DOG, SKY], alpha=1)
    assert written == [("dog", (0, 0, 255)), ("sky", (0, 200, 200))]
    assert picture[0, 0].tolist() == [0, 200, 200] and picture[30, 45].tolist() == [0, 0, 255]
    assert changed(picture).sum() == (scene_ids() > 0).sum()  # void stays as it is


def test_segments_of_predictions_have_scores():
    _, written = drawn_segments([DOG | {"score": 0.87}, SKY])
    assert [text for text, _ in written] == ["dog 87%", "sky"]
    _, written = drawn_segments([DOG | {"iscrowd": 1}])
    assert [text for text, _ in written] == ["dog|crowd"]


def test_small_stuff_can_be_left_out():
    picture, written = drawn_segments([DOG, SKY], area_threshold=2200)
    assert [text for text, _ in written] == ["dog"]
    assert not changed(picture)[0].any()


def test_two_segments_of_one_class_of_stuff_are_one():
    ids = scene_ids()
    ids[50:] = 8
    drawing = Visualizer(GREY, SCENE).draw_panoptic_seg(ids, [DOG, SKY, SKY | {"id": 8}])
    assert changed(drawing.get_image())[[0, 55]].all()


def test_maps_may_say_their_segments_themselves():
    labels = np.full((60, 80), -1)
    labels[scene_ids() == 300] = 1001
    labels[scene_ids() == 7] = 2000
    drawn = Visualizer(GREY, SCENE, 1, ColorMode.SEGMENTATION).draw_panoptic_seg(
        labels, None, alpha=1
    )
    assert drawn.get_image()[30, 45].tolist() == [0, 0, 255]
    assert drawn.get_image()[0, 0].tolist() == [0, 0, 90]


def test_black_and_white_keeps_colour_in_segments_only():
    colourful = np.zeros((60, 80, 3), np.uint8)
    colourful[..., 0] = 200
    drawing = Visualizer(colourful, SCENE, 1, ColorMode.IMAGE_BW)
    picture = drawing.draw_panoptic_seg(scene_ids(), [DOG, SKY]).get_image()
    assert len(set(picture[55, 5].tolist())) == 1 < len(set(picture[25, 5].tolist()))


def test_stuff_and_things_without_colours_are_told_apart():
    metadata = SimpleNamespace(thing_classes=["cat"], stuff_classes=["sky"])
    drawing = Visualizer(GREY, metadata, 1, ColorMode.SEGMENTATION)
    segments = [DOG | {"category_id": 0}, SKY | {"category_id": 0}]
    picture = drawing.draw_panoptic_seg(scene_ids(), segments, alpha=1).get_image()
    assert picture[0, 0].tolist() != picture[30, 45].tolist()


def test_annotated_segments_are_drawn(tmp_path):
    write_segment_ids(tmp_path / "ids.png", scene_ids().numpy())
    record = {"pan_seg_file_name": tmp_path / "ids.png", "segments_info": [DOG, SKY]}
    drawn = Visualizer(GREY, SCENE).draw_dataset_dict(record)
    whole = Visualizer(GREY, SCENE).draw_panoptic_seg(scene_ids(), [DOG, SKY], alpha=0.5)
    np.testing.assert_array_equal(drawn.get_image(), whole.get_image())


def test_annotated_objects_stand_on_their_map_of_classes(tmp_path):
    labels = np.full((60, 80), 255, np.uint8)
    labels[:30], labels[20:40, 30:60] = 1, 0
    Image.fromarray(labels).save(tmp_path / "labels.png")
    annotation = {"bbox": [30, 20, 30, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    annotation["segmentation"] = encode_masks(square_mask()[None])[0]
    record = {"sem_seg_file_name": tmp_path / "labels.png", "annotations": [annotation]}
    drawing = Visualizer(GREY, SCENE, 1, ColorMode.SEGMENTATION)
    picture = drawing.draw_dataset_dict(record).get_image()
    assert picture[10, 5].tolist() == pytest.approx([50, 150, 150], abs=1)
    assert picture[39, 45].tolist() == [255, 0, 0]  # the object's edge
    assert not changed(picture)[45:, :25].any()


def test_what_a_model_returns_is_drawn():
    instances = predictions(2)
    instances.scores = torch.tensor([0.9, 0.2])
    segments = {"panoptic_seg": (scene_ids(), [DOG]), "instances": instances}
    written = []
    for output in (segments, {"instances": instances, "sem_seg": None}):
        visualizer = Visualizer(GREY, SCENE)
        visualizer.output.label = lambda text, box, color: written.append(text)
        visualizer.draw_predictions(output)
    assert written == ["dog", "dog 90%"]
    scores = torch.zeros(3, 60, 80)
    scores[2] = 1
    of_scores = Visualizer(GREY, SCENE).draw_predictions({"sem_seg": scores}).get_image()
    of_labels = Visualizer(GREY, SCENE).draw_predictions({"sem_seg": scores.argmax(0)}).get_image()
    np.testing.assert_array_equal(of_scores, of_labels)
    assert changed(of_scores).all()


def test_names_of_stuff_lie_on_their_masks():
    output = VisImage(np.zeros((200, 300, 3), np.uint8))
    mask = np.zeros((200, 300), bool)
    mask[20:180, 10:60] = True
    mask[120:180, 10:290] = True
    for _ in range(3):
        output.label_inside("sky", mask, (0, 0, 255))
    for i, (x1, y1, x2, y2) in enumerate(output._taken):
        assert mask[y1:y2, x1:x2].all()
        assert all(
            x2 <= u1 or u2 <= x1 or y2 <= v1 or v2 <= y1 for u1, v1, u2, v2 in output._taken[:i]
        )
    assert len(output._taken) == 3
    tiny = VisImage(np.zeros((5, 5, 3), np.uint8))
    tiny.label_inside("sky", np.ones((5, 5), bool), (0, 0, 255))  # no room: nothing is written
    assert tiny._taken == []


def test_single_shapes():
    visualizer = Visualizer(GREY)
    visualizer.draw_box([5, 5, 20, 15], edge_color="r")
    visualizer.draw_box([60, 30, 30, 50], alpha=0.5, edge_color="w")  # corners in any order
    picture = visualizer.draw_polygon([[40, 5], [60, 5], [50, 15]], "#00ff00", "k").get_image()
    assert picture[5, 10].tolist() == [255, 0, 0] and picture[10, 10].tolist() == [100] * 3
    assert picture[30, 45, 0] == pytest.approx(178, abs=1)
    assert picture[9, 50, 1] > 150 and picture[5, 50].tolist() == [0, 0, 0]
    before = changed(picture).sum()
    assert changed(visualizer.draw_text("hello", (40, 50)).get_image()).sum() > before
    assert changed(visualizer.draw_binary_mask(np.zeros((60, 80))).get_image()).sum() > before


def test_pictures_are_saved_as_drawn(tmp_path):
    drawn = Visualizer(GREY).draw_box([5, 5, 20, 15])
    drawn.save(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), drawn.get_image())


@pytest.mark.parametrize("image", [GREY.astype(float), GREY[..., 0], GREY[:, ::-1], GREY + 1000.0])
def test_images_of_other_kinds_become_rgb_bytes(image):
    picture = VisImage(image).get_image()
    assert picture.shape == (60, 80, 3) and picture.dtype == np.uint8
    assert set(np.unique(picture)) == {min(255, int(np.max(image)))}


def test_colours_are_stable_and_distinct():
    colors = [distinct_color(i) for i in range(80)]
    assert len(set(colors)) == 80 and colors[0] == "#ff3b30"
    assert as_rgb(distinct_color(-1)) == as_rgb(distinct_color(-1))


@pytest.mark.parametrize(
    "color, rgb",
    [("r", (255, 0, 0)), ("#102030", (16, 32, 48)), ((1, 0.5, 0), (255, 128, 0)), ("k", (0, 0, 0))],
)
def test_colours_are_read(color, rgb):
    assert as_rgb(color) == rgb


@pytest.mark.parametrize("color", [(1, 2), (float("nan"), 0, 0), (-1, 0, 0), "no colour"])
def test_other_colours_are_refused(color):
    with pytest.raises(ValueError, match="colo"):
        as_rgb(color)


def test_letters_contrast_with_their_plate():
    assert text_color_on((255, 255, 0)) == (0, 0, 0)
    assert text_color_on((0, 0, 200)) == (255, 255, 255)


def a_pose(score: float = 1.0) -> torch.Tensor:
    points = torch.tensor([[20.0, 20, 1], [60, 20, 1], [60, 60, score]])
    return points[None]


def test_keypoints_and_their_connections_are_drawn():
    metadata = SimpleNamespace(
        thing_classes=["thing"],
        keypoint_names=["a", "b", "c"],
        keypoint_connection_rules=[("a", "b", (0, 255, 0)), ("b", "c", (0, 0, 255))],
    )
    found = Instances((80, 80), pred_keypoints=a_pose())
    image = np.zeros((80, 80, 3), np.uint8)
    picture = Visualizer(image, metadata).draw_instance_predictions(found).get_image()
    assert picture[20, 40].tolist() == [0, 255, 0] and picture[40, 60].tolist() == [0, 0, 255]
    assert all(picture[y, x].tolist()[0] > 200 for x, y in ((20, 20), (60, 20), (60, 60)))
    hidden = Instances((80, 80), pred_keypoints=a_pose(0.01))
    picture = Visualizer(image, metadata).draw_instance_predictions(hidden).get_image()
    assert picture[40, 60].tolist() == [0, 0, 0] and picture[60, 60].tolist() == [0, 0, 0]
    large = Visualizer(image, metadata, scale=2).draw_instance_predictions(found).get_image()
    assert large[40, 80].tolist() == [0, 255, 0]


def test_the_trunk_of_a_person_is_drawn():
    names = ["nose", "left_shoulder", "right_shoulder", "left_hip", "right_hip"]
    metadata = SimpleNamespace(thing_classes=["person"], keypoint_names=names)
    pose = np.array([[40, 10, 2], [30, 30, 2], [50, 30, 2], [30, 70, 2], [50, 70, 2]], float)
    drawing = Visualizer(np.zeros((80, 80, 3), np.uint8), metadata)
    picture = drawing.overlay_instances(keypoints=pose[None], labels=[""]).get_image()
    assert all(picture[y, 40, 0] > 100 for y in (20, 50)) and not picture[75, 40].any()


def test_annotated_keypoints_are_drawn():
    box = {"bbox": [0, 0, 79, 79], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    record = {"annotations": [{**box, "keypoints": [20.5, 20.5, 2, 0, 0, 0]}, box]}
    picture = Visualizer(np.zeros((80, 80, 3), np.uint8)).draw_dataset_dict(record).get_image()
    assert picture[20, 20, 0] > 200
