"""Reports to the test, each as one line of JSON."""

import json
import sys

# The URL of the stream, and the name of the last event.
url, last = sys.argv[1:3]


def say(**line):
    print(json.dumps(line), flush=True)


def event(name, data, id):
    """An event as the client delivered it. A field that the client does not deliver is `None`."""
    say(event=name, data=data, id=id)


def error(what):
    """The client reported an error. It may continue."""
    say(error=describe(what))


def again():
    """This script opens the next stream, because the client does not."""
    say(again=True)


def closed(why):
    """The client has ended: it gave up, or the last event has arrived."""
    say(closed=why if isinstance(why, str) else describe(why))
    sys.exit(0)


def describe(exception):
    return f"{type(exception).__name__}: {exception}"
