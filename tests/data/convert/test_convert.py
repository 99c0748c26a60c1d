"""Samples as each tool writes them, converted by the command and read by the COCO reader."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segdet.cli import run_command
from segdet.data.annotations import annotations_to_instances
from segdet.data.check.sources import check_dataset
from segdet.data.convert.command import main
from segdet.data.convert.objects import ellipse
from segdet.data.readers.coco_json import read_coco_json
from segdet.errors import DataError

WIDTH, HEIGHT = 40, 30
POLYGON = [4, 5, 24, 5, 24, 15, 4, 15]  # 20 x 10


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "day").mkdir(parents=True)
    for name in ("a.png", "day/b.jpg"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(folder / name)
    return folder


def convert(images: Path, *argv: object) -> tuple[list[dict], list[str]]:
    """The records and classes that training gets."""
    output = images.parent / "out.json"
    main([str(a) for a in (*argv, "--images", images, "--output", output)])
    (checked,) = check_dataset(f"{output}:{images}")
    worth_a_warning = {one.kind for one in checked.findings if one.severity}
    assert worth_a_warning <= {"mask-missing"}
    data = read_coco_json(output, images)
    return data.records, data.metadata["thing_classes"]


def masks_of(record: dict) -> np.ndarray:
    """(N, H, W) bool."""
    targets = annotations_to_instances(record["annotations"], (HEIGHT, WIDTH), "bitmask")
    return targets.gt_masks.tensor.numpy()


def area(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y0:y1, x0:x1] = True
    return mask


BOX = area(4, 5, 24, 15)


@pytest.mark.parametrize("names", ["names: [cat, dog]", "names: {0: cat, 1: dog}\nnc: 2"])
def test_yolo(images: Path, names: str):
    labels = images.parent / "labels"
    (labels / "day").mkdir(parents=True)
    (images.parent / "data.yaml").write_text(names)
    shares = [v / (HEIGHT if i % 2 else WIDTH) for i, v in enumerate(POLYGON)]
    line = " ".join(f"{v:.6f}" for v in shares)
    (labels / "day/b.txt").write_text(f"1 {line}\n\n0 0.5 0.5 0.25 0.2\n")
    (first, second), classes = convert(images, "yolo", labels)
    assert classes == ["cat", "dog"]
    assert first["annotations"] == [] and second["file_name"].endswith("day/b.jpg")
    polygon, box = second["annotations"]
    assert (polygon["category_id"], box["category_id"]) == (1, 0)
    assert np.allclose(polygon["segmentation"], [POLYGON], atol=1e-4)
    assert np.allclose(polygon["bbox"], [4, 5, 20, 10], atol=1e-4)
    assert np.allclose(box["bbox"], [15, 12, 10, 6]) and "segmentation" not in box


@pytest.mark.parametrize(
    "line, says",
    [
        ("2 0.5 0.5 0.2 0.2", r"a\.txt, line 1: class 2 has no name; there are 2"),
        ("0.5 0.5 0.5 0.2 0.2", "class 0.5 has no name"),
        ("0 0.5 0.5 0.2", "3 numbers after the class"),
        ("0 0.5 0.5 0.2 0.2 0.1", "5 numbers after the class"),
        ("0 20 15 10 10", "must be shares of the image's sides"),
        ("0 nan 0.5 0.2 0.2", "must be shares"),
        ("cat 0.5 0.5 0.2 0.2", "must hold numbers"),
        (b"0 0.5 0.5 0.2 0.2 \xff", r"a\.txt: cannot be read \('utf-8' codec"),
    ],
)
def test_yolo_lines_that_cannot_be_used_are_named(images: Path, line: str | bytes, says: str):
    labels = images.parent / "labels"
    labels.mkdir()
    (labels / "classes.txt").write_text("cat\ndog\n")
    (labels / "a.txt").write_bytes(line if isinstance(line, bytes) else line.encode())
    with pytest.raises(DataError, match=says):
        convert(images, "yolo", labels)


def test_yolo_needs_names_and_images(images: Path):
    labels = images.parent / "labels"
    labels.mkdir()
    with pytest.raises(DataError, match="give --classes FILE"):
        convert(images, "yolo", labels)
    (labels / "z.txt").write_text("")
    (names := images.parent / "n.txt").write_text("cat")
    with pytest.raises(DataError, match=r"z\.txt is of no image"):
        convert(images, "yolo", labels, "--classes", names)
    for text in ("cat", "names: cat", "names: [2024-99-99]"):
        (file := names.with_suffix(".yaml")).write_text(text)
        with pytest.raises(DataError, match=r"n\.yaml: must be YAML with `names`"):
            convert(images, "yolo", labels, "--classes", file)


def png_text(mask: np.ndarray) -> str:
    stream = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def labelme(path: str, *shapes: dict[str, Any]) -> str:
    rows = [{"group_id": None, "flags": {}, "shape_type": "polygon", **one} for one in shapes]
    size = {"imageHeight": HEIGHT, "imageWidth": WIDTH, "imageData": None}
    return json.dumps({"version": "5.5.0", "flags": {}, "shapes": rows, "imagePath": path, **size})


def test_labelme(images: Path, capsys):
    corners = np.reshape(POLYGON, (-1, 2)).tolist()
    part = np.eye(4, dtype=bool)
    shapes = [
        {"label": "cat", "points": corners, "group_id": 1},
        {"label": "cat", "points": [[30, 20], [36, 26]], "shape_type": "rectangle", "group_id": 1},
        {"label": "dog", "points": [[20, 15], [20, 21]], "shape_type": "circle"},
        {"label": "dog", "points": [[1, 1]], "shape_type": "point"},
        {"label": "ant", "points": [[6, 7], [9, 10]], "shape_type": "mask", "mask": png_text(part)},
    ]
    labels = images.parent / "labels"
    labels.mkdir()
    (labels / "b.json").write_text(labelme("../images/night/b.jpg"))
    (labels / "a.json").write_text(labelme("../images/a.png", *shapes))
    with pytest.raises(DataError, match=r"b\.json: imagePath .* is not in"):
        convert(images, "labelme", labels)
    (labels / "b.json").write_text(labelme("..\\images\\day\\b.jpg"))
    (first, second), classes = convert(images, "labelme", labels)
    assert "left out: 1 x point" in capsys.readouterr().out
    assert classes == ["ant", "cat", "dog"]
    assert second["file_name"].endswith("day/b.jpg") and not second["annotations"]
    cat, dog, ant = masks_of(first)
    assert (cat == (BOX | area(30, 20, 36, 26))).all()
    assert abs(dog.sum() - np.pi * 36) < 4
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[7:11, 6:10] = part
    assert (ant == expected).all()


@pytest.mark.parametrize(
    "shape, says",
    [
        ({"label": "cat", "points": [[1, 2], [3, 4]]}, "'polygon' with 2 points"),
        ({"label": "cat", "points": [[1, 2]], "shape_type": "cuboid"}, "'cuboid'"),
        ({"label": None, "points": [[1, 2]]}, "label must be text"),
        ({"points": [[1, 2]]}, "must have a label"),
        ({"label": "cat", "points": [[1, "x"]]}, "must have a label, and points"),
        ({"label": "cat", "points": [[1, 2], [3, 4]], "shape_type": "mask"}, "no PNG"),
        (
            {"label": "cat", "points": [[1, 2], [3, 4], [5, 1e400]]},
            "points must be a number, finite",
        ),
        ({"label": "cat", "points": [[1, 2], [3, 4], [5, float("nan")]]}, "at most 100000, is nan"),
        ({"label": "cat", "points": [[1, 2], [3, 4], [5, 10**400]]}, "and points"),
        (
            {"label": "cat", "points": [[1e200, 2], [3, 4]], "shape_type": "circle"},
            "points must be a number",
        ),
        (
            {"label": "cat", "points": [[1, 2], [3, 4], [5, 6]], "group_id": [1]},
            r"group_id must be a number or text, is \[1\]",
        ),
        (
            {
                "label": "cat",
                "points": [[38, 2], [41, 5]],
                "shape_type": "mask",
                "mask": png_text(np.ones((4, 4))),
            },
            "does not fit",
        ),
    ],
)
def test_labelme_shapes_that_cannot_be_used_are_named(images: Path, shape: dict, says: str):
    (images / "a.json").write_text(labelme("a.png", shape))
    with pytest.raises(DataError, match=rf"a\.json: shapes\[0\]: .*{says}"):
        convert(images, "labelme", images)


CVAT = """<?xml version="1.0" encoding="utf-8"?>
<annotations><version>1.1</version>
<meta><task><labels><label><name>dog</name></label><label><name>cat</name></label></labels></task>
</meta>
<image id="0" name="a.png" width="40" height="30">{}</image>
<image id="1" name="day/b.jpg" width="40" height="30"></image>
</annotations>"""


def cvat(images: Path, shapes: str) -> Path:
    (file := images.parent / "annotations.xml").write_text(CVAT.format(shapes))
    return file


def test_cvat(images: Path, capsys):
    shapes = """
    <polygon label="cat" points="4,5;24,5;24,15;4,15" occluded="0" z_order="0" group_id="3"/>
    <box label="cat" xtl="30" ytl="20" xbr="36" ybr="26" group_id="3"/>
    <box label="dog" xtl="0" ytl="10" xbr="20" ybr="16" rotation="90.0"/>
    <ellipse label="dog" cx="20" cy="15" rx="8" ry="4"/>
    <mask label="cat" rle="1, 2, 3" left="7" top="8" width="3" height="2"/>
    <points label="cat" points="1,2"/>"""
    (first, second), classes = convert(images, "cvat", cvat(images, shapes))
    assert "left out: 1 x points" in capsys.readouterr().out
    assert classes == ["dog", "cat"] and not second["annotations"]
    cat, box, oval, mask = masks_of(first)
    assert (cat == (BOX | area(30, 20, 36, 26))).all()
    assert (box == area(7, 3, 13, 23)).all()
    assert abs(oval.sum() - np.pi * 32) < 4
    assert (mask == area(8, 8, 10, 9)).all()


@pytest.mark.parametrize(
    "shape, says",
    [
        ('<polygon label="cat" points="1,2;3,4"/>', "points of a polygon must be"),
        ('<polygon label="cat" points="1,2;3,4;5,x"/>', "points of a polygon must be"),
        ('<polygon label="cat" points="1,2,3,4;5,6;7,8"/>', "points of a polygon must be"),
        ('<polygon points="1,2;3,4;5,6"/>', "has no label"),
        ('<box label="cat" xtl="1"/>', "ytl of a box must be a number"),
        ('<mask label="cat" rle="1,2" left="0" top="0" width="3" height="2"/>', "3 x 2 pixels"),
        ('<mask label="cat" rle="6" left="39" top="0" width="3" height="2"/>', "does not fit"),
        ('<mask label="cat" rle="" left="0" top="0" width="3" height="2"/>', "must be numbers"),
        ('<mask label="cat" rle="6" left="9" top="9" width="-3" height="-2"/>', "does not fit"),
        (
            '<mask label="cat" rle="9223372036854775807,9223372036854775807,8" left="0" top="0" '
            'width="3" height="2"/>',
            "3 x 2 pixels",
        ),
        ('<mask label="cat" rle="6" left="inf" top="0" width="3" height="2"/>', "left of a mask"),
        ('<polygon label="cat" points="1,2;3,4;5,nan"/>', "shape 0: coordinates must be finite"),
        ('<polygon label="cat" points="1,2;3,4;5,1e200"/>', "one is 1e"),
        (
            '<points label="a" points="1,2"/><box label="cat" xtl="1" ytl="1" xbr="3" ybr="3" '
            'rotation="abc"/>',
            "shape 1: rotation of a box must be a number, .*is 'abc'",
        ),
        (
            '<ellipse label="cat" cx="9" cy="9" rx="nan" ry="3"/>',
            "rx of a ellipse must be a number, .*is 'nan'",
        ),
    ],
)
def test_cvat_shapes_that_cannot_be_used_are_named(images: Path, shape: str, says: str):
    with pytest.raises(DataError, match=rf"annotations\.xml: image 0: .*{says}"):
        convert(images, "cvat", cvat(images, shape))


def test_other_classes_and_videos_of_cvat_are_refused(images: Path):
    file = cvat(images, '<box label="ant" xtl="1" ytl="1" xbr="3" ybr="3"/>')
    said = r"annotations\.xml: image 0: shape 0: is of the class 'ant', listed are dog, cat"
    with pytest.raises(DataError, match=said):
        convert(images, "cvat", file)
    for size in ("nan", "0", "100000"):
        file.write_text(
            CVAT.format("").replace('width="40" height="30"', f'width="{size}" height="{size}"')
        )
        with pytest.raises(DataError, match=r"annotations\.xml: image 0: (width|height|has)"):
            convert(images, "cvat", file)
    file.write_text('<?xml version="1.0" encoding="foo"?><annotations/>')
    with pytest.raises(DataError, match=r"annotations\.xml: is not valid XML \(unknown encoding"):
        convert(images, "cvat", file)
    file.write_text("<annotations><track/></annotations>")
    with pytest.raises(DataError, match="of a video, export frames"):
        convert(images, "cvat", file)


def via_entry(name: str, *regions: dict[str, Any]) -> dict[str, Any]:
    return {"filename": name, "size": 1, "file_attributes": {}, "regions": list(regions)}


def region(kind: str, attributes: dict[str, Any], **shape: Any) -> dict[str, Any]:
    return {"shape_attributes": {"name": kind, **shape}, "region_attributes": attributes}


def write_via(images: Path, *entries: dict[str, Any]) -> Path:
    (file := images.parent / "via.json").write_text(
        json.dumps({f"{entry['filename']}1": entry for entry in entries})
    )
    return file


def test_via(images: Path, capsys):
    xs, ys = POLYGON[0::2], POLYGON[1::2]
    cat = {"kind": "cat"}
    regions = [
        region("polygon", cat, all_points_x=xs, all_points_y=ys),
        region("rect", {"kind": {"dog": True, "cat": False}}, x=30, y=20, width=6, height=6),
        region("circle", cat, cx=20, cy=15, r=6),
        region("ellipse", cat, cx=20, cy=15, rx=8, ry=4, theta=np.pi / 2),
        region("point", cat, cx=1, cy=1),
    ]
    file = write_via(images, via_entry("a.png", *regions), via_entry("day/b.jpg"))
    project = images.parent / "project.json"
    project.write_text(json.dumps({"_via_img_metadata": json.loads(file.read_text())}))
    for source in (file, project):
        (first, second), classes = convert(images, "via", source)
        (images.parent / "out.json").unlink()
        assert "left out: 1 x point" in capsys.readouterr().out
        assert classes == ["cat", "dog"] and not second["annotations"]
        assert [a["category_id"] for a in first["annotations"]] == [0, 1, 0, 0]
        polygon, box, circle, oval = masks_of(first)
        assert (polygon == BOX).all() and (box == area(30, 20, 36, 26)).all()
        assert abs(circle.sum() - np.pi * 36) < 4
        assert oval.sum() == pytest.approx(np.pi * 32, abs=4)
        assert np.ptp(np.flatnonzero(oval.any(1))) > np.ptp(np.flatnonzero(oval.any(0)))


def test_via_1_without_attributes_as_the_balloon_set_has_it(images: Path):
    one = region("polygon", {}, all_points_x=POLYGON[0::2], all_points_y=POLYGON[1::2])
    entry = {**via_entry("a.png"), "regions": {"0": one}}
    (record,), classes = convert(images, "via", write_via(images, entry))
    assert classes == ["object"] and (masks_of(record)[0] == BOX).all()


@pytest.mark.parametrize(
    "one, says",
    [
        (region("polygon", {"a": "x"}, all_points_x=[1, 2], all_points_y=[1]), "as many numbers"),
        (region("rect", {"a": "x"}, x=1), "y of a rect must be a number"),
        (region("blob", {"a": "x"}), "a shape 'blob' is not known"),
        (
            region("ellipse", {"a": "x"}, cx=9, cy=9, rx=3, ry=2, theta="north"),
            "theta of an ellipse must be a number, .*is 'north'",
        ),
        (
            region("circle", {"a": "x"}, cx=9, cy=9, r=float("nan")),
            "r of a circle must be a number",
        ),
        (
            region("polygon", {"a": "x"}, all_points_x=[1, 2, 1e200], all_points_y=[1, 2, 3]),
            r"coordinates must be finite and at most 100000, one is 1e\+200",
        ),
        (region("rect", {"a": ""}, x=1, y=1, width=2, height=2), "'a' names no class"),
        ({}, "must have shape_attributes"),
    ],
)
def test_via_regions_that_cannot_be_used_are_named(images: Path, one: dict, says: str):
    other = region("rect", {"a": "x"}, x=1, y=1, width=2, height=2)
    file = write_via(images, via_entry("a.png", other, one))
    with pytest.raises(DataError, match=rf"via\.json: a\.png, region 1: .*{says}"):
        convert(images, "via", file)


@pytest.mark.parametrize(
    "tree, says",
    [
        ({"_via_img_metadata": [1]}, r"_via_img_metadata must be an object, is \[1\]"),
        ({"a": {"filename": "a.png", "regions": 5}}, "a.png: regions must be a list or an object"),
        ({"a": {"filename": "../a.png"}}, "leaves the image folder"),
    ],
)
def test_via_entries_that_cannot_be_used_are_named(images: Path, tree: dict, says: str):
    (file := images.parent / "via.json").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=rf"via\.json: .*{says}"):
        convert(images, "via", file)


def test_via_with_several_attributes_needs_to_know_which(images: Path):
    one = region("rect", {"kind": "cat", "age": "old"}, x=1, y=1, width=9, height=9)
    file = write_via(images, via_entry("a.png", one))
    with pytest.raises(DataError, match="attributes age, kind; give --attribute NAME"):
        convert(images, "via", file)
    with pytest.raises(DataError, match="no region has the attribute 'x'"):
        convert(images, "via", file, "--attribute", "x")
    assert convert(images, "via", file, "--attribute", "kind")[1] == ["cat"]


@pytest.mark.parametrize("colours", [False, True])
def test_maps_of_ids(images: Path, colours: bool):
    masks = images.parent / "masks"
    (masks / "day").mkdir(parents=True)
    ids = np.zeros((HEIGHT, WIDTH), np.uint16)
    ids[BOX], ids[20:25, 30:36] = 700, 3
    values = np.stack([ids & 255, ids >> 8, 0 * ids], 2).astype(np.uint8) if colours else ids
    Image.fromarray(values).save(masks / "day/b.png")
    (first, second), classes = convert(images, "masks", masks, "--class-name", "cell")
    assert classes == ["cell"] and not first["annotations"]
    assert (masks_of(second) == [area(30, 20, 36, 25), BOX]).all()


def test_a_mask_for_each_object(images: Path):
    for folder, mask in (("a", BOX), ("a", area(0, 0, 3, 3)), ("day/b/masks", BOX)):
        (where := images.parent / "masks" / folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(where / f"{mask.sum()}.png")
    (first, second), classes = convert(images, "masks", images.parent / "masks")
    assert classes == ["object"]
    assert (masks_of(first) == [BOX, area(0, 0, 3, 3)]).all()
    assert (masks_of(second) == [BOX]).all()


def test_masks_that_cannot_be_used_are_named(images: Path):
    (masks := images.parent / "masks").mkdir()
    with pytest.raises(DataError, match="has no pictures"):
        convert(images, "masks", masks)
    Image.new("L", (4, 4)).save(masks / "z.png")
    with pytest.raises(DataError, match=r"z\.png is of no image"):
        convert(images, "masks", masks)
    (masks / "z.png").rename(masks / "a.png")
    with pytest.raises(DataError, match=r"a\.png: is 4 x 4, its image 40 x 30"):
        convert(images, "masks", masks)


def test_nothing_is_overwritten_and_mistakes_are_one_message(images: Path, capsys):
    (output := images.parent / "out.json").write_text("{}")
    for folder, file, says in (
        (images, output, "exists; name another"),
        (images / "none", output, "is no folder"),
        (images, output / "b.json", "its folder"),
    ):
        argv = ["masks", str(images), "--images", str(folder), "--output", str(file)]
        with pytest.raises(SystemExit) as exit:
            run_command(main, argv)
        assert exit.value.code == 2 and says in capsys.readouterr().err
    assert output.read_text() == "{}"


def test_the_folder_of_the_output_is_made(images: Path):
    Image.new("L", (WIDTH, HEIGHT)).save(images.parent / "a.png")
    (masks := images.parent / "masks").mkdir()
    (images.parent / "a.png").rename(masks / "a.png")
    output = images.parent / "new/er/out.json"
    main(["masks", str(masks), "--images", str(images), "--output", str(output)])
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize("a, b, turn", [(50, 20, 30), (3, 3, 0), (0.5, 2, 90)])
def test_an_ellipse_has_its_area(a: float, b: float, turn: float):
    x, y = np.reshape(ellipse(5, 7, a, b, turn), (-1, 2)).T
    assert abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2 == pytest.approx(np.pi * a * b)
    assert (x.mean(), y.mean()) == pytest.approx((5, 7))
