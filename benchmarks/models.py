"""Mask R-CNN R50-FPN against torchvision's, in one process on the same images and objects.

    python -m benchmarks.models --json output/models.json --threads 2 --filter inference

Ours is configs/COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml, with its stride in the 3x3
convolution. torchvision's model is given the same parts as far as its arguments reach: frozen batch
norm and a frozen first stage, 81 outputs, the same numbers of proposals, sampled regions and
detections, adaptive sampling in RoIAlign. What stays different: torchvision samples RoIAlign
without the half-pixel shift, and pastes masks as floats where ours gives booleans.

Weights are random, so both are made to do the work of trained ones: residual branches start at
zero, which keeps activations small, and every proposal has one class above the score threshold. So
each image has 1000 candidates, 100 detections and 100 masks. Neither model resizes: images have the
size that goes into the network. A training step is forward, backward and SGD with momentum.

The one-stage systems' official models follow, likewise with random weights: every location has one
class above the threshold, so each image has as many detections, and masks, as a result may have.
Their peer is that same Mask R-CNN, which their papers compare them with.

`limit_s` counts the convolutions and matrix products of our model alone, at the measured rate.

Rows of YOLACT and YOLACT++, stage by stage, have no peer: see `benchmarks.yolact`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import MultiScaleRoIAlign

from benchmarks import yolact
from benchmarks.ops.duel import Duel, compare, machine_rates, show, write
from segdet.config import get_cfg
from segdet.model_zoo import get_config_file
from segdet.modeling import build_model
from segdet.structures import BitMasks, Boxes, Instances

CONFIG = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml"
ONE_STAGE = {
    "BlendMask R-50": "BlendMask/R_50_3x.yaml",
    "CenterMask V-39": "centermask/centermask_V_39_eSE_FPN_ms_3x.yaml",
}
CLASSES, OBJECTS = 80, 7  # objects in each image
SIZES = {"cpu": (480, 640), "cuda": (800, 1216)}  # (height, width)
BATCHES = {"cpu": 1, "cuda": 4}  # images of a training step


def our_model(device: str) -> nn.Module:
    """The official model, with random weights."""
    model = official_model(CONFIG, device, stride_in_1x1=False)
    return like_trained(model, "conv3.norm.weight", background=CLASSES)


def one_stage_model(config: str, device: str) -> nn.Module:
    """The official model, with random weights by which it finds as much as it may."""
    model = official_model(config, device, stride_in_1x1=True)
    values = model.state_dict()
    for name, value in values.items():
        if name.endswith("conv3.norm.weight"):
            value.zero_()
    head = "proposal_generator.fcos_head."
    values[head + "cls_logits.weight"].zero_()
    values[head + "cls_logits.bias"].fill_(-10)[1] = 0
    values[head + "bbox_pred.bias"].fill_(3)  # boxes 6 strides wide
    return model


def official_model(config: str, device: str, *, stride_in_1x1: bool) -> nn.Module:
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file(config))
    cfg.MODEL.DEVICE = device
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = stride_in_1x1
    return build_model(cfg)


def torchvision_model(device: str, size: tuple[int, int]) -> nn.Module:
    """maskrcnn_resnet50_fpn as pretrained weights make it, without them."""
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
    return like_trained(model, "bn3.weight", background=0)


def like_trained(model: nn.Module, last_norm: str, background: int) -> nn.Module:
    """Sets random weights so that activations stay small and each proposal has one likely class."""
    for name, value in model.state_dict().items():
        if name.endswith(last_norm):
            value.zero_()
    class_scores = model.get_submodule("roi_heads.box_predictor.cls_score")
    assert isinstance(class_scores, nn.Linear), "both have it under one name"
    with torch.no_grad():
        class_scores.weight.zero_()
        class_scores.bias.fill_(-10)
        class_scores.bias[[background, 1]] = 0
    return model


def random_objects(size: tuple[int, int], device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (N, 4) XYXY, classes (N,) and masks (N, H, W) bool, the ellipses in the boxes."""
    height, width = size
    side = torch.rand(OBJECTS, 2) * 200 + 40
    corner = torch.rand(OBJECTS, 2) * (torch.tensor([width, height]) - side)
    boxes = torch.cat([corner, corner + side], dim=1)
    centre, radius = corner + side / 2, side / 2
    x = (torch.arange(width) - centre[:, :1]) / radius[:, :1]  # (N, W)
    y = (torch.arange(height) - centre[:, 1:]) / radius[:, 1:]  # (N, H)
    masks = x[:, None, :] ** 2 + y[:, :, None] ** 2 <= 1
    return boxes.to(device), torch.randint(CLASSES, (OBJECTS,)).to(device), masks.to(device)


