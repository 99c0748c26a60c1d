"""The eight systems with random weights that work as hard as trained ones, and their input.

Residual branches start at zero, which keeps activations small, and everything that a system may
report has one class above the score threshold: of two-stage systems each proposal, of one-stage
systems each location, of YOLACT the best 1000 prior boxes. So each image has as many detections,
and masks, as a result may have.

Ours is built from the official files, FCIS with ResNet-50 instead of ResNet-101, ResNets with their
stride in the 3x3 convolution. torchvision's Mask R-CNN is given the same parts as far as its
arguments reach: frozen batch norm and a frozen first stage, 81 outputs, the same numbers of
proposals, sampled regions and detections, adaptive sampling in RoIAlign. What stays different:
torchvision samples RoIAlign without the half-pixel shift, and pastes masks as floats where ours
gives booleans. No model resizes: images have the size that goes into the network.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from segdet.config import get_cfg
from segdet.engine.heap import return_free_memory
from segdet.model_zoo import get_config_file
from segdet.modeling import build_model
from segdet.modeling.meta_arch.yolact import YOLACT
from segdet.modeling.system import System
from segdet.solver.sgd import SGD
from segdet.structures import BitMasks, Boxes, Instances

CLASSES, STUFF = 80, 54
Size = tuple[int, int]  # (height, width)


class Official(NamedTuple):
    """A system's official file, with what is set beside it."""

    config: str
    find: Callable[[nn.Module], None]  # sets weights by which the model finds as much as it may
    settings: tuple[Any, ...] = ("MODEL.RESNETS.STRIDE_IN_1X1", False)
    side: int = 0  # of square images; 0: any


@torch.no_grad()
def _every_proposal(model: nn.Module) -> None:
    class_scores = model.get_submodule("roi_heads.box_predictor.cls_score")
    assert isinstance(class_scores, nn.Linear), "all box heads have it under one name"
    # torchvision's background comes first.
    background = CLASSES if hasattr(model, "proposal_generator") else 0
    class_scores.weight.zero_()
    class_scores.bias.fill_(-10)
    class_scores.bias[[background, 1]] = 0


@torch.no_grad()
def _every_region(model: nn.Module) -> None:
    maps = model.get_submodule("head.fcis_cls_seg")
    assert isinstance(maps, nn.Conv2d) and maps.bias is not None, "as FCIS has it"
    maps.weight.zero_()
    of_class = maps.bias.fill_(-10).view(CLASSES + 1, -1)
    of_class[[CLASSES, 1]] = 0


@torch.no_grad()
def _every_location(model: nn.Module) -> None:
    head = model.get_submodule("proposal_generator.fcos_head")
    values = head.state_dict()
    values["cls_logits.weight"].zero_()
    values["cls_logits.bias"].fill_(-10)[1] = 0
    values["bbox_pred.bias"].fill_(3)  # boxes 6 strides wide


@torch.no_grad()
def _best_priors(model: nn.Module) -> None:
    assert isinstance(model, YOLACT), "as its file says"
    pixels = torch.randint(256, (3, 550, 550), dtype=torch.uint8, device=model.device)
    images = model.preprocess_image([{"image": pixels}])
    maps = model.eval().read_out(model.levels(images), (550, 550))
    best = maps.predictions.logits.softmax(-1)[0, :, 1:]
    model.selector.score_thresh = best.amax(1).topk(1001).values[-1].item()


SYSTEMS = {
    "Mask R-CNN R50-FPN": Official(
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml", _every_proposal
    ),
    "Mask Scoring R-CNN R50-FPN": Official(
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml",
        _every_proposal,
        ("MODEL.MASKIOU_ON", True, "MODEL.RESNETS.STRIDE_IN_1X1", False),
    ),
    "FCIS R50": Official("FCIS/fcis_R_101_coco.yaml", _every_region, ("MODEL.RESNETS.DEPTH", 50)),
    "CenterMask V-39": Official("centermask/centermask_V_39_eSE_FPN_ms_3x.yaml", _every_location),
    "YOLACT R50": Official("YOLACT/yolact_resnet50.yaml", _best_priors, (), side=550),
    "YOLACT++ R50": Official("YOLACT/yolact_plus_resnet50.yaml", _best_priors, (), side=550),
    "BlendMask R-50": Official("BlendMask/R_50_3x.yaml", _every_location),
    "PointRend R50-FPN": Official(
        "PointRend/InstanceSegmentation/pointrend_rcnn_R_50_FPN_3x_coco.yaml", _every_proposal
    ),
    "Panoptic FPN R50": Official(
        "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x.yaml", _every_proposal
    ),
}


def our_model(system: str, device: str, *, detections: int = 100) -> nn.Module:
    """A system with random weights.

    Args:
        system: a key of `SYSTEMS`.
        device: of the model.
        detections: an image has at most.
    """
    official = SYSTEMS[system]
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file(official.config))
    cfg.merge_from_list(
        ["MODEL.DEVICE", device, "TEST.DETECTIONS_PER_IMAGE", detections, *official.settings]
    )
    model = build_model(cfg)
    _start_small(model, "conv3.norm.weight")
    official.find(model)
    return model


