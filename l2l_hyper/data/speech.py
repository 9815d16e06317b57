"""Spoken words: a folder of recordings as log-mel spectrograms; words and speakers are split."""

from __future__ import annotations

import functools
import hashlib
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from .cache import Contents, ImageSet, cache_folders, stored
from .image_benchmark import ImageBenchmark, hashed_split
from .taskset import TensorTaskset

__all__ = ["log_mel", "speech"]

_RECIPE = 1  # part of the cached file's signature: raise it when the spectrograms change
_RATE = 16_000  # samples per second, and of a recording, which takes one second
_WINDOW = 512
_HOP = 256
_BANDS = 40
_DECIBELS = 80.0  # below the loudest point, where the spectrogram is zero
_TRAIN, _VALIDATION = 0.6, 0.15  # of the words, and of the speakers


def speech(*, split_seed: int = 0, **options: Any) -> tuple[TensorTaskset, ...]:
    """Spoken words (Ghandoura et al. 2021): log-mel 40x63, 24/6/10 words and 18/4/8 speakers, 10 takes each.

    Reads ``ROOT/speech/WORD/SPEAKER_*.wav``: mono, 16000 samples per second, at most one second (silence follows a
    shorter one). The Arabic Speech Commands data set, https://doi.org/10.5281/zenodo.4662481, has this form, and so
    has any folder of recordings with one folder per word. By ``split_seed``, 60 percent of the words and of the
    speakers are of the train taskset and 15 percent of the validation taskset; no word and no speaker is in two.

    Args:
        split_seed: seed of the splits and of the episodes.
        options: the other arguments of :func:`get_tasksets`.

    Raises:
        InputError: for recordings that are missing or of another form, and tasks that they cannot give.
    """
    benchmark = ImageBenchmark(
        name="speech", summary="spoken words", read=functools.partial(_read, split_seed=split_seed)
    )
    return benchmark(split_seed=split_seed, **options)


def log_mel(waves: Tensor) -> Tensor:
    r"""Log-mel spectrograms of recordings, as 8-bit levels.

    The power of 63 Hann windows of 512 samples, 256 apart, is summed by librosa's triangular filters into 40 bands that
    are equally wide on the mel scale, :math:`2595 \log_{10}(1 + f / 700)` for a frequency of f Hz, up to 8000 Hz. A
    power p becomes the level

    .. math:: \operatorname{round}\bigl(255 \max(0, 1 + 10 \log_{10}(p / p_\max) / 80)\bigr)

    where :math:`p_\max` is the largest of the recording: 255 levels are 80 decibels, and loudness does not matter.

    Args:
        waves: recordings of one second with shape ``(N, 16000)``.

    Returns:
        Levels, uint8, with shape ``(N, 1, 40, 63)``; the lowest band and the first window stand first.

    Raises:
        InputError: for other shapes, silence, values that are not finite, and where librosa is not installed.

    Example:
        >>> tone = torch.sin(2 * torch.pi * 1000 * torch.arange(16000) / 16000)
        >>> image = log_mel(tone[None])
        >>> image.shape, int(image[0, 0, :, 30].argmax())
        (torch.Size([1, 1, 40, 63]), 13)
    """
    if waves.ndim != 2 or waves.shape[1] != _RATE:
        raise InputError(f"expected recordings with shape (N, {_RATE}), got {tuple(waves.shape)}; cut or pad them")
    mel = _needed("librosa.filters").mel
    bands = torch.from_numpy(mel(sr=_RATE, n_fft=_WINDOW, n_mels=_BANDS, htk=True, norm=None, dtype=np.float64))
    window = torch.hann_window(_WINDOW, dtype=waves.dtype)
    spectra = torch.stft(waves, _WINDOW, _HOP, window=window, pad_mode="constant", return_complex=True)
    power = bands.to(waves.dtype) @ spectra.abs().square()
    loudest = power.amax((1, 2), keepdim=True)
    if not ((loudest > 0) & loudest.isfinite()).all():
        raise InputError("expected recordings with some sound, got silence or values that are not finite; remove them")
    decibels = 10 * (power / loudest).log10()
    return (255 * (1 + decibels / _DECIBELS).clamp(min=0)).round().to(torch.uint8).unsqueeze(1)


