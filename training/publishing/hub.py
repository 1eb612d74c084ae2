"""The way of a folder to the Hugging Face hub, in one commit."""

import re
import shlex
from pathlib import Path

from training.runtime.errors import InputError

LOG_IN = "log in with hf auth login, or set HF_TOKEN"


def check_push(repository: str) -> None:
    """Raise an `InputError` now if `push` could not even begin later: for the name, the token or the offline mode."""
    from huggingface_hub import constants, get_token

    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repository, re.ASCII):
        raise InputError(f"--push_to_hub takes OWNER/NAME, got {repository}")
    if constants.HF_HUB_OFFLINE:
        raise InputError("--push_to_hub needs the network, and offline mode (HF_HUB_OFFLINE) is on")
    if get_token() is None:
        raise InputError(f"--push_to_hub {repository} needs a token of the hub that may write: {LOG_IN}")


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Make a repository for a model on the hub, unless there is one, and commit all files of a folder to it at once.

    Args:
        folder: What to commit; it stays as it is.
        repository: OWNER/NAME.
        private: Whether a repository that is made is for its owner alone.

    Returns:
        Where it is.

    Raises:
        InputError: The hub cannot be reached, or refuses; the message says what to do.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants

    api = HfApi(endpoint=constants.ENDPOINT)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    additions = [CommitOperationAdd(path.relative_to(folder).as_posix(), str(path)) for path in files]
    try:
        url = api.create_repo(repository, private=private or None, exist_ok=True)
        api.create_commit(repository, additions, commit_message=f"Upload {folder.resolve().name}")
    except Exception as error:  # The client's errors have no common class.
        fault = _in_our_words(repository, error)
        # Without it the upload would make the repository for all to see.
        again = shlex.join(["hf", "upload", repository, str(folder), *(["--private"] if private else [])])
        raise InputError(f"{fault}; {folder} is written: {again} tries again") from error
    return str(url)


def _in_our_words(repository: str, error: Exception) -> str:
    """What to do about an error of the client."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.HfHubHTTPError):
        code = error.response.status_code
        if code == 401:
            return f"{constants.ENDPOINT} does not know the token: {LOG_IN}"
        if code in (403, 404):
            return f"the token may not write to {repository}: take one with that right, or another OWNER/NAME"
        return f"{constants.ENDPOINT} answers {code} to the upload to {repository}: try again later"
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()
    if isinstance(error, ValueError):
        return f"{constants.ENDPOINT} refuses what is to be uploaded to {repository} ({reason})"
    return f"cannot upload to {repository} at {constants.ENDPOINT} ({reason}): check the network"
