"""The Hugging Face Hub without a network: a repository is a folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi

__all__ = ["pretend_hub"]


def pretend_hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Replace the calls that would reach the network; the revisions "main" and "v1" exist."""

    def upload(_: HfApi, *, folder_path: Path, repo_id: str, **options: Any) -> str:
        shutil.copytree(folder_path, folder / repo_id)
        return f"commit of {repo_id}"

    def download(repo_id: str, *, revision: str | None, **options: Any) -> str:
        assert revision in (None, "main", "v1")
        return str(folder / repo_id)

    monkeypatch.setattr(HfApi, "create_repo", lambda _, repo_id, **options: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", lambda **o: folder / o["repo_id"] / o["filename"])
    monkeypatch.setattr("l2l_hyper.experiment.hub.snapshot_download", download)
