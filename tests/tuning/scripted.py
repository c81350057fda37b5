"""A worker of ``ser-fast tune`` that plays a script: ``python scripted.py SCRIPT``, in JSON.

``machine`` is what it says of the GPU. "OP by BACKEND" ends a proof by "pass", "none", "fail", "hang", "crash" or
"silence"; "time OP by PATH" does so to a timing ("fail", "left out", "hang" or "crash"), ``time`` to its start,
``end`` to each worker's end.
``seconds`` are those of each path, ``drift`` multiplies them in the last case, ``rounds`` those of torch in each round.
"""

import json
import os
import sys
import time

job, script = json.load(sys.stdin), json.loads(sys.argv[1])


def say(**line) -> None:
    print(json.dumps(line), flush=True)


def play(deed: str | None) -> None:
    if deed == "hang":
        time.sleep(600)
    if deed == "crash":
        print("CUDA error: an illegal memory access", file=sys.stderr)
        sys.stderr.flush()
        os.abort()


if job["job"] == "machine":
    play(script["machine"].get("deed"))
    say(**script["machine"])
elif job["job"] == "proof":
    deed = script.get(f"{job['op']} by {job['backend']}", "pass")
    if deed != "silence":
        say(begun="float32 ragged")
        play(deed)
        say(
            **({"failed": "AssertionError: outputs: differs"} if deed == "fail" else {"passed": 8 * (deed == "pass")})
        )
else:
    assert job["end"] > time.time() and job["slot"] > 0
    play(script.get("time"))
    rounds = script.get("rounds", [1.0] * 7)
    for place, case in enumerate(job["cases"]):
        seconds = {}
        for path in [*case["backends"], "torch"]:
            say(number=case["number"], begun=path)
            deed = script.get(f"time {case['op']} by {path}")
            play(deed)
            if deed == "fail":
                say(number=case["number"], failed="RuntimeError: CUDA out of order")
                break
            if deed == "left out":
                say(number=case["number"], **{"left out": path}, error="OutOfMemoryError: 40 GB")
                continue
            scale = script["seconds"][path] * (script.get("drift", 1.0) if place == len(job["cases"]) - 1 else 1.0)
            seconds[path] = [scale * (factor if path == "torch" else 1.0) for factor in rounds]
        else:
            say(number=case["number"], seconds=seconds)
play(script.get("end"))
