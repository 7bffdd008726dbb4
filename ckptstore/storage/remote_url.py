"""URLs of object stores: the bucket, the prefix and the few options that a URL may carry.

Credentials come from where the ecosystem keeps them (environment variables, profiles, the role of
the machine) and never from a URL, which ends up in logs, settings and shell histories.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from ckptstore.errors import InvalidInputError, shown

if TYPE_CHECKING:
    from collections.abc import Mapping

SCHEMES = {
    "s3": "s3",
    "s3a": "s3",
    "gs": "gs",
    "gcs": "gs",
    "az": "az",
    "azure": "az",
    "http": "http",
    "https": "https",
}
WEB = frozenset({"http", "https"})
_ENDPOINT, _REGION, _PROFILE, _ANONYMOUS, _ACCOUNT = (
    *("endpoint", "region", "profile", "anonymous", "account"),
)
# The options that are allowed for each kind of store.
OPTIONS: Mapping[str, frozenset[str]] = {
    "s3": frozenset({_ENDPOINT, _REGION, _PROFILE, _ANONYMOUS}),
    "gs": frozenset({_ENDPOINT, _ANONYMOUS}),
    "az": frozenset({_ENDPOINT, _ACCOUNT, _ANONYMOUS}),
    "http": frozenset(),
    "https": frozenset(),
}
_TRUE, _FALSE = frozenset({"1", "true", "yes"}), frozenset({"0", "false", "no", ""})


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteUrl:
    """The parts of the URL of an object store.

    Attributes:
        kind: "s3", "gs", "az", "http" or "https".
        bucket: The bucket, with "az" the container, or with "http" and "https" the server.
        prefix: What all keys begin with, without slashes around it; may be empty.
        options: The options by name, in the order of their names.
    """

    kind: str
    bucket: str
    prefix: str
    options: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Take a URL apart.

        Raises:
            InvalidInputError: It is incomplete, holds credentials, or has an unknown option. The
                message shows no part of it that may be secret.
        """
        try:
            parts = urlsplit(text)
            host, user = parts.hostname, parts.username
        except ValueError as error:
            raise InvalidInputError(f"This is no URL of an object store: {error}.") from None
        kind = SCHEMES[parts.scheme.lower()]
        is_web = kind in WEB
        place = f"{kind}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        if user is not None or "@" in parts.netloc:
            raise InvalidInputError(
                f"The URL of {place} holds credentials, which would end up in logs. "
                + (_PUBLIC if is_web else f"Pass them in {_SOURCES[kind]} instead.")
            )
        if parts.fragment:
            raise InvalidInputError(f"{shown(place)} has a #, which is not a part of a key.")
        bucket = parts.netloc
        if is_web and not host:
            raise InvalidInputError(f"{shown(place)} names no server.")
        if not is_web and (not bucket or not host or ":" in bucket):
            raise InvalidInputError(
                f"{shown(place)} names no bucket; {kind}://BUCKET/PREFIX is expected. The address "
                "of a server goes into ?endpoint=."
            )
        segments = [unquote(segment) for segment in parts.path.split("/") if segment]
        if any(segment in (".", "..") or "/" in segment for segment in segments):
            raise InvalidInputError(f"{shown(place)} has a part . or .. or %2F, which is no name.")
        if is_web and parts.query:
            raise InvalidInputError(f"The URL of {place} has a ?, which may be secret. {_PUBLIC}")
        pairs = parse_qsl(parts.query, keep_blank_values=True)
        if unknown := sorted({name for name, _ in pairs} - OPTIONS[kind]):
            raise InvalidInputError(
                f"{place} has the unknown option {shown(unknown[0])}; those of {kind}:// are "
                f"{', '.join(sorted(OPTIONS[kind]))}. Credentials go into {_SOURCES[kind]}."
            )
        url = cls(kind=kind, bucket=bucket, prefix="/".join(segments), options=dict(sorted(pairs)))
        if _ENDPOINT in url.options:
            _check_endpoint(url.options[_ENDPOINT], place)
        if url.options.get(_ANONYMOUS, "").lower() not in _TRUE | _FALSE:
            raise InvalidInputError(f"The option anonymous of {place} is neither 1 nor 0.")
        return url

    def __str__(self) -> str:
        place = f"{self.kind}://{self.bucket}"
        place += f"/{self.prefix}" if self.prefix else ""
        return f"{place}?{urlencode(self.options)}" if self.options else place

    @property
    def place(self) -> str:
        """The URL without its options, for messages."""
        return f"{self.kind}://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def is_web(self) -> bool:
        """True for a web server, which can only be read."""
        return self.kind in WEB

    @property
    def is_plain(self) -> bool:
        """True for requests without TLS."""
        return self.kind == "http" or (self.endpoint or "").startswith("http:")

    @property
    def address(self) -> str:
        """The URL with its prefix quoted, for requests to a web server."""
        return f"{self.kind}://{self.bucket}/{quote(self.prefix)}"

    @property
    def endpoint(self) -> str | None:
        """The address of the server; None for that of the provider."""
        return self.options.get(_ENDPOINT)

    @property
    def is_anonymous(self) -> bool:
        """True for requests without a signature."""
        return self.options.get(_ANONYMOUS, "").lower() in _TRUE

    @property
    def sources(self) -> str:
        """The sources of credentials of this kind of store, as part of a sentence."""
        return _SOURCES[self.kind]


_PUBLIC = "A web server is read as the public reads it; what is not public is read from its bucket."
_SOURCES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile (?profile=NAME) or the role of "
    "the machine",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS or the service account of the machine",
    "az": "AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN or the identity of the machine",
}


def _check_endpoint(endpoint: str, place: str) -> None:
    """Raise InvalidInputError for an address that is not http(s)://HOST, or holds credentials."""
    try:
        parts = urlsplit(endpoint)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname)
        is_address = is_address and parts.username is None and not parts.query
    except ValueError:
        is_address = False
    if not is_address:
        raise InvalidInputError(
            f"The option endpoint of {place} is not an address like https://HOST:PORT."
        )
