"""The play that `canaries` are driven through: every way of starting, asking and telling that succeeds or fails."""

import base64
import json
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

import httpx2

from app.dev.laptop import free_port
from app.macs import RETURL
from app.simulator import Config
from tests.conftest import QUICK
from tests.faults.canaries import (
    CVVS,
    HELD,
    KEYS,
    MARK,
    PERSONAL,
    TOKENS,
    TYPED,
    Place,
    Scene,
    behave,
    dump,
    ordered,
    processes_seen,
    running_kpay,
    with_password,
)
from tests.faults.conftest import Server, own_server
from tests.liar import NOT_FOUND, Liar, Lie, lie, lying
from tests.proxy import Direction, Fault, Proxy, running_proxy
from tests.support import (
    Json,
    Service,
    answers,
    at_once,
    eventually,
    kpayd,
    new_refid,
    query,
    run_command,
    settings,
)

NEVER_ACTS = "250780000005"
REFUSED_OR_LOST = (1, 2, 30, 32, 33, 34, 35, 36, 38, 39, 40, 43, 48, 50, 52)
"""Magic numbers: refusals, time-outs, resets, HTML, cut JSON (docs/simulator.md)."""
REFUSES_US = ("045", "046")


class Caller:
    """Sends requests that fail, and keeps what they were answered."""

    def __init__(self, service: Service, scene: Scene) -> None:
        self._service = service
        self._scene = scene
        self._said: list[str] = []

    def keep(self, answer: httpx2.Response) -> httpx2.Response:
        """Keep an answer, head and all, if it is an error or an open page."""
        if answer.is_error or not answer.url.path.startswith("/v1/"):
            self._scene.statuses.add(answer.status_code)
            self._said.append(f"{answer.headers}\n{answer.text}")
        self._scene.words[Place.ANSWERS] = "\n".join(self._said)
        return answer

    def send(self, method: str, path: str, **more: object) -> httpx2.Response:
        """Send a request of the shop's."""
        return self.keep(self._service.http.request(method, path, **more))  # type: ignore[arg-type] # httpx2's own

    def start(self, **changes: object) -> httpx2.Response:
        """Ask for a payment."""
        return self.send("POST", "/v1/payments", json=ordered(**{"number": NEVER_ACTS} | changes))  # type: ignore[arg-type]

    def open_pages(self) -> None:
        """Read what everybody may."""
        for path in ("/metrics", "/readyz", "/healthz", "/openapi.json", "/docs"):
            self.send("GET", path)

    def mistakes(self) -> None:
        """Make every mistake a caller can make, each with canaries in it."""
        for name in ordered(orderid="x", logourl="x", bankid="x", currency="x"):
            for wrong in ([TYPED["cvv"]], {"token": [TYPED["token"]]}, f"{TYPED['cvv']}\0\n", 10**30):
                self.start(**{name: wrong})
        self.start(cvv=TYPED["cvv"], token=TYPED["token"])
        self.start(cvv={"cvv": [TYPED["cvv"]]}, action="tokenpay")
        for content in (f'{{"cvv": "{TYPED["cvv"]}", "token": "{TYPED["token"]}"', f'["{TYPED["cvv"]}"]', TYPED["cvv"]):
            for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded", TYPED["cvv"]):
                self.send("POST", "/v1/payments", content=content, headers={"Content-Type": kind})
        self.send("POST", "/v1/payments", content=TYPED["cvv"] * 2000)
        for name in ("cvv", "cursor", "msisdn", "status", "pmethod", "tid", "limit", "created_after", "needs_review"):
            self.send("GET", "/v1/payments", params={name: f"{TYPED['cvv']} {TYPED['token']}"})
        for path in (
            f"/v1/payments/{TYPED['cvv']}",
            f"/v1/{TYPED['token']}",
            f"/{TYPED['cvv']}",
            "/v1/payments/x?wait=y",
        ):
            self.send("GET", path, headers={"X-Request-ID": TYPED["token"], "Cookie": TYPED["cvv"]})
        self.send("DELETE", f"/v1/payments?cvv={TYPED['cvv']}")
        self.send("POST", "/v1/payments", json=ordered(), headers={"Idempotency-Key": TYPED["cvv"] * 10})
        two_lengths = f"POST / HTTP/1.1\r\nA: {TYPED['cvv']}\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}."
        at_once(self._service.url, [two_lengths.encode()])

    def strangers(self) -> None:
        """Call with keys that are wrong, or not enough."""
        basic = base64.b64encode(f"{TYPED['cvv']}:{TYPED['token']}".encode()).decode()
        for scheme in (f"Bearer {TYPED['wrong-key']}", f"Basic {basic}", TYPED["wrong-key"], "Bearer"):
            self.send("GET", f"/v1/payments?key={TYPED['wrong-key']}", headers={"Authorization": scheme})
        reader = self._service.new_key("reader", "payments:read")
        self._scene.made["api-key"].append(reader)
        self.send("POST", "/v1/payments", json=ordered(), headers={"Authorization": f"Bearer {reader}"})

    def conflicts(self) -> None:
        """Ask again under names that are taken."""
        key = {"Idempotency-Key": PERSONAL["idempotency-key"]}
        first = ordered(NEVER_ACTS, orderid=PERSONAL["orderid"])
        for again in (first, first | {"amount": 1}, first | {"refid": new_refid()}, {**first, "details": "other"}):
            self.send("POST", "/v1/payments", json=again, headers=key)
        self.start(orderid=PERSONAL["orderid"])

    def postback(self, refid: str) -> None:
        """Send one good postback."""
        said = {"refid": refid, "statusid": "03", "payaccount": PERSONAL["payaccount"]}
        self.send("POST", f"/kpay/returl/{refid}/{KEYS[0].make(RETURL, refid)}", json=said)

    def postbacks(self, refid: str, tid: str) -> None:
        """Speak to the listener: rightly, wrongly, unreadably, too long, and with a mac of the key before."""
        said = {"tid": tid, "refid": refid, "statusid": "03", "payaccount": PERSONAL["payaccount"]}
        wrong = f"/kpay/returl/{refid}/{TYPED['wrong-mac']}"
        for path in (*(f"/kpay/returl/{refid}/{keys.make(RETURL, refid)}" for keys in KEYS), wrong):
            self.send("POST", path, json=said)
            self.send("POST", path, json=said | {"refid": "other"})
            self.send("POST", path, content=b"\xff{")
            self.send("POST", path, content=b"x" * 70_000)
            self.send("GET", path)
            self.send("POST", f"{path}/?key={TYPED['wrong-key']}", json=said)