def training_step(model: nn.Module, losses: Callable[[], dict[str, Tensor]]) -> Callable[[], float]:
    """Forward, backward and an update too small to change what the next step does."""
    trained = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-9, momentum=0.9)

    def step() -> float:
        optimizer.zero_grad()
        loss = torch.stack(list(losses().values())).sum()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def duels(device: str) -> Iterator[Duel]:
    """Inference on one image and a training step, with bfloat16 autocast too on CUDA."""
    size, batch = SIZES[device], BATCHES[device]
    ours, theirs = our_model(device), torchvision_model(device, size)
    images = [
        torch.randint(256, (3, *size), dtype=torch.uint8, device=device) for _ in range(batch)
    ]
    objects = [random_objects(size, device) for _ in images]
    our_targets = [
        Instances(size, gt_boxes=Boxes(boxes), gt_classes=classes, gt_masks=BitMasks(masks))
        for boxes, classes, masks in objects
    ]
    our_input = [
        {"image": image, "instances": target}
        for image, target in zip(images, our_targets, strict=True)
    ]
    their_images = [image / 255 for image in images]
    their_targets = [
        {"boxes": boxes, "labels": classes + 1, "masks": masks.to(torch.uint8)}
        for boxes, classes, masks in objects
    ]
    our_step = training_step(ours, lambda: ours(our_input))
    their_step = training_step(theirs, lambda: theirs(their_images, their_targets))

    def trained(step: Callable[[], float], model: nn.Module) -> Callable[[], object]:
        return lambda: (model.train(), step())

    work = {
        "inference, 1 image": (predicted(ours, our_input[:1]), predicted(theirs, their_images[:1])),
        f"training step, {batch} image{'s'[: batch > 1]}": (
            trained(our_step, ours),
            trained(their_step, theirs),
        ),
    }
    for name, runs in work.items():
        with FlopCounterMode(display=False) as counter:
            runs[0]()
        for autocast in (False, True) if device == "cuda" else (False,):
            first, second = (under_autocast(run, device) if autocast else run for run in runs)
            yield Duel(
                name=f"Mask R-CNN R50-FPN {size[1]}x{size[0]} {name}{', bfloat16' * autocast}",
                ours=first,
                peer=second,
                megabytes=0,
                gigaflops=counter.get_total_flops() / 1e9,
            )
    for name, config in ONE_STAGE.items():
        run = predicted(one_stage_model(config, device), our_input[:1])
        with FlopCounterMode(display=False) as counter:
            run()
        yield Duel(
            name=f"{name} {size[1]}x{size[0]} inference, 1 image",
            ours=run,
            peer=predicted(theirs, their_images[:1]),
            megabytes=0,
            gigaflops=counter.get_total_flops() / 1e9,
            peer_name=f"Mask R-CNN R50-FPN of torchvision {torchvision.__version__}",
        )


def predicted(model: nn.Module, images: list) -> Callable[[], object]:
    """A prediction, as a function without arguments."""

    def predict() -> object:
        model.eval()
        with torch.inference_mode():
            return model(images)

    return predict


def under_autocast(run: Callable[[], object], device: str) -> Callable[[], object]:
    def wrapped() -> object:
        with torch.autocast(device, torch.bfloat16):
            return run()

    return wrapped


def peak_mebibytes(run: Callable[[], object]) -> float:
    """The most memory that tensors took on the GPU during a call, beside what was there before."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description="Mask R-CNN against torchvision's.")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--filter", default="", metavar="WORD", help="only rows that contain it")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True  # as PyTorch's convolutions do by themselves
    rates = machine_rates(args.device)
    rows = []
    for duel in duels(args.device):
        if args.filter not in duel.name:
            continue
        row = compare(duel, args.device, rates)
        if args.device == "cuda":
            row["ours_mib"], row["peer_mib"] = peak_mebibytes(duel.ours), peak_mebibytes(duel.peer)
        rows.append(row)
        write(rows, args.json)
    for row in yolact.rows(args.device, args.filter):
        rows.append(row)
        write(rows, args.json)
    show(rows)


if __name__ == "__main__":
    main()
