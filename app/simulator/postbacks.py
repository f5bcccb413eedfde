"""A payment's life after `pay`: its steps in time, and its postbacks over HTTP."""

import asyncio
from collections.abc import Coroutine
from typing import Final

import httpx2

from app.simulator.ledger import Payment, Sent
from app.simulator.script import PENDING, Outcome, Post

_RETRIES: Final = (1, 2, 4, 8)
"""After so many payer delays each a postback is sent again that met a 5xx or nobody: K-Pay tries again on 503."""
_PATIENCE: Final = 10.0
"""Seconds for one postback."""
_SERVER_ERROR: Final = 500


class Payer:
    """Plays payments: lets time pass, changes the truth, sends postbacks.

    `client` is the simulator's own; its owner closes it, after `stop`.
    """

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client
        self._lives: set[asyncio.Task[None]] = set()

    def start(self, payment: Payment) -> asyncio.Task[None]:
        """Begin a payment's life, and give the task of it: it ends when the last postback was answered or given up."""
        return self._live(payment, self._play(payment))

    def settle(self, payment: Payment, outcome: Outcome) -> asyncio.Task[None] | None:
        """Let the payer act now, and tell the returl: the task ends when the postback was answered or given up.

        This ends what the behaviour had in store. A payment that is not pending stays as it is, and that is None:
        nothing is awaited, so of two that settle at the same time exactly one does.
        """
        if payment.truth.statusid != PENDING.statusid:
            return None
        if payment.life is not None:
            payment.life.cancel()
        payment.truth, payment.mask = outcome, None
        return self._live(payment, self.post(payment, Post()))

    async def end(self, payment: Payment) -> None:
        """End a payment's life where it is: no more steps, no more postbacks."""
        if payment.life is not None:
            payment.life.cancel()
            await asyncio.wait({payment.life})

    async def stop(self) -> None:
        """End all lives where they are."""
        lives = list(self._lives)
        for life in lives:
            life.cancel()
        await asyncio.gather(*lives, return_exceptions=True)

    def _live(self, payment: Payment, life: Coroutine[None, None, None]) -> asyncio.Task[None]:
        payment.life = asyncio.create_task(life)
        self._lives.add(payment.life)
        payment.life.add_done_callback(self._lives.discard)
        return payment.life

    async def _play(self, payment: Payment) -> None:
        began = asyncio.get_running_loop().time()
        # Postbacks run beside the steps: a slow listener must not hold up what the payer does next.
        async with asyncio.TaskGroup() as postbacks:
            for step in payment.behaviour.life:
                await asyncio.sleep(began + step.at * payment.delay - asyncio.get_running_loop().time())
                payment.truth = step.truth or payment.truth
                payment.mask = None if step.unmask else payment.mask
                for _ in range(step.post.copies if step.post else 0):
                    postbacks.create_task(self.post(payment, step.post or Post()))

    async def post(self, payment: Payment, post: Post) -> None:
        """Send a postback to the payment's returl until it is answered by less than a 5xx, five times at most.

        Each attempt is in `payment.sent` before it is made. What it says is fixed at the first one.
        """
        outcome = post.says or payment.truth
        message = payment.message(outcome)
        if post.other_tid:
            message["tid"] = f"{payment.tid}9"
        body, content_type = post.write(message)
        for wait in (*_RETRIES, None):
            sent = Sent(outcome.statusid, body.decode(), content_type)
            payment.sent.append(sent)
            await self._send(str(payment.order["returl"]), body, sent)
            if wait is None or not (sent.status is None or sent.status >= _SERVER_ERROR):
                return
            await asyncio.sleep(wait * payment.delay)

    async def _send(self, returl: str, body: bytes, sent: Sent) -> None:
        try:
            # httpx2's time-outs are per read: only this bounds a listener that dribbles.
            async with asyncio.timeout(_PATIENCE):
                answer = await self._client.post(returl, content=body, headers={"Content-Type": sent.content_type})
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, ValueError) as exc:
            sent.error = f"{type(exc).__name__}: {exc}"
        else:
            sent.status, sent.answer = answer.status_code, answer.text