def driven(folder: Path) -> Scene:
    """Play everything, and return what every place holds in the end."""
    scene = Scene()
    account = Config(HELD["gateway-username"], HELD["gateway-password"], "02", HELD["gateway-key"], payer_delay=0.3)
    with own_server() as server, running_kpay(account) as kpay:
        port = free_port()
        more = QUICK | {
            "LOG_LEVEL": "DEBUG",
            "TRUSTED_PROXIES": "127.0.0.0/8",
            "GATEWAY_USERNAME": HELD["gateway-username"],
            "GATEWAY_PASSWORD": HELD["gateway-password"],
            "GATEWAY_KEY": HELD["gateway-key"],
            "GATEWAY_TIMEOUT": "1",
            "SECRET_KEYS": f"{HELD['secret-key']},{HELD['old-secret-key']}",
        }
        env = settings(with_password(server), f"{kpay}/", port, more)
        with processes_seen(scene), kpayd(folder, env, "serve", "--port", str(port)) as process:
            answers(process, f"http://127.0.0.1:{port}/healthz")
            service = Service(process, f"http://127.0.0.1:{port}", env["KPAYD_DATABASE_URL"], env)
            with service.http:
                made = run_command(env, "clients", "add", "spy", "--json")
                secret = made.stdout.partition('"webhook_secret": "')[2].partition('"')[0]
                assert secret.startswith("whsec_"), made
                scene.made["webhook-secret"] = [secret]
                scene.made["api-key"] = [service.key, made.stdout.partition('"key": "')[2].partition('"')[0]]
                shown = _play(service, Caller(service, scene), kpay, server)
                _environments(process.child.pid, scene)
                scene.words[Place.COMMANDS] = "\n".join([*shown, *_commands(env, service, server)])
            scene.words[Place.CONSOLE] = _astray(folder, env)
        scene.words[Place.LOG] = process.words
        for log_format, place in (("json", Place.LOG), ("console", Place.CONSOLE)):
            SavedCards(server, scene).play(folder, env | {"KPAYD_LOG_FORMAT": log_format}, place)
        refids = [row["refid"] for row in query(server.direct, "SELECT refid FROM payments")]
        scene.made["mac"] = [keys.make(RETURL, refid) for refid in refids for keys in KEYS]
        pair = f"{HELD['gateway-username']}:{HELD['gateway-password']}"
        scene.made["gateway-basic"] = [base64.b64encode(pair.encode()).decode()]
        scene.words[Place.DATABASE] = dump(server)
        scene.words[Place.POSTGRES] = server.server.log.read_text()
    return scene


