"""Datasets and models on the Hugging Face Hub: downloaded once into the Hub's own cache, then read like any folder."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from worldsim.core.errors import UserError, again


def cached(repo: str, revision: str | None = None, kind: Literal["dataset", "model"] = "dataset") -> Path | None:
    """Where the Hub's cache holds a repository already; None when it does not. Contacts nothing."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, repo_type=kind, revision=revision, local_files_only=True))
    except HFValidationError as error:
        raise _no_name(repo, kind) from error
    except LocalEntryNotFoundError:
        return None


def download(repo: str, revision: str | None = None, kind: Literal["dataset", "model"] = "dataset") -> Path:
    """The repository's folder, downloaded where needed; an unchanged one is not fetched twice, an interrupted one resumes.

    Raises:
        UserError: the name is wrong, access is not granted, or the Hub cannot be reached.
    """
    import httpx
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(repo, repo_type=kind, revision=revision))
    except errors.HFValidationError as error:
        raise _no_name(repo, kind) from error
    except errors.GatedRepoError as error:
        raise UserError(f"the Hub {kind} {repo} needs its authors' permission", "hf auth login") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"the Hub {kind} {repo} has no revision '{revision}'") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"there is no {kind} {repo} on the Hub, or it is private", "hf auth login") from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, errors.OfflineModeIsEnabled) as error:
        raise _unreachable(repo, kind) from error
    except (httpx.HTTPError, ConnectionError, TimeoutError) as error:
        raise _unreachable(repo, kind) from error


def _no_name(repo: str, kind: str) -> UserError:
    if kind == "model":
        what = f"there is no folder {repo}, and it is no model name of the form owner/name on the Hub"
        return UserError(what, ["ls", Path(repo).parent])
    return UserError(f"--hf-dataset {repo} is no dataset name of the form owner/name", again(hf_dataset="owner/name"))


def _unreachable(repo: str, kind: str) -> UserError:
    return UserError(
        f"the Hub cannot be reached and its cache does not hold the {kind} {repo}",
        ["hf", "download", "--repo-type", kind, repo],
    )
