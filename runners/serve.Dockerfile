# The service, without training, jobs and MLflow: it serves releases from a folder or a URL.
#
#     docker build --file runners/serve.Dockerfile --tag REPOSITORY/recsys-serve:TAG .
#     docker run --publish 8000:8000 --volume /srv/recsys:/data REPOSITORY/recsys-serve:TAG
#
# /data holds recsys.toml and the service's folder. To follow MLflow's champion, add --build-arg LOCK=server-mlflow.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim AS build

RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /recsys
COPY requirements requirements
COPY pyproject.toml setup.py README.md LICENSE ./
COPY recsys recsys
COPY pipelines pipelines
COPY serving serving
ARG LOCK=server
# the versions that the service is tested with; Annoy is compiled here
RUN python -m venv /opt/recsys \
    && /opt/recsys/bin/pip install --no-cache-dir --require-hashes --requirement requirements/${LOCK}.txt \
    && /opt/recsys/bin/pip install --no-cache-dir --no-deps .

FROM python:${PYTHON}-slim
RUN useradd --uid 10001 --create-home recsys && install --directory --owner recsys /data
COPY --from=build /opt/recsys /opt/recsys
# by number, so that Kubernetes can verify that it is not root
USER 10001
WORKDIR /data
ENV PATH=/opt/recsys/bin:$PATH PYTHONUNBUFFERED=1
EXPOSE 8000
# the supervisor forwards SIGTERM to its workers, which finish the requests they have begun
STOPSIGNAL SIGTERM
ENTRYPOINT ["recsys", "serve", "--host", "0.0.0.0"]
CMD ["--config", "/data/recsys.toml", "--release", "/data/releases"]
