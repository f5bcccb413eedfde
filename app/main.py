"""The wiring: settings in, a running service out."""

import asyncio
import gc
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import structlog
from fastapi import FastAPI

from app import __version__, egress, logs
from app.addresses import Allowed
from app.api import events as events_api
from app.api import health, payer, problems
from app.api import payments as payments_api
from app.api import tokens as tokens_api
from app.api.admission import Admission
from app.api.asgi import Authentication, BodyLimit, Farewell
from app.api.context import Context
from app.api.reading import Reading
from app.api.returl import Listener
from app.bell import Bell
from app.breaker import Breaker
from app.clients import Clients
from app.database import TELLING, Database, open_database
from app.domain import Rules
from app.guesses import Guesses
from app.herald import Herald
from app.inbox import Inbox
from app.intake import Intake
from app.intake import Policy as IntakePolicy
from app.kpay import client as kpay
from app.kpay.request import Merchant
from app.kpay.unseen import Unseen
from app.load import Load
from app.macs import Macs
from app.notify import Notifier
from app.notify import Policy as NotifyPolicy
from app.orders import Terms
from app.payments import Payments
from app.publish import Publisher
from app.reads import Lookup
from app.reconcile import Reconciler
from app.schema import Schema
from app.settings import LOOPBACK, Settings, is_loopback, load
from app.tokens import Tokens
from app.watch import watch
from app.worker import background, set_on_signal

log = structlog.get_logger()

API_CONNECTIONS = 10
INBOX_CONNECTIONS = 2
WORKER_CONNECTIONS = 6
TELLING_CONNECTIONS = 4
DRAIN_SECONDS = 100
"""How long requests in flight may take to finish after SIGTERM: longer than the longest K-Pay call or `wait`."""

_WRITE_SECONDS = 5.0
_GC_THRESHOLD = 10_000


@asynccontextmanager
async def open_context(settings: Settings) -> AsyncIterator[Context]:
    """Open everything a service is made of, and close it in the opposite order."""
    async with AsyncExitStack() as stack:
        pool = [
            await stack.enter_async_context(
                open_database(settings.database_url, pool=size, pooled=settings.database_pooled, name=name)
            )
            for size, name in (
                *((size, "kpayd") for size in (API_CONNECTIONS, INBOX_CONNECTIONS, WORKER_CONNECTIONS)),
                (TELLING_CONNECTIONS, TELLING),
            )
        ]
        endpoint = kpay.Endpoint(
            settings.gateway_url,
            settings.gateway_username,
            settings.gateway_password.get_secret_value(),
            settings.gateway_key.get_secret_value(),
            settings.gateway_timeout,
        )
        gateway = await stack.enter_async_context(kpay.connect(endpoint, checks=settings.check_concurrency))
        outside = await stack.enter_async_context(
            egress.connect(
                Allowed.of(settings.webhook_hosts),
                timeout=settings.webhook_timeout,
            )
        )
        yield _assemble(settings, pool, gateway, outside)


def _assemble(settings: Settings, pool: list[Database], gateway: kpay.KPay, outside: egress.Egress) -> Context:
    api, postbacks, worker, telling = pool
    bell, unseen, breaker = Bell(), Unseen(), Breaker()
    macs = Macs([key.get_secret_value() for key in settings.secret_keys])
    rules = Rules(settings.unknown_grace, tuple(settings.check_schedule), tuple(settings.postback_rechecks))
    hosts = {settings.gateway, *settings.checkout_hosts, *(LOOPBACK if is_loopback(settings.gateway) else ())}
    policy = IntakePolicy(rules, frozenset(hosts))
    intake = Intake(api, policy, bell)
    terms = Terms(settings.gateway, settings.gateway_timeout, settings.expire_after, settings.check_schedule[0])
    merchant = Merchant(settings.retailerid, settings.msisdn_format, settings.tokenpay_pmethod)
    return Context(
        settings=settings,
        database=api,
        lookup=Lookup(api),
        clients=Clients(api),
        payments=Payments(
            database=api,
            intake=intake,
            kpay=gateway,
            macs=macs,
            merchant=merchant,
            terms=terms,
            public_url=settings.public_url,
            unseen=unseen,
            breaker=breaker,
        ),
        tokens=Tokens(kpay=gateway, merchant=merchant, checkout_hosts=policy.checkout_hosts, unseen=unseen),
        intake=intake,
        inbox=Inbox(postbacks, bell),
        reconciler=Reconciler(
            database=worker,
            intake=Intake(worker, policy, bell),
            kpay=gateway,
            bell=bell,
            unseen=unseen,
            gateway=settings.gateway,
            gateway_timeout=settings.gateway_timeout,
            concurrency=settings.check_concurrency,
            breaker=breaker,
        ),
        publisher=Publisher(telling, bell),
        notifier=Notifier(
            telling,
            bell,
            outside,
            NotifyPolicy(
                settings.webhook_schedule,
                settings.webhook_timeout,
                settings.webhook_disable_after,
                settings.webhook_concurrency,
            ),
        ),
        macs=macs,
        bell=bell,
        unseen=unseen,
        load=Load(lambda: api.waiting_seconds),
        guesses=Guesses(),
        schema=Schema.of_this_code(),
    )


