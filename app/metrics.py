"""What Prometheus is told. Labels come from closed sets, never from what a caller or K-Pay wrote."""

import os

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

MULTIPROCESS_DIR = "PROMETHEUS_MULTIPROC_DIR"

PAYMENTS = Counter("kpayd_payments", "Payments that entered a status", ["status", "pmethod"])
REVIEWS = Counter("kpayd_reviews", "Payments that a person should look at", ["reason"])
GATEWAY_CALLS = Counter("kpayd_gateway_calls", "Calls to K-Pay", ["action", "outcome"])
GATEWAY_SECONDS = Histogram(
    "kpayd_gateway_call_seconds",
    "How long K-Pay took",
    ["action", "outcome"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60),
)
GATEWAY_UNSEEN = Counter("kpayd_gateway_unseen", "Things K-Pay said that this service has never seen", ["kind"])
POSTBACKS = Counter("kpayd_postbacks", "Postbacks by the answer they got", ["answer"])
POSTBACK_BATCH = Histogram(
    "kpayd_postback_batch", "Postbacks stored by one commit", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
)
PAYERS = Counter("kpayd_payers", "Payers who came back, by what they were answered", ["answer"])
SHED = Counter("kpayd_shed", "Calls turned away because this process is behind", ["kind"])
WRONG_KEYS = Counter("kpayd_wrong_keys", "Calls with a key that nobody has")
UNKNOWN_PAYMENTS = Counter(
    "kpayd_postbacks_unknown_payment",
    "Authentic postbacks for a payment that is not in the database: was one restored?",
)
NOTIFICATIONS = Counter("kpayd_notifications", "Attempts to notify a client, by how they ended", ["outcome"])
NOTIFICATION_SECONDS = Histogram(
    "kpayd_notification_seconds",
    "How long receivers took",
    buckets=(0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 20),
)
NOTIFICATION_DELAY = Histogram(
    "kpayd_notification_delay_seconds",
    "From an event until its notification was received",
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 5, 30, 120, 600, 3600, 21600, 86400, 172800),
)
RECEIVERS_DISABLED = Counter("kpayd_receivers_disabled", "Clients whose notifications were turned off", ["reason"])
DELIVERIES_PARKED = Gauge(
    "kpayd_deliveries_parked", "Notifications that wait for an operator", multiprocess_mode="mostrecent"
)
OLDEST_DELIVERY = Gauge(
    "kpayd_oldest_delivery_seconds", "Age of the notification that waits longest", multiprocess_mode="mostrecent"
)
STREAMS = Gauge("kpayd_streams", "Event streams that are open", multiprocess_mode="livesum")
WAITS = Gauge("kpayd_waits", "Calls that wait for a payment to end", multiprocess_mode="livesum")
BREAKER_OPEN = Gauge(
    "kpayd_gateway_breaker_open", "1 while checks are held back from K-Pay", multiprocess_mode="livemax"
)
OLDEST_DUE = Gauge(
    "kpayd_oldest_due_check_seconds", "Age of the check that has been due longest", multiprocess_mode="mostrecent"
)
OPEN_PAYMENTS = Gauge("kpayd_open_payments", "Payments that are still looked at", multiprocess_mode="mostrecent")


def exposition() -> bytes:
    """Return the metrics of this process, or of all processes of `serve --workers N`, in Prometheus' text format."""
    registry = REGISTRY
    if MULTIPROCESS_DIR in os.environ:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call] # the library has no types here
    return generate_latest(registry)
