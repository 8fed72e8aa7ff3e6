# curl: a chat, a stream, an error.
asked() {
  if [ -n "$2" ]; then passed=true; else passed=false; fi
  echo "RESULT {\"asked\": \"$1\", \"passed\": $passed, \"detail\": \"\"}"
}
post() { curl -sS --max-time 60 "$URL/$1" -H "content-type: application/json" -d "$2"; }
say='"messages": [{"role": "user", "content": "Is it a good idea?"}], "max_tokens": 8'
asked "chat" "$(post chat/completions "{\"model\": \"$MODEL\", $say}" | grep '"chat.completion"')"
asked "chat, streamed" "$(post chat/completions "{\"model\": \"$MODEL\", $say, \"stream\": true}" | grep '^data: \[DONE\]')"
asked "an error" "$(post chat/completions "{\"model\": \"$MODEL\"}" | grep 'missing required parameter: messages')"
