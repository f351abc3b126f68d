"""An engine's module that was taken over: reads what to attack from standard input, tries, says what was refused."""

import json
import os
import sys

from escapes import say, tried

if __name__ == "__main__":
    found = tried(json.loads(sys.stdin.readline()))
    say(json.dumps({"held": os.environ["KVANT_CONFINED"].split(","), "found": found}))
