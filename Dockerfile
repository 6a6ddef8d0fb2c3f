# Two images: `web` (pages, API, dispatcher, migrations; no torch) and `worker` (torch; no web
# framework). tests/architecture/test_compose.py holds both against the settings and commands.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG NODE_IMAGE=node:22-bookworm-slim

# Front-end packages, from the lock file.
FROM ${NODE_IMAGE} AS assets
WORKDIR /opt/stillhouse
COPY package.json package-lock.json .npmrc ./
RUN npm ci --ignore-scripts --no-audit --no-fund

FROM ${PYTHON_IMAGE} AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 \
    OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=0 STILLHOUSE_HOME=/data
RUN useradd --uid 10001 --create-home stillhouse && install -d -o stillhouse -g stillhouse /data
WORKDIR /opt/stillhouse
# Dependencies before sources, so that a change of code does not install them again.
COPY pyproject.toml ./
RUN mkdir app workers && touch app/__init__.py workers/__init__.py

FROM base AS web-packages
RUN pip install --editable ".[web]"
COPY app app
COPY templates templates

# Of the front-end packages, the few files that pages load.
FROM web-packages AS vendored
COPY --from=assets /opt/stillhouse/node_modules node_modules
RUN python -m app.web.vendor

FROM web-packages AS web
COPY workers workers
COPY migrations migrations
COPY alembic.ini ./
COPY static static
COPY --from=vendored /opt/stillhouse/static/vendor static/vendor
USER stillhouse
VOLUME /data
EXPOSE 8321
ENTRYPOINT ["python", "-m", "app.cli"]
CMD ["web"]

FROM base AS worker
# An index of CPU or of other CUDA builds of torch, where the default one does not fit.
ARG TORCH_INDEX_URL=
RUN pip install ${TORCH_INDEX_URL:+--index-url "${TORCH_INDEX_URL}"} "torch>=2.11,<2.14" \
    && pip install --editable ".[worker]"
COPY app app
COPY workers workers
USER stillhouse
VOLUME /data
ENTRYPOINT ["python", "-m"]
CMD ["celery", "-A", "workers.tasks.worker", "worker", "-Q", "cpu", "-c", "1", "-n", "cpu@%h", "--loglevel", "INFO"]
