"""Names, ports and processes of the bed: what `up` and `down` both need.

A process belongs to the bed if and only if CINDER_NBD_BED=<state directory> stands in its environment; there are no pid
files to go stale, and nothing else is ever signalled.
"""

import os
import signal
import socket
import subprocess
import sys
import time

MARK = "CINDER_NBD_BED"
ADDRESS = "127.0.0.1"
GUEST_VIEW = "10.0.2.2"  # how QEMU's user network shows the host's loopback to a guest
STARTED = time.monotonic()


def say(text):
    print(f"bed {time.monotonic() - STARTED:5.1f}s {text}", file=sys.stderr, flush=True)


def fail(text):
    say(f"FAILED: {text}")
    sys.exit(1)


class Bed:
    """Paths and ports of one state directory."""

    def __init__(self, state):
        self.state = os.path.realpath(state)
        base = int(os.environ.get("BED_PORT_BASE", "47100"))
        names = ("keystone", "cinder", "iscsi", "amqp", "erlang", "epmd")
        self.ports = {name: base + offset for offset, name in enumerate(names)}
        self.tgt_control = os.environ.get("BED_TGT_CONTROL", "71")

    def path(self, *parts):
        return os.path.join(self.state, *parts)

    def url(self, service, address=ADDRESS):
        return f"http://{address}:{self.ports[service]}"

    def environment(self, **more):
        return {
            "PATH": f"{self.path('bin')}:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": self.path("home"),
            "TMPDIR": self.path("tmp"),
            "PYTHONPATH": self.path("python"),
            "LANG": "C.UTF-8",
            MARK: self.state,
            **more,
        }

    def run(self, *command, log):
        """A step that must succeed."""
        with open(self.path("log", log), "ab") as out:
            code = subprocess.call(
                command, env=self.environment(), stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        if code != 0:
            fail(f"{command[0]} ended with {code}; see {self.path('log', log)}")

    def start(self, name, *command, **more):
        """A service; one that runs already is left alone."""
        if self.pids(name):
            return
        with open(self.path("log", f"{name}.log"), "ab") as log:
            process = subprocess.Popen(
                command,
                env=self.environment(BED_SERVICE=name, **more),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        # For a moment after its exec a process shows an empty environment.
        while process.poll() is None and not self.pids(name):
            time.sleep(0.01)

    def wait(self, name, what, ready, seconds=90):
        """Until `ready` says yes; the service must live meanwhile."""
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                fail(f"{name}: no {what} within {seconds} s; see {self.path('log')}")
            if not self.pids(name):
                fail(f"{name} has ended: {self.tail(name)}")
            time.sleep(0.1)

    def tail(self, name):
        with open(self.path("log", f"{name}.log"), errors="replace") as log:
            return " | ".join(line.strip() for line in log.readlines()[-5:])

    def pids(self, service=None):
        """Processes of this bed, or of one of its services."""
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or int(entry) == os.getpid():
                continue
            try:
                with open(f"/proc/{entry}/environ", "rb") as file:
                    variables = file.read().split(b"\0")
            except OSError:
                continue
            if f"{MARK}={self.state}".encode() not in variables:
                continue
            if service is None or f"BED_SERVICE={service}".encode() in variables:
                found.append(int(entry))
        return found

    def end(self, number, service=None):
        for pid in self.pids(service):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                pass

    def wait_ended(self, seconds, service=None):
        deadline = time.monotonic() + seconds
        while self.pids(service):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def stop(self):
        """Those that use others first; then all; what does not listen is killed."""
        for service in ("cinder-api", "cinder-volume", "cinder-scheduler", "keystone"):
            self.end(signal.SIGTERM, service)
        self.wait_ended(5, "cinder-volume")
        self.end(signal.SIGKILL, "tgtd")  # tgtd ignores SIGTERM
        self.end(signal.SIGTERM)
        if not self.wait_ended(8):
            self.end(signal.SIGKILL)
            if not self.wait_ended(5):
                fail(f"still running: {self.pids()}")
        for suffix in ("", ".lock"):
            try:
                os.unlink(f"/var/run/tgtd/socket.{self.tgt_control}{suffix}")
            except FileNotFoundError:
                pass


def listens(port):
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((ADDRESS, port)) == 0
