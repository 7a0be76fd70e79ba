"""Runs a command and reports its time and the most private memory that it held.

Usage: measure_memory.py COMMAND ARGUMENT… . Linux only. Private memory is RssAnon of /proc/PID/status, read every
20 ms: what the process cannot give back. VmHWM beside it counts pages of mapped files too, which the system drops
when it needs them.
"""

import subprocess
import sys
import time

begin = time.time()
process = subprocess.Popen(sys.argv[1:])
private = mapped = 0
while process.poll() is None:
    try:
        with open(f"/proc/{process.pid}/status") as status:
            fields = dict(line.split(":", 1) for line in status if line.startswith(("RssAnon", "VmHWM")))
        private = max(private, int(fields["RssAnon"].split()[0]))
        mapped = max(mapped, int(fields["VmHWM"].split()[0]))
    except (OSError, KeyError):
        pass
    time.sleep(0.02)
print(
    f"{time.time() - begin:.1f} s, at most {private / 2**20:.3f} GiB private, {mapped / 2**20:.3f} GiB with mapped files",
    file=sys.stderr,
)
sys.exit(process.returncode)
