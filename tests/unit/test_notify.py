"""What an answer to a notification means, when it is tried again, and how it is signed: pure functions."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from app.clients import new_webhook_secret
from app.egress import Reply
from app.notify import Outcome, Policy, again_in, outcome, sign
from app.receivers import Receiver

POLICY = Policy(schedule=(5.0, 30.0, 120.0), timeout=15.0, disable_after=432_000.0, concurrency=16)
JITTER = 0.1
BODY = '{"type":"payment.succeeded","data":{"cname":"KÄNEZA"}}'


def receiver(secrets: Sequence[str]) -> Receiver:
    """Return a receiver with some secrets, the valid ones, newest first."""
    return Receiver("shop", "https://shop.example.rw/hook", secrets, 0.0)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 206, 299])
def test_any_2xx_is_received(status: int) -> None:
    """Whatever the receiver's framework makes of "fine" is received; what else it says changes nothing."""
    assert outcome(Reply(status, retry_after=60.0)) == Outcome(status)


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308, 400, 401, 404, 409, 418, 500, 502, 599])
def test_anything_else_has_failed(status: int) -> None:
    """A redirect too: it is not followed, and it leaves nobody alone, whatever Retry-After says."""
    assert outcome(Reply(status, retry_after=60.0)) == Outcome(status, f"HTTP {status}")


def test_410_is_gone_for_good() -> None:
    """One 410, and the receiver is gone."""
    assert outcome(Reply(410, None)) == Outcome(410, "HTTP 410", gone=True)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("said", "pause"), [(7.5, 7.5), (0.0, 0.0), (86_400.0, 86_400.0)])
def test_slow_down_is_heard(status: int, said: float, pause: float) -> None:
    """A receiver that asks for time is left alone for as long as it said."""
    assert outcome(Reply(status, said)) == Outcome(status, f"HTTP {status}", pause=pause)


@pytest.mark.parametrize("status", [429, 503])
def test_slow_down_without_a_time(status: int) -> None:
    """A receiver that asks for time and does not say how much gets some."""
    pause = outcome(Reply(status, None)).pause
    assert pause is not None
    assert 0 < pause <= 60


@pytest.mark.parametrize(("attempt", "seconds"), [(1, 5.0), (2, 30.0), (3, 120.0)])
def test_the_schedule_with_jitter(attempt: int, seconds: float) -> None:
    """After each attempt its own time, give or take a tenth, and not the same for all that failed together."""
    waits = [again_in(POLICY, attempt, None) for _ in range(200)]
    assert all(wait is not None and seconds * (1 - JITTER) <= wait <= seconds * (1 + JITTER) for wait in waits)
    assert any(one != other for one, other in pairwise(waits))


@pytest.mark.parametrize("pause", [None, 0.0, 3_600.0])
def test_after_the_schedule_it_is_parked(pause: float | None) -> None:
    """There is one attempt more than there are times between them; a receiver cannot ask for more of them."""
    assert again_in(POLICY, len(POLICY.schedule), pause) is not None
    assert again_in(POLICY, len(POLICY.schedule) + 1, pause) is None
    assert again_in(POLICY, 1_000, pause) is None


def test_a_pause_lengthens_a_wait_and_never_shortens_it() -> None:
    """What the receiver asks for counts where it is longer than the schedule."""
    assert again_in(POLICY, 1, 3_600.0) == 3_600.0
    short = again_in(POLICY, 2, 1.0)
    assert short is not None
    assert short >= 30.0 * (1 - JITTER)


@pytest.mark.parametrize("count", [1, 2])
def test_signed_by_each_valid_secret(count: int) -> None:
    """Whoever holds any of the valid secrets can verify it by the specification's own library; nobody else can."""
    secrets = [new_webhook_secret() for _ in range(count)]
    headers = sign(receiver(secrets), "evt_order-1042_3", datetime.now(UTC), BODY)
    assert len(headers["webhook-signature"].split(" ")) == count
    for secret in secrets:
        assert Webhook(secret).verify(BODY.encode(), headers)["data"] == {"cname": "KÄNEZA"}
    with pytest.raises(WebhookVerificationError):
        Webhook(new_webhook_secret()).verify(BODY.encode(), headers)


@pytest.mark.parametrize(
    "change", [{"webhook-id": "evt_order-1042_4"}, {"webhook-timestamp": str(int(datetime.now(UTC).timestamp()) - 60)}]
)
def test_the_signature_covers_the_headers(change: dict[str, str]) -> None:
    """With another id or time it does not verify, and neither does another body."""
    secret = new_webhook_secret()
    headers = sign(receiver([secret]), "evt_order-1042_3", datetime.now(UTC), BODY)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(BODY.encode(), headers | change)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(BODY.replace("succeeded", "failed").encode(), headers)


def test_the_time_is_the_attempts() -> None:
    """In whole seconds since 1970; a receiver turns away what is older than five minutes."""
    secret, at = new_webhook_secret(), datetime(2026, 3, 1, 12, 0, 0, 999_999, tzinfo=UTC)
    headers = sign(receiver([secret]), "evt_a_1", at, BODY)
    assert headers["webhook-timestamp"] == str(int(at.timestamp()))
    stale = sign(receiver([secret]), "evt_a_1", datetime.now(UTC) - timedelta(minutes=6), BODY)
    with pytest.raises(WebhookVerificationError, match="too old"):
        Webhook(secret).verify(BODY.encode(), stale)
