"""FCIS's head, training targets, OHEM and mask voting, under the names of its release."""

from collections.abc import Iterator
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segdet.checkpoint.families.mxnet_fcis import mxnet_fcis_name, mxnet_fcis_value
from segdet.modeling.box_coder import Box2BoxTransform
from segdet.modeling.fcis_head import (
    FCISHead,
    FCISHeadConfig,
    RegionScores,
    RegionTargets,
    ScoreMaps,
    crop_masks,
)
from segdet.modeling.mask_voting import MaskVoting, ScoredRegions, scaled
from segdet.modeling.matching import Matcher
from segdet.modeling.roi_heads import ProposalSampler
from segdet.structures import Boxes, Proposals, Targets, clip_boxes
from tests.parity.checks import Check, relative, sampled

PREFIX = "head."
EVERY = 1 << 30


class FCISParts:
    """One case; in it class 0 is the background, which is the last one here.

    Its boxes hold the last pixels that belong to them, ours end where those end.
    """

    def __init__(self, meta: dict, arrays: dict, recipe: ModuleType, dtype: torch.dtype) -> None:
        self.meta, self.arrays, self.recipe, self.dtype = meta, arrays, recipe, dtype
        self.params = {name: case["params"] for name, case in meta["cases"].items()}
        # The originals' float32 bars; in float64 what storing in float32 leaves of them.
        self.tol = {k: v for case in meta["cases"].values() for k, v in case["tol"].items()}
        self.is_exact = dtype == torch.float64
        self.num_classes = meta["num_classes"] - 1
        self.size = tuple(meta["scaled_image"])
        self.transform = Box2BoxTransform((5.0, 5.0, 2.0, 2.0))
        self.head = self.build_head()
        feature = self.feature()
        with torch.no_grad():
            self.maps = self.head(feature)
        self.feature_sample = sampled(self.recipe, feature, arrays["input"]["res5_sample"])

    def draw(self, name: str) -> Tensor:
        shape, seed = self.params["input"][name], self.meta["weight_seed"]
        rules = self.meta["weight_rules"]
        drawn = self.recipe.tensor(f"input.{name}", tuple(shape), "float32", seed, rules)
        return torch.from_numpy(drawn).to(self.dtype)

    def feature(self) -> Tensor:
        coarse, fine = self.draw("res5_coarse"), self.draw("res5_fine")
        wide = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
        return F.relu(wide[..., : fine.shape[2], : fine.shape[3]] + 0.5 * fine)

    def build_head(self) -> FCISHead:
        weights = self.recipe.state_dict(
            self.meta["state_dict"], self.meta["weight_seed"], self.meta["weight_rules"]
        )
        weights["fcis_cls_seg_bias"] = self.arrays["input"]["fcis_cls_seg_bias"]
        self.recipe.verify(weights, self.meta["weight_check"])
        state = {}
        for name, value in weights.items():
            ours = mxnet_fcis_name(name)
            state[ours.removeprefix(PREFIX)] = mxnet_fcis_value(ours, torch.from_numpy(value))
        section = FCISHeadConfig(
            group_size=self.meta["group_size"], pooled_size=self.meta["pooled_size"]
        )
        channels = self.params["input"]["res5_fine"][1]
        head = section.build(channels, self.num_classes, round(1 / self.meta["spatial_scale"]))
        head.load_state_dict(state, strict=True)
        return head.to(self.dtype)

    def bar(self, name: str, exact: float = 1e-6) -> float:
        return exact if self.is_exact else self.tol[name]

    def background_first(self, x: Tensor, dim: int = 0) -> Tensor:
        """In the case's order, where `dim` runs over the classes, or over all maps of each."""
        by_class = x.unflatten(dim, (self.num_classes + 1, -1))
        return by_class.roll(1, dim).flatten(dim, dim + 1)

    def classes(self, labels: np.ndarray) -> Tensor:
        return (torch.from_numpy(labels).long() - 1) % (self.num_classes + 1)

    def boxes(self, corners: np.ndarray) -> Tensor:
        given = torch.from_numpy(corners).to(self.dtype)[:, -4:]
        return given + given.new_tensor((0, 0, 1, 1))

    def corners(self, boxes: Tensor) -> Tensor:
        return boxes - boxes.new_tensor((0, 0, 1, 1))

    def outputs(self) -> Iterator[Check]:
        """Score maps, both passes over them, and detections of given regions."""
        expected = self.arrays["input"]
        yield Check("res5", self.feature_sample, expected["res5_sample"], 1e-6)
        seg = sampled(
            self.recipe, self.background_first(self.maps.seg, 1), expected["cls_seg_sample"]
        )
        bar = relative(1e-6, expected["cls_seg_sample"]) if self.is_exact else 5e-5
        yield Check("score maps", seg, expected["cls_seg_sample"], bar)
        boxes = self.boxes(self.arrays["forward"]["rois"])
        with torch.no_grad():
            first = self.head.regions(self.maps, [boxes])
            moved = self.transform.apply_deltas(first.deltas, boxes)
        yield from self.region_checks("forward", first)
        refined = clip_boxes(moved, self.size)
        rois = self.arrays["forward_iter2"]["rois"][:, 1:]
        yield Check("refined", self.corners(refined), rois, 1e-4)
        with torch.no_grad():
            second = self.head.regions(
                self.maps, [self.boxes(self.arrays["forward_iter2"]["rois"])]
            )
        yield from self.region_checks("forward_iter2", second)
        yield from self.voting()

    def region_checks(self, case: str, ours: RegionScores) -> Iterator[Check]:
        expected = self.arrays[case]
        scores = self.background_first(ours.class_logits.softmax(1), 1)
        best = ours.class_logits[:, :-1].argmax(1) + 1
        yield Check(f"{case} best", best, expected["best"], 0)
        yield Check(f"{case} scores", scores, expected["cls_prob"], self.bar("cls_prob_f32"))
        masks = ours.mask_logits.sigmoid()
        yield Check(f"{case} masks", masks, expected["mask_inside"], self.bar("mask_f32"))
        bar = self.bar("bbox_f32")
        yield Check(f"{case} deltas", ours.deltas, expected["bbox_pred"][:, 4:], bar)

    def voting(self) -> Iterator[Check]:
        """Of the golden scores and masks of both passes."""
        params, expected = self.params["voting"], self.arrays["voting"]
        both = [self.arrays["forward"], self.arrays["forward_iter2"]]

        def joined(name: str) -> Tensor:
            return torch.from_numpy(np.concatenate([one[name] for one in both])).to(self.dtype)

        boxes = torch.cat([self.boxes(one["rois"]) for one in both])
        regions = ScoredRegions(
            image_size=self.size,
            boxes=boxes,
            scores=joined("cls_prob")[:, 1:],
            masks=joined("mask_inside"),
        )
        voting = MaskVoting(
            score_thresh=1e-3,
            nms_thresh=params["nms"],
            vote_thresh=params["merge"],
            mask_thresh=params["binary"],
            detections_per_image=params["max_per_image"],
            min_size=params["min_drop_size"],
        )
        kept = torch.from_numpy(expected["kept_rois"]).long()
        size = tuple(self.meta["original_image"])
        ours = self.corners(scaled(boxes[kept], self.size, size))
        yield Check("voters", ours, expected["boxes"], 1e-4)
        found, masks = voting.vote(regions, size)
        rows, order = self.matched(found.pred_classes, found.scores)
        yield Check("vote: class", found.pred_classes[rows] + 1, expected["cls"][order], 0)
        yield Check("vote: score", found.scores[rows], expected["score"][order], 1e-6)
        tight = self.corners(found.pred_boxes.tensor)[rows]
        yield Check("vote: box", tight, expected["box"][order], 0)
        bar = self.bar("mask_f32", 1e-5)
        yield Check("vote: mask", masks[rows], expected["mask"][order], max(bar, 1e-4))

    def matched(self, classes: Tensor, scores: Tensor) -> tuple[Tensor, np.ndarray]:
        """Ours and the case's, each by class and then by score."""
        expected = self.arrays["voting"]
        valid = np.flatnonzero(expected["valid"])
        order = np.lexsort((-expected["score"][valid], expected["cls"][valid]))
        rows = np.lexsort((-scores.numpy(), classes.numpy()))
        return torch.from_numpy(rows), valid[order]

    def training(self) -> RegionTargets:
        """Targets of the regions, in the case's order, as `FCISLoss` puts them together."""
        given = self.arrays["targets"]
        boxes = self.boxes(given["rois"])
        gt_boxes = self.boxes(given["gt_boxes"])
        sampler = ProposalSampler(
            Matcher([0.5], [0, 1]),
            num_classes=self.num_classes,
            batch_size_per_image=EVERY,
            positive_fraction=1.0,
            append_gt=False,
        )
        proposals = Proposals(
            self.size,
            proposal_boxes=Boxes(boxes),
            objectness_logits=torch.arange(len(boxes)).to(boxes),
        )
        target = Targets(
            self.size, gt_boxes=Boxes(gt_boxes), gt_classes=self.classes(given["gt_labels"])
        )
        (sampled,), _ = sampler([proposals], [target])
        sampled = sampled[sampled.objectness_logits.argsort()]
        masks = torch.zeros(len(boxes), *(self.meta["pooled_size"],) * 2, dtype=torch.bool)
        fg = sampled.gt_classes < self.num_classes
        index = sampled.gt_index[fg]
        soft = crop_masks(self.gt_pixels(), gt_boxes, boxes[fg], index, self.meta["pooled_size"])
        masks[fg] = soft >= 0.4
        deltas = torch.zeros_like(boxes)
        deltas[fg] = self.transform.get_deltas(boxes[fg], gt_boxes[index])
        return RegionTargets(boxes, sampled.gt_classes, masks, deltas)

    def gt_pixels(self) -> Tensor:
        given = self.arrays["targets"]
        shape = given["gt_mask_shape"]
        bits = np.unpackbits(given["gt_masks"])[: shape.prod()].reshape(shape)
        masks = torch.from_numpy(bits).to(self.dtype)
        return F.interpolate(masks[None], size=self.size, mode="bilinear")[0]

    def targets(self) -> Iterator[Check]:
        """Class, box and mask of every region."""
        expected, ours = self.arrays["targets"], self.training()
        yield Check("classes", ours.classes, self.classes(expected["labels"]).numpy(), 0)
        yield Check("deltas", ours.deltas, expected["bbox_targets"][:, 4:], self.bar("bbox_f32"))
        masks = expected["mask_targets"]
        near = np.unpackbits(expected["near"])[: masks.size].reshape(masks.shape)
        counted = (masks >= 0) & (near == 0)
        yield Check("masks", ours.masks[torch.from_numpy(counted)], masks[counted], 0)

    def trained(self, case: str) -> tuple[ScoreMaps, dict[str, Tensor], Tensor]:
        """Score maps and losses with gradients, and the indices of the regions kept."""
        targets = self.training()
        loss = FCISHeadConfig().build_loss(self.transform, self.params[case]["keep_rois"])
        self.head.zero_grad()
        maps = self.head(self.feature())
        for one in maps:
            one.retain_grad()
        with torch.no_grad():
            scores = self.head.regions(maps, [targets.boxes], targets.classes)
            kept = loss.hardest(scores, targets)
        some = targets.take(kept)
        return maps, loss(self.head.regions(maps, [some.boxes], some.classes), some), kept

    def losses(self) -> Iterator[Check]:
        """Of all regions, and of the hardest; and which these are."""
        for case in ("train_keep128", "train_keep16"):
            _, losses, kept = self.trained(case)
            expected = self.params[case]["losses"]
            for name, theirs in (("cls", "cls"), ("mask", "mask"), ("box_reg", "bbox")):
                bar = self.bar("loss_rel_f32", 1e-7) * expected[theirs]
                ours = losses[f"loss_{name}"]
                yield Check(f"{case} loss_{name}", ours, np.array(expected[theirs]), bar)
            chosen = np.flatnonzero(self.arrays[case]["kept"])
            yield Check(f"{case} kept", kept.sort().values, chosen, 0)

    def gradients(self) -> Iterator[Check]:
        """Of the losses' sum, to the score maps and to the weights."""
        for case in ("train_keep128", "train_keep16"):
            expected, norms = self.arrays[case], self.params[case]["norms"]
            maps, losses, _ = self.trained(case)
            losses.total().backward()
            head = self.head
            found = {
                "cls_seg_map": maps.seg.grad,
                "bbox_map": maps.box.grad,
                "fcis_cls_seg_weight": head.fcis_cls_seg.weight.grad,
                "fcis_bbox_bias": head.fcis_bbox.bias.grad,
            }
            bar = self.bar("grad_norm_rel", 1e-6)
            for name, grad in found.items():
                norm = norms[name]
                yield Check(f"{case} {name}", grad.double().norm(), np.array(norm), bar * norm)
            seg = self.background_first(maps.seg.grad, 1)
            box = F.pad(maps.box.grad, (0, 0, 0, 0, maps.box.shape[1], 0))  # background's
            given = {
                "d_cls_seg_sample": sampled(self.recipe, seg, expected["d_cls_seg_sample"]),
                "d_bbox_sample": sampled(self.recipe, box, expected["d_bbox_sample"]),
                "d_cls_seg_bias": self.background_first(head.fcis_cls_seg.bias.grad),
                "d_bbox_bias": F.pad(head.fcis_bbox.bias.grad, (maps.box.shape[1], 0)),
            }
            for name, ours in given.items():
                yield Check(f"{case} {name}", ours, expected[name], relative(bar, expected[name]))
