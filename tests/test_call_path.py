from benchmarks.call_path import CONFIG, frames_to_mask_head
from segdet.config import get_cfg


def test_a_head_is_at_most_four_of_our_frames_from_build_model():
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIG))
    frames = frames_to_mask_head(cfg)
    assert frames[0] == "build_model" and frames[-1] == "MaskRCNNConvUpsampleHead.__init__"
    assert len(frames) <= 4
