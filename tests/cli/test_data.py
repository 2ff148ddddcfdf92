import gzip
import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smallvit.cli.app import main
from smallvit.data.dataset import Dataset
from smallvit.data.files.config import DataConfig
from smallvit.data.files.registry import DATASETS
from smallvit.data.files.splits import split_hash
from smallvit.runs.data import load_dataset
from smallvit.runs.data_check import check_dataset

NUM = {"train": 60, "t10k": 20}


@pytest.fixture(autouse=True)
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SMALLVIT_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small files in the place of Fashion-MNIST's, which the registry takes for the official."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for split, num in NUM.items():
        pixels = generator.integers(0, 256, (num, 28, 28), dtype=np.uint8)
        labels = bytes(i % 10 for i in range(num))
        images = struct.pack(">IIII", 2051, num, 28, 28) + pixels.tobytes()
        for name, content in (
            (f"{split}-images-idx3-ubyte.gz", images),
            (f"{split}-labels-idx1-ubyte.gz", struct.pack(">II", 2049, num) + labels),
        ):
            (folder / name).write_bytes(gzip.compress(content))
    spec = DATASETS["fashion-mnist"]
    files = tuple(
        replace(
            file,
            md5=hashlib.md5((folder / file.name).read_bytes()).hexdigest(),
            size=(folder / file.name).stat().st_size,
        )
        for file in spec.files
    )
    changed = replace(spec, files=files, num_train=NUM["train"], num_test=NUM["t10k"])
    monkeypatch.setitem(DATASETS, "fashion-mnist", changed)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of 20 images."""
    root = tmp_path / "photos"
    generator = np.random.default_rng(1)
    for name in ("[cat]", "dog"):
        (root / name).mkdir(parents=True)
        for i in range(20):
            pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:02d}.png")
    return root


def test_known_datasets_are_listed_with_size_licence_and_status(capsys, data_dir):
    (data_dir / "cifar-10-batches-py").mkdir(parents=True)
    (data_dir / "cifar-10-batches-py" / "test_batch").touch()
    assert main(["data", "ls"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if line and line.split()[0] in DATASETS}
    assert rows.keys() == DATASETS.keys()
    assert rows["cifar10"].split()[1:6] == ["10", "50,000/cut/10,000", "32", "170", "here"]
    assert rows["cifar100"].split()[5] == "absent"
    assert "built in" in rows["digits"]
    assert "non-commercial" in rows["svhn"]


def test_the_list_as_json_has_every_fact(capsys):
    assert main(["data", "ls", "--json"]) == 0
    entries = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert entries["digits"]["status"] == "built in"
    svhn = entries["svhn"]
    assert (svhn["train"], svhn["val"], svhn["test"]) == (73_257, 0, 26_032)
    assert svhn["download_bytes"] == 182_040_794 + 64_275_384
    assert svhn["files"][0]["md5"] == "e26dedcc434d2e4c54c9b2d4a06d8373"
    assert entries["cars"]["download_bytes"] is None


def test_an_absent_dataset_is_described_but_not_fetched(capsys, data_dir, monkeypatch):
    monkeypatch.delenv("SMALLVIT_OFFLINE")
    monkeypatch.setattr(
        "smallvit.data.files.fetch.download", lambda *args: pytest.fail("downloads")
    )
    assert main(["data", "info", "cifar10"]) == 3
    captured = capsys.readouterr()
    for fact in (
        "50,000 train, 10,000 test",
        "https://www.cs.toronto.edu/~kriz/cifar.html",
        "cifar-10-python.tar.gz, 170,498,071 bytes, md5 c58f30108f718f92721af3b95e74349a",
    ):
        assert fact in captured.out
    [line] = captured.err.splitlines()
    fetched = "`smallvit data get cifar10` fetches it; by hand: download https://"
    assert line.startswith(f"smallvit: cifar10 is not in {data_dir}: {fetched}")
    assert main(["data", "check", "cifar10"]) == 3
    hub = f"hf:a/b@{'0' * 40}"
    for command in ("info", "check"):
        assert main(["data", command, hub]) == 3
        assert f"`smallvit data get {hub}` fetches it" in "".join(capsys.readouterr())
    assert not data_dir.exists()


def test_digits_are_described_with_their_source_and_classes(capsys):
    assert main(["data", "info", "digits", "--data.label-fraction", "0.5"]) == 0
    out = capsys.readouterr().out
    for fact in ("0.3057, 0.3057, 0.3057", "Alpaydin", "CC BY 4.0", "archive.ics.uci.edu"):
        assert fact in out
    total = next(line for line in out.splitlines() if " all " in line)
    assert [cell.strip() for cell in total.split("\u2502")[2:-1]] == ["1,306", "653", "147", "344"]


def test_a_long_list_of_classes_is_cut_short_unless_all_are_wanted(capsys, tmp_path):
    for i in range(33):
        (tmp_path / "many" / f"c{i:02d}").mkdir(parents=True)
        for j in range(4):
            pixels = np.full((8, 8, 3), 4 * i + j, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "many" / f"c{i:02d}" / f"{j}.png")
    assert main(["data", "info", str(tmp_path / "many")]) == 0
    out = capsys.readouterr().out
    assert "c29" in out
    assert "c30" not in out
    assert "... 3 more (--all)" in out
    assert main(["data", "info", str(tmp_path / "many"), "--all"]) == 0
    out = capsys.readouterr().out
    assert "c32" in out
    assert "more (--all)" not in out


def test_images_without_labels_are_described_checked_packed_and_drawn(capsys, photos, tmp_path):
    folder = str(photos / "dog")
    assert main(["data", "info", folder]) == 0
    out = capsys.readouterr().out
    assert "images without labels" in out
    assert "class " not in out
    assert main(["data", "check", folder]) == 0
    assert main(["data", "get", folder]) == 0
    assert "packed: 20 train images, no labels, 32 px" in capsys.readouterr().out
    assert main(["data", "show", folder, "--out", str(tmp_path / "sheets")]) == 0
    assert "no labels: a batch of stage 2 cannot be drawn" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "sheets").iterdir()) == [
        "images.png",
        "views.png",
    ]
    maps = ["--score-maps", "x"]
    assert main(["data", "show", folder, *maps]) == 2
    assert "has no labels" in capsys.readouterr().err


def test_repeated_images_and_files_left_out_are_told(capsys, photos):
    (photos / "dog" / "twin.png").write_bytes((photos / "[cat]" / "03.png").read_bytes())
    assert main(["data", "info", str(photos)]) == 0
    out = capsys.readouterr().out
    assert "[cat]" in out  # no markup
    assert "note: 1 of 41 train images repeat one of another class" in out
    assert main(["data", "check", str(photos)]) == 0  # a warning is no fault
    assert "note   1 of 41 train images repeat" in capsys.readouterr().out


def test_a_dataset_is_taken_from_archives_verified_packed_and_found_again(
    capsys, archives, data_dir
):
    assert main(["data", "get", "fashion-mnist", "--from", str(archives)]) == 0
    out = capsys.readouterr().out
    assert f"in {data_dir}; length and md5 verified: train-images-idx3-ubyte.gz, " in out
    assert "packed: 60 train, 20 test images, 10 classes, 32 px" in out
    assert "mean of the training split: 0." in out
    packed = Path(out.splitlines()[-1].removeprefix("packed in "))
    assert (packed / "manifest.json").is_file()
    assert main(["data", "get", "fashion-mnist", "--offline"]) == 0
    assert "already; `smallvit data check fashion-mnist` verifies it" in capsys.readouterr().out
    assert main(["data", "ls"]) == 0
    assert "here" in capsys.readouterr().out


def test_counts_that_are_not_the_official_ones_are_refused_with_both(capsys, archives, monkeypatch):
    spec = DATASETS["fashion-mnist"]
    monkeypatch.setitem(DATASETS, "fashion-mnist", replace(spec, num_test=21, num_classes=11))
    assert main(["data", "get", "fashion-mnist", "--from", str(archives)]) == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert "10 classes here, 11 officially; 20 test images here, 21 officially" in line
    assert "run `smallvit data get fashion-mnist`" in line
    assert main(["data", "check", "fashion-mnist"]) == 3
    captured = capsys.readouterr()
    assert "wrong  fashion-mnist: 10 classes here, 11 officially; 20 test" in captured.out
    assert captured.err.splitlines()[-1] == "smallvit: fashion-mnist: 1 problem, named above"


def test_official_files_that_cannot_be_decoded_are_refused(capsys, archives, monkeypatch):
    def load(config: DataConfig) -> Dataset:
        return replace(load_dataset(config), broken=("test/00003 (cut short)",))

    monkeypatch.setattr("smallvit.runs.data.load_dataset", load)
    assert main(["data", "get", "fashion-mnist", "--from", str(archives)]) == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert "images that cannot be decoded: 1, first: test/00003 (cut short): remove " in line
    assert line.endswith("run `smallvit data get fashion-mnist`")


def test_without_files_and_offline_a_dataset_is_told_how_to_be_had(capsys):
    assert main(["data", "get", "cifar10"]) == 3
    line = capsys.readouterr().err.splitlines()[-1]
    assert "cifar10 is missing and downloads are off" in line
    assert "--from PATH" in line
    assert main(["data", "get", "digits"]) == 0
    assert "comes with scikit-learn" in capsys.readouterr().out


def test_from_is_refused_for_images_of_ones_own(capsys, photos):
    assert main(["data", "get", str(photos), "--from", "x"]) == 2
    assert "--from is for data sets known by name" in capsys.readouterr().err
    assert main(["data", "get", "digts"]) == 2
    said = capsys.readouterr().err
    assert "did you mean 'digits'" in said
    assert "no file or folder here is called digts either" in said
    assert main(["data", "get", "./none"]) == 3
    assert "nothing is at" in capsys.readouterr().err


def test_sound_data_is_found_fine_and_every_check_is_told(capsys, archives):
    assert main(["data", "get", "fashion-mnist", "--from", str(archives)]) == 0
    capsys.readouterr()
    assert main(["data", "check", "fashion-mnist"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for finding in (
        "ok     4 official files have their length and md5",
        "ok     all 80 images are decoded",
        "ok     official counts: 60 train, 20 test images, 10 classes",
        "ok     labels are 0 to 9",
    ):
        assert finding in lines
    assert any(line.startswith("ok     splits share no image") for line in lines)
    assert lines[-1] == "fashion-mnist: fine"


def test_a_changed_archive_and_packed_pixels_that_changed_are_found(
    capsys, archives, data_dir, monkeypatch
):
    assert main(["data", "get", "fashion-mnist", "--from", str(archives)]) == 0
    packed = Path(capsys.readouterr().out.splitlines()[-1].removeprefix("packed in "))
    with (data_dir / "t10k-labels-idx1-ubyte.gz").open("ab") as file:
        file.write(b"x")
    assert main(["data", "check", "fashion-mnist"]) == 3
    captured = capsys.readouterr()
    assert "wrong" in captured.out
    assert "t10k-labels-idx1-ubyte.gz" in captured.out
    assert "ok     3 official files" in captured.out
    assert captured.err.splitlines()[-1] == "smallvit: fashion-mnist: 1 problem, named above"
    # Opening a store looks at some images alone; here at none but the first.
    monkeypatch.setattr("smallvit.data.files.store.NUM_SAMPLED", 1)
    with (packed / "train.images.npy").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    assert main(["data", "check", "fashion-mnist"]) == 3
    captured = capsys.readouterr()
    assert "1 of 60 images differ from their hashes, first: image 59" in captured.out
    assert f"remove {packed} and check again" in captured.out
    assert captured.err.splitlines()[-1] == "smallvit: fashion-mnist: 2 problems, named above"


def test_images_are_described_and_checked_at_the_size_that_trains(capsys, tmp_path, session_cache):
    root = tmp_path / "large"
    for i in range(48):
        path = root / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (240, 250, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    assert main(["data", "info", str(root)]) == 0
    assert "64 px, as recipe generic/64px trains on them" in capsys.readouterr().out
    assert main(["data", "check", str(root)]) == 0
    finetune = ["finetune", "--data", str(root), "--model.depth", "1", "--dry-run"]
    assert main([*finetune, "--batch-size", "4", "--device", "cpu"]) == 0
    assert len(list((session_cache / "packed").glob("large-*/manifest.json"))) == 1


def test_files_that_cannot_be_decoded_are_problems(capsys, tmp_path):
    root = tmp_path / "grey"
    for level in range(200):
        path = root / ("a" if level < 100 else "b") / f"{level}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), level, dtype=np.uint8)).save(path)
    (root / "a" / "torn.png").write_bytes(b"no image")
    assert main(["data", "check", str(root)]) == 3
    captured = capsys.readouterr()
    assert "wrong  cannot be decoded and is left out: a/torn.png" in captured.out
    assert captured.err.splitlines()[-1] == f"smallvit: {root}: 1 problem, named above"
    for i in range(3):
        (root / "b" / f"torn{i}.png").write_bytes(b"no image")
    assert main(["data", "check", str(root)]) == 3
    assert "wrong  grey: 4 of 204 files cannot be decoded" in capsys.readouterr().out


def test_a_cut_whose_splits_share_images_is_found(capsys, photos):
    assert main(["data", "get", str(photos)]) == 0
    packed = Path(capsys.readouterr().out.splitlines()[-1].removeprefix("packed in "))
    [path] = packed.glob("splits-*.json")
    plain = json.loads(path.read_text())
    plain["val"] = sorted({*plain["val"], *plain["test"][:3]})
    arrays = (np.asarray(plain[name]) for name in ("train", "labelled", "val", "test"))
    path.write_text(json.dumps(plain | {"split_hash": split_hash(*arrays)}))
    assert main(["data", "check", str(photos)]) == 3
    assert "wrong  3 images are in both val and test" in capsys.readouterr().out


def test_sheets_are_drawn_as_the_recipe_trains_and_older_ones_replaced(capsys, tmp_path):
    assert main(["data", "show", "digits", "--num", "4"]) == 0
    captured = capsys.readouterr()
    assert "recipe: digits/vit_tiny" in captured.err
    paths = [Path(line) for line in captured.out.splitlines()]
    assert paths == [
        Path("contact-sheets/digits") / f"{name}.png" for name in ("images", "views", "batch")
    ]
    before = [path.read_bytes() for path in paths]
    assert main(["data", "show", "digits", "--num", "4"]) == 0
    assert [path.read_bytes() for path in paths] == before
    assert main(["data", "show", "digits", "--num", "4", "--seed", "1"]) == 0
    assert all(path.read_bytes() != old for path, old in zip(paths, before, strict=True))
    recipe = tmp_path / "noisy.yaml"
    recipe.write_text("{finetune: {augment: {crop: resized, erasing_prob: 1.0}}}")
    assert main(["data", "show", "digits", "--num", "4", "--recipe", str(recipe)]) == 0
    assert f"recipe: {recipe}" in capsys.readouterr().err
    assert paths[0].read_bytes() == before[0]
    assert paths[2].read_bytes() != before[2]


def test_score_maps_are_drawn_and_those_of_another_split_refused(tiny, copy_run, capsys, tmp_path):
    teacher, maps = copy_run(tmp_path / "teacher", "teacher"), tmp_path / "maps"
    assert main(["label", "--teacher", str(teacher), "--out", str(maps)]) == 0
    show = ["data", "show", "digits", "--num", "3", "--out", str(tmp_path / "sheets")]
    given = ["--recipe", tiny, "--score-maps", str(maps / "score_maps.safetensors")]
    assert main([*show, *given]) == 0
    with Image.open(tmp_path / "sheets" / "score_maps.png") as image:
        assert image.height > 3 * 192
    capsys.readouterr()
    assert main([*show, *given, "--data.split-seed", "1"]) == 3
    assert "was written for other training split" in capsys.readouterr().err
    assert main([*show, "--score-maps", "none.safetensors"]) == 2
    assert "no score maps at" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num", "0"], "--num must be from 1 to 512, got 0"),
        (["--out", __file__], "give another --out"),
        (["--recipe", "digits/vit_tin"], "did you mean 'digits/vit_tiny'"),
    ],
)
def test_sheets_that_cannot_be_drawn_are_refused(arguments, message, capsys):
    assert main(["data", "show", "digits", *arguments]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_the_doctor_names_the_data_sets_that_are_here(capsys, data_dir):
    (data_dir / "cifar-100-python").mkdir(parents=True)
    (data_dir / "cifar-100-python" / "meta").touch()
    assert main(["doctor"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if "data sets here" in line)
    assert "digits, cifar100 " in line


def test_the_doctor_explains_a_link_to_itself(capsys, tmp_path, monkeypatch):
    (tmp_path / "runs").symlink_to("runs")
    monkeypatch.setenv("SMALLVIT_RUNS_DIR", str(tmp_path / "runs"))
    assert main(["doctor"]) == 3
    said = " ".join(capsys.readouterr().err.split())
    assert f"{tmp_path / 'runs'}: is a link to runs, which is not there" in said


def test_data_of_the_first_cut_is_checked_as_it_is_packed(tmp_path):
    """Each grey file has a scale of its own there: no other one is packed to be looked at."""
    for i in range(40):
        values = np.random.default_rng(i).integers(0, 4096, (8, 8), dtype=np.uint16)
        path = tmp_path / "grey" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    config = DataConfig(path=tmp_path / "grey", image_size=8, split_version=1)
    packed = load_dataset(config).store_path
    said = [finding.text for finding in check_dataset(config)]
    assert f"the packed images in {packed} have their hashes" in said
