"""Small data sets in the forms on disk that learn2learn's loaders read; images of a class look alike."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "OMNIGLOT",
    "SMALL",
    "SPEAKERS",
    "TIME",
    "WORDS",
    "make_cifarfs",
    "make_fc100",
    "make_mini_imagenet",
    "make_mnist",
    "make_omniglot",
    "make_speech",
    "make_tiered_imagenet",
    "offline_omniglot",
    "png",
    "tone",
]

Pixels = npt.NDArray[np.uint8]

EACH = 12  # images per class
CONTRAST = 24  # of a class's pattern, where the noise has 40
LIGHT = (64, 192)


def look_alikes(classes: int, each: int, side: int, channels: int, seed: int) -> Pixels:
    """Images ``(classes, each, side, side, channels)``: a coarse pattern for each class, another light, and noise."""
    random = np.random.default_rng(seed)
    place = np.arange(side) * 4 // side
    pattern = random.integers(-CONTRAST, CONTRAST, (classes, 1, 4, 4, channels))[:, :, place][:, :, :, place]
    light = random.integers(*LIGHT, (classes, each, 1, 1, channels))
    noise = random.integers(-40, 40, (classes, each, side, side, channels))
    return (light + pattern + noise).astype(np.uint8)


def png(image: Pixels, mode: str | None = None) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    picture = Image.fromarray(image)
    (picture.convert(mode) if mode else picture).save(buffer, "PNG")
    return buffer.getvalue()


def make_mini_imagenet(root: Path) -> None:
    for seed, (split, classes) in enumerate({"train": 7, "validation": 5, "test": 6}.items()):
        order = np.random.default_rng(seed).permutation(classes * EACH)
        images = np.empty((classes * EACH, 84, 84, 3), np.uint8)
        images[order] = look_alikes(classes, EACH, 84, 3, seed).reshape(images.shape)
        members = order.reshape(classes, EACH)
        data = {
            "image_data": images,
            "class_dict": {f"n{split}{c}": members[c].tolist() for c in reversed(range(classes))},
        }
        (root / f"mini-imagenet-cache-{split}.pkl").write_bytes(pickle.dumps(data))


def make_fc100(root: Path) -> None:
    for seed, (split, classes) in enumerate({"train": 7, "val": 5, "test": 6}.items()):
        order = np.random.default_rng(seed).permutation(classes * EACH)
        images = look_alikes(classes, EACH, 32, 3, seed).reshape(-1, 32, 32, 3)[order]
        data = {"data": images, "labels": (np.repeat(np.arange(classes) * 3, EACH)[order]).tolist()}
        (root / f"FC100_{split}.pickle").write_bytes(pickle.dumps(data, protocol=2))


def make_tiered_imagenet(root: Path) -> None:
    folder = root / "tiered-imagenet"
    folder.mkdir()
    for seed, (split, classes) in enumerate({"train": 7, "val": 5, "test": 6}.items()):
        sizes = [EACH + c % 3 for c in range(classes)]
        labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), sizes))
        images = look_alikes(classes, len(labels), 84, 3, seed)
        files = [np.frombuffer(png(images[c, i]), np.uint8) for i, c in enumerate(labels)]
        (folder / f"{split}_images_png.pkl").write_bytes(pickle.dumps(files))
        (folder / f"{split}_labels.pkl").write_bytes(pickle.dumps({"label_specific": labels, "label_general": labels}))


def make_cifarfs(root: Path, each: int = EACH) -> None:
    archive = root / "cifarfs" / "cifar100"
    (archive / "splits" / "bertinetto").mkdir(parents=True)
    for seed, (split, classes) in enumerate({"train": 7, "val": 5, "test": 6}.items()):
        names = [f"{split}_{c}" for c in range(classes)]
        (archive / "splits" / "bertinetto" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name, images in zip(names, look_alikes(classes, each, 32, 3, seed), strict=True):
            (archive / "data" / name).mkdir(parents=True)
            for i, image in enumerate(images):
                (archive / "data" / name / f"{i}.png").write_bytes(png(image))


SMALL = {
    "mini-imagenet": make_mini_imagenet,
    "tiered-imagenet": make_tiered_imagenet,
    "fc100": make_fc100,
    "cifarfs": make_cifarfs,
}


def make_mnist(root: Path, each: int = EACH) -> None:
    """torchvision's ``MNIST``: 10 classes, in the files that it unpacks; nothing checks a sum of those."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name in ("train", "t10k"):  # the same classes in both
        images = look_alikes(10, each, 28, 1, seed=0)
        labels = np.repeat(np.arange(10, dtype=np.uint8), each)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(
            struct.pack(">4i", 0x803, len(labels), 28, 28) + images.tobytes()
        )
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, len(labels)) + labels.tobytes())


OMNIGLOT = {"images_background": 26, "images_evaluation": 17}  # characters


def make_omniglot(root: Path, each: int = 2) -> None:
    """torchvision's ``Omniglot``, with ``each`` drawings per character; see :func:`offline_omniglot`."""
    for seed, (part, characters) in enumerate(OMNIGLOT.items()):
        drawings = look_alikes(characters, each, 28, 1, seed)[..., 0]
        for c, images in enumerate(drawings):
            folder = root / "omniglot-py" / part / "alphabet" / f"character{c:03d}"
            folder.mkdir(parents=True)
            for i, image in enumerate(images):
                (folder / f"{i}.png").write_bytes(png(image, "1"))
        (root / "omniglot-py" / f"{part}.zip").write_bytes(part.encode())


WORDS = [f"word{w:02d}" for w in range(20)]
SPEAKERS = [f"{s:04d}" for s in range(10)]
TIME = np.arange(16000) / 16000


def tone(word: int, speaker: int) -> npt.NDArray[np.float64]:
    """One second of a tone whose length tells the word and whose pitch tells the speaker."""
    return np.sin(2 * np.pi * (500 + 500 * speaker) * TIME) * (0.05 + 0.045 * word > TIME)


def make_speech(root: Path, takes: int = 2) -> None:
    """Recordings of 20 words by 10 speakers, the later takes more quietly."""
    import soundfile

    for w, word in enumerate(WORDS):
        (root / "speech" / word).mkdir(parents=True)
        for s, speaker in enumerate(SPEAKERS):
            for take in range(takes):
                path = root / "speech" / word / f"{speaker}_NO_{take:02d}.wav"
                soundfile.write(path, tone(w, s) / (take + 1), 16000)


@contextlib.contextmanager
def offline_omniglot(root: Path) -> Iterator[None]:
    """Let torchvision accept the archives under ``root``, whose bytes are not the official ones."""
    from torchvision.datasets import Omniglot

    official: Any = Omniglot.zips_md5
    folder = root / "omniglot-py"
    Omniglot.zips_md5 = {part: hashlib.md5((folder / f"{part}.zip").read_bytes()).hexdigest() for part in OMNIGLOT}
    try:
        yield
    finally:
        Omniglot.zips_md5 = official


if __name__ == "__main__":  # what benchmarks/swapped_scripts.py may take for ~/data
    parser = argparse.ArgumentParser(description="Draw small data sets for learn2learn's scripts.")
    parser.add_argument("folder", type=Path, help="a new one")
    parser.add_argument("--plain", action="store_true", help="patterns with more contrast, all in one light")
    args = parser.parse_args()
    if args.plain:
        CONTRAST, LIGHT = 80, (128, 129)
    args.folder.mkdir(parents=True)
    for make in (*SMALL.values(), make_omniglot):
        make(args.folder)
    make_mnist(args.folder, each=300)
