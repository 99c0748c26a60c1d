import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segdet.checkpoint import DetectionCheckpointer
from segdet.cli import run_command
from segdet.config import get_cfg
from segdet.data.catalog import Metadata
from segdet.data.rle import decode_rle
from segdet.data.segment_ids import read_segment_ids
from segdet.engine import predict
from segdet.engine.predict import find_images, main, predict_images, predict_video
from segdet.errors import DataError
from segdet.modeling import build_model
from segdet.structures import Boxes, Instances

PETS = Metadata().set(thing_classes=["cat", "dög"], thing_dataset_id_to_contiguous_id={7: 0, 90: 1})


def find_bright_parts(image: np.ndarray) -> dict:
    """A predictor: the bright pixels are a dög, with a doubtful cat on top."""
    assert image.dtype == np.uint8 and image.ndim == 3
    mask = torch.from_numpy(image.min(2) > 150)
    rows, columns = torch.nonzero(mask, as_tuple=True)
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    found = Instances(
        image.shape[:2],
        pred_boxes=Boxes(torch.tensor([box, box]).float()),
        scores=torch.tensor([0.8, 0.3]),
        pred_classes=torch.tensor([1, 0]),
        pred_masks=torch.stack([mask, mask]),
    )
    return {"instances": found}


def save_picture(file: Path, size: tuple[int, int] = (64, 48)) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size[1], size[0], 3), 40, np.uint8)
    pixels[10:30, 20:50] = 255
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    names = ["b.png", "a.jpg", "deeper/a.jpg", "c.bmp"]
    return [save_picture(tmp_path / "in" / name) for name in names]


def test_inputs_are_files_folders_and_patterns(pictures, tmp_path):
    (tmp_path / "in/notes.txt").touch()
    folder = str(tmp_path / "in")
    here = [tmp_path / "in" / name for name in ("a.jpg", "b.png", "c.bmp")]
    assert find_images([folder]) == here
    assert find_images([f"{folder}/**/a.*"]) == [here[0], tmp_path / "in/deeper/a.jpg"]
    assert find_images([str(here[2]), folder]) == [here[2], here[0], here[1]]


@pytest.mark.parametrize("given", ["absent.jpg", "*.jpg", "empty"])
def test_inputs_that_name_nothing_are_refused(tmp_path, given):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no such file, folder or match|has no images"):
        find_images([str(tmp_path / given)])


def test_a_bracket_in_a_file_name_is_no_pattern(tmp_path):
    file = save_picture(tmp_path / "photo[1].png")
    assert find_images([str(file)]) == [file]


def test_copies_and_json_are_written(pictures, tmp_path):
    out = tmp_path / "out"
    predict_images(find_bright_parts, pictures, out, PETS)
    written = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert written == {"a.jpg", "b.png", "c.bmp.png", "deeper/a.jpg", "predictions.json"}
    copy = np.asarray(Image.open(out / "b.png"))
    assert copy.shape == (48, 64, 3) and copy[20, 35].tolist() != [255, 255, 255]
    rows = json.loads((out / "predictions.json").read_text(encoding="utf-8"))
    assert [row["image_id"] for row in rows] == [1, 2, 3, 4]
    assert [row["file_name"] for row in rows] == [str(file) for file in pictures]
    row = rows[0]
    assert (row["category_id"], row["category_name"], row["bbox"]) == (90, "dög", [20, 10, 30, 20])
    assert row["score"] == pytest.approx(0.8)
    assert decode_rle(row["segmentation"]).sum() == 600


def test_neighbours_of_one_size_are_predicted_at_once(pictures, tmp_path):
    pictures.insert(2, save_picture(tmp_path / "in/wide.png", (80, 48)))
    pictures += [save_picture(tmp_path / "in" / name) for name in ("d.png", "e.png")]
    asked = []

    def predictor(images):
        asked.append(len(images) if isinstance(images, list) else 1)
        batch = images if isinstance(images, list) else [images]
        found = [find_bright_parts(image) for image in batch]
        return found if isinstance(images, list) else found[0]

    predict_images(predictor, pictures, tmp_path / "batches", PETS, batch_size=3)
    assert asked == [2, 1, 3, 1]
    predict_images(find_bright_parts, pictures, tmp_path / "singly", PETS)
    first, second = (tmp_path / kind / "predictions.json" for kind in ("batches", "singly"))
    assert first.read_text() == second.read_text()


