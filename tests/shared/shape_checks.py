"""What `make shapes` puts on every function of the package: jaxtyping's shapes, enforced by beartype.

An int may stand where a float is asked for, as PEP 484 says.
"""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
