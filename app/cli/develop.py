"""Commands for whoever writes a service that uses kpayd: listen and trigger."""

import asyncio
import base64
import json as jsonlib
import secrets
import signal
import sys
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import typer
from rich.text import Text

from app.cli.output import Json, dump, err, fail, out, table
from app.settings import PREFIX, is_loopback

if TYPE_CHECKING:
    from app.dev.forward import Forwarder, Sent
    from app.dev.remote import Remote

T = TypeVar("T")

Url = Annotated[str, typer.Option(envvar=f"{PREFIX}URL", help="The running service.")]
Key = Annotated[
    str | None,
    typer.Option(envvar=f"{PREFIX}KEY", help="An API key of it; left out, the one of `kpayd dev`.", show_default=False),
]
DataDir = Annotated[Path, typer.Option(help="Where `kpayd dev` keeps its data, and its key.")]

_LAPTOP, _SERVICE, _SIMULATOR = Path(".kpayd"), "http://127.0.0.1:8000", "http://127.0.0.1:8081"
_EXPIRED = "payment.expired"
_COLORS = {"payment.succeeded": "green", "payment.needs_review": "yellow", "payment.failed": "red", _EXPIRED: "red"}


class _Payer(NamedTuple):
    """A payer of the simulator (docs/simulator.md) who makes an event happen."""

    msisdn: str
    does: str


_PAYERS = {
    "payment.pending": _Payer("250780000005", "the payer never acts"),
    "payment.succeeded": _Payer("250780000000", "the payer pays"),
    "payment.failed": _Payer("250780000002", "the payer has insufficient funds"),
    "payment.needs_review": _Payer("250780000022", "the payer pays, and K-Pay gives no momtransactionid"),
    _EXPIRED: _Payer("250780000005", "the payer never acts"),
}


def install(app: typer.Typer) -> None:
    """Add these commands to `kpayd`."""
    app.command()(listen)
    app.command()(trigger)


