"""Exit 0 where vLLM gives a token. Its /health answers also while the engine hangs. Standard library only."""

from __future__ import annotations

import json
import sys
import urllib.request

URL = "http://127.0.0.1:8000"
TIMEOUT_S = 25

models = json.load(urllib.request.urlopen(f"{URL}/v1/models", timeout=TIMEOUT_S))["data"]
# Before the judge's own requests, which may wait by the hundred.
body = {"model": models[0]["id"], "prompt": [1], "max_tokens": 1, "priority": -1}
request = urllib.request.Request(
    f"{URL}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
)
with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
    sys.exit(0 if answer.status == 200 else f"HTTP {answer.status}")
