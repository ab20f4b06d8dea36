#!/bin/sh
# The proof of concept by the command: two arms on embedded digits, seeds paired, then one page to decide from.
#
# Run:  sh examples/proof_of_concept.sh [FOLDER]          # EPOCHS=45 SEEDS=3 before it for the recipe's own length
# On data of your own, put  own/vit_tiny_64px data.train=YOUR_IMAGES  in place of the recipe and its changes.
# docs/proof-of-concept.md explains what is compared and how to read the page.
set -eu
out=${1:-proof-of-concept}

masksub compare digits/vit_micro train.epochs="${EPOCHS:-6}" optim.warmup_epochs=0 \
    --arms plain,masksub --seeds "${SEEDS:-3}" --jobs 1 --out "$out/compare"
masksub report "$out/compare" --out "$out/report.html"
echo "open $out/report.html"