def listen(
    forward_to: Annotated[str | None, typer.Option(help="Your receiver; left out, events are only shown.")] = None,
    url: Url = _SERVICE,
    key: Key = None,
    events: Annotated[str | None, typer.Option(help="Only these types, comma-separated.")] = None,
    from_start: Annotated[bool, typer.Option("--from-start", help="All events there are, not only new ones.")] = False,
    secret: Annotated[str | None, typer.Option(help="Sign with this one (whsec_...), not with a fresh one.")] = None,
    data_dir: DataDir = _LAPTOP,
    json: Annotated[bool, typer.Option("--json", help="Print each event as one line of JSON.")] = False,
) -> None:
    """Show a client's events as they come, and forward them to a receiver on this laptop. Ctrl-C ends it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    remote, shown = _remote(url, key, data_dir), _Shown(json=json)
    wanted = _types(events, forwarded=forward_to is not None)
    sending = nullcontext() if forward_to is None else _forwarder(forward_to, secret)

    async def follow() -> None:
        async with remote, sending as sender:
            after = await remote.cursor(from_start=from_start)
            _say(f"listening to {remote.url}{f', forwarding to {sender.url}' if sender else ''}; Ctrl-C ends it")
            if sender and secret is None:
                _say(f"use it to verify on this laptop: {sender.secret}")
            async with aclosing(remote.follow(after, _say)) as stream:
                async for event in stream:
                    if wanted is None or event["type"] in wanted:
                        shown.show(event, await sender.send(event) if sender else None)

    _run(follow())


def trigger(
    event: Annotated[str | None, typer.Argument(help=", ".join(_PAYERS), show_default=False)] = None,
    url: Url = _SERVICE,
    simulator_url: Annotated[str, typer.Option(help="The simulator that is its K-Pay.")] = _SIMULATOR,
    key: Key = None,
    amount: Annotated[int, typer.Option(min=1, help="In RWF.")] = 4200,
    wait: Annotated[float, typer.Option(min=0, max=3600, help="Seconds to wait for the event.")] = 15,
    data_dir: DataDir = _LAPTOP,
    json: Json = False,
) -> None:
    """Make an event happen by a payment, where K-Pay is the simulator: nothing is started anywhere else."""
    if event not in _PAYERS:
        known = ", ".join(_PAYERS)
        fail(f"name an event: {known}" if event is None else f"there is no {event!r} to trigger; there are {known}", 2)
    from app.dev.remote import Wish, provoke

    payer, refid = _PAYERS[event], f"trigger-{secrets.token_hex(5)}"
    wish = Wish(event, refid, payer.msisdn, amount)
    started = f"started {refid}: {payer.does}"
    work = provoke(_remote(url, key, data_dir), simulator_url, wish, wait=wait, say=lambda: _say(started))
    timeline = _run(work)
    seen = any(entry["type"] == event for entry in timeline)
    if json:
        dump({"event": event, "refid": refid, "seen": seen, "events": timeline})
    else:
        _show(timeline)
        if seen:
            out.print(Text.assemble((event, _COLORS.get(event, "")), f"  {refid}"))
    if not seen and event == _EXPIRED:
        when = "when KPAYD_EXPIRE_AFTER of the service is over (a day unless set there)"
        _say(f"{refid} is {timeline[-1]['status']}; its {event} comes by itself {when}: kpayd listen will show it")
    elif not seen:
        fail(f"{event} did not come within {wait:g} s; {refid} is {timeline[-1]['status']}")


def _show(timeline: Sequence[Mapping[str, Any]]) -> None:
    def said(entry: Mapping[str, Any]) -> str | None:
        return " ".join(filter(None, map(entry.get, ("retcode", "statusid", "statusdesc", "detail")))) or None

    names = ("type", "source", "status")
    rows = [(each["seq"], _time(each["created_at"]), *map(each.get, names), said(each)) for each in timeline]
    table(("#", "when", "what", "source", "status", "K-Pay's words"), rows)


class _Shown:
    """Prints each event in one line, and how the receiver took it where it was forwarded."""

    def __init__(self, *, json: bool) -> None:
        self._json, self._width, self._has_failed = json, 0, False

    def show(self, event: Mapping[str, Any], sent: "Sent | None") -> None:
        """Print one event."""
        if self._json:
            took = sent and {"http_status": sent.http_status, "error": sent.why, "seconds": round(sent.seconds, 3)}
            typer.echo(jsonlib.dumps({**event, **({"forwarded": took} if took else {})}, ensure_ascii=False))
            return
        self._width = max(self._width, len(event["refid"]))
        kind = (f"{event['type']:<20}", _COLORS.get(event["type"], ""))
        head = (f"{_time(event['timestamp']):%m-%d %H:%M:%S}  ", kind, f"  {event['refid']:<{self._width}}  ")
        out.print(Text.assemble(*head, _of(event["data"]) if sent is None else _taken(sent)), soft_wrap=True)
        if sent and sent.why and not self._has_failed:
            self._has_failed = True
            _say("what is not received is not sent again here; --from-start sends all there is")


def _taken(sent: "Sent") -> Text:
    took = f"  {sent.seconds * 1000:,.0f} ms"
    if sent.why is None:
        return Text.assemble((f"HTTP {sent.http_status}", "green"), took)
    return Text.assemble((sent.why if sent.http_status else f"not received: {sent.why}", "red"), took)


def _of(payment: Mapping[str, Any]) -> Text:
    failure = payment["failure"] and f"{payment['failure']['code']}: {payment['failure']['detail']}"
    told = (f"{payment['amount']:,} {payment['currency']}", failure, ", ".join(payment["review_reasons"]))
    line = "  ".join(word for word in told if word)
    return Text("".join(char if char.isprintable() else " " for char in line))


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _types(given: str | None, *, forwarded: bool) -> frozenset[str] | None:
    """Return which types are wanted, None being all: what is not notified of is not forwarded unless asked for."""
    from app.publish import NOTIFIED

    if given is None:
        return NOTIFIED if forwarded else None
    types, known = frozenset(each.strip() for each in given.split(",")), NOTIFIED | {"payment.created"}
    if not types <= known:
        fail(f"--events can be {', '.join(sorted(known))}, comma-separated", 2)
    return types


def _forwarder(forward_to: str, secret: str | None) -> "AbstractAsyncContextManager[Forwarder]":
    from app.clients import new_webhook_secret
    from app.dev.forward import forwarder, receiver_url

    try:
        url = receiver_url(forward_to)
    except ValueError as exc:
        fail(f"--forward-to {exc}", 2)
    if secret is None:
        return forwarder(url, new_webhook_secret())
    try:
        usable = secret.startswith("whsec_") and base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        usable = False
    if not usable:
        fail("--secret must be whsec_ and base64, as `kpayd clients add` shows it", 2)
    return forwarder(url, secret)


def _remote(url: str, key: str | None, data_dir: Path) -> "Remote":
    from app.dev.remote import Remote, base_url

    try:
        address, host = base_url(url)
    except ValueError as exc:
        fail(f"--url {exc}", 2)
    whose, path = f"--key or {PREFIX}KEY", data_dir / "laptop.json"
    if key is None and is_loopback(host) and path.exists():
        whose = str(path)
        try:
            key = str(jsonlib.loads(path.read_text())["key"])
        except (OSError, ValueError, KeyError, TypeError):
            fail(f"{path} cannot be read; give a key by --key or {PREFIX}KEY", 2)
    if key is None:
        laptop = f"; there is no {path} of `kpayd dev` here (--data-dir)" if is_loopback(host) else ""
        fail(f"give a key of the service by --key or {PREFIX}KEY: `kpayd clients add NAME` makes one{laptop}", 2)
    key = key.strip()
    if not (key and key.isascii() and key.isprintable()):
        fail(f"the key from {whose} is none: `kpayd clients add NAME` shows one, kpk_...", 2)
    return Remote(address, key, whose)


def _say(words: str) -> None:
    err.print(words, markup=False, soft_wrap=True)


def _run(work: Coroutine[Any, Any, T]) -> T:
    from app.dev.remote import RemoteError

    try:
        return asyncio.run(work)
    except RemoteError as exc:
        fail(str(exc))
