"""Hosts for tests: network namespaces on one bridge, each with an address of its own and all its ports free.

They share the file system, and by ``within`` have mounts and process numbers of their own.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

MARK = "RPG_TEST_HOSTS"
_numbers = itertools.count(os.getpid() % 200)


class Hosts:
    """Hosts 1 to ``count`` with the addresses 10.77.0.1 and on; commands run in them by `command`."""

    def __init__(self, count: int, folder: Path) -> None:
        self.count = count
        self.mark = {MARK: f"{folder}-{next(_numbers)}"}
        self._spaces = [self._space() for _ in range(count + 1)]
        switch, *hosts = self._spaces
        self._ip(switch, "link add switch type bridge", "link set switch up")
        for number, host in enumerate(hosts, 1):
            self._ip(switch, f"link add to{number} type veth peer name net netns {host.pid}")
            self._ip(switch, f"link set to{number} master switch", f"link set to{number} up")
            self._ip(host, f"addr add {self.address(number)}/24 dev net", "link set net up")

    def _space(self) -> subprocess.Popen[str]:
        """What holds a host's namespaces; as its first process it leaves no zombies, which would look alive."""
        command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        command += ["sh", "-c", "ip link set lo up && echo up && exec env --ignore-signal=CHLD sleep 100000"]
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
        """What stands before a command that is to run in a host's network."""
        return ["nsenter", "--target", str(self._spaces[number].pid), "--net"]

    def within(self, number: int) -> list[str]:
        """The same; the command sees the host's own mounts and processes besides, and starts in `/`."""
        return ["nsenter", "--target", str(self._first(number)), "--net", "--mount", "--pid"]

    def _first(self, number: int) -> int:
        """The process that holds a host's namespaces: number 1 of those that the host sees."""
        space = self._spaces[number].pid
        return int(Path(f"/proc/{space}/task/{space}/children").read_text().split()[0])

    def own_disk(self, number: int, folder: Path, at: Path) -> None:
        """Lets a host have a folder of its own at a path."""
        for each in (folder, at):
            each.mkdir(exist_ok=True)
        mount = [*self.within(number), "mount", "--bind", str(folder), str(at)]
        subprocess.run(mount, check=True, timeout=60)

    def inside(self, number: int) -> ThreadPoolExecutor:
        """One thread of this process that has the network of a host; what it opens is of there."""

        def enter() -> None:
            with open(f"/proc/{self._spaces[number].pid}/ns/net") as space:  # noqa: PTH123
                if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), 0):
                    raise OSError(ctypes.get_errno(), "setns")

        return ThreadPoolExecutor(1, initializer=enter)

    def processes(self, number: int) -> list[int]:
        """Ids of what runs in a host, apart from what holds its namespaces."""
        space = self._spaces[number].pid
        here, found = Path(f"/proc/{space}/ns/net").stat().st_ino, []
        for process in Path("/proc").iterdir():
            with suppress(OSError):
                if process.name.isdigit() and (process / "ns/net").stat().st_ino == here:
                    found.append(int(process.name))
        return [pid for pid in found if pid not in (space, self._first(number))]

    def kill(self, number: int) -> None:
        """Ends all that runs in a host at once, as if its machine crashed; it can be used again."""
        while found := self.processes(number):
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def cut(self, number: int) -> None:
        """Takes a host's cable out: nothing reaches it, and nobody is told."""
        self._ip(self._spaces[0], f"link set to{number} down")

    def mend(self, number: int) -> None:
        """Puts it in again."""
        self._ip(self._spaces[0], f"link set to{number} up")

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