def _play(service: Service, caller: Caller, kpay: str, server: Server) -> Sequence[str]:
    numbers = [PERSONAL["msisdn"], NEVER_ACTS, *(f"250780000{number:03}" for number in REFUSED_OR_LOST)]
    with ThreadPoolExecutor(8) as pool:
        begun = [each.json() for each in pool.map(lambda number: caller.start(number=number), numbers)]
    paid, open_one = begun[:2]
    eventually(lambda: service.read(paid["refid"])["status"] == "succeeded")
    caller.mistakes()
    caller.strangers()
    caller.conflicts()
    caller.postbacks(open_one["refid"], open_one["tid"])
    for number in REFUSES_US:
        caller.start(number=f"250780000{number}")
    for mood in ({"down": True}, {"down": False, "refuse_credentials": True}):
        behave(kpay, **mood)
        caller.start()
        caller.send("POST", f"/v1/payments/{open_one['refid']}/check")
    behave(kpay, refuse_credentials=False)
    caller.open_pages()
    for fault in (Fault.BLACKHOLE, Fault.REFUSE):
        server.proxy.set(fault)
        with ThreadPoolExecutor(4) as pool:
            jobs: list[Callable[[], object]] = [
                caller.start,
                partial(caller.send, "GET", f"/v1/payments/{paid['refid']}"),
                partial(caller.postback, open_one["refid"]),
                caller.open_pages,
            ]
            list(pool.map(lambda job: job(), jobs))
    server.proxy.set(Fault.NONE)
    # A schema that is not this code's: statements that cannot work, and their tracebacks.
    query(server.direct, "ALTER TABLE payments RENAME email TO e_mail")
    caller.start()
    caller.send("GET", f"/v1/payments/{paid['refid']}")
    query(server.direct, "ALTER TABLE payments RENAME e_mail TO email")
    return [paid["refid"]]


def _environments(pid: int, scene: Scene) -> None:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for each in (str(pid), *children):
        scene.readable_by[int(each)] = Path(f"/proc/{each}/environ").stat().st_mode & 0o777


