"""detectron2's public names, that scripts import and call, are here."""

import importlib

import pytest

# Module -> what scripts take from the module of detectron2 in its place.
NAMES = {
    "segdet.checkpoint": "DetectionCheckpointer PeriodicCheckpointer",
    "segdet.config": "CfgNode configurable get_cfg",
    "segdet.data": """
        AspectRatioGroupedDataset DatasetCatalog DatasetFromList DatasetMapper MapDataset Metadata
        MetadataCatalog ToIterableDataset build_batch_data_loader build_detection_test_loader
        build_detection_train_loader detection_utils get_detection_dataset_dicts
        load_proposals_into_dataset print_instances_class_histogram transforms
    """,
    "segdet.data.build": """
        filter_images_with_few_keypoints filter_images_with_only_crowd_annotations
        get_detection_dataset_dicts
    """,
    "segdet.data.datasets": """
        convert_to_coco_json load_coco_json load_lvis_json load_sem_seg load_voc_instances
        register_coco_instances register_coco_panoptic register_coco_panoptic_separated
        register_lvis_instances register_pascal_voc
    """,
    "segdet.data.datasets.coco": "convert_to_coco_json load_coco_json",
    "segdet.data.detection_utils": """
        annotations_to_instances annotations_to_instances_rotated build_augmentation
        check_image_size convert_image_to_rgb create_keypoint_hflip_indices filter_empty_instances
        gen_crop_transform_with_instance get_fed_loss_cls_weights read_image
        transform_instance_annotations transform_keypoint_annotations transform_proposals
    """,
    "segdet.data.samplers": "InferenceSampler RepeatFactorTrainingSampler TrainingSampler",
    "segdet.data.transforms": """
        AugInput Augmentation AugmentationList BlendTransform ColorTransform CropTransform
        ExtentTransform FixedSizeCrop HFlipTransform MinIoURandomCrop NoOpTransform
        PILColorTransform PadTransform RandomApply RandomBrightness RandomContrast RandomCrop
        RandomCrop_CategoryAreaConstraint RandomExtent RandomFlip RandomLighting RandomResize
        RandomRotation RandomSaturation Resize ResizeScale ResizeShortestEdge ResizeTransform
        RotationTransform Transform TransformList VFlipTransform apply_augmentations
    """,
    "segdet.engine": """
        AMPTrainer DefaultPredictor DefaultTrainer HookBase SimpleTrainer TrainerBase
        create_ddp_model default_argument_parser default_setup default_writers hooks launch
    """,
    "segdet.engine.defaults": "DefaultPredictor DefaultTrainer default_setup",
    "segdet.engine.hooks": """
        BestCheckpointer CallbackHook EvalHook IterationTimer LRScheduler PeriodicCheckpointer
        PeriodicWriter PreciseBN
    """,
    "segdet.engine.train_loop": "AMPTrainer HookBase SimpleTrainer TrainerBase",
    "segdet.evaluation": """
        COCOEvaluator COCOPanopticEvaluator CityscapesInstanceEvaluator
        CityscapesSemSegEvaluator DatasetEvaluator DatasetEvaluators LVISEvaluator
        PascalVOCDetectionEvaluator RotatedCOCOEvaluator SemSegEvaluator inference_context
        inference_on_dataset print_csv_format verify_results
    """,
    "segdet.layers": """
        Conv2d ConvTranspose2d DeformConv FrozenBatchNorm2d Linear ModulatedDeformConv
        NaiveSyncBatchNorm ROIAlign ROIAlignRotated ShapeSpec batched_nms batched_nms_rotated cat
        ciou_loss cross_entropy diou_loss get_norm giou_loss interpolate nms nms_rotated
        nonzero_tuple paste_masks_in_image roi_align sigmoid_focal_loss smooth_l1_loss
    """,
    "segdet.model_zoo": "get get_checkpoint_url get_config get_config_file",
    "segdet.modeling": """
        ANCHOR_GENERATOR_REGISTRY BACKBONE_REGISTRY Backbone CascadeROIHeads DatasetMapperTTA FPN
        GeneralizedRCNN GeneralizedRCNNWithTTA META_ARCH_REGISTRY PROPOSAL_GENERATOR_REGISTRY
        PanopticFPN ProposalNetwork ROI_BOX_HEAD_REGISTRY ROI_HEADS_REGISTRY
        ROI_KEYPOINT_HEAD_REGISTRY ROI_MASK_HEAD_REGISTRY RPN_HEAD_REGISTRY Res5ROIHeads ResNet
        RetinaNet SEM_SEG_HEADS_REGISTRY SemanticSegmentor ShapeSpec StandardROIHeads
        build_anchor_generator build_backbone build_box_head build_keypoint_head build_mask_head
        build_model build_proposal_generator build_resnet_backbone build_resnet_fpn_backbone
        build_retinanet_resnet_fpn_backbone build_roi_heads build_sem_seg_head
        detector_postprocess sem_seg_postprocess
    """,
    "segdet.solver": "build_lr_scheduler build_optimizer get_default_optimizer_params",
    "segdet.structures": """
        BitMasks BoxMode Boxes ImageList Instances Keypoints PolygonMasks ROIMasks RotatedBoxes
        pairwise_intersection pairwise_ioa pairwise_iou pairwise_point_box_distance
        polygons_to_bitmask rasterize_polygons_within_box
    """,
    "segdet.utils.collect_env": "collect_env_info",
    "segdet.utils.colormap": "colormap random_color",
    "segdet.utils.comm": """
        all_gather gather get_local_rank get_local_size get_rank get_world_size is_main_process
        reduce_dict shared_random_seed synchronize
    """,
    "segdet.utils.env": "seed_all_rng",
    "segdet.utils.events": """
        CommonMetricPrinter EventStorage EventWriter JSONWriter TensorboardXWriter
        get_event_storage has_event_storage
    """,
    "segdet.utils.file_io": "PathManager",
    "segdet.utils.logger": """
        create_small_table log_every_n log_every_n_seconds log_first_n setup_logger
    """,
    "segdet.utils.registry": "Registry locate",
    "segdet.utils.visualizer": "ColorMode GenericMask VisImage Visualizer",
}

