"""The checker of histories finds what it is for: a true history has no fault, and each kind of lie is caught."""

from dataclasses import replace

import pytest

from bench.history import Call, Entry, History, Known, Stored, reply_of, violations

BODY = b'{"refid": "a", "statusid": "01"}'


def told(refid: str, status: str, *, began: float, kind: str = "read", answer: int = 200) -> Call:
    """Return a call that was told a payment's status and took a tenth of a second."""
    return Call(kind, refid, began, began + 0.1, answer, {refid: status})


def entries(*types: str) -> list[Entry]:
    """Return a timeline of these types; what changes nothing leaves the status as it was."""
    made: list[Entry] = []
    for seq, type_ in enumerate(types, 1):
        changed = type_ not in ("evidence", "payment.needs_review")
        made.append(Entry(seq, type_, type_.removeprefix("payment.") if changed else made[-1].status))
    return made


def stored(*types: str) -> Stored:
    """Return a payment with this timeline."""
    made = entries(*types)
    return Stored(made[-1].status, len(made), made)


REFUSED = Entry(2, "payment.failed", "failed", "gateway_reply", "606")

TRUE = History(
    calls=[
        Call("start", "a", 0.0, 0.2, None),
        told("a", "pending", began=1.0, kind="start", answer=200),
        Call("postback", "a", 2.0, 2.1, 200, body=BODY, reply="OK"),
        Call("forged", "a", 2.0, 2.1, 404, body=b"forged"),
        told("a", "succeeded", began=3.0),
        told("b", "created", began=0.0, kind="start", answer=201),
        told("b", "failed", began=5.0, kind="check"),
        Call("list", "", 6.0, 6.1, 200, {"a": "succeeded", "b": "failed"}),
        Call("read", "c", 0.0, 0.1, 404),
        Call("start", "c", 0.0, 0.1, 503),
        Call("start", "c", 0.5, 9.0, 408),
        told("d", "failed", began=1.0),
        told("d", "succeeded", began=2.0),
    ],
    stored={
        "a": stored("payment.created", "payment.pending", "evidence", "payment.succeeded"),
        "b": stored("payment.created", "payment.failed"),
        "d": stored("payment.created", "payment.failed", "payment.succeeded", "payment.needs_review"),
        "e": stored("payment.created", "payment.pending"),
        "f": Stored("failed", 2, [*entries("payment.created"), REFUSED]),
        "g": Stored("failed", 2, [*entries("payment.created"), replace(REFUSED, said="")]),
    },
    evidence={("a", BODY)},
    known={"a": Known("01", 1, [BODY]), "d": Known("01", 1), "e": Known("03", 1), "f": Known("02", 1)},
    unknown={"b": 1},
)
"""A paid payment, one that K-Pay never took in, one that was never recorded, a late success, one still open,
one that K-Pay refused, and one that never reached it."""


def changed(*calls: Call, rows: dict[str, Stored] | None = None, known: dict[str, Known] | None = None) -> History:
    """Return the true history with these calls, rows and truths besides or instead."""
    return replace(
        TRUE, calls=[*TRUE.calls, *calls], stored={**TRUE.stored, **(rows or {})}, known={**TRUE.known, **(known or {})}
    )


