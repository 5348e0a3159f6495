#!/usr/bin/env bash
# MLflow for a cluster, on the loopback of its head, for as long as Ray runs there: `ray down` ends it, too.
#
# The runs are in a SQLite file on the head's own disk (SQLite on NFS locks), what they carry is in the shared storage.
# Given again, it starts the server anew over the same runs.
set -euo pipefail

folder=~/kdray-mlflow
uri=${MLFLOW_TRACKING_URI:?'the address to answer at, such as http://127.0.0.1:5000'}
artifacts=${KDRAY_STORAGE:?'the storage that all machines share'}/mlartifacts
mkdir -p -m 700 "$folder"
cd "$folder"

if [ -s group ] && kill -0 -- "-$(cat group)" 2>/dev/null; then
    kill -- "-$(cat group)"
    for _ in $(seq 100); do kill -0 -- "-$(cat group)" 2>/dev/null || break; sleep 0.1; done
fi

ray=$(pgrep -o -u "$(id -u)" gcs_server) || { echo "MLflow goes with Ray, which does not run here" >&2; exit 1; }
MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false setsid bash -c '
    echo $$ > group
    mlflow server --host 127.0.0.1 --port "$1" --workers 2 \
        --backend-store-uri "sqlite:///$PWD/mlflow.db" --artifacts-destination "$2" &
    tail --pid="$3" -f /dev/null
    kill -- -$$
' mlflow-on-head "${uri##*:}" "$artifacts" "$ray" >> server.log 2>&1 < /dev/null &

for _ in $(seq 120); do
    if curl --silent --fail --output /dev/null "$uri/health"; then
        echo "MLflow answers at $uri"
        exit 0
    fi
    sleep 1
done
echo "MLflow did not answer at $uri within two minutes; the end of $folder/server.log:" >&2
tail -n 20 server.log >&2
exit 1
