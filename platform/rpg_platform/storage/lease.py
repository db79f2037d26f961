"""A lease on a sweep in an object store: one small object there, which its driver writes again and again.

Each write carries a condition ("if it is not there", "if it is still as I left it"), so that of two drivers one wins,
wherever they run. pyarrow, through which everything else of a sweep is read and written, has no such writes; obstore
has them for Amazon's, Google's and Microsoft's stores and for servers that speak S3.

- A driver writes its lease anew four times in the time that it lasts. Whoever finds one older than that takes it over.
  Its age is told by the storage's clock alone: machines' clocks differ.
- A driver that could not write it for that long does not know whether it still has the sweep. Until it knows, it writes
  nothing into the sweep's folder, sends nothing to MLflow and lets no trial go on (``wait``). If nobody has taken the
  sweep meanwhile, it goes on; else it has lost it, and ends.
- Not every server keeps the conditions that it is sent, so this is tried first (``_probe``).
"""

from __future__ import annotations

import functools
import importlib.util
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs
from uuid import uuid4

from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import from_url

from rpg_platform.storage.heartbeat import has_ended, in_words, this_process

if TYPE_CHECKING:
    from obstore import PutMode
    from obstore.store import ObjectStore

logger = logging.getLogger(__name__)
LEASE_FILE = "driver.lease"
FORMAT = 1
LASTS = "RPG_LEASE_S"
"""Environment variable: seconds that a lease lasts without being renewed."""
LASTS_S = 60.0
_SHORTEST_S = 2.0
_RENEWALS = 4  # in the time that it lasts
_STORAGE_CLOCK_S = 1.0  # storages say times in whole seconds
_LOOK_S, _AGAIN_S = 0.2, 0.5
_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss")
_REQUEST_S = 10.0
_NOT_AS_ASKED = (AlreadyExistsError, PreconditionError, FileNotFoundError)
_now_s = functools.partial(time.clock_gettime, time.CLOCK_BOOTTIME)  # goes on while a machine sleeps


class LeaseHeldError(ValueError):
    """Another driver has the sweep; the message says which."""


class NoLeaseError(ValueError):
    """There can be no lease on this storage; the message says why."""


class LeaseLostError(ValueError):
    """Another driver has taken the sweep over, or nobody knows whether one has; this one has to end."""


class Lease:
    """A sweep's lease, taken and renewed by one driver.

    Args:
        address: URI of the sweep's folder, as pyarrow takes it.
        region: where its bucket lies, as pyarrow has found out; None: it has no say in that.

    Raises:
        NoLeaseError: this kind of storage has none.
        ValueError: ``RPG_LEASE_S`` is no number of seconds.
    """

    def __init__(self, address: str, region: str | None = None) -> None:
        self.address, self.lasts_s = address, _lasts_s()
        self._store = _store_of(address, region)
        self._holder = uuid4().hex
        self._writes = 0
        self._version: PutMode = "create"
        self._sure_until = 0.0
        self._problem = ""
        self._lost: str | None = None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    # --- taking and giving back

    def take(self) -> bool:
        """Takes the lease, and renews it from now on.

        Returns:
            Whether it was that of a driver which has died; its heartbeat may still look alive.

        Raises:
            LeaseHeldError: another driver has it.
            NoLeaseError: the storage ignores conditions, or cannot be written to.
        """
        try:
            now_s = self._probe()
            found = self._read()
        except (BaseError, OSError) as error:
            raise NoLeaseError(_short(error)) from error
        if found is not None:
            content, self._version, written_s = found
            if not _is_over(content, now_s - written_s):
                raise LeaseHeldError(_words(content, now_s - written_s))
        try:
            self._write()
        except (*_NOT_AS_ASKED, BaseError, OSError) as error:
            raise LeaseHeldError(f"another driver that has begun at the same moment ({_short(error)})") from error
        self._thread = threading.Thread(target=self._renew_for_ever, name="rpg-lease", daemon=True)
        self._thread.start()
        return found is not None and not found[0]["released"]

    def give_back(self) -> None:
        """Lets the next driver take it at once."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(2 * _REQUEST_S)
        if self._lost is None:
            with suppress(BaseError, OSError, *_NOT_AS_ASKED):  # else it runs out by itself
                self._write(released=True)

    # --- having it

    @property
    def is_sure(self) -> bool:
        """Whether nobody else can have the sweep now."""
        return self._lost is None and _now_s() < self._sure_until

    @property
    def is_lost(self) -> bool:
        """Whether another driver has taken the sweep over, or this one gave it up while nobody could know."""
        return self._lost is not None

    def check(self) -> None:
        """Raises LeaseLostError unless nobody else can have the sweep now."""
        if not self.is_sure:
            raise LeaseLostError(self._lost or self._doubt())

    def wait(self, give_up: Callable[[], bool], tell: Callable[[str], None]) -> None:
        """Returns when nobody else can have the sweep, which is at once as a rule.

        Args:
            give_up: whether the user wants the sweep to end meanwhile.
            tell: told once that this waits, and that it goes on.

        Raises:
            LeaseLostError: another driver has it, or the user wants no more of it.
        """
        if self._is_in_doubt():
            tell(f"{self._doubt()}. The sweep waits until it knows that no other driver has taken it over.")
            while self._is_in_doubt():
                if give_up():
                    self._lost = f"{self._doubt()}, and the sweep was asked to end: nothing more was saved"
                time.sleep(_LOOK_S)
            if self.is_sure:
                tell(f"{LEASE_FILE} is renewed, nobody has taken the sweep over: it goes on")
        self.check()

    def _is_in_doubt(self) -> bool:
        return not (self.is_sure or self.is_lost)

    def _doubt(self) -> str:
        silent = _now_s() - self._sure_until + self.lasts_s
        return f"{self.address}/{LEASE_FILE} could not be renewed for {silent:.0f} s ({self._problem or 'no answer'})"

    def _renew_for_ever(self) -> None:
        while not self._ended.wait(self.lasts_s / _RENEWALS if self.is_sure else _AGAIN_S):
            try:
                self._renew()
                self._problem = ""
            except Exception as error:  # the storage is away for a moment
                self._problem = _short(error)
                logger.debug("lease: %s", self._problem)
            if self._lost is not None:
                return

    def _renew(self) -> None:
        try:
            self._write()
        except _NOT_AS_ASKED:
            found = self._read()
            if found is None or found[0].get("holder") != self._holder:
                who = "it is gone" if found is None else f"{in_words(found[0])} has it"
                self._lost = f"{self.address}/{LEASE_FILE} is not this driver's any more: {who}. This driver ends"
                return
            self._version = found[1]  # an answer to a write of ours was lost on the way
            self._write()

    # --- the object

    def _write(self, *, released: bool = False) -> None:
        began, self._writes = _now_s(), self._writes + 1  # no two contents are alike: S3's versions are hashes of them
        content = {"format": FORMAT, "holder": self._holder, "write": self._writes, "lasts_s": self.lasts_s}
        text = json.dumps(content | {"released": released} | this_process())
        self._version = _version(self._store.put(LEASE_FILE, text.encode(), mode=self._version))
        self._sure_until = began + self.lasts_s

    def _read(self) -> tuple[dict[str, Any], PutMode, float] | None:
        """What the lease says, its version, and when the storage took it, by the storage's clock."""
        try:
            found = self._store.get(LEASE_FILE)
        except FileNotFoundError:
            return None
        try:
            content = json.loads(bytes(found.bytes()))
            if content["format"] != FORMAT:
                raise NoLeaseError(f"{LEASE_FILE} is of format {content['format']}, this version reads {FORMAT}")
        except (ValueError, KeyError, TypeError) as error:
            raise NoLeaseError(f"{LEASE_FILE}: {_short(error)}") from error
        return content, _version(found.meta), found.meta["last_modified"].timestamp()

    def _probe(self) -> float:
        """Tries on an object of its own whether the storage keeps conditions; the time by the storage's clock."""
        name = f"{LEASE_FILE}-{self._holder}"
        try:
            first = _version(self._store.put(name, b"1", mode="create"))
            self._must_refuse(name, "create")
            self._store.put(name, b"3", mode=first)
            self._must_refuse(name, first)
            return self._store.head(name)["last_modified"].timestamp()
        finally:
            with suppress(BaseError, OSError):
                self._store.delete(name)

    def _must_refuse(self, name: str, mode: PutMode) -> None:
        with suppress(AlreadyExistsError, PreconditionError):
            self._store.put(name, b"2", mode=mode)
            raise NoLeaseError("the storage ignores the condition of a conditional write")