def torchvision_model(device: str, size: Size) -> nn.Module:
    """maskrcnn_resnet50_fpn as pretrained weights make it, without them."""
    # Not at the top, so that the memory of ours is measured without it.
    from torchvision.models import detection
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
    from torchvision.ops import MultiScaleRoIAlign

    levels = ["0", "1", "2", "3"]
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
    model = detection.MaskRCNN(
        backbone,
        num_classes=CLASSES + 1,
        min_size=min(size),
        max_size=max(size),
        _skip_resize=True,
        rpn_post_nms_top_n_train=1000,
        box_roi_pool=MultiScaleRoIAlign(levels, output_size=7, sampling_ratio=0),
        mask_roi_pool=MultiScaleRoIAlign(levels, output_size=14, sampling_ratio=0),
    ).to(device)
    _start_small(model, "bn3.weight")
    _every_proposal(model)
    return model


def detectron2_model(device: str) -> nn.Module | None:
    """detectron2's Mask R-CNN of the same file; None where detectron2 is not installed."""
    if importlib.util.find_spec("detectron2") is None:
        return None
    packages = [f"detectron2.{name}" for name in ("config", "model_zoo", "modeling")]
    config, zoo, modeling = map(importlib.import_module, packages)
    official = SYSTEMS["Mask R-CNN R50-FPN"]
    cfg = config.get_cfg()
    cfg.merge_from_file(zoo.get_config_file(official.config))
    cfg.merge_from_list(["MODEL.DEVICE", device, *official.settings])
    model = modeling.build_model(cfg)
    _start_small(model, "conv3.norm.weight")
    _every_proposal(model)
    return model


def _start_small(model: nn.Module, last_norm: str) -> None:
    for name, value in model.state_dict().items():
        if name.endswith(last_norm):
            value.zero_()


def random_objects(size: Size, number: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (N, 4) XYXY, classes (N,) and masks (N, H, W) bool, the ellipses in the boxes."""
    height, width = size
    side = torch.rand(number, 2) * 200 + 40
    corner = torch.rand(number, 2) * (torch.tensor([width, height]) - side)
    boxes = torch.cat([corner, corner + side], dim=1)
    centre, radius = corner + side / 2, side / 2
    x = (torch.arange(width) - centre[:, :1]) / radius[:, :1]  # (N, W)
    y = (torch.arange(height) - centre[:, 1:]) / radius[:, 1:]  # (N, H)
    masks = x[:, None, :] ** 2 + y[:, :, None] ** 2 <= 1
    return boxes.to(device), torch.randint(CLASSES, (number,)).to(device), masks.to(device)


class Batch(NamedTuple):
    """The same images and objects for every model."""

    ours: list[dict[str, Any]]
    images: list[Tensor]  # torchvision's
    targets: list[dict[str, Tensor]]


def random_batch(size: Size, number: int, objects: int, device: str) -> Batch:
    """A batch of images of noise with objects."""
    ours, images, targets = [], [], []
    for _ in range(number):
        image = torch.randint(256, (3, *size), dtype=torch.uint8, device=device)
        boxes, classes, masks = random_objects(size, objects, device)
        instances = Instances(
            size, gt_boxes=Boxes(boxes), gt_classes=classes, gt_masks=BitMasks(masks)
        )
        stuff = torch.randint(STUFF, size, device=device)
        ours.append({"image": image, "instances": instances, "sem_seg": stuff})
        images.append(image / 255)
        targets.append({"boxes": boxes, "labels": classes + 1, "masks": masks.to(torch.uint8)})
    return Batch(ours, images, targets)


def for_detectron2(batch: Batch) -> list[dict[str, Any]]:
    """The batch with detectron2's structures; needs detectron2."""
    structures = importlib.import_module("detectron2.structures")
    inputs = []
    for one in batch.ours:
        own = one["instances"]
        theirs = structures.Instances(own.image_size)
        theirs.gt_boxes = structures.Boxes(own.gt_boxes.tensor)
        theirs.gt_classes = own.gt_classes
        theirs.gt_masks = structures.BitMasks(own.gt_masks.tensor)
        inputs.append({"image": one["image"], "instances": theirs})
    return inputs


def predicted(model: nn.Module, *inputs: Any) -> Callable[[], Any]:
    """A prediction, as a function without arguments."""

    def predict() -> Any:
        model.eval()
        with torch.inference_mode():
            return model(*inputs)

    return predict


def training_step(model: nn.Module, *inputs: Any) -> Callable[[], float]:
    """Forward, backward and an update too small to change what the next step does.

    SGD with momentum. That of ours is `SolverConfig`'s, and free memory is given back as our
    trainers do it.
    """
    trained = [one for one in model.parameters() if one.requires_grad]
    is_ours = isinstance(model, System)
    kind = SGD if is_ours else torch.optim.SGD
    optimizer = kind(trained, lr=1e-9, momentum=0.9, weight_decay=1e-4, fused=True)

    def step() -> float:
        model.train()
        optimizer.zero_grad()
        loss = torch.stack(list(model(*inputs).values())).sum()
        if is_ours and loss.device.type == "cpu":
            return_free_memory()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step
