"""`segdet check-data`: name every defect of data sets, and what training would do with it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from segdet.data.check import report
from segdet.data.check.findings import Checked
from segdet.data.check.fix import changes_of, write_fixed
from segdet.data.check.html import page
from segdet.data.check.pictures import check_pictures
from segdet.data.check.sources import check_dataset
from segdet.data.check.work import count_of_workers
from segdet.data.defects import Severity
from segdet.errors import DataError
from segdet.utils.writing import make_room_for, write_text_atomically

EPILOG = """
data sets are named as in DATASETS.TRAIN:
  FILE.json:IMAGES         COCO instances or keypoints, and the folder of their images
  FILE.json                the same, images unseen
  FILE.json:IMAGES:PNGS    COCO panoptic, and its folder of pictures of segments
  LABELS:IMAGES[:CLASSES]  label maps, pictures, the file that names the classes
  VOC_FOLDER:SPLIT         Pascal VOC's layout
  coco_2017_val, lvis_v1_val, voc_2007_train, cityscapes_fine_instance_seg_val, ...
                           built-in names, under the folder that SEGDET_DATASETS names

Name train and val together, and pictures that are in both are found.

exit code: 0 nothing, or notes alone; 1 warnings: training would run, but leave something out or
learn what was not meant; 2 errors: training would stop, or the command is wrong.
docs/check_data.md explains every kind of finding.
"""


def main(argv: list[str]) -> None:
    """Find every defect of data sets; the exit code is that of the worst finding."""
    parser = argparse.ArgumentParser(
        prog="segdet check-data",
        description=f"{__doc__}",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dataset", nargs="+", metavar="DATASET", help="see below")
    parser.add_argument("--json", metavar="FILE", help="write all findings here as json")
    parser.add_argument("--html", metavar="FILE", help="write them here as a page")
    parser.add_argument(
        "--fix",
        metavar="OUT.json",
        help="write a COCO json here in which what can be mended is mended, and each change to "
        "OUT.changes.txt; neither may exist",
    )
    parser.add_argument(
        "--no-images", action="store_true", help="look at annotation alone, open no picture"
    )
    parser.add_argument("--shown", type=int, default=5, help="findings printed of each kind")
    parser.add_argument("--workers", type=int, default=count_of_workers(), help="processes")
    args = parser.parse_args(argv)
    if args.fix and len(args.dataset) > 1:
        raise DataError("--fix takes one data set at a time")
    for flag, file in (("--json", args.json), ("--html", args.html)):
        if file:
            make_room_for(file, flag)
    if args.fix:
        for file in (Path(args.fix), changes_of(Path(args.fix))):
            make_room_for(file, "--fix", may_exist=False)
    checks: list[Checked] = []
    for name in args.dataset:
        share = {"open_images": not args.no_images, "workers": args.workers}
        checks += check_dataset(name, **share)
    if not args.no_images:
        check_pictures(checks, args.workers)
    print("\n".join(report.lines(checks, args.shown)))
    if args.json:
        write_text_atomically(Path(args.json), json.dumps(report.as_json(checks), indent=1))
    if args.html:
        write_text_atomically(Path(args.html), page(checks))
    if args.fix:
        print(write_fixed(checks[0], Path(args.fix)))
    worst = max((one.severity for one in checks if one.severity is not None), default=Severity.NOTE)
    if worst != Severity.NOTE:
        raise SystemExit(int(worst))
