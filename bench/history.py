"""Whether a history holds: what callers were told, what the database holds and what K-Pay knows, laid side by side.

Pure functions over plain data; each check returns a line for every violation, and none where all is well. The
promises are those of docs/rules.md and of the README; `tests/unit/test_history.py` shows that each check can fail.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

OPEN = frozenset({"created", "pending"})
RANK = {"unknown": -1, "created": 0, "pending": 1, "expired": 2, "failed": 2, "succeeded": 3}
"""How far a payment has come: no status is followed by one of a lower rank."""
POSTBACKS = frozenset({"postback", "forged"})
ANSWERS: Mapping[str, Collection[int]] = {
    "start": {200, 201, 408, 503},
    "read": {200, 404, 503},
    "check": {200, 404, 503},
    "list": {200, 503},
    "postback": {200, 400, 408, 503},
    "forged": {404, 408},
}
"""What each kind of call may be answered. 400 is for a postback that K-Pay itself had garbled, 408 for a body that
did not arrive while the service stood still."""
NOT_FOUND = 404
NOTHING_SENT = frozenset({408, 503})


@dataclass(frozen=True, slots=True)
class Call:
    """One request and its answer; times in seconds of one clock. `status` None: no answer came."""

    kind: str
    refid: str
    began: float
    ended: float
    status: int | None
    saw: Mapping[str, str] = field(default_factory=dict)
    """The status of each payment in the answer, by refid."""
    body: bytes = b""
    """What a postback said."""
    reply: str = ""
    """What a postback was answered."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a payment's timeline."""

    seq: int
    type: str
    status: str
    source: str = ""
    said: str = ""
    """K-Pay's code, where it said one."""


@dataclass(frozen=True, slots=True)
class Stored:
    """One payment as the database has it."""

    status: str
    last_seq: int
    events: Sequence[Entry] = ()


@dataclass(frozen=True, slots=True)
class Known:
    """One payment as K-Pay has it: the truth, how often the money was asked for, the postbacks that were taken."""

    statusid: str
    requests: int
    taken: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class History:
    """All that is known of a run. `evidence` are refid and body of every postback in the database."""

    calls: Sequence[Call]
    stored: Mapping[str, Stored]
    evidence: Collection[tuple[str, bytes]]
    known: Mapping[str, Known]
    unknown: Mapping[str, int] = field(default_factory=dict)
    """Refids that K-Pay was asked for and never took in, and how often."""


def reply_of(body: bytes) -> str:
    """Return the `reply` of an answer to a postback, or nothing."""
    try:
        answer = json.loads(body)
    except ValueError:
        return ""
    return str(answer.get("reply", "")) if isinstance(answer, dict) else ""


def expected(known: Known | None) -> Collection[str]:
    """Return the statuses that K-Pay's truth allows in the end; what it never took in has failed."""
    if known is None or known.statusid not in ("01", "03"):
        return {"failed"}
    return {"succeeded"} if known.statusid == "01" else {"pending"}


def false_success(history: History) -> Iterator[str]:
    """Nobody was told, and nothing holds, that a payment succeeded which K-Pay does not say was paid."""
    paid = {refid for refid, known in history.known.items() if known.statusid == "01"}
    for refid, stored in history.stored.items():
        if refid not in paid and "succeeded" in {stored.status, *(entry.status for entry in stored.events)}:
            yield f"{refid} is a success in the database and not at K-Pay"
    for call in history.calls:
        for refid, status in call.saw.items():
            if status == "succeeded" and refid not in paid:
                yield f"{refid} was called a success by {call.kind}, and K-Pay says it is none"


def timelines(history: History) -> Iterator[str]:
    """A timeline is numbered 1..n, begins with the creation, tells each change once and never goes back."""
    for refid, stored in history.stored.items():
        entries = stored.events
        if [entry.seq for entry in entries] != list(range(1, stored.last_seq + 1)):
            yield f"{refid} has the sequence {[entry.seq for entry in entries]}, and last_seq {stored.last_seq}"
        changes = [entry for entry in entries if entry.type == f"payment.{entry.status}"]
        twice = [type_ for type_, count in Counter(entry.type for entry in changes).items() if count > 1]
        if twice:
            yield f"{refid} tells twice of {', '.join(twice)}"
        if not changes or entries[0].type != "payment.created" or changes[-1].status != stored.status:
            yield f"{refid} is {stored.status}, and its timeline tells {[entry.type for entry in changes]}"
        ranks = [RANK[entry.status] for entry in entries]
        if ranks != sorted(ranks):
            yield f"{refid} went back: {[entry.status for entry in entries]}"