def _read(root: Path, split_seed: int) -> list[ImageSet]:
    """The spectrograms of the train, validation and test taskset."""
    if not root.is_dir():
        raise _missing(root)
    every = stored(
        "speech",
        cache_folders(root),
        signature=functools.partial(_signature, root),
        build=functools.partial(_contents, root),
    )
    pairs = [name.split("/") for name in every.names]
    words, speakers = (
        _split({pair[i] for pair in pairs}, what, split_seed) for i, what in enumerate(("word", "speaker"))
    )
    parts = []
    for some_words, some_speakers in zip(words, speakers, strict=True):
        members: dict[str, list[NDArray[np.int64]]] = {}
        for (word, speaker), indices in zip(pairs, every.classes, strict=True):
            if word in some_words and speaker in some_speakers:
                members.setdefault(word, []).append(indices)
        parts.append(ImageSet(every.images, list(members), [np.concatenate(m) for m in members.values()]))
    return parts


def _split(names: set[str], what: str, seed: int) -> list[set[str]]:
    ordered = sorted(names)
    train, validation = (round(share * len(ordered)) for share in (_TRAIN, _VALIDATION))
    return [
        {ordered[i] for i in part} for part in hashed_split(len(ordered), train, validation, f"speech/{what}", seed)
    ]


def _recordings(root: Path) -> dict[str, list[Path]]:
    """The files of each ``WORD/SPEAKER``."""
    files: dict[str, list[Path]] = {}
    for path in sorted((root / "speech").glob("*/*.wav")):
        files.setdefault(f"{path.parent.name}/{path.stem.partition('_')[0]}", []).append(path)
    return files


def _signature(root: Path) -> str | None:
    digest = hashlib.sha256(f"recipe {_RECIPE}\n".encode())
    files = [path for paths in _recordings(root).values() for path in paths]
    for path in files:
        status = path.stat()
        digest.update(f"{path.relative_to(root)}\x1f{status.st_size}\x1f{status.st_mtime_ns}\n".encode())
    return digest.hexdigest() if files else None


def _contents(root: Path) -> Contents:
    """The spectrograms of each word and speaker."""
    recordings = _recordings(root)
    if not recordings:
        raise _missing(root)
    return Contents(
        image_shape=(1, _BANDS, 1 + _RATE // _HOP),
        names=list(recordings),
        counts=[len(files) for files in recordings.values()],
        chunks=(log_mel(torch.stack([_wave(f) for f in files])).numpy() for files in recordings.values()),
    )


def _wave(path: Path) -> Tensor:
    """One recording, shape ``(16000,)``."""
    soundfile = _needed("soundfile")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise InputError(f"expected a WAV file, could not read it ({error}); replace or remove {path}") from error
    count, channels = samples.shape
    if rate != _RATE or channels != 1 or count > _RATE:
        raise InputError(
            f"expected one channel of at most {_RATE} samples at {_RATE} Hz in {path}, got {channels} of {count} at "
            f"{rate} Hz; convert it, as by: ffmpeg -i RECORDING -ac 1 -ar {_RATE} -t 1 {path.name}"
        )
    if not samples.any():
        raise InputError(f"expected a spoken word in {path}, got silence; remove it")
    return torch.from_numpy(np.pad(samples[:, 0], (0, _RATE - count)))


def _missing(root: Path) -> InputError:
    return InputError(
        f"expected recordings {root}/speech/WORD/SPEAKER_*.wav, found none; give the folder that has them, as after "
        "unpacking the Arabic Speech Commands data set, https://doi.org/10.5281/zenodo.4662481"
    )


def _needed(name: str) -> Any:
    """The module, which is of the optional dependencies."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # soundfile raises OSError where its C library is missing
        raise InputError(
            f"expected {name} to be importable, got: {error}; try pip install 'l2l_hyper[speech]'"
        ) from error
