#!/usr/bin/env bash
# The service in the background.
#   scripts/serve.sh start [KEY=VALUE ...]   as scripts/serve.py; waits until it answers
#   scripts/serve.sh status                  port, uptime, queue, GPU, last errors; exit code 3 if it does not run
#   scripts/serve.sh logs                    follow the log, which is rotated at 5 MB
#   scripts/serve.sh stop                    lets requests in flight end
# MEZZAVOCE_SERVE_DIR (runs/serve) holds its log and process number; PYTHON chooses another interpreter.
set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-$project/.venv/bin/python}
folder=${MEZZAVOCE_SERVE_DIR:-$project/runs/serve}
record=$folder/serve.json
start_s=${MEZZAVOCE_START_S:-180}
stop_s=${MEZZAVOCE_STOP_S:-60}

field() {  # a field of the record that the running service wrote
    "$python" -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$record" "$1" 2>/dev/null
}

running() {  # prints the process number; a number that another program has by now does not count
    local pid
    pid=$(field pid) || return 1
    [[ -r /proc/$pid/cmdline ]] && tr '\0' ' ' <"/proc/$pid/cmdline" | grep -q 'serve\.py' && echo "$pid"
}

ask() {  # prints /health, whatever its status
    "$python" - "$(field port)" <<'PY'
import sys, urllib.error, urllib.request
try:
    print(urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/health", timeout=5).read().decode())
except urllib.error.HTTPError as e:
    print(e.read().decode())
except OSError as e:
    sys.exit(f"it does not answer: {e}")
PY
}

start() {
    local pid
    if pid=$(running); then
        echo "it runs already, process $pid, port $(field port)" >&2
        return 1
    fi
    mkdir -p "$folder"
    rm -f "$record"
    export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
    cd "$project"
    # A session of its own, so that it outlives this terminal; its log is written and rotated by itself.
    setsid nohup "$python" scripts/serve.py "serve.dir=$folder" serve.log_terminal=false "$@" \
        >"$folder/start.log" 2>&1 </dev/null &
    pid=$!
    for ((i = 0; i < start_s * 5; i++)); do
        if [[ -f $record ]] && ask 2>/dev/null | grep -q '"ready"'; then
            echo "ready: http://$(field host):$(field port), process $(field pid)"
            return 0
        fi
        if ! kill -0 "$pid" 2>/dev/null; then
            echo "it did not start:" >&2
            tail -n 5 "$folder/start.log" >&2
            return 1
        fi
        sleep 0.2
    done
    echo "it does not answer after $start_s s; scripts/serve.sh logs says more" >&2
    return 1
}

stop() {
    local pid
    if ! pid=$(running); then
        echo "it does not run"
        return 0
    fi
    kill -TERM "$pid"
    for ((i = 0; i < stop_s * 5; i++)); do
        if ! kill -0 "$pid" 2>/dev/null; then
            rm -f "$record"
            echo "stopped"
            return 0
        fi
        sleep 0.2
    done
    echo "it did not end within $stop_s s; it is killed" >&2
    kill -KILL "$pid"
    rm -f "$record"
    return 1
}

status() {
    local pid
    if ! pid=$(running); then
        echo "it does not run"
        return 3
    fi
    echo "process $pid, http://$(field host):$(field port)"
    ask || true
    if command -v nvidia-smi >/dev/null; then
        nvidia-smi --query-gpu=name,memory.used,memory.total,utilization.gpu --format=csv,noheader || true
    else
        echo "no GPU"
    fi
    echo "last errors:"
    grep -E ' (ERROR|CRITICAL) ' "$folder/serve.log" 2>/dev/null | tail -n 5 || echo "none"
}

logs() {
    tail -n 50 -F "$folder/serve.log"
}

command=${1:-}
shift || true
case $command in
    start) start "$@" ;;
    stop) stop ;;
    status) status ;;
    logs) logs ;;
    *)
        sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
        exit 2
        ;;
esac
