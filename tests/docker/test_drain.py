"""What `docker stop` and a new container mean for runs: the image's own command and environment, without a container.

The folders are this test's, and the port is any free one; all else is what compose.yaml and the Dockerfile say.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.contract.bare import BareClient, group, pack, whole
from tests.docker.test_compose import load, seconds
from tests.docker.test_dockerfiles import FILES, environment, parse, values


class Container:
    """A server as compose.yaml starts it, with ``data`` as the volume of its runs."""

    def __init__(self, data: Path, **environment_of_test: str) -> None:
        service = load("compose.yaml")["services"]["server"]
        self.grace_seconds = seconds(service["stop_grace_period"])
        places = {"0.0.0.0:50051": "127.0.0.1:0", "0.0.0.0:9464": "127.0.0.1:0", "/var/lib/gradwire": str(data)}
        command = list(service["command"])
        for inside, here in places.items():
            command = [word.replace(inside, here) for word in command]
        image = environment(parse(FILES["cpu"].read_text())[-1])
        (signal_name,) = values(parse(FILES["cpu"].read_text())[-1], "STOPSIGNAL")
        self._stop_signal = signal.Signals[signal_name]
        outside = {key: value for key, value in os.environ.items() if not key.startswith("GRADWIRE_") or "CACHE" in key}
        settings = {key: value for key, value in image.items() if key == "GRADWIRE_DEVICE"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gradwire.server", *command],
            env={**outside, **settings, **environment_of_test},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r"serving on ([\d.:]+),", line):
                self.target = found[1]
                return
        raise RuntimeError("the server did not start")

    def stop(self) -> None:
        """As `docker stop` begins."""
        self.process.send_signal(self._stop_signal)

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_a_block_in_flight_at_the_stop_is_finished_and_there_in_the_next_container(tmp_path: Path) -> None:
    with Container(tmp_path, GRADWIRE_FAILPOINTS="commit.before-journal=stop@1") as old:
        with BareClient(old.target) as client:
            client.create("kept", [group(x=[3])], [0.0] * 3)
            stream = client.attach("kept")
            stream.send(whole(1, [1.0, 2.0, 3.0]))
            os.waitid(os.P_PID, old.process.pid, os.WSTOPPED)  # the block is whole, and not yet on the disk
            old.stop()
            old.process.send_signal(signal.SIGCONT)
            (answer,) = stream.answer()
            assert answer.receipt.step == 1
            stream.close()
        assert old.process.wait(old.grace_seconds) == 0
    with Container(tmp_path) as new:
        with BareClient(new.target) as client:
            with client.attach("kept") as stream:
                assert (stream.attached.step, stream.attached.last_sequence) == (1, 1)
            assert pack(client.read("kept")[1]) == answer.data
        new.stop()
        assert new.process.wait(new.grace_seconds) == 0
