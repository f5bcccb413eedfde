"""Notifications: every event of a client's payments, signed and sent to its URL until it has been received.

Each receiver has a courier of its own with so many deliveries under way at once: one that hangs keeps its own courier
waiting and no other. Signed by the Standard Webhooks specification; sent by `app.egress`; at least once.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import structlog
from standardwebhooks import Webhook

from app import __version__, deliveries, metrics, receivers
from app.bell import Bell, of_feed
from app.database import UNAVAILABLE, Database
from app.deliveries import Claim
from app.egress import Egress, NotDelivered, Reply
from app.feed import told
from app.jitter import jitter
from app.receivers import Receiver
from app.settle import Settler

log = structlog.get_logger()

GONE = 410
SLOW_DOWN = frozenset({429, 503})

_LOOK_EVERY = 1.0
_LEASE_MARGIN = 10.0
_PAUSE = 5.0
"""Seconds for which a receiver is left alone that says "slow down" and not for how long."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How hard is tried; times in seconds. `schedule` is between the attempts, after the last one it is parked."""

    schedule: Sequence[float]
    timeout: float
    disable_after: float
    concurrency: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended: delivered where there is no `why`."""

    said: int | None = None
    why: str | None = None
    gone: bool = False
    pause: float | None = None


def outcome(reply: Reply) -> Outcome:
    """Return what a receiver's answer means: any 2xx is received, 410 is gone for good, a redirect is not followed."""
    status = reply.http_status
    if 200 <= status < 300:  # noqa: PLR2004 - HTTP's success
        return Outcome(status)
    pause = None
    if status in SLOW_DOWN:
        pause = _PAUSE if reply.retry_after is None else reply.retry_after
    return Outcome(status, f"HTTP {status}", gone=status == GONE, pause=pause)


def again_in(policy: Policy, attempt: int, pause: float | None) -> float | None:
    """Return the seconds until the attempt after the `attempt`-th, or None where there is none."""
    if attempt > len(policy.schedule):
        return None
    return max(policy.schedule[attempt - 1] * jitter(), pause or 0.0)


