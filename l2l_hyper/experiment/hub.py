"""Trained learners as repositories of the Hugging Face Hub: checkpoint, configuration and model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..files import to_json, write_atomically
from .checkpoint import SUFFIX
from .trained import TrainedLearner, encoder_file, encoder_name, load, read_trained

try:
    from huggingface_hub import ModelHubMixin, snapshot_download
except ImportError as error:
    raise InputError(
        f"expected huggingface_hub to be importable, got: {error}; try pip install 'l2l_hyper[hub]'"
    ) from error

__all__ = ["OnHub", "read"]

_WEIGHTS, _CARD = f"model{SUFFIX}", "README.md"


class OnHub(ModelHubMixin):
    """A trained learner, as ``huggingface_hub`` saves, sends and fetches it.

    Attributes:
        learner: the learner.
    """

    def __init__(self, learner: TrainedLearner) -> None:
        self.learner = learner

    def _save_pretrained(self, save_directory: Path) -> None:
        learner = self.learner
        _require_kept(learner)
        write_atomically(save_directory / _CARD, _card(learner.file))
        write_atomically(save_directory / "config.json", to_json(learner.run.to_dict()))
        run, file, name = learner.run, learner.file, _WEIGHTS
        while True:  # an encoder may have one of its own
            write_atomically(save_directory / name, file.read_bytes())
            encoder = encoder_file(run, file)
            if encoder is None:
                return
            name, file = encoder_name(run), encoder
            run = read_trained(file, trust=True).run

    @classmethod
    def _from_pretrained(  # type: ignore[override]  # without the keywords that nothing would read
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        device: str,
        trust: bool,
    ) -> OnHub:
        folder = Path(model_id)
        if not folder.is_dir():
            downloaded = snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=[f"*{SUFFIX}", _CARD],
            )
            folder = Path(downloaded)
        return cls(load(folder / _WEIGHTS, device=device, trust=trust))


def read(source: str | Path, **options: Any) -> TrainedLearner:
    """See :meth:`TrainedLearner.from_pretrained`."""
    try:
        return OnHub.from_pretrained(source, **options).learner
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(
            f"expected a folder of save_pretrained or a repository of the Hugging Face Hub, got {source} ({error}); "
            "try a folder that is there, or owner/name"
        ) from error


def _require_kept(learner: TrainedLearner) -> None:
    """Raise ``InputError`` where the weights are not those that the model card is about."""
    kept, held = load(learner.file, trust=True).state_dict(), learner.state_dict()
    if kept.keys() != held.keys() or not all(torch.equal(kept[name], held[name].cpu()) for name in kept):
        raise InputError(
            f"expected the weights of {learner.file}, which its model card is about, got others: the learner has "
            "adapted or was trained further; load it again, and adapt a clone()"
        )


def _card(file: Path) -> str:
    """The model card of a checkpoint, with the name that the checkpoint has in a repository."""
    card = file.with_name(_CARD) if file.name == _WEIGHTS else file.with_suffix(".md")
    if not card.exists():
        raise InputError(f"expected the model card {card}, got none; run the comparison to its end, which writes it")
    return card.read_text(encoding="utf-8").replace(f'load("{file.name}")', f'load("{_WEIGHTS}")')
