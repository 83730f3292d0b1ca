#!/usr/bin/env bash
# Prints the chart with its own values, in the namespace `sheepdog`, for `kubectl apply`. `make manifests` stores it beside this
# script.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
helm=$(bash "$root/e2e/kubernetes/program.sh" helm)
cat << END
# Printed by manifests/render.sh: the chart with its own values. Change the image before you use it.
---
apiVersion: v1
kind: Namespace
metadata:
  name: sheepdog
  labels:
    pod-security.kubernetes.io/enforce: privileged
END
"$helm" template sheepdog "$root/charts/sheepdog" --namespace sheepdog --skip-tests --kube-version 1.35.0
