"""`serve --workers N`: the supervisor of several processes that issue on one port. It holds no key and no ledger.

It starts the workers and replaces those that die, watches the files for all of them, has the one admin
listener, and is what signals and the service manager know. It never imports grpc.
"""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import timedelta

from citadel_py.admin.http import AdminServer
from citadel_py.app.authority import authority_files, read_passphrase
from citadel_py.app.merged_pages import TRUST_PAGE, merged_metrics, merged_trust
from citadel_py.app.notify import Notifier
from citadel_py.app.reserved_port import ReservedPort
from citadel_py.app.runtime import Supervisor
from citadel_py.app.worker_agreement import Agreements
from citadel_py.app.worker_control import Facts
from citadel_py.app.worker_process import Beginning
from citadel_py.app.worker_slot import PAGE_WITHIN, Slot
from citadel_py.config import Address, ServeSettings
from citadel_py.core.errors import CitadelError
from citadel_py.core.policy_file import MAX_POLICY_BYTES
from citadel_py.obs import events
from citadel_py.obs.logging import configure, get_logger
from citadel_py.obs.metrics import WorkersMetrics
from citadel_py.store import authority_dir
from citadel_py.store.files import read_bounded

OVERTIME = timedelta(seconds=5)  # beyond shutdown_grace, for what a worker does at its end

_log = get_logger()


async def serve_with_workers(settings: ServeSettings) -> None:
    """Run `settings.workers` processes until SIGTERM or SIGINT.

    Raises CitadelError where none of them can begin, and the error of a task that died.
    """
    configure(settings.log_format, settings.log_level)
    passphrase = await asyncio.to_thread(read_passphrase, settings.passphrase_file)
    with ExitStack() as held:
        listen = held.enter_context(await ReservedPort.take(settings.listen)).address
        wanted = settings.listen_mtls or Address(listen.host, 0)
        listen_mtls = held.enter_context(await ReservedPort.take(wanted)).address
        async with Supervisor() as supervisor:
            beginning = Beginning(of_one_worker(settings, listen, listen_mtls), passphrase)
            await _Workers(settings, beginning, supervisor).run()
    _log.info(events.PROCESS_STOPPED)


