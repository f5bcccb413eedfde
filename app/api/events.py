"""A client's events: the feed, the stream, and how its notifications fared."""

from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request, Response

from app import deliveries, feed
from app.api.context import Listener, Parts
from app.api.problems import Problem, documented, everywhere, invalid
from app.api.schemas import Delivery, DeliveryPage, DeliveryQuery, EventPage, EventQuery, Notification, Retried
from app.api.stream import EventStream
from app.feed import UnknownEvent

router = APIRouter(prefix="/v1", tags=["events"], responses=everywhere())

_STREAMED = """retry: 1000

event: payment.succeeded
id: evt_order-1042-1_4
data: {"id":"evt_order-1042-1_4","type":"payment.succeeded","refid":"order-1042-1", ...}

"""

EventId = Annotated[str, Path(description="The event's id", examples=["evt_order-1042-1_4"])]


@router.get("/events", operation_id="list_events", response_description="A page of events")
async def events(wanted: Annotated[EventQuery, Query()], parts: Parts, client: Listener) -> EventPage:
    """List your events in the order in which they were committed: none is skipped, none comes twice.

    Keep `next_cursor` and give it as `after` the next time; it is there at the end too, for what comes later.
    """
    position = 0
    if wanted.after is not None:
        try:
            position = await feed.position_of(parts.database, client.name, wanted.after)
        except UnknownEvent as exc:
            raise invalid([{"field": "after", "detail": str(exc)}]) from exc
    rows = await feed.after(parts.database, client.name, position, wanted.limit)
    items = [feed.told(row) for row in rows]
    return EventPage(items=items, next_cursor=items[-1].id if items else wanted.after)


@router.get(
    "/events/stream",
    response_class=Response,
    operation_id="stream_events",
    responses={
        **documented("overloaded", "unavailable", "stopping"),
        200: {
            "description": "Server-sent events: `id` is the event's, `event` its type, `data` the event itself as JSON",
            "content": {"text/event-stream": {"schema": {"type": "string"}, "example": _STREAMED}},
        },
    },
)
async def stream(
    request: Request,
    parts: Parts,
    client: Listener,
    last_event_id: Annotated[
        str | None, Header(description="The `id` of the last event that you have; left out, from the beginning")
    ] = None,
) -> Response:
    """Send your events as they come, as server-sent events; after a break go on by `Last-Event-ID`."""
    if parts.stopping.is_set():
        raise Problem(503, "stopping", "this process is stopping; connect again", headers={"Retry-After": "1"})
    position = 0
    if last_event_id:
        try:
            position = await feed.position_of(parts.database, client.name, last_event_id)
        except UnknownEvent as exc:
            raise invalid([{"field": "last-event-id", "detail": str(exc)}]) from exc
    return EventStream(request, parts, client.name, position)


@router.get("/deliveries", operation_id="list_deliveries", response_description="A page of notifications")
async def list_deliveries(wanted: Annotated[DeliveryQuery, Query()], parts: Parts, client: Listener) -> DeliveryPage:
    """List your notifications and how they fared, newest first."""
    try:
        rows, more = await deliveries.page(
            parts.database, limit=wanted.limit, state=wanted.state, client=client.name, cursor=wanted.cursor
        )
    except UnknownEvent as exc:
        raise invalid([{"field": "cursor", "detail": str(exc)}]) from exc
    items = [Delivery.of(row) for row in rows]
    return DeliveryPage(items=items, next_cursor=items[-1].id if more else None)


@router.post("/deliveries/retry", operation_id="retry_deliveries", response_description="How many are sent again")
async def retry_all(parts: Parts, client: Listener) -> Retried:
    """Send all your parked notifications again."""
    return Retried(retried=await deliveries.retry(parts.database, client=client.name))


@router.post(
    "/deliveries/{event_id}/retry",
    operation_id="retry_delivery",
    response_description="1, or 0 where it is on its way already",
    responses=documented("not_found"),
)
async def retry(event_id: EventId, parts: Parts, client: Listener) -> Retried:
    """Send one notification again, parked or delivered; one that is on its way already is left alone."""
    unknown = Problem(404, "not_found", "there is no such notification of yours")
    try:
        count = await deliveries.retry(parts.database, client=client.name, id_=event_id)
        there = count or await deliveries.is_there(parts.database, client.name, event_id)
    except UnknownEvent as exc:
        raise unknown from exc
    if not there:
        raise unknown
    return Retried(retried=count)


webhooks = APIRouter()
"""What the other side serves: documented here, and answered by no route of ours."""


@webhooks.post(
    "payment",
    status_code=204,
    operation_id="receive_notification",
    response_description="Received; any other 2xx says the same",
    responses={
        410: {"description": "Send no notification any more, of any payment"},
        429: {"description": "Slow down, for as long as `Retry-After` says; it is sent again"},
        503: {"description": "Slow down, for as long as `Retry-After` says; it is sent again"},
        "default": {"description": "Not received; it is sent again. A redirect is not followed"},
    },
)
def notification(
    body: Notification,
    webhook_id: Annotated[
        str,
        Header(
            description="The event's id, the same at every attempt; of two of one payment the larger number at its "
            "end is the later",
            examples=["evt_order-1042-1_4"],
        ),
    ],
    webhook_timestamp: Annotated[
        int, Header(description="When this attempt was made, in seconds since 1970", examples=[1769846421])
    ],
    webhook_signature: Annotated[
        str,
        Header(
            description="`v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body` under your webhook secret; "
            "after a rotation two of them, with a space between",
            examples=["v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4="],
        ),
    ],
) -> None:
    """Your URL gets every event of your payments, signed by the Standard Webhooks specification, at least once.

    In order for one payment. Verify the signature over the body as it came, then answer 2xx within 15 s.
    """
