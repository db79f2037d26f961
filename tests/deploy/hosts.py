"""Hosts for tests: network namespaces on one bridge, each with an address of its own and all its ports free."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

MARK = "RPG_TEST_HOSTS"
_numbers = itertools.count(os.getpid() % 200)


class Hosts:
    """Hosts 1 to ``count`` with the addresses 10.77.0.1 and on; commands run in them by `command`."""

    def __init__(self, count: int, folder: Path) -> None:
        self.mark = {MARK: f"{folder}-{next(_numbers)}"}
        self._spaces = [self._space() for _ in range(count + 1)]
        switch, *hosts = self._spaces
        self._ip(switch, "link add switch type bridge", "link set switch up")
        for number, host in enumerate(hosts, 1):
            self._ip(switch, f"link add to{number} type veth peer name net netns {host.pid}")
            self._ip(switch, f"link set to{number} master switch", f"link set to{number} up")
            self._ip(host, f"addr add {self.address(number)}/24 dev net", "link set net up")

    def _space(self) -> subprocess.Popen[str]:
        command = ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep 100000"]
        space = subprocess.Popen(command, env=os.environ | self.mark, stdout=subprocess.PIPE, text=True)
        assert space.stdout is not None
        if space.stdout.readline() != "up\n":
            pytest.skip("no network namespace can be made here")
        return space

    @staticmethod
    def _ip(space: subprocess.Popen[str], *commands: str) -> None:
        for command in commands:
            enter = ["nsenter", "--target", str(space.pid), "--net", "ip", *command.split()]
            done = subprocess.run(enter, capture_output=True, text=True, timeout=60)
            if done.returncode:
                pytest.skip(f"no network between namespaces can be made here: {done.stderr}")

    @staticmethod
    def address(number: int) -> str:
        return f"10.77.0.{number}"

    def command(self, number: int) -> list[str]:
        """What stands before a command that is to run in a host."""
        return ["nsenter", "--target", str(self._spaces[number].pid), "--net"]

    def end(self) -> None:
        """Kills all that was started in the hosts, known by a variable of its environment."""
        ((name, value),) = self.mark.items()
        needle = f"{name}={value}".encode()
        while True:
            found = 0
            for process in Path("/proc").iterdir():
                with suppress(OSError):
                    if process.name.isdigit() and needle in (process / "environ").read_bytes().split(b"\0"):
                        os.kill(int(process.name), signal.SIGKILL)
                        found += (process / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
            for space in self._spaces:
                space.poll()
            if not found:
                return
            time.sleep(0.2)


@contextmanager
def hosts(count: int, folder: Path) -> Iterator[Hosts]:
    made = None
    try:
        made = Hosts(count, folder)
        yield made
    finally:
        if made is not None:
            made.end()
