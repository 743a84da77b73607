"""Check the settings of a production node: python -m tests.deploy_check.

Django's deployment checks must find nothing, and a production start without its secrets must be refused.
"""

import base64
import os
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def manage(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run manage.py with nothing else of this environment than what finds the programs."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def main() -> int:
    problems = []
    with tempfile.TemporaryDirectory(prefix="k1node-deploy-") as data:
        production = {
            "NODE_ENV": "production",
            "SECRET_KEY": secrets.token_urlsafe(64),
            "JWT_SECRET": secrets.token_urlsafe(64),
            "K1NODE_AUDIT_KEY": secrets.token_urlsafe(64),
            "K1NODE_KEYRING": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            "ALLOWED_HOSTS": "k1node.example",
            "K1NODE_DATA": data,
        }
        checked = manage(production, "check", "--deploy", "--fail-level", "WARNING")
        if checked.returncode:
            problems.append(f"check --deploy failed:\n{checked.stdout}{checked.stderr}")
        for name in ("SECRET_KEY", "JWT_SECRET", "K1NODE_AUDIT_KEY", "K1NODE_KEYRING", "ALLOWED_HOSTS"):
            refused = manage({key: value for key, value in production.items() if key != name}, "check")
            if refused.returncode == 0:
                problems.append(f"A production node without {name} starts.")
            elif f"ImproperlyConfigured: {name} must" not in refused.stderr:
                problems.append(f"A production node without {name} fails for another reason:\n{refused.stderr}")
    for problem in problems:
        print(problem, file=sys.stderr)
    print("deploy check: " + ("failed" if problems else "ok"))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
