# Serves a run's network on port 8000, by a CPU: docs/serving.md. With --build-arg EXTRAS=cuda12,gcs, or tpu,gcs, it is what
# Kubernetes trains with: docs/clusters.md.
FROM python:3.12-slim

RUN useradd --create-home --uid 10001 jaxcnn
WORKDIR /home/jaxcnn
COPY pyproject.toml README.md LICENSE /source/
COPY jaxcnn /source/jaxcnn
ARG EXTRAS=serve
RUN pip install --no-cache-dir "/source[$EXTRAS]" && rm -rf /source
COPY experiments experiments

USER jaxcnn
ENV JAX_PLATFORMS=cpu JAXCNN_CACHE_DIR=/tmp/jaxcnn PYTHONUNBUFFERED=1
EXPOSE 8000
HEALTHCHECK --start-period=120s --interval=15s --timeout=5s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
ENTRYPOINT ["python", "-m", "jaxcnn.serve", "--host=0.0.0.0", "--port=8000"]
CMD ["--workdir=/run-folder"]
