"""WebStorage: a repository that a web server publishes, which can only be read.

The server need know nothing of repositories: any that serves the files of a folder will do. Ranges
are used where it has them. Folders are listed by the pages that many servers make of them (the
autoindex of nginx and Apache, `python -m http.server`); where there are none, `list` raises
UnlistedError, and callers find what they need by names that they know. See docs/adr/0064.
"""

from __future__ import annotations

import secrets
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import unquote, urljoin, urlsplit

from ckptstore.errors import CorruptError, InvalidInputError, NotFoundError
from ckptstore.storage.protocol import Listed, UnlistedError, check_key, first_part
from ckptstore.storage.remote import RemoteStorage
from ckptstore.storage.requests import RefusedError, wait

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from typing_extensions import Buffer

    from ckptstore.storage.diskless import StagedCopy
    from ckptstore.storage.protocol import Seen

PAGE_BYTES_MAX = 64 << 20  # of a folder: half a million names


class WebStorage(RemoteStorage):
    """Bytes by key, below a URL of a web server; every attempt to write is refused."""

    _is_honest = False  # about what is missing, as far as it was asked
    _may_list = True  # until it is known that the server does not
    _witness = ""  # a key of the outermost folder that is there

    def get(self, key: str, *, bytes_max: int) -> bytes:
        """Return all bytes of a key."""
        data = super().get(key, bytes_max=bytes_max)
        if "/" not in key:
            self._witness = key
        return data

    def size(self, key: str) -> int | None:
        """Return the size of a key, or None. A server that finds everything is refused."""
        if not self._is_honest:
            if super().size(f"missing-{secrets.token_hex(8)}") is not None:
                raise RefusedError(
                    f"{self._url.place} is on a server that answers with a page, instead of 404, "
                    "for what is missing. Have it answer 404."
                )
            self._is_honest = True
        return super().size(key)

    def list(self, prefix: str) -> Iterator[Listed]:
        """List every key under a folder; UnlistedError where the server lists no folders."""
        names = self._names("") if self._may_list else set()
        self._may_list = bool(self._witness) and self._witness in names
        if not self._may_list:
            raise self._unlisted()
        if not prefix or f"{first_part(prefix)}/" in names:
            yield from self._below(prefix)

    def prepare(self, keys: Collection[str]) -> None:  # noqa: ARG002
        """Refuse to hold a new repository."""
        self._refuse()

    def put(self, key: str, data: Buffer) -> None:  # noqa: ARG002
        """Refuse to write."""
        self._refuse()

    def stage(self, data: Buffer, *, seen: Seen | None = None) -> StagedCopy:  # noqa: ARG002
        """Refuse to write."""
        self._refuse()

    def copy(self, key: str, to: str) -> None:  # noqa: ARG002
        """Refuse to write."""
        self._refuse()

    def create(self, key: str, data: Buffer, *, seen: Seen | None = None) -> bool:  # noqa: ARG002
        """Refuse to write."""
        self._refuse()

    def delete(self, keys: Iterable[str]) -> None:
        """Refuse to delete anything."""
        if list(keys):
            self._refuse()

    def now(self) -> float:
        """Refuse to put what a time would be read from."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise RefusedError(
            f"{self._url.place} is published by a web server, which can only be read. Write to the "
            "folder or bucket behind it, or to a clone."
        )

    def _unlisted(self) -> UnlistedError:
        return UnlistedError(
            f"{self._url.place} is on a web server that lists no folders, which this needs. Turn "
            "its listings on (autoindex), or do this in a clone."
        )

    def _below(self, prefix: str) -> Iterator[Listed]:
        for name in sorted(self._names(prefix)):
            if name.endswith("/"):
                yield from self._below(prefix + name)
            else:
                yield _Found(self, prefix + name)

    def _names(self, folder: str) -> set[str]:
        """The names in a folder, those of folders with a slash, by the page that lists them."""

        def get() -> bytes:
            result = self._ask("get_async", self._quick, folder)
            is_listing = _is_page(result) and result.meta["size"] <= PAGE_BYTES_MAX
            return bytes(wait(result.bytes_async)) if is_listing else b""

        try:
            page: bytes = self._tried(get, folder)
        except (NotFoundError, RefusedError):
            page = b""
        if not page:
            self._may_list = self._may_list and bool(folder)
            raise self._unlisted()
        return _names_in(page.decode("utf-8", "replace"))

    def _check_result(self, result: Any, key: str) -> None:
        """Raise CorruptError for a web page in place of the bytes of a key."""
        if _is_page(result):
            raise CorruptError(
                f"{key} in {self._url.place} came as a web page, such as a server sends for a "
                "missing file or before a login, and not as the bytes that were stored."
            )


class _Found(Listed):
    """A key whose size and time are asked for when they are wanted, as pages do not show them."""

    _storage: WebStorage
    _size: int | None

    def __new__(cls, storage: WebStorage, key: str) -> _Found:
        """Make an entry."""
        made = super().__new__(cls, key, 0, 0.0)
        made._storage, made._size = storage, None
        return made

    @property
    def size(self) -> int:
        """The size, by a request."""
        if self._size is None:
            self._size = self._storage.size(self.key) or 0
        return self._size

    @property
    def modified(self) -> float:
        """0, as no age is taken where nothing is deleted."""
        return 0.0


class _Links(HTMLParser):
    """The links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the target of a link."""
        self.targets += [value for name, value in attrs if (tag, name) == ("a", "href") and value]


def _names_in(page: str) -> set[str]:
    """The names of files and folders that a page links to beside it, as far as they are keys."""
    links = _Links()
    links.feed(page)
    base = "http://server/folder/"
    names: set[str] = set()
    for target in links.targets:
        try:
            parts = urlsplit(urljoin(base, target))
            name = unquote(parts.path.removeprefix("/folder/"))
            is_beside = parts.netloc == "server" and parts.path.startswith("/folder/")
            if is_beside and not parts.query:
                names.add(check_key(name.removesuffix("/")) + "/" * name.endswith("/"))
        except (ValueError, InvalidInputError):
            continue
    return names


def _is_page(result: Any) -> bool:
    kind = result.attributes.get("Content-Type", "")
    return str(kind).partition(";")[0].strip().lower() in ("text/html", "application/xhtml+xml")
