#!/usr/bin/env bash
# Makes the resources of deploy/gcp.yaml in a Google Cloud project: a separate network, its two rules, and the bucket.
#
#     bash deploy/gcp_account.sh PROJECT REGION CIDR BUCKET      # CIDR: who may reach the nodes, such as 203.0.113.7/32
#
# Prints the lines to write into gcp.yaml. May be run again: existing resources stay, and the new CIDR replaces the old.
set -euo pipefail

refuse() {
    echo "gcp_account.sh: $1" >&2
    exit 2
}

[ $# -eq 4 ] || refuse "give four things: PROJECT REGION CIDR BUCKET, such as my-project us-central1 203.0.113.7/32 my-kdray"
project=$1 region=$2 cidr=$3 bucket=${4#gs://} folder=kdray
[[ $cidr =~ ^([0-9]{1,3}\.){3}[0-9]{1,3}/(1[6-9]|2[0-9]|3[0-2])$ ]] ||
    refuse "$cidr is no IPv4 network of a /16 or less; give your own, such as 203.0.113.7/32"

gcloud() { command gcloud --quiet --project "$project" "$@"; }
there() { gcloud "$@" >/dev/null 2>&1; }

gcloud services enable compute.googleapis.com iam.googleapis.com cloudresourcemanager.googleapis.com
there compute networks describe kdray || gcloud compute networks create kdray --subnet-mode custom
there compute networks subnets describe kdray --region "$region" ||
    gcloud compute networks subnets create kdray --network kdray --region "$region" --range 10.77.0.0/20
there compute firewall-rules describe kdray-inside ||
    gcloud compute firewall-rules create kdray-inside --network kdray --source-ranges 10.77.0.0/20 --allow tcp,udp,icmp
if there compute firewall-rules describe kdray-ssh; then
    gcloud compute firewall-rules update kdray-ssh --source-ranges "$cidr"
else
    gcloud compute firewall-rules create kdray-ssh --network kdray --source-ranges "$cidr" --allow tcp:22
fi
there storage buckets describe "gs://$bucket" ||
    gcloud storage buckets create "gs://$bucket" --location "$region" --uniform-bucket-level-access \
        --public-access-prevention
number=$(gcloud projects describe "$project" --format 'value(projectNumber)')
condition=$(mktemp)
trap 'rm -f "$condition"' EXIT
# Nodes may read, write and list the objects of this folder, and no others of the bucket.
cat >"$condition" <<END
title: kdray-folder
expression: >-
  resource.name.startsWith("projects/_/buckets/$bucket/objects/$folder/") ||
  api.getAttribute("storage.googleapis.com/objectListPrefix", "").startsWith("$folder/")
END
gcloud storage buckets add-iam-policy-binding "gs://$bucket" --role roles/storage.objectUser \
    --member "serviceAccount:$number-compute@developer.gserviceaccount.com" --condition-from-file "$condition" >/dev/null

cat <<END
Ready: SSH from $cidr only. Lines of deploy/gcp.yaml (its region is us-central1; yours is $region):
  project_id: $project
  - bash ~/kdray-src/deploy/node.sh gs://$bucket/$folder gcp
END
