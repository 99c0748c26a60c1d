import torch

from segdet.modeling.sampling import subsample_labels


def test_positives_are_capped_and_negatives_fill():
    labels = torch.tensor([1] * 30 + [0] * 100 + [-1] * 20)
    positive, negative = subsample_labels(labels, 40, 0.25, bg_label=0)
    assert len(positive) == 10 and len(negative) == 30
    assert (labels[positive] == 1).all() and (labels[negative] == 0).all()
    assert len(positive.unique()) == 10 and len(negative.unique()) == 30


def test_few_positives_leave_room():
    labels = torch.tensor([3, 5, 80, 80, 80, 80])
    positive, negative = subsample_labels(labels, 5, 0.5, bg_label=80)
    assert sorted(positive.tolist()) == [0, 1] and len(negative) == 3


def test_draw_follows_the_global_generator():
    labels = torch.zeros(1000, dtype=torch.int64)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(subsample_labels(labels, 10, 0.5, bg_label=0)[1].tolist())
    assert draws[0] == draws[1] != draws[2]


def test_no_candidates():
    positive, negative = subsample_labels(torch.zeros(0), 10, 0.5, bg_label=0)
    assert len(positive) == len(negative) == 0
