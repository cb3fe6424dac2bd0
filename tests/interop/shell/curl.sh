#!/usr/bin/env bash
# curl -N in a loop. curl prints the stream, and this script parses it.
set -euo pipefail
export LC_ALL=C.UTF-8
url=$1 last=$2 id="" retry=3000

json() {
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"} text=${text//$'\n'/\\n} text=${text//$'\t'/\\t}
  text=${text//$'\v'/\\u000b} text=${text//$'\f'/\\f} text=${text//$'\x1c'/\\u001c}
  printf '"%s"' "$text"
}

report() { printf '{"event":%s,"data":%s,"id":%s}\n' "$(json "$1")" "$(json "$2")" "$(json "$3")"; }

while :; do
  headers=(-H 'Accept: text/event-stream')
  [ -z "$id" ] || headers+=(-H "Last-Event-ID: $id")
  name="" data="" next=$id status=""
  while IFS= read -r line; do
    value=${line#*:} value=${value# }
    case $line in
      data:*) data+=$value$'\n' ;;
      event:*) name=$value ;;
      id:*) next=$value ;;
      retry:*) retry=$value ;;
      ":status "*) status=${line#:status } ;;
      "")
        id=$next
        if [ -n "$data" ]; then
          report "${name:-message}" "${data%$'\n'}" "$id"
          if [ "$name" = "$last" ]; then
            echo '{"closed":"left"}'
            kill $! 2>/dev/null || true
            exit 0
          fi
        fi
        name="" data=""
        ;;
    esac
    # The status is the last line. Without `end`, an incomplete frame could look complete.
  done < <(exec curl -sN "${headers[@]}" -w 'end\n:status %{http_code}\n' "$url")
  case $status in
    200 | 000) ;;
    *)
      echo "{\"closed\":\"status $status\"}"
      exit 0
      ;;
  esac
  echo '{"again":true}'
  sleep "$(printf '%d.%03d' $((retry / 1000)) $((retry % 1000)))"
done
