"""A data root from someone else: the pickles in it are read, and nothing that they name is run."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from ondisk import SMALL

from l2l_hyper.bridge.loaders import LOADERS
from l2l_hyper.bridge.pickles import read_arrays
from l2l_hyper.errors import InputError

FILES = {
    "mini-imagenet": ["mini-imagenet-cache-test.pkl"],
    "fc100": ["FC100_test.pickle"],
    "tiered-imagenet": ["tiered-imagenet/test_images_png.pkl", "tiered-imagenet/test_labels.pkl"],
}


class Hostile:
    """An object whose pickle makes a folder when it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_of_every_protocol_are_read(tmp_path, protocol):
    content = {
        "array": np.arange(12, dtype=np.uint8).reshape(3, 4).T,
        "scalar": np.float32(0.5),
        "names": OrderedDict(a=[1, (2.5, None)], b={"c", "d"}),
        "bytes": [b"", b"\xff\x00", bytearray(b"x")],
        "several": [np.array(["n01", "n02"]), np.array([[1], "x"], dtype=object)],
    }
    (tmp_path / "file.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    np.testing.assert_equal(read_arrays(tmp_path / "file.pkl"), content)


@pytest.mark.parametrize(("name", "file"), [(name, file) for name, files in FILES.items() for file in files])
def test_a_hostile_file_is_refused_and_runs_nothing(tmp_path, name, file):
    SMALL[name](tmp_path)
    (tmp_path / file).write_bytes(pickle.dumps({"data": Hostile(tmp_path / "run")}))
    with pytest.raises(InputError, match=r"it names posix\.mkdir, and only arrays are read"):
        LOADERS[name].contents(tmp_path, "test")
    assert not (tmp_path / "run").exists()


def test_an_image_of_no_class_is_refused(tmp_path):
    SMALL["mini-imagenet"](tmp_path)
    path = tmp_path / "mini-imagenet-cache-test.pkl"
    content = read_arrays(path)
    del content["class_dict"][next(iter(content["class_dict"]))]
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError, match="some images are of no class"):
        LOADERS["mini-imagenet"].contents(tmp_path, "test")
