"""The MaskIoU head of Mask Scoring R-CNN, under the names and with the classes of its release."""

from collections.abc import Iterator
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from segdet.checkpoint.families.maskrcnn_benchmark import (
    maskrcnn_benchmark_name,
    maskrcnn_benchmark_value,
)
from segdet.modeling.mask_head import mask_loss, mask_targets, masks_of_class
from segdet.modeling.maskiou_head import (
    MaskIoUHead,
    MaskIoUHeadConfig,
    attach_mask_scores,
    maskiou_loss,
    maskiou_targets,
    shares_inside,
)
from segdet.structures import Boxes, Detections, PolygonMasks, Proposals, Targets
from tests.parity.checks import Check, relative, sampled

PREFIX = "roi_heads.maskiou_head."


class MaskScoringRCNNHead:
    """One case; in it class 0 is the background, which has no output here."""

    def __init__(self, meta: dict, arrays: dict, recipe: ModuleType, dtype: torch.dtype) -> None:
        self.meta, self.arrays, self.recipe, self.dtype = meta, arrays, recipe, dtype
        self.params = {name: case["params"] for name, case in meta["cases"].items()}
        # The originals' float32 bars; in float64 what storing in float32 leaves of them.
        self.tol = {k: v for case in meta["cases"].values() for k, v in case["tol"].items()}
        self.is_exact = dtype == torch.float64
        self.labels = torch.from_numpy(arrays["targets"]["labels"]).long()
        self.positive = torch.from_numpy(arrays["targets"]["positive"]).long()
        self.classes = self.labels[self.positive] - 1
        self.features, self.logits = self.draw("roi_feature"), self.draw("mask_logits")
        own = torch.from_numpy(arrays["targets"]["label_logits"]).to(dtype)
        self.logits[torch.arange(len(own)), self.labels] = own
        self.head = self.build_head()

    def draw(self, name: str) -> Tensor:
        shape, seed = self.params["head"][f"{name}_shape"], self.meta["weight_seed"]
        rules = self.meta["input_rules"]
        drawn = self.recipe.tensor(f"input.{name}", tuple(shape), "float32", seed, rules)
        return torch.from_numpy(drawn).to(self.dtype)

    def build_head(self) -> MaskIoUHead:
        entries = self.meta["state_dict"]
        weights = self.recipe.state_dict(
            entries, self.meta["weight_seed"], self.meta["weight_rules"]
        )
        self.recipe.verify(weights, self.meta["weight_check"])
        self.ours = {name: maskrcnn_benchmark_name(name) for name, _, _ in entries}
        state = {
            self.ours[name].removeprefix(PREFIX): maskrcnn_benchmark_value(
                self.ours[name], torch.from_numpy(value)
            )
            for name, value in weights.items()
        }
        convs = [value for name, value in state.items() if value.ndim == 4]
        _, channels, side, _ = self.features.shape
        section = MaskIoUHeadConfig(conv_dim=len(convs[0]), num_conv=len(convs))
        head = section.build(channels, self.meta["num_classes"] - 1, side=side)
        head.load_state_dict(state, strict=True)
        return head.to(self.dtype)

    def bar(self, name: str, exact: float) -> float:
        return exact if self.is_exact else self.tol[name]

    def scene(self) -> tuple[list[Proposals], list[Targets]]:
        """The foreground regions of each image, and its objects."""
        arrays, params = self.arrays["scene"], self.params["scene"]
        size = tuple(self.meta["image"])
        assigned = torch.from_numpy(self.arrays["targets"]["assigned_gt"]).long()
        boxes = torch.from_numpy(arrays["proposals"]).to(self.dtype)
        image = torch.repeat_interleave(torch.tensor(params["proposals_per_image"]))
        proposals, targets, start, per_image = [], [], 0, params["instances_per_image"]
        for i in range(len(params["proposals_per_image"])):
            mine = image[self.positive] == i
            proposals.append(
                Proposals(
                    size,
                    proposal_boxes=Boxes(boxes[self.positive[mine]]),
                    gt_index=assigned[mine],
                    gt_classes=self.classes[mine],
                )
            )
            polygons = params["polygons"][start : start + per_image]
            targets.append(Targets(size, gt_masks=PolygonMasks(polygons)))
            start += per_image
        return proposals, targets

    def outputs(self) -> Iterator[Check]:
        """The head on given features and masks, and the scores of detections."""
        expected, masks = self.arrays["head"], masks_of_class(self.logits, self.labels).sigmoid()
        seen: dict[str, Tensor] = {}
        hooks = [
            self.head.convs[0].register_forward_pre_hook(lambda _, x: seen.update(input=x[0])),
            self.head.maskiou_fc2.register_forward_hook(lambda _, __, x: seen.update(fc2=x)),
        ]
        with torch.no_grad():
            ious = self.head(self.features, masks)
        for hook in hooks:
            hook.remove()
        pooled = sampled(self.recipe, seen["input"][:, -1:], expected["pooled_mask_sample"])
        yield Check("pooled mask", pooled, expected["pooled_mask_sample"], 1e-6)
        every = seen["fc2"].shape[1] // expected["fc2"].shape[1]
        fc2 = seen["fc2"].relu()[:, ::every]
        bar = self.bar("pred_abs_f32", 1e-10)
        yield Check("fc2", fc2, expected["fc2"], max(bar, relative(1e-6, expected["fc2"])))
        yield Check("ious", ious, expected["pred_maskiou"][:, 1:], bar)
        yield self.mask_scores()

    @torch.no_grad()
    def mask_scores(self) -> Check:
        expected, num = self.arrays["test"], self.params["test"]["num"]
        labels = torch.from_numpy(expected["det_labels"]).long()
        masks = masks_of_class(self.logits[:num], labels).sigmoid()
        found = Detections(tuple(self.meta["image"]), pred_classes=labels - 1)
        found.scores = torch.from_numpy(expected["scores"]).to(self.dtype)
        attach_mask_scores(self.head(self.features[:num], masks), [found])
        bar = self.bar("mask_scores_f32", 1e-10)
        return Check("mask scores", found.mask_scores, expected["mask_scores"], bar)

    def target_ious(self) -> tuple[Tensor, Tensor, Tensor]:
        """Cropped objects, the shares of objects in their regions, and the IoUs to be learnt."""
        proposals, targets = self.scene()
        own = masks_of_class(self.logits, self.labels)[self.positive]
        gt_masks = mask_targets(proposals, targets, own.shape[-1])
        shares = shares_inside(proposals, targets)
        return gt_masks, shares, maskiou_targets(own, gt_masks, shares)

    def targets(self) -> Iterator[Check]:
        """Also where the object lies partly off its region."""
        expected = self.arrays["targets"]
        gt_masks, shares, ious = self.target_ious()
        cells = np.unpackbits(expected["mask_targets"])[: gt_masks.numel()]
        yield Check("masks", gt_masks, cells.reshape(gt_masks.shape), 0)
        yield Check("shares", shares, expected["ratio"], 1e-12 if self.is_exact else 1e-6)
        yield Check("ious", ious, expected["maskiou_targets"], self.bar("iou_f32", 1e-12))

    def maskiou_loss(self, features: Tensor, own: Tensor) -> Tensor:
        ious = self.head(features, own.sigmoid())[self.positive]
        target_ious = self.target_ious()[2]
        weight = self.meta["loss_weight"]
        return maskiou_loss(ious, target_ious, self.classes, weight)["loss_maskiou"]

    def losses(self) -> Iterator[Check]:
        """That of the head, of the masks, and of a batch without objects."""
        expected, own = self.arrays["head"]["loss"], masks_of_class(self.logits, self.labels)
        with torch.no_grad():
            loss = self.maskiou_loss(self.features, own)
        bar = relative(self.bar("loss_rel", 1e-10), expected)
        yield Check("loss_maskiou", loss, expected, bar)
        masks = self.target_ious()[0]
        loss = mask_loss(self.logits[self.positive], masks, self.labels[self.positive])
        expected = np.array(self.params["targets"]["mask_loss"])
        bar = relative(self.bar("mask_loss_rel", 1e-7), expected)  # the reference's is float32
        yield Check("loss_mask", loss["loss_mask"], expected, bar)
        nothing = torch.zeros(0, self.meta["num_classes"] - 1, dtype=self.dtype)
        loss = maskiou_loss(nothing, torch.zeros(0), torch.zeros(0).long())["loss_maskiou"]
        yield Check("without objects", loss, self.arrays["no_positive"]["loss"], 0)

    def gradients(self) -> Iterator[Check]:
        """Of the head's loss, to its parameters, the features and the masks' logits."""
        expected, norms = self.arrays["grads"], self.params["grads"]["norms"]
        features = self.features.clone().requires_grad_()
        own = masks_of_class(self.logits, self.labels).clone().requires_grad_()
        self.head.zero_grad()
        self.maskiou_loss(features, own).backward()
        bar = self.bar("norm_rel", 1e-10)
        for name, norm in norms.items():
            grad = self.head.get_parameter(self.ours[name].removeprefix(PREFIX)).grad
            yield Check(name, grad.double().norm(), np.array(norm), bar * norm)
        given = {
            "roi_feature_sample": sampled(
                self.recipe, features.grad, expected["roi_feature_sample"]
            ),
            "grad_label_logits": own.grad,
            "maskiou_bias": torch.nn.functional.pad(self.head.maskiou.bias.grad, (1, 0)),
            "fcn1_sample": sampled(
                self.recipe, self.head.maskiou_fcn1.weight.grad, expected["fcn1_sample"]
            ),
        }
        bar = max(bar, 1e-6)  # samples are stored in float32
        for name, ours in given.items():
            yield Check(name, ours, expected[name], relative(bar, expected[name]))
