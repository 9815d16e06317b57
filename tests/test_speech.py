"""Spoken words: spectrograms against slow numpy, splits of words and speakers, the cache, and what cannot be read."""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import soundfile
import torch
from ondisk import SPEAKERS, TIME, WORDS, make_speech, tone

from l2l_hyper.data import TASKSETS, TensorTaskset, get_tasksets
from l2l_hyper.data import speech as module
from l2l_hyper.data.speech import log_mel
from l2l_hyper.errors import InputError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    make_speech(root)
    return root


def tasksets(root: Path, **options: object) -> list[TensorTaskset]:
    return list(get_tasksets("speech", 3, 1, 3, 1, root=root, **options))  # type: ignore[arg-type]


def slow_log_mel(wave: np.ndarray) -> np.ndarray:
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), 42) / 2595) - 1)
    padded = np.concatenate([np.zeros(256), wave, np.zeros(256)])
    n = np.arange(512)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / 512)
    hertz = np.arange(257) * 16000 / 512
    dft = np.exp(-2j * np.pi * np.outer(np.arange(257), n) / 512)
    power = np.zeros((40, 63))
    for t in range(63):
        spectrum = np.abs(dft @ (hann * padded[256 * t : 256 * t + 512])) ** 2
        for band, (low, middle, high) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
            triangle = np.minimum((hertz - low) / (middle - low), (high - hertz) / (high - middle))
            power[band, t] = np.maximum(triangle, 0) @ spectrum
    decibels = np.maximum(10 * np.log10(np.maximum(power, 1e-300) / power.max()), -80)
    return np.round(255 * (decibels + 80) / 80)


def test_log_mel_is_that_of_slow_numpy() -> None:
    noise = np.random.default_rng(0).standard_normal(16000) * np.linspace(1e-5, 0.3, 16000) ** 2
    wave = np.sin(2 * np.pi * (300 + 2000 * TIME) * TIME) * (TIME > 0.25) + noise
    levels = log_mel(torch.from_numpy(wave)[None])
    assert levels.dtype == torch.uint8 and levels.shape == (1, 1, 40, 63)
    np.testing.assert_array_equal(levels[0, 0].numpy(), slow_log_mel(wave))
    assert 0 in levels and 255 in levels
    torch.testing.assert_close(log_mel(torch.from_numpy(0.01 * wave)[None]), levels, rtol=0, atol=0)


def test_no_word_and_no_speaker_is_in_two_splits(root: Path) -> None:
    pairs = [(word, speaker) for word in range(20) for speaker in range(10)]
    known = log_mel(torch.from_numpy(np.stack([tone(*pair) for pair in pairs]))).flatten(1) / 255
    drawn_words, drawn_speakers = [], []
    for taskset, words, speakers in zip(tasksets(root), (12, 3, 5), (6, 2, 2), strict=True):
        assert taskset.num_classes == words and taskset.samples_per_class == 2 * speakers
        assert taskset.class_names is not None and taskset.sample_shape == (1, 40, 63)
        images, labels = taskset.classified(range(400))
        drawn = [pairs[i] for i in torch.cdist(images.flatten(1), known).argmin(1)]
        assert [WORDS[word] for word, _ in drawn] == [taskset.class_names[label] for label in labels]
        drawn_words.append({word for word, _ in drawn})
        drawn_speakers.append({speaker for _, speaker in drawn})
        assert (len(drawn_words[-1]), len(drawn_speakers[-1])) == (words, speakers)
    assert set.union(*drawn_words) == set(range(20)) and set.union(*drawn_speakers) == set(range(10))
    assert tasksets(root)[2].class_names != tasksets(root, split_seed=1)[2].class_names


def test_spectrograms_are_kept_until_a_recording_changes(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "speech", tmp_path / "speech")
    before = tasksets(tmp_path)[0].x.clone()
    with mock.patch.object(module, "log_mel", side_effect=AssertionError("read again")):
        assert torch.equal(tasksets(tmp_path)[0].x, before)
    soundfile.write(tmp_path / "speech" / WORDS[0] / f"{SPEAKERS[0]}_NO_00.wav", tone(19, 9)[:8000], 16000)
    changed = (tasksets(tmp_path)[0].x != before).flatten(1).any(1)
    assert changed.nonzero().flatten().tolist() == [0]


def test_what_cannot_be_read_is_an_error_with_the_name_of_the_file(root: Path, tmp_path: Path) -> None:
    for missing in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match=r"/speech/WORD/SPEAKER_\*.wav, found none.*zenodo.4662481"):
            tasksets(missing)
    assert not list(tmp_path.iterdir())
    path = tmp_path / "speech" / "word" / "a_1.wav"
    path.parent.mkdir(parents=True)
    for samples, rate, message in (
        (tone(1, 1), 8000, "expected one channel .* at 16000 Hz in .*a_1.wav, got 1 of 16000 at 8000 Hz"),
        (np.tile(tone(1, 1), 2), 16000, "got 1 of 32000"),
        (np.stack([tone(1, 1)] * 2, 1), 16000, "got 2 of 16000"),
        (np.zeros(16000), 16000, "a_1.wav, got silence"),
    ):
        soundfile.write(path, samples, rate)
        with pytest.raises(InputError, match=message):
            tasksets(tmp_path)
    path.write_bytes(b"no recording")
    with pytest.raises(InputError, match="could not read it .* replace or remove .*a_1.wav"):
        tasksets(tmp_path)
    with mock.patch.dict("sys.modules", soundfile=None), pytest.raises(InputError, match=r"l2l_hyper\[speech\]"):
        tasksets(tmp_path)
    with pytest.raises(InputError, match="silence or values"):
        log_mel(torch.zeros(1, 16000))
    with pytest.raises(InputError, match=r"shape \(N, 16000\), got \(16000,\)"):
        log_mel(torch.zeros(16000))
    with pytest.raises(InputError, match="rotations need square images"):
        tasksets(root, rotations="class")


def test_any_folder_of_recordings_is_read_the_same_way(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own, theirs = get_tasksets(f"wav-folder:{root / 'speech'}", 3, 1, 3, 1), tasksets(root)
    for mine, other in zip(own, theirs, strict=True):
        assert torch.equal(mine.x, other.x) and mine.num_classes == other.num_classes  # type: ignore[attr-defined]
    path = root / "speech" / WORDS[7] / f"{SPEAKERS[2]}_NO_01.wav"
    sample = TASKSETS["speech"].sample(path, (1, 40, 63), {})
    assert any(torch.equal((255 * sample).round(), image) for image in theirs[0].x)
    with pytest.raises(InputError, match="expected a folder in wav-folder:PATH, got 'none'"):
        get_tasksets("wav-folder:none")
