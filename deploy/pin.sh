#!/usr/bin/env bash
# Writes the versions of all packages that nodes and the team's MLflow install, each with the SHA-256 of its files on PyPI.
#
#     bash deploy/pin.sh             # after a change of pyproject.toml: keeps the versions that still fit
#     bash deploy/pin.sh --upgrade   # the newest versions
#
# Needs uv and PyPI. uv refuses a file whose SHA-256 is not in the list, for packages and for what builds kdray.
set -euo pipefail
cd "$(dirname "$0")/.."

lock() { # OUTPUT, the options for uv: one block for each package, its hashes on the lines that follow
    uv pip compile - --python-version 3.11 --python-platform x86_64-unknown-linux-gnu --generate-hashes --quiet \
        --no-header --no-annotate --output-file "$@"
}

nodes=deploy/constraints.txt
lock "$nodes" pyproject.toml --extra aws --extra gcp --extra postgresql "${@:1:1}" <<END
$(sed -n 's/^requires = \["\(.*\)"\]$/\1/p' pyproject.toml)
END
# PyTorch's own index has a build of torch for each driver, with other digests and its own CUDA packages.
selected=$(awk '/^[a-z]/ { skip = /^(nvidia|cuda|triton)/; torch = /^torch==/; if (torch) sub(/ \\$/, "") }
    !skip && !(torch && /--hash/)' "$nodes")
cat >"$nodes" <<END
# The versions that every node of a cluster installs (deploy/node.sh, deploy/Dockerfile), and the SHA-256 of their files.
# deploy/pin.sh makes this file. torch has no digest here, because each driver needs another build of it, from PyTorch's
# own index, with its own CUDA packages.
$selected
END

server=deploy/mlflow/requirements.txt
version=$(sed -n 's/^mlflow==\([0-9.]*\).*/\1/p' "$nodes")
lock "$server" --constraint "$nodes" <<END
mlflow[auth]==$version
psycopg[binary]>=3.2,<4
boto3>=1.34,<2
google-cloud-storage>=2.14,<4
END
echo "Ready: $(grep -c == "$nodes") packages in $nodes, $(grep -c == "$server") in $server."
