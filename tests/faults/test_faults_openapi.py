"""The service against its own OpenAPI document, over real HTTP: schemathesis makes the requests and reads the answers.

Its checks: no 5xx; every status, header, content type and body is as documented; what the document forbids is refused;
nothing is answered without the key. It makes no NUL and no lone surrogate: those are in `test_faults_bodies.py`.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from schemathesis import BaseSchema, GenerationMode
from schemathesis.specs.openapi.checks import ignored_auth, negative_data_rejection, positive_data_acceptance

from tests.conftest import QUICK
from tests.support import Service, Simulator, new_refid, payment, run_service

Case = schemathesis.Case[Any]
Operation = schemathesis.APIOperation[Any, Any, Any, Any]

PAID_AT_ONCE = "250780000007"
OPERATIONS = (
    "POST /v1/payments",
    "GET /v1/payments",
    "GET /v1/payments/{refid}",
    "POST /v1/payments/{refid}/check",
    "GET /v1/payments/{refid}/events",
    "POST /v1/tokens",
    "GET /v1/tokens",
    "GET /v1/events",
    "GET /v1/deliveries",
    "POST /v1/deliveries/retry",
    "POST /v1/deliveries/{event_id}/retry",
    "GET /healthz",
    "GET /readyz",
)
WITHOUT_END = "GET /v1/events/stream"
"""Never answered whole: tests/service/test_stream.py plays it."""
WITH_INPUT = OPERATIONS[:-2]
MODES = {"allowed": GenerationMode.POSITIVE, "forbidden": GenerationMode.NEGATIVE}
REFUSES_UNKNOWN_PARAMETERS = frozenset(
    {
        "POST /v1/payments",
        "GET /v1/payments",
        "POST /v1/tokens",
        "GET /v1/tokens",
        "GET /v1/events",
        "GET /v1/deliveries",
    }
)
LIKELY = {
    "POST /v1/payments": payment(PAID_AT_ONCE, amount=None, bankid="63510")
    | {"cnumber": None, "logourl": None, "currency": "RWF"},
    "POST /v1/tokens": {"msisdn": PAID_AT_ONCE, "email": "ikaneza@example.rw"},
}
"""What no document can say in full: phone numbers, e-mail addresses, URLs, which bank goes with which method."""
LONGEST = 10.0
"""Seconds that any answer may take."""


@dataclass(frozen=True)
class Documented:
    """The service with its own document."""

    service: Service
    document: BaseSchema
    line: requests.Session
    paid: str
    """A payment that is final, so that no `wait` is waited for."""

    def operation(self, label: str) -> Operation:
        """Return one operation of the document."""
        found = self.document.find_operation_by_label(label)
        assert found is not None
        return found

    def status_of(self, case: Case, *but: schemathesis.CheckFunction) -> int:
        """Send a case, see that the answer is as documented (`but` in this) and there in time; return its status."""
        headers = {"Authorization": f"Bearer {self.service.key}"}
        left_out = [positive_data_acceptance, *but]
        if case.operation.label not in REFUSES_UNKNOWN_PARAMETERS:
            left_out.append(negative_data_rejection)
        how: dict[str, Any] = {"session": self.line, "timeout": LONGEST}
        answer = case.call(base_url=self.service.url, headers=headers, **how)
        for _ in range(50):  # a machine that is full of tests is behind now and then, and says so
            if answer.status_code != 503 or answer.json()["code"] != "overloaded":
                break
            time.sleep(0.1)
            answer = case.call(base_url=self.service.url, headers=headers, **how)
        case.validate_response(answer, excluded_checks=left_out, headers=headers, transport_kwargs=how)
        return answer.status_code


@pytest.fixture(scope="module")
def documented(
    new_database: Callable[[], str], simulator: Simulator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Documented]:
    """Run a service of its own, since so many wrong keys are held against an address, and read its document."""
    folder = tmp_path_factory.mktemp("documented")
    with run_service(folder, new_database(), simulator, QUICK) as service, requests.Session() as session:
        session.trust_env = False
        document = schemathesis.openapi.from_dict(service.http.get("/openapi.json").json())
        yield Documented(service, document, session, service.start(PAID_AT_ONCE)["refid"])


def test_every_operation_of_the_document_is_played(documented: Documented) -> None:
    """The list above leaves none out."""
    paths = documented.service.http.get("/openapi.json").json()["paths"]
    assert {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods} == {
        *OPERATIONS,
        WITHOUT_END,
    }


def test_every_status_that_can_be_brought_about_is_documented(documented: Documented) -> None:
    """Each of these, brought about on purpose, has the body that is documented."""
    service = documented.service
    start, read = documented.operation("POST /v1/payments"), documented.operation("GET /v1/payments/{refid}")
    asked = payment("250780000001", refid=new_refid(), metadata={"shop": "3"}, orderid="o")
    with service.client(service.new_key("reader", "payments:read")) as reader, service.client(None) as nobody:
        brought = [
            (201, start, service.http.post("/v1/payments", json=asked)),
            (200, start, service.http.post("/v1/payments", json=asked)),
            (409, start, service.http.post("/v1/payments", json=asked | {"amount": 1})),
            (422, start, service.http.post("/v1/payments", content=b"[" * 60_000)),
            (413, start, service.http.post("/v1/payments", content=b" " * 70_000)),
            (401, start, nobody.post("/v1/payments", json=asked)),
            (403, start, reader.post("/v1/payments", json=asked)),
            (404, read, service.http.get(f"/v1/payments/{new_refid()}")),
            (404, read, reader.get(f"/v1/payments/{documented.paid}")),
            (422, read, service.http.get(f"/v1/payments/{documented.paid}?wait=nan")),
            (200, read, service.http.get(f"/v1/payments/{documented.paid}")),
        ]
    assert [answer.status_code for _, _, answer in brought] == [status for status, _, _ in brought]
    for _, operation, answer in brought:
        operation.validate_response(answer)


@pytest.mark.parametrize("label", OPERATIONS)
def test_every_limit_of_the_document_is_the_services(label: str, documented: Documented) -> None:
    """A value at, below and beyond each documented limit, and every other method, is answered as documented."""
    operation, document = documented.operation(label), documented.document
    modes, config = list(GenerationMode), document.config.generation
    cases = document.iter_coverage_cases(operation, generation_modes=modes, generation_config=config)
    seen = set()
    for number, case in enumerate(cases):
        if number % 2 and "refid" in case.path_parameters:
            case.path_parameters["refid"] = documented.paid
        seen.add(documented.status_of(case))
    assert seen & {200, 201, 404}


def _is_sent_as_its_item(value: object) -> bool:
    """Whether a query's value is forbidden as a list, but nobody can tell that from what is sent of it."""
    return isinstance(value, list) and len(value) <= 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("label", WITH_INPUT)
def test_what_is_answered_is_what_the_document_says(label: str, mode: str, documented: Documented) -> None:
    """60 requests that the document allows, and 60 that it forbids, are answered as it says."""
    operation = documented.operation(label)
    cases = operation.as_strategy(MODES[mode])
    if "{refid}" in label:
        cases |= operation.as_strategy(MODES[mode], path_parameters={"refid": documented.paid})
    seen = set()

    @settings(
        max_examples=60, derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    @given(cases, st.sampled_from([True, True, False]))
    def answered(case: Case, likely: bool) -> None:  # noqa: FBT001 - hypothesis gives it
        if likely and mode == "allowed" and isinstance(case.body, dict):
            case.body |= LIKELY.get(label, {})
        assume(mode == "allowed" or not any(map(_is_sent_as_its_item, case.query.values())))
        seen.add(documented.status_of(case, ignored_auth))  # so many wrong keys are 429

    answered()
    allowed = {404} if "{event_id}" in label else {200, 201}  # this client has no notifications
    assert seen & (allowed if mode == "allowed" else {401, 422, 429})
