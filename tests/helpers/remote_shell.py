"""A stand-in for ssh: remote_shell.py NAMESPACES HOST LINE runs a shell line in the network namespace of a host.

Like ssh it passes no environment on, and what it runs is no child of its own: whoever ends the launcher's processes by
kinship or by environment does not find it. It only notices that its standard input ends, as behind a real sshd.
"""

import json
import os
import select
import subprocess
import sys

SERVER = """
import os, subprocess, sys
if os.fork() == 0:
    os.setsid()
    done = subprocess.run(sys.argv[2:], stdin=0)
    os.write(int(sys.argv[1]), bytes([done.returncode % 256]))
"""


def main():
    namespaces, host, line = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
    if host not in namespaces:
        sys.exit(f"remote shell: could not resolve hostname {host}")
    result, result_there = os.pipe()
    input_there, input_here = os.pipe()
    command = ["ip", "netns", "exec", namespaces[host], "sh", "-c", line]
    subprocess.run(
        [sys.executable, "-c", SERVER, str(result_there), *command],
        stdin=input_there,
        env={"PATH": os.environ["PATH"]},
        pass_fds=[result_there],
        check=True,
    )
    os.close(result_there)
    os.close(input_there)
    watched = [0, result]
    while True:
        ready = select.select(watched, [], [])[0]
        if result in ready:
            code = os.read(result, 1)
            sys.exit(code[0] if code else 255)
        data = os.read(0, 1 << 16)
        if data:
            os.write(input_here, data)
        else:
            os.close(input_here)
            watched = [result]


if __name__ == "__main__":
    main()
