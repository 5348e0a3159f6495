#!/usr/bin/env bash
# Prepares a machine as a node: installs Python and kdray in ~/.kdray/venv, and sets the environment of login shells.
#
#     bash node.sh STORAGE [EXTRA]
#
# STORAGE is where every node writes: s3://bucket/folder, gs://bucket/folder, or a folder that all nodes share. EXTRA is
# aws or gcp. file_mounts copies the checkout to the folder above this script. The script may be run again.
set -euo pipefail

# uv installs Python and all packages. Its own file comes from PyPI, where it has this SHA-256.
UV=0.13.9
PYTHON=3.11.18
case $(uname -m) in
x86_64)
    uv_file=3d/aa/26d64642d808de4a652579ef950d7cd2d37f080a8babf9c67c6b75fc4c3f/uv-$UV-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl
    uv_sha256=d7f459fe4fd247d830351c75686d3996ace3c6f3f728eb0e85a30b7ada0cef19
    ;;
*)
    uv_file=57/15/94b6cd62ac3ff6550288328e8035288875197cbc183f51554b266a69877b/uv-$UV-py3-none-manylinux_2_17_aarch64.manylinux2014_aarch64.musllinux_1_1_aarch64.whl
    uv_sha256=5435c5ce14a56431208ca0996416d310f1598e8c2c8ba707688985a16bb82dbe
    ;;
esac

refuse() {
    echo "node.sh: $1" >&2
    exit 2
}

storage=${1:?"node.sh: give the storage first, such as s3://bucket/kdray"}
extra=${2:-}
case $storage in
*EDIT*) refuse "the storage is still $storage; fill in the lines marked EDIT in the cluster's file" ;;
s3://?* | gs://?* | /*) ;;
*) refuse "the storage is $storage; it must be s3://..., gs://... or a folder beginning with /" ;;
esac
[ -s ~/.ray/auth_token ] || refuse "no ~/.ray/auth_token; on the laptop run: ray get-auth-token --generate"

checkout=$(cd "$(dirname "$0")/.." && pwd)
home=~/.kdray
mkdir -p "$home"
chmod 700 ~/.ray "$home"
chmod 600 ~/.ray/auth_token

install_uv() {
    local folder
    folder=$(mktemp -d)
    curl --proto '=https' --tlsv1.2 -fsSL -o "$folder/uv.whl" "https://files.pythonhosted.org/packages/$uv_file"
    echo "$uv_sha256  $folder/uv.whl" | sha256sum --check --status ||
        refuse "the file of uv $UV has another SHA-256 than $uv_sha256, so it is not installed; see docs/security.md"
    # A wheel is a zip file. Not every machine has unzip, and not every one has Python.
    (cd "$folder" && { unzip -q uv.whl || python3 -m zipfile -e uv.whl .; } 2>/dev/null) ||
        refuse "neither unzip nor python3 works here; install one of them"
    mkdir -p "$home/bin"
    install -m 755 "$folder/uv-$UV.data/scripts/uv" "$home/bin/uv"
    rm -rf "$folder"
}

export PATH="$home/bin:$HOME/.local/bin:$PATH"
[ "$(uv --version 2>/dev/null | cut -d' ' -f2)" = "$UV" ] || install_uv
# The system's Python differs between images, and Ray requires the same version on all nodes.
uv venv --quiet --allow-existing --managed-python --python "$PYTHON" "$home/venv"
# auto: the build of torch that fits this node's driver; without a driver, the build without CUDA. uv refuses files whose
# SHA-256 is not in constraints.txt; torch has none there.
uv pip install --quiet --python "$home/venv/bin/python" --torch-backend auto \
    --constraint "$checkout/deploy/constraints.txt" --build-constraint "$checkout/deploy/constraints.txt" \
    --reinstall-package kdray "$checkout${extra:+[$extra]}"

# `ray submit` runs the sweep in a login shell, which reads this file. The file in the last line exists on a head only.
# Ray, MLflow and Hugging Face's libraries report nothing about their use, unless a variable says so already.
cat >"$home/env.sh" <<END
case ":\$PATH:" in *":$home/venv/bin:"*) ;; *) export PATH="$home/venv/bin:\$PATH" ;; esac
export RAY_AUTH_MODE=token
export KDRAY_STORAGE='$storage'
export RAY_USAGE_STATS_ENABLED=\${RAY_USAGE_STATS_ENABLED:-0} HF_HUB_DISABLE_TELEMETRY=\${HF_HUB_DISABLE_TELEMETRY:-1}
export MLFLOW_DISABLE_TELEMETRY=\${MLFLOW_DISABLE_TELEMETRY:-true}
if [ -e ~/ray_bootstrap_config.yaml ]; then export MLFLOW_TRACKING_URI=http://127.0.0.1:5000; fi
END
for file in ~/.bashrc ~/.profile; do
    grep -qsF .kdray/env.sh "$file" || echo '. ~/.kdray/env.sh' >>"$file"
done
"$home/venv/bin/python" -c 'import kdray, ray, torch; print("kdray is installed: Ray", ray.__version__, "torch", torch.__version__)'
