"""Export a finished run: its adapter or the merged model, with tokenizer and model card, in a folder and on the Hub."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from peft import PeftModel

from unlora.adapter.export import compression, export_adapter
from unlora.adapter.settings import UNLEARN
from unlora.common.errors import InputError, Problem, from_elsewhere, raise_if
from unlora.common.files import atomic_path, check_unused, write_json, write_text
from unlora.models.adapter_files import ADAPTER_FILES
from unlora.models.hashes import ADAPTER_SETTINGS
from unlora.models.hub import check_hub, hub_errors
from unlora.models.load import load_adapter, load_model, load_tokenizer
from unlora.models.source import source_of
from unlora.pipeline.card import CARD, NOT_OURS, model_card, published_name, read_facts
from unlora.pipeline.space import space_problems, write_space
from unlora.runs.folder import ADAPTER, check_adapter, saved_model
from unlora.runs.verify import check_base, check_recorded_adapter
from unlora.settings import ExportConfig, ModelConfig

logger = logging.getLogger(__name__)
# Above this relative error of the weight change, a compressed adapter may behave differently from what was measured.
_LARGE_ERROR = 0.03


def export_run(run: str, config: ExportConfig, trust_remote_code: bool = False) -> dict[str, Any]:
    """Write a run's adapter or its merged model into a new folder, and upload the folder if asked to.

    Args:
        run: folder of a finished `unlora unlearn`. It is not changed.
        config: what to export, and where to.
        trust_remote_code: whether the user allows code that comes with the run's model to be executed.

    Returns:
        "merged", whether the merged model was exported; "compression", the cost of `max_rank`, or None; and "url", the
        address of the repository, or None.

    Raises:
        InputError: invalid settings, no such run, an adapter or a base other than the recorded one, a quantised base
            to merge into, or a Hub that cannot be reached or denies access. In every case the folder is either
            complete or absent.
    """
    raise_if(config.problems())
    check_adapter(run)
    folder, model = Path(config.output_dir), source_of(saved_model(run, "RUN", trust_remote_code)).base
    check_unused(folder, "output_dir")
    check_recorded_adapter(run)
    facts = read_facts(run, config) if config.card else None
    if config.push_to_hub is not None or config.space:
        raise_if(_hidden_base(config, model))
    if config.space:
        raise_if(space_problems())
    if config.push_to_hub is not None:
        check_hub("push_to_hub", config.push_to_hub)
    check_base(run, model, "RUN")
    with atomic_path(folder) as partial:
        exported = partial / ADAPTER if config.space else partial
        exported.parent.mkdir(exist_ok=True)
        cost = _write_model(run, model, config, exported)
        if facts is not None:
            with from_elsewhere("RUN", run, *NOT_OURS):
                card = model_card(facts, cost)
            write_text(exported / CARD, card)
        if config.space:
            base = replace(model, model_name_or_path=config.base_model or model.model_name_or_path)
            write_space(partial, run, base, published_name(config))
        if folder.exists():
            folder.rmdir()  # it is empty, as checked above; not every system can rename onto an existing folder
    url = None if config.push_to_hub is None else _push(folder, config.push_to_hub, config.private, config.space)
    return {"merged": config.merge, "compression": cost, "url": url}


def _hidden_base(config: ExportConfig, model: ModelConfig) -> list[Problem]:
    """Return a problem if the adapter would name a base that nobody else can download."""
    if config.merge or config.base_model is not None or not Path(model.model_name_or_path).exists():
        return []
    reason = "the adapter would name a local folder as its base, which nobody else has"
    return [Problem("base_model", None, reason, "name the base's repository on the Hub, or merge")]


def _write_model(run: str, model: ModelConfig, config: ExportConfig, folder: Path) -> dict[str, Any] | None:
    """Write weights, settings and tokenizer. Return the cost of compression, or None if there was none."""
    adapter, cost = str(Path(run) / ADAPTER), None
    if config.merge:
        _write_merged(adapter, model, folder)
    elif config.max_rank is not None:
        cost = _write_compressed(adapter, model, config.max_rank, config.output_dir, folder)
    else:
        folder.mkdir()
        for name in ADAPTER_FILES:  # but no other files from that folder, because this one may be uploaded
            shutil.copyfile(Path(adapter) / name, folder / name)
    if config.base_model is not None and not config.merge:
        settings = json.loads((folder / ADAPTER_SETTINGS).read_text(encoding="utf-8"))
        write_json(folder / ADAPTER_SETTINGS, {**settings, "base_model_name_or_path": config.base_model})
    load_tokenizer(model).save_pretrained(folder)
    return cost


def _write_merged(adapter: str, model: ModelConfig, folder: Path) -> None:
    base, _ = load_model(model)
    if getattr(base, "is_quantized", False):
        reason = "its base is quantised, and merging would round most of the change away"
        raise InputError(Problem("merge", True, reason, "export the adapter, or run on the base without quantisation"))
    merged: PeftModel = load_adapter(base, adapter, argument="RUN")
    merged.merge_and_unload(progressbar=True, safe_merge=True).save_pretrained(folder)


def _write_compressed(adapter: str, model: ModelConfig, rank: int, name: str, folder: Path) -> dict[str, Any]:
    base, _ = load_model(model)
    # `export_adapter` and `compression` expect the adapter to have the name that it has during training.
    trained: PeftModel = load_adapter(base, adapter, UNLEARN, argument="RUN")
    export_adapter(trained, folder, rank)
    cost = asdict(compression(trained, rank))
    if cost["relative_error"] > _LARGE_ERROR:
        logger.warning(
            "at rank %s the weight change has a relative error of %.1f %%: this adapter is not the one that was "
            "measured; evaluate it with `unlora evaluate --adapter %s`, or export it with a larger rank",
            *(rank, 100 * cost["relative_error"], name),
        )
    return cost


def _push(folder: Path, repository: str, private: bool, space: bool) -> str:
    """Upload the folder, and return the address of the repository.

    Raises:
        InputError: the Hub cannot be reached or denies access, or `private` is true and the repository exists already
            and is public.
    """
    api, kind = HfApi(), "space" if space else "model"
    option = " --repo-type space" if space else ""
    with hub_errors(
        "push_to_hub", repository, f"{folder} is complete: try again with `hf upload {repository} {folder}{option}`"
    ):
        sdk = {"space_sdk": "gradio"} if space else {}
        url = api.create_repo(repository, private=private, exist_ok=True, repo_type=kind, **sdk)
        # `create_repo` does not change the visibility of an existing repository.
        exposed = private and not api.repo_info(url.repo_id, repo_type=kind).private
        if not exposed:
            message = "Upload by unlora"
            api.upload_folder(repo_id=url.repo_id, folder_path=folder, commit_message=message, repo_type=kind)
    if exposed:
        reason = f"the repository exists already and is public; {folder} was not uploaded"
        raise InputError(Problem("push_to_hub", repository, reason, "name another one, or set --private false"))
    return str(url)
