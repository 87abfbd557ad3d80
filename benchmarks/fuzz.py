"""Send hostile and generated requests to a service, and list every answer and log line that must not occur.

    python -m benchmarks.fuzz --json FILE [--requests N] [--seed N]

The requests are those of `recsys.testing.fuzz`. The exit code is 1 if anything failed.
"""

from __future__ import annotations

import sys

from benchmarks import command
from recsys.testing.fuzz import fuzz


def main() -> None:
    """Run, and write what came of it."""
    parser = command.parser(__doc__, command.FIGURES)
    parser.add_argument("--requests", type=int, default=10_000, metavar="N", help="how many")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="other requests for another one")
    asked = parser.parse_args()
    with command.working() as folder:
        done = fuzz(folder, asked.requests, asked.seed)
    print(command.write(done._asdict(), asked.json))
    sys.exit(bool(done.failed or done.logged or not done.survived))


if __name__ == "__main__":
    main()
