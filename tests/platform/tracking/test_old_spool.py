"""A spool that version 0.1.0 left, files of lines: what it had not sent is taken over."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.platform.records import reopened

from rpg_platform.tracking.spool import Spool, read_lines

OLD = {
    "000001.log": (
        b'3f9e4495 {"n":1,"run":"t","kind":"metrics","data":{"values":{"a":0.5},"step":1,"timestamp":1000}}\n'
        b'1c2306f3 {"n":2,"run":"t","kind":"metrics","data":{"values":{"a":0.5},"step":2,"timestamp":2000}}\n'
    ),
    "000002.log": (
        b'b4673aee {"n":3,"run":"t","kind":"metrics","data":{"values":{"a":0.5},"step":3,"timestamp":3000}}\n'
        b'5b59823f {"n":4,"run":"t","kind":"metrics","data":{"values":{"a":0.5},"step":4,"timestamp":4000}}\n'
    ),
    "000003.log": (
        b'f31dbe22 {"n":5,"run":"t","kind":"metrics","data":{"values":{"a":0.5},"step":5,"timestamp":5000}}\n'
        b'd0a0fc44 {"n":6,"run":"t","kind":"metrics","data":{"values":{"a":0.5},"step":6,"timest'  # its end, a kill
    ),
    "acknowledged": b'e15af1be {"segment":1,"offset":196,"number":2}\n',
    "rejected.log": (
        b'bcdf83d6 {"run":"t","kind":"metrics","data":{"values":{"a":0.5},"step":9,"timestamp":9000},'
        b'"why":"no","refused":true}\n'
    ),
    "runs.log": (
        b'457a72ee {"run":"","id":"p","status":"RUNNING","doubtful":false}\n'
        b'1d2eb300 {"run":"t","id":"c","status":"RUNNING","doubtful":false}\n'
    ),
}
"""A spool as version 0.1.0 left it."""


def old_spool(folder: Path, **changes: bytes) -> Path:
    folder.mkdir()
    for name, content in (OLD | changes).items():
        (folder / name).write_bytes(content)
    return folder


def steps(spool: Spool) -> list[tuple[int, int]]:
    return [(number, payload["data"]["step"]) for number, payload in spool.read(spool.acknowledged) if payload]


def test_what_an_earlier_version_left_is_taken_over(tmp_path: Path) -> None:
    folder = old_spool(tmp_path / "tracking")
    os.utime(folder / "000003.log", (2e9, 2e9))
    taken_over = reopened(folder)
    assert (taken_over.acknowledged, taken_over.appended, taken_over.damaged) == (2, 5, 0)
    assert steps(taken_over) == [(3, 3), (4, 4), (5, 5)]
    assert taken_over.remembered() == {
        "": {"id": "p", "status": "RUNNING", "doubtful": False},
        "t": {"id": "c", "status": "RUNNING", "doubtful": False},
    }
    assert taken_over.changed_s == 2e9
    taken_over.reject({"why": "no more"})
    assert [payload["why"] for payload in read_lines(taken_over.rejected_file)] == ["no", "no more"]
    taken_over.append({"data": {"step": 6}})
    taken_over.close()
    assert not {file.name for file in folder.iterdir()} & (set(OLD) - {"rejected.log"})
    again = reopened(folder)
    assert steps(again) == [(3, 3), (4, 4), (5, 5), (6, 6)]
    again.close()


def test_a_failure_while_it_is_taken_over_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the records are in the database and before all the old files are gone."""
    folder = old_spool(tmp_path / "tracking")

    def stop(file: Path, missing_ok: bool = False) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(Path, "unlink", stop)
        with pytest.raises(OSError, match="Input/output error"):
            reopened(folder)
    again = reopened(folder)
    assert steps(again) == [(3, 3), (4, 4), (5, 5)]
    again.close()


def test_damage_that_an_earlier_version_left_is_counted(tmp_path: Path) -> None:
    folder = old_spool(
        tmp_path / "tracking",
        **{
            "000002.log": OLD["000002.log"].replace(b'"step":3', b'"step":8'),
            "000003.log": bytes(64) + OLD["000003.log"],  # what a power failure leaves of a block
        },
        acknowledged=OLD["acknowledged"].replace(b'"number":2', b'"number":4'),
    )
    damaged = reopened(folder)
    assert steps(damaged) == [(1, 1), (2, 2), (4, 4), (5, 5)], "sent again, as nobody knows better"
    assert damaged.damaged == 2
    damaged.close()
