"""Runs the sweeps of the reproduction one after another, as `rpg sweep` and `rpg resume` run them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from benchmarks.reproduction.kept import Kept
from benchmarks.reproduction.plan import Scope, Step, Weights
from benchmarks.reproduction.records import Store, chosen_in
from benchmarks.speed import machine
from rich.console import Console

from rpg_algorithms.policies.bundle import load_bundle
from rpg_platform.bundles import resolve_prior
from rpg_platform.planning.words import period
from rpg_platform.results.endings import without_result
from rpg_platform.run.run import run_sweep
from rpg_platform.spec.extension import ResumeError, check_same
from rpg_platform.spec.sweep import SweepSpec
from rpg_platform.spec.yaml_file import dump_spec
from rpg_platform.storage.heartbeat import STATUS_FILE
from rpg_platform.storage.sweep import Sweep
from rpg_platform.storage.sweep_folder import SweepFolder
from rpg_platform.wording import duration

LOG_FILE = "reproduce.log"
"""In the storage: what `rpg sweep` prints of each sweep."""
_LINE_EVERY_S = 60.0
_POLL_S = 1.0


class NotReadyError(ValueError):
    """A sweep that cannot run yet, as one before it has no result; the message says which."""


class Progress:
    """Counts env steps over all sweeps, and says how fast they pass and how long the rest takes.

    Args:
        scope: what is to be run.
        storage: where.
        tell: prints a line.
        finished: names of sweeps that are kept already.
    """

    def __init__(self, scope: Scope, storage: str, tell: Callable[[str], None], finished: Collection[str] = ()) -> None:
        self._tell, self._storage = tell, storage
        self._total = {step.name: scope.env_steps(step) for step in scope.steps()}
        self._each = {step.name: max(trial.env_steps for trial in scope.trials(step)) for step in scope.steps()}
        self._done = {name: self._total[name] if name in finished else self._saved(name) for name in self._total}
        self._began, self._before = time.monotonic(), sum(self._done.values())

    def _saved(self, name: str) -> float:
        """Env steps that a sweep's checkpoints hold."""
        folder = SweepFolder(self._storage, name)
        found = folder.trials().values() if folder.is_sweep() else ()
        return float(sum(min(state.env_steps, self._each[name]) for state in found))

    def line(self, what: str) -> None:
        """Says where everything is."""
        done, total, seconds = sum(self._done.values()), sum(self._total.values()), time.monotonic() - self._began
        rate = (done - self._before) / seconds if seconds > 0 else 0.0
        pace = f"{rate:,.0f} env steps/s, about {period((total - done) / rate)} left" if rate > 0 else "starting"
        if done >= total:
            pace = "all trained"
        self._tell(f"[{duration(seconds)}] {what}: {done:,.0f} of {total:,} env steps, {pace}")

    @contextmanager
    def of(self, step: Step) -> Iterator[None]:
        """Follows a sweep while it runs, by the status that it writes, and says a line each minute."""
        ended = threading.Event()
        thread = threading.Thread(target=self._follow, args=(step, ended), name="reproduction-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._done[step.name] = self._saved(step.name)

    def _follow(self, step: Step, ended: threading.Event) -> None:
        folder, said = SweepFolder(self._storage, step.name), time.monotonic()
        while not ended.wait(_POLL_S):
            try:
                status = json.loads(folder.read_text(STATUS_FILE) or "{}")
            except (OSError, ValueError):  # it is being replaced
                continue
            self._done[step.name] = max(self._done[step.name], float(status.get("env_steps") or 0))
            if time.monotonic() - said >= _LINE_EVERY_S:
                said = time.monotonic()
                self.line(step.name)


class Driver:
    """Runs what is not finished.

    Args:
        scope: what is to be run.
        storage: absolute path of where it is kept.
        uri: its MLflow store.
        tell: prints a line.
        written: called after each sweep that was run, to bring the page up to date.
        kept: the sweeps that are finished already, to which those are added that finish now.
    """

    def __init__(
        self,
        scope: Scope,
        storage: str,
        uri: str,
        tell: Callable[[str], None],
        written: Callable[[], None],
        kept: Kept | None = None,
    ) -> None:
        self.scope, self.storage, self.uri, self.kept = scope, storage, uri, kept or Kept(None)
        self._tell, self._written = tell, written

    def run(self) -> bool:
        """Runs every sweep that is not finished, in order, until all are or the user stops it.

        Returns:
            Whether everything is finished. What is not has been said.

        Raises:
            ValueError: there is nothing to run, or a folder holds another sweep than is to be run.
        """
        steps = self.scope.steps()
        if not steps:
            raise ValueError(f"nothing to run: experiment 1 does not have {', '.join(self.scope.environments)}")
        finished = {step.name for step in steps if self.kept.sweep(step) is not None}
        progress = Progress(self.scope, self.storage, self._tell, finished)
        progress.line("1 sweep" if len(steps) == 1 else f"{len(steps)} sweeps")
        missing = []
        Path(self.storage).mkdir(parents=True, exist_ok=True)
        with (Path(self.storage) / LOG_FILE).open("a", encoding="utf-8") as log:
            for number, step in enumerate(steps, 1):
                if self._store().is_complete(self.scope, step):
                    continue
                progress.line(f"{step.name} ({number} of {len(steps)})")
                try:
                    with progress.of(step):
                        interrupted, lines = self._run(step, log)
                except NotReadyError as error:
                    missing.append(step.name)
                    self._tell(f"{step.name}: left out: {error}")
                    continue
                self._store().note_machine(step, machine())
                self._keep(step)
                for line in lines:
                    self._tell(f"{step.name}: {line}")
                self._written()
                if interrupted:
                    self._tell("Stopped, everything saved. The same command goes on.")
                    return False
                if lines:
                    missing.append(step.name)
        progress.line("end")
        if missing:
            self._tell(f"{len(missing)} sweeps lack results: {', '.join(missing)}. The same command tries them again.")
        return not missing

    def _store(self) -> Store:
        return Store(self.uri, self.kept)

    def _keep(self, step: Step) -> None:
        """Keeps a sweep that is finished beside the code, with the priors that it trained."""
        store = self._store()
        if self.kept.folder is None or not store.is_complete(self.scope, step):
            return
        trials = self.scope.trials(step) if step.stage == "prior" else ()
        states = SweepFolder(self.storage, step.name).trials()
        priors = {trial.seed: resolve_prior(states[trial.trial_id].checkpoint) for trial in trials}
        self.kept.keep(step, store.to_keep(step), priors)

    def _run(self, step: Step, log: TextIO) -> tuple[bool, list[str]]:
        """Runs or resumes one sweep; returns whether the user stopped it, and what is missing of it."""
        console = Console(file=log, width=160, force_terminal=False)
        sweep = self._sweep(step)
        outcome = run_sweep(sweep, console=console)
        log.flush()
        lines = [] if outcome.interrupted else list(without_result(outcome.results))
        if outcome.unsent:
            lines.append(f"{outcome.unsent} records are not in MLflow, see {log.name}")
        return outcome.interrupted, lines

    def _sweep(self, step: Step) -> Sweep:
        """The sweep as it is to run: a new one, or the one that its folder holds.

        Raises:
            NotReadyError: a sweep that it needs has no result.
            ValueError: the folder holds a sweep of other settings, or of another prior.
        """
        folder = SweepFolder(self.storage, step.name)
        prior = None if step.prior_seed is None else self._prior(step.environment, step.prior_seed)
        chosen = self._chosen(step) if step.stage == "final" else None
        spec = self.scope.spec(step, self.storage, prior=prior, chosen=chosen)
        if not folder.is_sweep():
            return Sweep.resolve(spec, source=dump_spec(spec))
        stored = folder.spec()
        if prior is not None:
            spec = self._same_prior(folder, stored, spec, prior)
        try:
            check_same(stored, spec)
        except ResumeError as error:
            raise ValueError(
                f"{error}. All of a reproduction is made with one set of settings: begin another one (--storage), or "
                f"remove {folder.uri} and its experiment in MLflow to train it again"
            ) from error
        return Sweep.resolve(spec, source=folder.source(), resume=True)

    @staticmethod
    def _same_prior(folder: SweepFolder, stored: SweepSpec, spec: SweepSpec, prior: str) -> SweepSpec:
        """``spec`` with the prior's path that its folder has, as the storage may have been moved.

        Raises:
            ValueError: the prior is another one by now.
        """
        kept, now = folder.prior(), load_bundle(resolve_prior(prior))
        if kept is None or kept.card.content_hash != now.card.content_hash:
            raise ValueError(
                f"{folder.uri}: its prior is not the one in {prior} any more; remove that folder, and what was "
                "trained from it goes with it, or give another storage (--storage)"
            )
        return SweepSpec.model_validate(spec.model_dump(mode="json") | {"prior": stored.prior})

    def _prior(self, environment: str, seed: int) -> str:
        """What holds the prior of a seed: a bundle that is kept, or a checkpoint."""
        if (kept := self.kept.prior(environment, seed)) is not None:
            return str(kept)
        [step] = self.scope.of("prior", environment)
        [trial] = [each for each in self.scope.trials(step) if each.seed == seed]
        state = SweepFolder(self.storage, step.name).trials().get(trial.trial_id)
        if state is None or not state.finishes(trial):
            raise NotReadyError(f"the prior {step.name} of seed {seed} is not trained")
        return state.checkpoint

    def _chosen(self, step: Step) -> dict[str, Weights]:
        """The settings that tuning chose for the methods of a final sweep."""
        found = chosen_in(self._store(), self.scope, step.environment)
        if found is None:
            raise NotReadyError(f"tuning on {step.environment} has not ended")
        needed = {step.method_of(trial.method) for trial in self.scope.trials(step) if trial.env_steps}
        if lacking := sorted(needed - set(found)):
            raise NotReadyError(f"no setting of {', '.join(lacking)} was trained with every tuning seed")
        return {method: choice.weights for method, choice in found.items()}
