import json
import tarfile
from itertools import islice
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from segdet.data.build import build_detection_train_loader
from segdet.data.catalog import DatasetCatalog
from segdet.data.check.pictures import check_pictures
from segdet.data.check.sources import check_dataset
from segdet.data.image_io import read_image
from segdet.data.tar_shards import member_path
from segdet.errors import DataError
from tests.data.conftest import CocoFolder, a_config, annotation


@pytest.fixture
def shards(tmp_path: Path) -> CocoFolder:
    """Eight pictures in a folder, and in two shards."""
    folder = CocoFolder(tmp_path, image_count=8)
    rng = np.random.default_rng(0)
    for i in range(8):
        noise = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder.images / f"{i}.png")
    folder.tree["annotations"] = [annotation(id=i, image_id=i) for i in range(1, 9)]
    for k in range(2):
        with tarfile.open(tmp_path / f"train-{k:03}.tar", "w") as tar:
            for i in range(4 * k, 4 * k + 4):
                tar.add(folder.images / f"{i}.png", f"./{i}.png")
    folder.write()
    return folder


def names_of(folder: CocoFolder) -> list[str]:
    """The same data set by its folder, and by its shards."""
    root = folder.json.parent
    places = [str(folder.images), f"{root}/train-{{000..001}}.tar", f"{root}/train-*.tar"]
    for file in root.glob("*.tar"):
        fsspec.filesystem("memory").pipe(f"/shards/{file.name}", file.read_bytes())
    places += ["memory://shards/train-{000..001}.tar", "memory://shards/train-*.tar"]
    return [f"{folder.json}:{place}" for place in places]


def test_a_picture_in_a_shard_is_the_picture(shards: CocoFolder):
    for name in names_of(shards):
        records = DatasetCatalog.get(name)
        assert len(records) == 8
        for i, record in enumerate(records):
            expected = read_image(shards.images / f"{i}.png", "RGB")
            assert (read_image(record["file_name"], "RGB") == expected).all()


def stream(name: str, start: int, count: int, workers: int = 0) -> list[tuple]:
    """Image ids and sums of what training would get."""
    cfg = a_config()
    cfg.DATASETS.TRAIN, cfg.DATALOADER.NUM_WORKERS = (name,), workers
    loader = build_detection_train_loader(cfg)
    loader.seek(start)
    return [
        (sample["image_id"], int(sample["image"].sum()))
        for batch in islice(loader, count)
        for sample in batch
    ]


def test_training_on_shards_resumes_exactly(shards: CocoFolder):
    folder, local, *_, remote = names_of(shards)
    expected = stream(folder, 0, 10)
    assert stream(local, 0, 10) == expected == stream(remote, 0, 10)
    assert stream(local, 6, 4) == expected[12:] == stream(remote, 6, 4)
    assert stream(local, 6, 4, workers=2) == expected[12:]


def test_shards_are_checked_as_folders_are(shards: CocoFolder):
    names = names_of(shards)
    shards.tree["images"][2]["file_name"] = "gone.png"
    shards.tree["images"][3]["width"] = 81
    shards.write()
    for name in names[1:]:
        (checked,) = check_dataset(name)
        check_pictures([checked], 1)
        found = {(one.kind, one.record) for one in checked.findings}
        assert {("image-missing", "image 3"), ("size-differs", "image 4")} <= found


def test_what_shards_lack_is_named(shards: CocoFolder, tmp_path: Path):
    with pytest.raises(DataError, match=r"'9\.png' is in none of the shards .*train-\*\.tar"):
        member_path(f"{tmp_path}/train-*.tar", "9.png")
    with pytest.raises(DataError, match=r"train-002\.tar: is no tar file"):
        member_path(f"{tmp_path}/train-{{000..002}}.tar", "1.png")
    with pytest.raises(DataError, match=r"no file is named .*val-\*\.tar"):
        member_path(f"{tmp_path}/val-*.tar", "1.png")
    (tmp_path / "text.tar").write_text("no tar file")
    with pytest.raises(DataError, match=r"text\.tar: is no tar file .* not compressed"):
        member_path(f"{tmp_path}/text.tar", "1.png")
    with pytest.raises(DataError, match="nosuch"):
        member_path("nosuch://x/train.tar", "1.png")


def test_a_name_in_two_shards_is_refused(shards: CocoFolder, tmp_path: Path):
    (tmp_path / "train-002.tar").write_bytes((tmp_path / "train-001.tar").read_bytes())
    with pytest.raises(DataError, match="have the same name"):
        member_path(f"{tmp_path}/train-{{000..002}}.tar", "1.png")


def test_a_json_says_images_of_shards_by_their_names(shards: CocoFolder, tmp_path: Path):
    path = member_path(f"{tmp_path}/train-*.tar", "5.png")
    assert path.startswith(f"{tmp_path}/train-001.tar!/./5.png@")
    assert json.loads(shards.json.read_text())["images"][5]["file_name"] == "5.png"