def never_guessed(history: History) -> Iterator[str]:
    """No request that K-Pay took in was called failed on the ground that it gave no answer."""
    for refid in history.known.keys() & history.stored.keys():
        for entry in history.stored[refid].events:
            if entry.type == "payment.failed" and entry.source == "gateway_reply" and not entry.said:
                yield f"{refid} was called failed without a word of K-Pay, which has it"


def durable(history: History) -> Iterator[str]:
    """A payment that anybody was told of is in the database, and so is every postback that was answered OK."""
    for call in history.calls:
        for refid, status in call.saw.items():
            stored = history.stored.get(refid)
            if stored is None:
                yield f"{refid} was told by {call.kind} ({call.status}), and is not in the database"
            elif RANK[stored.status] < RANK[status]:
                yield f"{refid} was told to be {status} by {call.kind}, and is {stored.status} in the database"
        if call.kind in POSTBACKS and call.reply == "OK" and (call.refid, call.body) not in history.evidence:
            yield f"{call.refid}: a postback was answered OK, and is not in the database"
    for refid, known in history.known.items():
        for body in known.taken:
            if (refid, body) not in history.evidence:
                yield f"{refid}: K-Pay's postback was answered OK, and is not in the database"


def asked_once(history: History) -> Iterator[str]:
    """K-Pay was asked for the money once at most, and only for what is in the database."""
    asked = {refid: known.requests for refid, known in history.known.items()} | dict(history.unknown)
    for refid, times in asked.items():
        if times > 1:
            yield f"{refid} was sent to K-Pay {times} times"
        if refid not in history.stored:
            yield f"{refid} was sent to K-Pay, and is not in the database"


def refused_unsent(history: History) -> Iterator[str]:
    """503 to a start means that nothing was sent: where no start was answered otherwise, K-Pay has not heard of it."""
    asked = {*history.known, *history.unknown}
    answers = defaultdict(set)
    for call in history.calls:
        if call.kind == "start":
            answers[call.refid].add(call.status)
    for refid, statuses in answers.items():
        if statuses <= NOTHING_SENT and refid in asked:
            yield f"{refid}: its caller was told that nothing was sent, and K-Pay was asked for the money"


def converged(history: History) -> Iterator[str]:
    """Every payment has come to K-Pay's truth."""
    for refid, stored in history.stored.items():
        known = history.known.get(refid)
        if stored.status not in expected(known):
            yield f"{refid} is {stored.status}, and K-Pay says {known.statusid if known else 'it never came'}"


def never_back(history: History) -> Iterator[str]:
    """Whoever asks after an answer has come is never told less than that answer told."""
    seen: defaultdict[str, list[tuple[float, float, str, str]]] = defaultdict(list)
    for call in history.calls:
        for refid, status in call.saw.items():
            seen[refid].append((call.began, call.ended, status, call.kind))
        if call.status == NOT_FOUND and call.kind != "forged":
            seen[call.refid].append((call.began, call.ended, "unknown", call.kind))
    for refid, answers in seen.items():
        by_end = iter(sorted(answers, key=lambda answer: answer[1]))
        earlier, most = next(by_end, None), ("", "")
        for began, _, status, kind in sorted(answers):
            while earlier is not None and earlier[1] < began:
                if not most[0] or RANK[earlier[2]] > RANK[most[0]]:
                    most = (earlier[2], earlier[3])
                earlier = next(by_end, None)
            if most[0] and RANK[status] < RANK[most[0]]:
                yield f"{refid} was {most[0]} to {most[1]}, and {status} to {kind} after that"


def answered_as_promised(history: History) -> Iterator[str]:
    """No call was answered by anything but what the contract lists; least of all by a 500."""
    for call in history.calls:
        if call.status is not None and call.status not in ANSWERS[call.kind]:
            yield f"{call.refid}: {call.kind} was answered {call.status}"


def forged_turned_away(history: History) -> Iterator[str]:
    """No trace of a postback by a forged path is in the database."""
    for call in history.calls:
        if call.kind == "forged" and (call.refid, call.body) in history.evidence:
            yield f"{call.refid}: a forged postback is in the database"


CHECKS: Sequence[Callable[[History], Iterator[str]]] = (
    false_success,
    timelines,
    never_guessed,
    durable,
    asked_once,
    refused_unsent,
    converged,
    never_back,
    answered_as_promised,
    forged_turned_away,
)


def violations(history: History) -> Sequence[str]:
    """Return every violation of every promise."""
    return [f"{check.__name__}: {line}" for check in CHECKS for line in check(history)]
