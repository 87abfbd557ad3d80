"""All ratios beside their limits, as one table of one run: `benchmarks.speed`, then `benchmarks.scale`.

python -m benchmarks [--json OUT]
"""

from __future__ import annotations

from benchmarks import scale, speed
from benchmarks.command import FIGURES, parser, working
from benchmarks.table import Table

asked = parser(__doc__, FIGURES).parse_args()
with working() as folder:
    table = Table()
    speed.fill(table, folder)
    scale.fill(table, folder)
    table.write(asked.json)
