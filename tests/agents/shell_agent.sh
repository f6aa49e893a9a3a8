#!/bin/sh
# An agent that sends nothing: it copies stdin and the file
# that descriptor $1 is, says something, and fails.
cat
cat "/dev/fd/$1"
echo "the agent's error" >&2
exit 3
