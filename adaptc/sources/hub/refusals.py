"""Why the hub does not give a file: what its library raises, as a line with a remedy."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR
from typing import Any

from adaptc.errors import LoadError, one_line
from adaptc.sources.hub.names import HubName

_LOGIN = "hf auth login"
_BUSY = (408, 429, 500, 502, 503, 504)


@contextmanager
def hub_refusals(origin: str, name: HubName) -> Iterator[None]:
    """Make one line of whatever the hub's library raises, and keep it from saying so in its own way.

    Args:
        origin: The model's name in the spec, for errors.
        name: What is asked for.

    Raises:
        LoadError: the library raised something.
    """
    from huggingface_hub import errors
    from huggingface_hub.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(ERROR)
    try:
        yield
    except (OSError, ValueError, errors.RevisionResolutionError) as error:
        raise LoadError(f"{origin}: {_why(error, name)}") from error
    except Exception as error:
        # Errors of the connection are those of an HTTP client that is not ours to name.
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "requests"):
            raise
        raise LoadError(f"{origin}: {_unreachable(error)}") from error
    finally:
        logging.set_verbosity(level)


def _why(error: BaseException, name: HubName) -> str:
    """The sentence for an error."""
    from huggingface_hub import errors

    causes = list(_causes(error))
    if any(isinstance(each, errors.OfflineModeIsEnabled) for each in causes):
        return _offline(name)
    error = next((each for each in causes if isinstance(each, errors.HfHubHTTPError)), error)
    status = _status(error)
    match error:
        case errors.GatedRepoError():
            where = f"give it on the model's page, {_page(name)}"
            return f"its owner asks for consent to terms ({status}): {where}; then `{_LOGIN}`"
        case errors.DisabledRepoError():
            return f"the hub has disabled this repository ({status}); another model is right"
        case errors.RevisionNotFoundError() | errors.RevisionResolutionError():
            return f"the hub's repository has no revision {name.revision!r}; {_page(name)} lists its branches and tags"
        case errors.RepositoryNotFoundError():
            return (
                f"no such folder here, and no such repository on the hub ({status}); if it is private, `{_LOGIN}` with "
                "an account that may read it"
            )
        case errors.RemoteEntryNotFoundError():
            return f"the hub's repository has no {name.file or 'such file'}; {_page(name)} lists its files"
        case errors.HFValidationError():
            return f"no name of a repository; org/name is right ({one_line(error)[:100]})"
        case errors.HfHubHTTPError():
            return _answered(status)
        case OSError(errno=errno.ENOSPC | errno.EDQUOT | errno.EACCES | errno.EROFS):
            return f"the hub's cache, {cache_folder()}: {error.strerror}; HF_HUB_CACHE names another folder"
        case _ if "size" in str(error) and "Consistency" in str(error):
            return "the hub sent less than the whole of a file; the same command tries again"
        case _:
            return _offline(name) if _is_offline() else _unreachable(error)


def _answered(status: int) -> str:
    if status in (401, 403):
        return f"the hub refuses it ({status}); `{_LOGIN}` with a token that may read this repository is right"
    later = "; try again later" if status in _BUSY else ""
    return f"the hub answers {status}{later}"


def _unreachable(error: BaseException) -> str:
    from huggingface_hub import constants

    deepest = list(_causes(error))[-1]
    said = one_line(deepest)[:100] or type(deepest).__name__
    return (
        f"no such folder here, not in the hub's cache, and the hub cannot be reached: {constants.ENDPOINT}: {said}; "
        "files that are whole by now are kept for the next try"
    )


def _offline(name: HubName) -> str:
    return (
        f"no such folder here, not whole in the hub's cache ({cache_folder()}), and HF_HUB_OFFLINE is set; without it, "
        f"or after `hf download {name.repository}` where there is a network, it is found"
    )


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cache_folder() -> str:
    """Return the folder of the hub's cache: `HF_HUB_CACHE`, or `hub` in `HF_HOME`."""
    from huggingface_hub import constants

    return str(constants.HF_HUB_CACHE)


def _page(name: HubName) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{name.repository}"


def _status(error: BaseException) -> int:
    """The number of the hub's answer; 0 where there was none."""
    response: Any = getattr(error, "response", None)
    return int(getattr(response, "status_code", 0) or 0)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from, the deepest last."""
    at: BaseException | None = error
    for _ in range(10):
        if at is None:
            return
        yield at
        at = at.__cause__ or at.__context__
