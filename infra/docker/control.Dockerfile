# The control side: Prefect server and services, API with keeper, drains. No GPU, no torch.
#   docker build -f infra/docker/control.Dockerfile -t stillreel-control .
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS wheel
WORKDIR /src
COPY . .
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE}
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
RUN groupadd --gid 10001 stillreel \
  && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin stillreel \
  && install --directory --owner 10001 --group 10001 --mode 0700 /data
# What changes seldom comes first: a new release is a small layer.
WORKDIR /opt/stillreel
COPY pyproject.toml constraints.txt infra/docker/server-requirements.txt infra/docker/requirements_of.py ./
RUN python requirements_of.py > requirements.txt \
  && python -m pip install -c constraints.txt -r requirements.txt -r server-requirements.txt
COPY --from=wheel /wheels /wheels
RUN python -m pip install --no-deps /wheels/*.whl
ENV STILLREEL_HOME=/data STILLREEL_API_HOST=0.0.0.0 STILLREEL_PREFECT_HOST=0.0.0.0
USER 10001:10001
# No VOLUME, which Railway refuses; whoever runs it puts one at /data.
EXPOSE 8000 4200
STOPSIGNAL SIGTERM
ENTRYPOINT ["stillreel"]
CMD ["api"]