def create_app(settings: Settings, *, with_worker: bool = True) -> Listener:
    """Return the service as an ASGI application: the listener, what every call passes, and at the end the API (`api`).

    `with_worker` checks and notifies in this process too.
    """
    api = _create_api(settings, with_worker=with_worker)
    return Listener(api, Farewell(Admission(Authentication(Reading(BodyLimit(api))))))


def _spare_the_collector() -> None:
    """Let it walk what comes, in small portions: a third of the cost under load was what start-up had made."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD)


def _create_api(settings: Settings, *, with_worker: bool) -> FastAPI:

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_context(settings) as parts, background(*_always(parts)):
            app.state.context = parts
            set_on_signal(parts.stopping, alone=False, delay=settings.stop_delay)
            _spare_the_collector()
            log.info("kpayd is up", version=__version__, gateway=settings.gateway, worker=with_worker)
            async with _worker(parts) if with_worker else AsyncExitStack():
                yield
            with suppress(TimeoutError):
                async with asyncio.timeout(settings.gateway_timeout + _WRITE_SECONDS):
                    await parts.reconciler.finish()
            log.info("kpayd is down")

    app = FastAPI(
        title="kpayd",
        version=__version__,
        summary="Payments by K-Pay for a company's own services",
        lifespan=lifespan,
        redirect_slashes=False,
        webhooks=events_api.webhooks,
        openapi_tags=[{"name": name} for name in ("payments", "tokens", "events", "operation")],
    )
    problems.install(app)
    for router in (payments_api.router, tokens_api.router, events_api.router, health.router):
        # As the routes that they are: an included router looks for the one that is meant again, a fifth of a read.
        app.router.routes.extend(router.routes)
    app.add_route(payer.PATH, payer.way_back, methods=["GET", "POST"], include_in_schema=False)
    app.add_route(payer.NEWS_PATH, payer.news, methods=["GET"], include_in_schema=False)
    return app


def _always(parts: Context) -> list[Coroutine[Any, Any, None]]:
    """Return what runs beside the API for as long as the process does."""
    return [parts.inbox.run(), parts.load.watch(), parts.clients.run(), *_ears(parts)]


def _ears(parts: Context) -> list[Coroutine[Any, Any, None]]:
    """Return what lets this process hear of the others' doings: by the bell, or by looking."""
    ears = [watch(parts.database, parts.bell), _ring_at_the_end(parts)]
    if not parts.settings.database_pooled:  # a pooler cannot LISTEN
        ears.append(Herald(parts.settings.database_url, parts.bell).run())
    return ears


async def _ring_at_the_end(parts: Context) -> None:
    await parts.stopping.wait()
    parts.bell.ring_all()


@asynccontextmanager
async def _worker(parts: Context) -> AsyncIterator[None]:
    """Run checks, publishing and notifications; at the end begin nothing new and let what is under way finish."""
    works = (parts.reconciler, parts.publisher, parts.notifier)
    async with background(*(work.run(parts.stopping) for work in works)) as running:
        yield
        parts.stopping.set()
        longest = max(parts.settings.gateway_timeout, parts.settings.webhook_timeout) + _WRITE_SECONDS
        await asyncio.wait(running, timeout=longest)


async def work(settings: Settings) -> None:
    """Run the worker alone until SIGTERM or SIGINT."""
    async with open_context(settings) as parts:
        set_on_signal(parts.stopping, alone=True)
        _spare_the_collector()
        log.info("kpayd's worker is up", version=__version__, gateway=settings.gateway)
        async with background(*_ears(parts)), _worker(parts):
            await parts.stopping.wait()
        log.info("kpayd's worker is down")


def from_environment(*, with_worker: bool = True) -> Listener:
    """Return the service as its environment describes it: what each uvicorn process of `kpayd serve` calls."""
    settings = load(Settings)
    logs.configure(settings.log_format, settings.log_level)
    return create_app(settings, with_worker=with_worker)


web_alone = partial(from_environment, with_worker=False)