def _lasts_s() -> float:
    text = os.environ.get(LASTS, "")
    with suppress(ValueError):
        if (seconds := float(text or LASTS_S)) >= _SHORTEST_S:
            return seconds
    raise ValueError(f"{LASTS}={text!r}: expected a number of seconds, {_SHORTEST_S:g} at least")


def _is_over(content: Mapping[str, Any], age_s: float) -> bool:
    return bool(content["released"]) or age_s > float(content["lasts_s"]) + _STORAGE_CLOCK_S or has_ended(content)


def _words(content: Mapping[str, Any], age_s: float) -> str:
    heard = f"last heard of {max(0.0, age_s):.0f} s ago; it counts as dead after {float(content['lasts_s']):.0f} s"
    return f"{in_words(content)} ({heard})"


def _version(said: Mapping[str, Any]) -> PutMode:
    return {"e_tag": said["e_tag"]} if said.get("version") is None else {k: said[k] for k in ("e_tag", "version")}  # type: ignore[return-value]


def _short(error: BaseException) -> str:
    """The messages of obstore go on with a whole dump after their first line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _store_of(address: str, region: str | None) -> ObjectStore:
    """The same place as pyarrow's, with the same login: from environment, profile, token of a pod, or role."""
    place, _, query = address.partition("?")
    scheme = place.partition("://")[0]
    if scheme not in _SCHEMES:
        raise NoLeaseError(f"storage of the kind {scheme}:// has no conditional writes")
    given = {name: values[-1] for name, values in parse_qs(query).items()}
    options: dict[str, Any] = {}
    if scheme == "s3":
        options = _s3_options(given, region)
    elif "endpoint_override" in given:
        raise NoLeaseError(f"no lease is known for {scheme}:// with endpoint_override")
    try:
        return from_url(
            place,
            client_options={"timeout": timedelta(seconds=_REQUEST_S), "allow_http": True},
            retry_config={"max_retries": 0},  # a write that is sent twice would refuse itself
            **options,
        )
    except (BaseError, ValueError) as error:
        raise NoLeaseError(_short(error)) from error


def _s3_options(given: Mapping[str, str], region: str | None) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if endpoint := given.get("endpoint_override"):
        options["endpoint"] = endpoint if "://" in endpoint else f"{given.get('scheme', 'https')}://{endpoint}"
    if where := given.get("region") or region:
        options["region"] = where
    home = Path("~/.aws").expanduser()
    profiles = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or (home / "credentials").exists()
    if "AWS_ACCESS_KEY_ID" not in os.environ and (profiles or os.environ.get("AWS_PROFILE")):
        if importlib.util.find_spec("boto3") is None:
            raise NoLeaseError("a login from a profile needs boto3 here, which is not installed: pip install boto3")
        from obstore.auth.boto3 import Boto3CredentialProvider  # boto3, which nothing else needs

        options["credential_provider"] = Boto3CredentialProvider()
    return options
