"""Throws mutated files at the readers of ``fuzz_targets`` in a process that watches itself.

    python -m tests.platform.priors.files.fuzzing THOUSANDS SCRATCH [SEED]

An audit hook notes whatever Python tells of while a reader runs: code compiled or executed, modules imported, names
looked up by pickle, processes, sockets, files opened to be written. A case has a limit of processor time, the process
one of memory. Prints a JSON report.
"""

from __future__ import annotations

import collections
import faulthandler
import json
import pickle
import random
import resource
import shutil
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

from rpg_platform.priors.imported import PriorImportError, printable

SECONDS = 10  # of processor time, for one case
MEMORY = 4 << 30  # beyond what the process takes at the start
WATCHED = ("exec", "compile", "import", "marshal.", "pickle.", "os.", "subprocess.", "socket.", "ctypes.", "shutil.")
WATCHED += ("pty.", "webbrowser.", "urllib.", "tempfile.", "code.", "function.", "builtins.")
HARMLESS = ("os.listdir", "os.scandir", "os.walk", "builtins.id")


class Watch:
    """Notes events of ``sys.addaudithook`` while it is armed."""

    def __init__(self) -> None:
        self.armed = self.parses = False
        self.events: list[str] = []
        sys.addaudithook(self.hear)

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if self.parses and event == "compile" and args[1] == "<unknown>":  # by ast.parse; running it would be an exec
            return
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if writes or (event.startswith(WATCHED) and not event.startswith(HARMLESS)):
            self.armed = False  # what is written here may raise events of its own
            self.events.append(f"{event} {[str(each)[:80] for each in args[:3]]}")
            self.armed = True


class HangError(BaseException):
    """A case took too long."""


def _late(signum: int, frame: Any) -> None:
    raise HangError


def lay_out(folder: Path, source: dict[str, bytes], present: dict[str, bytes]) -> None:
    """Makes ``folder``, which holds the files ``present``, hold those of ``source`` and no others."""
    for name in present.keys() - source.keys():
        (folder / name).unlink()
        del present[name]
    for name, data in source.items():
        if present.get(name) != data:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    present.update(source)


def run(thousands: float, scratch: Path, seed: int) -> dict[str, Any]:
    """Reads ``1000 * thousands`` mutated sources; see the module."""
    from tests.platform.priors.files.fuzz_targets import TARGETS
    from tests.platform.priors.files.mutation import mutate
    from tests.platform.priors.payloads import Payload

    marker, folder = scratch / "marker", scratch / "source"
    watch, failures = Watch(), []
    seeds = {target.name: target.seeds(marker) for target in TARGETS}
    present: dict[str, dict[str, bytes]] = {target.name: {} for target in TARGETS}
    shutil.rmtree(folder, ignore_errors=True)
    for target in TARGETS:  # what a reader imports is imported before anybody watches
        for index, source in enumerate(seeds[target.name]):
            lay_out(folder / target.name, dict(source), present[target.name])
            try:
                target.read(folder / target.name)
            except PriorImportError:
                if index == 0:  # later ones may hold nothing but a payload
                    raise
    encodings = ("raw-unicode-escape", "unicode-escape", "latin-1", "cp437", "ascii", "utf-8", "utf-32-le", "utf-32-be")
    for encoding in encodings:
        b"x\0\0\0".decode(encoding, "replace")
    signal.signal(signal.SIGVTALRM, _late)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    counts: dict[str, collections.Counter[str]] = {target.name: collections.Counter() for target in TARGETS}
    for target in TARGETS:
        count = counts[target.name]
        everything = [data for source in seeds[target.name] for data in source.values()]
        for case in range(round(target.cases * thousands)):
            rng = random.Random(f"{seed} {target.name} {case}")
            source = dict(rng.choice(seeds[target.name]))
            name = rng.choice(list(source))
            source[name] = mutate(source[name], everything, rng)
            lay_out(folder / target.name, source, present[target.name])
            signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
            watch.armed, watch.parses = True, target.parses
            try:
                target.read(folder / target.name)
                outcome = "read"
            except (PriorImportError, *target.raises) as error:
                outcome = "refused"
                count["unfit to print"] += len(str(error)) > 2_000 or printable(str(error)) != str(error)
            except (Exception, HangError):
                watch.armed, outcome = False, "crashed"
                failures.append({"target": target.name, "case": case, "error": traceback.format_exc()[-1_500:]})
            finally:
                watch.armed = watch.parses = False
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            count[outcome] += 1
    events, watch.events = watch.events, []
    assert not marker.exists() or events, "something ran that nobody heard"
    watch.armed = True  # and now that it is heard
    pickle.loads(pickle.dumps(Payload(scratch / "proof")))
    watch.armed = False
    return {
        "counts": {name: dict(count) for name, count in counts.items()},
        "failures": failures[:20],
        "events": events[:20],
        "marker": marker.exists(),
        "heard": watch.events,
    }


if __name__ == "__main__":
    faulthandler.enable()
    warnings.simplefilter("ignore")
    for forbidden in ("stable_baselines3", "gym", "cloudpickle"):  # none of them is needed
        sys.modules[forbidden] = None  # type: ignore[assignment]
    report = run(float(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
    sys.stdout.write(json.dumps(report, indent=1))