def sign(receiver: Receiver, id_: str, at: datetime, body: str) -> dict[str, str]:
    """Return the headers of the Standard Webhooks specification, signed by each valid secret."""
    signatures = [Webhook(secret).sign(id_, at, body) for secret in receiver.secrets]
    return {
        "webhook-id": id_,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


class Notifier:
    """Keeps a courier for each receiver. Any number of processes share the work."""

    def __init__(self, database: Database, bell: Bell, egress: Egress, policy: Policy) -> None:
        self._database = database
        self._bell = bell
        self._egress = egress
        self._policy = policy
        self._receivers: dict[str, Receiver] = {}
        self._settler = Settler(database)

    async def run(self, stopping: asyncio.Event) -> None:
        """Deliver until `stopping`; then finish what is under way."""
        async with asyncio.TaskGroup() as group:
            settling = group.create_task(self._settler.run())
            await self._run(stopping, group)
            settling.cancel()

    async def _run(self, stopping: asyncio.Event, group: asyncio.TaskGroup) -> None:
        couriers: dict[str, asyncio.Task[None]] = {}
        while not stopping.is_set():
            await self._look()
            for client in self._receivers.keys() - couriers.keys():
                couriers[client] = group.create_task(self._courier(client, stopping))
            for client in [client for client, task in couriers.items() if task.done()]:
                del couriers[client]
            try:
                async with asyncio.timeout(_LOOK_EVERY):
                    await stopping.wait()
            except TimeoutError:
                continue
        if couriers:
            await asyncio.wait(couriers.values())

    async def _look(self) -> None:
        try:
            self._receivers = await receivers.in_service(self._database)
            out = await receivers.out_of_service(self._database)
            for client in await deliveries.with_open(self._database, out):
                await deliveries.park_all(self._database, client, "this client is not notified any more")
        except UNAVAILABLE as exc:
            log.error("receivers could not be looked up", error=type(exc).__name__)  # noqa: TRY400 - every second

    async def _courier(self, client: str, stopping: asyncio.Event) -> None:
        """Deliver to one receiver for as long as it is in service."""
        under_way: set[asyncio.Task[None]] = set()
        with self._bell.listen(of_feed(client)) as fed:
            while not stopping.is_set() and (receiver := self._receivers.get(client)):
                try:
                    claims, rest = await self._claim(receiver, self._policy.concurrency - len(under_way))
                except UNAVAILABLE as exc:
                    log.error("deliveries could not be claimed", client=client, error=type(exc).__name__)  # noqa: TRY400
                    rest, claims = 1.0, []
                for claim in claims:
                    task = asyncio.create_task(self._deliver(receiver, claim))
                    under_way.add(task)
                    task.add_done_callback(under_way.discard)
                    task.add_done_callback(lambda _: fed.ring())
                await fed.within(rest)
        if under_way:
            await asyncio.wait(under_way)

    async def _claim(self, receiver: Receiver, room: int) -> tuple[Sequence[Claim], float]:
        if receiver.paused:
            return [], min(self._bell.patience, _LOOK_EVERY)
        if not room:
            return [], self._bell.patience
        lease = timedelta(seconds=self._policy.timeout + _LEASE_MARGIN)
        return await deliveries.claim(self._database, receiver.client, room, lease=lease, ahead=self._bell.patience)

    async def _deliver(self, receiver: Receiver, claim: Claim) -> None:
        try:
            result = await self._send(receiver, claim)
        except Exception as exc:
            # A mistake of ours: it is parked in the end like any other, and must not end the others.
            log.exception("a notification could not be made", client=receiver.client, refid=claim.event.refid)
            result = Outcome(why=f"a mistake of this service ({type(exc).__name__})")
        try:
            await self._settle(receiver, claim, result)
        except UNAVAILABLE as exc:
            # It is tried again when its claim runs out.
            log.error(  # noqa: TRY400 - a database that has gone needs no traceback each time
                "how a notification fared could not be written", client=receiver.client, error=type(exc).__name__
            )

    async def _send(self, receiver: Receiver, claim: Claim) -> Outcome:
        event = told(claim.event)
        body = event.model_dump_json(include={"type", "timestamp", "data"})
        headers = sign(receiver, event.id, datetime.now(UTC), body)
        headers |= {"Content-Type": "application/json", "User-Agent": f"kpayd/{__version__}"}
        began = time.monotonic()
        try:
            result = outcome(await self._egress.post(receiver.url, headers, body.encode()))
        except NotDelivered as exc:
            result = Outcome(why=str(exc))
        metrics.NOTIFICATION_SECONDS.observe(time.monotonic() - began)
        if result.why is None:
            metrics.NOTIFICATION_DELAY.observe(max(0.0, (datetime.now(UTC) - event.timestamp).total_seconds()))
        return result

    async def _settle(self, receiver: Receiver, claim: Claim, result: Outcome) -> None:
        """Write how an attempt ended, of the delivery and of the receiver, in one commit."""
        if result.why is None:
            await self._settler.received(claim, result.said or 0)
            metrics.NOTIFICATIONS.labels("delivered").inc()
            return
        wait = again_in(self._policy, claim.attempt, result.pause)
        disabled = await self._settler.failed(
            claim,
            receiver,
            said=result.said,
            why=result.why,
            again_in=wait,
            pause=result.pause,
            gone=result.gone,
            longest=self._policy.disable_after,
        )
        if result.pause is not None and receiver.client in self._receivers:
            self._receivers[receiver.client] = replace(receiver, paused=result.pause)  # until the next look
        metrics.NOTIFICATIONS.labels("parked" if wait is None else "failed").inc()
        if disabled:
            self._receivers.pop(receiver.client, None)
            metrics.RECEIVERS_DISABLED.labels("gone" if result.gone else "failing").inc()
            log.error("notifications were disabled", client=receiver.client, reason=result.why)
        log.warning(
            "a notification was not received",
            client=receiver.client,
            refid=claim.event.refid,
            attempt=claim.attempt,
            error=result.why,
            parked=wait is None,
        )
