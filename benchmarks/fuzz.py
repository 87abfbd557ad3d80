"""Send hostile and generated requests to a service, and list invalid responses and log lines.

    python -m benchmarks.fuzz --json FILE [--requests N] [--seed N]

`recsys.testing.fuzz` generates the requests. The exit code is 1 if a response or a log line is invalid, or if the
service exited.
"""

from __future__ import annotations

import sys

from benchmarks import command
from recsys.testing.fuzz import fuzz


def main() -> None:
    """Run the benchmark as a program."""
    parser = command.parser(__doc__, command.FIGURES)
    parser.add_argument("--requests", type=int, default=10_000, metavar="N", help="number of requests")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the generated requests")
    arguments = parser.parse_args()
    with command.temporary_folder() as folder:
        report = fuzz(folder, arguments.requests, arguments.seed)
    print(command.write(report._asdict(), arguments.json))
    sys.exit(bool(report.failed or report.logged or not report.survived))


if __name__ == "__main__":
    main()
