"""The simulator as an ASGI application: its settings, its parts, its routes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx2
from starlette.applications import Starlette
from starlette.routing import Route

from app.simulator.control import Control
from app.simulator.delivery import Courier
from app.simulator.gateway import Account, Gateway, Mood
from app.simulator.ledger import Ledger
from app.simulator.pages import Pages
from app.simulator.postbacks import Payer
from app.simulator.tokens import Wallet


@dataclass(frozen=True, slots=True)
class Config:
    """What the simulator is told at its start.

    `key`: what the `Kpay-Key` header must be, not asked for when empty. `payer_delay`: seconds until a payer acts, and
    the unit of every other time. `latency`: seconds added to each answer.
    """

    username: str = "kpay"
    password: str = "kpay"
    retailerid: str = "02"
    key: str = ""
    payer_delay: float = 1.0
    latency: float = 0.0


def create_simulator(config: Config) -> Starlette:
    """Make a K-Pay with an empty ledger.

    Run it by `make_server` or `serve`: the behaviours that close a connection need the protocol that these give to
    uvicorn, and answer HTTP 500 under any other server.
    """
    client = httpx2.AsyncClient(trust_env=False, timeout=10.0)
    mood = Mood(down=False, refuse_credentials=False, latency=config.latency, payer_delay=config.payer_delay)
    ledger, payer = Ledger(), Payer(client)
    wallet, courier = Wallet(), Courier()
    account = Account(config.username, config.password, config.retailerid, config.key)
    gateway = Gateway(account, mood, ledger, payer, wallet=wallet, courier=courier)
    control, pages = Control(mood, ledger, payer), Pages(ledger, payer, wallet)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with client:
            yield
            await payer.stop()

    app = Starlette(
        lifespan=lifespan,
        routes=[
            Route("/", control.page),
            Route("/_simulator/magic", control.magic),
            Route("/_simulator/payments", control.payments),
            Route("/_simulator/payments/{refid:path}/settle", control.settle, methods=["POST"]),
            Route("/_simulator/payments/{refid:path}", control.payment),
            Route("/_simulator/behave", control.behave, methods=["POST"]),
            Route("/checkout/{tid}", pages.checkout, methods=["GET", "POST"]),
            Route("/token/{tid}", pages.token, methods=["GET", "POST"]),
            # K-Pay has one address for programs; which path it stands at is the account's affair.
            Route("/{path:path}", gateway.answer, methods=["POST"]),
        ],
    )
    app.state.closing = courier.closing
    return app
