# The image for a GPU: NVIDIA's Triton with TensorRT-LLM, this project, and the few packages that it lacks.
# 26.04 to 26.07 carry TensorRT-LLM 1.2.1, with Python 3.12 and TensorRT 10.14: "Release Compatibility Matrix" of
# triton-inference-server/server, docs/introduction/compatibility.md. 26.07 is the last. Needs driver 590 or later.
ARG BASE=nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3
FROM ${BASE} AS server
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
ARG PIP_TRUSTED_HOST
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="deepseek-ocr-rtprune" \
      org.opencontainers.image.description="DeepSeek-OCR on Triton Inference Server with RTPrune, on a GPU" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
USER root
WORKDIR /needs
COPY constraints.txt pyproject.toml deploy/docker/requirements.py ./
# Nothing that the container carries changes: TensorRT-LLM was built against it. Its PyTorch, server and ONNX tools
# stay, and the embedded server of the CPU image isn't wanted here.
RUN python3 requirements.py preprocess vision decoder server --lacking --frozen frozen.txt \
        --without torch,nvidia-pytriton,onnxruntime > lacking.txt \
    && PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --no-cache-dir --disable-pip-version-check \
        -c frozen.txt -r lacking.txt \
    && python3 -c "import numpy, tensorrt, tensorrt_llm.version as llm; \
assert int(numpy.__version__.split('.')[0]) < 2, numpy.__version__; assert llm.__version__ == '1.2.1', llm.__version__"
WORKDIR /app
COPY LICENSE NOTICE ./
COPY rtprune rtprune
COPY server server
COPY export export
COPY model_repository model_repository
RUN python3 -m compileall -q rtprune server export && install -d -o 1000 -g 1000 /engines
ENV HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OCR_HOST=0.0.0.0 OCR_ENGINES=/engines/current
# The container's own user triton-server has this number.
USER 1000:1000
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
# Engines of the real size take minutes to load.
HEALTHCHECK --interval=10s --timeout=5s --start-period=900s --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
CMD ["python3", "-m", "server", "serve"]
