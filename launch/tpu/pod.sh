#!/usr/bin/env bash
# Starts one run on every host of a Cloud TPU slice:
#   launch/tpu/pod.sh NAME ZONE --config=configs/demo.py --config.data.store=gs://... --workdir=/shared/runs/demo
# The hosts find each other; the repository must be at ~/jaxlab on each, installed with the extra `tpu`, and the
# workdir on a file system that all of them see. Not run yet: no TPU was at hand.
set -euo pipefail
name=$1 zone=$2
shift 2
gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all \
  --command="cd ~/jaxlab && .venv/bin/python -m launch.train --processes=auto $(printf '%q ' "$@")"