def of_one_worker(settings: ServeSettings, listen: Address, listen_mtls: Address) -> ServeSettings:
    """What each worker is to do: its share of the overall rate, at addresses that all of them have."""
    share = max(1, settings.issue_rate // settings.workers)
    return settings.model_copy(update={"listen": listen, "listen_mtls": listen_mtls, "issue_rate": share, "workers": 1})


def fingerprint(settings: ServeSettings) -> str:
    """Changes when a file does that all workers are to use alike. It is slow: call it in a thread."""
    policy = settings.policy
    found = [authority_files(settings, None).fingerprint(), _content(lambda: authority_dir.read_crls(settings.dir))]
    if policy is not None:
        found.append(_content(lambda: read_bounded(policy, MAX_POLICY_BYTES)))
    return " ".join(found)


def _content(read: Callable[[], bytes | None]) -> str:
    try:
        return hashlib.sha256(read() or b"").hexdigest()
    except CitadelError as error:
        return error.rule


class _Workers:
    """The slots, and what all of them have in common."""

    def __init__(self, settings: ServeSettings, beginning: Beginning, supervisor: Supervisor) -> None:
        self._settings = settings
        self._beginning = beginning
        self._supervisor = supervisor
        self._metrics = WorkersMetrics()
        self._metrics.workers.set_function(lambda: len(self._ready()))
        self._notifier = Notifier.of_environment()
        joining = asyncio.Event()
        numbers = range(settings.workers)
        self._slots = [Slot(number, beginning, metrics=self._metrics, joining=joining) for number in numbers]
        self._agreements = Agreements(
            self._slots, lambda: fingerprint(settings), metrics=self._metrics, joining=joining
        )
        self._asked = asyncio.Event()
        self._collecting = asyncio.Lock()
        admin = settings.admin
        self._admin = AdminServer(
            admin.bind_host,
            admin.port,
            checks=self.checks,
            metrics=self._metrics,
            degraded=self.degraded,
            exposition=self.exposition,
            documents={TRUST_PAGE: self.trust},
        )

    async def run(self) -> None:
        """From the first worker to the end of the last, with the wait for the end in between."""
        grace = timedelta(0)  # for whatever goes wrong before all is up
        try:
            await self._start()
            await self._supervisor.stop_requested.wait()
            grace = self._settings.shutdown_grace + OVERTIME
        finally:
            self._notifier.stopping()
            await asyncio.gather(*(slot.stop(grace) for slot in self._slots))
            _log.info(events.SERVER_STOPPED)
            await self._admin.stop()

    def checks(self) -> Mapping[str, str | None]:
        """Readiness: one worker that is ready is enough."""
        none = f"none of {len(self._slots)} is ready"
        return {**self._supervisor.problems(), "workers": None if self._ready() else none}

    def degraded(self) -> Mapping[str, str | None]:
        """Each worker that is not ready, and files that cannot be used as they are now."""
        found: dict[str, str | None] = {f"worker {slot.number}": slot.problem for slot in self._slots}
        for slot in self._slots:
            found |= {f"worker {slot.number}: {name}": problem for name, problem in slot.degraded.items()}
        return {**found, **self._agreements.problems}

    async def exposition(self) -> bytes:
        """The metrics of all; those of a worker that does not answer in time are missing."""
        self._metrics.tell_checks(self.checks())
        async with self._collecting:
            pages = await asyncio.gather(*(_answer(slot, "metrics") for slot in self._slots))
        found = {slot.number: str(page["text"]) for slot, page in zip(self._slots, pages, strict=True) if page}
        return merged_metrics(self._metrics.exposition().decode(), found)

    async def trust(self) -> object:
        """Who trusts what, as all workers were told."""
        answers = await asyncio.gather(*(_answer(slot, "trust") for slot in self._slots))
        return merged_trust([each for each in answers if each])

    def _is_of_use(self) -> bool:
        return bool(self._ready()) or self._supervisor.stop_requested.is_set()  # an end in order is not broken off

    def _ready(self) -> list[Slot]:
        return [slot for slot in self._slots if slot.is_ready]

    async def _start(self) -> None:
        await self._admin.start()
        for slot in self._slots:
            self._supervisor.start(f"keeper of worker {slot.number}", slot.run())
        await self._begin()
        if self._supervisor.stop_requested.is_set():
            return
        self._supervisor.start("files", self._agreements.run())
        self._supervisor.start("reloading", self._reload_when_asked())
        self._supervisor.start("watchdog", self._notifier.run(self._is_of_use))
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._asked.set)
        _log.info(
            events.SERVER_STARTED,
            listen=str(self._beginning.settings.listen),
            listen_mtls=str(self._beginning.settings.listen_mtls),
            admin=str(Address(self._settings.admin.host, self._admin.port)),
            workers=len(self._slots),
        )
        self._notifier.ready(f"{len(self._slots)} workers at {self._beginning.settings.listen}")

    async def _begin(self) -> None:
        """Until the first worker serves, or somebody asks for the end."""
        beginning = asyncio.ensure_future(self._agreements.begin())
        stopping = asyncio.ensure_future(self._supervisor.stop_requested.wait())
        try:
            await asyncio.wait((beginning, stopping), return_when=asyncio.FIRST_COMPLETED)
            if beginning.done():
                beginning.result()
        finally:
            beginning.cancel()
            stopping.cancel()

    async def _reload_when_asked(self) -> None:
        """SIGHUP: look at all files at once."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            self._notifier.reloading()
            await self._agreements.agree(was_asked=True)
            self._notifier.ready()


async def _answer(slot: Slot, what: str) -> Facts:
    """Empty where there is none in time."""
    try:
        return await slot.ask(what, within=PAGE_WITHIN)
    except (CitadelError, TimeoutError):
        return {}