def _commands(env: dict[str, str], service: Service, server: Server) -> Sequence[str]:
    """Return what the commands say: of what is right, of a wrong password, of settings that are malformed."""
    refid = service.http.get("/v1/payments", params={"status": "succeeded"}).json()["items"][0]["refid"]
    wrong = env | {"KPAYD_DATABASE_URL": env["KPAYD_DATABASE_URL"].replace("@", "-typo@")}
    server.proxy.set(Fault.NONE)
    word, key = HELD["gateway-password"], HELD["secret-key"]
    url = env["KPAYD_DATABASE_URL"]
    key_cut, odd_key = HELD["old-secret-key"][:31], f"{HELD['gateway-key']}\n"
    malformed = env | {
        "KPAYD_DATABASE_URL": url.replace("postgresql", "mysql"),
        "KPAYD_SECRET_KEYS": f"{key},{key_cut}",
        "KPAYD_GATEWAY_URL": f"https://kpay:{word}@pay.example.rw/",
        "KPAYD_PUBLIC_URL": f"https://pay.example.rw/?{key}",
        "KPAYD_CONFIRM": key,
        "KPAYD_CHECK_SCHEDULE": key,
        "KPAYD_CHECK_CONCURRENCY": word,
        "KPAYD_LOG_LEVEL": word,
    }
    runs = [
        (env, ["doctor"]),
        (env | {"KPAYD_GATEWAY_PASSWORD": f"{word}\n", "KPAYD_GATEWAY_KEY": odd_key}, ["doctor", "--json"]),
        (wrong, ["doctor"]),
        (env, ["clients", "list", "--json"]),
        (env, ["payments", "list"]),
        (env, ["payments", "show", refid]),
        (env, ["payments", "check", refid]),
        (env, ["serve", "--help"]),
        (malformed, ["serve"]),
    ]
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda run: run_command(run[0], *run[1]), runs))
    return [f"{each.args}\n{each.returncode}\n{each.stdout}\n{each.stderr}" for each in done]


def _astray(folder: Path, env: dict[str, str]) -> str:
    """Run a service with a console's log whose password is wrong and whose K-Pay is not there; return its log."""
    port = free_port()
    url = env["KPAYD_DATABASE_URL"].replace("@", "-typo@")
    changes = {"DATABASE_URL": url, "GATEWAY_URL": f"http://127.0.0.1:{free_port()}/", "LOG_FORMAT": "console"}
    with kpayd(
        folder, env | {f"KPAYD_{name}": value for name, value in changes.items()}, "serve", "--port", str(port)
    ) as it:
        answers(it, f"http://127.0.0.1:{port}/healthz")
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20) as http:
            headers = {"Authorization": f"Bearer {TYPED['wrong-key']}"}
            asked = http.post("/v1/payments", json=ordered(), headers=headers)
            refid = new_refid()
            said = {"refid": refid, "statusid": "01", "payaccount": PERSONAL["payaccount"]}
            told = http.post(f"/kpay/returl/{refid}/{KEYS[0].make(RETURL, refid)}", json=said)
        assert (asked.status_code, told.status_code) == (503, 503)
        eventually(lambda: "Traceback" in it.words)
    return it.words


