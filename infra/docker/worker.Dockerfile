# A GPU host: inference server and worker; what STILLREEL_WORKER_IMAGE names. Weights are no part of
# it: they are fetched to /data, which is a volume or the machine's disk.
#   docker build -f infra/docker/worker.Dockerfile -t stillreel-worker .
# torch brings its own CUDA libraries; the machine has the driver.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS wheel
WORKDIR /src
COPY . .
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE}
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install -y --no-install-recommends bash curl ca-certificates tini \
  && rm -rf /var/lib/apt/lists/* \
  && groupadd --gid 10001 stillreel \
  && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin stillreel \
  && install --directory --owner 10001 --group 10001 --mode 0700 /data
WORKDIR /opt/stillreel
COPY pyproject.toml constraints.txt infra/docker/requirements_of.py ./
# Gigabytes that change with torch alone, then what changes with our requirements, then ourselves.
RUN python requirements_of.py --only torch > torch.txt \
  && python -m pip install -c constraints.txt -r torch.txt
RUN python requirements_of.py models c2pa > requirements.txt \
  && python -m pip install -c constraints.txt -r requirements.txt
COPY --from=wheel /wheels /wheels
RUN python -m pip install --no-deps /wheels/*.whl
COPY --chmod=0755 infra/vast/start_worker.sh /usr/local/bin/start_worker.sh
ENV STILLREEL_HOME=/data HF_HOME=/data/hub STILLREEL_USER=stillreel
USER 10001:10001
VOLUME /data
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "/usr/local/bin/start_worker.sh"]
