"""A peer process that loads session files and continues: `python -m tests.session_file_peer MODEL BACKEND WEIGHTS`.

Reads lines of JSON, {"path": ..., "steps": n}; answers each with the result of `go_on`.
"""

from __future__ import annotations

import hashlib
import json
import sys
from typing import Any

import teachllama as tl

WARM = tl.SamplingParams(temperature=1.0, top_k=20, repeat_penalty=1.1)


def go_on(session: tl.Session, steps: int) -> dict[str, Any]:
    """Continues a session; returns its tokens, a digest of all logits on the way, and the next random number."""
    digest = hashlib.sha256()
    if session._logits is None:
        session.eval([3])
    for _ in range(min(steps, session.seq_len - session.n_past)):
        digest.update(session.logits.tobytes())
        session.eval([session.sample(WARM)])
    digest.update(session.logits.tobytes())
    return {
        "tokens": session.tokens,
        "logits": digest.hexdigest(),
        "draw": session._rng.random(),
        "can_rewind_to": session.can_rewind_to,
    }


def main() -> None:
    """Answers until the input ends."""
    path, backend, weights = sys.argv[1:]
    with tl.load_model(path, backend=backend, weights=weights) as model:
        for line in sys.stdin:
            asked = json.loads(line)
            with model.load_session(asked["path"]) as session:
                answer = {"restored": session.restored, **go_on(session, asked["steps"])}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