def test_scores_of_masks_stand_beside_the_others(pictures, tmp_path):
    def predictor(image):
        found = find_bright_parts(image)
        found["instances"].mask_scores = torch.tensor([0.6, 0.1])
        return found

    predict_images(predictor, pictures[:1], tmp_path / "out", PETS)
    (row,) = json.loads((tmp_path / "out/predictions.json").read_text(encoding="utf-8"))
    assert (row["score"], row["mask_score"]) == pytest.approx((0.8, 0.6))


def test_the_threshold_decides_what_counts(pictures, tmp_path):
    for min_score, number in ((0.0, 2), (0.5, 1), (0.9, 0)):
        predict_images(find_bright_parts, pictures[:1], tmp_path / "out", min_score=min_score)
        rows = json.loads((tmp_path / "out/predictions.json").read_text())
        assert len(rows) == number
        assert all(row["category_id"] in (0, 1) for row in rows)  # unknown ids stay numbers


def test_originals_are_never_overwritten(pictures, tmp_path):
    before = [file.read_bytes() for file in pictures]
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for folder in ("in", "link", "in/deeper/.."):
        with pytest.raises(DataError, match=r"would overwrite .*; choose another folder"):
            predict_images(find_bright_parts, pictures, tmp_path / folder)
    maps = [save_picture(tmp_path / name) for name in ("out/panoptic/in/b.png", "in/sem_seg/b.png")]
    for more, folder in ((maps[0], "out"), (maps[1], "new")):  # an input; a copy and a map
        with pytest.raises(DataError, match=r"would overwrite .*b\.png, which is an input or made"):
            predict_images(find_bright_parts, [tmp_path / "in/b.png", more], tmp_path / folder)
        assert not (tmp_path / folder / "predictions.json").exists()
    assert [file.read_bytes() for file in pictures] == before


def test_broken_images_are_told_and_the_others_done(pictures, tmp_path, shared_data, caplog):
    broken = shared_data / "nasty/images/truncated_half.jpg"
    files = [pictures[0], broken, pictures[1]]
    with pytest.raises(DataError, match="1 of 3 images could not be read"):
        predict_images(find_bright_parts, files, tmp_path / "out")
    assert "truncated_half.jpg" in caplog.text
    rows = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [row["image_id"] for row in rows] == [1, 3]


SCENE = Metadata().set(
    thing_classes=["cat"],
    thing_dataset_id_to_contiguous_id={17: 0},
    stuff_classes=["things", "sky", "sea"],
    stuff_dataset_id_to_contiguous_id={0: 0, 90: 1, 91: 2},
    label_divisor=1000,
)


def find_segments(image: np.ndarray) -> dict:
    """Bright pixels are a cat (id 300), the others the sea (id 2)."""
    ids = torch.from_numpy(np.where(image.min(2) > 150, 300, 2))
    segments = [
        {"id": 300, "category_id": 0, "isthing": True, "score": 0.9, "instance_id": 0},
        {"id": 2, "category_id": 2, "isthing": False, "area": 5},
    ]
    sem_seg = torch.zeros(3, *ids.shape)
    return find_bright_parts(image) | {"panoptic_seg": (ids, segments), "sem_seg": sem_seg}


def test_segments_are_written_in_the_official_format(pictures, tmp_path):
    out = tmp_path / "out"
    predict_images(find_segments, pictures, out, SCENE)
    tree = json.loads((out / "panoptic.json").read_text())
    names = [row["file_name"] for row in tree["annotations"]]
    assert names == ["b.png", "a.png", "deeper/a.png", "c.bmp.png"]
    segments = [{"id": 300, "category_id": 17}, {"id": 2, "category_id": 91}]
    for number, row in enumerate(tree["annotations"], start=1):
        assert row["image_id"] == number and row["segments_info"] == segments
        ids = read_segment_ids(out / "panoptic" / row["file_name"])
        assert (ids == 300).sum() == 600 and set(np.unique(ids)) == {2, 300}
    assert len(json.loads((out / "predictions.json").read_text())) == 4  # objects, as ever
    assert not (out / "sem_seg").exists()


