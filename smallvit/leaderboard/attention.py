"""Pictures of where networks look."""

import tempfile
from pathlib import Path

import torch

from smallvit.engine.runtime import Runtime
from smallvit.inference.token_pictures import draw_tokens
from smallvit.leaderboard.kept import keep_picture
from smallvit.leaderboard.part import OpenedRun

PICTURE_VERSION = 2
PICTURED = 4  # test images of a picture


def draw_attention(opened: OpenedRun, runtime: Runtime) -> bytes:
    """Return a PNG of where a network looks in the first test images of different classes."""
    split = opened.test
    labels = split.labels[split.index].tolist()
    first = {label: position for position, label in reversed(list(enumerate(labels)))}
    positions = torch.tensor(sorted(first.values())[:PICTURED], device=split.index.device)

    def draw() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            _, path = draw_tokens(
                opened.backbone,
                split.take(positions),
                opened.dataset.mean,
                opened.dataset.std,
                Path(folder),
                title="",  # the page says whose it is
                autocast=runtime.autocast,
            )
            return path.read_bytes()

    key = {"version": PICTURE_VERSION, **opened.identity}
    return keep_picture(opened.run.path, "attention", key, draw)
