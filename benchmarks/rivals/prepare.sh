#!/bin/sh
# Builds every checkpoint that run.py and families.py measure, in $RIVALS/models (about 9 GB, minutes). See README.md.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
: "${RIVALS:?set RIVALS to the folder of the Python environments}"
models=$RIVALS/models
transformers=${TRANSFORMERS_ENV:-$RIVALS/transformers}/bin
openvino=${OPENVINO_ENV:-$RIVALS/openvino}/bin
llama_cpp=${LLAMA_CPP_ENV:-$RIVALS/llama-cpp}/bin
# The exporter calls Python by its name.
PATH=$openvino:$PATH
mkdir -p "$models"
for pair in smolvlm-256m:image-text-to-text qwen2.5-1.5b:text-generation-with-past; do
    name=${pair%%:*} task=${pair##*:}
    [ -e "$models/$name" ] || "$openvino/python" "$here/checkpoint.py" "$name" "$models/$name"
    [ -e "$models/$name-Q4_0.gguf" ] || "$llama_cpp/python" "$here/gguf_text.py" "$models/$name" "$models/$name-Q4_0.gguf"
    [ -e "$models/$name-openvino-int4" ] || "$openvino/optimum-cli" export openvino --model "$models/$name" --task "$task" \
        --weight-format int4 --group-size 64 --ratio 1.0 "$models/$name-openvino-int4"
done
name=qwen2.5-3b
[ -e "$models/$name-Q4_0.gguf" ] || "$llama_cpp/python" "$here/gguf_text.py" --random "$name" "$models/$name-Q4_0.gguf"
[ -e "$models/whisper" ] || "$transformers/python" "$here/whisper_checkpoint.py" "$models/whisper"
