# The look-up service, without training, jobs and MLflow: it serves what a folder or a URL of releases holds.
#
#     docker build --file runners/serve.Dockerfile --tag REPOSITORY/recsys-serve:TAG .
#     docker run --publish 8000:8000 --volume /srv/recsys:/data REPOSITORY/recsys-serve:TAG
#
# /data holds recsys.toml and the service's folder. To follow MLflow's champion, add tracking to EXTRAS.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS build

RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /recsys
COPY requirements-dev.txt pyproject.toml setup.py README.md ./
COPY recsys recsys
COPY pipelines pipelines
COPY serving serving
ARG EXTRAS=serve,s3
# the very versions that the service is tested with; Annoy is compiled here
RUN python -m venv /opt/recsys && /opt/recsys/bin/pip install --no-cache-dir --constraint requirements-dev.txt ".[${EXTRAS}]"

FROM python:${PYTHON}-slim
RUN useradd --uid 10001 --create-home recsys && install --directory --owner recsys /data
COPY --from=build /opt/recsys /opt/recsys
# by its number, so that Kubernetes can tell that it is not root
USER 10001
WORKDIR /data
ENV PATH=/opt/recsys/bin:$PATH PYTHONUNBUFFERED=1
EXPOSE 8000
# a worker that is told to stop ends what it began; the one process that is told tells the others
STOPSIGNAL SIGTERM
ENTRYPOINT ["recsys", "serve", "--host", "0.0.0.0"]
CMD ["--config", "/data/recsys.toml", "--release", "/data/releases"]
