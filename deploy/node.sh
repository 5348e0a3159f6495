#!/usr/bin/env bash
# Prepares a machine as a node: installs Python and kdray in ~/.kdray/venv, and sets the environment of login shells.
#
#     bash node.sh STORAGE [EXTRA]
#
# STORAGE is where every node writes: s3://bucket/folder, gs://bucket/folder, or a folder that all nodes share. EXTRA is
# aws or gcp. file_mounts copies the checkout to the folder above this script. The script may be run again.
set -euo pipefail

UV=0.13.9
PYTHON=3.11.18

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

export PATH="$HOME/.local/bin:$PATH" UV_NO_MODIFY_PATH=1
if [ "$(uv --version 2>/dev/null | cut -d' ' -f2)" != "$UV" ]; then
    curl --proto '=https' --tlsv1.2 -fsSL "https://astral.sh/uv/$UV/install.sh" | sh
fi
# The system's Python differs between images, and Ray requires the same version on all nodes.
uv venv --quiet --allow-existing --managed-python --python "$PYTHON" "$home/venv"
# auto: the build of torch that fits this node's driver; without a driver, the build without CUDA.
uv pip install --quiet --python "$home/venv/bin/python" --torch-backend auto \
    --constraint "$checkout/deploy/constraints.txt" --reinstall-package kdray "$checkout${extra:+[$extra]}"

# `ray submit` runs the sweep in a login shell, which reads this file. The file in the last line exists on a head only.
cat >"$home/env.sh" <<END
case ":\$PATH:" in *":$home/venv/bin:"*) ;; *) export PATH="$home/venv/bin:\$PATH" ;; esac
export RAY_AUTH_MODE=token
export KDRAY_STORAGE='$storage'
if [ -e ~/ray_bootstrap_config.yaml ]; then export MLFLOW_TRACKING_URI=http://127.0.0.1:5000; fi
END
for file in ~/.bashrc ~/.profile; do
    grep -qsF .kdray/env.sh "$file" || echo '. ~/.kdray/env.sh' >>"$file"
done
"$home/venv/bin/python" -c 'import kdray, ray, torch; print("kdray is installed: Ray", ray.__version__, "torch", torch.__version__)'
