"""The getting-started tour that every detectron2 user knows, with the package name replaced.

    python docs/getting_started.py --data balloon

`--data` is a folder with `train/` and `val/`, each holding pictures and the VGG Image Annotator
export `via_region_data.json` (the balloon data of the Mask R-CNN tutorials has this layout).
Trailing `KEY VALUE` pairs change the config, e.g. `MODEL.WEIGHTS "" SOLVER.MAX_ITER 20`.
"""

import argparse
import json
import os
import random

import numpy as np
from PIL import Image

from segdet import model_zoo
from segdet.config import get_cfg
from segdet.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from segdet.engine import DefaultPredictor, DefaultTrainer
from segdet.evaluation import COCOEvaluator, inference_on_dataset
from segdet.structures import BoxMode
from segdet.utils.logger import setup_logger
from segdet.utils.visualizer import ColorMode, Visualizer


def get_balloon_dicts(img_dir: str) -> list[dict]:
    """The records of one folder: what a data set is to segdet is what this function returns."""
    with open(os.path.join(img_dir, "via_region_data.json")) as f:
        imgs_anns = json.load(f)
    dataset_dicts = []
    for idx, v in enumerate(imgs_anns.values()):
        filename = os.path.join(img_dir, v["filename"])
        width, height = Image.open(filename).size
        record = {"file_name": filename, "image_id": idx, "height": height, "width": width}
        objs = []
        for region in v["regions"].values():
            anno = region["shape_attributes"]
            px, py = anno["all_points_x"], anno["all_points_y"]
            poly = [p for x, y in zip(px, py, strict=True) for p in (x + 0.5, y + 0.5)]
            objs.append(
                {
                    "bbox": [min(px), min(py), max(px), max(py)],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "segmentation": [poly],
                    "category_id": 0,
                }
            )
        record["annotations"] = objs
        dataset_dicts.append(record)
    return dataset_dicts


def main() -> None:
    """Registers, looks, trains, predicts, draws, evaluates."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="balloon", help="folder with train/ and val/")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs of the config")
    args = parser.parse_args()
    setup_logger()

    # Register the data.
    for d in ["train", "val"]:
        DatasetCatalog.register(
            "balloon_" + d, lambda d=d: get_balloon_dicts(os.path.join(args.data, d))
        )
        MetadataCatalog.get("balloon_" + d).set(thing_classes=["balloon"])
    balloon_metadata = MetadataCatalog.get("balloon_train")

    # Train from a model of the zoo.
    cfg = get_cfg()
    cfg.merge_from_file(
        model_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml")
    )
    cfg.DATASETS.TRAIN = ("balloon_train",)
    cfg.DATASETS.TEST = ()
    cfg.DATALOADER.NUM_WORKERS = 2
    cfg.MODEL.WEIGHTS = model_zoo.get_checkpoint_url(
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
    )
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.BASE_LR = 0.00025
    cfg.SOLVER.MAX_ITER = 300
    cfg.SOLVER.STEPS = []  # no decay
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 128
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1
    cfg.merge_from_list(args.opts)
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)

    # Look at the training data.
    dataset_dicts = DatasetCatalog.get("balloon_train")
    for d in random.sample(dataset_dicts, min(3, len(dataset_dicts))):
        img = np.asarray(Image.open(d["file_name"]).convert("RGB"))
        visualizer = Visualizer(img, metadata=balloon_metadata, scale=0.5)
        out = visualizer.draw_dataset_dict(d)
        out.save(os.path.join(cfg.OUTPUT_DIR, f"train_{d['image_id']}.png"))

    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()

    # Predict with the trained weights.
    cfg.MODEL.WEIGHTS = os.path.join(cfg.OUTPUT_DIR, "model_final.pth")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.7
    predictor = DefaultPredictor(cfg)
    for d in DatasetCatalog.get("balloon_val"):
        im = np.asarray(Image.open(d["file_name"]).convert("RGB"))[:, :, ::-1]  # BGR, as cv2 reads
        outputs = predictor(im)
        v = Visualizer(
            im[:, :, ::-1],
            metadata=balloon_metadata,
            scale=0.5,
            instance_mode=ColorMode.IMAGE_BW,  # gray where nothing was found
        )
        out = v.draw_instance_predictions(outputs["instances"].to("cpu"))
        out.save(os.path.join(cfg.OUTPUT_DIR, f"val_{d['image_id']}.png"))

    # Evaluate.
    evaluator = COCOEvaluator("balloon_val", output_dir=cfg.OUTPUT_DIR)
    val_loader = build_detection_test_loader(cfg, "balloon_val")
    print(inference_on_dataset(predictor.model, val_loader, evaluator))


if __name__ == "__main__":
    main()
