import re
from pathlib import Path

import pytest

from segdet.migrate import names
from segdet.migrate.scripts import migrate_script

ROOT = Path(__file__).resolve().parents[2]


def migrated(text: str) -> str:
    result = migrate_script(text)
    assert result.notes == [], result.notes
    return result.text


def notes(text: str) -> list[str]:
    return [f"{note.line}: {note.text}" for note in migrate_script(text).notes]


@pytest.mark.parametrize(
    "old, new",
    [
        ("import detectron2", "import segdet"),
        ("import detectron2, os", "import segdet, os"),
        ("import detectron2.utils.comm as comm", "import segdet.utils.comm as comm"),
        ("from detectron2 import model_zoo", "from segdet import model_zoo"),
        ("from detectron2.config import get_cfg, CfgNode as CN  # both",
         "from segdet.config import get_cfg, CfgNode as CN  # both"),
        ("from detectron2.data import (\n    MetadataCatalog,  # facts\n    DatasetCatalog,\n)\n",
         "from segdet.data import (\n    MetadataCatalog,  # facts\n    DatasetCatalog,\n)\n"),
        ("from detectron2.projects.point_rend.point_features import point_sample as sample",
         "from segdet.modeling.point_features import point_sample as sample"),
        ("try:\n\tfrom  detectron2.structures  import  Boxes\nexcept ImportError: pass",
         "try:\n\tfrom  segdet.structures  import  Boxes\nexcept ImportError: pass"),
        ("x = 'ä'; from detectron2.structures import Boxes; y = 1",
         "x = 'ä'; from segdet.structures import Boxes; y = 1"),
        ("import detectron2.data\nprint(detectron2.data.MetadataCatalog)",
         "import segdet.data\nprint(segdet.data.MetadataCatalog)"),
        ("import logging\nlogging.getLogger('detectron2.trainer')",
         "import logging\nlogging.getLogger('segdet.trainer')"),
        ("setup_logger(name=\"detectron2\")", "setup_logger(name=\"segdet\")"),
        ("# detectron2 in a comment\ncfg.MODEL.WEIGHTS = 'detectron2://a.pkl'",
         "# detectron2 in a comment\ncfg.MODEL.WEIGHTS = 'detectron2://a.pkl'"),
        ("from detectron2.modeling.backbone import Backbone",
         "from segdet.modeling.backbones import Backbone"),
        ("from detectron2.modeling.backbone.fpn import FPN",
         "from segdet.modeling.backbones.fpn import FPN"),
        ("from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads",
         "from segdet.modeling import ROI_HEADS_REGISTRY, StandardROIHeads"),
        ("from detectron2.modeling.meta_arch import GeneralizedRCNN",
         "from segdet.modeling import GeneralizedRCNN"),
        ("from detectron2.modeling.poolers import ROIPooler",
         "from segdet.modeling.roi_pooler import ROIPooler"),
        ("from detectron2.modeling.meta_arch.build import META_ARCH_REGISTRY",
         "from segdet.modeling import META_ARCH_REGISTRY"),
        ("from detectron2.layers import ShapeSpec, Conv2d, batched_nms",
         "from segdet.layers import ShapeSpec, Conv2d, batched_nms"),
        ("from fvcore.common.config import CfgNode", "from segdet.config import CfgNode"),
        ("from .detectron2 import x", "from .detectron2 import x"),
        ("import mydetectron2", "import mydetectron2"),
        ("if x:\n    pass\nfrom detectron2.structures import Boxes",
         "if x:\n    pass\nfrom segdet.structures import Boxes"),
        ("def f():\n  from detectron2.structures import (  # a\n    Boxes)\n  return Boxes\n",
         "def f():\n  from segdet.structures import (  # a\n    Boxes)\n  return Boxes\n"),
        ("from detectron2.engine import *", "from segdet.engine import *"),
    ],
)  # fmt: skip
def test_names(old, new):
    assert migrated(old) == new
    assert migrated(old.replace("\n", "\r\n")) == new.replace("\n", "\r\n")


def test_one_import_may_become_two():
    names = "select_foreground, ROI_HEADS_REGISTRY"
    old = f"if x:\n    from detectron2.modeling.roi_heads import {names}\n"
    new = (
        "if x:\n    from segdet.modeling.roi_heads import select_foreground\n"
        "    from segdet.modeling import ROI_HEADS_REGISTRY\n"
    )
    assert migrated(old) == new


