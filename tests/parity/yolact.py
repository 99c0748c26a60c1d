"""YOLACT and YOLACT++ whole, under the names of their release, on photos."""

from collections.abc import Iterator
from functools import cached_property
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from segdet.checkpoint.families.yolact import official_name
from segdet.config import get_cfg
from segdet.data import transforms as T
from segdet.modeling import build_model
from segdet.modeling.meta_arch.yolact import YOLACT, Maps
from segdet.modeling.yolact_loss import read_image_targets
from segdet.structures import BitMasks, Boxes, Detections, ImageList, Targets
from tests.parity.checks import Check, relative, sampled

DEPTHS = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
PIXELS = {  # backbones -> mean and deviation of images in RGB order
    "ResNet": ((123.68, 116.78, 103.94), (58.40, 57.12, 57.38)),
    "DarkNet": ((0.0,) * 3, (255.0,) * 3),
}
LOSSES = {  # the original's names
    "loss_box_reg": "B",
    "loss_cls": "C",
    "loss_mask": "M",
    "loss_semantic": "S",
    "loss_maskiou": "I",
}
STORED = 1e-6  # in float64: samples are stored as float32, and relative to their deviation
# In float64 the reference still has its priors, means and targets in float32.
EXACT = {"detections": 5e-7, "losses": 2e-7, "norms": 4e-6, "gradients": 4e-5}
SAMPLED = 10  # gradients one by one may be off by so much more than their norms


def keys_of(cfg: dict) -> list:
    """Our settings for the original's."""
    backbone = cfg["backbone"]
    is_resnet = backbone["name"].startswith("ResNet")
    blocks, deformable, interval = [*backbone["args"], [0] * 4, 1][:3]
    if len(backbone["args"]) == 2:
        interval = 1
    mean, std = PIXELS["ResNet" if is_resnet else "DarkNet"]
    keys = {
        "META_ARCHITECTURE": "YOLACT",
        "DEVICE": "cpu",
        "MASK_ON": True,
        "MASKIOU_ON": cfg["use_maskiou"],
        "PIXEL_MEAN": mean,
        "PIXEL_STD": std,
        "BACKBONE.NAME": f"build_{'resnet' if is_resnet else 'darknet'}_backbone",
        "BACKBONE.FREEZE_AT": 0,
        "RESNETS.NORM": "BN",
        "RESNETS.STRIDE_IN_1X1": False,
        "RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
        "RESNETS.DEFORM_MODULATED": any(deformable),
        "RESNETS.DEFORM_BIAS": any(deformable),
        "RESNETS.DEFORM_ON_PER_STAGE": [count > 0 for count in deformable],
        "RESNETS.DEFORM_INTERVAL": interval,
        "FPN.IN_FEATURES": ["res3", "res4", "res5"],
        "FPN.OUT_CHANNELS": cfg["fpn"]["num_features"],
        "YOLACT.NUM_CLASSES": cfg["num_classes"] - 1,
        "YOLACT.NUM_PROTOTYPES": cfg["mask_dim"],
        "YOLACT.ANCHOR_SCALES": backbone["pred_scales"],
        "YOLACT.ASPECT_RATIOS": [float(r) for r in backbone["pred_aspect_ratios"][0][0]],
        "YOLACT.SQUARE_ANCHORS": backbone["use_square_anchors"],
        "YOLACT.IOU_THRESHOLDS": (cfg["negative_iou_threshold"], cfg["positive_iou_threshold"]),
        "YOLACT.CROWD_IOU_THRESHOLD": cfg["crowd_iou_threshold"],
        "YOLACT.NEGATIVES_PER_POSITIVE": cfg["ohem_negpos_ratio"],
        "YOLACT.MASKS_TO_TRAIN": cfg["masks_to_train"],
        "YOLACT.DISCARD_MASK_AREA": max(cfg["discard_mask_area"], 0),
        "YOLACT.CLS_LOSS_WEIGHT": float(cfg["conf_alpha"]),
        "YOLACT.BBOX_REG_LOSS_WEIGHT": float(cfg["bbox_alpha"]),
        "YOLACT.MASK_LOSS_WEIGHT": float(cfg["mask_alpha"]),
        "YOLACT.SEMANTIC_LOSS_WEIGHT": float(cfg["semantic_segmentation_alpha"]),
        "YOLACT.MASKIOU_LOSS_WEIGHT": float(cfg["maskiou_alpha"]),
        "YOLACT.SCORE_THRESH_TEST": cfg["nms_conf_thresh"],
        "YOLACT.NMS_THRESH_TEST": cfg["nms_thresh"],
        "YOLACT.TOPK_CANDIDATES_TEST": cfg["nms_top_k"],
    }
    if is_resnet:
        keys["RESNETS.DEPTH"] = DEPTHS[tuple(blocks)]
    return [one for key, value in keys.items() for one in (f"MODEL.{key}", value)]


