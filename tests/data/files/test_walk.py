from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from smallvit.core.errors import DataError
from smallvit.data.files.own import open_path
from smallvit.data.files.walk import MARKER, is_written, mark_folder, walk


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("cat/1.png", "cat/2.png", "dog/1.png"):
        save(tmp_path / "pictures" / name)
    return tmp_path / "pictures"


def save(path: Path, software: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    info = PngImagePlugin.PngInfo()
    if software is not None:
        info.add_text("Software", software)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)


def write_run(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name in ("recipe.yaml", "result.json"):
        (folder / name).touch()
    save(folder / "plots" / "curves.png")


def read(path: Path) -> tuple[tuple[str, ...], list[str], tuple[str, ...]]:
    source = open_path(path)
    listing = source.list_images()
    return listing.class_names, list(listing.splits["train"].names), source.notes


NAMES = ["cat/1.png", "cat/2.png", "dog/1.png"]


@pytest.mark.parametrize(
    "name",
    [
        "__MACOSX",
        "@eaDir",
        "#recycle",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
        ".ipynb_checkpoints",
        ".thumbnails",
    ],
)
@pytest.mark.parametrize("below", ["", "cat"])
def test_what_systems_leave_is_passed_over_and_said_once(pictures, name, below):
    save(pictures / below / name / "x" / "1.png")
    save(pictures / below / name / "2.png")
    assert read(pictures) == (("cat", "dog"), NAMES, (f"passed over: folder {name} (1)",))


def test_resource_forks_are_counted_and_no_class(pictures):
    for name in ("__MACOSX/cat/._1.png", "cat/._1.png", "cat/._2.png", "dog/._1.png"):
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        (pictures / name).write_bytes(b"\0\5\26\7")
    for name in ("cat/Thumbs.db", "dog/desktop.ini", ".DS_Store"):
        (pictures / name).touch()
    passed = ("passed over: files ._* (3); folder __MACOSX (1)",)
    assert read(pictures) == (("cat", "dog"), NAMES, passed)


@pytest.mark.parametrize(
    "where", ["run1", "runs/start", "runs/pictures/20260101-pretrain", "cat/r"]
)
def test_a_run_below_the_images_is_no_class(pictures, where):
    write_run(pictures / where)
    passed = (f"passed over: {where}, written by smallvit",)
    assert read(pictures) == (("cat", "dog"), NAMES, passed)


@pytest.mark.parametrize(
    "names",
    [
        [MARKER],
        ["run.lock"],
        ["leaderboard.json", "leaderboard.html"],
        ["config.json", "model.safetensors"],
        ["manifest.json", "train.images.npy"],
    ],
)
def test_every_kind_of_folder_that_is_written_is_recognized(pictures, names):
    for name in names:
        (pictures / "made").mkdir(exist_ok=True)
        (pictures / "made" / name).touch()
    save(pictures / "made" / "x.png")
    assert read(pictures)[0] == ("cat", "dog")


@pytest.mark.parametrize("folder", ["sheets", "contact-sheets/pictures"])
def test_a_folder_of_contact_sheets_is_no_class(pictures, folder):
    for name in ("images.png", "views.png", "batch.png"):
        save(pictures / folder / name, "smallvit")
    passed = ("passed over: pictures drawn by smallvit (3)",)
    assert read(pictures) == (("cat", "dog"), NAMES, passed)


@pytest.mark.parametrize("lock", [".cifar10.lock", ".tiny-imagenet.lock"])
def test_a_folder_of_downloads_is_no_class(pictures, lock):
    save(pictures / "data" / "tiny-imagenet-200" / "train" / "n1" / "1.png")
    (pictures / "data" / lock).touch()
    assert read(pictures) == (("cat", "dog"), NAMES, ("passed over: data, written by smallvit",))


def test_a_runs_folder_without_runs_is_no_class_and_a_class_called_runs_is_one(
    pictures, monkeypatch
):
    monkeypatch.delenv("SMALLVIT_RUNS_DIR", raising=False)
    monkeypatch.chdir(pictures)
    (pictures / "runs" / "digits").mkdir(parents=True)
    assert read(Path())[0] == ("cat", "dog")
    save(pictures / "runs" / "1.png")
    assert read(Path())[0] == ("cat", "dog", "runs")


@pytest.mark.parametrize("name", ["SMALLVIT_CACHE_DIR", "SMALLVIT_DATA_DIR"])
def test_the_folders_of_this_machine_are_no_classes(pictures, monkeypatch, name):
    monkeypatch.setenv(name, str(pictures / "mine"))
    (pictures / "mine").mkdir()
    assert read(pictures)[0] == ("cat", "dog")
    save(pictures / "mine" / "tiny-imagenet-200" / "train" / "n1" / "1.png")
    assert read(pictures) == (("cat", "dog"), NAMES, ("passed over: mine, written by smallvit",))


def test_a_folder_that_was_written_is_refused_as_data(pictures):
    write_run(pictures / "run")
    with pytest.raises(DataError, match="run was written by smallvit and holds no data: give the"):
        open_path(pictures / "run")


def test_pictures_of_results_beside_images_are_told_by_who_drew_them(pictures):
    save(pictures / "cat" / "views.png", "smallvit")
    save(pictures / "cat" / "curves.png", "Matplotlib version 3.10, https://matplotlib.org/")
    save(pictures / "dog" / "images.png", "GIMP")
    assert read(pictures)[1] == [*NAMES, "dog/images.png"]


def test_a_class_folder_of_hidden_files_alone_is_still_refused(pictures):
    (pictures / "owl").mkdir()
    (pictures / "owl" / "._1.png").touch()
    with pytest.raises(DataError, match="class folder 'owl' has no image"):
        open_path(pictures)


def test_only_an_empty_folder_is_marked(tmp_path):
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
    save(tmp_path / "full" / "1.png")
    mark_folder(tmp_path / "empty")
    mark_folder(tmp_path / "full")
    marked = [
        is_written({each.name for each in (tmp_path / n).iterdir()}) for n in ("empty", "full")
    ]
    assert marked == [True, False]


def test_what_is_passed_over_does_not_change_the_key(pictures):
    key = open_path(pictures).key
    write_run(pictures / "runs" / "start")
    save(pictures / "__MACOSX" / "1.png")
    assert open_path(pictures).key == key


def test_files_are_listed_with_their_sizes(pictures):
    found = walk(pictures, (".png",))
    assert [file.name for file in found.files] == NAMES
    assert all(file.size > 0 for file in found.files)
