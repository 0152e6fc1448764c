# SPDX-License-Identifier: Apache-2.0
"""`vllm serve` for tests and benches: on loopback, with or without skvqd, ended by its pid."""
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import time

ROOT = os.path.abspath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
START_S = 600  # of a server on a busy machine
ANSWER_S = 600


class Failed(Exception):
    """A sentence for people."""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def installed(folder):
    """Has vLLM find the plugin as if it were installed; a folder for PYTHONPATH."""
    info = os.path.join(folder, "site", "skvq_vllm-0.1.dist-info")
    os.makedirs(info, exist_ok=True)
    with open(os.path.join(info, "METADATA"), "w", encoding="ascii") as f:
        f.write("Metadata-Version: 2.1\nName: skvq-vllm\nVersion: 0.1\n")
    with open(os.path.join(info, "entry_points.txt"), "w", encoding="ascii") as f:
        f.write("[vllm.general_plugins]\nskvqd = skvq_vllm:register\n")
    return os.path.dirname(info)


def environment(build, threads, path=()):
    env = dict(os.environ)
    env.update(VLLM_TARGET_DEVICE="cpu", VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind",
               HF_HUB_OFFLINE="1", PYTHONHASHSEED="0", VLLM_NO_USAGE_STATS="1",
               OMP_NUM_THREADS=str(threads), SKVQ_PLUGIN=os.path.join(build, "lib", "libskvq_plugin.so"))
    env["PYTHONPATH"] = os.pathsep.join([*(os.path.join(ROOT, "clients", p) for p in ("vllm", "python")), *path])
    return env


class Server:
    """One `vllm serve`. log: a path; its standard output and error are appended there."""

    def __init__(self, python, model, build, log, *, socket_path=None, extra=None, options=(), threads=1,
                 max_len=8192, dtype="bfloat16", name="model", path=()):
        self.port, self.log, self.name = free_port(), log, name
        command = [python, "-m", "vllm.entrypoints.cli.main", "serve", model, "--host", "127.0.0.1",
                   "--port", str(self.port), "--dtype", dtype, "--enforce-eager",
                   "--max-model-len", str(max_len), "--block-size", "32", "--max-num-seqs", "4",
                   "--served-model-name", name, *options]
        if socket_path:
            command += ["--kv-transfer-config", json.dumps({
                "kv_connector": "SkvqdConnector", "kv_connector_module_path": "skvq_vllm.connector",
                "kv_role": "kv_both", "kv_load_failure_policy": "recompute",
                "kv_connector_extra_config": {"socket": socket_path, **(extra or {})}})]
        with open(log, "ab") as out:
            # A session of its own: vLLM's worker processes end with it.
            self.process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL,
                                            env=environment(build, threads, path), start_new_session=True)

    def _request(self, method, path, body=None, timeout=ANSWER_S):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None,
                               {"Content-Type": "application/json"})
            answer = connection.getresponse()
            data = answer.read()
            if answer.status != 200:
                raise Failed(f"{method} {path}: {answer.status}: {data[:500].decode('utf-8', 'replace')}")
            return data
        finally:
            connection.close()

    def wait(self):
        """Until it answers. Raises Failed with the end of its log."""
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                self._request("GET", "/health", timeout=10)
                return self
            except (OSError, http.client.HTTPException, Failed):
                time.sleep(0.5)
        status = self.process.poll()
        self.stop()
        with open(self.log, encoding="utf-8", errors="replace") as f:
            tail = "".join(f.readlines()[-40:])
        raise Failed(f"vllm serve {'ended with ' + str(status) if status is not None else 'did not answer'}"
                     f"\n{tail}")

    def complete(self, prompt, n, **more):
        """One completion, greedy. Returns (text, usage, the whole answer)."""
        body = {"model": self.name, "prompt": prompt, "max_tokens": n, "temperature": 0,
                "ignore_eos": True, **more}
        answer = json.loads(self._request("POST", "/v1/completions", body))
        return answer["choices"][0]["text"], answer["usage"], answer

    def first_token(self, prompt, n):
        """Streams n tokens. Returns (seconds to the first, seconds to the last, text)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S)
        body = {"model": self.name, "prompt": prompt, "max_tokens": n, "temperature": 0,
                "ignore_eos": True, "stream": True}
        start, first, text = time.monotonic(), None, ""
        try:
            connection.request("POST", "/v1/completions", json.dumps(body),
                               {"Content-Type": "application/json"})
            answer = connection.getresponse()
            if answer.status != 200:
                raise Failed(f"completions: {answer.status}")
            for line in answer:
                if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                    continue
                if first is None:
                    first = time.monotonic() - start
                text += json.loads(line[6:])["choices"][0]["text"]
        finally:
            connection.close()
        if first is None:
            raise Failed("the stream ended without a token")
        return first, time.monotonic() - start, text

    def metric(self, name):
        """The sum of a metric over its labels; 0 if it is not there."""
        text = self._request("GET", "/metrics").decode()
        return sum(float(v) for v in re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.M))

    def memory(self):
        """Resident bytes of all its processes; shared pages count in proportion (PSS)."""
        total = 0
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                if os.getsid(int(entry)) != self.process.pid:
                    continue
                with open(f"/proc/{entry}/smaps_rollup", encoding="ascii") as f:
                    total += sum(int(line.split()[1]) for line in f if line.startswith("Pss:")) * 1024
            except OSError:
                continue
        return total

    def stop(self, how=signal.SIGTERM):
        """Ends it and the processes it has started."""
        if self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


class Daemon:
    """skvqd on a socket in a folder."""

    def __init__(self, build, folder, options=()):
        self.build, self.options = build, options
        self.socket = os.path.join(folder, "skvqd.sock")
        self.start()

    def start(self):
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        self.process = subprocess.Popen([os.path.join(self.build, "bin", "skvqd"), "--socket", self.socket,
                                         *self.options], stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
        end = time.monotonic() + 60
        while not os.path.exists(self.socket):
            if time.monotonic() > end or self.process.poll() is not None:
                raise Failed("skvqd does not start")
            time.sleep(0.02)

    def status(self):
        done = subprocess.run([os.path.join(self.build, "bin", "skvqctl"), "--socket", self.socket,
                               "status", "--json"], capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise Failed(f"skvqctl status: {done.stderr}")
        return json.loads(done.stdout)

    def stop(self, how=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
