"""A finished run as something to hand on: its adapter or the merged model, with tokenizer and card, on the hub."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from unlora.adapter.export import check_unused, compression, export_adapter
from unlora.adapter.settings import UNLEARN
from unlora.common.errors import InputError, Problem, raise_if
from unlora.common.files import atomic_path, write_json, write_text
from unlora.models.hashes import ADAPTER_SETTINGS
from unlora.models.load import load_adapter, load_model, load_tokenizer
from unlora.pipeline.card import CARD, model_card, read_facts
from unlora.runs.folder import ADAPTER, check_adapter, saved_settings, settings_of
from unlora.runs.record import check_base
from unlora.settings import ExportConfig, ModelConfig

logger = logging.getLogger(__name__)
# Fewer ranks that put the change of the weights off by more than this give another model than the one measured.
LARGE_ERROR = 0.03


def export_run(run: str, config: ExportConfig) -> dict[str, Any]:
    """Writes a run's adapter, or its merged model, into a new folder, and uploads that if so wished.

    Args:
        run: folder of an `unlora unlearn` that has finished.
        config: what is made of it. The run itself is left as it is.

    Returns:
        "merged"; "compression", what `max_rank` cost, or None; and "url", that of the repository, or None.

    Raises:
        InputError: wrong settings, no such run, a base with other weights than the run's, one that is quantised and
            cannot be merged into, or a hub that cannot be reached or refuses. The folder is then whole, or not there.
    """
    raise_if(config.problems())
    folder, model = Path(config.output_dir), read_base(run)
    check_unused(folder, "output_dir")
    facts = read_facts(run, config) if config.card else None
    if config.push_to_hub is not None:
        raise_if(hidden_base(config, model))
        check_hub(config.push_to_hub)
    check_base(run, model, "RUN")
    with atomic_path(folder) as partial:
        cost = write_model(run, model, config, partial)
        if facts is not None:
            write_text(partial / CARD, model_card(facts, cost))
        if folder.exists():
            folder.rmdir()  # empty, as checked: a rename does not replace it on every system
    url = None if config.push_to_hub is None else push(folder, config.push_to_hub, config.private)
    return {"merged": config.merge, "compression": cost, "url": url}


def read_base(run: str) -> ModelConfig:
    """The base of a run's adapter, which holds those of earlier requests too."""
    check_adapter(run)
    model: ModelConfig = settings_of(ModelConfig, saved_settings(run, "RUN"))
    return replace(model, on=None)


def hidden_base(config: ExportConfig, model: ModelConfig) -> list[Problem]:
    """The problem of an adapter whose base nobody else can find."""
    if config.merge or config.base_model is not None or not Path(model.model_name_or_path).exists():
        return []
    reason = "the adapter would name a folder of this machine as its base, which nobody else has"
    return [Problem("base_model", None, reason, "name the base's repository on the hub, or merge")]


def write_model(run: str, model: ModelConfig, config: ExportConfig, folder: Path) -> dict[str, Any] | None:
    """Writes weights, settings and tokenizer; returns what compression cost."""
    adapter, cost = str(Path(run) / ADAPTER), None
    if config.merge:
        base, tokenizer = load_model(model)
        if getattr(base, "is_quantized", False):
            reason = "its base is quantised, and merging would round the change away"
            raise InputError(Problem("merge", True, reason, "export the adapter, or run on the base as it was trained"))
        merged: Any = load_adapter(base, adapter, argument="RUN")
        merged.merge_and_unload(progressbar=True, safe_merge=True).save_pretrained(folder)
    elif config.max_rank is not None:
        base, tokenizer = load_model(model)
        fitted: Any = load_adapter(base, adapter, UNLEARN, argument="RUN")
        export_adapter(fitted, folder, config.max_rank)
        cost = asdict(compression(fitted, config.max_rank))
        if cost["relative_error"] > LARGE_ERROR:
            logger.warning(
                "rank %s puts the change of the weights off by %.1f %%: this adapter is not the one that was measured; "
                "evaluate it with `unlora evaluate --adapter %s`, or give it more ranks",
                *(config.max_rank, 100 * cost["relative_error"], config.output_dir),
            )
    else:
        tokenizer = load_tokenizer(model)
        shutil.copytree(adapter, folder)
    if config.base_model is not None and not config.merge:
        settings = json.loads((folder / ADAPTER_SETTINGS).read_text(encoding="utf-8"))
        write_json(folder / ADAPTER_SETTINGS, {**settings, "base_model_name_or_path": config.base_model})
    tokenizer.save_pretrained(folder)
    return cost


def check_hub(repository: str) -> None:
    """Raises `InputError` for a name that is none, and where the hub does not know who is asking: before long work."""
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(Problem("push_to_hub", repository, str(error), "write it as owner/name")) from error
    with hub_errors(repository, "log in with `hf auth login`, or set HF_TOKEN; check the network and HF_ENDPOINT"):
        HfApi().whoami()


def push(folder: Path, repository: str, private: bool) -> str:
    """Uploads the folder; a repository that is there already is not made more public than it is wished to be.

    Returns:
        The repository's address.
    """
    api = HfApi()
    with hub_errors(repository, f"{folder} is complete: try again with `hf upload {repository} {folder}`"):
        url = api.create_repo(repository, private=private, exist_ok=True)
        shown = private and not api.model_info(url.repo_id).private
        if not shown:
            api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message="Upload by unlora")
    if shown:
        reason = f"it is there already, and public; {folder} was not uploaded"
        raise InputError(Problem("push_to_hub", repository, reason, "name another, or say --private false"))
    return str(url)


@contextmanager
def hub_errors(repository: str, fix: str) -> Iterator[None]:
    """Within it what the hub, or the way there, says against it becomes an `InputError`."""
    try:
        yield
    except (httpx.HTTPError, OSError, ValueError) as error:
        reason = f"the hub cannot be used ({type(error).__name__}: {str(error).splitlines()[0]})"
        raise InputError(Problem("push_to_hub", repository, reason, fix)) from error