# Class -> what scripts call or read of it.
MEMBERS = {
    "segdet.checkpoint.DetectionCheckpointer": """
        get_checkpoint_file has_checkpoint load resume_or_load save tag_last_checkpoint
    """,
    "segdet.config.CfgNode": """
        clone defrost dump freeze is_frozen merge_from_file merge_from_list merge_from_other_cfg
    """,
    "segdet.data.DatasetCatalog": "clear get list pop register remove",
    "segdet.data.MetadataCatalog": "get list pop remove",
    "segdet.data.transforms.Augmentation": "get_transform",
    "segdet.data.transforms.Transform": """
        apply_box apply_coords apply_image apply_polygons apply_segmentation inverse register_type
    """,
    "segdet.engine.DefaultTrainer": """
        auto_scale_workers build_evaluator build_hooks build_lr_scheduler build_model
        build_optimizer build_test_loader build_train_loader build_writers register_hooks
        resume_or_load run_step test test_with_TTA train
    """,
    "segdet.engine.HookBase": """
        after_backward after_step after_train before_step before_train state_dict
    """,
    "segdet.structures.BitMasks": """
        area cat crop_and_resize from_polygon_masks from_roi_masks get_bounding_boxes nonempty to
    """,
    "segdet.structures.Boxes": """
        area cat clip clone get_centers inside_box nonempty scale to
    """,
    "segdet.structures.ImageList": "from_tensors to",
    "segdet.structures.Instances": "cat get get_fields has image_size remove set to",
    "segdet.structures.Keypoints": "cat to",
    "segdet.structures.PolygonMasks": """
        area cat crop_and_resize get_bounding_boxes nonempty to
    """,
    "segdet.structures.ROIMasks": "to_bitmasks",
    "segdet.structures.RotatedBoxes": """
        area cat clip clone get_centers inside_box nonempty normalize_angles scale to
    """,
    "segdet.utils.events.EventStorage": """
        histories history latest latest_with_smoothing_hint name_scope put_histogram put_image
        put_scalar put_scalars step
    """,
    "segdet.utils.visualizer.Visualizer": """
        draw_binary_mask draw_box draw_circle draw_dataset_dict draw_instance_predictions draw_line
        draw_panoptic_seg draw_polygon draw_sem_seg draw_soft_mask draw_text overlay_instances
    """,
}


@pytest.mark.parametrize("module", NAMES)
def test_names(module):
    found = importlib.import_module(module)
    assert [name for name in NAMES[module].split() if not hasattr(found, name)] == []


@pytest.mark.parametrize("path", MEMBERS)
def test_members(path):
    module, _, name = path.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    assert [member for member in MEMBERS[path].split() if not hasattr(found, member)] == []
