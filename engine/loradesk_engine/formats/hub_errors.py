"""huggingface_hub's errors, and those of what it speaks through, as ours."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from loradesk_engine.errors import HubError


def network_errors() -> tuple[type[Exception], ...]:
    """What is raised where nobody answers, or too late."""
    return (_http().TransportError,)


@contextmanager
def hub_errors(repo: str, revision: str | None) -> Iterator[None]:
    """huggingface_hub's errors as ours.

    Raises:
        HubError: names the repository and what to do.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        raise HubError(
            "The repository is gated.",
            file=repo,
            remedy="Accept its terms on its page, then give an access token (or set HF_TOKEN).",
        ) from None
    except RevisionNotFoundError:
        raise HubError("The repository has no such revision.", file=repo, field=revision) from None
    except RepositoryNotFoundError:
        raise HubError(
            "No such repository, or it is private.", file=repo, remedy="Check the id, or give an access token."
        ) from None
    except LocalEntryNotFoundError:
        raise HubError(
            "The download failed, and the file is not in the cache.", file=repo, remedy="Try again."
        ) from None
    except EntryNotFoundError as problem:
        raise HubError(f"A file is missing: {problem}.", file=repo) from None
    except HfHubHTTPError as problem:
        if problem.response is not None and problem.response.status_code in (401, 403):
            raise HubError(
                "The hub refuses the access token.",
                file=repo,
                field="token",
                remedy="Give one that is valid and may read this repository (or set HF_TOKEN).",
            ) from None
        raise HubError(f"The hub cannot answer: {problem}", file=repo, remedy="Try again later.") from None
    except _http().HTTPError as problem:
        raise HubError(f"The hub cannot be reached: {problem}", file=repo, remedy="Check the network.") from None
    except OSError as problem:
        raise HubError(f"The download cannot be stored: {problem}.", file=repo) from problem


def _http() -> Any:
    """What huggingface_hub speaks through: httpx, or httpx2 from its version 2 on."""
    from huggingface_hub.errors import HfHubHTTPError

    # the library's own error is what huggingface_hub's is made from: what else is installed does not tell
    base = HfHubHTTPError.__mro__[1]
    return importlib.import_module(base.__module__.partition(".")[0])