LIES = {
    "a success that K-Pay does not know of": (
        changed(rows={"b": stored("payment.created", "payment.succeeded")}),
        {"false_success", "converged"},
    ),
    "a success that was undone in silence": (
        changed(rows={"b": stored("payment.created", "payment.succeeded", "payment.failed")}),
        {"false_success", "timelines"},
    ),
    "a success that one answer made up": (changed(told("e", "succeeded", began=9)), {"false_success", "durable"}),
    "a success that was left": (
        changed(rows={"a": stored("payment.created", "payment.succeeded", "payment.failed")}),
        {"timelines", "durable", "converged"},
    ),
    "a gap in the sequence": (
        changed(rows={"b": Stored("failed", 3, [entries("payment.created")[0], Entry(3, "payment.failed", "failed")])}),
        {"timelines"},
    ),
    "an entry that last_seq does not count": (
        changed(rows={"b": replace(TRUE.stored["b"], last_seq=1)}),
        {"timelines"},
    ),
    "a change that is told twice": (
        changed(rows={"b": stored("payment.created", "payment.failed", "payment.failed")}),
        {"timelines"},
    ),
    "a change that is not told": (
        changed(rows={"e": replace(TRUE.stored["e"], status="failed")}, known={"e": Known("02", 1)}),
        {"timelines"},
    ),
    "a timeline that begins in the middle": (
        changed(rows={"b": Stored("failed", 1, [Entry(1, "payment.failed", "failed")])}),
        {"timelines"},
    ),
    "a timeline that is empty": (changed(rows={"b": Stored("failed", 0)}), {"timelines"}),
    "a guess": (
        changed(
            rows={
                "d": Stored(
                    "succeeded",
                    3,
                    [
                        Entry(1, "payment.created", "created", "caller"),
                        Entry(2, "payment.failed", "failed", "gateway_reply"),
                        Entry(3, "payment.succeeded", "succeeded", "checkstatus", "01"),
                    ],
                )
            }
        ),
        {"never_guessed"},
    ),
    "a payment that was told and lost": (changed(told("z", "created", began=1)), {"durable"}),
    "a status that was told and lost": (
        changed(rows={"a": stored("payment.created", "payment.pending")}),
        {"durable", "converged"},
    ),
    "a postback that was answered OK and lost": (
        changed(Call("postback", "b", 1.0, 1.1, 200, body=b"other", reply="OK")),
        {"durable"},
    ),
    "K-Pay's own postback that was answered OK and lost": (
        changed(known={"d": Known("01", 1, [b"other"])}),
        {"durable"},
    ),
    "two requests that K-Pay took one of": (changed(known={"a": Known("01", 2, [BODY])}), {"asked_once"}),
    "two requests that K-Pay took none of": (replace(TRUE, unknown={"b": 2}), {"asked_once"}),
    "a request before the row": (changed(known={"z": Known("02", 1)}), {"asked_once"}),
    "a request that its caller was told of as not sent": (
        changed(rows={"c": stored("payment.created", "payment.failed")}, known={"c": Known("02", 1)}),
        {"refused_unsent"},
    ),
    "a payment that stays open": (changed(known={"e": Known("02", 1)}), {"converged"}),
    "a paid one that is called failed": (changed(known={"b": Known("01", 1)}), {"converged"}),
    "an answer that goes back": (changed(told("a", "pending", began=3.2)), {"never_back"}),
    "a list that goes back": (changed(Call("list", "", 7.0, 7.1, 200, {"b": "created"})), {"never_back"}),
    "an answer that forgets": (changed(Call("read", "b", 9.0, 9.1, 404)), {"never_back"}),
    "a 500": (changed(Call("read", "a", 1.0, 1.1, 500)), {"answered_as_promised"}),
    "a conflict with itself": (changed(Call("start", "a", 1.0, 1.1, 409)), {"answered_as_promised"}),
    "a forged postback that is taken": (
        changed(Call("forged", "a", 1.0, 1.1, 200, body=b"forged", reply="OK")),
        {"answered_as_promised", "durable"},
    ),
    "a forged postback that is kept": (
        replace(TRUE, evidence={("a", BODY), ("a", b"forged")}),
        {"forged_turned_away"},
    ),
}


def test_a_true_history_has_no_fault() -> None:
    """Lost answers, repetitions, refusals and late successes are no violations."""
    assert violations(TRUE) == []


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_caught(lie: str) -> None:
    """Each lie is named by the checks that it is for, and by no other."""
    history, names = LIES[lie]
    assert {line.split(":")[0] for line in violations(history)} == names


def test_an_answer_under_way_may_tell_less() -> None:
    """Who asked before another answer had come may be told what was so before: it is no step back."""
    slow = Call("read", "a", 2.9, 4.0, 200, {"a": "pending"})
    assert violations(changed(slow)) == []


@pytest.mark.parametrize(
    ("body", "reply"),
    [(b'{"reply": "OK"}', "OK"), (b'{"reply": "ERROR"}', "ERROR"), (b"[]", ""), (b"<html>", ""), (b"", "")],
)
def test_the_reply_to_a_postback_is_read(body: bytes, reply: str) -> None:
    """Only a JSON object has a reply."""
    assert reply_of(body) == reply
