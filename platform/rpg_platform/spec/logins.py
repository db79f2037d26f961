"""Logins that stand in an address: taken out where the address enters, kept in this process's memory and nowhere else.

Everything that is written, pickled, printed or sent on has the address without its login; only whoever connects asks
for it with ``with_login``.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlsplit

_LOGINS: dict[str, str] = {}
# Up to the last @ of a word: a password may hold / and @ where nobody escaped them.
_IN_TEXT = re.compile(r"(?<=://)[^\s'\"<>]*@")
_SECRET = r"[\w-]*(?:secret|passw|token|key)[\w-]*|sig|sas"
_PARAMETER = re.compile(rf"(?<=[?&])({_SECRET})=[^\s'\"<>&]*", re.IGNORECASE)
_KEYS_ALONE = ("s3", "gs", "gcs")  # in these, what stands before the bucket is a login, and no bucket has a port


def take_login(uri: str) -> str:
    """An address without the login that stands in it, which ``with_login`` gives back.

    Raises:
        ValueError: it holds a / ? or # that is not escaped, so that it is not clear where the host begins. The message
            does not show the login.
    """
    parts = urlsplit(uri)
    login, at, host = parts.netloc.rpartition("@")
    if not at:
        if "@" in uri and not re.fullmatch(r"[^:]*(:\d*)?|\[.*", host):
            raise ValueError(
                "the user or password in it holds a character that has a meaning in an address: write it escaped "
                "(/ as %2F, ? as %3F, # as %23)"
            )
        return uri
    clean = uri.replace(f"//{parts.netloc}", f"//{host}", 1)
    _LOGINS[clean] = login
    return clean


def refuse_login(storage: str) -> str:
    """Gives a storage back, and refuses an address with a password or a key: all files of a sweep would keep it.

    Raises:
        ValueError: says where the login belongs. The message shows nothing of it.
    """
    if "://" not in storage:
        return storage
    parts = urlsplit(storage)
    login, _, host = parts.netloc.rpartition("@")
    keys = parts.scheme.rpartition("+")[2] in _KEYS_ALONE
    port = "" if keys else r"(:\d*)?"
    if (
        login.partition(":")[2]
        or (keys and login not in ("", "anonymous"))
        or not re.fullmatch(rf"[^:]*{port}|\[.*", host)
        or any(re.fullmatch(_SECRET, name, re.IGNORECASE) or "@" in value for name, value in parse_qsl(parts.query))
    ):
        raise ValueError(
            "holds a login, which the files of the sweep would keep: take it out, and put it where the storage's "
            "client looks for one on each machine, in the environment (for S3 AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY) or a profile"
        )
    return storage


def has_login(uri: str) -> bool:
    """Whether an address that was given had a login, which this process still has."""
    return uri in _LOGINS


def with_login(uri: str) -> str:
    """The address to connect to: with the login that it came with, if this process was given one."""
    login = _LOGINS.get(uri)
    return uri if login is None else uri.replace("://", f"://{login}@", 1)


def without_login(text: str) -> str:
    """A text to show or keep, with whatever stands in its addresses as user and password hidden."""
    for login in _LOGINS.values():
        text = text.replace(f"://{login}@", "://***@")
    return _PARAMETER.sub(r"\1=***", _IN_TEXT.sub("***@", text))
