"""Models × methods × drops × recoveries × seeds on one protocol: `config` is what is asked for, `cells` what that comes to.

`bench` makes one cell, `run` all of them, `results` is where they lie, and `tables` and `plots` are made from what lies there.
"""

from __future__ import annotations
