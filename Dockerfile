# Everything that installs stays in the builder: no pip, no cache and no compiler come along.
FROM python:3.13-slim-trixie AS builder

COPY requirements/build.txt requirements/run.txt /build/
RUN python -m venv /build/tools \
    && /build/tools/bin/pip install --no-cache-dir --require-hashes -r /build/build.txt \
    && python -m venv --without-pip /opt/kpayd \
    && /build/tools/bin/pip --python /opt/kpayd/bin/python install \
        --no-cache-dir --only-binary :all: --require-hashes -r /build/run.txt

WORKDIR /srv/kpayd
COPY pyproject.toml README.md LICENSE alembic.ini ./
COPY migrations migrations
COPY app app
# Installed as editable, so that the code is read where alembic.ini and migrations stand. Compiled here, since nothing
# can be written there; by hash, since a copy may change a file's time.
RUN /build/tools/bin/python -c 'from hatchling.build import build_editable; build_editable("/build")' \
    && /build/tools/bin/pip --python /opt/kpayd/bin/python install --no-cache-dir --no-index --no-deps /build/kpayd-*.whl \
    && rm pyproject.toml README.md LICENSE \
    && python -m compileall -q --invalidation-mode unchecked-hash app migrations \
    && chmod -R a+rX,go-w .


FROM python:3.13-slim-trixie

LABEL org.opencontainers.image.title="kpayd" \
      org.opencontainers.image.description="The payments service between a company's own systems and K-Pay (Rwanda)" \
      org.opencontainers.image.licenses="MIT"

ENV PATH=/opt/kpayd/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

RUN useradd --uid 10001 --no-create-home --home-dir /srv/kpayd --shell /usr/sbin/nologin kpayd

COPY --from=builder /opt/kpayd /opt/kpayd
COPY --from=builder /srv/kpayd /srv/kpayd

WORKDIR /srv/kpayd
USER 10001:10001
EXPOSE 8000
# Stops taking requests, lets those in flight end, then leaves: give it 100 seconds before anything harder.
STOPSIGNAL SIGTERM

HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, timeout=4); c.request('GET', '/healthz'); raise SystemExit(c.getresponse().status != 200)"]

ENTRYPOINT ["kpayd"]
CMD ["serve", "--host", "0.0.0.0"]
