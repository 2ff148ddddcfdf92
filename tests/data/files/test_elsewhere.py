import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from smallvit.core.errors import DataError
from smallvit.data.files.own import open_path


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("a.h5", "h5py and save them, np.savez"),
        ("a.hdf5", "h5py"),
        ("a.mat", "scipy.io.loadmat and save them, np.savez"),
        ("a.npy", "np.load and save them together, np.savez"),
        ("a.pkl", "may run code when opened"),
        ("a.xlsx", "save the sheet as CSV, with the columns image_path and label"),
        ("a.json", "to a CSV with the columns image_path and label"),
        ("a.arrow", "write it as parquet"),
        ("train.tfrecord-00001-of-00010", "save each image as FOLDER/CLASS/NAME.png"),
        ("a.7z", "unpack it and give the folder"),
        ("a.mp4", "save its frames as images"),
    ],
)
def test_a_file_of_another_tool_is_refused_in_one_line_that_says_how_to_convert(
    tmp_path, name, remedy
):
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=remedy) as caught:
        open_path(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_the_command_that_unpacks_an_archive_makes_it_readable(tmp_path, kind):
    top = tmp_path / "my pictures"
    for name in ("cat/1.png", "dog/1.png"):
        (top / name).parent.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(top / name)
    archive = tmp_path / f"some birds.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            for name in ("cat/1.png", "dog/1.png"):
                file.write(top / name, name)
    else:
        with tarfile.open(archive, "w:gz" if kind.endswith("gz") else "w") as file:
            for name in ("cat", "dog"):
                file.add(top / name, name)
    with pytest.raises(DataError, match="unpack it, python -m") as caught:
        open_path(archive)
    command = str(caught.value).partition("unpack it, ")[2].partition(", and give")[0]
    folder = str(caught.value).partition("give --data ")[2]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(command, shell=True, check=True, env={**os.environ, "PATH": path})
    assert open_path(Path(folder.strip("'"))).list_images().class_names == ("cat", "dog")


def test_a_folder_of_files_of_another_tool_says_how_to_convert(tmp_path):
    (tmp_path / "train.h5").touch()
    with pytest.raises(DataError, match=r"no images but files that are not read \(\.h5: .*h5py"):
        open_path(tmp_path)