def test_segments_of_unknown_classes_keep_their_numbers(pictures, tmp_path):
    predict_images(find_segments, pictures[:1], tmp_path / "out")
    (row,) = json.loads((tmp_path / "out/panoptic.json").read_text())["annotations"]
    assert [segment["category_id"] for segment in row["segments_info"]] == [0, 2]


def test_segments_without_isthing_have_the_data_sets_ids(pictures, tmp_path):
    def find(image: np.ndarray) -> dict:
        ids, _ = find_segments(image)["panoptic_seg"]
        return {
            "panoptic_seg": (ids, [{"id": 300, "category_id": 17}, {"id": 2, "category_id": 91}])
        }

    predict_images(find, pictures[:1], tmp_path / "out", SCENE)
    (row,) = json.loads((tmp_path / "out/panoptic.json").read_text())["annotations"]
    assert [segment["category_id"] for segment in row["segments_info"]] == [17, 91]
    for metadata in (None, PETS):
        with pytest.raises(DataError, match=r"segment 300 has no isthing, and category 17 is none"):
            predict_images(find, pictures[:1], tmp_path / "out", metadata)


def test_maps_that_say_their_segments_need_metadata(pictures, tmp_path):
    def find(image: np.ndarray) -> dict:
        return {
            "panoptic_seg": (torch.where(find_segments(image)["panoptic_seg"][0] > 2, 0, -1), None)
        }

    predict_images(find, pictures[:1], tmp_path / "out", SCENE)
    (row,) = json.loads((tmp_path / "out/panoptic.json").read_text())["annotations"]
    assert row["segments_info"] == [{"id": 1, "category_id": 17}]
    with pytest.raises(DataError, match=r"DATASETS.TEST must name a data set: its label_divisor"):
        predict_images(find, pictures[:1], tmp_path / "out")


@pytest.mark.parametrize("classes, mode", [(3, "L"), (300, "I;16")])
def test_label_maps_are_written_as_pictures(pictures, tmp_path, classes, mode):
    def find(image: np.ndarray) -> dict:
        labels = torch.from_numpy(image.min(2) > 150).long() * (classes - 1)
        return {"sem_seg": torch.nn.functional.one_hot(labels, classes).permute(2, 0, 1)}

    save_picture(tmp_path / "in/b.jpg")
    files = [pictures[0], tmp_path / "in/b.jpg", pictures[2]]
    predict_images(find, files, tmp_path / "out")
    names = ["b.png.png", "b.jpg.png", "deeper/a.png"]  # two differ in their suffix alone
    for name in names:
        with Image.open(tmp_path / "out/sem_seg" / name) as picture:
            assert picture.mode == mode
            assert set(np.unique(np.asarray(picture))) == {0, classes - 1}
    assert json.loads((tmp_path / "out/predictions.json").read_text()) == []
    copy = np.asarray(Image.open(tmp_path / "out/b.png"))
    assert copy[20, 35].tolist() != [255, 255, 255]  # drawn, by number


def make_video(file: Path, frames: int = 3) -> Path:
    cv2 = pytest.importorskip("cv2", reason="videos need OpenCV")
    picture = np.asarray(Image.open(save_picture(file.with_suffix(".png"))))
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter.fourcc(*"mp4v"), 10, (64, 48))
    for _ in range(frames):
        writer.write(picture)
    writer.release()
    return file


