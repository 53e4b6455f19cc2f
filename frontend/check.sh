#!/bin/sh
# Type-check the page's JavaScript by its JSDoc. Needs node; without it the check says so and is skipped.
set -eu
cd "$(dirname "$0")"
if ! command -v npm >/dev/null 2>&1; then
    echo "frontend: node is not here, tsc --checkJs skipped"
    exit 0
fi
tools="../.venv/node"
if [ ! -x "$tools/node_modules/.bin/tsc" ]; then
    npm install --silent --no-audit --no-fund --prefix "$tools" typescript@7.0.2
fi
"$tools/node_modules/.bin/tsc" --project jsconfig.json
echo "frontend: types hold"
