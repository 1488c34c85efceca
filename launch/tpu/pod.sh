#!/usr/bin/env bash
# Starts one run on every host of a Cloud TPU slice:
#   launch/tpu/pod.sh NAME ZONE --config=configs/demo.py --workdir=gs://...
# The hosts find each other; the repository must be at ~/jaxlab on each, installed with the extra `tpu`.
set -euo pipefail
name=$1 zone=$2
shift 2
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd ~/jaxlab && .venv/bin/python -m launch.train --processes=auto $(printf '%q ' "$@")"
