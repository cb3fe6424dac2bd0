"""What a client saw, one line of JSON each, for the test to read."""

import json
import sys

# The stream, and the event after which the client leaves.
url, last = sys.argv[1:3]


def say(**line):
    print(json.dumps(line), flush=True)


def event(name, data, id):
    """An event as the client gave it out: `None` for what it did not give."""
    say(event=name, data=data, id=id)


def error(what):
    """The client told of trouble, and goes on or not."""
    say(error=describe(what))


def again():
    """This script reconnects, since the client does not."""
    say(again=True)


def closed(why):
    """The client is done: it gave up, or was told to leave."""
    say(closed=why if isinstance(why, str) else describe(why))
    sys.exit(0)


def describe(exception):
    return f"{type(exception).__name__}: {exception}"
