# Of the scripts here that try an engine on a GPU; they set OUT. What fails costs its own step only.
# step NAME SECONDS COMMAND...: all it says in OUT/NAME.log, stdout of --json runs in OUT/NAME.json
export PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1
step() {
  name=$1 limit=$2; shift 2; echo "== $name $(date +%T)"
  if [ "${*: -1}" = --json ]; then timeout "$limit" "$@" >"$OUT/$name.json" 2>"$OUT/$name.log"
  else timeout "$limit" "$@" >"$OUT/$name.log" 2>&1; fi
  echo "rc $?" | tee -a "$OUT/$name.log"; tail -3 "$OUT/$name.log"
}