def test_every_frame_of_a_video_is_drawn(tmp_path):
    cv2 = pytest.importorskip("cv2", reason="videos need OpenCV")
    video = make_video(tmp_path / "clip.mp4")
    predict_video(find_bright_parts, video, tmp_path / "out", PETS)
    rows = json.loads((tmp_path / "out/predictions.json").read_text(encoding="utf-8"))
    assert [row["image_id"] for row in rows] == [1, 2, 3]
    reader = cv2.VideoCapture(str(tmp_path / "out/clip.mp4"))
    assert reader.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert reader.read()[1][20, 35].min() < 240  # tinted


def test_videos_that_cannot_be_used_are_named(tmp_path, monkeypatch):
    video = make_video(tmp_path / "clip.mp4")
    with pytest.raises(DataError, match="would overwrite"):
        predict_video(find_bright_parts, video, tmp_path)
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    with pytest.raises(DataError, match=r"text.mp4 cannot be decoded"):
        predict_video(find_bright_parts, text, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DataError, match="--video and --webcam need OpenCV: pip install"):
        predict_video(find_bright_parts, video, tmp_path / "out")


def test_class_names_come_from_the_data_set(shared_data, caplog):
    name = f"{shared_data}/nasty/json/ok.json:{shared_data}/nasty/images"
    assert predict.load_metadata([name]).thing_classes == ["date", "fig", "hazelnut"]
    assert predict.load_metadata([]) is None
    assert predict.load_metadata(["absent.json:images"]).get("thing_classes") is None
    assert caplog.text.count("shown as numbers") == 2


SMALLEST = {
    "MODEL.DEVICE": "cpu",
    "MODEL.MASK_ON": True,
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 16,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "INPUT.MIN_SIZE_TEST": 64,
}


@pytest.fixture
def config(tmp_path) -> Path:
    """A config file and the weights that it names."""
    cfg = get_cfg()
    root = Path(__file__).resolve().parents[2]
    cfg.merge_from_file(str(root / "configs/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"))
    cfg.merge_from_list([one for pair in SMALLEST.items() for one in pair])
    DetectionCheckpointer(build_model(cfg), str(tmp_path)).save("weights")
    cfg.MODEL.WEIGHTS = str(tmp_path / "weights.pth")
    cfg.DATASETS.TEST = ()
    (tmp_path / "config.yaml").write_text(cfg.dump())
    return tmp_path / "config.yaml"


def test_the_command_predicts_with_a_real_model(config, pictures, tmp_path):
    out = tmp_path / "out"
    argv = ["--config-file", config, "--input", pictures[0], pictures[1], "--output", out]
    run_command(main, [*map(str, argv), "--confidence-threshold", "0.0"])
    rows = json.loads((out / "predictions.json").read_text())
    assert {row["image_id"] for row in rows} == {1, 2}
    assert all(row["segmentation"]["size"] == [48, 64] for row in rows)
    assert (out / "a.jpg").is_file() and (out / "b.png").is_file()
    run_command(main, [*map(str, argv), "--confidence-threshold", "0.0", "--batch-size", "1"])
    singly = json.loads((out / "predictions.json").read_text())
    assert [row["score"] for row in rows] == pytest.approx([row["score"] for row in singly])


@pytest.mark.parametrize(
    "given, said",
    [
        (["--input", "absent.png"], "absent.png: there is no such file"),
        (["--video", "absent.mp4"], "absent.mp4: there is no such file"),
        (["--input", "IMAGE", "--opts", "MODEL.WEIGHTS", ""], "MODEL.WEIGHTS is empty"),
        (["--input", "IMAGE", "--batch-size", "0"], "--batch-size must be >= 1, is 0"),
        (["--input", "BROKEN"], "1 of 1 images could not be read"),
        (["--input", "IMAGE", "--output", "BROKEN"], "broken.jpg cannot be used: it is a file"),
    ],
)
def test_mistakes_end_with_exit_code_2(config, pictures, tmp_path, capsys, given, said):
    (tmp_path / "broken.jpg").write_text("text")
    names = {"IMAGE": str(pictures[0]), "BROKEN": str(tmp_path / "broken.jpg")}
    argv = ["--config-file", str(config), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as exit_info:
        run_command(main, argv + [names.get(word, word) for word in given])
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
