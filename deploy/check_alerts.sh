#!/usr/bin/env bash
# Prometheus's own word on its configuration and the alert rules, and the rules' unit tests.
# Debian: apt-get install prometheus. Others: promtool of a release, named by PROMTOOL.
set -euo pipefail
cd "$(dirname "$0")/prometheus"
promtool=${PROMTOOL:-promtool}
if ! command -v "$promtool" >/dev/null; then
  echo "NOT RUN: check-alerts (no promtool; install Debian's prometheus, or name one with PROMTOOL=...)"
  exit 0
fi
"$promtool" check config prometheus.yml
"$promtool" test rules tests/*.yml
