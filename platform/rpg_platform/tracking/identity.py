"""Which MLflow runs a spool's records belong to: a file beside them, for whoever sends them later."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from rpg_platform.spec.logins import has_login, take_login
from rpg_platform.storage.location import default_tracking_uri
from rpg_platform.tracking.runs import MlflowRuns
from rpg_platform.tracking.spool import Spool, SpoolError

FORMAT = 2
IDENTITY_FILE = "sweep.json"
_BESIDE = "beside the sweep"  # in place of an address: the store of the storage that the sweep lies in


@dataclass(frozen=True)
class Identity:
    """Says which MLflow runs a spool's records belong to: all that a later process needs to send them.

    Attributes:
        tracking_uri: MLflow server, without a login that may have stood in it.
        needs_login: a login did stand in it.
        experiment: MLflow experiment.
        run_key: tag that the sweep's runs share.
        sweep: name of the sweep.
        format: version of the spool's layout.
    """

    tracking_uri: str
    needs_login: bool
    experiment: str
    run_key: str
    sweep: str
    format: int = FORMAT


def write_identity(spool: Spool, runs: MlflowRuns) -> None:
    """Writes beside a spool's records which MLflow runs they belong to.

    Raises:
        OSError: it can't be written.
    """
    uri, earlier = take_login(runs.tracking_uri), read_identity(spool.folder)
    had_one = earlier is not None and earlier.needs_login and earlier.tracking_uri == uri
    identity = Identity(uri, has_login(uri) or had_one, runs.experiment, runs.run_key, runs.sweep)
    keep_identity(spool, identity)


def keep_identity(spool: Spool, identity: Identity) -> None:
    """Writes an identity; the embedded store beside the sweep by no address, so that it is found after a move.

    Raises:
        OSError: it can't be written.
    """
    beside = identity.tracking_uri == _store_beside(spool.folder)
    spool.write_json(IDENTITY_FILE, asdict(identity) | ({"tracking_uri": _BESIDE} if beside else {}))


def _store_beside(folder: Path) -> str:
    """The embedded store of the storage that holds the sweep of a spool."""
    return default_tracking_uri(folder.resolve().parent.parent)


def read_identity(folder: Path) -> Identity | None:
    """Reads what ``write_identity`` left in a spool's folder; None if there is nothing.

    Raises:
        SpoolError: the file is damaged, or a later version wrote it.
    """
    file = folder / IDENTITY_FILE
    try:
        content = json.loads(file.read_bytes())
        version = content["format"]
        if version in (1, FORMAT):  # 1 is version 0.1.0's, which the spool takes over when it is opened
            beside = {"tracking_uri": _store_beside(folder)} if content["tracking_uri"] == _BESIDE else {}
            return Identity(**content | {"format": FORMAT} | beside)
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError) as error:
        raise SpoolError(f"{file} is damaged ({error}): it says which MLflow runs the records are of") from error
    raise SpoolError(f"{file}: format is {version!r}, and this version of rpg knows {FORMAT}: use a newer one")
