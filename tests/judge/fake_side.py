"""A side without torch: speaks the baton's words with invented times. Usage: fake_side.py SCRIPT, a JSON object.

`seconds` of a launch; `cases`; `build`; and by case what goes wrong: `crash_in`, `silent_in`, `wrong_in`, `absent_in`,
`failed_in`. Every burst is appended to the file FAKE_LOG, so that a test sees who had the baton when.
"""

from __future__ import annotations

import json
import os
import random
import socket
import sys
import time
from typing import Any


def main() -> None:
    script = json.loads(sys.argv[1])
    side = os.environ["FLASH_DSA_SIDE"]
    link = socket.socket(socket.AF_UNIX)
    link.connect(os.environ["FLASH_DSA_BATON"])
    lines = link.makefile("r")
    noise = random.Random(side)

    def say(event: str, **content: Any) -> None:
        link.sendall(json.dumps({"event": event, **content}).encode() + b"\n")

    names = os.environ["FLASH_DSA_CASES"].split(",") if os.environ["FLASH_DSA_CASES"] else script["cases"]
    cases = {name: {"op": "sparse_fwd", "s_kv": 1024, "topk": 64} for name in names}
    environment = {"cpu": "Invented", "host": "box"}
    say("hello", side=side, build=script["build"], device="cpu", protocol="p-v1", environment=environment, cases=cases)
    for case in cases:
        if case == script.get("absent_in") or case == script.get("failed_in"):
            absent = case == script.get("absent_in")
            say("failed", case=case, reason="wrong_answer", detail="all NaN", absent=absent)
            continue
        say("ready", case=case, backend="cpu")
        bursts = []
        while (order := json.loads(lines.readline()))["do"] != "done":
            if order["do"] == "warm":
                say("warm", case=case, seconds=script["seconds"])
            if order["do"] == "controls":
                gemm = {"seconds_median": 1e-3, "seconds_low": 0.99e-3, "seconds_high": 1.01e-3, "cycles_median": None}
                say("controls", case=case, controls={"gemm": {**gemm, "error": None}})
            if order["do"] != "burst":
                continue
            if case == script.get("crash_in") and order["block"] == 2:
                os._exit(7)
            if case == script.get("silent_in"):
                time.sleep(600)
            seconds = [script["seconds"] * (1 + noise.gauss(0, 0.01)) for _ in range(2)]
            burst = {"seconds": seconds, "cycles": None, "discarded": {}, "power_capped": None}
            bursts.append({"block": order["block"], "order": order["order"], **burst})
            with open(os.environ["FAKE_LOG"], "a") as log:
                log.write(f"{case} {order['block']} {side}\n")
            say("burst", case=case, **burst)
        wrong = "out: 3 NaN" if case == script.get("wrong_in") else None
        extra = {"case": case, "problem": cases[case], "device": "cpu", "backend": "cpu", "bursts": bursts}
        say("verdict", case=case, error=wrong, benchmark={"name": case, "extra_info": extra, "stats": {}})
    say("bye")


if __name__ == "__main__":
    main()
