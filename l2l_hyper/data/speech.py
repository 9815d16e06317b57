"""Spoken words: a folder of recordings as log-mel spectrograms; words and speakers are split."""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError
from .cache import Contents, ImageSet, cache_folders, cache_of, signature_of, stored
from .folder import named_folder
from .image_benchmark import ImageBenchmark, hashed_split
from .taskset import TensorTaskset

__all__ = ["SPEECH", "WAV_FOLDER", "Recordings", "log_mel"]

_RECIPE = 1  # part of the cached file's signature: raise it when the spectrograms change
_RATE = 16_000  # samples per second, and of a recording, which takes one second
_WINDOW = 512
_HOP = 256
_BANDS = 40
_DECIBELS = 80.0  # below the loudest point, where the spectrogram is zero
_TRAIN, _VALIDATION = 0.6, 0.15  # of the words, and of the speakers


@dataclass(frozen=True)
class Recordings:
    """Spoken words as log-mel spectrograms 40x63: makes the tasksets ``speech`` and ``wav-folder:PATH``.

    Reads ``FOLDER/WORD/SPEAKER_*.wav``: mono, 16000 samples per second, at most one second (silence follows a
    shorter one). The Arabic Speech Commands data set, https://doi.org/10.5281/zenodo.4662481, has this form, and so
    has any folder of recordings with one folder per word. By ``split_seed``, 60 percent of the words and of the
    speakers are of the train taskset and 15 percent of the validation taskset; no word and no speaker is in two.

    Attributes:
        name: name of the tasksets.
        summary: one line for ``l2l-hyper list``.
        path: the folder; ``speech`` in the data root if left out.
    """

    endings: ClassVar[Sequence[str]] = (".wav",)

    name: str
    summary: str
    path: str | None = None

    def __call__(
        self,
        train_ways: int = 5,
        train_samples: int = 10,
        test_ways: int = 5,
        test_samples: int = 10,
        num_tasks: int = -1,
        root: str | os.PathLike[str] = "~/data",
        device: torch.device | str | None = None,
        *,
        split_seed: int = 0,
        rotations: bool | Literal["class", "task"] | None = None,
    ) -> tuple[TensorTaskset, ...]:
        """The train, validation and test tasksets, see :func:`l2l_hyper.data.get_tasksets`.

        Raises:
            InputError: for recordings that are missing or of another form, and tasks that they cannot give.
        """
        benchmark = ImageBenchmark(
            name=self.name, summary="", read=functools.partial(self._read, split_seed=split_seed)
        )
        return benchmark(
            train_ways,
            train_samples,
            test_ways,
            test_samples,
            num_tasks,
            root,
            device,
            split_seed=split_seed,
            rotations=rotations,
        )

    def scale(self, **options: Any) -> float:
        """What 8-bit levels are multiplied by."""
        return 1 / 255

    def sample(self, path: Path, shape: tuple[int, ...]) -> Tensor:
        """A WAV file as a sample of the tasksets; raises ``InputError`` for one that cannot be read."""
        return log_mel(_wave(path)[None])[0].float() * self.scale()

    def _read(self, root: Path, split_seed: int) -> list[ImageSet]:
        """The spectrograms of the train, validation and test taskset."""
        folder = root / "speech" if self.path is None else named_folder(self.name, self.path)
        if not folder.is_dir():
            raise _missing(folder)
        every = stored(
            self.name,
            cache_folders(root) if self.path is None else cache_of(folder),
            signature=functools.partial(_signature, folder),
            build=functools.partial(_contents, folder),
        )
        pairs = [name.split("/") for name in every.names]
        words, speakers = (
            _split({pair[i] for pair in pairs}, f"{self.name}/{what}", split_seed)
            for i, what in enumerate(("word", "speaker"))
        )
        parts = []
        for some_words, some_speakers in zip(words, speakers, strict=True):
            members: dict[str, list[NDArray[np.int64]]] = {}
            for (word, speaker), indices in zip(pairs, every.classes, strict=True):
                if word in some_words and speaker in some_speakers:
                    members.setdefault(word, []).append(indices)
            parts.append(ImageSet(every.images, list(members), [np.concatenate(m) for m in members.values()]))
        return parts


SPEECH = Recordings(
    "speech", "spoken words (Ghandoura et al. 2021): log-mel 40x63, 24/6/10 words and 18/4/8 speakers, 10 takes each"
)
WAV_FOLDER = Recordings("wav-folder", "wav-folder:PATH, your own recordings, PATH/WORD/SPEAKER_*.wav", "")


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


def _split(names: set[str], what: str, seed: int) -> list[set[str]]:
    ordered = sorted(names)
    train, validation = (round(share * len(ordered)) for share in (_TRAIN, _VALIDATION))
    return [{ordered[i] for i in part} for part in hashed_split(len(ordered), train, validation, what, seed)]


def _recordings(folder: Path) -> dict[str, list[Path]]:
    """The files of each ``WORD/SPEAKER``."""
    files: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*/*.wav")):
        files.setdefault(f"{path.parent.name}/{path.stem.partition('_')[0]}", []).append(path)
    return files


def _signature(folder: Path) -> str | None:
    files = [path for paths in _recordings(folder).values() for path in paths]
    return signature_of(files, folder, f"recipe {_RECIPE}")


def _contents(folder: Path) -> Contents:
    """The spectrograms of each word and speaker."""
    recordings = _recordings(folder)
    if not recordings:
        raise _missing(folder)
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


def _missing(folder: Path) -> InputError:
    return InputError(
        f"expected recordings {folder}/WORD/SPEAKER_*.wav, found none; give the folder that has them, as after "
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
