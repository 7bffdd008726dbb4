"""The errors of an object store's client as errors of this package.

The client's own text holds the whole answer of the server, which may repeat the session token of a
request. So no error is chained to it, and of an answer only the code is shown.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ckptstore.errors import NotFoundError, StorageError, first_line
from ckptstore.storage.requests import RefusedError

if TYPE_CHECKING:
    from ckptstore.storage.remote_url import RemoteUrl

_CODE = re.compile(r"<Code>(\w+)</Code>")
_STATUS = re.compile(r"Server returned non-2xx status code: (\d{3})")
_OUTSIDE = re.compile("416.*InvalidRange|Wanted range starting at", re.DOTALL)  # some clip a range
_TIME = (
    "the signature is too old or too new for the server. Set the clock of this machine. If it is "
    "right, the process stood still: retry."
)
_SESSION = "the session token has expired or is not valid. Renew the credentials in {sources}."
_SIGNATURE = (
    "the signature is wrong: the secret key does not belong to the access key, or a proxy changes "
    "the requests. Check {sources}."
)
_ACCESS_KEY = "the server does not know the access key. Check {sources}."
# By the code of the answer. An error of authorization with another code, or with none as after a
# HEAD, is reported in general terms.
_REFUSALS = {
    "RequestTimeTooSkewed": _TIME,
    "RequestExpired": _TIME,
    "ExpiredToken": _SESSION,
    "InvalidToken": _SESSION,
    "TokenRefreshRequired": _SESSION,
    "SignatureDoesNotMatch": _SIGNATURE,
    "AuthenticationFailed": _SIGNATURE,
    "InvalidAccessKeyId": _ACCESS_KEY,
}
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
# The services of clouds that give out the credentials of a machine: where the client looks last.
_METADATA = ("169.254.", "/latest/api/token", "/latest/meta-data/")


class RangeError(RefusedError):
    """A range that begins behind the end of an object."""


def translated(
    error: Exception, url: RemoteUrl, key: str = "", *, to: bool = False
) -> StorageError | NotFoundError:
    """An error of the client as one of this package.

    Args:
        error: The error.
        url: The place that was asked.
        key: The key that the request was for, if it was for one.
        to: The request puts the key, so an error "not found" means the bucket.
    """
    from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

    if isinstance(error, StorageError):
        return error
    text = str(error)
    if _OUTSIDE.search(text):
        return RangeError(f"{key} in {url.place} is shorter than expected.")
    code, status = _found(_CODE, text), _found(_STATUS, text)
    is_missing = isinstance(error, FileNotFoundError)
    is_listing = status == "404" and "list request" in text  # of an empty place it is no error
    if code in _NO_BUCKET or is_listing or (is_missing and to):
        kind = "container" if url.kind == "az" else "bucket"
        return RefusedError(f"There is no {kind} {url.bucket!r}. Make it first.")
    if is_missing:
        return missing(key, url)
    what = f"{key} in {url.place}" if key else url.place
    if code in _REFUSALS:
        said = _REFUSALS[code].format(sources=url.sources)
        return RefusedError(f"{what} could not be used ({code}): {said}")
    is_denied = isinstance(error, (PermissionDeniedError, UnauthenticatedError))
    is_denied = is_denied or status in ("401", "403") or (status == "400" and "HEAD" in text)
    if is_denied and url.is_web:
        return RefusedError(f"{url.place} does not let the public read {key or 'it'}.")
    if is_denied or any(place in text for place in _METADATA):
        shown = f" ({code})" if code else ""
        return RefusedError(
            f"{what} may not be used with these credentials{shown}, or there are none. Pass them "
            f"in {url.sources}."
        )
    final = status == "501"  # a request that the server does not know
    return (RefusedError if final else StorageError)(f"{what} could not be used: {reason(error)}")


def missing(key: str, url: RemoteUrl) -> NotFoundError:
    """The error for a key that is not there."""
    return NotFoundError(f"{key} is not in {url.place}.")


def reason(error: Exception) -> str:
    """The first line of an error of the client, with the code in place of the server's answer.

    The client goes on with pages of its own types.
    """
    said, is_cut, _ = first_line(error).partition("<")
    code = _found(_CODE, str(error)) if is_cut else ""
    return f"{said.rstrip(' :.')}{f': {code}' if code else ''}."


def _found(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return match[1] if match else ""
