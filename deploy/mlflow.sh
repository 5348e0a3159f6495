#!/usr/bin/env bash
# Starts MLflow on the loopback interface, unless it answers there already. `ray up` runs this script on the head.
#
# The runs are stored in SQLite on the head's disk, their files in the storage. The server itself reads and writes the
# files, so its users need no keys of the bucket. KDRAY_MLFLOW_DATABASE names another database, such as
# postgresql+psycopg://mlflow@db.example.com/mlflow (write its password into ~/.pgpass).
set -euo pipefail

storage=${KDRAY_STORAGE:?"mlflow.sh: KDRAY_STORAGE is not set; run deploy/node.sh first"}
port=${KDRAY_MLFLOW_PORT:-5000}
folder=~/.kdray/mlflow
mkdir -p "$folder"
chmod 700 "$folder"

answers() { curl -fs -o /dev/null --max-time 5 "http://127.0.0.1:$port/health"; }

if answers; then
    echo "MLflow answers on 127.0.0.1:$port."
    exit 0
fi
# No jobs on the server: they would run functions at the request of users.
MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=${MLFLOW_DISABLE_TELEMETRY:-true} setsid nohup mlflow server --host 127.0.0.1 --port "$port" --workers 1 \
    --backend-store-uri "${KDRAY_MLFLOW_DATABASE:-sqlite:///$folder/mlflow.db}" \
    --artifacts-destination "$storage/mlartifacts" >>"$folder/server.log" 2>&1 </dev/null &
for _ in $(seq 120); do
    if answers; then
        echo "MLflow started on 127.0.0.1:$port."
        exit 0
    fi
    sleep 1
done
echo "mlflow.sh: MLflow did not answer within two minutes; the end of $folder/server.log:" >&2
tail -n 20 "$folder/server.log" >&2
exit 1
