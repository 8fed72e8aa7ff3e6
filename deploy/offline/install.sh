#!/bin/sh
# Installs raytune_llm from the parts next to this file, without internet: sh install.sh [--target FOLDER]
# PYTHON names the interpreter to install for; python3 by default.
exec "${PYTHON:-python3}" "$(dirname "$0")/install.py" "$@"
