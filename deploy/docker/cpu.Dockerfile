# Images that need no GPU. `server` serves on a CPU; `export` also turns checkpoints into engines and graphs.
ARG BASE=python:3.11-slim-bookworm

# The requirements apart from the rest of pyproject.toml, so that other changes to it install nothing again.
FROM ${BASE} AS needs
WORKDIR /needs
COPY pyproject.toml constraints.txt deploy/docker/requirements.py ./
RUN python3 requirements.py preprocess vision decoder server > serve.txt \
    && python3 requirements.py export > export.txt && grep '^torch==' serve.txt > torch.txt

# What is installed, in an environment without pip; pip itself stays in this stage.
FROM ${BASE} AS builder
# PyTorch's CPU wheels; empty takes the usual index, whose wheels bring gigabytes of CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# pip's own variables, for a mirror or a folder of wheels.
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
ARG PIP_TRUSTED_HOST
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore \
    PIP_CONSTRAINT=/needs/constraints.txt
WORKDIR /needs
RUN python3 -m venv /pip && python3 -m venv --without-pip /opt/venv
COPY constraints.txt ./
COPY --from=needs /needs/torch.txt ./
RUN /pip/bin/pip --python /opt/venv/bin/python install -r torch.txt \
        ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}}
COPY --from=needs /needs/serve.txt ./
RUN /pip/bin/pip --python /opt/venv/bin/python install -r serve.txt
# Triton's stub of this Python goes beside its backend, so that none is copied at start; headers are for compilers.
RUN cd /opt/venv/lib/python3.*/site-packages \
    && cp -p pytriton/tritonserver/python_backend_stubs/$(basename $(dirname $(pwd)) | tr -d a-z)/* \
        pytriton/tritonserver/backends/python/ \
    && rm -rf pytriton/tritonserver/python_backend_stubs torch/include torch/share torch/lib/*.a

# What export needs beside that, in a folder of its own: the layers below are shared.
FROM builder AS export-builder
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
ARG PIP_TRUSTED_HOST
COPY --from=needs /needs/export.txt ./
RUN /pip/bin/pip --python /opt/venv/bin/python install --prefix /opt/export -r export.txt

FROM ${BASE} AS server
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="deepseek-ocr-rtprune-cpu" \
      org.opencontainers.image.description="DeepSeek-OCR on Triton Inference Server with RTPrune, on a CPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="docker.io/library/python:3.11-slim-bookworm"
# The base image's own pip, and the copy of it that makes environments.
RUN rm -rf /usr/local/bin/pip* /usr/local/lib/python3.*/site-packages/* /usr/share/python-wheels \
        "$(python3 -c 'import ensurepip; print(*ensurepip.__path__)')" \
    && useradd --uid 1000 --user-group --no-create-home --home-dir /tmp --shell /usr/sbin/nologin ocr \
    && install -d -o ocr -g ocr /engines
COPY --from=builder /opt/venv /opt/venv
WORKDIR /app
COPY LICENSE NOTICE ./
COPY rtprune rtprune
COPY server server
COPY model_repository model_repository
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    OCR_HOST=0.0.0.0 OCR_ENGINES=/engines/current
RUN python -m compileall -q rtprune server
USER 1000:1000
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
# The launcher read a page through every stage before it stayed; from then on Triton's own answer is enough.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
CMD ["python", "-m", "server", "serve"]

FROM server AS export
LABEL org.opencontainers.image.title="deepseek-ocr-rtprune-export" \
      org.opencontainers.image.description="Turns a DeepSeek-OCR checkpoint into engines and graphs"
COPY --from=export-builder /opt/export /opt/venv
COPY export export
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m", "export"]
CMD ["--help"]
