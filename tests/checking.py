"""How annotations are checked while the tests run: shapes by jaxtyping, types by beartype, ints allowed for floats."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
