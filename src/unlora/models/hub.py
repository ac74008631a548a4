"""Check access to the Hub before an upload, and turn its errors into `InputError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from unlora.common.errors import InputError, Problem


def check_hub(argument: str, repository: str) -> None:
    """Raise `InputError` if the repository name is invalid or the user is not logged in to the Hub."""
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise InputError(Problem(argument, repository, str(error), "write it as owner/name")) from error
    fix = "log in with `hf auth login`, or set HF_TOKEN; check the network and HF_ENDPOINT"
    with hub_errors(argument, repository, fix):
        HfApi().whoami()


@contextmanager
def hub_errors(argument: str, repository: str, fix: str) -> Iterator[None]:
    """Turn errors of the Hub and of the network into `InputError`."""
    try:
        yield
    except (HTTPError, OSError, ValueError) as error:
        reason = f"the Hub cannot be used ({type(error).__name__}: {str(error).splitlines()[0]})"
        raise InputError(Problem(argument, repository, reason, fix)) from error