def test_an_import_with_comments_is_not_taken_apart():
    old = (
        "from detectron2.modeling.roi_heads import (\n    select_foreground,  # ours\n"
        "    ROI_HEADS_REGISTRY,\n)\n"
    )
    result = migrate_script(old)
    assert result.text == old
    assert result.notes[0].text.endswith(
        "segdet.modeling.roi_heads: select_foreground; segdet.modeling: ROI_HEADS_REGISTRY"
    )


def test_what_has_no_counterpart_is_listed_with_its_line():
    text = """
import detectron2
from detectron2.export import Caffe2Tracer
from detectron2.data import transforms as T, no_such_name
import detectron2.projects.panoptic_deeplab

T.RandomFlip(), T.RandomTeapot()
print(detectron2.nothing.here, "detectron2")
"""
    assert notes(text) == [
        "3: detectron2.export has Caffe2Tracer, which has no counterpart here",
        "4: detectron2.data has no_such_name, which has no counterpart here",
        "5: no module detectron2.projects.panoptic_deeplab here",
        "7: no detectron2.data.transforms.RandomTeapot here",
        "8: no detectron2.nothing here",
        "8: the text 'detectron2' was left as it is",
    ]


POINT_REND = "PointRend is built in, its keys are in get_cfg(): drop the import and calls of "
DEEPLAB = "DeepLab is a plug-in, --project projects/deeplab or load_project: drop the import and "


@pytest.mark.parametrize(
    "old, new, told",
    [
        ("from detectron2.projects.point_rend import add_pointrend_config", None, POINT_REND),
        ("from detectron2.projects import point_rend\npoint_rend.add_pointrend_config(cfg)", None,
         POINT_REND),
        ("import detectron2.projects.point_rend as pr\npr.add_pointrend_config(cfg)", None,
         POINT_REND),
        ("import detectron2.projects.deeplab\ndetectron2.projects.deeplab.add_deeplab_config(cfg)",
         None, DEEPLAB),
        ("from detectron2.projects.deeplab import add_deeplab_config, build_lr_scheduler",
         "from detectron2.projects.deeplab import add_deeplab_config\n"
         "from segdet.solver import build_lr_scheduler", DEEPLAB),
    ],
)  # fmt: skip
def test_projects_that_are_here_in_another_way_are_left_with_advice(old, new, told):
    result = migrate_script(old)
    assert result.text == (new or old)
    assert result.notes[0].line == 1
    assert all(note.text.startswith(told) for note in result.notes)


def test_config_keys():
    text = """
from detectron2.config import get_cfg, CfgNode as CN
def add_my_config(cfg):
    cfg.MODEL.MINE = CN()
    cfg.MODEL.MINE.SIZE = 3
    cfg.INPUT.SPECIAL = 1
cfg = get_cfg()
cfg.MODEL.OTHER = CN({"A": 1})
cfg.SOLVER.BASE_LRATE = 0.1
cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.MINE.SIZE + cfg.INPUT.SPECIAL + cfg.MODEL.OTHER.A
print(self.cfg.TEST.NOTHING, cfg.MODEL.clone(), cfg.MODEL.RPN.HEADS.x, os.PATH.X, LOG.INFO)
"""
    found = notes(text)
    assert [one.partition("; ")[0] for one in found] == [
        "9: no config key SOLVER.BASE_LRATE here",
        "11: no config key MODEL.RPN.HEADS here",
        "11: no config key TEST.NOTHING here",
    ]
    assert "did you mean SOLVER.BASE_LR?" in found[0]


def test_every_moved_module_is_where_the_table_says():
    assert [ours for ours in names.MOVED.values() if names.load(ours) is None] == []
    same = [theirs.replace("detectron2", "segdet") for theirs in names.MOVED]
    assert [module for module in same if module.startswith("segdet") and names.load(module)] == []


@pytest.mark.parametrize("folder", ["segdet/data", "segdet/engine", "segdet/evaluation", "tools"])
def test_our_own_code_in_detectron2s_spelling_comes_back(folder):
    for file in (ROOT / folder).rglob("*.py"):
        code = file.read_text()
        theirs = re.sub(
            r"^(\s*(?:from|import) )segdet\b", r"\1detectron2", code, flags=re.MULTILINE
        )
        assert migrated(theirs) == code, file


def test_a_script_that_does_not_parse_is_refused():
    with pytest.raises(SyntaxError):
        migrate_script("from detectron2 import (")