class Yolact:
    """One case."""

    def __init__(self, meta: dict, arrays: dict, recipe: ModuleType, dtype: torch.dtype) -> None:
        self.meta, self.arrays, self.recipe, self.dtype = meta, arrays, recipe, dtype
        self.cases, self.original = meta["cases"], meta["cfg"]
        self.is_exact = dtype == torch.float64
        self.model = self.build()
        mapped = T.ResizeTransform(*self.photo.shape[:2], self.side, self.side)
        image = torch.from_numpy(mapped.apply_image(self.photo.astype(np.dtype(str(dtype)[6:]))))
        self.images = self.model.preprocess_image([{"image": image.permute(2, 0, 1)}])

    @property
    def photo(self) -> np.ndarray:
        return self.arrays["input"]["photo"][:, :, ::-1]  # RGB, as the model takes it

    @property
    def side(self) -> int:
        return self.original["max_size"]

    def build(self) -> YOLACT:
        cfg = get_cfg()
        frozen = any(note.startswith("BN frozen") for note in self.meta["notes"])
        most = self.original["max_num_detections"]
        cfg.merge_from_list([*keys_of(self.original), "TEST.DETECTIONS_PER_IMAGE", most])
        cfg.SOLVER.IMS_PER_BATCH = 2 if frozen else 8
        model = build_model(cfg)
        weights = self.recipe.state_dict(
            self.meta["state_dict"], self.meta["weight_seed"], self.meta["weight_rules"]
        )
        self.recipe.verify(weights, self.meta["weight_check"])
        state = {official_name(name): torch.from_numpy(value) for name, value in weights.items()}
        model.load_state_dict(state, strict=True)
        return model.to(self.dtype)

    def module(self, name: str) -> nn.Module:
        """What gives the original's intermediate `name`; of a deformable layer, what follows it."""
        stage = name.removeprefix("backbone.layers.")
        if (
            name.startswith("backbone.layers.")
            and stage.isdigit()
            and hasattr(self.model.backbone, "stem")
        ):
            return self.model.backbone.get_submodule(f"res{int(stage) + 2}")
        if name == "upfeature_last_level":
            return self.model.prediction_layers[0].upfeature
        if name == "proto_net":
            return self.model.proto_net[-1]  # before the last ReLU
        ours = official_name(f"{name}.weight").removesuffix(".weight")
        return self.model.get_submodule(ours)

    def maps(self) -> Maps:
        model = self.model.eval()
        return model.read_out(model.levels(self.images), (self.side, self.side))

    @torch.no_grad()
    def outputs(self) -> Iterator[Check]:
        """Pixels, intermediates, predictions of sampled prior boxes, and detections."""
        expected = self.arrays["input"]["normalised_sample"]
        pixels = sampled(self.recipe, self.images.tensor, expected)
        yield Check("pixels", pixels, expected, STORED if self.is_exact else 1e-4)
        names = [case.removeprefix("mid:") for case in self.cases if case.startswith("mid:")]
        seen: dict[str, Tensor] = {}
        hooks = [self.watch(name, seen) for name in names if not name.startswith("fpn.")]
        fpn_hook = self.model.fpn.register_forward_hook(
            lambda _, __, levels: seen.update({f"fpn.{i}": x for i, x in enumerate(levels)})
        )
        maps = self.maps()
        for hook in [*hooks, fpn_hook]:
            hook.remove()
        for name in names:
            case, expected = self.cases[f"mid:{name}"], self.arrays[f"mid:{name}"]["sample"]
            assert list(seen[name].shape) == case["params"]["shape"], name
            bar = STORED if self.is_exact else case["tol"]["over_std_f32"]
            ours = sampled(self.recipe, seen[name], expected)
            yield Check(name, ours, expected, bar * case["params"]["std"])
        yield from self.raw(maps)
        for name in ("fast", "cross_class"):
            if f"det:{name}" in self.arrays:
                yield from self.detections(name)

    def watch(self, name: str, seen: dict[str, Tensor]):
        module = self.module(name)
        if hasattr(module, "norm") and hasattr(module, "deformable_groups"):
            return module.norm.register_forward_pre_hook(lambda _, x: seen.update({name: x[0]}))
        return module.register_forward_hook(lambda _, __, x: seen.update({name: x}))

    def raw(self, maps: Maps) -> Iterator[Check]:
        expected, tol = self.arrays["raw"], self.cases["raw"]["tol"]["abs_f32"]
        index = torch.from_numpy(expected["prior_index"]).long()
        assert len(maps.priors) == self.cases["raw"]["params"]["num_priors"]
        head = maps.predictions
        prototypes = maps.prototypes.permute(0, 2, 3, 1)
        assert list(prototypes.shape) == expected["proto_shape"].tolist()
        ours = {
            "priors": maps.priors[index],
            "loc": head.deltas[0, index],
            "conf": head.logits[0, index].softmax(-1),
            "mask": head.coefficients[0, index],
            "proto": sampled(self.recipe, prototypes, expected["proto_sample"]),
        }
        for name, value in ours.items():
            theirs = expected["proto_sample" if name == "proto" else name]
            yield Check(
                name, value, theirs, relative(STORED, theirs) if self.is_exact else tol[name]
            )

    def detections(self, name: str) -> Iterator[Check]:
        expected, tol = self.arrays[f"det:{name}"], self.cases[f"det:{name}"]["tol"]
        self.model.selector.cross_class = name == "cross_class"
        found = self.model.predict(self.images)[0]
        bars = {key: EXACT["detections"] if self.is_exact else tol[key] for key in ("box", "score")}
        yield Check(f"{name} classes", found.pred_classes, expected["cls"], 0)
        boxes = found.pred_boxes.tensor / self.side
        yield Check(f"{name} boxes", boxes, expected["box"], bars["box"])
        yield Check(f"{name} scores", found.scores, expected["score"], bars["score"])
        if "mask_score" in expected:
            scores = found.mask_scores
            yield Check(f"{name} mask scores", scores, expected["mask_score"], bars["score"])
        yield from self.results(name, found)

    def results(self, name: str, found: Detections) -> Iterator[Check]:
        """Boxes and masks of the asked size; those without a pixel are not among ours."""
        expected, tol = self.arrays[f"det:{name}"], self.cases[f"det:{name}"]["tol"]
        width, height = self.meta["out_wh"]
        asked = {"height": height, "width": width}
        result = self.model.postprocess([found], [asked])[0]["instances"]
        boxes = expected["box_int"].astype(np.int64)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        assert kept.sum() > len(kept) // 2
        yield Check(f"{name} whole boxes", result.pred_boxes.tensor, boxes[kept], 0)
        shape = expected["mask_shape"]
        masks = np.unpackbits(expected["masks"])[: shape.prod()].reshape(shape)[kept]
        wrong = (result.pred_masks.numpy() != masks.astype(bool)).sum()
        most = 0 if self.is_exact else tol["mask_pixels"]
        yield Check(f"{name} masks", torch.tensor(wrong), np.array(0), most)

    @cached_property
    def batch(self) -> tuple[ImageList, list[Targets]]:
        """The image and its mirror image, and their objects; the last ones are crowds."""
        images = torch.cat([self.images.tensor, self.images.tensor.flip(-1)])
        arrays, targets, size = self.arrays["train"], [], (self.side, self.side)
        for i, crowds in enumerate(arrays["num_crowds"]):
            rows = torch.from_numpy(arrays[f"gt{i}"]).to(self.dtype)
            shape = (len(rows), *arrays["mask_shape"])
            masks = np.unpackbits(arrays[f"masks{i}"])[: np.prod(shape)].reshape(shape)
            classes = rows[:, 4].long()
            classes[len(rows) - int(crowds) :] = -1
            one = Targets(size, gt_boxes=Boxes(rows[:, :4] * self.side), gt_classes=classes)
            one.gt_boxes.tensor = rows[:, :4] * self.side  # `Boxes` are of float32
            one.gt_masks = BitMasks(masks)
            targets.append(one)
        return ImageList(images, [size, size]), targets

    @torch.no_grad()
    def targets(self) -> Iterator[Check]:
        """What every prior box stands for."""
        images, targets = self.batch
        expected = self.arrays["train"]
        priors = self.maps().priors
        found = []
        for i, target in enumerate(targets):
            one = read_image_targets(target, images.tensor.shape[-2:], priors)
            labels, objects = self.model.loss.match(priors, one)
            yield Check(f"labels {i}", labels, expected["conf_t"][i], 0)
            found.append(objects[labels > 0])
        yield Check("objects", torch.cat(found), expected["idx_t_pos"], 0)

    @cached_property
    def trained(self) -> dict[str, Tensor]:
        """The losses; parameters have their gradients then."""
        torch.manual_seed(0)
        losses = self.model.train().losses(*self.batch)
        losses.total().backward()
        return {LOSSES[name]: value for name, value in losses.items()}

    def losses(self) -> Iterator[Check]:
        """Every term."""
        expected = self.cases["train"]["params"]["losses"]
        assert self.trained.keys() == expected.keys()
        bar = EXACT["losses"] if self.is_exact else self.cases["train"]["tol"]["loss_rel"]
        for name, value in expected.items():
            yield Check(name, self.trained[name], np.array(value), relative(bar, value))

    def gradients(self) -> Iterator[Check]:
        """Norms and samples of gradients, and running statistics after the step."""
        assert self.trained
        tol = self.cases["train"]["tol"]["grad_norm_rel"]
        bar = EXACT["norms"] if self.is_exact else tol
        of_one = EXACT["gradients"] if self.is_exact else SAMPLED * tol
        for name, norm in self.cases["train"]["params"]["grad_norms"].items():
            grad = self.model.get_parameter(official_name(name)).grad
            yield Check(name, grad.double().norm(), np.array(norm), bar * norm)
            expected = self.arrays[f"grad:{name}"]["sample"]
            ours = sampled(self.recipe, grad, expected)
            yield Check(f"{name} sample", ours, expected, relative(of_one, expected))
        for case in self.arrays:
            if case.startswith("buffer:"):
                expected = self.arrays[case]["value"]
                buffer = self.model.get_buffer(official_name(case.removeprefix("buffer:")))
                yield Check(case, buffer, expected, relative(1e-5, expected))
