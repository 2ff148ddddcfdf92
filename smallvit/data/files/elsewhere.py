"""Data in the files of other tools: which are not read, and how each becomes what is."""

import shlex
from pathlib import PurePath

_NPZ = "np.savez('data.npz', train_images=images, train_labels=labels)"
_UNPACK = "unpack it, python -m {} -e FILE FOLDER, and give --data FOLDER"
# In the words of a remedy: what to do with such a file, so that --data takes the result.
_ADVICE = {
    (".zip",): _UNPACK.format("zipfile"),
    (".tar", ".tgz", ".tbz2", ".txz"): _UNPACK.format("tarfile"),
    (".gz", ".bz2", ".xz", ".7z", ".rar"): "unpack it and give the folder or file in it",
    (".h5", ".hdf5"): f"read the arrays with h5py and save them, {_NPZ}",
    (".npy",): f"load images and labels with np.load and save them together, {_NPZ}",
    (".mat",): f"read the arrays with scipy.io.loadmat and save them, {_NPZ}",
    (".pkl", ".pickle", ".pt", ".pth"): (
        f"it may run code when opened: load it where you trust it and save the arrays, {_NPZ}"
    ),
    (".xlsx", ".xls", ".ods"): "save the sheet as CSV, with the columns image_path and label",
    (".json", ".jsonl", ".xml", ".yaml", ".yml"): (
        "write the file name and class of each image to a CSV with the columns image_path and label"
    ),
    (".arrow", ".feather"): (
        "write it as parquet, datasets.load_from_disk(its folder).to_parquet('data.parquet')"
    ),
    (".tfrecord", ".tfrecords", ".rec", ".lmdb", ".mdb", ".beton", ".db", ".sqlite"): (
        "read it with its own tool and save each image as FOLDER/CLASS/NAME.png"
    ),
    (".mp4", ".avi", ".mov", ".mkv", ".webm"): (
        "save its frames as images, with ffmpeg -i FILE FOLDER/CLASS/%05d.png"
    ),
    (".dcm", ".nii"): "save each slice as FOLDER/CLASS/NAME.png, of 8 or 16 bits",
    (".pdf",): "save its pages as images",
}
_BY_SUFFIX = {suffix: advice for suffixes, advice in _ADVICE.items() for suffix in suffixes}


def advice_for(path: str | PurePath) -> str | None:
    """Say what makes a file of another tool readable; ``None`` where nothing is known of it.

    Args:
        path: The file, or a suffix alone.
    """
    name = str(path).lower()
    suffix = name[name.rfind(".") :] if "." in name else ""
    if name.endswith((".tar.gz", ".tar.bz2", ".tar.xz")):
        suffix = ".tar"
    if "tfrecord" in name.rpartition("/")[2]:  # train.tfrecord-00001-of-00010
        suffix = ".tfrecord"
    advice = _BY_SUFFIX.get(suffix)
    if advice is None or name == suffix:
        return advice
    folder = str(path)[: name.rfind(suffix)]
    if "/CLASS/" in advice:
        return advice
    return advice.replace("FILE", shlex.quote(str(path))).replace("FOLDER", shlex.quote(folder))