class SavedCards:
    """Plays valid payments by saved card along every way they can go, each with a token and a cvv of its own."""

    def __init__(self, server: Server, scene: Scene) -> None:
        self._server = server
        self._scene = scene
        self._refids = {path: f"saved-{MARK}-{new_refid()}" for path in CVVS}
        self._said: list[str] = []

    def play(self, folder: Path, env: Mapping[str, str], place: Place) -> None:
        """Play all of them before a service of their own, whose log goes to `place`; it ends by kill -9."""
        seen = Scene()
        with (
            socket.create_server(("127.0.0.1", 0), backlog=100) as silent,
            lying(f"http://127.0.0.1:{silent.getsockname()[1]}") as liar,
            running_proxy(("127.0.0.1", liar.port)) as kpay,
        ):
            port = free_port()
            env = {**env, "KPAYD_GATEWAY_URL": f"{kpay.url}/", "KPAYD_PUBLIC_URL": f"http://127.0.0.1:{port}"}
            with processes_seen(seen), kpayd(folder, env, "serve", "--port", str(port)) as process:
                answers(process, f"http://127.0.0.1:{port}/healthz")
                service = Service(process, f"http://127.0.0.1:{port}", env["KPAYD_DATABASE_URL"], env)
                self._scene.made["api-key"].append(service.key)
                with service.http:
                    self._ways(service, liar, kpay)
                    self._killed(service, liar)
        self._scene.words[place] += process.words
        self._scene.words[Place.PROCESSES] += seen.words[Place.PROCESSES]
        self._scene.answers_by_card += "\n".join(self._said)

    def _asked(self, path: str, **changes: object) -> Json:
        card = {"pmethod": "cc", "refid": self._refids[path], "token": TOKENS[path], "cvv": CVVS[path]}
        return ordered() | card | changes

    def _pay(self, service: Service, path: str, **changes: object) -> int:
        answer = service.http.post("/v1/payments", json=self._asked(path, **changes))
        self._said.append(f"{answer.headers}\n{answer.text}")
        return answer.status_code

    def _ways(self, service: Service, liar: Liar, kpay: Proxy) -> None:
        liar.lies |= {("tokenpay", self._refids[path]): said for path, said in self._lies().items()}
        liar.lies["checkstatus", "*"] = lie(**NOT_FOUND)
        kpay.watch = self._note
        for path in ("success", "decline", "timeout", "html-500", "error", "conflict", "repetition"):
            assert self._pay(service, path) == 201, path
        assert self._pay(service, "conflict", amount=7) == 409
        assert self._pay(service, "repetition") == 200
        for fault, path in ((Fault.LOSE_ANSWER, "reset"), (Fault.REFUSE, "refused")):
            kpay.set(fault)
            assert self._pay(service, path) == 201, path
            kpay.set(Fault.NONE)
        self._server.proxy.set(Fault.REFUSE)
        assert self._pay(service, "database-down") == 503
        self._server.proxy.set(Fault.NONE)
        eventually(lambda: service.http.get("/readyz").status_code == 200)
        assert self._pay(service, "database-lost") == 201
        self._server.proxy.set(Fault.NONE)
        eventually(lambda: service.http.get("/readyz").status_code == 200)
        pages = ["/metrics", "/readyz", "/v1/payments", "/v1/events"]
        pages += [f"/v1/payments/{refid}{more}" for refid in self._refids.values() for more in ("", "/events")]
        self._said += [service.http.get(page).text for page in pages]

    def _note(self, direction: Direction, chunk: bytes) -> None:
        """Keep what K-Pay gets; of one payment the database is gone before K-Pay answers."""
        if direction == "request" and b'"tokenpay"' in chunk:
            self._scene.sent_by_card.append(json.loads(chunk[chunk.index(b"{") :]))
            if self._refids["database-lost"].encode() in chunk:
                self._server.proxy.set(Fault.REFUSE)

    def _lies(self) -> dict[str, Lie]:
        """Return what K-Pay says of each payment; what is not here it leaves without a word."""

        def said(path: str, statusid: str = "01", **more: object) -> Lie:
            receipt = f"D{self._refids[path]}" if statusid == "01" else ""
            told = {"tid": f"E{CVVS[path]}0{new_refid()}", "momtransactionid": receipt, "statusid": statusid, "x": MARK}
            return Lie(json.dumps(told | {"refid": self._refids[path]} | more).encode())

        html = self._asked("html-500", action="tokenpay", note=MARK)
        page = f"<html>{json.dumps(html)}\n{urlencode(html)}\n{html!r}".encode()
        echo = (("Content-Type", "text/html"), ("X-Asked", f"{TOKENS['html-500']} {CVVS['html-500']}"))
        words = f"cvv {CVVS['error']} of token {TOKENS['error']} is wrong"
        return {
            "success": said("success"),
            "decline": said("decline", "02", statusdesc="DECLINED"),
            "html-500": Lie(page, 500, echo),
            "error": said("error", "02", statusdesc=words, cvv=CVVS["error"], token=TOKENS["error"]),
            "conflict": said("conflict"),
            "repetition": said("repetition", cvv=int(CVVS["repetition"]), token=TOKENS["repetition"]),
            "reset": said("reset"),
            "database-lost": said("database-lost", cvv=CVVS["database-lost"], token=TOKENS["database-lost"]),
        }

    def _killed(self, service: Service, liar: Liar) -> None:
        def ask_and_be_cut() -> None:
            try:
                self._pay(service, "kill")
            except httpx2.TransportError:
                self._said.append("killed")

        asking = threading.Thread(target=ask_and_be_cut)
        asking.start()
        eventually(lambda: ("tokenpay", self._refids["kill"]) in liar.heard, every=0.01)
        service.process.kill()
        asking.join(30)
        assert self._said[-1] == "killed"
