#!/usr/bin/env bash
# For machines that stay when their cluster ends: once Ray has ended here, ends MLflow and what Ray leaves behind.
#
# `ray down` stops Ray on the head; on a worker it ends by itself a minute later, but not the programs beside it.
set -euo pipefail

mine=(pgrep -u "$(id -u)")
raylet=$("${mine[@]}" -n -x raylet) || { echo "end_with_ray.sh: Ray does not run here" >&2; exit 1; }
beside=$("${mine[@]}" -P "$raylet" || true; "${mine[@]}" -f ray/_private/log_monitor.py || true)
mlflow=$("${mine[@]}" -f 'mlflow server --host 127.0.0.1' | sed 's/^/-/' || true)  # each leads a group of processes
# shellcheck disable=SC2086 # numbers of processes
setsid bash -c 'tail --pid="$1" -f /dev/null; shift; kill -- "$@"' end_with_ray "$raylet" $beside $mlflow \
    >/dev/null 2>&1 </dev/null &
