"""`python -m citadel_py.app.worker FD`: one of several processes that issue, run and told by app/workers.py.

Its settings, and the passphrase if there is one, come over the socket pair that is its FD; when that
ends the supervisor is gone, and so is the worker. It follows no files by itself: it prepares what they
hold when it is asked to, and uses it when it is told to, as all others do at the same moment.
"""

from __future__ import annotations

import asyncio
import base64
import socket
import sys
from collections.abc import Awaitable, Mapping
from datetime import timedelta
from typing import TypeVar

import structlog

from citadel_py.app.authority import LiveEngine, PreparedEngine, authority_files
from citadel_py.app.ledger_heads import LedgerHeads
from citadel_py.app.policy import LivePolicy, PreparedRules
from citadel_py.app.runtime import Supervisor
from citadel_py.app.serve import WRITER, Service, live_policy, open_ledger
from citadel_py.app.trust import ListsFile
from citadel_py.app.worker_control import Channel, Facts, error_facts, obey
from citadel_py.ca.trust_page import trust_page
from citadel_py.config import ServeSettings
from citadel_py.core.errors import CitadelError, Unavailable
from citadel_py.obs.logging import configure
from citadel_py.obs.metrics import CAMetrics
from citadel_py.store.ledger import SQLLedger

AUTHORITY, POLICY, REVOCATIONS = "authority", "policy", "revocations"
Prepared = TypeVar("Prepared", PreparedEngine, PreparedRules, ListsFile)


class Worker:
    """What the supervisor asks for, by name; the answers are JSON."""

    def __init__(self, number: int, settings: ServeSettings, passphrase: bytes | None, supervisor: Supervisor) -> None:
        self._number = number
        self._settings = settings
        self._supervisor = supervisor
        self._metrics = CAMetrics()
        self._live = LiveEngine(authority_files(settings, passphrase))
        self._policy: LivePolicy | None = None
        self._engine: PreparedEngine | None = None  # what was prepared last
        self._rules: PreparedRules | None = None
        self._lists: ListsFile | None = None
        self._ledger: SQLLedger | None = None
        self._service: Service | None = None
        self._turn = asyncio.Lock()  # for what begins or ends the service

    async def obey(self, channel: Channel) -> None:
        """Answer until cancelled; without a supervisor, ask for the end."""
        await obey(channel, self.handle)
        self._supervisor.stop_requested.set()
        await asyncio.Event().wait()

    async def handle(self, what: str, facts: Facts) -> Facts:
        """Do one thing. Raises CitadelError."""
        match what:
            case "prepare":
                return await self._prepare()
            case "activate":
                self._activate(facts)
            case "start":
                await self._start(facts)
            case "state":
                return self._state()
            case "trust":
                return {} if self._service is None else trust_page(self._service.trust)
            case "metrics":
                return {"text": self._metrics.exposition().decode()}
            case "stop":
                self._supervisor.stop_requested.set()
        return {}

    async def stop(self, grace: timedelta) -> None:
        """End what was begun. To be called once."""
        async with self._turn:
            if self._service is not None:
                await self._service.stop(grace)
            if self._ledger is not None:
                self._ledger.close()

    async def _prepare(self) -> Facts:
        """Of each part a digest of what it would use, or why it cannot. One bad part does not stop the others."""
        self._engine, authority = await _tried(self._live.prepare())
        self._lists, revocations = await _tried(asyncio.to_thread(ListsFile.read, self._settings.dir))
        answers = {AUTHORITY: authority, REVOCATIONS: revocations}
        if self._service is None and self._engine is not None:
            domain = self._engine.engine.policy.trust_domain
            self._policy = live_policy(self._settings, self._live, domain, self._metrics)
        if self._policy is not None:
            self._rules, answers[POLICY] = await _tried(self._policy.prepare())
        return answers

    def _activate(self, digests: Mapping[str, str]) -> None:
        """Use what was prepared, all of it between two requests. Raises Unavailable where it was something else."""
        prepared = {AUTHORITY: self._engine, POLICY: self._rules, REVOCATIONS: self._lists}
        for part, digest in digests.items():
            if (found := prepared.get(part)) is None or found.digest != digest:
                raise Unavailable(f"another {part} was prepared", rule="worker_disagrees")
        if AUTHORITY in digests and self._engine:
            self._live.activate(self._engine)
        if POLICY in digests and self._policy and self._rules:
            self._policy.activate(self._rules)
        if REVOCATIONS in digests and self._service and self._lists:
            self._service.use_lists(self._lists)
        if AUTHORITY in digests and self._service:
            self._service.on_new_engine()

    async def _start(self, digests: Mapping[str, str]) -> None:
        """Begin to issue with what was prepared."""
        async with self._turn:
            if self._supervisor.stop_requested.is_set():
                raise Unavailable("the worker ends", rule="worker_gone")
            self._activate(digests)
            heads = LedgerHeads(lambda: self._live.current)
            self._ledger = open_ledger(self._settings, f"{WRITER}-{self._number}", heads)
            self._service = Service(
                self._settings,
                self._live,
                self._policy,
                ledger=self._ledger,
                heads=heads,
                supervisor=self._supervisor,
                metrics=self._metrics,
                is_one_of_several=True,
            )
            if self._lists is not None:
                self._service.use_lists(self._lists)
            await self._service.start()

    def _state(self) -> Facts:
        if self._service is None:
            return {"checks": {}, "degraded": {}}
        return {"checks": dict(self._service.checks()), "degraded": dict(self._service.degraded())}


async def _tried(preparing: Awaitable[Prepared]) -> tuple[Prepared | None, Facts]:
    """What was prepared, and what is told of it."""
    try:
        prepared = await preparing
    except CitadelError as error:
        return None, {"error": error_facts(error)}
    return prepared, {"digest": prepared.digest}


async def run(end: socket.socket) -> None:
    """Take the settings and serve until told to stop, or nobody is there to tell."""
    channel = await Channel.on(end)
    begin = await channel.receive()
    if begin is None:
        return
    settings = ServeSettings.model_validate(begin["settings"])
    passphrase = None if begin["passphrase"] is None else base64.b64decode(begin["passphrase"])
    configure(settings.log_format, settings.log_level)
    structlog.contextvars.bind_contextvars(worker=begin["number"])
    async with Supervisor() as supervisor:
        worker = Worker(begin["number"], settings, passphrase, supervisor)
        supervisor.start("control", worker.obey(channel))
        try:
            await supervisor.stop_requested.wait()
        finally:
            await worker.stop(settings.shutdown_grace)


def main() -> int:
    """Exit code 1 where a part of it died; the log says which."""
    try:
        asyncio.run(run(socket.socket(fileno=int(sys.argv[1]))))
    except CitadelError:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
