"""Run `benchmarks.speed` and `benchmarks.scale`, and print all ratios and their limits as one table.

python -m benchmarks [--json OUT]
"""

from __future__ import annotations

from benchmarks import scale, speed
from benchmarks.command import FIGURES, parser, temporary_folder
from benchmarks.table import Table

arguments = parser(__doc__, FIGURES).parse_args()
with temporary_folder() as folder:
    table = Table()
    speed.fill(table, folder)
    scale.fill(table, folder)
    table.write(arguments.json)
