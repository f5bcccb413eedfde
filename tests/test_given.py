"""A PostgreSQL that a run is given: names of this run's own, and who goes through the pooler."""

from tests.given import Given, name_of, reaching, through, upstream

URL = "postgresql://me:secret@db:6000/postgres?sslmode=disable"


def test_its_databases_are_this_runs_own() -> None:
    """Two runs on one server do not share a name, and one run finds its own again."""
    one, other = Given(URL, None), Given(URL, None)
    assert one.url_of("kpayd_0") == one.url_of("kpayd_0") != other.url_of("kpayd_0")
    assert list(one.made.values()) == [name_of(one.url_of("kpayd_0"))]
    assert one.url_of("kpayd_0").startswith("postgresql://me:secret@db:6000/kpayd_0_")
    assert one.url_of("kpayd_0").endswith("?sslmode=disable")


def test_services_go_through_the_pooler_and_tests_do_not() -> None:
    """Only a service's own settings lead to the pooler, and say that it is one."""
    direct = Given(URL, None).url_of("kpayd_0")
    assert reaching(direct) == {"DATABASE_URL": direct}
    url = Given(URL, "postgresql://me@pool:6432/any").url_of("kpayd_0")
    pooled = {"DATABASE_URL": f"postgresql://me@pool:6432/{name_of(url)}", "DATABASE_POOLED": "true"}
    assert reaching(url) == pooled


def test_a_proxy_finds_it() -> None:
    """By host and port, or by a socket's folder in the address."""
    assert upstream(Given(URL, None)) == ("db", 6000)
    assert upstream(Given("postgresql://me@/postgres?host=/run/pg&port=6001", None)) == "/run/pg/.s.PGSQL.6001"
    assert through(URL, 7000) == "postgresql://me:secret@127.0.0.1:7000/postgres"
    assert through("postgresql://postgres@/kpayd?host=/run/pg", 7000) == "postgresql://postgres@127.0.0.1:7000/kpayd"
