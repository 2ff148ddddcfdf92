import numpy as np
import torch
from PIL import Image

from smallvit.inference import alignment
from smallvit.inference.alignment import draw_alignment


def draw(path, score_maps, labels, names=("left", "right.v1", "$x$"), *, side=(8, 8)) -> np.ndarray:
    images = torch.randint(0, 256, (2, 3, *side), generator=torch.Generator().manual_seed(0))
    draw_alignment(
        path,
        images.to(torch.uint8),
        score_maps,
        torch.tensor(labels),
        names,
        hflip=True,
        seed=0,
        title="made",
    )
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_image_and_map_are_cut_by_one_geometry(tmp_path, monkeypatch):
    used = []
    resample = alignment.geometry.resample

    def spy(maps, where, size, **options):
        used.append((maps.shape[1], where, size))
        return resample(maps, where, size, **options)

    monkeypatch.setattr(alignment.geometry, "resample", spy)
    draw(tmp_path / "a.png", torch.full((2, 3, 2, 4), 1 / 3), [0, 1])
    (_, image_box, image_size), (_, map_box, map_size) = used
    assert image_box is map_box
    assert image_size == (8, 8)
    assert map_size == (8, 8)
    assert bool((image_box.height * image_box.width < 0.6).all())


def test_the_top_class_has_a_map_of_its_own_where_it_is_another(tmp_path):
    one_hot = torch.zeros(2, 3, 4, 4)
    one_hot[:, 1] = 1.0
    right = draw(tmp_path / "right.png", one_hot, [1, 1])
    wrong = draw(tmp_path / "wrong.png", one_hot, [0, 0])
    last = slice(-160, None)  # the last column of tiles
    assert right[100:, last].min(axis=(0, 2)).min() < 255  # its text
    ink = [(picture[80:, last] < 250).any(axis=2).mean() for picture in (right, wrong)]
    assert ink[1] > 5 * ink[0]
