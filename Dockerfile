# A server on CPUs: `docker build -t bedstone .`, then
#   docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
#     -v bedstone-cache:/cache -p 127.0.0.1:8000:8000 -v "$PWD/runs/chat:/models/chat:ro" \
#     -e BEDSTONE_API_KEY bedstone chat=/models/chat --precision int8
# The volume keeps the kernels that the first start builds, in about a minute.
# `--build-arg TORCH_INDEX=...` names a package index with builds of torch for CPUs alone: without it
# the image holds what GPUs need, too, and is some gigabytes larger.
FROM python:3.11-slim-bookworm

# The C++ engine is built on the machine that runs it, for its instructions.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*

ARG TORCH_INDEX=""
WORKDIR /app
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src ./src
RUN python -m venv /app/venv \
 && /app/venv/bin/pip install --no-cache-dir --disable-pip-version-check \
      ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c constraints.txt ".[serve]"

RUN useradd --system --no-create-home --uid 10001 bedstone \
 && install --directory --owner=10001 /cache
USER 10001
ENV HOME=/tmp BEDSTONE_CACHE=/cache HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 PATH=/app/venv/bin:/usr/bin:/bin
WORKDIR /tmp
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=2m --retries=3 CMD \
  ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
ENTRYPOINT ["bedstone", "serve", "--host", "0.0.0.0", "--port", "8000"]
