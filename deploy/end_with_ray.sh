#!/usr/bin/env bash
# For machines that stay when their cluster ends: waits for the end of Ray, then ends MLflow and Ray's other processes.
#
# `ray down` stops Ray on the head only. On a worker, Ray ends by itself a minute later; the processes beside it do not.
set -euo pipefail

mine=(pgrep -u "$(id -u)")
raylet=$("${mine[@]}" -n -x raylet) || { echo "end_with_ray.sh: Ray does not run here" >&2; exit 1; }
beside=$("${mine[@]}" -P "$raylet" || true; "${mine[@]}" -f ray/_private/log_monitor.py || true)
mlflow=$("${mine[@]}" -f 'mlflow server --host 127.0.0.1' | sed 's/^/-/' || true)  # minus: the whole process group
# shellcheck disable=SC2086 # process ids without quotes, to pass them as single arguments
setsid bash -c 'tail --pid="$1" -f /dev/null; shift; kill -- "$@"' end_with_ray "$raylet" $beside $mlflow \
    >/dev/null 2>&1 </dev/null &
