# One service: the app with its bundled samples. `docker compose up` builds and runs it.
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml hatch_build.py constraints.txt README.md LICENSE ./
COPY core core
COPY server server
COPY frontend frontend
COPY sample_checkpoints sample_checkpoints
# torch's plain wheel carries CUDA; PyTorch's own index has the CPU build, which wins as 2.13.0+cpu. The `gpu` profile passes nothing.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --prefix=/install -c constraints.txt ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} torch \
 && PYTHONPATH=/install/lib/python3.11/site-packages pip install --no-cache-dir --prefix=/install -c constraints.txt .

FROM python:3.11-slim
RUN useradd --create-home --uid 1000 moescope && mkdir /data && chown moescope /data
COPY --from=build /install /usr/local
USER moescope
ENV MOESCOPE_HOME=/data PYTHONUNBUFFERED=1
VOLUME /data
EXPOSE 7400
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s \
  CMD python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:7400/favicon.ico', timeout=4)"
# Inside a container the loopback of the host is another machine: listen on all of the container's addresses.
# docker-compose.yml publishes the port on the host's loopback only.
CMD ["moescope", "serve", "--host", "0.0.0.0", "--port", "7400", "--no-browser"]
