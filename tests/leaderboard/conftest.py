import pytest

from smallvit.leaderboard.rows import ARMS, Entry


def create_entry(arm="scratch", *, correct=90, n_test=100, **changes) -> Entry:
    (init, token_labels) = next(key for key, name in ARMS.items() if name == arm)
    values = {
        "dataset": "digits",
        "model": "vit_nano",
        "init": init,
        "token_labels": token_labels,
        "label_fraction": 1.0,
        "num_labels": 1000,
        "seed": 0,
        "top1": correct / n_test,
        "top5": 0.99,
        "correct": correct,
        "n_test": n_test,
        "params": 215_434,
        "samples_seen": 30_000,
        "pretrain_samples": 60_000 if init == "pretrain" else 0,
        "teacher_samples": 20_000 if token_labels else 0,
        "wall_s": 12.3,
        "total_wall_s": 245.0,
        "images_per_s": 2439.0,
        "extra_data": "none",
        "commit": "0123456789abcdef",
        "dirty": False,
        "machine": "2 cores",
        "device": "cpu",
        "precision": "fp32",
        "run": f"runs/digits/{arm}-s{changes.get('seed', 0)}",
        "fingerprint": "f" * 16,
        "split_hash": "5" * 16,
    }
    return Entry(**(values | changes))


@pytest.fixture
def entry():
    return create_entry


@pytest.fixture
def four_arms():
    return [
        create_entry(arm, correct=correct)
        for arm, correct in {"both": 94, "token labels": 93, "SSL start": 92, "scratch": 90}.items()
    ]
